"""Which clause catches which bug: the known bugs put back one by one, and searched for as any driver is.

Rules:
- No bug has settings, a scenario or a seed of its own: the scenarios are those of `migrate-vma check`, for every bug in the same
  order, those with few tasks first, for they are cheap.
- A bug is looked for until one of its own clauses has fired; what would fire later is not asked. So the heavy scenarios are run
  for what nothing else shows.
- What fires on the generation and driver without the bug, in the same scenario, does not count. That is searched once for all
  bugs that are compared with it, and as far as any of them comes.
- A bug is *caught* if one of its own clauses fires, *seen* if only others do, and *escapes* if none does.
- A clause is *guarded* by a bug that it catches alone, or as early as any other does: by a schedule that is as short. REF, the
  reference model, is no clause: what it says besides counts for nothing.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Iterator, Sequence

from attrs import define, evolve, field, frozen

from migrate_vma_conformance import unit
from migrate_vma_conformance.bug_collections import NOT_SHOWN, chosen_bugs, third_party_bugs
from migrate_vma_conformance.kit import LIMITS, Column, units_of
from migrate_vma_conformance.options import Advance, CheckOptions, Progress, silent
from migrate_vma_conformance.pool import Lost, run_all
from migrate_vma_conformance.scenarios import SCENARIOS, Scenario
from migrate_vma_conformance.tokens import ABSENT
from migrate_vma_conformance.unit import Outcome, Unit
from migrate_vma_impl.bugs import collection
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.generations import find_generation
from migrate_vma_spec.model import REFERENCE

__all__ = ["NOT_SHOWN", "Fate", "Kill", "Matrix", "Row", "chosen_bugs", "kill_matrix", "third_party_bugs"]


class Fate(enum.Enum):
    """What became of a bug."""

    CAUGHT = "caught"
    SEEN = "seen"
    ESCAPED = "escaped"


@frozen
class Kill:
    """A clause that fired because of a bug: in which scenario first, and the length of the shrunk counterexample there.

    `early`: nothing else fired before it, in an earlier scenario or by a shorter schedule.
    """

    clause: str
    scenario: str
    steps: int
    switches: int
    token: str
    early: bool


@frozen
class Row:
    """What is known of one bug. `kills` are in the order of their appearance.

    `states`, `executions` and `seconds` are what was searched until the first kill, that scenario included; `total` is the time
    until one of the bug's own clauses had fired, or all was searched.
    """

    bug: Bug
    kills: tuple[Kill, ...]
    states: int
    executions: int
    seconds: float
    total: float
    failures: tuple[str, ...] = ()

    @property
    def fate(self) -> Fate:
        if any(kill.clause in self.bug.clauses for kill in self.kills):
            return Fate.CAUGHT
        return Fate.SEEN if self.kills else Fate.ESCAPED


@frozen
class Matrix:
    """The rows, what all of it took (wall clock), and whether Ctrl-C came before it was searched."""

    rows: tuple[Row, ...]
    seconds: float = 0.0
    interrupted: bool = False

    def unguarded(self, clauses: Iterable[str]) -> list[str]:
        """Those of the clauses that no bug of these broke, alone or first."""
        fired = {kill.clause for row in self.rows for kill in row.kills if kill.early}
        return [clause for clause in clauses if clause not in fired]


# ---- what is searched ------------------------------------------------------------------------------------------------


def cheapest_first(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Those with few tasks first, each of which multiplies the states; of as many, those that are searched under one model, and
    those that ask for a capability: they are run where there is a reason to.
    """
    return sorted(scenarios, key=lambda each: (len(each.actors) + each.lockstep, len(each.preemption), not each.requires))


Beside = tuple[str, str, bool]
"""What a bug is compared with: a driver, a generation, and whether it is the driver's variant that refills."""


def beside(bug: Bug) -> Beside:
    return bug.beside, bug.record.name, bug.adapted


def sound_column(what: Beside) -> Column:
    _, name, adapted = what
    return Column(f"{name}+adapted" if adapted else name, name, find_generation(name).capabilities, adapted)


def is_core_bug(bug: Bug) -> bool:
    """Whether the fault is in the generation's record; else it is in the driver."""
    return find_generation(bug.record.name) != bug.record


def column_of(bug: Bug) -> Column:
    """How a check names the bug's core: as it is, by the collection's own path, or as a record that has none."""
    name = bug.record.name
    column = Column(bug.id, name, bug.record.capabilities)
    if not is_core_bug(bug):
        return column
    if any(bug is each for each in collection.BUGS):
        return evolve(column, patch=f"{collection.__name__}:{bug.id}.record")
    return evolve(column, patch=f"{ABSENT}{bug.id}>", record=bug.record)


Place = tuple[str, str]
"""A scenario and a model of preemption."""


def _place(one: Unit) -> Place:
    return one.scenario, one.preemption.value


def fired(outcomes: Iterable[Outcome]) -> dict[Place, frozenset[str]]:
    """The clauses that fired, where."""
    return {_place(outcome.unit): frozenset(example.clause for example in outcome.examples) for outcome in outcomes}


@define
class _Hunt:
    """The search for one bug, as far as it has come."""

    bug: Bug
    kills: dict[str, Kill] = field(factory=dict[str, Kill])
    states: int = 0
    executions: int = 0
    seconds: float = 0.0
    total: float = 0.0
    failures: list[str] = field(factory=list[str])

    @property
    def over(self) -> bool:
        return any(clause in self.kills for clause in self.bug.clauses)

    def units(self, scenario: Scenario, options: CheckOptions, known: dict[Place, frozenset[str]]) -> Iterator[Unit]:
        """Where the scenario's own driver plays, a fault of a driver cannot be seen."""
        if scenario.driver is not None and not is_core_bug(self.bug):
            return
        for one in units_of(self.bug.driver, column_of(self.bug), [scenario], options, None):
            yield evolve(one, wanted=frozenset(self.bug.clauses) - known.get(_place(one), frozenset()))

    def take(self, outcomes: Sequence[Outcome], known: dict[Place, frozenset[str]]) -> None:
        """What the units of one scenario gave."""
        first, alone = not self.kills, not self.kills.keys() - {REFERENCE.id}
        for outcome in outcomes:
            self.total += outcome.seconds
            if first:
                self.seconds += outcome.seconds
                self.states += outcome.states
                self.executions += outcome.executions
            if outcome.failure:
                self.failures.append(f"{outcome.unit.scenario}: {outcome.failure}")
            self._take_one(outcome, known.get(_place(outcome.unit), frozenset()), alone=alone)

    def _take_one(self, outcome: Outcome, known: frozenset[str], *, alone: bool) -> None:
        examples = {example.clause: example for example in outcome.examples if example.clause not in known}
        nothing_yet = alone
        for together in outcome.appeared:
            for clause in sorted(together & examples.keys() - self.kills.keys()):
                example = examples[clause]
                # What a prologue breaks has no steps of the search: its own are told.
                steps = len(example.steps) - example.first_step or len(example.steps)
                scenario = outcome.unit.scenario
                self.kills[clause] = Kill(clause, scenario, steps, example.switches, example.token, early=nothing_yet)
            nothing_yet = nothing_yet and not (together & examples.keys()) - {REFERENCE.id}

    def row(self) -> Row:
        return Row(
            self.bug,
            tuple(self.kills.values()),
            self.states,
            self.executions,
            self.seconds,
            self.total,
            tuple(self.failures),
        )


def kill_matrix(bugs: Sequence[Bug], options: CheckOptions, progress: Progress = silent) -> Matrix:
    """Look for every bug, in child processes."""
    begin = time.monotonic()
    scenarios = cheapest_first(each for each in SCENARIOS.values() if LIMITS[options.profile].every or each.quick)
    search = _Search([_Hunt(bug) for bug in bugs], options, progress)
    interrupted = False
    try:
        search.run(scenarios)
    except KeyboardInterrupt:
        interrupted = True
    return Matrix(tuple(hunt.row() for hunt in search.hunts), time.monotonic() - begin, interrupted)


@define
class _Search:
    """Scenario after scenario: what has not been caught, and beside it, one scenario ahead, what it will be compared with."""

    hunts: list[_Hunt]
    options: CheckOptions
    progress: Progress
    known: dict[Beside, dict[Place, frozenset[str]]] = field(factory=dict[Beside, dict[Place, frozenset[str]]])
    done: int = 0

    def run(self, scenarios: Sequence[Scenario]) -> None:
        for here, ahead in zip((None, *scenarios), (*scenarios, None), strict=True):
            live = [hunt for hunt in self.hunts if not hunt.over]
            hunting = [(hunt, one) for hunt in live for one in self._hunted(hunt, here)]
            beside_them = dict.fromkeys(beside(hunt.bug) for hunt in live)
            sound = [(what, one) for what in beside_them for one in self._sound(what, ahead)]
            outcomes = self._run([(hunt.bug.id, one) for hunt, one in hunting] + [(what[1], one) for what, one in sound])
            for hunt in live:
                mine = [outcome for (owner, _), outcome in zip(hunting, outcomes, strict=False) if owner is hunt]
                hunt.take(mine, self.known.get(beside(hunt.bug), {}))
            for (what, _), outcome in zip(sound, outcomes[len(hunting) :], strict=True):
                self.known.setdefault(what, {}).update(fired([outcome]))

    def _hunted(self, hunt: _Hunt, scenario: Scenario | None) -> Iterator[Unit]:
        return iter(()) if scenario is None else hunt.units(scenario, self.options, self.known.get(beside(hunt.bug), {}))

    def _sound(self, what: Beside, scenario: Scenario | None) -> Iterator[Unit]:
        return iter(()) if scenario is None else units_of(what[0], sound_column(what), [scenario], self.options, None)

    def _run(self, work: Sequence[tuple[str, Unit]]) -> list[Outcome]:
        """In order, each in a child process."""
        outcomes = [Outcome(one, failure="interrupted") for _, one in work]
        seconds = self.options.seconds or 3 * LIMITS[self.options.profile].seconds + 30
        total = self.done + len(work)
        for number, result in run_all(unit.run, [one for _, one in work], jobs=self.options.jobs, seconds=seconds):
            name, one = work[number]
            outcomes[number] = Outcome(one, failure=result.reason) if isinstance(result, Lost) else result
            self.done += 1
            self.progress(Advance(name, one.scenario, self.done, total))
        return outcomes
