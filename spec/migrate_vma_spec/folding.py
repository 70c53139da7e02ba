"""What the folders share: the table of them, and how a changed task or frame is put back into the world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from migrate_vma_spec import events as ev
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import (
    HELD_NOTHING,
    IDLE,
    Frame,
    Held,
    Ledger,
    Phase,
    Stage,
    TaskState,
    World,
    evolve,
)

Folder = Callable[[World, str, int, Any], World]
"""(world, task, cpu, event) -> the next world."""

FOLDERS: dict[type[ev.Event], Folder] = {}


def on(kind: type[ev.Event]) -> Callable[[Folder], Folder]:
    """Enter the folder of one kind of event."""

    def register(folder: Folder) -> Folder:
        FOLDERS[kind] = folder
        return folder

    return register


def with_task(world: World, name: str, state: TaskState) -> FrozenMap[str, TaskState]:
    return world.tasks.drop(name) if state == IDLE else world.tasks.set(name, state)


def put_task(world: World, name: str, state: TaskState) -> World:
    tasks = with_task(world, name, state)
    return world if tasks is world.tasks else evolve(world, tasks=tasks)


def put_frame(world: World, pfn: int, frame: Frame) -> World:
    return evolve(world, frames=world.frames.set(pfn, frame))


def change_extras(world: World, **changes: Any) -> World:
    return evolve(world, extras=evolve(world.extras, **changes))


def is_page_of(world: World, pfn: int | None, head: int) -> bool:
    """True where `pfn` is a page of the folio with this head."""
    return pfn == head or (pfn is not None and world.extras.heads.get(pfn) == head)


def _entry(ledger: Ledger, pfn: int, refs: int, locks: int) -> Ledger:
    line = ledger.get(pfn, HELD_NOTHING)
    line = Held(line.refs + refs, line.locks + locks)
    return ledger.drop(pfn) if line == HELD_NOTHING else ledger.set(pfn, line)


def transferred(ledger: Ledger, src: int, dst: int, refs: int, locks: int) -> Ledger:
    """The ledger after what others had of `dst` has become a debt, and the same of `src` the call's own."""
    return _entry(_entry(ledger, src, refs, locks), dst, -refs, -locks)


def _account(world: World, task: TaskState, pfn: int, refs: int, locks: int) -> TaskState:
    """Book what the task took (or gave, negative) of a folio: to its fault in flight, and to the call that it works for."""
    if task.faults and refs:
        fault = task.faults[-1]
        if (fault.live or fault.stage is Stage.HANDLING) and is_page_of(world, fault.page, pfn):
            task = evolve(task, faults=(*task.faults[:-1], evolve(fault, refs=fault.refs + refs)))
    if not task.calls:
        return task
    active = task.active_call
    if active is not None:
        number, call = active
        return evolve(task, calls=task.calls.set(number, evolve(call, ledger=_entry(call.ledger, pfn, refs, locks))))
    for number, call in task.calls.items():
        if call.phase is Phase.MOVED:
            booked = evolve(call, driver_ledger=_entry(call.driver_ledger, pfn, refs, locks))
            task = evolve(task, calls=task.calls.set(number, booked))
    return task


def booked(world: World, name: str, pfn: int, frame: Frame, refs: int, locks: int = 0) -> World:
    """The world with this frame, and with the task's books."""
    frames = world.frames.set(pfn, frame)
    task = world.tasks.get(name)
    if task is None or not (task.faults or task.calls):
        return evolve(world, frames=frames)
    return evolve(world, frames=frames, tasks=with_task(world, name, _account(world, task, pfn, refs, locks)))


def release_page_lock(world: World, pfn: int) -> World:
    """The page lock's holder, if one is known, holds it no more."""
    holder = world.frame(pfn).holder
    task = world.tasks.get(holder) if holder is not None else None
    if holder is None or task is None or pfn not in task.pages:
        return world
    return put_task(world, holder, evolve(task, pages=task.pages - {pfn}))
