"""Clauses: one normative sentence each, with the predicate that judges it. One registry, many readers.

Kinds:
- a step clause, `judge(before, step, after)`, sees the folded world before and after one step of a trace;
- a monitor, `judge(memory, world, step)`, has a small, frozen, hashable memory of its own, and returns the next one with its
  judgement; `world` is the world before the step. What it remembers of an object it drops when the object dies, so a trace of any
  length needs constant space;
- a progress clause has no predicate here: it is judged on the cycles and dead ends of an exhausted state graph, and `progress`
  says which kind of cycle breaks it.

A step clause or a monitor can have an `end` as well, `end(world)`: it judges the last world of an execution, one in which no task
takes a step any more. That is the end of all tasks (`world.idle`) or a dead end in which some of them are stuck; a predicate that
means only one of the two asks.

A judgement is None (the clause says nothing of this step), KEPT (it applied and holds: the guard against vacuous verdicts), or a
sentence that says what broke it, with the values.

A predicate is pure and gives the same for the same values. It is called for steps whose event is one of `on`, and for no others.
What a subject can do is `world.capabilities`. A clause that `requires` a capability which the subject lacks does not apply to it.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from attrs import frozen

from migrate_vma_spec import notes
from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.guards import GUARDS
from migrate_vma_spec.known_bugs import KnownBug, bugs_of
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import Capability


class _Kept(enum.Enum):
    KEPT = "kept"


KEPT = _Kept.KEPT

Judgement = _Kept | str | None


class Party(enum.Enum):
    """Who is bound by a clause."""

    CORE = "core"
    DRIVER = "driver"
    FAULT = "fault path"
    BOTH = "core and driver"


class Level(enum.Enum):
    MUST = "must"
    SHOULD = "should"


class Progress(enum.Enum):
    """Which cycle or dead end of a state graph breaks a progress clause (definitions: docs/design.md, progress)."""

    LIVELOCK = "livelock"
    STARVATION = "starvation"
    DEADLOCK = "deadlock"
    ENDLESS_RETRY = "endless retry"


@frozen
class Clause:
    """One clause. `on` are the kinds of event that can concern it; `start` is a monitor's first memory.

    `cycle(steps)` says of the steps of a cycle whether it is one that this progress clause is about, where the kind of cycle
    alone does not tell whom it blames; None for any.
    """

    id: str
    name: str
    sentence: str
    party: Party
    level: Level
    source: str
    symptom: str
    chapter: str
    on: tuple[type[Event], ...]
    requires: frozenset[Capability]
    step: Callable[[Any, Any, Any], Judgement] | None = None
    monitor: Callable[[Any, Any, Any], tuple[Hashable, Judgement]] | None = None
    start: Hashable = None
    progress: Progress | None = None
    end: Callable[[Any], Judgement] | None = None
    cycle: Callable[[Any], bool] | None = None

    def applies(self, capabilities: frozenset[Capability]) -> bool:
        return self.requires <= capabilities

    @property
    def since(self) -> str:
        """The mechanism with which it came to mean something, and the kernel that brought it. It decides nothing."""
        return notes.since(self.id)

    @property
    def guard(self) -> str:
        """What must have happened for the clause to count as reached: its `sometimes`. Empty for a clause of somebody else's."""
        return GUARDS.get(self.id, "")

    @property
    def broken_by(self) -> tuple[KnownBug, ...]:
        """The bugs of kernels and drivers that broke it, the oldest first."""
        return bugs_of(self.id)

    @property
    def beside(self) -> tuple[tuple[str, str], ...]:
        """(another clause that one fault often breaks with this one, why both stand)."""
        return notes.neighbours(self.id)


REGISTRY: dict[str, Clause] = {}
"""Filled by importing `migrate_vma_spec.clauses`, one module per chapter. A clause's `chapter` is the name of its module."""

StepJudge = Callable[[World, Step, World], Judgement]
EndJudge = Callable[[World], Judgement]
M = TypeVar("M", bound=Hashable)
MonitorJudge = Callable[[M, World, Step], tuple[M, Judgement]]


def _register(clause: Clause) -> None:
    if clause.id in REGISTRY:
        raise ValueError(f"clause {clause.id} is in the registry already: {REGISTRY[clause.id].name!r}, {clause.name!r}")
    REGISTRY[clause.id] = clause


def _about(function: Callable[..., Any]) -> tuple[str, str]:
    """The normative sentence of a predicate, and the module of its chapter."""
    return " ".join((inspect.getdoc(function) or "").split()), function.__module__


def step_clause(
    clause_id: str,
    *,
    name: str,
    party: Party,
    source: str,
    symptom: str,
    on: tuple[type[Event], ...],
    level: Level = Level.MUST,
    requires: Iterable[Capability] = (),
    end: EndJudge | None = None,
) -> Callable[[StepJudge], StepJudge]:
    """Enter a step predicate in the registry. Its docstring is the clause."""

    def register(judge: StepJudge) -> StepJudge:
        sentence, chapter = _about(judge)
        needs = frozenset(requires)
        _register(Clause(clause_id, name, sentence, party, level, source, symptom, chapter, on, needs, step=judge, end=end))
        return judge

    return register


def monitor(
    clause_id: str,
    *,
    name: str,
    party: Party,
    source: str,
    symptom: str,
    on: tuple[type[Event], ...],
    start: M,
    level: Level = Level.MUST,
    requires: Iterable[Capability] = (),
    end: EndJudge | None = None,
) -> Callable[[MonitorJudge[M]], MonitorJudge[M]]:
    """Enter a monitor in the registry. Its docstring is the clause."""

    def register(judge: MonitorJudge[M]) -> MonitorJudge[M]:
        sentence, chapter = _about(judge)
        needs = frozenset(requires)
        _register(
            Clause(
                clause_id, name, sentence, party, level, source, symptom, chapter, on, needs, monitor=judge, start=start, end=end
            )
        )
        return judge

    return register


def progress_clause(
    clause_id: str,
    *,
    name: str,
    sentence: str,
    party: Party,
    source: str,
    symptom: str,
    progress: Progress,
    chapter: str,
    level: Level = Level.MUST,
    requires: Iterable[Capability] = (),
    cycle: Callable[[tuple[Step, ...]], bool] | None = None,
) -> None:
    """Enter a clause that only cycles and dead ends of a state graph can break. `chapter` is the calling module's name."""
    needs = frozenset(requires)
    _register(
        Clause(clause_id, name, sentence, party, level, source, symptom, chapter, (), needs, progress=progress, cycle=cycle)
    )
