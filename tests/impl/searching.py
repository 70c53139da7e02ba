"""Every state of a system of the simulated kernel, and what comes of them: the search that the tests of races share."""

from __future__ import annotations

from typing import Any

from attrs import define, field

from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption, System
from migrate_vma_spec.events import Oops


@define
class Ends:
    """What the search of a system came to."""

    oopses: set[str] = field(factory=set)
    """What the kernel's own checks said."""
    finals: list[dict[Any, Any]] = field(factory=list)
    """The slots of every state in which all tasks have ended."""
    stuck: int = 0
    """States in which nothing can run, and some task has not ended."""
    trouble: set[str] = field(factory=set)
    """What is wrong with the models themselves: an exception, a task that does not repeat itself."""
    states: int = 0

    @property
    def unsound(self) -> list[str]:
        """What may come of no race, in words; with the search that never came to an end of it."""
        return [
            *sorted(self.oopses),
            *sorted(self.trouble),
            *([f"{self.stuck} states are stuck"] if self.stuck else []),
            *([] if self.finals else ["no state is final"]),
        ]


def ends_of(made: System) -> Ends:
    """Every interleaving of the system's tasks."""
    space = Space(made, Preemption.FULL)
    ends, seen, todo = Ends(), {space.first}, [space.first]
    while todo:
        state = todo.pop()
        moves = space.successors(state)
        for transition, after in moves:
            ends.oopses.update(step.event.what for step in transition.steps if isinstance(step.event, Oops))
            if after not in seen:
                seen.add(after)
                todo.append(after)
        if not moves and space.finished(state):
            ends.finals.append({key: space.value(state, key) for key in made.slots})
        elif not moves and not space.stopped(state):
            ends.stuck += 1
    for automaton in space.automata:
        ends.trouble |= automaton.not_mergeable
        ends.trouble |= {node.ended.error for node in automaton.nodes if node.ended and node.ended.error}
    ends.states = len(seen)
    return ends
