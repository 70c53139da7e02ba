"""The kit: plain functions that check a driver, a core, or a trace against the contract, and replay what was found.

They return reports and never raise for a violation. A subject that can be named (`package.module:factory`) is run in child
processes with limits; a factory that only exists in this process runs in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import frozen

from migrate_vma_conformance import unit as units
from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.errors import Interrupted, UsageError
from migrate_vma_conformance.explore.explain import Subject, lasso_sentence, record
from migrate_vma_conformance.explore.replay import check_cycle
from migrate_vma_conformance.options import Advance, CheckOptions, Fairness, Profile, Progress, silent
from migrate_vma_conformance.pool import Lost, run_all
from migrate_vma_conformance.scenarios import SCENARIOS, MakeCore, Scenario
from migrate_vma_conformance.subject import DriverSubject, MakeDriver, find_driver, find_generation, load_patch
from migrate_vma_conformance.tokens import Token, TokenError, decode
from migrate_vma_conformance.unit import Outcome, Unit
from migrate_vma_conformance.verdict import (
    ClauseVerdict,
    Counterexample,
    Finding,
    GenerationReport,
    Replay,
    Report,
    ScenarioEvidence,
    conclude,
)
from migrate_vma_impl.generations import GENERATIONS, Generation
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import Clause
from migrate_vma_spec.registry import Progress as ProgressKind
from migrate_vma_spec.vocabulary import Capability

NOT_COVERED = (
    "weak memory order (the machine is sequentially consistent), interrupts, and NMIs",
    "more CPUs, pages, address spaces and operations than the scenarios name",
    "memory other than order-0 anonymous pages and the zero page: huge pages, files, swap, coherent memory, exclusive access",
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
    """One column of the table: a generation, with the driver as it is or in its adapted variant."""

    title: str
    generation: Generation
    adapted: bool = False
    patch: str = ""


def check(subject: str, generations: Sequence[Generation | str], options: CheckOptions, progress: Progress = silent) -> Report:
    """Check a driver by name. What `migrate-vma check` calls.

    Raises:
        UsageError: the driver, a generation or the patch cannot be found.
        Interrupted: Ctrl-C; it carries the report of what was found.
    """
    driver = find_driver(subject)
    return _check(driver, None, columns(driver, generations, options.patch), options, progress)


def check_driver(
    make_driver: MakeDriver | str,
    *,
    generation: str | Generation | Sequence[str | Generation] = "waiting",
    preemption: Preemption | Sequence[Preemption] = (Preemption.FULL, Preemption.VOLUNTARY),
    fairness: Fairness = Fairness.STRONG,
    profile: Profile = Profile.QUICK,
    seed: int = 0,
    jobs: int | None = None,
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
        progress: called as scenarios end.

    Returns:
        The report; `exit_code(report)` is what the command line would exit with.

    Raises:
        UsageError: a name that does not exist.
    """
    several = [generation] if isinstance(generation, (str, Generation)) else list(generation)
    models = (preemption,) if isinstance(preemption, Preemption) else tuple(preemption)
    options = CheckOptions(models, fairness, profile, seed, jobs or os.cpu_count() or 1)
    if isinstance(make_driver, str):
        return check(make_driver, several, options, progress)
    name = getattr(make_driver, "__name__", type(make_driver).__name__)
    driver = DriverSubject(name, make_driver, getattr(make_driver, "adapted", None))
    return _check(driver, make_driver, columns(driver, several, None), options, progress)


def check_core(
    make_core: MakeCore,
    *,
    generation: str | Generation = "waiting",
    driver: str = "test_hmm",
    profile: Profile = Profile.QUICK,
    fairness: Fairness = Fairness.STRONG,
    progress: Progress = silent,
) -> Report:
    """Check another core, `make_core(generation, config)`, with a driver of ours. Runs in this process.

    A core is a Kernel, or a class that replaces some of its functions by its own.
    """
    subject = find_driver(driver)
    found = find_generation(generation) if isinstance(generation, str) else generation
    options = CheckOptions(fairness=fairness, profile=profile)
    return _check(subject, subject.make, [Column(found.name, found)], options, progress, make_core)


def check_trace(trace: Iterable[Step], *, capabilities: frozenset[Capability]) -> dict[str, str]:
    """Judge a trace, wherever it comes from: the clauses that it breaks, each with a sentence that says how.

    The trace may be of any length; memory stays bounded by what is alive in it.
    """
    judge = Judge(capabilities)
    broken: dict[str, str] = {}
    for step in trace:
        broken.update(judge.feed(step))
    return broken


def columns(driver: DriverSubject, generations: Sequence[Generation | str], patch: str | None) -> list[Column]:
    """The table's columns. Where a generation hands its fault page over, a driver with an adapted variant is shown twice."""
    found: list[Column] = []
    for item in generations:
        for generation in GENERATIONS.values() if item == "all" else [find_generation(item) if isinstance(item, str) else item]:
            found.append(Column(generation.name, generation))
            if Capability.REFILL in generation.capabilities and driver.adapted is not None:
                found.append(Column(f"{generation.name}+adapted", generation, adapted=True))
    if patch is not None:
        record = load_patch(patch)
        found.append(Column(record.name if record.name not in GENERATIONS else f"{record.name}*", record, patch=patch))
    return found


def _check(
    driver: DriverSubject,
    make: MakeDriver | None,
    table: Sequence[Column],
    options: CheckOptions,
    progress: Progress,
    make_core: MakeCore | None = None,
) -> Report:
    begin = time.monotonic()
    work = [(column, unit) for column in table for unit in _units(driver, make, column, options, make_core)]
    outcomes: dict[int, Outcome] = {}
    interrupted = False
    try:
        for place, outcome in _run([unit for _, unit in work], options, inside=make is not None):
            outcomes[place] = outcome
            progress(Advance(work[place][0].title, outcome.unit.scenario, len(outcomes), len(work)))
    except KeyboardInterrupt:
        interrupted = True
    reports = tuple(
        GenerationReport(
            column.title,
            _conclude(column, [outcomes.get(n) or Outcome(u, failure="interrupted") for n, (c, u) in enumerate(work) if c is column]),
        )
        for column in table
    )
    command = f"migrate-vma check {driver.name} --seed {options.seed} --profile {options.profile.value}"
    report = Report(driver.name, reports, time.monotonic() - begin, options.seed, command, NOT_COVERED)
    if interrupted:
        raise Interrupted(report)
    return report


def _units(
    driver: DriverSubject, make: MakeDriver | None, column: Column, options: CheckOptions, make_core: MakeCore | None
) -> Iterator[Unit]:
    limits = LIMITS[options.profile]
    for scenario in SCENARIOS.values():
        if not (limits.every or scenario.quick):
            continue
        if column.adapted and scenario.driver is not None:
            continue
        for model in _models(scenario, options):
            yield Unit(
                driver.name,
                column.generation.name,
                scenario.name,
                model,
                options.fairness,
                column.adapted,
                column.patch,
                limits.states,
                limits.seconds,
                options.seed,
                driver.adapted if column.adapted and make is not None else make,
                make_core,
                column.generation if make is not None else None,
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
    seconds = 3 * LIMITS[options.profile].seconds + 30
    for place, result in run_all(units.run, work, jobs=options.jobs, seconds=seconds):
        yield place, Outcome(work[place], failure=result.reason) if isinstance(result, Lost) else result


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _conclude(column: Column, outcomes: Sequence[Outcome]) -> dict[str, ClauseVerdict]:
    return {clause.id: _verdict(clause, column.generation.capabilities, outcomes) for clause in clauses_by_id().values()}


def _verdict(clause: Clause, capabilities: frozenset[Capability], outcomes: Sequence[Outcome]) -> ClauseVerdict:
    findings: list[Finding] = []
    for outcome in outcomes:
        scenario = SCENARIOS[outcome.unit.scenario]
        example = next((example for example in outcome.examples if example.clause == clause.id), None)
        if outcome.skipped or (example is None and not scenario.is_evidence_for(clause.id)):
            continue
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


# ---- replay ----------------------------------------------------------------------------------------------------------


def replay(text: str, until: str | None = None, *, state: bool = False) -> Replay:
    """Run the schedule of a token (or of a file that holds one) again and judge it.

    Args:
        text: the token, or a path.
        until: stop at the first break of this clause; None: run the schedule to its end.
        state: also describe the state that the run ends in.

    Raises:
        UsageError: the text is no token, or names what does not exist here.
    """
    token = _read_token(text)
    if until is not None and until not in clauses_by_id():
        raise UsageError(until, "--until", "there is no such clause", "an id such as C31; `migrate-vma clauses` lists them")
    unit = _unit_of(token)
    subject = units.subject_of(unit)
    recording = record(subject, token.schedule, until=until, stacks=True)
    fairness = Fairness(token.fairness)
    sentence, cycle_start = recording.broken.get(token.clause), None
    clause = clauses_by_id()[token.clause]
    if token.schedule.cycle is not None and until is None:
        sentence, cycle_start = _replay_cycle(unit, subject, token, clause, fairness)
    elif clause.progress is not None and recording.stuck:
        sentence = "; ".join(recording.stuck)
    evidence = ScenarioEvidence(
        token.scenario, (), unit.preemption, fairness, len(recording.offsets), 1, complete=False, reached=True
    )
    example = None
    if sentence is not None:
        example = Counterexample(
            token.clause, text.strip(), sentence, recording.steps, recording.stacks, cycle_start,
            fairness if cycle_start is not None else None, token.scenario, len(token.schedule.switches), recording.first_step,
        )  # fmt: skip
    verdict = conclude(clause.id, clause.level, [Finding(evidence, example)])
    described = units.describe_state(subject, token.schedule) if state else ()
    title = f"{token.generation}+adapted" if unit.adapted else token.generation
    return Replay(
        text.strip(), unit.driver, title, verdict, recording.steps, recording.stacks, cycle_start, recording.first_step, described
    )


def _replay_cycle(
    unit: Unit, subject: Subject, token: Token, clause: Clause, fairness: Fairness
) -> tuple[str | None, int | None]:
    assert clause.progress is not None and token.schedule.cycle is not None  # noqa: S101, PT018  (a lasso's token)
    defaults = clause.progress is not ProgressKind.ENDLESS_RETRY
    found = check_cycle(subject.system, subject.preemption, token.schedule, fairness, defaults=defaults)
    if not found.recurs or not found.fair:
        return None, None
    recording = record(subject, token.schedule)
    cycle = token.schedule.cycle
    return lasso_sentence(clause.progress, fairness, recording, cycle), recording.offsets[cycle]


def _read_token(text: str) -> Token:
    source = "the token"
    path = Path(text)
    try:
        if not text.startswith("mv") and path.is_file():
            source = f"the token in {text}"
            text = path.read_text(encoding="utf-8").strip()
        token = decode(text)
    except (TokenError, OSError, UnicodeDecodeError) as error:
        raise UsageError(text, source, str(error), "a token as `migrate-vma check` prints it, or a file that holds one") from error
    for value, known, what in (
        (token.scenario, SCENARIOS, "scenario"),
        (token.clause, clauses_by_id(), "clause"),
        (token.preemption, {model.value for model in Preemption}, "preemption model"),
        (token.fairness, {fairness.value for fairness in Fairness}, "fairness"),
    ):
        if value not in known:
            raise UsageError(value, source, f"this release has no such {what}", f"one of: {', '.join(sorted(known))}")
    return token


def _unit_of(token: Token) -> Unit:
    driver, plus, _ = token.driver.partition("+adapted")
    return Unit(
        driver, token.generation, token.scenario, Preemption(token.preemption), Fairness(token.fairness), bool(plus), token.patch
    )
