"""The reports for people, whole: of a check, and of a replay.

Rules:
- No line is wider than 80 columns, but for nothing: a long command is continued as a shell continues it.
- The text is plain. Colour is added by the command line, on a terminal alone.
- What no verdict speaks of is said with the verdicts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from migrate_vma_conformance.report.columns import Execution
from migrate_vma_conformance.report.columns import render as render_columns
from migrate_vma_conformance.report.layout import labelled, paragraph, shell_command
from migrate_vma_conformance.report.splat import replay_command, splat
from migrate_vma_conformance.report.table import clause_key, evidence_table, runs, verdict_table
from migrate_vma_conformance.verdict import ClauseVerdict, GenerationReport, Replay, Report, Verdict, exit_code
from migrate_vma_spec.registry import Clause, Level


def render_report(report: Report, clauses: Mapping[str, Clause], *, strict: bool = False, verbose: bool = False) -> list[str]:
    """A check: the table, its evidence, what is unknown and why, each violation, what is not covered, the result."""
    parts = [
        _heading(report),
        verdict_table(report, clauses, verbose=verbose),
        evidence_table(report, verbose=verbose),
        list(_unknown(report)),
        *(lines for generation in report.generations for lines in _violations(report.subject, generation, clauses)),
        list(_not_covered(report.not_covered)),
        result(report, strict=strict),
    ]
    return _joined(parts)


def render_replay(replay: Replay, clauses: Mapping[str, Clause], *, show_all: bool = False) -> list[str]:
    """A replay: its columns, with the verdict around them; then the state in which it ended, where that was asked for."""
    verdict, clause = replay.verdict, clauses.get(replay.verdict.clause)
    found = [
        *labelled("driver", replay.subject),
        *labelled("generation", replay.generation),
        *labelled("clause", f"{verdict.clause} {clause.name if clause is not None else ''}".rstrip()),
        *labelled("verdict", _told(verdict)),
    ]
    example = verdict.counterexample
    if example is not None:
        found += labelled("what", example.sentence)
    execution = Execution(replay.steps, replay.stacks, replay.first_step, replay.cycle_start)
    state = ["State at the end:", *(line for text in replay.state for line in paragraph(text, indent="  ", hang="    "))]
    again = shell_command(replay_command(replay.token))
    return _joined([found, render_columns(execution, show_all=show_all), state if replay.state else [], again])


def ordered(generation: GenerationReport) -> list[ClauseVerdict]:
    """The verdicts of a generation in the order of their clauses."""
    return [generation.clauses[clause] for clause in sorted(generation.clauses, key=clause_key)]


def result(report: Report, *, strict: bool = False) -> list[str]:
    """The outcome in a sentence, with the exit code that says the same."""
    words = [
        _count(report, "a MUST is violated", Verdict.VIOLATED, Level.MUST),
        _count(report, "a SHOULD is violated", Verdict.VIOLATED, Level.SHOULD),
        _count(report, "unknown", Verdict.INCONCLUSIVE, None),
    ]
    said = "; ".join(word for word in words if word) or "nothing violated"
    return paragraph(f"Result: {said}. Exit code {exit_code(report, strict=strict)}.", hang="  ")


def _count(report: Report, title: str, outcome: Verdict, level: Level | None) -> str:
    """`a MUST is violated: unreferenced C41 C50, referenced C84`; empty where nothing is."""
    found: list[str] = []
    for generation in report.generations:
        ids = [each.clause for each in generation.clauses.values() if each.verdict is outcome and level in {None, each.level}]
        if ids:
            found.append(f"{generation.name} {' '.join(runs(ids))}")
    return f"{title}: {', '.join(found)}" if found else ""


def _told(verdict: ClauseVerdict) -> str:
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{verdict.verdict.value}, a {verdict.level.name}{reason}"


def _heading(report: Report) -> list[str]:
    many = len(report.generations) > 1
    return [
        *labelled("driver", report.subject),
        *labelled("generations" if many else "generation", ", ".join(each.name for each in report.generations)),
        *labelled("run", f"seed {report.seed}, {report.seconds:.1f} s"),
        *shell_command(f"  again       {report.command}"),
    ]


def _violations(subject: str, generation: GenerationReport, clauses: Mapping[str, Clause]) -> Iterator[list[str]]:
    """Each violation; an execution that breaks several clauses is shown once."""
    shown: dict[tuple[object, ...], str] = {}
    for verdict in ordered(generation):
        example = verdict.counterexample
        if example is not None:
            first = shown.setdefault((example.steps, example.cycle_start), verdict.clause)
            seen = None if first == verdict.clause else first
            yield splat(verdict, subject, generation.name, clauses.get(verdict.clause), seen)


def _unknown(report: Report) -> Iterator[str]:
    """Why what is unknown is unknown, once per reason."""
    reasons: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for generation in report.generations:
        for verdict in generation.clauses.values():
            if verdict.verdict is Verdict.INCONCLUSIVE:
                reasons[generation.name, verdict.reason].append(verdict.clause)
    for (name, reason), ids in reasons.items():
        yield from paragraph(f"Unknown in {name}: {' '.join(runs(ids))}: {reason}", hang="  ")


def _not_covered(words: tuple[str, ...]) -> Iterator[str]:
    if words:
        yield "No verdict here covers:"
    for word in words:
        yield from paragraph(word, indent="- ", hang="  ")


def _joined(parts: list[list[str]]) -> list[str]:
    """The parts that have lines, with an empty line between them."""
    lines: list[str] = []
    for part in filter(None, parts):
        lines += ["", *part] if lines else part
    return lines
