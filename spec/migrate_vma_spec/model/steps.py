"""The table of events: for each kind, how the state moves on and what is judged. The work is done in the other modules.

Events of contents and address spaces have their rows in `steps_memory.py`, all others here.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.model import calls, collecting, contents, faults, moving, operations, reach, steps_memory
from migrate_vma_spec.model.outcome import Outcome
from migrate_vma_spec.model.state import ModelState, Scope, Seen, What, access, closed, opened, replaced, saw
from migrate_vma_spec.model.table import ALLOWED, NEXT, on
from migrate_vma_spec.objects import World, evolve
from migrate_vma_spec.vocabulary import VmFault

__all__ = ["allowed", "kinds", "next_state", "steps_memory"]


def kinds() -> tuple[type[Event], ...]:
    """The kinds of event that concern the model."""
    return tuple({**NEXT, **ALLOWED})


def allowed(state: ModelState, world: World, step: Step) -> tuple[Outcome, ...]:
    """The quantities of this step that the model judges, with what each may be. `world` is the world before the step."""
    sets = ALLOWED.get(type(step.event))
    return () if sets is None else sets(state, world, step, step.event)


def next_state(state: ModelState, world: World, step: Step) -> ModelState:
    """What the model knows after the step. `world` is the world before it."""
    move = NEXT.get(type(step.event))
    return state if move is None else move(state, world, step, step.event)


# ---- operations ------------------------------------------------------------------------------------------------------


@on(ev.OperationBegan)
def _operation_began(state: ModelState, world: World, step: Step, event: ev.OperationBegan) -> ModelState:
    """A task has one operation at a time: one that was open has lost its end."""
    state = closed(state, step.task, What.OPERATION)
    return opened(state, step.task, operations.operation_scope(state, world, event))


@on(ev.OperationEnded)
def _operation_ended(state: ModelState, _world: World, step: Step, event: ev.OperationEnded) -> ModelState:
    scope = state.scope(step.task, What.OPERATION)
    state = closed(state, step.task, What.OPERATION)
    return state if scope is None else contents.operation_ended(state, scope)


def _operation_allowed(state: ModelState, world: World, step: Step, event: ev.OperationEnded) -> tuple[Outcome, ...]:
    found = operations.allowed_operation(state, world, step, event)
    return (*found, *reach.allowed_at_rest(state, world)) if state.alone(step.task) else found


ALLOWED[ev.OperationEnded] = _operation_allowed


@on(ev.Chose)
def _chose(state: ModelState, _world: World, step: Step, event: ev.Chose) -> ModelState:
    return saw(state, step.task, Seen.FAILED, *What) if event.answer else state


@on(ev.AllocationFailed)
def _allocation_failed(state: ModelState, _world: World, step: Step, _event: ev.AllocationFailed) -> ModelState:
    return saw(state, step.task, Seen.FAILED, *What)


@on(ev.LockMissed, ev.MmGetMissed)
def _lost(state: ModelState, _world: World, step: Step, _event: Event) -> ModelState:
    return saw(state, step.task, Seen.LOST, What.CALLBACK)


@on(ev.IntervalRetry)
def _interval_retry(state: ModelState, _world: World, step: Step, event: ev.IntervalRetry) -> ModelState:
    return saw(state, step.task, Seen.STALE, What.RANGE_FAULT) if event.stale else state


# ---- faults ----------------------------------------------------------------------------------------------------------


@on(ev.FaultBegan)
def _fault_began(state: ModelState, world: World, step: Step, event: ev.FaultBegan) -> ModelState:
    return opened(state, step.task, faults.fault_scope(world, event))


@on(ev.UserfaultRaised)
def _userfault_raised(state: ModelState, _world: World, step: Step, _event: ev.UserfaultRaised) -> ModelState:
    return saw(state, step.task, Seen.RAISED, What.FAULT)


@on(ev.FaultEnded)
def _fault_ended(state: ModelState, _world: World, step: Step, event: ev.FaultEnded) -> ModelState:
    """What has something open around a fault that failed, fails."""
    state = closed(state, step.task, What.FAULT)
    error = event.result & ~(VmFault.NOPAGE | VmFault.RETRY)
    for scope in state.tasks.get(step.task, ()):
        if error and scope.what in (What.OPERATION, What.RANGE_FAULT):
            state = replaced(state, step.task, scope, evolve(scope, fault=error))
    return state


ALLOWED[ev.FaultEnded] = faults.allowed_fault


@on(ev.CallbackEntered)
def _callback_entered(state: ModelState, _world: World, step: Step, _event: ev.CallbackEntered) -> ModelState:
    return opened(state, step.task, Scope(What.CALLBACK))


@on(ev.RangeFaultBegan)
def _range_fault_began(state: ModelState, _world: World, step: Step, event: ev.RangeFaultBegan) -> ModelState:
    return opened(state, step.task, Scope(What.RANGE_FAULT, about=(event.mm, event.start, event.end, access(event.write))))


# ---- the migrate_vma calls -------------------------------------------------------------------------------------------


@on(ev.SetupCalled)
def _setup_called(state: ModelState, world: World, step: Step, event: ev.SetupCalled) -> ModelState:
    return opened(state, step.task, Scope(What.SETUP, attempt=collecting.setup_attempt(state, world, event)))


@on(ev.RangeCalled)
def _range_called(state: ModelState, world: World, step: Step, event: ev.RangeCalled) -> ModelState:
    return opened(state, step.task, Scope(What.RANGE, attempt=collecting.range_attempt(world, event)))


@on(ev.PagesCalled)
def _pages_called(state: ModelState, world: World, step: Step, event: ev.PagesCalled) -> ModelState:
    return opened(state, step.task, Scope(What.PAGES, attempt=moving.pages_attempt(state, world, step, event)))


@on(ev.LockTaken)
def _lock_taken(state: ModelState, world: World, step: Step, event: ev.LockTaken) -> ModelState:
    return calls.lock_taken(state, world, step, event)


@on(ev.FolioLockMissed)
def _lock_missed(state: ModelState, world: World, step: Step, event: ev.FolioLockMissed) -> ModelState:
    return state if world.folio(event.pfn).locked is False else calls.skipped(state, world, step.task, event.pfn)


@on(ev.FolioGetMissed)
def _get_missed(state: ModelState, world: World, step: Step, event: ev.FolioGetMissed) -> ModelState:
    """No reference was to be had: of a page that is free, or about to be. Where the trace shows one, this is no reason."""
    if world.folio(event.pfn).refcount:
        return state
    state = saw(state, step.task, Seen.LOST, What.OPERATION, What.CALLBACK)
    return calls.skipped(state, world, step.task, event.pfn)


@on(ev.LruIsolated)
def _lru_isolated(state: ModelState, world: World, step: Step, event: ev.LruIsolated) -> ModelState:
    return calls.isolated(state, world, step, event)


@on(ev.ExclusiveShared)
def _exclusive_shared(state: ModelState, world: World, step: Step, event: ev.ExclusiveShared) -> ModelState:
    return state if event.done else calls.skipped(state, world, step.task, event.pfn)


@on(ev.FolioChecked)
def _folio_checked(state: ModelState, world: World, step: Step, event: ev.FolioChecked) -> ModelState:
    return state if event.ok else calls.folio_checked(state, world, step, event)


@on(ev.FolioMoved)
def _folio_moved(state: ModelState, world: World, step: Step, event: ev.FolioMoved) -> ModelState:
    return calls.folio_moved(state, world, step, event)


# ---- what ends what was opened ----------------------------------------------------------------------------------------

CLOSES: dict[type[Event], What] = {
    ev.CallbackReturned: What.CALLBACK,
    ev.RangeFaultEnded: What.RANGE_FAULT,
    ev.SetupReturned: What.SETUP,
    ev.RangeReturned: What.RANGE,
    ev.PagesReturned: What.PAGES,
}


@on(*CLOSES)
def _returned(state: ModelState, _world: World, step: Step, event: Event) -> ModelState:
    return closed(state, step.task, CLOSES[type(event)])


ALLOWED.update(
    {
        ev.CallbackReturned: faults.allowed_callback,
        ev.RangeFaultEnded: faults.allowed_range_fault,
        ev.SetupReturned: calls.allowed_setup,
        ev.RangeReturned: calls.allowed_range,
        ev.PagesReturned: calls.allowed_pages,
    }
)
