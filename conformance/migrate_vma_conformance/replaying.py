"""Replay: the schedule of a token run again and judged, with the verdict that it had when it was found.

A driver or record of the caller's own runs in a child process with limits, as in a check.
"""

from __future__ import annotations

from attrs import frozen

from migrate_vma_conformance import unit as units
from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.errors import KitError, SubjectError, UsageError
from migrate_vma_conformance.explore.explain import Recording, Subject, lasso_sentence, record
from migrate_vma_conformance.explore.replay import check_cycle
from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.pool import Lost, run_one
from migrate_vma_conformance.report.files import token_of
from migrate_vma_conformance.scenarios import SCENARIOS, MakeCore
from migrate_vma_conformance.subject import FACTORY, RECORD, MakeDriver, find_generation, made, split
from migrate_vma_conformance.tokens import ABSENT, Token, TokenError, decode
from migrate_vma_conformance.unit import Unit
from migrate_vma_conformance.verdict import Counterexample, Finding, Replay, ScenarioEvidence, conclude
from migrate_vma_conformance.watch import forgotten_awaits
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.machine.automaton import ModelError
from migrate_vma_impl.machine.space import PrologueError
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import OperationBegan
from migrate_vma_spec.registry import Clause
from migrate_vma_spec.registry import Progress as ProgressKind

SECONDS = 120.0
"""What the replay of a driver that is not ours may take, wall clock."""


def replay(
    text: str,
    until: str | None = None,
    *,
    state: bool = False,
    make_driver: MakeDriver | None = None,
    generation: Generation | None = None,
    make_core: MakeCore | None = None,
    seconds: float = SECONDS,
) -> Replay:
    """Run the schedule of a token (or of a file that holds one) again and judge it.

    Args:
        text: the token, or a path.
        until: stop at the first break of this clause; None: run the schedule to its end. A cycle is judged whole all the same.
        state: also describe the state that the run ends in.
        make_driver: the driver's factory, if it exists in this process only. The replay then runs in this process.
        generation: the record, if it exists in this process only.
        make_core: the core, if the token is of one.
        seconds: what the replay of a driver that is not ours may take, wall clock.

    Raises:
        UsageError: the text is no token, or names what does not exist here.
        SubjectError: the driver could not be run.
    """
    token = _read(token_of(text))
    if until is not None and until not in judged_clauses():
        raise UsageError(until, "--until", "there is no such clause", "an id such as C31; `migrate-vma clauses` lists them")
    inside = make_driver is not None or generation is not None or make_core is not None
    if not inside:
        _check_names(token)
    request = _Request(token_of(text).strip(), token, until, state, _unit_of(token, make_driver, generation, make_core))
    ours = request.unit.driver in DRIVERS and not token.patch
    answer = _answer(request) if inside or ours else run_one(_answer, request, seconds=seconds)
    if isinstance(answer, Lost):
        raise SubjectError(request.unit.driver, answer.reason)
    if isinstance(answer, KitError):
        raise answer
    return answer


# ---- what a token names ----------------------------------------------------------------------------------------------

_SOURCE = "the token"


def _read(text: str) -> Token:
    try:
        token = decode(text)
    except TokenError as error:
        expected = "a token as `migrate-vma check` prints it, or a file that holds one"
        raise UsageError(text, _SOURCE, str(error), expected) from error
    for value, known, what in (
        (token.scenario, SCENARIOS, "scenario"),
        (token.clause, judged_clauses(), "clause"),
        (token.preemption, {model.value for model in Preemption}, "preemption model"),
        (token.fairness, {fairness.value for fairness in Fairness}, "fairness"),
    ):
        if value not in known:
            raise UsageError(value, _SOURCE, f"this release has no such {what}", f"one of: {', '.join(sorted(known))}")
    return token


def _check_names(token: Token) -> None:
    """What must be found by its name can be."""
    driver = _driver_of(token)
    if driver not in DRIVERS:
        split(driver, _SOURCE, FACTORY)
    if token.patch.startswith(ABSENT):
        problem = "it is of a generation or core that only the program which made it has"
        raise UsageError(token.patch, _SOURCE, problem, "kit.replay with that generation or core as an argument")
    if token.patch:
        split(token.patch, _SOURCE, RECORD)
    else:
        find_generation(token.generation, _SOURCE)


def _driver_of(token: Token) -> str:
    return token.driver.removesuffix("+adapted")


def _unit_of(token: Token, make: MakeDriver | None, generation: Generation | None, make_core: MakeCore | None) -> Unit:
    return Unit(
        _driver_of(token),
        token.generation,
        token.scenario,
        Preemption(token.preemption),
        Fairness(token.fairness),
        token.driver.endswith("+adapted"),
        token.patch,
        make=make,
        record=generation,
        make_core=make_core,
    )


# ---- the replay itself, here or in a child ---------------------------------------------------------------------------


@frozen
class _Request:
    text: str
    token: Token
    until: str | None
    state: bool
    unit: Unit


def _answer(request: _Request) -> Replay | KitError:
    try:
        return _replayed(request)
    except KitError as error:
        return error
    except (ModelError, PrologueError, units.Skipped) as trouble:
        return SubjectError(request.unit.driver, str(trouble))
    except SystemExit as end:
        return SubjectError(request.unit.driver, f"it ended the program (SystemExit: {end})")


def _replayed(request: _Request) -> Replay:
    unit, token = request.unit, request.token
    with forgotten_awaits(made) as forgotten:
        subject = units.subject_of(unit)
        recording = record(subject, token.schedule, until=request.until, stacks=True)
        sentence, cycle_start = _judged(subject, token, recording)
        described = units.describe_state(subject, token.schedule) if request.state else ()
    fairness = Fairness(token.fairness)
    clause = judged_clauses()[token.clause]
    evidence = ScenarioEvidence(
        token.scenario, (), unit.preemption, fairness, len(recording.offsets), 1, complete=False, reached=True
    )
    example = None
    if sentence is not None:
        example = Counterexample(
            clause.id, request.text, sentence, recording.steps, recording.stacks, cycle_start,
            fairness if cycle_start is not None else None, token.scenario, len(token.schedule.switches), recording.first_step,
        )  # fmt: skip
    failure = "; ".join((*forgotten, *recording.errors))
    verdict = conclude(clause.id, clause.level, [Finding(evidence, example, failure)])
    title = f"{token.generation}+adapted" if unit.adapted else token.generation
    return Replay(
        request.text, unit.driver, title, verdict, recording.steps, recording.stacks, cycle_start, recording.first_step, described
    )


def _judged(subject: Subject, token: Token, recording: Recording) -> tuple[str | None, int | None]:
    """How the run breaks the token's clause, and at which step of the trace its cycle begins, if that was shown."""
    clause = judged_clauses()[token.clause]
    if clause.progress is not None and token.schedule.cycle is not None:
        return _judged_cycle(subject, token, clause, recording, token.schedule.cycle)
    if clause.progress is not None and recording.stuck:
        return "; ".join(recording.stuck), None
    return recording.broken.get(token.clause), None


def _judged_cycle(
    subject: Subject, token: Token, clause: Clause, recording: Recording, cycle: int
) -> tuple[str | None, int | None]:
    """A cycle is run by itself, whole: what was recorded may have stopped before its end."""
    fairness = Fairness(token.fairness)
    defaults = clause.progress is not ProgressKind.ENDLESS_RETRY
    found = check_cycle(subject.system, subject.preemption, token.schedule, fairness, defaults=defaults)
    if clause.progress is None or not found.recurs or not found.fair:
        return None, None
    whole = record(subject, token.schedule)
    turn = whole.steps[whole.offsets[cycle] :]
    if any(isinstance(step.event, OperationBegan) for step in turn) or (clause.cycle is not None and not clause.cycle(turn)):
        return None, None
    shown = recording.offsets[cycle] if cycle < len(recording.offsets) else None
    return lasso_sentence(clause.progress, fairness, whole, cycle), shown
