"""A trace as relations: the lives of folios, what each page-table entry held when, who held which lock, what a task was at.

Rules:
- Everything is a list of places in the trace, sorted, made in one pass. Nothing is judged here, and nothing here is shared with
  the folded world of the clauses: the two must not be able to be wrong together.
- A place is the number of a step. What a step does holds after it: the life that a step begins is open at that step.
- Where the trace contradicts itself (a page is allocated that is in use), the later step is believed and the earlier record ends.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen

from migrate_vma_spec import events as ev
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, Pte, PteKind

ADDED: dict[type[ev.Event], int] = {
    ev.FolioGot: 1,
    ev.FolioPut: -1,
    ev.LruAdded: 1,
    ev.LruPutBack: -1,
    ev.PageCacheAdded: 1,
    ev.PageCacheRemoved: -1,
    ev.SwapCacheAdded: 1,
    ev.SwapCacheRemoved: -1,
}
"""What each of these adds to the count of its folio; the event carries the count after it."""

HOLDING = frozenset({PteKind.PRESENT, PteKind.DEVICE_PRIVATE, PteKind.EXCLUSIVE})
"""Entries that map a page, and hold a reference to its folio for it. A migration entry only names one."""


@frozen
class Count:
    """A step that changed a folio's count, and what it says the count is then, if it says so."""

    at: int
    delta: int
    said: int | None


@define(eq=False)
class Life:
    """A folio from its allocation, or from the split that made it, to its end. `first` is its count then."""

    pfn: int
    order: int
    start: int
    first: int
    end: int | None = None
    freed: bool = False
    counts: list[Count] = field(factory=list[Count])

    @property
    def frames(self) -> range:
        return range(self.pfn, self.pfn + (1 << self.order))

    def open_at(self, at: int) -> bool:
        return self.start <= at and (self.end is None or at < self.end)

    @property
    def ledger(self) -> list[tuple[int, int]]:
        """(place, what the count was changed by there); what a step says of the count is believed."""
        changes, count = [(self.start, self.first)], self.first
        for step in self.counts:
            new = count + step.delta if step.said is None else step.said
            if new != count:
                changes.append((step.at, new - count))
            count = new
        return changes

    @property
    def gone(self) -> int | None:
        """Where the last reference was put."""
        count = 0
        for at, change in self.ledger:
            count += change
            if not count:
                return at
        return None


@define(eq=False)
class Hold:
    """A lock, from where it was taken to where it was let go. `dropper` is who did that."""

    task: str
    start: int
    mode: LockMode | None = None
    end: int | None = None
    dropper: str = ""

    def open_at(self, at: int) -> bool:
        return self.start <= at and (self.end is None or at < self.end)


@frozen
class Entry:
    """What one page of an address space was mapped to from this step on. `leaf`: by the middle level's leaf at this address."""

    at: int
    task: str
    pte: Pte
    leaf: int | None = None


@define(eq=False)
class Span:
    """A stretch of a task's work: an operation, a call of the library, a fault."""

    task: str
    start: int
    end: int | None = None

    def covers(self, at: int) -> bool:
        return self.start <= at and (self.end is None or at <= self.end)


@define(eq=False)
class History:
    """The relations of one trace. `unlocked` and `dropped`: where what was let go was not held by anybody."""

    steps: Sequence[ev.Step]
    lives: list[Life] = field(factory=list[Life])
    of_frame: dict[int, list[Life]] = field(factory=lambda: defaultdict[int, list[Life]](list))
    entries: dict[tuple[int, int], list[Entry]] = field(factory=lambda: defaultdict[tuple[int, int], list[Entry]](list))
    page_locks: dict[int, list[Hold]] = field(factory=lambda: defaultdict[int, list[Hold]](list))
    locks: dict[str, list[Hold]] = field(factory=lambda: defaultdict[str, list[Hold]](list))
    operations: dict[str, list[Span]] = field(factory=lambda: defaultdict[str, list[Span]](list))
    calls: dict[str, list[Span]] = field(factory=lambda: defaultdict[str, list[Span]](list))
    faults: dict[str, list[Span]] = field(factory=lambda: defaultdict[str, list[Span]](list))
    batched: dict[int, list[Hold]] = field(factory=lambda: defaultdict[int, list[Hold]](list))
    unlocked: list[int] = field(factory=list[int])
    dropped: list[int] = field(factory=list[int])
    kinds: dict[type[ev.Event], list[int]] = field(factory=lambda: defaultdict[type[ev.Event], list[int]](list))

    def places(self, *kinds: type[ev.Event]) -> list[int]:
        """Where steps of these kinds are."""
        if len(kinds) == 1:
            return self.kinds.get(kinds[0], [])
        return sorted(at for kind in kinds for at in self.kinds.get(kind, ()))

    def life(self, pfn: int, at: int) -> Life | None:
        """The folio that a frame belonged to after a step."""
        lives = self.of_frame.get(pfn, [])
        place = bisect_right(lives, at, key=lambda life: life.start) - 1
        return lives[place] if place >= 0 and lives[place].open_at(at) else None

    def entry(self, mm: int, addr: int, at: int) -> Pte:
        """What a page was mapped to after a step."""
        changes = self.entries.get((mm, addr), [])
        place = bisect_right(changes, at, key=lambda change: change.at) - 1
        return changes[place].pte if place >= 0 else PTE_NONE

    def page_lock(self, pfn: int, at: int) -> Hold | None:
        """The lock of a frame's folio after a step."""
        holds = self.page_locks.get(pfn, [])
        place = bisect_right(holds, at, key=lambda hold: hold.start) - 1
        return holds[place] if place >= 0 and holds[place].open_at(at) else None

    def operation(self, task: str, at: int) -> Span | None:
        """What a task was at."""
        return _around(self.operations.get(task, []), at)

    def in_call(self, task: str, at: int) -> bool:
        """Whether the task was in a migration, from its setup to its finalize."""
        return _around(self.calls.get(task, []), at) is not None

    def in_fault(self, task: str, at: int) -> bool:
        return _around(self.faults.get(task, []), at) is not None


def _around(spans: list[Span], at: int) -> Span | None:
    place = bisect_right(spans, at, key=lambda span: span.start) - 1
    while place >= 0:
        if spans[place].covers(at):
            return spans[place]
        place -= 1
    return None


def history(steps: Sequence[ev.Step]) -> History:
    """The relations of a trace."""
    made = History(steps)
    for at, step in enumerate(steps):
        kind = type(step.event)
        made.kinds[kind].append(at)
        record = _RECORDERS.get(kind)
        if record is not None:
            record(made, at, step.task, step.event)
    return made


# ---- folios ----------------------------------------------------------------------------------------------------------


def _begin(h: History, at: int, pfn: int, order: int, count: int) -> Life:
    life = Life(pfn, order, at, count)
    for frame in life.frames:
        old = h.life(frame, at)
        if old is not None:
            old.end = at
        h.of_frame[frame].append(life)
    h.lives.append(life)
    return life


def _allocated(h: History, at: int, task: str, e: ev.FolioAllocated) -> None:
    life = _begin(h, at, e.pfn, e.order, e.refcount)
    for frame in life.frames if e.locked else ():
        h.page_locks[frame].append(Hold(task, at))


def _freed(h: History, at: int, _task: str, e: ev.FolioFreed) -> None:
    life = h.life(e.pfn, at)
    if life is not None:
        life.end, life.freed = at, True
        for frame in life.frames:
            _unlock(h, at, "", frame)


def _split(h: History, at: int, task: str, e: ev.FolioSplit) -> None:
    """The new folios have the lock that the old one had, or the splitting task's."""
    size = 1 << e.new_order
    for number, count in enumerate(e.refcounts):
        life = _begin(h, at, e.pfn + number * size, e.new_order, count)
        for frame in life.frames:
            if h.page_lock(frame, at) is None:
                h.page_locks[frame].append(Hold(task, at))


def _counted(h: History, at: int, _task: str, e: Any) -> None:
    """An event of ADDED: each has a pfn and a refcount."""
    life = h.life(e.pfn, at)
    if life is not None:
        life.counts.append(Count(at, ADDED[type(e)], e.refcount))


def _told(h: History, at: int, _task: str, e: ev.FolioRead | ev.FolioChecked | ev.FolioMoved | ev.ExclusiveTaken) -> None:
    """A count that was read. Only the first frame of a folio has one."""
    life = h.life(e.pfn, at)
    if life is not None and life.pfn == e.pfn:
        life.counts.append(Count(at, 0, e.refcount))


def _isolated(h: History, at: int, _task: str, e: ev.LruIsolated) -> None:
    life = h.life(e.pfn, at)
    if life is not None and e.done:
        life.counts.append(Count(at, 1, e.refcount))


def _batched(h: History, at: int, task: str, e: ev.LruAdded) -> None:
    """The batch has a reference of its own until it is drained."""
    _counted(h, at, task, e)
    h.batched[e.pfn].append(Hold(task, at))


def _drained(h: History, at: int, task: str, e: ev.LruDrained) -> None:
    for pfn in e.pfns:
        life = h.life(pfn, at)
        if life is not None:
            life.counts.append(Count(at, -1, None))
        _close(h.batched[pfn], at, task)


# ---- page tables -----------------------------------------------------------------------------------------------------


def _entry_changed(h: History, at: int, task: str, e: ev.PteChanged) -> None:
    h.entries[e.mm, e.addr].append(Entry(at, task, e.new))


def _leaf_changed(h: History, at: int, task: str, e: ev.PmdChanged) -> None:
    """A page table that is hung in, or found empty and taken out, changes nothing that is mapped."""
    tables = (PteKind.NONE, PteKind.TABLE)
    if e.new.kind in tables and e.old.kind in tables:
        return
    for number in range(e.pages):
        pte = PTE_NONE if e.new.kind is PteKind.TABLE else page_of(e.new, number)
        h.entries[e.mm, e.addr + number].append(Entry(at, task, pte, e.addr if pte.pfn is not None else None))


def _leaf_split(h: History, at: int, task: str, e: ev.PmdSplit) -> None:
    for number, pte in enumerate(e.ptes):
        h.entries[e.mm, e.addr + number].append(Entry(at, task, pte))


def page_of(leaf: Pte, number: int) -> Pte:
    """What a leaf says of the page of this number in it."""
    if leaf.pfn is None:
        return leaf
    return Pte(leaf.kind, leaf.pfn + number, leaf.write, leaf.exclusive)


# ---- locks, operations -----------------------------------------------------------------------------------------------


def _close(holds: list[Hold], at: int, task: str) -> bool:
    """Let go the hold that is open: the task's own before another's."""
    still = list(itertools.islice((hold for hold in reversed(holds) if hold.end is None), 8))
    hold = next((hold for hold in still if hold.task == task), still[0] if still else None)
    if hold is None:
        return False
    hold.end, hold.dropper = at, task
    return True


def _unlock(h: History, at: int, task: str, frame: int) -> bool:
    return _close(h.page_locks[frame], at, task)


def _locked(h: History, at: int, task: str, e: ev.FolioLocked) -> None:
    life = h.life(e.pfn, at)
    for frame in (e.pfn,) if life is None else life.frames:
        h.page_locks[frame].append(Hold(task, at))


def _unlocked(h: History, at: int, task: str, e: ev.FolioUnlocked) -> None:
    life = h.life(e.pfn, at)
    closed = [_unlock(h, at, task, frame) for frame in ((e.pfn,) if life is None else life.frames)]
    if not all(closed):
        h.unlocked.append(at)


def _taken(h: History, at: int, task: str, e: ev.LockTaken) -> None:
    h.locks[e.lock].append(Hold(task, at, e.mode))


def _let_go(h: History, at: int, task: str, e: ev.LockDropped) -> None:
    if not _close(h.locks[e.lock], at, task):
        h.dropped.append(at)


def _began(h: History, at: int, task: str, _e: ev.Event) -> None:
    h.operations[task].append(Span(task, at))


def _ended(h: History, at: int, task: str, _e: ev.Event) -> None:
    for span in h.operations[task][-1:]:
        span.end = at


def _faulted(h: History, at: int, task: str, _e: ev.Event) -> None:
    h.faults[task].append(Span(task, at))


def _fault_ended(h: History, at: int, task: str, _e: ev.Event) -> None:
    for span in h.faults[task][-1:]:
        span.end = at


def _called(h: History, at: int, task: str, _e: ev.Event) -> None:
    h.calls[task].append(Span(task, at))


def _finished(h: History, at: int, task: str, e: ev.Event) -> None:
    """By finalize, or by a setup after which there is nothing to finalize."""
    done = isinstance(e, ev.FinalizeReturned) or (isinstance(e, (ev.SetupReturned, ev.RangeReturned)) and not any(e.src or ()))
    for span in reversed(h.calls[task]) if done else ():
        if span.end is None:
            span.end = at
            return


_RECORDERS: dict[type[ev.Event], Callable[[History, int, str, Any], None]] = {
    **dict.fromkeys(ADDED, _counted),
    **dict.fromkeys((ev.FolioRead, ev.FolioChecked, ev.FolioMoved, ev.ExclusiveTaken), _told),
    **dict.fromkeys((ev.SetupCalled, ev.RangeCalled), _called),
    **dict.fromkeys((ev.SetupReturned, ev.RangeReturned, ev.FinalizeReturned), _finished),
    ev.FolioAllocated: _allocated,
    ev.FolioFreed: _freed,
    ev.FolioSplit: _split,
    ev.LruIsolated: _isolated,
    ev.LruAdded: _batched,
    ev.LruDrained: _drained,
    ev.PteChanged: _entry_changed,
    ev.PmdChanged: _leaf_changed,
    ev.PmdSplit: _leaf_split,
    ev.FolioLocked: _locked,
    ev.FolioUnlocked: _unlocked,
    ev.LockTaken: _taken,
    ev.LockDropped: _let_go,
    ev.FaultBegan: _faulted,
    ev.FaultEnded: _fault_ended,
    ev.OperationBegan: _began,
    ev.OperationEnded: _ended,
}
