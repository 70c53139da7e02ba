"""Folding of what tasks are about: operations and locks, faults, calls."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.folding import change_extras, is_page_of, on, put_frame, put_task
from migrate_vma_spec.objects import (
    Call,
    Fault,
    Phase,
    RangeFault,
    Stage,
    TaskState,
    World,
    evolve,
    mmap_lock,
    ptl,
)
from migrate_vma_spec.vocabulary import Capability

# ---- scheduling and locks ----------------------------------------------------------------------------------------------


@on(ev.OperationBegan)
def _operation_began(world: World, name: str, _cpu: int, event: ev.OperationBegan) -> World:
    return put_task(world, name, evolve(world.task(name), operation=event.name))


@on(ev.OperationEnded)
def _operation_ended(world: World, name: str, _cpu: int, _event: ev.OperationEnded) -> World:
    """Only what it failed to give back outlives an operation: a page lock then is nobody's."""
    task = world.task(name)
    if name in world.extras.owed or name in world.extras.spare:
        world = change_extras(world, owed=world.extras.owed.drop(name), spare=world.extras.spare.drop(name))
    for pfn in task.pages:
        world = put_frame(world, pfn, evolve(world.frame(pfn), holder=None))
    return put_task(world, name, TaskState(locks=task.locks))


@on(ev.LockTaken)
def _lock_taken(world: World, name: str, _cpu: int, event: ev.LockTaken) -> World:
    task = world.task(name)
    locks = sorted((*task.locks, (event.lock, event.mode)), key=lambda lock: (lock[0], lock[1].value))
    return put_task(world, name, evolve(task, locks=tuple(locks)))


@on(ev.LockDropped)
def _lock_dropped(world: World, name: str, _cpu: int, event: ev.LockDropped) -> World:
    task = world.task(name)
    locks = list(task.locks)
    if (event.lock, event.mode) in locks:
        locks.remove((event.lock, event.mode))
    cleared = task.cleared
    if cleared:
        cleared = cleared.drop_all(key for key in cleared if ptl(key[0]) == event.lock)
    calls = task.calls
    for number, call in task.calls.items():
        if call.mm is not None and mmap_lock(call.mm) == event.lock:
            calls = calls.set(number, evolve(call, mm_was_unlocked=True))
    return put_task(world, name, evolve(task, locks=tuple(locks), cleared=cleared, calls=calls))


@on(ev.WaitBegan)
def _wait_began(world: World, name: str, _cpu: int, event: ev.WaitBegan) -> World:
    return world if event.pfn is None else put_task(world, name, evolve(world.task(name), waiting=event.pfn))


@on(ev.WaitEnded)
def _wait_ended(world: World, name: str, _cpu: int, _event: ev.WaitEnded) -> World:
    return put_task(world, name, evolve(world.task(name), waiting=None))


# ---- the fault path ----------------------------------------------------------------------------------------------------


def _put_fault(world: World, name: str, task: TaskState, fault: Fault) -> World:
    return put_task(world, name, evolve(task, faults=(*task.faults[:-1], fault)))


@on(ev.FaultBegan)
def _fault_began(world: World, name: str, _cpu: int, event: ev.FaultBegan) -> World:
    task = world.task(name)
    fault = Fault(event.mm, event.addr, event.write, event.device, vma_lock=event.vma_lock)
    return put_task(world, name, evolve(task, faults=(*task.faults, fault)))


@on(ev.FaultEnded)
def _fault_ended(world: World, name: str, _cpu: int, _event: ev.FaultEnded) -> World:
    task = world.task(name)
    return put_task(world, name, evolve(task, faults=task.faults[:-1]))


@on(ev.CallbackEntered)
def _callback_entered(world: World, name: str, _cpu: int, event: ev.CallbackEntered) -> World:
    task = world.task(name)
    fault = task.fault
    if fault is None:
        return world
    frame, head = world.folio(event.pfn), world.head(event.pfn)
    refs = fault.refs if is_page_of(world, fault.page, head) else 0
    live = frame.allocated is not False and frame.refcount != 0
    return _put_fault(world, name, task, evolve(fault, page=event.pfn, refs=refs, stage=Stage.CALLBACK, live=live))


@on(ev.CallbackReturned)
def _callback_returned(world: World, name: str, _cpu: int, event: ev.CallbackReturned) -> World:
    task = world.task(name)
    fault = task.fault
    if fault is None:
        return world
    task = evolve(task, calls=task.calls.drop_all(number for number, call in task.calls.items() if call.in_fault))
    return _put_fault(world, name, task, evolve(fault, stage=Stage.RETURNED, result=event.result))


@on(ev.RangeFaultBegan)
def _range_fault_began(world: World, name: str, _cpu: int, event: ev.RangeFaultBegan) -> World:
    running = RangeFault(event.device, event.mm, event.start, event.end, event.write)
    return put_task(world, name, evolve(world.task(name), range_fault=running))


@on(ev.RangeFaultEnded)
def _range_fault_ended(world: World, name: str, _cpu: int, _event: ev.RangeFaultEnded) -> World:
    return put_task(world, name, evolve(world.task(name), range_fault=None))


# ---- the migrate_vma calls ---------------------------------------------------------------------------------------------


def _put_call(world: World, name: str, number: int, call: Call) -> World:
    task = world.task(name)
    return put_task(world, name, evolve(task, calls=task.calls.set(number, call)))


def _drop_call(world: World, name: str, number: int) -> World:
    task = world.task(name)
    return put_task(world, name, evolve(task, calls=task.calls.drop(number)))


def _call(world: World, name: str, number: int, vma: bool) -> Call:
    """The call in flight; where the trace has not shown its setup, one of which nothing else is known."""
    task = world.task(name)
    return task.calls.get(number) or Call(vma=vma, in_fault=task.callback is not None)


def _was_locked(world: World, fault_page: int | None) -> bool | None:
    """Asked only where it means something: elsewhere it would be a fact of the past that says nothing of the present."""
    if fault_page is None or Capability.FAULT_LOCK not in world.capabilities:
        return None
    return world.folio(fault_page).locked


@on(ev.SetupCalled)
def _setup_called(world: World, name: str, _cpu: int, event: ev.SetupCalled) -> World:
    call = Call(
        vma=True,
        in_fault=world.task(name).callback is not None,
        mm=event.mm,
        start=event.start,
        end=event.end,
        select=event.select,
        owner=event.owner,
        fault_page=event.fault_page,
        fault_page_was_locked=_was_locked(world, event.fault_page),
        nsrc=event.nsrc,
        ndst=event.ndst,
    )
    return _put_call(world, name, event.call, call)


@on(ev.RangeCalled)
def _range_called(world: World, name: str, _cpu: int, event: ev.RangeCalled) -> World:
    call = Call(vma=False, in_fault=world.task(name).callback is not None, pfns=event.pfns)
    return _put_call(world, name, event.call, call)


def _hand_over_ends(world: World, name: str) -> World:
    """Setup is done: what the split of the fault page's folio moved is where it stays."""
    task = world.task(name)
    if not any(fault.split for fault in task.faults):
        return world
    return put_task(world, name, evolve(task, faults=tuple(evolve(fault, split=False) for fault in task.faults)))


@on(ev.SetupReturned)
def _setup_returned(world: World, name: str, _cpu: int, event: ev.SetupReturned) -> World:
    if event.result != 0:
        return _drop_call(world, name, event.call)
    call = evolve(
        _call(world, name, event.call, vma=True),
        phase=Phase.COLLECTED,
        start=event.start,
        end=event.end,
        cpages=event.cpages,
        npages=event.npages,
        src=event.src,
    )
    return _hand_over_ends(_put_call(world, name, event.call, call), name)


@on(ev.RangeReturned)
def _range_returned(world: World, name: str, _cpu: int, event: ev.RangeReturned) -> World:
    if event.result != 0:
        return _drop_call(world, name, event.call)
    call = evolve(_call(world, name, event.call, vma=False), phase=Phase.COLLECTED, src=event.src, npages=len(event.src))
    return _put_call(world, name, event.call, call)


@on(ev.EntryRefilled)
def _entry_refilled(world: World, name: str, _cpu: int, event: ev.EntryRefilled) -> World:
    call = _call(world, name, event.call, vma=True)
    src = call.src
    if src is not None and 0 <= event.index < len(src):
        src = (*src[: event.index], event.entry, *src[event.index + 1 :])
    return _put_call(world, name, event.call, evolve(call, src=src, refilled=call.refilled | {event.index}))


@on(ev.PagesCalled)
def _pages_called(world: World, name: str, _cpu: int, event: ev.PagesCalled) -> World:
    call = _call(world, name, event.call, event.vma)
    return _put_call(world, name, event.call, evolve(call, phase=Phase.MOVING, src=event.src, offered=event.src, dst=event.dst))


@on(ev.PagesReturned)
def _pages_returned(world: World, name: str, _cpu: int, event: ev.PagesReturned) -> World:
    call = _call(world, name, event.call, vma=True)
    return _put_call(world, name, event.call, evolve(call, phase=Phase.MOVED, src=event.src))


@on(ev.FinalizeCalled)
def _finalize_called(world: World, name: str, _cpu: int, event: ev.FinalizeCalled) -> World:
    call = _call(world, name, event.call, event.vma)
    return _put_call(world, name, event.call, evolve(call, phase=Phase.FINALIZING, src=event.src, dst=event.dst))


@on(ev.FinalizeReturned)
def _finalize_returned(world: World, name: str, _cpu: int, event: ev.FinalizeReturned) -> World:
    return _drop_call(world, name, event.call)
