"""The verdict table: clauses down, generations across. Clauses whose rows would be alike share one, unless all are asked for.

Rules:
- A violation is always a row of its own, and so is a progress clause that holds: its cell names the fairness.
- Every cell word that is used is explained under the table.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, product
from string import ascii_lowercase

from migrate_vma_conformance.report import matrix
from migrate_vma_conformance.report.layout import WIDTH, labelled, paragraph, short
from migrate_vma_conformance.verdict import ClauseVerdict, GenerationReport, Report, ScenarioEvidence, Verdict
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.registry import Clause, Level

_CELLS = {
    Verdict.HOLDS: "holds",
    Verdict.NO_VIOLATION: "sampled",
    Verdict.VIOLATED: "VIOLATED",
    Verdict.NEVER_REACHED: "-",
    Verdict.NOT_APPLICABLE: "n/a",
    Verdict.INCONCLUSIVE: "unknown",
}

MEANINGS = {
    "holds": "no execution breaks it: every scenario was searched to its end",
    "holds weak": "progress, if what can run all the time does run (weak fairness)",
    "holds strong": "progress, if what can run again and again does run, too (strong)",
    "sampled": "no violation was seen, the search was not exhausted",
    "VIOLATED": "a MUST is broken, see below",
    "violated": "a SHOULD is broken, see below",
    "-": "no scenario that was run comes to what it is about",
    "n/a": "not applicable: it asks for what this protocol does not have",
    "unknown": "inconclusive, see below",
}
"""What each word of a cell means."""

_FOLDED = {"", "holds", "sampled", "-", "n/a", "unknown"}
"""Words of rows that may stand for several clauses."""


def clause_key(clause: str) -> tuple[bool, str, int]:
    """Sorts C9 before C10, and what has no number last."""
    letters, digits = re.fullmatch(r"(\D*)(\d*).*", clause, re.DOTALL).groups()  # type: ignore[union-attr]
    return not digits, letters, int(digits or 0)


def runs(clauses: Iterable[str]) -> list[str]:
    """Ids in order, with three or more neighbours written as C01-C05."""
    found: list[list[str]] = []
    for clause in sorted(clauses, key=clause_key):
        after = clause_key(clause)[2] == clause_key(found[-1][-1])[2] + 1 if found else False
        found[-1].append(clause) if after else found.append([clause])
    return [word for run in found for word in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else run)]


def cell(verdict: ClauseVerdict | None) -> str:
    """The word for a verdict in the table; empty where there is none."""
    if verdict is None:
        return ""
    if verdict.verdict is Verdict.VIOLATED and verdict.level is Level.SHOULD:
        return "violated"
    word = _CELLS[verdict.verdict]
    return f"{word} {verdict.holds_under.value}" if verdict.holds_under is not None and verdict.verdict is Verdict.HOLDS else word


def verdict_table(report: Report, clauses: Mapping[str, Clause], *, verbose: bool = False) -> list[str]:
    """The table, what its words mean, and the clauses of the rows that stand for several."""
    ids = sorted({clause for generation in report.generations for clause in generation.clauses}, key=clause_key)
    cells = {clause: tuple(cell(each.clauses.get(clause)) for each in report.generations) for clause in ids}
    folded = {} if verbose else _folded(cells)
    alike = {row: found for row, found in folded.items() if len(set(row)) > 1}
    labels = {row: f"({letter})" for row, letter in zip(alike, _letters(), strict=False)}
    shown = [clause for clause in ids if cells[clause] not in folded]
    rows = [matrix.Row(clause, cells[clause]) for clause in shown] + [matrix.Row(labels[row], row) for row in alike]
    parts = [matrix.render([each.name for each in report.generations], rows)] if rows else []
    parts.append([line for clause in shown if clause in clauses for line in _name(clause, clauses[clause])])
    parts.append([line for row, found in alike.items() for line in paragraph(f"{labels[row]}  {_listed(found)}", hang="     ")])
    parts.append(list(_key({word for row in rows for word in row.cells})))
    where = "in every column" if len(report.generations) > 1 else ""
    for row, found in folded.items():
        if row not in alike:
            parts.append(paragraph(f"{row[0]} ({where or MEANINGS[row[0]]}): {_listed(found)}", hang="  "))
    return [line for part in filter(None, parts) for line in ("", *part)][1:]


def _folded(cells: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    """Rows without a violation or a fairness that are alike: all that say one word, and those that stand for three clauses."""
    found: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for clause, row in cells.items():
        if set(row) <= _FOLDED:
            found[row].append(clause)
    return {row: same for row, same in found.items() if len(set(row)) == 1 or len(same) > 2}


def _letters() -> Iterator[str]:
    """Without end: a to z, then aa, ab, ..."""
    return ("".join(word) for size in count(1) for word in product(ascii_lowercase, repeat=size))


def _listed(clauses: Iterable[str]) -> str:
    return " ".join(runs(clauses))


def _name(clause: str, about: Clause) -> list[str]:
    return paragraph(f"{clause}  {about.name}", hang="     ")


def _key(used: Iterable[str]) -> Iterator[str]:
    for word, meaning in MEANINGS.items():
        if word in used:
            yield from labelled(word, meaning, column=15)


# ---- evidence --------------------------------------------------------------------------------------------------------


def scenarios_of(generation: GenerationReport) -> dict[tuple[str, str], ScenarioEvidence]:
    """Every scenario that a verdict of the generation rests on, by name and preemption."""
    found: dict[tuple[str, str], ScenarioEvidence] = {}
    for verdict in generation.clauses.values():
        for scenario in verdict.scenarios:
            key = scenario.name, scenario.preemption.value
            if key not in found or not scenario.complete:
                found[key] = scenario
    return found


def evidence_table(report: Report, *, verbose: bool = False) -> list[str]:
    """How many states each scenario had in each generation, and how many executions they stand for."""
    rows = evidence_rows(report)
    if not rows:
        return []
    columns = [scenarios_of(generation) for generation in report.generations]
    lines = [*paragraph(evidence_title(report)), *matrix.render([each.name for each in report.generations], rows)]
    return [*lines, *_notes(columns, verbose=verbose)]


def evidence_title(report: Report) -> str:
    """What the numbers of the evidence are, and the marks beside them."""
    scenarios = [scenario for generation in report.generations for scenario in scenarios_of(generation).values()]
    cut = any(not scenario.complete for scenario in scenarios)
    title = "Evidence: states visited in each scenario" + (" (+: cut short)" if cut else ", each searched to its end")
    others = sorted({scenario.preemption.value for scenario in scenarios} - {Preemption.FULL.value})
    return title + "".join(f"; ({model[0]}): {model} preemption" for model in others)


def evidence_rows(report: Report) -> list[matrix.Row]:
    """The states of each scenario in each generation, and how many executions they stand for; empty if nothing was run."""
    columns = [scenarios_of(generation) for generation in report.generations]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    if not keys:
        return []
    rows = [matrix.Row(_label(*key), tuple(_states(column.get(key)) for column in columns)) for key in keys]
    executions = (short(sum(each.executions for each in column.values())) for column in columns)
    return [*rows, matrix.Row("executions", tuple(executions))]


def _label(name: str, model: str) -> str:
    return name if model == Preemption.FULL.value else f"{name} ({model[0]})"


def _states(scenario: ScenarioEvidence | None) -> str:
    return "" if scenario is None else short(scenario.states) + ("" if scenario.complete else "+")


def _notes(columns: Sequence[Mapping[tuple[str, str], ScenarioEvidence]], *, verbose: bool) -> Iterator[str]:
    """What a scenario wants said of it, and under `verbose` its tasks."""
    said: set[str] = set()
    for scenario in (scenario for column in columns for scenario in column.values()):
        words = [scenario.note] if scenario.note else []
        words += [f"tasks {', '.join(scenario.tasks)}"] if verbose else []
        line = f"{scenario.name}: {'; '.join(words)}"
        if words and line not in said:
            said.add(line)
            yield from paragraph(line, indent="  ", hang="    ", width=WIDTH)
