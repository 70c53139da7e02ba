"""An execution as the drawings get it, and the shortest form of one that goes on for ever."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve, frozen

from migrate_vma_spec.events import Step


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
