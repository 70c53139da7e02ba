"""The collection of bugs and the kill matrix, as text and as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from migrate_vma_conformance.kill_matrix import Fate, Matrix, Row
from migrate_vma_conformance.report.layout import paragraph, short
from migrate_vma_impl.bugs.bug import Bug, NotShown


def bug_document(bug: Bug) -> dict[str, Any]:
    """A row of the collection as JSON values."""
    return {
        "id": bug.id,
        "title": bug.title,
        "sentence": bug.sentence,
        "clauses": list(bug.clauses),
        "generation": bug.record.name,
        "driver": bug.driver,
        "commit": bug.commit or None,
        "year": bug.year,
        "kernels": bug.kernels or None,
    }


def bug_lines(bugs: Iterable[Bug], not_shown: Iterable[NotShown]) -> list[str]:
    """The collection in short, and what is known and not in it."""
    lines: list[str] = []
    for bug in bugs:
        known = ", ".join(filter(None, (str(bug.year or ""), bug.commit, bug.kernels)))
        where = f"caught by {' or '.join(bug.clauses)}, on {bug.record.name}{f' ({known})' if known else ''}"
        lines += paragraph(f"{bug.id}  {bug.title}", hang="     ")
        lines += paragraph(bug.sentence, indent="     ")
        lines += paragraph(where, indent="     ")
    lines += ["", "Known, and not shown here:"]
    for row in not_shown:
        lines += paragraph(f"  {row.id}  {row.title}: {row.reason}", hang="       ")
    return lines


def matrix_document(matrix: Matrix, clauses: Iterable[str]) -> dict[str, Any]:
    """The matrix as JSON values."""
    return {
        "bugs": [_row_document(row) for row in matrix.rows],
        "unguarded": matrix.unguarded(clauses),
        "complete": not matrix.interrupted,
    }


def _row_document(row: Row) -> dict[str, Any]:
    kills = {
        kill.clause: {"scenario": kill.scenario, "steps": kill.steps, "switches": kill.switches, "token": kill.token}
        for kill in row.kills
    }
    return {
        **bug_document(row.bug),
        "fate": row.fate.value,
        "kills": kills,
        "states": row.states,
        "seconds": round(row.seconds, 3),
        "failures": list(row.failures),
    }


_HEAD = f"{'bug':<28} {'fate':<8} {'first in':<15} {'states':>8} {'s':>5} {'steps':>5} {'sw':>3}"


def matrix_lines(matrix: Matrix, clauses: Sequence[str]) -> list[str]:
    """A row for each bug, under it the clauses that fired; its own first."""
    lines = [_HEAD, " ".join("-" * len(word) for word in ("-" * 28, "-" * 8, "-" * 15, "-" * 8, "-" * 5, "-" * 5, "-" * 3))]
    for row in matrix.rows:
        lines += _row_lines(row)
    fates = {fate: sum(row.fate is fate for row in matrix.rows) for fate in Fate}
    lines += ["", ", ".join(f"{count} {fate.value}" for fate, count in fates.items())]
    lines += [
        "",
        *paragraph("first in, states, s: the scenario of the first kill, and what was searched until then, with it", hang="  "),
    ]
    lines += paragraph("steps, sw: the shrunk counterexample there, its steps and context switches", hang="  ")
    lines += ["", *paragraph(f"Guarded by none of these bugs: {' '.join(matrix.unguarded(clauses)) or 'no clause'}", hang="  ")]
    if matrix.interrupted:
        lines += ["", "Interrupted: what is not in the table was not searched."]
    return lines


def _row_lines(row: Row) -> list[str]:
    own = sorted(row.kills, key=lambda kill: (kill.clause not in row.bug.clauses, kill.clause))
    if not own:
        lines = [f"{row.bug.id:<28} {row.fate.name:<8} {'-':<15} {short(row.states):>8} {row.seconds:>5.1f}"]
    else:
        best = own[0]
        figures = f"{best.scenario:<15} {short(row.states):>8} {row.seconds:>5.1f} {best.steps:>5} {best.switches:>3}"
        fate = row.fate.value if row.fate is Fate.CAUGHT else row.fate.name
        lines = [f"{row.bug.id:<28} {fate:<8} {figures}"]
    wanted = " or ".join(row.bug.clauses)
    fired = " ".join(kill.clause for kill in own) or "none"
    lines += paragraph(f"  {row.bug.title}; wanted {wanted}, fired {fired}", hang="    ")
    for failure in row.failures[:1] if not own else ():
        lines += paragraph(f"  {failure}", hang="    ")
    return lines
