"""The kit: plain functions that check a driver, a core, or a trace against the contract, and replay what was found.

They return reports and never raise for a violation. A subject that can be named (`package.module:factory`) is run in child
processes with limits; a factory that only exists in this process runs in it.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve, frozen

from migrate_vma_conformance import unit as units
from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.errors import Interrupted, UsageError, listed
from migrate_vma_conformance.options import Advance, CheckOptions, Fairness, Profile, Progress, silent
from migrate_vma_conformance.pool import Lost, run_all
from migrate_vma_conformance.probe import KnownRecord, know_driver, know_record
from migrate_vma_conformance.replaying import replay
from migrate_vma_conformance.scenarios import SCENARIOS, MakeCore, Scenario
from migrate_vma_conformance.subject import KNOWN_GENERATIONS, MakeDriver, as_shipped, find_driver, find_generation, path_of
from migrate_vma_conformance.tokens import ABSENT
from migrate_vma_conformance.unit import Outcome, Unit
from migrate_vma_conformance.verdict import ClauseVerdict, Finding, GenerationReport, Report, ScenarioEvidence, conclude
from migrate_vma_impl.generations import GENERATIONS, Generation
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import Clause, Party
from migrate_vma_spec.vocabulary import Capability

__all__ = ["LIMITS", "NOT_COVERED", "Limits", "as_shipped", "check", "check_core", "check_driver", "check_trace", "replay"]

NOT_COVERED = (
    "weak memory order (the machine is sequentially consistent), interrupts, and NMIs",
    "more CPUs, pages, address spaces and operations than the scenarios name",
    "files, swap, coherent memory, exclusive access and userfaultfd: only the state machine draws them",
    "time: nothing is said of how long a bounded retry lasts",
)
"""What no verdict of this release speaks of."""


@frozen
class Limits:
    """How far one unit of a profile goes: states, seconds of search, and whether every scenario runs or the quick ones."""

    states: int
    seconds: float
    every: bool


LIMITS = {
    Profile.QUICK: Limits(60_000, 10.0, every=False),
    Profile.DEFAULT: Limits(400_000, 60.0, every=True),
    Profile.DEEP: Limits(5_000_000, 1800.0, every=True),
}


@frozen
class Column:
    """One column of the table: a generation by name, with the driver as it is or in its adapted variant.

    A generation of the caller's own is a record, or the path of one (`patch`).
    """

    title: str
    generation: str
    capabilities: frozenset[Capability]
    adapted: bool = False
    patch: str = ""
    record: Generation | None = None


@frozen
class _Inside:
    """What a check of this process's own objects runs."""

    make: MakeDriver
    adapted: MakeDriver | None = None
    make_core: MakeCore | None = None


def check(subject: str, generations: Sequence[Generation | str], options: CheckOptions, progress: Progress = silent) -> Report:
    """Check a driver by name. What `migrate-vma check` calls.

    Raises:
        UsageError: the driver, a generation or the patch cannot be found.
        Interrupted: Ctrl-C; it carries the report of what was found.
    """
    driver = know_driver(subject, seconds=options.seconds)
    patch = None if options.patch is None else know_record(options.patch, seconds=options.seconds)
    table = columns(generations, patch, adapted=driver.adapted)
    _check_that_they_travel(table)
    return _check(driver.name, table, options, progress)


def check_driver(
    make_driver: MakeDriver | str,
    *,
    generation: str | Generation | Sequence[str | Generation] = "waiting",
    preemption: Preemption | Sequence[Preemption] = (Preemption.FULL, Preemption.VOLUNTARY),
    fairness: Fairness = Fairness.STRONG,
    profile: Profile = Profile.QUICK,
    seed: int = 0,
    jobs: int | None = None,
    scenarios: Sequence[str] | None = None,
    seconds: float | None = None,
    progress: Progress = silent,
) -> Report:
    """Check a driver model against the contract.

    Args:
        make_driver: `factory(kernel) -> Driver`, or its path `package.module:factory`. A path runs in child processes with
            limits; a factory runs in this process, where one that never awaits would hang.
        generation: name, kernel version, record, or several of them.
        preemption: the model or models in which tasks lose their CPU.
        fairness: what a liveness verdict assumes.
        profile: how much work to do.
        seed: for sampling, where a scenario is too large to exhaust.
        jobs: child processes at once; None: one for each CPU.
        scenarios: the names of those to run; None: those of the profile.
        seconds: what one scenario may take at most in a child process, wall clock; None: what the profile allows.
        progress: called as scenarios end.

    Returns:
        The report; `exit_code(report)` is what the command line would exit with.

    Raises:
        UsageError: a name that does not exist.
    """
    several = [generation] if isinstance(generation, (str, Generation)) else list(generation)
    models = (preemption,) if isinstance(preemption, Preemption) else tuple(preemption)
    chosen = None if scenarios is None else tuple(scenarios)
    options = CheckOptions(models, fairness, profile, seed, jobs or os.cpu_count() or 1, scenarios=chosen, seconds=seconds)
    if isinstance(make_driver, str):
        return check(make_driver, several, options, progress)
    inside = _Inside(make_driver, getattr(make_driver, "adapted", None))
    table = columns(several, None, adapted=inside.adapted is not None)
    return _check(path_of(make_driver), table, options, progress, inside)


def check_core(
    make_core: MakeCore,
    *,
    generation: str | Generation = "waiting",
    driver: str = "test_hmm",
    profile: Profile = Profile.QUICK,
    fairness: Fairness = Fairness.STRONG,
    scenarios: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Report:
    """Check another core, `make_core(generation, config)`, with a driver of ours. Runs in this process.

    A core is a Kernel, or a class that replaces some of its functions by its own.
    """
    subject = find_driver(driver)
    options = CheckOptions(fairness=fairness, profile=profile, scenarios=None if scenarios is None else tuple(scenarios))
    (column,) = columns([generation], None, adapted=False)
    column = evolve(column, patch=f"{ABSENT}core>")
    return _check(subject.name, [column], options, progress, _Inside(subject.make, None, make_core))


def check_trace(trace: Iterable[Step], *, capabilities: frozenset[Capability]) -> dict[str, str]:
    """Judge a trace, wherever it comes from: the clauses that it breaks, each with a sentence that says how.

    The trace may be of any length; memory stays bounded by what is alive in it.
    """
    judge = Judge(capabilities)
    broken: dict[str, str] = {}
    for step in trace:
        broken.update(judge.feed(step))
    return broken


def columns(generations: Sequence[Generation | str], patch: KnownRecord | None, *, adapted: bool) -> list[Column]:
    """The table's columns. Where a generation hands its fault page over, a driver with an adapted variant is shown twice."""
    found: list[Column] = []
    for item in generations:
        for generation in GENERATIONS.values() if item == "all" else [find_generation(item) if isinstance(item, str) else item]:
            if KNOWN_GENERATIONS.get(generation.name) is generation:
                column = Column(generation.name, generation.name, generation.capabilities)
            else:
                patched = f"{ABSENT}{generation.name}>"
                column = Column(_own(generation.name), generation.name, generation.capabilities, patch=patched, record=generation)
            found.append(column)
            if Capability.REFILL in generation.capabilities and adapted:
                found.append(evolve(column, title=f"{column.title}+adapted", adapted=True))
    if patch is not None:
        found.append(Column(_own(patch.name), patch.name, patch.capabilities, patch=patch.path))
    return found


def _own(name: str) -> str:
    """The title of a caller's own record: its name, with a star where one of ours is called so."""
    return f"{name}*" if name in GENERATIONS else name


def _check_that_they_travel(table: Sequence[Column]) -> None:
    """A record that goes to child processes is pickled."""
    for column in table:
        try:
            pickle.dumps(column.record)
        except Exception as error:
            problem = f"the record cannot be sent to a child process ({type(error).__name__}: {error})"
            expected = "a record whose parts are functions of modules, or the driver as a factory, which runs in this process"
            raise UsageError(column.generation, "generation", problem, expected) from error


def _check(
    name: str, table: Sequence[Column], options: CheckOptions, progress: Progress, inside: _Inside | None = None
) -> Report:
    begin = time.monotonic()
    chosen = _scenarios(options)
    work = [(column, unit) for column in table for unit in units_of(name, column, chosen, options, inside)]
    outcomes: dict[int, Outcome] = {}
    interrupted = False
    try:
        for place, outcome in _run([unit for _, unit in work], options, inside=inside is not None):
            outcomes[place] = outcome
            progress(Advance(work[place][0].title, outcome.unit.scenario, len(outcomes), len(work)))
    except KeyboardInterrupt:
        interrupted = True
    ends = [(column, outcomes.get(place) or Outcome(unit, failure="interrupted")) for place, (column, unit) in enumerate(work)]
    reports = tuple(
        GenerationReport(column.title, _conclude(column, [outcome for its, outcome in ends if its is column])) for column in table
    )
    report = Report(name, reports, time.monotonic() - begin, options.seed, _command(name, options), NOT_COVERED)
    if interrupted:
        raise Interrupted(report)
    return report


def _command(name: str, options: CheckOptions) -> str:
    only = "".join(f" --scenario {scenario}" for scenario in options.scenarios or ())
    return f"migrate-vma check {name} --seed {options.seed} --profile {options.profile.value}{only}"


def _scenarios(options: CheckOptions) -> list[Scenario]:
    """Those to run, in their own order."""
    for name in options.scenarios or ():
        if name not in SCENARIOS:
            raise UsageError(name, "--scenario", "there is no such scenario", f"one of: {listed(SCENARIOS)}")
    every = LIMITS[options.profile].every
    wanted = options.scenarios
    return [each for each in SCENARIOS.values() if (every or each.quick if wanted is None else each.name in wanted)]


def units_of(
    name: str, column: Column, scenarios: Sequence[Scenario], options: CheckOptions, inside: _Inside | None
) -> Iterator[Unit]:
    limits = LIMITS[options.profile]
    make = None if inside is None else inside.adapted if column.adapted else inside.make
    for scenario in scenarios:
        if (column.adapted and scenario.driver is not None) or not scenario.requires <= column.capabilities:
            continue
        for model in _models(scenario, options):
            yield Unit(
                name,
                column.generation,
                scenario.name,
                model,
                options.fairness,
                column.adapted,
                column.patch,
                limits.states,
                limits.seconds if options.seconds is None else min(limits.seconds, options.seconds / 3),
                options.seed,
                make,
                None if inside is None else inside.make_core,
                column.record,
            )


def _models(scenario: Scenario, options: CheckOptions) -> tuple[Preemption, ...]:
    """One model was asked for: it is used everywhere. Several: each scenario has those in which it can differ."""
    if len(options.preemption) == 1:
        return options.preemption
    return tuple(model for model in scenario.preemption if model in options.preemption)


def _run(work: Sequence[Unit], options: CheckOptions, *, inside: bool) -> Iterator[tuple[int, Outcome]]:
    if inside:
        yield from ((place, units.run(unit)) for place, unit in enumerate(work))
        return
    seconds = options.seconds or 3 * LIMITS[options.profile].seconds + 30
    for place, result in run_all(units.run, work, jobs=options.jobs, seconds=seconds):
        yield place, Outcome(work[place], failure=result.reason) if isinstance(result, Lost) else result


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _conclude(column: Column, outcomes: Sequence[Outcome]) -> dict[str, ClauseVerdict]:
    own = [outcome for outcome in outcomes if SCENARIOS[outcome.unit.scenario].driver is None]
    if own and all(outcome.skipped for outcome in own):
        # A driver that can do nothing that is asked of it keeps the contract in no sense that anybody wants to hear.
        outcomes = [evolve(outcome, failure=outcome.failure or outcome.skipped, skipped="") for outcome in outcomes]
    return {clause.id: _verdict(clause, column.capabilities, outcomes) for clause in judged_clauses().values()}


def _verdict(clause: Clause, capabilities: frozenset[Capability], outcomes: Sequence[Outcome]) -> ClauseVerdict:
    findings: list[Finding] = []
    for outcome in outcomes:
        scenario = SCENARIOS[outcome.unit.scenario]
        example = next((example for example in outcome.examples if example.clause == clause.id), None)
        if outcome.skipped or (example is None and not scenario.is_evidence_for(clause.id)):
            continue
        if clause.party is Party.DRIVER and scenario.driver not in (None, outcome.unit.driver):
            continue  # another driver plays: what it does is no word on this one
        findings.append(Finding(_evidence(clause, scenario, outcome), example, outcome.failure, outcome.weakest.get(clause.id)))
    missing = clause.requires - capabilities
    return conclude(clause.id, clause.level, findings, missing=missing, progress=clause.progress is not None)


def _evidence(clause: Clause, scenario: Scenario, outcome: Outcome) -> ScenarioEvidence:
    name = scenario.name if scenario.driver is None else f"{scenario.name} ({scenario.driver})"
    return ScenarioEvidence(
        name,
        tuple(actor.name for actor in scenario.actors),
        outcome.unit.preemption,
        outcome.unit.fairness,
        outcome.states,
        outcome.executions,
        outcome.complete and not outcome.failure,
        clause.id in outcome.reached,
        outcome.cut,
    )
