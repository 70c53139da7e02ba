"""The reports for people, whole: of a check, and of a replay.

Rules:
- No line is wider than 80 columns, but for nothing: a long command is continued as a shell continues it.
- The text is plain. Colour is added by the command line, on a terminal alone.
- What no verdict speaks of is said with the verdicts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from migrate_vma_conformance.report.cases import by_clause, cases, drawn_with, played_by
from migrate_vma_conformance.report.columns import render as render_columns
from migrate_vma_conformance.report.execution import Execution
from migrate_vma_conformance.report.layout import labelled, paragraph, shell_command
from migrate_vma_conformance.report.outcome import column_sentence, result_sentence
from migrate_vma_conformance.report.splat import replay_command, splat, why_for_ever
from migrate_vma_conformance.report.table import clause_key, evidence_table, runs, verdict_table
from migrate_vma_conformance.verdict import ClauseVerdict, GenerationReport, Replay, Report, Verdict
from migrate_vma_spec.registry import Clause


def render_report(report: Report, clauses: Mapping[str, Clause], *, strict: bool = False, verbose: bool = False) -> list[str]:
    """A check: the table, its evidence, what is unknown and why, each violation, what is not covered, the result."""
    parts = [
        _heading(report),
        verdict_table(report, clauses, verbose=verbose),
        evidence_table(report, verbose=verbose),
        list(_unknown(report)),
        *_violations(report, clauses, verbose=verbose),
        list(_not_covered(report.not_covered)),
        paragraph(result_sentence(report, strict=strict), hang="  "),
    ]
    return _joined(parts)


def render_replay(replay: Replay, clauses: Mapping[str, Clause], *, show_all: bool = False) -> list[str]:
    """A replay: its columns, with the verdict around them; then the state in which it ended, where that was asked for."""
    verdict, clause = replay.verdict, clauses.get(replay.verdict.clause)
    found = [
        *labelled("driver", _player(replay)),
        *labelled("generation", replay.generation),
        *labelled("clause", f"{verdict.clause} {clause.name if clause is not None else ''}".rstrip()),
        *labelled("verdict", _told(verdict)),
    ]
    example = verdict.counterexample
    if example is not None:
        found += labelled("what", example.sentence)
    waiting = clause is not None and clause.progress is not None
    execution = Execution(replay.steps, replay.stacks, replay.first_step, replay.cycle_start, waiting)
    ever = why_for_ever(example, clause) if example is not None else ""
    state = ["State at the end:", *(line for text in replay.state for line in paragraph(text, indent="  ", hang="    "))]
    again = shell_command(replay_command(replay.token))
    return _joined([found, render_columns(execution, show_all=show_all, ever=ever), state if replay.state else [], again])


def _player(replay: Replay) -> str:
    """Who played the driver: in some scenarios not the one under test."""
    scenario = next((evidence.name for evidence in replay.verdict.scenarios), "")
    player = played_by(scenario, replay.subject)
    return player if player == replay.subject else f"{player}, which scenario {scenario} is always played with"


def ordered(generation: GenerationReport) -> list[ClauseVerdict]:
    """The verdicts of a generation in the order of their clauses."""
    return [generation.clauses[clause] for clause in sorted(generation.clauses, key=clause_key)]


def _told(verdict: ClauseVerdict) -> str:
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{verdict.verdict.value}, a {verdict.level.name}{reason}"


def _heading(report: Report) -> list[str]:
    names = [generation.name for generation in report.generations]
    return [
        *labelled("driver", report.subject),
        *labelled("generation" if len(names) == 1 else "generations", ", ".join(names)),
        *labelled("run", f"seed {report.seed}, {report.seconds:.1f} s"),
        *shell_command(f"  again       {report.command}"),
        "",
        *(line for name in names for line in labelled(name, column_sentence(name), column=24) if column_sentence(name)),
    ]


def _violations(report: Report, clauses: Mapping[str, Clause], *, verbose: bool) -> Iterator[list[str]]:
    """Each clause that is broken, drawn for one column; under `verbose` each column that breaks it."""
    groups = [[case] for case in cases(report)] if verbose else by_clause(cases(report))
    drawn = [case for case, *_ in groups]
    for at, (case, *others) in enumerate(groups):
        lines = splat(case, clauses.get(case.clause), also=others, drawn=drawn_with(case, drawn))
        yield lines if at == len(groups) - 1 else lines[:-1]


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
