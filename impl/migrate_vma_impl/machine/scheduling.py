"""Which tasks a scheduler may pick, and what a trap means in one task: shared by the direct run and the state space.

A task may run when its trap can complete and its CPU lets it: the CPU is its own already, or the task that has it sleeps, has
ended, or stands where the preemption model lets another in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define

from migrate_vma_impl.machine.automaton import ModelError
from migrate_vma_impl.machine.system import Preemption, Task
from migrate_vma_impl.machine.traps import ME, Effect, Key, Kind, Outcome, ThisCpu, Trap
from migrate_vma_spec.vocabulary import Point

_POINTS = {
    Preemption.FULL: frozenset(Point),
    Preemption.VOLUNTARY: frozenset(Point),
    Preemption.NONE: frozenset({Point.COND_RESCHED, Point.USER}),
}


def yields_cpu(trap: Trap, depth: int, waiting: bool, model: Preemption) -> bool:
    """Whether a task at `trap`, holding `depth` spinlocks, lets another task of its CPU run. `waiting`: its trap cannot
    complete.
    """
    if waiting and trap.kind is Kind.SLEEP:
        return True
    if depth:
        return False
    if trap.kind is Kind.SLEEP and Point.MIGHT_SLEEP in _POINTS[model]:
        return True
    if trap.kind is Kind.POINT and trap.point in _POINTS[model]:
        return True
    return model is Preemption.FULL and not (waiting and trap.kind is Kind.SPIN_LOCK)


@define(eq=False)
class Operation:
    """A trap as one task means it: slots by index, arguments with the task's own name filled in. As a trap, it is not changed."""

    trap: Trap
    effect: Effect
    slots: Sequence[int]
    args: tuple[Any, ...]

    def outcome(self, values: Sequence[Any]) -> Outcome:
        """Evaluate the effect. Raises ModelError where it raises or returns nonsense."""
        try:
            result = self.effect(*values, *self.args)
        except Exception as error:
            raise ModelError(f"the effect {self.effect.__qualname__} raised {type(error).__name__}: {error}") from error
        if result is None or (isinstance(result, tuple) and len(result) == 3 and len(result[0]) == len(values)):  # pyright: ignore[reportUnnecessaryIsInstance]  # effects of third parties need not type-check
            return result
        raise ModelError(
            f"the effect {self.effect.__qualname__} returned {result!r}; "
            f"expected None or (a tuple of {len(values)} new values, an answer, an event)"
        )


def resolve(trap: Trap, task: Task, index: Mapping[Key, int]) -> Operation:
    """Raises ModelError when the trap names a slot that does not exist."""
    try:
        slots = [index[key.make(task.cpu) if type(key) is ThisCpu else key] for key in trap.keys]
    except KeyError as error:
        raise ModelError(f"task {task.name} touched {error.args[0]!r}, which is no slot of this system") from None
    args = trap.args
    for arg in args:
        if arg is ME:
            args = tuple([task.name if arg is ME else arg for arg in args])
            break
    return Operation(trap, trap.effect, slots, args)
