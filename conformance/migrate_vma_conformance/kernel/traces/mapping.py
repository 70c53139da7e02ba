"""From what probes show to the events of the contract.

Rules:
- An event is made only of what the trace shows. Two are entailed by others: the fault around a callback, whose beginning and end
  stand beside the callback's, and the end of finalize. In a callback that is told with the next thing that its thread does, for
  the page may be freed meanwhile.
- The state after setup is what its return shows; where that shows the result alone (Linux 6.1), the counts are those at the entry
  of pages, and src is left open, because the driver may have given up entries by then.
- Where a thread's events do not fit one another (a return that was missed, a migration begun inside another that cannot be told
  from it), all that is open in it is forgotten, and nothing is judged until it fits again.
- A look at a page is true for the line that shows it, and for no later one: `Forget` follows it.
- A page that a driver's free callback gets is device memory; it is written down as private, which no clause judged here
  distinguishes from coherent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import define, field, frozen

from migrate_vma_conformance.kernel.traces.lines import Line, Record
from migrate_vma_conformance.kernel.traces.probes import Point
from migrate_vma_conformance.kernel.traces.shown import Fact, Shown, is_whole_callback, mm_of
from migrate_vma_conformance.kernel.traces.storms import Storms
from migrate_vma_conformance.kernel.traces.tracks import DEPTH, Callback, Migration, Opened, Track, Tracks
from migrate_vma_spec import events as ev
from migrate_vma_spec.vocabulary import Memory, Select, VmFault

PAGE_LOCKED = 1 << 0
"""Of the flags of a struct page (include/linux/page-flags.h)."""
FAULT_WRITE = 1 << 0
"""FAULT_FLAG_WRITE of the flags of a struct vm_fault (include/linux/mm_types.h)."""


@frozen
class Forget:
    """Nothing is known of this task any more."""

    task: str


Action = ev.Event | Forget


@define
class Mapper:
    """Give it the events of one recording in the order of time."""

    shown: Shown
    storms: Storms
    tracks: Tracks = field(factory=Tracks)
    _handlers: dict[Point, Callable[[Track, Record], Iterator[Action]]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._handlers = {
            Point.CALLBACK: self._entered,
            Point.CALLBACK_RETURN: self._returned,
            Point.SETUP: self._setup,
            Point.SETUP_RETURN: self._setup_returned,
            Point.PAGES: self._pages,
            Point.PAGES_RETURN: self._pages_returned,
            Point.FINALIZE: self._finalize,
        }

    def take(self, record: Record) -> Iterator[tuple[str, Action]]:
        """What the contract is told of an event, task by task."""
        if record.point is Point.SWAP_FAULT:
            self.storms.faulted()
            return
        if record.point is Point.FREE:
            for event in self._freed(record):
                yield record.task, event
            return
        track, forgotten = self.tracks.track(record)
        if forgotten is not None:
            yield forgotten.task, Forget(forgotten.task)
        last, track.last = track.last, record
        if last is not None and last.point is record.point and not set(last.names) & set(record.names):
            return  # another probe at the place where the thread still is
        for action in self._step(track, record):
            yield track.task, action
        if not track.open:
            yield track.task, Forget(track.task)

    def lines(self, pid: int) -> list[Line]:
        """What was seen of all that a thread is in."""
        track = self.tracks.find(pid)
        return track.lines() if track is not None else []

    def forget(self) -> None:
        """Events are missing: what was open is unknown."""
        self.tracks.clear()
        self.storms.forget()

    # ---- what a thread does --------------------------------------------------------------------------------------------

    def _step(self, track: Track, record: Record) -> Iterator[Action]:
        migration = track.migration
        if migration is not None and migration.finalizing:
            yield from self._finalized(track, migration)
        handler = self._handlers.get(record.point)
        if handler is not None:
            yield from handler(track, record)

    def _finalized(self, track: Track, migration: Migration) -> Iterator[Action]:
        if not migration.cut:
            yield ev.FinalizeReturned(migration.number)
        self._close(track, migration)

    def _close(self, track: Track, opened: Opened) -> None:
        """It is over, and so is what was inside of it."""
        whole = not any(each.cut for each in track.open)
        del track.open[track.open.index(opened) :]
        if not track.open and whole and not track.unsure:
            track.known = True

    def _lose(self, track: Track) -> Iterator[Action]:
        """What the thread is in does not fit what it does."""
        for opened in track.open:
            opened.cut = True
        track.known = False
        yield Forget(track.task)

    # ---- the fault -----------------------------------------------------------------------------------------------------

    def _entered(self, track: Track, record: Record) -> Iterator[Action]:
        if track.callback is not None:
            # Inside another, or after one whose return was missed: nobody can tell.
            yield from self._lose(track)
            track.open.clear()
            track.unsure = True
        page = record.pointer("page")
        callback = Callback([record.line], cut=not is_whole_callback(record), page=page, time=record.time)
        track.open.append(callback)
        self.storms.saw(callback, record)
        mm = mm_of(record)
        if callback.cut or page is None or mm is None:
            return
        callback.pfn, callback.mm = self.shown.pfn(page), mm
        callback.address = record.numbers["address"] // self.shown.page_size
        write = bool(record.numbers["fault_flags"] & FAULT_WRITE)
        yield ev.FaultBegan(mm, callback.address, write)
        yield from self._look(record, page, Memory.DEVICE_PRIVATE)
        yield ev.CallbackEntered(callback.pfn, mm, callback.address)

    def _returned(self, track: Track, record: Record) -> Iterator[Action]:
        callback, result = track.callback, record.number("result")
        if callback is None:
            # It began before the trace did.
            track.open.clear()
            track.known, track.unsure = True, False
            return
        if result is None or callback.pfn is None or callback.cut:
            yield Forget(track.task)
        else:
            fault = VmFault(result & 0xFFFFFFFF)
            yield ev.CallbackReturned(callback.pfn, callback.mm, callback.address, fault)
            yield ev.FaultEnded(callback.mm, callback.address, fault)
        callback.cut = False
        self._close(track, callback)
        self.storms.ended(callback, record)

    def _freed(self, record: Record) -> Iterator[Action]:
        page = record.pointer("page")
        if page is None:
            return
        yield from self._look(record, page, Memory.DEVICE_PRIVATE)
        yield ev.FreeCallback(self.shown.pfn(page))
        yield ev.FolioFreed(self.shown.pfn(page))

    def _look(self, record: Record, page: int, memory: Memory | None = None) -> Iterator[Action]:
        """What the line shows of a page, and of which kind it must be."""
        flags, refs = record.number("page_flags"), record.number("refs")
        locked = None if flags is None else bool(flags & PAGE_LOCKED)
        if locked is not None or refs is not None:
            yield ev.FolioSeen(self.shown.pfn(page), refs, locked, memory)

    # ---- the calls -----------------------------------------------------------------------------------------------------

    def _setup(self, track: Track, record: Record) -> Iterator[Action]:
        yield from self._settle(track, record)
        page, numbers = record.pointer("fault_page"), record.numbers
        start, end = (numbers.get(name, 0) // self.shown.page_size for name in ("start", "end"))
        cut = not numbers.keys() >= {"start", "end", "flags"} or self._began_before(track, page)
        migration = Migration([record.line], cut, track.migrations, record.pointer("args"), start, end, page)
        track.open.append(migration)
        if track.callback is not None:
            track.callback.setups += 1
            self.storms.saw(track.callback, record)
        if cut:
            return
        owner = record.pointer("owner")
        if page is not None:
            yield from self._look(record, page)
        yield ev.SetupCalled(
            migration.number,
            mm_of(record),
            start,
            end,
            Select(numbers["flags"]),
            None if owner is None else hex(owner),
            None if page is None else self.shown.pfn(page),
            None,
            None,
        )

    def _began_before(self, track: Track, fault_page: int | None) -> bool:
        """It is of a callback whose beginning the trace does not show, though it shows those of others."""
        if fault_page is None:
            return False
        if track.callback is not None:
            return track.callback.cut and Fact.CALLBACK in self.shown.facts
        return not track.known and Fact.CALLBACK_ENTRY in self.shown.facts

    def _settle(self, track: Track, record: Record) -> Iterator[Action]:
        """Another migration begins: what becomes of the one that the thread is in."""
        migration = track.migration
        if migration is None:
            return
        args = record.pointer("args")
        same = args == migration.args if args is not None and migration.args is not None else None
        if same or not (migration.held or migration.paged):
            # Begun anew, or ended by a driver that has nothing to finalize: the clauses know which of these is allowed.
            track.open.pop()
            if same is None and migration.held is None:
                track.known, track.unsure = False, True
        elif same is None or len(track.open) >= DEPTH:
            yield from self._lose(track)
            track.open[:] = [each for each in track.open if isinstance(each, Callback)]
            track.unsure = True

    def _setup_returned(self, track: Track, record: Record) -> Iterator[Action]:
        migration, result = track.migration, record.number("result")
        if migration is None or migration.told or result is None:
            return
        migration.add(record.line)
        if result != 0:
            if not migration.cut:
                yield ev.SetupReturned(migration.number, result, migration.start, migration.end, 0, 0, None)
            self._close(track, migration)
            return
        migration.returned = record
        if record.numbers.keys() >= {"cpages", "npages"}:
            yield from self._tell_setup(track, migration, record)

    def _tell_setup(self, track: Track, migration: Migration, record: Record) -> Iterator[Action]:
        """What the return of setup shows, and for the rest this record, which is that return or a later one."""
        returned = migration.returned
        shown = record.numbers if returned is None else {**record.numbers, **returned.numbers}
        cpages, npages = shown.get("cpages"), shown.get("npages")
        migration.told, migration.held = True, cpages
        if cpages == 0 and track.callback is not None:
            track.callback.empty += 1
        if migration.cut or cpages is None or npages is None:
            return
        if migration.fault_page is not None:
            yield from self._look(record, migration.fault_page)
        start, end = (
            shown[name] // self.shown.page_size if name in shown else known
            for name, known in (("start", migration.start), ("end", migration.end))
        )
        src = None if returned is None else _array(returned, "src", npages)
        yield ev.SetupReturned(migration.number, 0, start, end, cpages, npages, src)

    def _match(self, track: Track, record: Record) -> Migration | None:
        """The migration that a call of pages or finalize is of; what is inside of it is over then."""
        args = record.pointer("args")
        for opened in reversed(track.open):
            if isinstance(opened, Migration) and (args is None or opened.args in {None, args}):
                del track.open[track.open.index(opened) + 1 :]
                return opened
            if isinstance(opened, Callback):
                break
        return None

    def _setup_is_over(self, track: Track, migration: Migration, record: Record) -> Iterator[Action]:
        migration.add(record.line)
        if migration.told:
            return
        if migration.returned is None or not record.numbers.keys() >= {"cpages", "npages"}:
            # Its return was missed, or its counts are not shown.
            migration.told = True
            if not migration.cut:
                yield from self._lose(track)
            return
        yield from self._tell_setup(track, migration, record)

    def _is_in_none(self, track: Track) -> bool:
        """The thread is known to be in no migration."""
        if track.migration is not None:
            return False
        callback = track.callback
        return track.known if callback is None else not callback.cut

    def _pages(self, track: Track, record: Record) -> Iterator[Action]:
        migration = self._match(track, record)
        if migration is not None:
            yield from self._setup_is_over(track, migration, record)
            migration.paged = True
        if self._is_in_none(track) if migration is None else not migration.cut:
            npages = record.number("npages")
            number = 0 if migration is None else migration.number
            yield ev.PagesCalled(number, _array(record, "src", npages), _array(record, "dst", npages), vma=True)

    def _pages_returned(self, track: Track, record: Record) -> Iterator[Action]:
        migration = track.migration
        if migration is not None and migration.paged and not migration.pages_told:
            migration.pages_told = True
            migration.add(record.line)
            if not migration.cut:
                yield ev.PagesReturned(migration.number, _array(record, "src", record.number("npages")))

    def _finalize(self, track: Track, record: Record) -> Iterator[Action]:
        migration = self._match(track, record)
        number = 0 if migration is None else migration.number
        if migration is not None:
            yield from self._setup_is_over(track, migration, record)
            migration.finalizing = True
            self.storms.finalized(track.callback, record)
            if migration.paged and not migration.pages_told and not migration.cut:
                yield ev.PagesReturned(number, None)
        if self._is_in_none(track) if migration is None else not migration.cut:
            npages = record.number("npages")
            yield ev.FinalizeCalled(number, _array(record, "src", npages), _array(record, "dst", npages), vma=True)
        if migration is not None and track.callback is None:
            yield from self._finalized(track, migration)


def _array(record: Record, name: str, length: int | None) -> tuple[int, ...] | None:
    """The whole of src or dst, where the line shows the whole."""
    array = record.arrays.get(name)
    return None if array is None or length is None or len(array) < length else array[:length]
