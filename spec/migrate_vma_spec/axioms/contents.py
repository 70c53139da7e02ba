"""A-DATA: every read of private memory returns the last write to it, and no read what somebody else left in a page.

A read has two sources, found apart from each other. *What is due*: walking back through the history of the virtual page (stores
to it, what mremap and fork copied it from, where it was mapped or discarded). *What is there*: walking back through the history
of the page frame (stores to it, copies, clears, what was read in from swap). The two must be one store, or both zeroes.

A store or a load through a translation that is stale, and not flushed yet, may come before what made it stale: where a discard
is under way, such a store may be lost, and such a load may find what the page had at any time since the access began.

Shared mappings and pages of files that no store has made private are not judged: what a file holds is nobody's event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from attrs import define, field, frozen

from migrate_vma_spec import events as ev
from migrate_vma_spec.axioms.axiom import Broken
from migrate_vma_spec.axioms.history import Entry, History
from migrate_vma_spec.vocabulary import PTE_NONE, PteKind, VmFlags

Place = tuple[int, int]
"""A virtual page: the address space and the address."""

Source = int | str | None
"""The place of a store; ZERO; `UNWRITTEN` and a place for a page that kept what it had; None for what is not known."""

ZERO = "zeroes"
OLD = "what page {} held when it was allocated"

Accessed = ev.CpuAccessed | ev.DeviceAccessed
EMPTY = frozenset({PteKind.NONE, PteKind.MARKER})


@frozen
class Change:
    """Something that decides what a virtual page holds.

    `kind` is a store; born (mapped), dropped (discarded) or unmapped, after which it reads as `zero` or nobody knows; copied by
    mremap or forked from `place`, at the latest as it was at `then`; or given: a userfaultfd's monitor put page `pfn` there.
    """

    at: int
    kind: str
    place: Place = (0, 0)
    then: int = 0
    zero: bool = True
    pfn: int | None = None


def reads(h: History) -> Iterator[Broken]:
    """Each load finds the last store, or zeroes where there was none."""
    memory = _Memory(h)
    for at in h.places(ev.CpuAccessed, ev.DeviceAccessed):
        event = h.steps[at].event
        if isinstance(event, Accessed) and not event.write:
            found = memory.there(event.pfn, at)
            due = memory.due_to(event, at)
            if found is not None and None not in due and found not in due:
                words = " or ".join(sorted(map(_said, due)))
                steps = sorted({place for place in (found, *due, at) if isinstance(place, int)})
                yield f"({event.mm}, {event.addr}) reads {_said(found)}, and {words} is due", tuple(steps)


def _said(source: Source) -> str:
    return f"the store of step {source}" if isinstance(source, int) else str(source)


@define(eq=False)
class _Memory:
    """The two walks, with what they need at hand."""

    h: History
    virtual: dict[Place, list[Change]] = field(factory=dict[Place, list[Change]])
    frames: dict[int, list[tuple[int, str, int]]] = field(factory=dict[int, list[tuple[int, str, int]]])
    slots: dict[int, list[tuple[int, int]]] = field(factory=dict[int, list[tuple[int, int]]])

    def __attrs_post_init__(self) -> None:
        _index_frames(self)
        _index_pages(self)

    # -- what is there ---------------------------------------------------------------------------------------------

    def there(self, pfn: int | None, at: int) -> Source:
        """What a page frame holds before this step. Of a page of the page cache that is its file's affair."""
        if pfn is None:
            return ZERO
        if self.is_cached(pfn, at):
            return None
        changes = self.frames.get(pfn, [])
        place = bisect_left(changes, at, key=lambda change: change[0]) - 1
        if place < 0:
            return None
        then, kind, more = changes[place]
        match kind:
            case "store":
                return then
            case "copied":
                return self.there(more, then)
            case "read in":
                return self._in_swap(more, then)
            case "allocated":
                return OLD.format(pfn)
            case _:
                return ZERO if kind == "cleared" else None

    def _in_swap(self, slot: int, at: int) -> Source:
        written = self.slots.get(slot, [])
        place = bisect_left(written, at, key=lambda write: write[0]) - 1
        return self.there(written[place][1], written[place][0]) if place >= 0 else None

    def is_cached(self, pfn: int, at: int) -> bool:
        life = self.h.life(pfn, at)
        changes = [type(self.h.steps[count.at].event) for count in life.counts if count.at <= at] if life is not None else []
        return changes.count(ev.PageCacheAdded) > changes.count(ev.PageCacheRemoved)

    # -- what is due -----------------------------------------------------------------------------------------------

    def due_to(self, event: Accessed, at: int) -> frozenset[Source]:
        """What a load may find: where its translation is stale, also what was there since it began."""
        place = event.mm, event.addr
        due = self.due(place, at)
        if isinstance(event, ev.DeviceAccessed) or not self._stale(place, event.pfn, at):
            return due
        operation = self.h.operation(self.h.steps[at].task, at)
        begin = operation.start if operation is not None else at
        since = [change.at + 1 for change in self.virtual.get(place, []) if begin < change.at < at]
        return due.union(self.due(place, begin), *(self.due(place, then) for then in since))

    def due(self, place: Place, at: int) -> frozenset[Source]:
        """What a virtual page is to hold before this step."""
        optional: set[Source] = set()
        changes = self.virtual.get(place, [])
        for change in reversed(changes[: bisect_left(changes, at, key=lambda each: each.at)]):
            match change.kind:
                case "store":
                    if not self._may_be_lost(place, change.at):
                        return frozenset({change.at, *optional})
                    optional.add(change.at)
                case "given":
                    return frozenset({self.there(change.pfn, change.at), *optional})
                case "copied":
                    return self.due(change.place, change.then) | optional
                case "forked":
                    between = [each.at for each in self.virtual.get(change.place, []) if change.at < each.at < change.then]
                    seen = (self.due(change.place, then + 1) for then in (change.at, *between))
                    return frozenset(optional).union(*seen)
                case _:
                    return frozenset({ZERO if change.zero else None, *optional})
        return frozenset({None})

    def _stale(self, place: Place, pfn: int | None, at: int) -> bool:
        return self.h.entry(*place, at).pfn != pfn

    def _may_be_lost(self, place: Place, at: int) -> bool:
        """A store through a stale translation to what is being discarded, by an operation that is not over."""
        event = self.h.steps[at].event
        if not isinstance(event, ev.CpuAccessed) or not self._stale(place, event.pfn, at):
            return False
        drops = [change for change in self.virtual.get(place, []) if change.kind in ("dropped", "unmapped") and change.at < at]
        mine = self.h.operation(self.h.steps[at].task, at)
        for drop in drops[-1:]:
            theirs = self.h.operation(self.h.steps[drop.at].task, drop.at)
            return mine is None or theirs is None or theirs.end is None or mine.start < theirs.end
        return False


# ---- the history of frames -------------------------------------------------------------------------------------------


def _index_frames(memory: _Memory) -> None:
    h, kinds = memory.h, (ev.PageCopied, ev.PageCleared, ev.PageFilled, ev.PageWritten, ev.FolioAllocated)
    for at in h.places(ev.CpuAccessed, ev.DeviceAccessed, *kinds):
        match h.steps[at].event:
            case ev.CpuAccessed(pfn=int(pfn), write=True) | ev.DeviceAccessed(pfn=int(pfn), write=True):
                memory.frames.setdefault(pfn, []).append((at, "store", 0))
            case ev.PageCopied(src=src, dst=dst):
                memory.frames.setdefault(dst, []).append((at, "copied", src))
            case ev.PageCleared(pfn=pfn):
                memory.frames.setdefault(pfn, []).append((at, "cleared", 0))
            case ev.PageFilled(pfn=pfn, file=None, index=slot):
                memory.frames.setdefault(pfn, []).append((at, "read in", slot))
            case ev.PageFilled(pfn=pfn):
                memory.frames.setdefault(pfn, []).append((at, "of a file", 0))
            case ev.PageWritten(pfn=pfn, file=None, index=slot):
                memory.slots.setdefault(slot, []).append((at, pfn))
            case ev.FolioAllocated(pfn=pfn, order=order):
                for frame in range(pfn, pfn + (1 << order)):
                    memory.frames.setdefault(frame, []).append((at, "allocated", 0))
            case _:
                pass


# ---- the history of virtual pages ------------------------------------------------------------------------------------


def _index_pages(memory: _Memory) -> None:
    """Stores, mappings, moves, forks and discards, each page's in the order of the trace."""
    h = memory.h
    spaces = (ev.VmaMapped, ev.VmaUnmapped, ev.VmaMoved, ev.MmForked, ev.MmExited)
    entries = _by_entries(h)
    for at in sorted({*h.places(ev.CpuAccessed, ev.DeviceAccessed, *spaces), *entries}):
        for place, change in _changes(memory, at, entries.get(at, ())):
            memory.virtual.setdefault(place, []).append(change)


def _changes(memory: _Memory, at: int, entries: Iterable[tuple[Place, int | None]]) -> Iterator[tuple[Place, Change]]:
    h = memory.h
    for place, pfn in entries:
        born = _born(memory, place, at)
        given = Change(at, "given", pfn=pfn)
        yield place, given if pfn is not None else Change(at, "dropped", zero=born is None or born.zero)
    match h.steps[at].event:
        case ev.CpuAccessed(mm=mm, addr=addr, pfn=pfn, write=True) | ev.DeviceAccessed(mm=mm, addr=addr, pfn=pfn, write=True):
            if pfn is None or not memory.is_cached(pfn, at):
                yield (mm, addr), Change(at, "store")
        case ev.VmaMapped(mm=mm, start=start, end=end, anonymous=anonymous):
            for addr in range(start, end):
                yield (mm, addr), Change(at, "born", zero=anonymous)
        case ev.VmaUnmapped(mm=mm, start=start, end=end):
            for addr in range(start, end):
                yield (mm, addr), Change(at, "unmapped", zero=False)
        case ev.VmaMoved(mm=mm, start=start, end=end, to=to):
            for addr in range(start, end):
                yield (mm, addr - start + to), Change(at, "copied", (mm, addr), _end_of_work(h, at))
        case ev.MmForked(mm=mm, child=child):
            for place in [place for place in memory.virtual if place[0] == mm]:
                yield (child, place[1]), Change(at, "forked", place, _end_of_work(h, at))
        case _:
            pass


def _end_of_work(h: History, at: int) -> int:
    """The end of the operation that a step belongs to; the step itself where that is not known."""
    operation = h.operation(h.steps[at].task, at)
    return at if operation is None or operation.end is None else operation.end


def _born(memory: _Memory, place: Place, at: int) -> Change | None:
    """How what is at a place before this step came there; through moves and forks, from where it came."""
    for change in reversed(memory.virtual.get(place, [])):
        if change.at < at and change.kind in ("copied", "forked"):
            return _born(memory, change.place, change.at)
        if change.kind in ("born", "unmapped"):
            return change
    return None


def _by_entries(h: History) -> dict[int, tuple[tuple[Place, int | None], ...]]:
    """Where entries alone say that a content came or went: the page that a monitor gave, or None for what was discarded.

    An entry that is empty only until its own task sets it again, under one page-table lock, says nothing; nor does what is done
    by a migration, a fault, fork or mremap.
    """
    busy = {h.operation(h.steps[at].task, at) for at in h.places(ev.VmaMoved, ev.MmForked)} - {None}
    found: dict[int, tuple[tuple[Place, int | None], ...]] = {}
    for place, entries in h.entries.items():
        around = [Entry(-1, "", PTE_NONE), *entries, None]
        for old, new, later in zip(around, entries, around[2:], strict=False):
            if old is None or h.in_call(new.task, new.at) or (old.pte.kind in EMPTY) == (new.pte.kind in EMPTY):
                continue
            if h.operation(new.task, new.at) in busy:
                continue
            emptied = new.pte.kind in EMPTY and not (later is not None and _one_hold(h, place[0], new, later))
            given = new.pte.kind is PteKind.PRESENT and not _one_hold(h, place[0], old, new)
            given = given and not h.in_fault(new.task, new.at) and _is_watched(h, place, new.at)
            if emptied or given:
                found[new.at] = (*found.get(new.at, ()), (place, new.pte.pfn))
    return found


def _is_watched(h: History, place: Place, at: int) -> bool:
    """Whether a userfaultfd watched over the page at this step."""
    for then in reversed(h.places(ev.VmaMapped, ev.VmaChanged)):
        event = h.steps[then].event
        if then >= at or not isinstance(event, ev.VmaMapped | ev.VmaChanged) or event.mm != place[0]:
            continue
        if event.start <= place[1] < event.end:
            return bool(event.flags & (VmFlags.UFFD_MISSING | VmFlags.UFFD_WP))
    return False


def _one_hold(h: History, mm: int, first: Entry, second: Entry) -> bool:
    """Whether one task made both changes under one holding of the address space's page-table lock."""
    holds = h.locks.get(f"ptl:{mm}", ()) if first.task == second.task else ()
    return any(hold.open_at(first.at) and hold.open_at(second.at) for hold in holds)
