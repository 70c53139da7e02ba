"""What a judged file of traces says, for people and for programs.

Rules:
- A violation comes with the lines that show it, and their numbers.
- Each clause is named once for each generation: broken, not broken, not concerned, not applicable, or not judged, and why.
- The document for programs is that of a check, with `trace` added to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.kernel.traces.coverage import JUDGED
from migrate_vma_conformance.kernel.traces.judging import Judged, readable
from migrate_vma_conformance.kernel.traces.lines import Line
from migrate_vma_conformance.kernel.traces.recording import Broken, Recording
from migrate_vma_conformance.kernel.traces.storms import Episode, Storms
from migrate_vma_conformance.report.json_report import report_document
from migrate_vma_conformance.report.layout import labelled, paragraph
from migrate_vma_conformance.report.outcome import result_sentence
from migrate_vma_conformance.report.table import runs
from migrate_vma_conformance.verdict import GenerationReport, Verdict
from migrate_vma_spec.registry import Level

_LONGEST = 1000
"""Characters of a line that are shown."""


def lines_for_people(judged: Judged, *, strict: bool = False) -> list[str]:
    """The whole report."""
    report = judged.report
    found = [*labelled("trace", report.subject), *labelled("judged as", ", ".join(each.name for each in report.generations))]
    found += labelled("run", f"{sum(part.events for part in judged.parts):,} events, {report.seconds:.1f} s")
    for part in judged.parts:
        found += ["", *_part(part)]
    for generation in report.generations:
        found += ["", *_verdicts(generation, judged)]
    found.append("")
    found += ["No verdict here covers:"]
    for word in report.not_covered:
        found += paragraph(word, indent="- ", hang="  ")
    return [*found, "", *paragraph(result_sentence(report, strict=strict), hang="  ")]


def document(judged: Judged, *, strict: bool = False) -> dict[str, Any]:
    """The same as JSON values."""
    return {**report_document(judged.report, strict=strict), "trace": {"parts": [_part_document(part) for part in judged.parts]}}


# ---- a recording -------------------------------------------------------------------------------------------------------


def _part(part: Recording) -> Iterator[str]:
    names = ", ".join(jury.generation.name for jury in part.juries)
    kernel = f" of Linux {part.told['kernel']}" if "kernel" in part.told else ""
    title = f": {part.title}" if part.title else ""
    yield from paragraph(f"Part {part.number}{kernel}, lines {part.first}-{part.last}, judged as {names}{title}", hang="  ")
    for sentence in part_notes(part):
        yield from paragraph(sentence, indent="  ", hang="    ")
    yield from paragraph(storm_sentence(part.storms), indent="  ", hang="    ")
    if part.storms.worst is not None and part.storms.worst.entries > 1:
        yield from paragraph(_worst(part.storms.worst, part), indent="  ", hang="    ")


def part_notes(part: Recording) -> list[str]:
    """What is to be known of the reading."""
    notes = part.notes.sentences()
    if part.unordered:
        notes.append(f"Nothing is concluded: {part.unordered}")
    if part.others:
        notes.append(f"{part.others:,} events of other probes were passed over")
    return notes


def storm_sentence(storms: Storms) -> str:
    """C84 in numbers."""
    if not storms.entries:
        return "C84 in numbers: no entry into a driver's migrate_to_ram was seen to return."
    words = f"{_count(storms.entries, 'entry', 'entries')} into migrate_to_ram, {_count(storms.migrations, 'migration')}"
    if storms.migrations:
        words += f", {storms.entries / storms.migrations:.2f} for each"
    if storms.fruitless:
        words += f"; {_count(storms.fruitless, 'entry', 'entries')} migrated nothing"
    if storms.empty:
        words += f" ({storms.empty:,} of {_count(storms.setups, 'setup')} ended with cpages 0)"
    if storms.unknown:
        words += f"; of {storms.unknown:,} it is not shown"
    elif not storms.fruitless:
        words += "; no storm"
    if storms.faults:
        words += f". do_swap_page was entered {_count(storms.faults, 'time')}"
    return f"C84 in numbers: {words}."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _worst(worst: Episode, part: Recording) -> str:
    shown = part.shown
    page = hex(worst.page) if shown is None or shown.struct_pages is None else f"pfn {shown.pfn(worst.page)}"
    refs = f", with up to {worst.refs} references to it" if worst.refs else ""
    threads = _count(len(worst.threads), "thread")
    return (
        f"The longest storm: page {page} was entered for {_count(worst.entries, 'time')} by {threads} "
        f"within {worst.nanoseconds / 1e6:.3f} ms, in vain {_count(worst.fruitless, 'time')}{refs} "
        f"(lines {worst.first}-{worst.last})."
    )


# ---- verdicts ----------------------------------------------------------------------------------------------------------


def _verdicts(generation: GenerationReport, judged: Judged) -> Iterator[str]:
    clauses = judged_clauses()
    by_verdict: defaultdict[Verdict, list[str]] = defaultdict(list)
    unjudged: defaultdict[str, list[str]] = defaultdict(list)
    for verdict in generation.clauses.values():
        unseen = verdict.verdict is Verdict.NEVER_REACHED and not verdict.executions
        if unseen or verdict.verdict is Verdict.INCONCLUSIVE:
            unjudged[verdict.reason].append(verdict.clause)
        else:
            by_verdict[verdict.verdict].append(verdict.clause)
    yield f"As {generation.name}:"
    for clause in by_verdict[Verdict.VIOLATED]:
        yield ""
        level = "a MUST" if clauses[clause].level is Level.MUST else "a SHOULD"
        yield from paragraph(f"VIOLATED {clause} {clauses[clause].name}, {level}", indent="  ")
        yield from paragraph(clauses[clause].sentence, indent="    ")
        for part, broken in _broken(generation.name, clause, judged):
            yield from _shown(part, broken)
        yield ""
    for outcome, words in _OUTCOMES.items():
        if by_verdict[outcome]:
            yield from paragraph(f"{words}: {' '.join(runs(by_verdict[outcome]))}", indent="  ", hang="    ")
    parts = [f"{clause}: {JUDGED[clause].part}" for clause in by_verdict[Verdict.NO_VIOLATION] if JUDGED[clause].part]
    if parts:
        yield from paragraph(f"Of these in part: {'; '.join(parts)}", indent="  ", hang="    ")
    for reason, ids in unjudged.items():
        yield from paragraph(f"Not judged, because {reason}: {' '.join(runs(ids))}", indent="  ", hang="    ")


_OUTCOMES = {
    Verdict.NO_VIOLATION: "Not broken in what was recorded",
    Verdict.NEVER_REACHED: "Judged, and nothing in it is a case of",
    Verdict.NOT_APPLICABLE: "Not applicable",
}


def _broken(generation: str, clause: str, judged: Judged) -> Iterator[tuple[Recording, Broken]]:
    for part in judged.parts:
        for jury in part.juries:
            if jury.generation.name == generation and clause in jury.broken and part.stands(clause):
                yield part, jury.broken[clause]


def _shown(part: Recording, broken: Broken) -> Iterator[str]:
    yield from paragraph(f"Part {part.number}: {readable(broken.sentence)}, says line {broken.line.number}:", indent="    ")
    for line in broken.lines:
        yield from paragraph(f"{line.number}: {line.text.strip()[:_LONGEST]}", indent="      ", hang="        ")


# ---- for programs ------------------------------------------------------------------------------------------------------


def _part_document(part: Recording) -> dict[str, Any]:
    storms = part.storms
    return {
        "part": part.number,
        "title": part.title,
        "first_line": part.first,
        "last_line": part.last,
        "events": part.events,
        "other_events": part.others,
        "generations": [jury.generation.name for jury in part.juries],
        "notes": part_notes(part),
        "storms": {
            "entries": storms.entries,
            "migrations": storms.migrations,
            "migrated_nothing": storms.fruitless,
            "not_shown": storms.unknown,
            "setups": storms.setups,
            "empty_setups": storms.empty,
            "do_swap_page": storms.faults,
        },
        "violations": [
            _violation(jury.generation.name, jury.broken[clause])
            for jury in part.juries
            for clause in sorted(jury.broken)
            if part.stands(clause)
        ],
    }


def _violation(generation: str, broken: Broken) -> dict[str, Any]:
    return {
        "generation": generation,
        "clause": broken.clause,
        "sentence": readable(broken.sentence),
        "line": broken.line.number,
        "lines": [_line(line) for line in broken.lines],
    }


def _line(line: Line) -> dict[str, Any]:
    return {"number": line.number, "text": line.text[:_LONGEST]}
