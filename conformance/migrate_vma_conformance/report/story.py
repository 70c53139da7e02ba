"""What of an execution is told, and in which words: the lines that the column view and the page lay out.

Rules:
- Steps that tell a reader nothing (a PTE was read, an uncontended lock was taken) are left out unless all are asked for; their
  numbers are kept, so that a gap shows. The last step of a break and an oops are always there.
- A page that one task took and freed again, and that nobody else saw, is left out with all that was done to it.
- A cycle is a question of who waits for whom: what only bookkeeping and data need is left out of it and of the way to it.
- A function is named as the kernel names it: our own small functions, for what the kernel has inline, take their caller's name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence

from attrs import define, evolve, field, frozen

from migrate_vma_conformance.report.words import describe
from migrate_vma_impl import fault_page
from migrate_vma_impl.machine import containers, locks, traps
from migrate_vma_impl.mm import (
    folio,
    highmem,
    memcontrol,
    memory,
    migrate,
    migrate_device,
    migrate_device_collect,
    migrate_device_pages,
    mmap_lock,
    pgtable,
    rmap,
    swap,
    syscalls,
)
from migrate_vma_spec import events as e
from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.vocabulary import LockMode, PteKind

_PRIMITIVE = (traps, locks, containers, folio, pgtable, mmap_lock, memcontrol, highmem, fault_page)
"""Modules of functions that make one step each, or that the kernel has inline: a line names their callers."""

_SMALL = (
    memory.cpu_access,
    memory.do_device_private_page,
    memory.lock_if_same,
    migrate.queue_then_drop_ptl,
    migrate_device.add_destination_to_lru,
    migrate_device.unlock_unless_fault_page,
    migrate_device_collect.dirty_present,
    migrate_device_collect.flush_then_drop_ptl,
    migrate_device_collect.migration_entry_at,
    migrate_device_pages.device_pages,
    rmap.folio_add_anon_rmap,
    rmap.folio_add_new_anon_rmap,
    rmap.folio_mark_dirty,
    rmap.folio_remove_rmap,
    rmap.folio_try_dup_anon_rmap,
    rmap.folio_try_share_anon_rmap,
    swap.folio_put,
    syscalls.touch,
)
"""Such functions in modules that have others."""

_WRAPPER = "operation"
"""What migrate_vma_impl.driver calls the function around each of a driver's operations."""

_SCENARIO = "_act"
"""The function that a scenario's task begins with; the one that it calls is the scenario's too."""

_NOTES: tuple[type[Event], ...] = (
    e.OperationBegan,
    e.OperationEnded,
    e.FaultBegan,
    e.FaultEnded,
    e.CallbackEntered,
    e.CallbackReturned,
    e.RangeFaultBegan,
    e.RangeFaultEnded,
    e.SetupCalled,
    e.SetupReturned,
    e.EntryRefilled,
    e.RangeCalled,
    e.RangeReturned,
    e.PagesCalled,
    e.PagesReturned,
    e.FinalizeCalled,
    e.FinalizeReturned,
    e.InvalidateBegan,
    e.InvalidateEnded,
    e.DrainBegan,
    e.DrainEnded,
    e.PointPassed,
    e.Chose,
)
"""Events whose words name their function."""

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


@frozen
class Execution:
    """What is told. `first_step` and `cycle_start` are indices of steps, as in a counterexample.

    `waiting` says that somebody waits in vain, so that it matters who holds what.
    """

    steps: Sequence[Step]
    stacks: Sequence[tuple[str, ...]]
    first_step: int = 0
    cycle_start: int | None = None
    waiting: bool = False


@frozen
class Line:
    """A step as it is told. `number` is its index; `function` is empty where the words name it, or nothing is known."""

    number: int
    step: Step
    function: str
    words: str


def tell(execution: Execution, *, show_all: bool = False) -> list[Line]:
    """The lines of an execution, in its order."""
    steps = execution.steps
    if show_all:
        return [_line(execution, number, steps[number].event) for number in range(len(steps))]
    teller = _Teller(execution)
    return list(_merged([_line(execution, at, steps[at].event) for at in teller.shown()], execution))


def rolled(execution: Execution) -> Execution:
    """The same endless run with the shortest way into its cycle.

    Where the last step before the cycle is also the last of the cycle, the cycle can begin with it: what is run is the same.
    """
    start = execution.cycle_start
    if start is None:
        return execution
    first, end = start, len(execution.steps)
    while start > execution.first_step + 1 and end > first and _same(execution, start - 1, end - 1):
        start, end = start - 1, end - 1
    return evolve(execution, steps=execution.steps[:end], stacks=execution.stacks[:end], cycle_start=start)


def _same(execution: Execution, one: int, other: int) -> bool:
    stacks = execution.stacks
    known = max(one, other) < len(stacks)
    return execution.steps[one] == execution.steps[other] and (not known or stacks[one] == stacks[other])


def _line(execution: Execution, number: int, event: Event) -> Line:
    stack = execution.stacks[number] if number < len(execution.stacks) else ()
    function = "" if names_itself(event) else function_of(stack)
    return Line(number, execution.steps[number], function, describe(event))


def _merged(lines: Iterable[Line], execution: Execution) -> Iterator[Line]:
    """What is done to an entry in several steps, with nothing told in between, is told as one change."""
    before: Line | None = None
    for line in lines:
        joint = None if before is None else _joint(before, line, execution)
        if joint is not None:
            line = joint  # noqa: PLW2901  (it stands for both)
        elif before is not None:
            yield before
        before = line
    if before is not None:
        yield before


def _joint(one: Line, two: Line, execution: Execution) -> Line | None:
    """One line for both: an entry is cleared and then set; an entry and the count of its page's mappings change."""
    start = execution.cycle_start
    apart = start is not None and one.number < start <= two.number
    if apart or (one.step.task, one.step.cpu) != (two.step.task, two.step.cpu):
        return None
    match one.step.event, two.step.event:
        case e.PteChanged() as cleared, e.PteChanged() as put:
            if (cleared.mm, cleared.addr, cleared.new.kind) != (put.mm, put.addr, PteKind.NONE):
                return None
            whole = evolve(put, old=cleared.old)
            return evolve(two, step=evolve(two.step, event=whole), words=describe(whole))
        case e.PteChanged() as change, (e.RmapAdded() | e.RmapRemoved()) as count:
            return _counted(two, change, count)
        case e.RmapAdded() as count, e.PteChanged() as change:
            return _counted(two, change, count)
        case _:
            return None


def _counted(line: Line, change: e.PteChanged, count: e.RmapAdded | e.RmapRemoved) -> Line | None:
    same = (change.mm, change.addr) == (count.mm, count.addr)
    return evolve(line, words=f"{describe(change)}, maps {count.mapcount}") if same else None


# ---- which steps tell something --------------------------------------------------------------------------------------


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


# ---- names of functions ----------------------------------------------------------------------------------------------


@functools.cache
def _machinery() -> frozenset[str]:
    """Functions whose name says no more than the event that they make."""
    scopes = [*_PRIMITIVE, *(kind for _, kind in inspect.getmembers(containers, inspect.isclass))]
    names = {name for scope in scopes for name, _ in inspect.getmembers(scope, inspect.iscoroutinefunction)}
    return frozenset(names | {function.__name__ for function in _SMALL} | {_WRAPPER})


def told(stack: Sequence[str]) -> list[str]:
    """The functions of a stack that a reader wants to know of, innermost first."""
    inner = stack[2:] if stack[:1] == (_SCENARIO,) else stack
    return [name for name in reversed(inner) if name not in _machinery() and not name.startswith("_")]


def function_of(stack: Sequence[str]) -> str:
    """The innermost of them; empty where there is none."""
    return next(iter(told(stack)), "")


def names_itself(event: Event) -> bool:
    """Whether the words for the event say which function it belongs to."""
    return isinstance(event, _NOTES)
