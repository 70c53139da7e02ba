"""The table of events: for each kind, how the state moves on and what is judged. The work is done in the other modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.model import calls, contents, operations
from migrate_vma_spec.model.outcome import Outcome
from migrate_vma_spec.model.state import ModelState, Scope, Seen, What, access, closed, opened, replaced, saw, surveyed
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import PteKind, VmFault

Next = Callable[[ModelState, World, Step, Any], ModelState]
Allowed = Callable[[ModelState, World, Step, Any], tuple[Outcome, ...]]

_NEXT: dict[type[Event], Next] = {}
_ALLOWED: dict[type[Event], Allowed] = {}


def kinds() -> tuple[type[Event], ...]:
    """The kinds of event that concern the model."""
    return tuple({**_NEXT, **_ALLOWED})


def allowed(state: ModelState, world: World, step: Step) -> tuple[Outcome, ...]:
    """The quantities of this step that the model judges, with what each may be. `world` is the world before the step."""
    sets = _ALLOWED.get(type(step.event))
    return () if sets is None else sets(state, world, step, step.event)


def next_state(state: ModelState, world: World, step: Step) -> ModelState:
    """What the model knows after the step. `world` is the world before it."""
    move = _NEXT.get(type(step.event))
    return state if move is None else move(state, world, step, step.event)


def _next(*kinds: type[Event]) -> Callable[[Next], Next]:
    def register(move: Next) -> Next:
        for kind in kinds:
            _NEXT[kind] = move
        return move

    return register


# ---- operations --------------------------------------------------------------------------------------------------------


@_next(ev.OperationBegan)
def _operation_began(state: ModelState, world: World, step: Step, event: ev.OperationBegan) -> ModelState:
    """A task has one operation at a time: one that was open has lost its end."""
    state = closed(state, step.task, What.OPERATION)
    return opened(state, step.task, operations.operation_scope(state, world, event))


@_next(ev.OperationEnded)
def _operation_ended(state: ModelState, _world: World, step: Step, event: ev.OperationEnded) -> ModelState:
    scope = state.scope(step.task, What.OPERATION)
    state = closed(state, step.task, What.OPERATION)
    return contents.discard_ended(state, scope.arguments) if scope is not None and scope.name == contents.DISCARD else state


def _operation_allowed(state: ModelState, world: World, step: Step, event: ev.OperationEnded) -> tuple[Outcome, ...]:
    found = operations.allowed_operation(state, world, step, event)
    return (*found, *contents.allowed_at_rest(state, world)) if state.alone(step.task) else found


_ALLOWED[ev.OperationEnded] = _operation_allowed


@_next(ev.Chose)
def _chose(state: ModelState, _world: World, step: Step, event: ev.Chose) -> ModelState:
    return saw(state, step.task, Seen.FAILED, *What) if event.answer else state


@_next(ev.AllocationFailed)
def _allocation_failed(state: ModelState, _world: World, step: Step, _event: ev.AllocationFailed) -> ModelState:
    return saw(state, step.task, Seen.FAILED, *What)


@_next(ev.LockMissed, ev.MmGetMissed)
def _lost(state: ModelState, _world: World, step: Step, _event: Event) -> ModelState:
    return saw(state, step.task, Seen.LOST, What.CALLBACK)


@_next(ev.IntervalRetry)
def _interval_retry(state: ModelState, _world: World, step: Step, event: ev.IntervalRetry) -> ModelState:
    return saw(state, step.task, Seen.STALE, What.RANGE_FAULT) if event.stale else state


# ---- contents ----------------------------------------------------------------------------------------------------------


@_next(ev.PageCopied)
def _page_copied(state: ModelState, world: World, _step: Step, event: ev.PageCopied) -> ModelState:
    return contents.copied(state, world, event.src, event.dst)


@_next(ev.PageCleared)
def _page_cleared(state: ModelState, _world: World, _step: Step, event: ev.PageCleared) -> ModelState:
    return contents.cleared(state, event.pfn)


@_next(ev.FolioAllocated, ev.FolioFreed)
def _forgotten(state: ModelState, _world: World, _step: Step, event: ev.FolioAllocated | ev.FolioFreed) -> ModelState:
    return contents.forgotten(state, event.pfn)


def _cpu_access_allowed(state: ModelState, world: World, step: Step, event: ev.CpuAccessed) -> tuple[Outcome, ...]:
    key = event.mm, event.addr
    return contents.allowed_access(state, world, f"CPU {step.cpu}", key, event.pfn, event.write, tlb=True)


def _device_access_allowed(state: ModelState, world: World, _step: Step, event: ev.DeviceAccessed) -> tuple[Outcome, ...]:
    key = event.mm, event.addr
    return contents.allowed_access(state, world, f"device {event.device}", key, event.pfn, event.write, tlb=False)


_ALLOWED[ev.CpuAccessed] = _cpu_access_allowed
_ALLOWED[ev.DeviceAccessed] = _device_access_allowed


@_next(ev.CpuAccessed, ev.DeviceAccessed)
def _accessed(state: ModelState, world: World, step: Step, event: ev.CpuAccessed | ev.DeviceAccessed) -> ModelState:
    device = event.device if isinstance(event, ev.DeviceAccessed) else None
    scope = state.scope(step.task, What.OPERATION)
    if scope is not None and operations.is_its_access(scope, device, event.mm, event.addr, event.write):
        state = replaced(state, step.task, scope, evolve(scope, seen=scope.seen | Seen.ACCESSED))
    key = event.mm, event.addr
    if not event.write or event.pfn is None or not contents.is_described(world.vma(*key)):
        return state
    return contents.stored(state, world, key, event.pfn)


# ---- address spaces ----------------------------------------------------------------------------------------------------


@_next(ev.MmCreated)
def _mm_created(state: ModelState, _world: World, _step: Step, event: ev.MmCreated) -> ModelState:
    return evolve(state, followed=state.followed | {event.mm})


@_next(ev.MmForked)
def _mm_forked(state: ModelState, world: World, _step: Step, event: ev.MmForked) -> ModelState:
    return contents.forked(surveyed(state, world, event.child), event.mm, event.child)


@_next(ev.MmExited)
def _mm_exited(state: ModelState, world: World, _step: Step, event: ev.MmExited) -> ModelState:
    return contents.exited(surveyed(state, world, event.mm), event.mm)


@_next(ev.VmaMapped)
def _vma_mapped(state: ModelState, world: World, _step: Step, event: ev.VmaMapped) -> ModelState:
    return surveyed(state, world, event.mm)


@_next(ev.VmaUnmapped)
def _vma_unmapped(state: ModelState, world: World, _step: Step, event: ev.VmaUnmapped) -> ModelState:
    return contents.unmapped(surveyed(state, world, event.mm), event.mm, event.start, event.end)


@_next(ev.PteChanged)
def _pte_changed(state: ModelState, world: World, step: Step, event: ev.PteChanged) -> ModelState:
    scope = state.scope(step.task, What.OPERATION)
    if scope is not None and event.addr in scope.left and event.new.kind is PteKind.NONE:
        state = replaced(state, step.task, scope, evolve(scope, left=scope.left - {event.addr}))
    return calls.entry_changed(contents.entry_changed(state, world, step, event), world, step, event)


@_next(ev.LockTaken)
def _lock_taken(state: ModelState, world: World, step: Step, event: ev.LockTaken) -> ModelState:
    return calls.lock_taken(state, world, step, event)


# ---- faults ------------------------------------------------------------------------------------------------------------


@_next(ev.FaultBegan)
def _fault_began(state: ModelState, _world: World, step: Step, event: ev.FaultBegan) -> ModelState:
    return opened(state, step.task, Scope(What.FAULT, about=(event.mm, event.addr, event.addr + 1, access(event.write))))


@_next(ev.FaultEnded)
def _fault_ended(state: ModelState, _world: World, step: Step, event: ev.FaultEnded) -> ModelState:
    """What has something open around a fault that failed, fails."""
    state = closed(state, step.task, What.FAULT)
    error = event.result & ~(VmFault.NOPAGE | VmFault.RETRY)
    for scope in state.tasks.get(step.task, ()):
        if error and scope.what in (What.OPERATION, What.RANGE_FAULT):
            state = replaced(state, step.task, scope, evolve(scope, fault=error))
    return state


_ALLOWED[ev.FaultEnded] = operations.allowed_fault


@_next(ev.CallbackEntered)
def _callback_entered(state: ModelState, _world: World, step: Step, _event: ev.CallbackEntered) -> ModelState:
    return opened(state, step.task, Scope(What.CALLBACK))


@_next(ev.CallbackReturned)
def _callback_returned(state: ModelState, _world: World, step: Step, _event: ev.CallbackReturned) -> ModelState:
    return closed(state, step.task, What.CALLBACK)


_ALLOWED[ev.CallbackReturned] = operations.allowed_callback


@_next(ev.RangeFaultBegan)
def _range_fault_began(state: ModelState, _world: World, step: Step, event: ev.RangeFaultBegan) -> ModelState:
    return opened(state, step.task, Scope(What.RANGE_FAULT, about=(event.mm, event.start, event.end, access(event.write))))


@_next(ev.RangeFaultEnded)
def _range_fault_ended(state: ModelState, _world: World, step: Step, _event: ev.RangeFaultEnded) -> ModelState:
    return closed(state, step.task, What.RANGE_FAULT)


_ALLOWED[ev.RangeFaultEnded] = operations.allowed_range_fault


# ---- the migrate_vma calls ---------------------------------------------------------------------------------------------


@_next(ev.SetupCalled)
def _setup_called(state: ModelState, world: World, step: Step, event: ev.SetupCalled) -> ModelState:
    return opened(state, step.task, Scope(What.SETUP, attempt=calls.setup_attempt(state, world, event)))


@_next(ev.SetupReturned)
def _setup_returned(state: ModelState, _world: World, step: Step, _event: ev.SetupReturned) -> ModelState:
    return closed(state, step.task, What.SETUP)


_ALLOWED[ev.SetupReturned] = calls.allowed_setup


@_next(ev.RangeCalled)
def _range_called(state: ModelState, world: World, step: Step, event: ev.RangeCalled) -> ModelState:
    return opened(state, step.task, Scope(What.RANGE, attempt=calls.range_attempt(world, event)))


@_next(ev.RangeReturned)
def _range_returned(state: ModelState, _world: World, step: Step, _event: ev.RangeReturned) -> ModelState:
    return closed(state, step.task, What.RANGE)


_ALLOWED[ev.RangeReturned] = calls.allowed_range


@_next(ev.PagesCalled)
def _pages_called(state: ModelState, world: World, step: Step, event: ev.PagesCalled) -> ModelState:
    return opened(state, step.task, Scope(What.PAGES, attempt=calls.pages_attempt(state, world, step, event)))


@_next(ev.PagesReturned)
def _pages_returned(state: ModelState, _world: World, step: Step, _event: ev.PagesReturned) -> ModelState:
    return closed(state, step.task, What.PAGES)


_ALLOWED[ev.PagesReturned] = calls.allowed_pages


@_next(ev.FolioLockMissed)
def _lock_missed(state: ModelState, world: World, step: Step, event: ev.FolioLockMissed) -> ModelState:
    return state if world.frame(event.pfn).locked is False else calls.skipped(state, step.task, event.pfn)


@_next(ev.FolioGetMissed)
def _get_missed(state: ModelState, _world: World, step: Step, event: ev.FolioGetMissed) -> ModelState:
    state = saw(state, step.task, Seen.LOST, What.OPERATION, What.CALLBACK)
    return calls.skipped(state, step.task, event.pfn)


@_next(ev.LruIsolated)
def _lru_isolated(state: ModelState, _world: World, step: Step, event: ev.LruIsolated) -> ModelState:
    return calls.isolated(state, step, event)


@_next(ev.ExclusiveShared)
def _exclusive_shared(state: ModelState, _world: World, step: Step, event: ev.ExclusiveShared) -> ModelState:
    return state if event.done else calls.skipped(state, step.task, event.pfn)


@_next(ev.FolioChecked)
def _folio_checked(state: ModelState, world: World, step: Step, event: ev.FolioChecked) -> ModelState:
    return state if event.ok else calls.folio_checked(state, world, step, event)


@_next(ev.FolioMoved)
def _folio_moved(state: ModelState, world: World, step: Step, event: ev.FolioMoved) -> ModelState:
    return calls.folio_moved(state, world, step, event)
