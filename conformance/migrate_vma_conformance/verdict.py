"""What is known of a clause, and on what evidence. The only module that may say that a clause holds.

Rules:
- `conclude` alone makes verdicts, from what each scenario showed; every report and the exit code read the same records.
- HOLDS means: at least one scenario reached the clause, and every scenario was exhausted within its stated bound. A scenario that
  was cut short might have reached the clause in the part that nobody saw, so it forbids HOLDS, seen to reach it or not.
- A progress clause is judged on whole state graphs: where one was cut short there is no verdict but a violation.
- An unknown is never a pass: INCONCLUSIVE has its own exit code.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve, field, frozen

from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import Step
from migrate_vma_spec.registry import Level
from migrate_vma_spec.vocabulary import Capability


class Verdict(enum.Enum):
    """What is known of a clause for a subject."""

    HOLDS = "holds"
    NO_VIOLATION = "no-violation"
    VIOLATED = "violated"
    NEVER_REACHED = "never-reached"
    NOT_APPLICABLE = "not-applicable"
    INCONCLUSIVE = "inconclusive"


class EvidenceKind(enum.Enum):
    """What a verdict rests on."""

    EXHAUSTIVE = "exhaustive"
    SAMPLED = "sampled"
    COUNTEREXAMPLE = "counterexample"
    NONE = "none"


@frozen
class ScenarioEvidence:
    """What one scenario gave. `complete`: every state within its bound was visited; `reached`: the clause applied in it.

    `counterexample` is the token of the execution in it that breaks the clause; empty where none does.
    """

    name: str
    tasks: tuple[str, ...]
    preemption: Preemption
    fairness: Fairness
    states: int
    executions: int
    complete: bool
    reached: bool
    note: str = ""
    counterexample: str = ""


@frozen
class Counterexample:
    """An execution that breaks a clause, and the token that replays it.

    `stacks` names the kernel functions that each step ran in, outermost first. The steps before `first_step` built the first
    state; those from `cycle_start` on repeat for ever. `switches` counts the changes of task that the schedule forces.
    """

    clause: str
    token: str
    sentence: str
    steps: tuple[Step, ...]
    stacks: tuple[tuple[str, ...], ...]
    cycle_start: int | None
    fairness: Fairness | None
    scenario: str
    switches: int
    first_step: int = 0
    preemption: Preemption | None = None


@frozen
class Finding:
    """What the search of one scenario says of one clause.

    `failure` says why it says nothing (a limit, a driver that raised). `holds_under`, of a progress clause, is the weakest
    fairness under which this scenario always makes progress.
    """

    evidence: ScenarioEvidence
    counterexample: Counterexample | None = None
    failure: str = ""
    holds_under: Fairness | None = None


@frozen
class ClauseVerdict:
    """The verdict on one clause. `holds_under` is the weakest fairness under which a progress clause holds."""

    clause: str
    verdict: Verdict
    level: Level
    evidence: EvidenceKind
    executions: int
    scenarios: tuple[ScenarioEvidence, ...]
    counterexample: Counterexample | None = None
    holds_under: Fairness | None = None
    reason: str = ""

    def __attrs_post_init__(self) -> None:
        if self.verdict is Verdict.HOLDS and not _exhausted(self.scenarios):
            raise ValueError(f"{self.clause}: `holds` without exhausted scenarios: {self.scenarios}")
        if (self.verdict is Verdict.VIOLATED) != (self.counterexample is not None):
            raise ValueError(f"{self.clause}: `{self.verdict.value}` and counterexample {self.counterexample} contradict")


@frozen
class GenerationReport:
    """The verdicts on one generation, by clause id."""

    name: str
    clauses: Mapping[str, ClauseVerdict] = field(hash=False)


@frozen
class Report:
    """What a check found. `command` repeats it; `not_covered` says what no verdict in it speaks of."""

    subject: str
    generations: tuple[GenerationReport, ...]
    seconds: float
    seed: int
    command: str
    not_covered: tuple[str, ...]

    @property
    def verdicts(self) -> tuple[ClauseVerdict, ...]:
        return tuple(verdict for generation in self.generations for verdict in generation.clauses.values())


@frozen
class Replay:
    """One schedule run again. The verdict is on the clause that the token names, from this one execution."""

    token: str
    subject: str
    generation: str
    verdict: ClauseVerdict
    steps: tuple[Step, ...]
    stacks: tuple[tuple[str, ...], ...]
    cycle_start: int | None = None
    first_step: int = 0
    state: tuple[str, ...] = ()


def conclude(
    clause: str,
    level: Level,
    findings: Sequence[Finding],
    *,
    missing: Iterable[Capability] = (),
    progress: bool = False,
) -> ClauseVerdict:
    """What the findings of all scenarios say of a clause.

    Args:
        clause: its id.
        level: MUST or SHOULD.
        findings: one for each scenario that was searched.
        missing: the capabilities that the clause requires and the subject lacks.
        progress: whether it is judged on cycles, so that a search that was cut short shows nothing.
    """
    scenarios = tuple(_with_token(finding) for finding in findings)
    executions = sum(scenario.executions for scenario in scenarios)

    def verdict(
        outcome: Verdict,
        evidence: EvidenceKind,
        reason: str = "",
        example: Counterexample | None = None,
        under: Fairness | None = None,
    ) -> ClauseVerdict:
        return ClauseVerdict(clause, outcome, level, evidence, executions, scenarios, example, under, reason)

    lacking = sorted(capability.value for capability in missing)
    if lacking:
        reason = f"the subject does not have: {'; '.join(lacking)}"
        return ClauseVerdict(clause, Verdict.NOT_APPLICABLE, level, EvidenceKind.NONE, 0, (), reason=reason)
    examples = [finding.counterexample for finding in findings if finding.counterexample is not None]
    if examples:
        return verdict(Verdict.VIOLATED, EvidenceKind.COUNTEREXAMPLE, example=min(examples, key=simplicity))
    done = EvidenceKind.NONE if not executions else _kind(scenarios)
    failures = _failures(findings)
    if failures:
        return verdict(Verdict.INCONCLUSIVE, done, failures)
    if not any(scenario.reached for scenario in scenarios):
        return verdict(Verdict.NEVER_REACHED, done, "no scenario that was run concerns it")
    if _exhausted(scenarios):
        return verdict(Verdict.HOLDS, EvidenceKind.EXHAUSTIVE, under=_weakest(findings))
    cut = _some([scenario.name for scenario in scenarios if not scenario.complete])
    if progress:
        return verdict(Verdict.INCONCLUSIVE, done, f"progress is judged on whole state graphs; cut short: {cut}")
    return verdict(Verdict.NO_VIOLATION, EvidenceKind.SAMPLED, f"not exhausted: {cut}")


@frozen
class Recorded:
    """What one recorded execution of a real kernel says of a clause.

    `unjudged` says why it cannot be judged by this clause, `failure` why what it shows cannot be relied on.
    """

    reached: bool = False
    unjudged: str = ""
    failure: str = ""
    counterexample: Counterexample | None = None


def conclude_recorded(
    clause: str, level: Level, recordings: Sequence[Recorded], *, missing: Iterable[Capability] = ()
) -> ClauseVerdict:
    """What recorded executions say of a clause. They are samples: that none breaks it never shows that it holds."""
    lacking = "; ".join(sorted(capability.value for capability in missing))
    executions = sum(not recorded.unjudged for recorded in recordings)
    kind = EvidenceKind.SAMPLED if executions else EvidenceKind.NONE
    example = next((recorded.counterexample for recorded in recordings if recorded.counterexample is not None), None)
    failure = next((recorded.failure for recorded in recordings if recorded.failure), "")
    unjudged = next((recorded.unjudged for recorded in recordings if recorded.unjudged), "")
    if lacking:
        outcome, kind, executions, reason = Verdict.NOT_APPLICABLE, EvidenceKind.NONE, 0, f"the subject does not have: {lacking}"
    elif example is not None:
        outcome, kind, reason = Verdict.VIOLATED, EvidenceKind.COUNTEREXAMPLE, ""
    elif failure:
        outcome, reason = Verdict.INCONCLUSIVE, failure
    elif any(recorded.reached for recorded in recordings):
        outcome, reason = Verdict.NO_VIOLATION, "what was recorded, and nothing else"
    else:
        outcome, reason = Verdict.NEVER_REACHED, "nothing that was recorded concerns it" if executions else unjudged
    return ClauseVerdict(clause, outcome, level, kind, executions, (), example, None, reason)


def _with_token(finding: Finding) -> ScenarioEvidence:
    example = finding.counterexample
    return finding.evidence if example is None else evolve(finding.evidence, counterexample=example.token)


def simplicity(example: Counterexample) -> tuple[int, int, int, str]:
    """Sorts the counterexample first that a reader follows most easily."""
    tasks = {step.task for step in example.steps[example.first_step :]}
    return example.switches, len(tasks), len(example.steps), example.token


EXIT_FINE, EXIT_VIOLATED, EXIT_USAGE, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def exit_code(report: Report, *, strict: bool = False) -> int:
    """The exit code of a check: of several generations the worst. A violation is worse than an unknown."""
    return exit_of(report.verdicts, strict=strict)


def exit_of(verdicts: Iterable[ClauseVerdict], *, strict: bool = False) -> int:
    """1 where a MUST is violated (under `strict` also a SHOULD), else 3 where a verdict is inconclusive, else 0."""
    codes = {_exit(verdict, strict) for verdict in verdicts}
    return next((code for code in (EXIT_VIOLATED, EXIT_INCONCLUSIVE) if code in codes), EXIT_FINE)


def _exit(verdict: ClauseVerdict, strict: bool) -> int:
    if verdict.verdict is Verdict.INCONCLUSIVE:
        return EXIT_INCONCLUSIVE
    binding = strict or verdict.level is Level.MUST
    return EXIT_VIOLATED if verdict.verdict is Verdict.VIOLATED and binding else EXIT_FINE


def _exhausted(scenarios: Sequence[ScenarioEvidence]) -> bool:
    return any(scenario.reached for scenario in scenarios) and all(scenario.complete for scenario in scenarios)


def _kind(scenarios: Sequence[ScenarioEvidence]) -> EvidenceKind:
    return EvidenceKind.EXHAUSTIVE if all(scenario.complete for scenario in scenarios) else EvidenceKind.SAMPLED


def _weakest(findings: Sequence[Finding]) -> Fairness | None:
    """Where one scenario needs strong fairness, the clause does."""
    needed = {finding.holds_under for finding in findings if finding.evidence.reached and finding.holds_under is not None}
    return next((fairness for fairness in (Fairness.STRONG, Fairness.WEAK) if fairness in needed), None)


def _failures(findings: Sequence[Finding]) -> str:
    """Each reason once, with the scenarios that failed for it."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.failure:
            reasons.setdefault(finding.failure, []).append(finding.evidence.name)
    return "; ".join(f"{_some(list(dict.fromkeys(names)))}: {reason}" for reason, names in reasons.items())


def _some(words: Sequence[str], limit: int = 3) -> str:
    rest = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + rest
