"""Which steps of an execution are told.

Rules:
- Steps that tell a reader nothing (a PTE was read, an uncontended lock was taken) are left out; the last step of a break is
  always told.
- A page that one task took and freed again, and that nobody else saw, is left out with all that was done to it.
- A cycle is a question of who waits for whom: what only bookkeeping and data need is left out of it and of the way to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field

from migrate_vma_conformance.report.execution import Execution
from migrate_vma_spec import events as e
from migrate_vma_spec.events import Event
from migrate_vma_spec.vocabulary import LockMode

_QUIET: tuple[type[Event], ...] = (
    e.PteRead,
    e.CacheFlushed,
    e.PointPassed,
    e.IntervalRead,
    e.FlagsMoved,
    e.MemcgCharged,
    e.MemcgUncharged,
    e.TlbFilled,
    e.LruDrained,
    e.FrameAdded,
    e.FinalizeReturned,
    e.InvalidateEnded,
    e.FolioRead,
    e.FolioUptodate,
    e.LruBatchRead,
    e.MmGot,
    e.MmPut,
    e.PgmapPut,
    e.ZoneDeviceDataRead,
)

_BESIDE_PROGRESS: tuple[type[Event], ...] = (
    e.RmapAdded,
    e.RmapRemoved,
    e.ExclusiveShared,
    e.ExclusiveTaken,
    e.FolioDirtied,
    e.PageCopied,
    e.PageCleared,
    e.PagesCalled,
    e.PagesReturned,
    e.DriverStep,
    e.DeviceMapped,
    e.TlbFlushed,
)
"""What nobody who waits, waits for."""

_NOTIFIER: tuple[type[Event], ...] = (e.InvalidateBegan, e.IntervalInvalidated, e.DeviceUnmapped)
_NOTIFIED: tuple[type[Event], ...] = (e.IntervalRead, e.RangeFaultBegan, e.DeviceMapped, e.DeviceAccessed)
"""What a notifier does, and what it is done for: without the one the other tells nothing."""

_OWN_PAGE: tuple[type[Event], ...] = (
    e.FolioAllocated,
    e.FolioFreed,
    e.FolioLocked,
    e.FolioUnlocked,
    e.FolioGot,
    e.FolioPut,
    e.FolioRead,
    e.FolioUptodate,
    e.MemcgCharged,
    e.MemcgUncharged,
    e.PageCleared,
    e.LruAdded,
)
"""What a task may do to a page without anybody else seeing it."""


def telling(execution: Execution) -> list[int]:
    """The numbers of the steps that are told."""
    return _Teller(execution).shown()


@define
class _Teller:
    """Decides of each step whether it is told."""

    execution: Execution
    locking: frozenset[int] = field(init=False)
    left_out: frozenset[int] = field(init=False)
    quiet: tuple[type[Event], ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        drawn = [step.event for step in self.execution.steps[self.execution.first_step :]]
        beside = _BESIDE_PROGRESS if self.execution.cycle_start is not None else ()
        notified = () if any(isinstance(event, _NOTIFIED) for event in drawn) and not beside else _NOTIFIER
        self.quiet = (*_QUIET, *beside, *notified)
        self.locking = frozenset(_contended(self.execution))
        self.left_out = frozenset((*_unseen(self.execution), *_unchanged(self.execution)))

    def shown(self) -> list[int]:
        return [number for number in range(self.execution.first_step, len(self.execution.steps)) if self._tells(number)]

    def _tells(self, number: int) -> bool:
        cyclic = self.execution.cycle_start is not None
        if number == len(self.execution.steps) - 1 and not cyclic:
            return True
        match self.execution.steps[number].event:
            case e.LockTaken() | e.LockDropped():
                return number in self.locking
            case e.Chose(answer=answer):
                return answer != 0
            case e.ExclusiveShared(done=done):
                return not done and not cyclic
            case e.FolioChecked(ok=ok):
                return not (ok and cyclic)
            case event:
                return number not in self.left_out and not isinstance(event, self.quiet)


def _contended(execution: Execution) -> Iterator[int]:
    """The steps on locks that somebody missed, and those that take what is held at the end.

    A reader's share of a lock matters only where somebody waits; of a cycle, what it takes and drops in each round does not.
    """
    steps = execution.steps
    missed = {step.event.lock for step in steps if isinstance(step.event, e.LockMissed)}
    waiting = execution.waiting or execution.cycle_start is not None
    held: dict[tuple[str, str], list[int]] = {}
    for number, step in enumerate(steps):
        event = step.event
        if not isinstance(event, (e.LockTaken, e.LockDropped)):
            continue
        if event.lock in missed:
            yield number
        elif isinstance(event, e.LockTaken):
            held.setdefault((step.task, event.lock), []).append(number)
        elif held.get((step.task, event.lock)):
            held[step.task, event.lock].pop()
    for takes in held.values():
        yield from (at for at in takes if _lasts(execution, at) and (waiting or _mode(steps[at].event) is not LockMode.READ))


def _lasts(execution: Execution, taken: int) -> bool:
    """Whether a lock that is held at the end of a cycle is held all the way through it."""
    return execution.cycle_start is None or taken < execution.cycle_start


def _mode(event: Event) -> LockMode | None:
    return event.mode if isinstance(event, e.LockTaken) else None


def _unchanged(execution: Execution) -> Iterator[int]:
    """The returns of pages() that leave src as it was."""
    given: dict[str, tuple[int, ...] | None] = {}
    for number, step in enumerate(execution.steps):
        if isinstance(step.event, e.PagesCalled):
            given[step.task] = step.event.src
        elif isinstance(step.event, e.PagesReturned) and given.get(step.task, ()) == step.event.src:
            yield number


def _unseen(execution: Execution) -> Iterator[int]:
    """The steps in the lives of pages that one task took and freed again, with nobody else looking."""
    lives: dict[int, tuple[str, list[int]]] = {}
    last = _pages(execution.steps[-1].event) if execution.steps and execution.cycle_start is None else set[int]()
    for number in range(execution.first_step, len(execution.steps)):
        step = execution.steps[number]
        event = step.event
        if isinstance(event, e.FolioAllocated):
            lives[event.pfn] = step.task, []
        for pfn in _pages(event):
            task, touched = lives.get(pfn, ("", []))
            if task != step.task or not _is_own(event, pfn):
                lives.pop(pfn, None)
                continue
            touched.append(number)
            if isinstance(event, e.FolioFreed) and pfn not in last:
                yield from touched


def _pages(event: Event) -> set[int]:
    """The pages that an event names by itself, or through the entries that it changes."""
    if isinstance(event, e.FolioMoved) and not event.moved:
        return {event.pfn}
    found = {getattr(event, name, None) for name in ("pfn", "dst", "src")}
    if isinstance(event, e.PteChanged):
        found |= {event.old.pfn, event.new.pfn}
    return {pfn for pfn in found if isinstance(pfn, int)}


def _is_own(event: Event, pfn: int) -> bool:
    return isinstance(event, _OWN_PAGE) or (isinstance(event, e.PageCopied) and event.dst == pfn)
