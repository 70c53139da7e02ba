"""Which clause catches which bug: the known bugs put back one by one, and searched for as any driver is.

Rules:
- No bug has settings, a scenario or a seed of its own: each is checked as `migrate-vma check` would check it.
- What fires on the generation and driver without the bug, in the same scenario, does not count.
- A bug is *caught* if one of its own clauses fires, *seen* if only others do, and *escapes* if none does.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import cast

from attrs import evolve, frozen

from migrate_vma_conformance import unit
from migrate_vma_conformance.errors import UsageError, listed
from migrate_vma_conformance.kit import LIMITS, Column, units_of
from migrate_vma_conformance.options import Advance, CheckOptions, Progress, silent
from migrate_vma_conformance.pool import Lost, run_all
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.subject import load
from migrate_vma_conformance.tokens import ABSENT
from migrate_vma_conformance.unit import Outcome, Unit
from migrate_vma_impl.bugs import collection
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.generations import find_generation

WITHOUT = "test_hmm"
"""The driver that a driver's bug is compared with."""


class Fate(enum.Enum):
    """What became of a bug."""

    CAUGHT = "caught"
    SEEN = "seen"
    ESCAPED = "escaped"


@frozen
class Kill:
    """A clause that fired because of a bug: in which scenario first, and the length of the shrunk counterexample there."""

    clause: str
    scenario: str
    steps: int
    switches: int
    token: str


@frozen
class Row:
    """What is known of one bug. `states` and `seconds` are what was searched until its first kill, that scenario included."""

    bug: Bug
    kills: tuple[Kill, ...]
    states: int
    seconds: float
    failures: tuple[str, ...] = ()

    @property
    def fate(self) -> Fate:
        if any(kill.clause in self.bug.clauses for kill in self.kills):
            return Fate.CAUGHT
        return Fate.SEEN if self.kills else Fate.ESCAPED


NOT_SHOWN = collection.NOT_SHOWN


def chosen_bugs(path: str | None, only: Sequence[str]) -> list[Bug]:
    """The bugs of the collection, or of `package.module:BUGS`, of which `only` names some.

    Raises:
        UsageError: no such collection or bug.
    """
    known = collection.BUGS if path is None else third_party_bugs(path)
    names = {bug.id: bug for bug in known}
    for name in only:
        if name not in names:
            row = next((row for row in NOT_SHOWN if row.id == name), None)
            problem = "there is no such bug" if row is None else f"it cannot be shown: {row.reason}"
            raise UsageError(name, "--only", problem, f"one of: {listed(names)}")
    return [names[name] for name in dict.fromkeys(only)] if only else list(known)


def third_party_bugs(path: str) -> tuple[Bug, ...]:
    """The bugs of `package.module:BUGS`.

    Raises:
        UsageError: it cannot be imported, or is no sequence of bugs.
    """
    expected = "module:BUGS, a sequence of migrate_vma_impl.bugs.bug.Bug"
    found = load(path, "--bugs", expected)
    several = list(cast("list[object]", found)) if type(found) in (list, tuple) else []
    bugs = [each for each in several if isinstance(each, Bug)]
    if not bugs or len(bugs) < len(several):
        raise UsageError(path, "--bugs", f"it names a {type(found).__name__}, not a sequence of bugs", expected)
    return tuple(bugs)


@frozen
class Matrix:
    """The rows, and whether Ctrl-C came before all of it was searched."""

    rows: tuple[Row, ...]
    interrupted: bool = False

    def unguarded(self, clauses: Iterable[str]) -> list[str]:
        """Those of the clauses that no bug of these broke."""
        fired = {kill.clause for row in self.rows for kill in row.kills}
        return [clause for clause in clauses if clause not in fired]


def kill_matrix(bugs: Sequence[Bug], options: CheckOptions, progress: Progress = silent) -> Matrix:
    """Check every bug, and what it is compared with, in child processes."""
    sound = baselines(bugs)
    columns = [*sound, *((bug.driver, column_of(bug)) for bug in bugs)]
    scenarios = [each for each in SCENARIOS.values() if LIMITS[options.profile].every or each.quick]
    work = [
        (place, one)
        for place, (driver, column) in enumerate(columns)
        for one in units_of(driver, column, scenarios, options, None)
    ]
    ends: dict[int, Outcome] = {}
    seconds = options.seconds or 3 * LIMITS[options.profile].seconds + 30
    interrupted = False
    try:
        for number, result in run_all(unit.run, [one for _, one in work], jobs=options.jobs, seconds=seconds):
            place, one = work[number]
            ends[number] = Outcome(one, failure=result.reason) if isinstance(result, Lost) else result
            progress(Advance(columns[place][1].title, one.scenario, len(ends), len(work)))
    except KeyboardInterrupt:
        interrupted = True
    outcomes: list[list[Outcome]] = [[] for _ in columns]
    for number, (place, one) in enumerate(work):
        outcomes[place].append(ends.get(number) or Outcome(one, failure="interrupted"))
    known = {column.title: _fired(found) for (_, column), found in zip(sound, outcomes, strict=False)}
    rows = (_row(bug, found, known[title_beside(bug)]) for bug, found in zip(bugs, outcomes[len(sound) :], strict=True))
    return Matrix(tuple(rows), interrupted)


def title_beside(bug: Bug) -> str:
    """Of the column that the bug is compared with."""
    return f"{bug.record.name}+adapted" if bug.adapted else bug.record.name


def baselines(bugs: Iterable[Bug]) -> list[tuple[str, Column]]:
    """The generations without a bug, each once, with the driver in the variant that is compared."""
    several = {title_beside(bug): bug for bug in bugs}
    return [
        (WITHOUT, Column(title, bug.record.name, find_generation(bug.record.name).capabilities, bug.adapted))
        for title, bug in several.items()
    ]


def column_of(bug: Bug) -> Column:
    """How a check names the bug's core: as it is, by the collection's own path, or as a record that has none."""
    name = bug.record.name
    column = Column(bug.id, name, bug.record.capabilities)
    if find_generation(name) == bug.record:
        return column
    if any(bug is each for each in collection.BUGS):
        return evolve(column, patch=f"{collection.__name__}:{bug.id}.record")
    return evolve(column, patch=f"{ABSENT}{bug.id}>", record=bug.record)


def _fired(outcomes: Iterable[Outcome]) -> set[tuple[str, str, str]]:
    return {(*_where(outcome.unit), example.clause) for outcome in outcomes for example in outcome.examples}


def _where(one: Unit) -> tuple[str, str]:
    return one.scenario, one.preemption.value


def _row(bug: Bug, outcomes: Sequence[Outcome], known: set[tuple[str, str, str]]) -> Row:
    kills: dict[str, Kill] = {}
    states, seconds = 0, 0.0
    for outcome in outcomes:
        if not kills:
            states += outcome.states
            seconds += outcome.seconds
        for example in outcome.examples:
            if (*_where(outcome.unit), example.clause) not in known and example.clause not in kills:
                steps = len(example.steps) - example.first_step
                kills[example.clause] = Kill(example.clause, outcome.unit.scenario, steps, example.switches, example.token)
    failures = tuple(f"{outcome.unit.scenario}: {outcome.failure}" for outcome in outcomes if outcome.failure)
    return Row(bug, tuple(kills[clause] for clause in sorted(kills)), states, seconds, failures)
