"""Judges a file of traces: each recording in it by itself, then what all of them say together.

Rules:
- A header after events begins another recording.
- A recording is judged as the generations asked for; else as the one of the kernel that its header names; else as the newest.
- What was lost, damaged or out of order is said; where it forbids a conclusion, there is none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from migrate_vma_conformance.catalogue import judged_clauses, newest_generation
from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel.traces.coverage import ACROSS_CPUS, JUDGED, lacking
from migrate_vma_conformance.kernel.traces.lines import Header, Line, Lost, Other, Reader, Record
from migrate_vma_conformance.kernel.traces.reading import EXPECTED, SOURCE, Damage, lines_of
from migrate_vma_conformance.kernel.traces.recording import Broken, Jury, Recording
from migrate_vma_conformance.kernel.traces.shown import Fact
from migrate_vma_conformance.subject import find_generation
from migrate_vma_conformance.verdict import ClauseVerdict, Counterexample, GenerationReport, Recorded, Report, conclude_recorded
from migrate_vma_impl.generations import Generation

NOT_COVERED = (
    "what the probes do not show: locks other than the fault page's, references, page tables, contents",
    "any execution but the recorded ones: a trace is a sample",
)

PATIENCE = 2000
"""Lines without an event after which a file is taken for none of a tracer."""


@frozen
class Judged:
    """A file of traces, judged. `parts` are its recordings."""

    report: Report
    parts: tuple[Recording, ...]


def judge_file(
    path: str,
    generations: Sequence[Generation] = (),
    *,
    part: int | None = None,
    callback: str | None = None,
    command: str = "",
) -> Judged:
    """Judge a file of traces, or standard input for `-`.

    Args:
        path: the file.
        generations: what to judge it as; none: what each recording says of its kernel, or the newest.
        part: only this recording, counted from 1.
        callback: the migrate_to_ram of a driver that is not known here.
        command: what repeats this.

    Raises:
        UsageError: it is no trace, or has no such part.
    """
    begin = time.monotonic()
    parts = tuple(recordings(lines_of(path), path, generations, callback))
    if not any(each.events for each in parts):
        raise UsageError(path, SOURCE, _nothing(parts), EXPECTED)
    parts = tuple(each for each in parts if each.events)
    if part is not None:
        chosen = tuple(each for each in parts if each.number == part)
        if not chosen:
            raise UsageError(str(part), "--part", f"the file has {len(parts)}", "the number of a recording, counted from 1")
        parts = chosen
    names = {jury.generation.name: jury.generation for each in parts for jury in each.juries}
    reports = tuple(GenerationReport(name, _verdicts(names[name], parts)) for name in names)
    return Judged(Report(path, reports, time.monotonic() - begin, 0, command, NOT_COVERED), parts)


def _nothing(parts: Sequence[Recording]) -> str:
    others = sum(each.others for each in parts)
    if others:
        return f"it is a trace, and none of its {others:,} events is of a probe that is read here"
    return "no line of it is an event of a tracer that is known here"


def recordings(
    lines: Iterable[Line | Damage], path: str, generations: Sequence[Generation] = (), callback: str | None = None
) -> Iterator[Recording]:
    """The recordings that these lines hold, each when its last line was read."""
    reader = Reader(callback)
    recording = Recording(1, path)
    for line in lines:
        if isinstance(line, Damage):
            recording.damaged(line.sentence)
            continue
        read = reader.read(line)
        if isinstance(read, Record):
            if not recording.events:
                recording.generations = _generations(recording, generations)
            recording.take(read)
        elif isinstance(read, Header):
            if recording.begun:
                yield _ended(recording)
                recording = Recording(recording.number + 1, path)
            recording.header(line, read.facts)
        elif isinstance(read, Other):
            recording.other(line, read)
        elif isinstance(read, Lost):
            recording.lost(line, read)
        elif line.text.strip():
            recording.unreadable(line)
            if not recording.begun and recording.number == 1 and line.number > PATIENCE:
                break
    yield _ended(recording)


def _ended(recording: Recording) -> Recording:
    recording.end()
    return recording


def _generations(recording: Recording, given: Sequence[Generation]) -> tuple[Generation, ...]:
    """What to judge a recording as."""
    if given:
        return tuple(given)
    try:
        return (generation_named(recording.told.get("kernel", "")),)
    except UsageError:
        return (newest_generation(),)


def generation_named(text: str) -> Generation:
    """The generation of this name, or of the kernel that calls itself so: `referenced`, `v6.1`, `6.1.192`.

    Raises:
        UsageError: there is none.
    """
    series = re.match(r"\d+\.\d+", text)
    return find_generation(text if series is None else f"v{series[0]}")


# ---- verdicts ----------------------------------------------------------------------------------------------------------


def _verdicts(generation: Generation, parts: Sequence[Recording]) -> dict[str, ClauseVerdict]:
    found: dict[str, ClauseVerdict] = {}
    for clause in judged_clauses().values():
        recorded = [
            _recorded(clause.id, jury, part) for part in parts for jury in part.juries if jury.generation.name == generation.name
        ]
        missing = clause.requires - generation.capabilities
        found[clause.id] = conclude_recorded(clause.id, clause.level, recorded, missing=missing)
    return found


def _recorded(clause: str, jury: Jury, part: Recording) -> Recorded:
    facts: frozenset[Fact] = part.shown.facts if part.shown is not None else frozenset()
    unjudged = lacking(judged_clauses()[clause], facts, jury.generation.capabilities)
    if unjudged:
        empty = clause in JUDGED and not jury.clauses
        return Recorded(unjudged=unjudged, failure=f"part {part.number} shows too little: {unjudged}" if empty else "")
    if part.unordered:
        return Recorded(failure=f"part {part.number} is not in the order of time: {part.unordered}")
    if clause in ACROSS_CPUS and part.told.get("overwritten"):
        return Recorded(unjudged="the buffers of several CPUs begin at different times, because they were overwritten")
    broken = jury.broken.get(clause)
    if broken is not None and not part.stands(clause):
        return Recorded(failure="lines of several CPUs were put in order by their timestamps, which are not exact enough for it")
    example = None if broken is None else _counterexample(broken, part)
    return Recorded(clause in jury.reached or broken is not None, counterexample=example)


def readable(sentence: str) -> str:
    """The sentence with addresses in hexadecimal: what is named by its address, because the trace shows no number of it."""
    return re.sub(r"\b\d{17,}\b", lambda found: hex(int(found[0])), sentence)


def _counterexample(broken: Broken, part: Recording) -> Counterexample:
    token = f"{part.path}:{broken.line.number}"
    return Counterexample(broken.clause, token, readable(broken.sentence), (), (), None, None, f"part {part.number}", 0)
