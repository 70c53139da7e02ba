"""docs/SPEC.md, written from the registry: `python -m migrate_vma_spec.document [--check] [path]`.

The document has no text of its own about a clause: all of it is the registry's. A chapter's introduction is what its mechanism
is for (`notes.py`), and its module's docstring. With `--check` nothing is written, and the exit code says whether the file is
current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from migrate_vma_spec.axioms import AXIOMS
from migrate_vma_spec.clauses import CHAPTERS
from migrate_vma_spec.known_bugs import KnownBug
from migrate_vma_spec.notes import BACKGROUND
from migrate_vma_spec.registry import REGISTRY, Clause, Party

DEFAULT_PATH = Path("docs/SPEC.md")

INTRODUCTION = """\
# The contract of migrate_vma

<!-- Written by `python -m migrate_vma_spec.document`. Do not edit: change the clauses. -->

What the kernel's migration library (`migrate_vma_setup`, `_pages`, `_finalize` and their `migrate_device_*` siblings), the CPU
fault path and a device driver owe each other when pages of device-private memory move. The words MUST, MUST NOT, SHOULD and MAY
are those of RFC 2119.

Device-private memory is memory of a device that the CPU cannot reach. The kernel has struct pages for it all the same, so that a
page of a process can live there: its page-table entry is then a special swap entry, and a CPU that touches it faults.
`do_swap_page` calls the driver's `migrate_to_ram`, and the driver brings the page back with the same library that took it away.
Most of the rules below are about what happens when several CPUs, devices, and the rest of memory management do this at once.

## How to read a clause

Each clause is one sentence, and has an id that is never used again. Under it:

- *Binds* says who breaks the clause when it is broken. A MUST is binding; of a broken SHOULD it is told, and that is all.
- *Judged* says how: from one step of a trace, by a monitor that remembers something of earlier steps, at the end of an execution,
  or on the cycles and dead ends of a whole state graph. *Events* are the steps that can concern it
  (`spec/migrate_vma_spec/events.py`). The predicate is in `spec/migrate_vma_spec/clauses`, under the clause's id.
- *Since* is the mechanism with which the clause came to mean something, and the kernel that brought it. It decides nothing: a
  clause is judged in every generation of the fault path, also in those that were made before the kernel kept it. Only one that
  *requires* a capability which the subject lacks is not applicable, and never counts as kept.
- *Reached* is its guard, a `sometimes`: a clause whose guard was never met is `never-reached` in a verdict.
- *Broken by* are bugs that kernels and drivers had, with the commit that mended them. A bug is named where it breaks the clause
  itself, not where it does so as a consequence.
- *Beside* names another clause that one fault often breaks with this one, and says why both stand.

Frame numbers are `pfn`; addresses are page numbers. A *folio* is one page, or several that are handled as one. *PTL* is the lock
of an address space's page tables.

The rules on references, locks, mappings and contents are formulated a second time, as axioms over whole traces, at the end.
"""

PARTIES = {
    Party.CORE: "the core",
    Party.DRIVER: "the driver",
    Party.FAULT: "the fault path",
    Party.BOTH: "the core and the driver",
}


def kind_of(clause: Clause) -> str:
    """How a clause is judged, in words."""
    if clause.progress is not None:
        return f"on the state graph ({clause.progress.value})"
    kind = "from one step" if clause.step is not None else "by a monitor"
    return f"{kind}, and at the end" if clause.end is not None else kind


def _clause(clause: Clause) -> Iterator[str]:
    yield f"### {clause.id} {clause.name}"
    yield ""
    yield clause.sentence
    yield ""
    yield f"- Binds: {PARTIES[clause.party]}. Level: {clause.level.value.upper()}. Judged: {kind_of(clause)}."
    if clause.on:
        yield f"- Events: {', '.join(kind.__name__ for kind in clause.on)}."
    yield f"- Since: {clause.since}."
    if clause.requires:
        names = sorted(f"`{need.name.lower()}` ({need.value})" for need in clause.requires)
        yield f"- Requires: {'; '.join(names)}."
    yield f"- Source: {clause.source}."
    yield f"- A violation shows as: {clause.symptom}."
    yield f"- Reached where {clause.guard}"
    bugs = "; ".join(map(told, clause.broken_by))
    yield f"- Broken by: {bugs or 'no known bug of a kernel or a driver'}."
    for other, why in clause.beside:
        yield f"- Beside {other}: {why}"
    yield ""


def told(bug: KnownBug) -> str:
    """A bug in a line: its id in the collection, what it was, and what mended it when."""
    return f"{bug.id}, {bug.title} ({bug.commit}, {bug.year})"


def _chapter(number: int, module: ModuleType) -> Iterator[str]:
    title, _, introduction = (module.__doc__ or "").strip().partition("\n")
    yield f"## {number}. {title.strip()}"
    yield ""
    yield BACKGROUND[module.__name__.rpartition(".")[2]]
    yield ""
    yield introduction.strip()
    yield ""
    for clause in sorted(REGISTRY.values(), key=lambda clause: clause.id):
        if clause.chapter == module.__name__:
            yield from _clause(clause)


AXIOMS_INTRODUCTION = """\
The clauses judge a trace step by step, and remember little. The axioms see the whole of it: sums over the life of a folio,
stretches of time that must not overlap or must lie within others, and for each load the store that it returns. They were written
from the same facts, not from the clauses. Where an axiom is broken, one of the clauses that it names must be, and where a clause
is broken that an axiom *covers*, so must be the axiom; anything else is an error of the kit. They leave out progress, notifiers,
the LRU, memory control groups, the bits of entries, and the contents of files."""


def _axioms(number: int) -> Iterator[str]:
    yield f"## {number}. The safety core as axioms"
    yield ""
    yield AXIOMS_INTRODUCTION
    yield ""
    for axiom in AXIOMS:
        yield f"### {axiom.id}"
        yield ""
        yield axiom.sentence
        yield ""
        yield f"- Clauses: {', '.join(axiom.clauses) or 'none; a trace that breaks it contradicts itself'}."
        if axiom.covers:
            yield f"- Covers: {', '.join(axiom.covers)}."
        if axiom.ended:
            yield "- Judged at the end of an execution."
        yield ""


def document() -> str:
    """The whole text of docs/SPEC.md."""
    lines = [INTRODUCTION]
    for number, module in enumerate(CHAPTERS, 1):
        lines.extend(_chapter(number, module))
    lines.extend(_axioms(len(CHAPTERS) + 1))
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Write the document, or with `--check` compare it. Returns the exit code."""
    check = "--check" in arguments
    paths = [Path(argument) for argument in arguments if argument != "--check"]
    path = paths[0] if paths else DEFAULT_PATH
    text = document()
    if not check:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{path} is stale: run python -m migrate_vma_spec.document {path}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
