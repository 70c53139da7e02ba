"""The state space of a system: its first state and the successors of a state, at table speed.

A state is a tuple of small integers: one per slot (the number of its value), one per task (the number of its local state), one
per CPU that several tasks share (the task that has it), and whether the machine has stopped. Each (task, local state, values of
the touched slots) is evaluated once, whatever the rest of the state is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from attrs import define, field, frozen

from migrate_vma_impl.machine.automaton import Automaton, Edge, Node
from migrate_vma_impl.machine.local_state import Canon
from migrate_vma_impl.machine.scheduling import Operation, resolve, yields_cpu
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.machine.traps import Kind
from migrate_vma_spec.events import Chose, Oops, OperationBegan, Step

State = tuple[int, ...]

PROLOGUE_LIMIT = 20_000


class PrologueError(Exception):
    """The prologue of a system did not come to its end; the message says where it stood."""


@frozen(eq=False)
class Transition:
    """One step of one task: what it changes, the trace that it leaves, and the data choice that it answered, if any."""

    task: int
    changes: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    answer: int
    choice: str | None
    begins: bool
    point: bool
    stops: bool


@define(eq=False)
class _Table:
    """The values that one slot has taken, numbered; typed, so that True is not 1."""

    values: list[Any] = field(factory=list[Any])
    numbers: dict[Hashable, int] = field(factory=dict[Hashable, int])

    def number(self, value: Any) -> int:
        key = Canon().value(value)
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.values)
            self.values.append(value)
        return number


class Space:
    """The states of `system` under one preemption model. `steps` is the trace of the prologue, `first` the state after it."""

    def __init__(self, system: System, preemption: Preemption) -> None:
        self.system = system
        self.preemption = preemption
        daemons = [task for task in system.tasks if task.daemon]
        self.tasks: tuple[Task, ...] = (system.prologue, *daemons, *(task for task in system.tasks if not task.daemon))
        self.automata = [Automaton(task) for task in self.tasks]
        self._index = {key: number for number, key in enumerate(system.slots)}
        self._tables = [_Table() for _ in system.slots]
        self._base = len(system.slots)
        self._operations: list[dict[int, Operation]] = [{} for _ in self.tasks]
        self._memo: list[dict[int, dict[Any, tuple[Transition, ...]]]] = [{} for _ in self.tasks]
        self._cpu_slot = self._shared_cpus()
        self._stopped = self._base + len(self.tasks) + len(set(self._cpu_slot.values()))
        self.steps: tuple[Step, ...] = ()
        self.first = self._run_prologue()

    def _shared_cpus(self) -> dict[int, int]:
        """For each task after the prologue on a CPU that several share: the position of that CPU's current task in a state."""
        sharing: dict[int, list[int]] = {}
        for number, task in enumerate(self.tasks[1:], 1):
            sharing.setdefault(task.cpu, []).append(number)
        positions: dict[int, int] = {}
        place = self._base + len(self.tasks)
        for numbers in (sharing[cpu] for cpu in sorted(sharing) if len(sharing[cpu]) > 1):
            positions.update(dict.fromkeys(numbers, place))
            place += 1
        return positions

    # ---- reading a state ---------------------------------------------------------------------------------------------

    def node(self, state: State, task: int) -> Node:
        return self.automata[task].nodes[state[self._base + task]]

    def stopped(self, state: State) -> bool:
        return bool(state[self._stopped])

    def value(self, state: State, key: Hashable) -> Any:
        """What a slot holds in a state."""
        slot = self._index[key]
        return self._tables[slot].values[state[slot]]

    def finished(self, state: State) -> bool:
        """Every task but the daemons has ended."""
        return all(
            self.node(state, number).ended is not None for number, task in enumerate(self.tasks) if number and not task.daemon
        )

    # ---- successors --------------------------------------------------------------------------------------------------

    def moves(self, state: State, task: int) -> tuple[Transition, ...]:
        """What the task's trap can do in `state`, whatever its CPU says; empty while it waits or once it has ended."""
        number = state[self._base + task]
        node = self.automata[task].nodes[number]
        if node.ended is not None:
            return ()
        memo = self._memo[task].get(number)
        if memo is None:
            memo = self._memo[task][number] = {}
            if node.trap is not None:
                self._operations[task][number] = resolve(node.trap, self.tasks[task], self._index)
        operation = self._operations[task].get(number)
        key = () if operation is None else tuple([state[slot] for slot in operation.slots])
        found = memo.get(key)
        if found is None:
            found = memo[key] = self._evaluate(task, node, operation, key)
        return found

    def successors(self, state: State) -> list[tuple[Transition, State]]:
        """Every step that can come next."""
        if state[self._stopped]:
            return []
        found: list[tuple[Transition, State]] = []
        for task in range(1, len(self.tasks)):
            moves = self.moves(state, task)
            if moves and self._cpu_lets(state, task):
                found.extend([(move, self.apply(state, move)) for move in moves])
        return found

    def _cpu_lets(self, state: State, task: int) -> bool:
        place = self._cpu_slot.get(task)
        if place is None:
            return True
        current = state[place]
        if current in (0, task):
            return True
        node = self.node(state, current)
        if node.ended is not None or node.trap is None:
            return True
        return yields_cpu(node.trap, node.depth, not self.moves(state, current), self.preemption)

    def apply(self, state: State, move: Transition) -> State:
        values = list(state)
        for place, number in move.changes:
            values[place] = number
        return tuple(values)

    def _evaluate(self, task: int, node: Node, operation: Operation | None, key: tuple[int, ...]) -> tuple[Transition, ...]:
        if operation is None:
            return (self._transition(task, (), (), self.automata[task].next(node, None), None),)
        values = tuple(self._tables[slot].values[number] for slot, number in zip(operation.slots, key, strict=True))
        if operation.trap.kind is Kind.CHOICE:
            what = operation.args[0]
            return tuple(
                self._transition(task, (), (Chose(what, answer),), self.automata[task].next(node, answer), (what, answer))
                for answer in range(operation.trap.answers if self.system.fallible else 1)
            )
        outcome = operation.outcome(values)
        if outcome is None:
            return ()
        new, answer, event = outcome
        changes = tuple(
            (slot, self._tables[slot].number(value))
            for slot, value, old in zip(operation.slots, new, values, strict=True)
            if value is not old
        )
        edge = self.automata[task].next(node, answer)
        return (self._transition(task, changes, (event,), edge, None, point=operation.trap.kind is Kind.POINT),)

    def _transition(
        self,
        task: int,
        changes: tuple[tuple[int, int], ...],
        events: tuple[Any, ...],
        edge: Edge,
        choice: tuple[str, int] | None,
        point: bool = False,
    ) -> Transition:
        who = self.tasks[task]
        stops = any(isinstance(event, Oops) for event in events)
        said = events if stops else (*events, *edge.notes)
        place = self._cpu_slot.get(task)
        moved = [*changes, (self._base + task, edge.target.number)]
        if place is not None:
            moved.append((place, task))
        if stops:
            moved.append((self._stopped, 1))
        return Transition(
            task,
            tuple(moved),
            tuple(Step(who.name, who.cpu, event) for event in said),
            0 if choice is None else choice[1],
            None if choice is None else choice[0],
            any(isinstance(event, OperationBegan) for event in said),
            point,
            stops,
        )

    # ---- the prologue ------------------------------------------------------------------------------------------------

    def _run_prologue(self) -> State:
        first = [self._tables[slot].number(value) for slot, value in enumerate(self.system.slots.values())]
        state: State = (*first, *([0] * (self._stopped + 1 - len(first))))
        steps: list[Step] = []
        daemons = [number for number, task in enumerate(self.tasks) if task.daemon]
        for _ in range(PROLOGUE_LIMIT):
            move = next((self.moves(state, task)[0] for task in (0, *daemons) if self.moves(state, task)), None)
            if move is None or move.stops:
                break
            steps.extend(move.steps)
            state = self.apply(state, move)
        ended = self.node(state, 0).ended
        if ended is None or ended.error is not None:
            raise PrologueError(self._prologue_trouble(state))
        self.steps = tuple(steps)
        places = set(self._cpu_slot.values())
        return tuple(0 if place in places else number for place, number in enumerate(state))

    def _prologue_trouble(self, state: State) -> str:
        node = self.node(state, 0)
        if node.ended is not None:
            return f"the prologue ended with {node.ended.error}"
        if self.moves(state, 0):
            move = self.moves(state, 0)[0]
            if move.stops:
                return f"the prologue stopped the kernel: {move.steps[0].event}"
            return f"the prologue did not end within {PROLOGUE_LIMIT:,} steps"
        return f"the prologue waits for ever at {node.trap.effect.__qualname__ if node.trap else 'its start'}"
