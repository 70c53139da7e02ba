"""The report as one page of HTML: the table, and each violation as a timeline that can be stepped through with the keyboard.

Rules:
- The page is whole: it loads nothing, and its policy forbids that it could.
- What subjects say gets in as text alone: Jinja escapes it, and the script reads JSON and writes text nodes.
- Without Jinja (extra `report`) there is no page.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from migrate_vma_conformance.report.callers import told
from migrate_vma_conformance.report.cases import Case, cases, execution_of
from migrate_vma_conformance.report.columns import MOST_COLUMNS
from migrate_vma_conformance.report.execution import Execution, rolled
from migrate_vma_conformance.report.layout import short
from migrate_vma_conformance.report.outcome import column_sentence, result_sentence
from migrate_vma_conformance.report.splat import facts, replay_command, title, why_for_ever
from migrate_vma_conformance.report.story import Line, tell
from migrate_vma_conformance.report.table import MEANINGS, cell, clause_key, evidence_rows, evidence_title
from migrate_vma_conformance.verdict import ClauseVerdict, Report, Verdict
from migrate_vma_spec.registry import Clause, Level

if TYPE_CHECKING:
    import jinja2

_TONES = {
    Verdict.HOLDS: "good",
    Verdict.NO_VIOLATION: "good",
    Verdict.INCONCLUSIVE: "open",
    Verdict.NEVER_REACHED: "none",
    Verdict.NOT_APPLICABLE: "none",
}


def page(report: Report, clauses: Mapping[str, Clause], *, strict: bool = False) -> str | None:
    """The page; None where Jinja is not installed."""
    template = _template()
    if template is None:
        return None
    from markupsafe import Markup  # noqa: PLC0415  (comes with Jinja)

    found = cases(report)
    style, script = (Markup(_asset(name)) for name in ("page.css", "page.js"))  # noqa: S704  (files of ours)
    data = Markup(embedded(_data(found, clauses)))  # noqa: S704  (escaped for where it stands)
    return template.render(
        report=report,
        result=result_sentence(report, strict=strict),
        columns=[(each.name, column_sentence(each.name)) for each in report.generations],
        table=_table(report, clauses, found),
        meanings=[(word, meaning) for word, meaning in MEANINGS.items() if word in _used(report)],
        evidence_title=evidence_title(report),
        evidence=evidence_rows(report),
        found=found,
        style=style,
        script=script,
        data=data,
    ).rstrip("\n")


@functools.cache
def _template() -> jinja2.Template | None:
    try:
        import jinja2  # noqa: PLC0415  (an extra)
    except ImportError:
        return None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return files("migrate_vma_conformance.report").joinpath(name).read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    """JSON for a script element: what could end the element or begin a comment is escaped, and means the same."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---- the table -------------------------------------------------------------------------------------------------------


def _table(report: Report, clauses: Mapping[str, Clause], found: Iterable[Case]) -> list[dict[str, Any]]:
    """A row for each clause. `alike`: it says the same in every column, and nothing bad."""
    places = {(case.generation, case.clause): place for place, case in enumerate(found)}
    rows: list[dict[str, Any]] = []
    for clause in sorted({each for generation in report.generations for each in generation.clauses}, key=clause_key):
        verdicts = [(each.name, each.clauses.get(clause)) for each in report.generations]
        cells = [_cell(verdict, places.get((name, clause))) for name, verdict in verdicts]
        alike = len({each["word"] for each in cells}) == 1 and not any(each["place"] is not None for each in cells)
        about = clauses.get(clause)
        name, sentence = ("", "") if about is None else (about.name, about.sentence)
        rows.append({"clause": clause, "name": name, "sentence": sentence, "cells": cells, "alike": alike})
    return rows


def _cell(verdict: ClauseVerdict | None, place: int | None) -> dict[str, Any]:
    return {"word": cell(verdict), "tone": _tone(verdict), "about": _about(verdict), "place": place}


def _tone(verdict: ClauseVerdict | None) -> str:
    if verdict is None:
        return "none"
    if verdict.verdict is Verdict.VIOLATED:
        return "bad" if verdict.level is Level.MUST else "should"
    return _TONES[verdict.verdict]


def _about(verdict: ClauseVerdict | None) -> str:
    """What a verdict rests on, in a line."""
    if verdict is None:
        return ""
    if verdict.counterexample is not None:
        return verdict.counterexample.sentence
    if verdict.reason:
        return verdict.reason
    count = len(verdict.scenarios)
    return f"{short(verdict.executions)} executions in {count} scenario{'' if count == 1 else 's'}"


def _used(report: Report) -> set[str]:
    return {cell(verdict) for verdict in report.verdicts}


# ---- the timelines ---------------------------------------------------------------------------------------------------


def _data(found: Iterable[Case], clauses: Mapping[str, Clause]) -> dict[str, Any]:
    """What the script draws. Call chains are many and alike, so each is there once."""
    chains: dict[tuple[str, ...], int] = {}
    drawn = [_case(case, clauses.get(case.clause), chains) for case in found]
    return {"cases": drawn, "chains": [list(chain) for chain in chains]}


def _case(case: Case, clause: Clause | None, chains: dict[tuple[str, ...], int]) -> dict[str, Any]:
    whole = execution_of(case.example, clause)
    brief = rolled(whole)
    return {
        "clause": case.clause,
        "generation": case.generation,
        "title": title(case, clause),
        "level": case.verdict.level.name,
        "facts": [list(fact) for fact in facts(case, clause)],
        "command": replay_command(case.example.token),
        "first": whole.first_step,
        "ever": why_for_ever(case.example, clause),
        "brief": _view(brief, tell(brief), chains),
        "whole": _view(whole, tell(whole, show_all=True)[whole.first_step :], chains),
    }


def _view(execution: Execution, lines: list[Line], chains: dict[tuple[str, ...], int]) -> dict[str, Any]:
    start = execution.cycle_start
    cycle = None if start is None else next((at for at, line in enumerate(lines) if line.number >= start), None)
    cpus = sorted({line.step.cpu for line in lines})
    tasks = [", ".join(sorted({line.step.task for line in lines if line.step.cpu == cpu})) for cpu in cpus]
    return {
        "cpus": [[cpu, names] for cpu, names in zip(cpus, tasks, strict=True)],
        "together": len(cpus) > MOST_COLUMNS,
        "cycle": cycle,
        "lines": [_line(execution, line, chains) for line in lines],
    }


def _line(execution: Execution, line: Line, chains: dict[tuple[str, ...], int]) -> list[Any]:
    stack = execution.stacks[line.number] if line.number < len(execution.stacks) else ()
    chain = chains.setdefault(tuple(told(stack)), len(chains))
    return [line.number + 1, line.step.cpu, line.step.task, line.function, line.words, chain]
