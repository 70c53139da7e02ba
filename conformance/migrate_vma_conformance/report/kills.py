"""The collection of bugs and the kill matrix, as text and as JSON values."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import fields

from migrate_vma_conformance.kill_matrix import Fate, Kill, Matrix, Row
from migrate_vma_conformance.report.layout import paragraph, short
from migrate_vma_conformance.subject import find_generation
from migrate_vma_impl.bugs.bug import Bug, NotShown
from migrate_vma_impl.bugs.collection import NOT_ALONE
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.steps import Steps


def how(bug: Bug) -> str:
    """What is put in the place of what: parts of the generation, steps of the core, the driver."""
    sound = find_generation(bug.record.name)
    changes = [*_changes(Generation, sound, bug.record), *_changes(Steps, sound.steps, bug.record.steps)]
    return ", ".join(changes + ([f"driver {bug.driver}"] if bug.driver != bug.beside or not changes else []))


def _changes(kind: type[Any], sound: Any, broken: Any) -> list[str]:
    names = [each.name for each in fields(kind) if each.name != "steps"]
    return [f"{name}: {_name_of(getattr(broken, name))}" for name in names if getattr(broken, name) != getattr(sound, name)]


def _name_of(part: object) -> str:
    return str(getattr(part, "__name__", part))


def bug_document(bug: Bug) -> dict[str, Any]:
    """A row of the collection as JSON values."""
    return {
        "id": bug.id,
        "shown": True,
        "title": bug.title,
        "sentence": bug.sentence,
        "clauses": list(bug.clauses),
        "generations": [bug.record.name],
        "kernels": bug.kernels or None,
        "commit": bug.commit or None,
        "year": bug.year,
        "driver": bug.driver,
        "how": how(bug),
    }


def not_shown_document(row: NotShown) -> dict[str, Any]:
    """A known bug that is not put back, as JSON values: `how` is why not."""
    return {
        "id": row.id,
        "shown": False,
        "title": row.title,
        "sentence": None,
        "clauses": list(row.clauses),
        "generations": [],
        "kernels": None,
        "commit": row.commit or None,
        "year": row.year,
        "driver": None,
        "how": row.reason,
    }


def collection_document(bugs: Iterable[Bug], not_shown: Iterable[NotShown]) -> list[dict[str, Any]]:
    """The collection: a list of rows, those that are not shown at its end."""
    return [*map(bug_document, bugs), *map(not_shown_document, not_shown)]


def bug_lines(bugs: Iterable[Bug], not_shown: Iterable[NotShown]) -> list[str]:
    """The collection in short, and what is known and not in it."""
    lines: list[str] = []
    for bug in bugs:
        known = ", ".join(filter(None, (str(bug.year or ""), bug.commit, bug.kernels)))
        where = f"caught by {' or '.join(bug.clauses)}, on {bug.record.name}{f' ({known})' if known else ''}"
        lines += paragraph(f"{bug.id}  {bug.title}", hang="     ")
        lines += paragraph(bug.sentence, indent="     ")
        lines += paragraph(where, indent="     ")
        lines += paragraph(f"put back as {how(bug)}", indent="     ")
    left_out = list(not_shown)
    if left_out:
        lines += ["", "Known, and not shown here:"]
    for row in left_out:
        lines += paragraph(f"  {row.id}  {row.title}: {row.reason}", hang="       ")
    return lines


# ---- the matrix ------------------------------------------------------------------------------------------------------


def median_seconds(matrix: Matrix) -> float | None:
    """The median time to the first failure, of those bugs that made anything fail."""
    times = [row.seconds for row in matrix.rows if row.kills]
    return statistics.median(times) if times else None


def matrix_document(matrix: Matrix, clauses: Iterable[str]) -> dict[str, Any]:
    """The matrix as JSON values. `unguarded` are the clauses that none of these bugs broke alone or first, `reasons` says why."""
    unguarded = matrix.unguarded(clauses)
    median = median_seconds(matrix)
    return {
        "bugs": [_row_document(row) for row in matrix.rows],
        "unguarded": unguarded,
        "reasons": {clause: NOT_ALONE[clause] for clause in unguarded if clause in NOT_ALONE},
        "seconds": round(matrix.seconds, 3),
        "median_seconds": None if median is None else round(median, 3),
        "complete": not matrix.interrupted,
    }


def _row_document(row: Row) -> dict[str, Any]:
    kills = {
        kill.clause: {
            "scenario": kill.scenario,
            "steps": kill.steps,
            "switches": kill.switches,
            "early": kill.early,
            "token": kill.token,
        }
        for kill in row.kills
    }
    return {
        **bug_document(row.bug),
        "fate": row.fate.value,
        "kills": kills,
        "states": row.states,
        "executions": row.executions,
        "seconds": round(row.seconds, 3),
        "total": round(row.total, 3),
        "failures": list(row.failures),
    }


_WORDS, _FIGURES = (28, 8, 17), (8, 5, 5, 3)
_TITLES = ("bug", "fate", "first in", "execut.", "s", "steps", "sw")


def _line(*words: str) -> str:
    """Words to the left, figures to the right."""
    left = [f"{word:<{width}}" for word, width in zip(words[: len(_WORDS)], _WORDS, strict=True)]
    right = [f"{word:>{width}}" for word, width in zip(words[len(_WORDS) :], _FIGURES, strict=True)]
    return " ".join(left + right).rstrip()


def matrix_lines(matrix: Matrix, clauses: Sequence[str]) -> list[str]:
    """A row for each bug, under it the clauses that fired, in the order of their appearance."""
    lines = [_line(*_TITLES), _line(*("-" * width for width in (*_WORDS, *_FIGURES)))]
    for row in matrix.rows:
        lines += _row_lines(row)
    fates = {fate: sum(row.fate is fate for row in matrix.rows) for fate in Fate}
    median = median_seconds(matrix)
    took = [f"{matrix.seconds:.0f} s in all", *([] if median is None else [f"the median first failure within {median:.2f} s"])]
    lines += ["", ", ".join(f"{count} {fate.value}" for fate, count in fates.items()), "; ".join(took), ""]
    lines += paragraph(
        "first in, execut., s: the scenario of the first failure, and what was searched until then, with it", hang="  "
    )
    lines += paragraph("steps, sw: the shrunk counterexample to a clause of its own, its steps and context switches", hang="  ")
    lines += ["", *_unguarded_lines(matrix, clauses)]
    if matrix.interrupted:
        lines += ["", "Interrupted: what is not in the table was not searched."]
    return lines


def _unguarded_lines(matrix: Matrix, clauses: Sequence[str]) -> list[str]:
    unguarded = matrix.unguarded(clauses)
    bare = [clause for clause in unguarded if clause not in NOT_ALONE]
    lines = paragraph(f"Broken by none of these bugs alone or first: {' '.join(bare) or 'no clause'}", hang="  ")
    for clause in unguarded:
        if clause in NOT_ALONE:
            lines += paragraph(f"Nor {clause}: {NOT_ALONE[clause]}", hang="  ")
    return lines


def _row_lines(row: Row) -> list[str]:
    shown = _shown(row)
    fate = row.fate.value if row.fate is Fate.CAUGHT else row.fate.name
    searched = (short(row.executions), f"{row.seconds:.1f}")
    if shown is None:
        lines = [_line(row.bug.id, fate, "-", *searched, "-", "-")]
    else:
        lines = [_line(row.bug.id, fate, row.kills[0].scenario, *searched, str(shown.steps), str(shown.switches))]
    wanted = " or ".join(row.bug.clauses)
    fired = " ".join(kill.clause for kill in row.kills) or "none"
    lines += paragraph(f"  {row.bug.title}; wanted {wanted}, fired {fired}", hang="    ")
    for failure in row.failures[:1] if shown is None else ():
        lines += paragraph(f"  {failure}", hang="    ")
    return lines


def _shown(row: Row) -> Kill | None:
    """The counterexample to a clause of the bug's own; else the first one."""
    own = [kill for kill in row.kills if kill.clause in row.bug.clauses]
    return next(iter((*own, *row.kills)), None)
