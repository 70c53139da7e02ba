"""The contract as an automaton beside the state space: what the clauses know after a step, at table speed.

A contract state is the folded world and the memory of every monitor, as one number. Clauses are pure, so each (contract state,
transition) is judged once, and a break is found on the first, hence shortest, path to it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from attrs import frozen

from migrate_vma_impl.machine.space import Transition
from migrate_vma_spec.events import Step
from migrate_vma_spec.registry import KEPT, Clause
from migrate_vma_spec.vocabulary import Capability
from migrate_vma_spec.world import World, fold


@frozen
class Broken:
    """A clause is broken, and by what."""

    clause: str
    sentence: str


class _Silent:
    """The memory of a monitor that has fired: it says nothing more on this path."""


SILENT = _Silent()


class Product:
    """The clauses that a subject with `capabilities` is judged by. `reached` grows with the clauses that were seen to apply."""

    def __init__(self, clauses: Iterable[Clause], capabilities: frozenset[Capability]) -> None:
        self.clauses = tuple(clause for clause in clauses if clause.applies(capabilities))
        self.reached: set[str] = set()
        self._monitors = [clause for clause in self.clauses if clause.monitor is not None]
        self._steps: dict[type, list[Clause]] = {}
        self._listening: dict[type, list[int]] = {}
        for clause in self.clauses:
            if clause.step is not None:
                for kind in clause.on:
                    self._steps.setdefault(kind, []).append(clause)
        for place, clause in enumerate(self._monitors):
            for kind in clause.on:
                self._listening.setdefault(kind, []).append(place)
        self._worlds: list[World] = []
        self._world_numbers: dict[World, int] = {}
        self._states: list[tuple[int, tuple[Hashable, ...]]] = []
        self._numbers: dict[Hashable, int] = {}
        self._memo: dict[tuple[int, int], tuple[int, tuple[Broken, ...]]] = {}
        self._folded: dict[tuple[int, int], tuple[World, tuple[World, ...], tuple[Broken, ...]]] = {}
        self._remembered: dict[tuple[int, Hashable, int, int], tuple[Hashable, Broken | None]] = {}
        self._alive: list[Transition] = []
        self._known: set[int] = set()
        self.first = self._number(World(capabilities=capabilities), tuple(clause.start for clause in self._monitors))

    def __len__(self) -> int:
        return len(self._states)

    def world(self, number: int) -> World:
        return self._worlds[self._states[number][0]]

    def after(self, number: int, move: Transition) -> tuple[int, tuple[Broken, ...]]:
        """The contract state after a transition, and the clauses that it breaks."""
        if not self._steps and not self._monitors:
            return number, ()
        key = (number, id(move))
        found = self._memo.get(key)
        if found is None:
            if id(move) not in self._known:
                self._known.add(id(move))
                self._alive.append(move)
            found = self._memo[key] = self._judge(number, id(move), move.steps)
        return found

    def follow(self, number: int, steps: tuple[Step, ...]) -> tuple[int, tuple[Broken, ...]]:
        """As `after`, for a piece of trace that is not a transition of a space."""
        return self._judge(number, None, steps)

    def at_end(self, number: int) -> tuple[Broken, ...]:
        """What the clauses say of a contract state in which an execution has come to its end."""
        world = self.world(number)
        broken: list[Broken] = []
        for clause in self.clauses:
            if clause.end is not None:
                self._take(clause, clause.end(world), broken)
        return tuple(broken)

    def _judge(self, number: int, key: int | None, steps: tuple[Step, ...]) -> tuple[int, tuple[Broken, ...]]:
        world, memories = self._states[number]
        final, worlds, broken = self._fold(world, key, steps)
        changed = list(memories)
        more = list(broken)
        for place in sorted({place for step in steps for place in self._listening.get(type(step.event), ())}):
            changed[place], one = self._remember(place, memories[place], world, key, steps, worlds)
            if one is not None:
                more.append(one)
        return self._number(final, tuple(changed)), tuple(more)

    def _fold(self, number: int, key: int | None, steps: tuple[Step, ...]) -> tuple[World, tuple[World, ...], tuple[Broken, ...]]:
        """Fold the steps and ask the step clauses; also the worlds before each step."""
        if key is not None and (number, key) in self._folded:
            return self._folded[number, key]
        world = self._worlds[number]
        befores: list[World] = []
        broken: list[Broken] = []
        for step in steps:
            befores.append(world)
            after = fold(world, step)
            for clause in self._steps.get(type(step.event), ()):
                assert clause.step is not None  # noqa: S101  (for the type checker)
                self._take(clause, clause.step(world, step, after), broken)
            world = after
        result = world, tuple(befores), tuple(broken)
        if key is not None:
            self._folded[number, key] = result
        return result

    def _take(self, clause: Clause, judgement: Any, broken: list[Broken]) -> None:
        if judgement is None:
            return
        self.reached.add(clause.id)
        if judgement is not KEPT:
            broken.append(Broken(clause.id, judgement))

    def _remember(
        self, place: int, memory: Hashable, number: int, key: int | None, steps: tuple[Step, ...], worlds: tuple[World, ...]
    ) -> tuple[Hashable, Broken | None]:
        if memory is SILENT:
            return SILENT, None
        memo = None if key is None else (place, memory, number, key)
        if memo is not None and memo in self._remembered:
            return self._remembered[memo]
        clause = self._monitors[place]
        broken: list[Broken] = []
        for step, world in zip(steps, worlds, strict=True):
            if type(step.event) in clause.on and not broken:
                assert clause.monitor is not None  # noqa: S101  (for the type checker)
                memory, judgement = clause.monitor(memory, world, step)
                self._take(clause, judgement, broken)
        result = (SILENT, broken[0]) if broken else (memory, None)
        if memo is not None:
            self._remembered[memo] = result
        return result

    def _number(self, world: World, memories: tuple[Hashable, ...]) -> int:
        of_world = self._world_numbers.get(world)
        if of_world is None:
            of_world = self._world_numbers[world] = len(self._worlds)
            self._worlds.append(world)
        key = (of_world, memories)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._states)
            self._states.append(key)
        return number
