"""A toy system of named cells, and brute force over every schedule of it, each run from the start on live coroutines."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.space import Space, State
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_spec.events import Chose, DrainEnded


@frozen
class Cell:
    """The key of a slot."""

    name: str


A, B, C, LOCK = Cell("a"), Cell("b"), Cell("c"), Cell("lock")


def _read(value):
    return (value,), value, DrainEnded()


def _write(_, new):
    return (new,), None, DrainEnded()


def _add(value, more):
    return (value + more,), None, DrainEnded()


def _take(held):
    return None if held else ((True,), True, DrainEnded())


async def read(cell: Cell) -> Any:
    return await traps.step(_read, cell)


async def write(cell: Cell, value: Any) -> None:
    await traps.step(_write, cell, args=(value,))


async def add(cell: Cell, more: int) -> None:
    await traps.step(_add, cell, args=(more,))


async def lock() -> None:
    await traps.sleep_until(_take, LOCK)


async def unlock() -> None:
    await write(LOCK, False)


async def nothing() -> None:
    await traps.note(Chose("nothing", 0))


def system(*functions, cpus: tuple[int, ...] | None = None, **cells: Any) -> System:
    """Tasks t1, t2, ... each on its own CPU unless `cpus` says otherwise."""
    slots = {A: 0, B: 0, C: 0, LOCK: False} | {Cell(name): value for name, value in cells.items()}
    where = cpus or tuple(range(len(functions)))
    tasks = tuple(Task(f"t{number + 1}", where[number], function) for number, function in enumerate(functions))
    return System(slots, Task("init", 0, nothing), tasks, max(where, default=0) + 1, fallible=True)


def typed(value: Any) -> Any:
    return (type(value).__name__, tuple(map(typed, value))) if isinstance(value, tuple) else (type(value).__name__, value)


Ends = set[tuple[str, Any]]


def ends_of_space(toy: System, preemption: Preemption = Preemption.FULL) -> tuple[Ends, int]:
    """Every way in which the explored system ends, and the number of states."""
    space = Space(toy, preemption)
    seen: set[State] = {space.first}
    work = [space.first]
    ends: Ends = set()
    while work:
        state = work.pop()
        following = space.successors(state)
        if not following:
            errors = tuple(str(space.node(state, task).ended) for task in range(1, len(space.tasks)))
            cells = tuple(typed(space.value(state, key)) for key in toy.slots)
            ends.add(("ended" if space.finished(state) else "stuck", (cells, errors)))
        for _, target in following:
            if target not in seen:
                seen.add(target)
                work.append(target)
    return ends, len(seen)


def ends_of_brute_force(
    toy: System, preemption: Preemption = Preemption.FULL, limit: int = 200_000, complete: list[Any] | None = None
) -> Ends:
    """The same by running every schedule from the start; `complete` collects the schedules that came to an end."""
    ends: Ends = set()
    work: list[tuple[tuple[int, int], ...]] = [()]
    runs = 0
    while work:
        path = work.pop()
        runs += 1
        assert runs < limit, "too many schedules for brute force"
        run = Run(toy, preemption)
        for task, answer in path:
            run.step(task, answer)
        able = run.runnable()
        for task in able:
            question = run.question(task)
            work.extend((*path, (task, answer)) for answer in range(question[2] if question else 1))
        if not able:
            if complete is not None:
                complete.append(path)
            errors = tuple(str(live.ended) for live in run.tasks[1:])
            cells = tuple(typed(run.value(key)) for key in toy.slots)
            ends.add(("ended" if run.finished else "stuck", (cells, errors)))
        run.close()
    return ends
