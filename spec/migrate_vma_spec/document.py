"""docs/SPEC.md, written from the registry: `python -m migrate_vma_spec.document [--check] [path]`.

The document has no text of its own about a clause: sentence, party, level, source and symptom are the registry's, a chapter's
introduction is its module's docstring. With `--check` nothing is written, and the exit code says whether the file is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from migrate_vma_spec.clauses import CHAPTERS
from migrate_vma_spec.registry import REGISTRY, Clause, Party

DEFAULT_PATH = Path("docs/SPEC.md")

INTRODUCTION = """\
# The contract of migrate_vma

<!-- Written by `python -m migrate_vma_spec.document`. Do not edit: change the clauses. -->

What the kernel's migration library (`migrate_vma_setup`, `_pages`, `_finalize` and their `migrate_device_*` siblings), the CPU
fault path and a device driver owe each other when pages of device-private memory move. Each clause is one sentence, with the
predicate that judges it in `spec/migrate_vma_spec/clauses`. The words MUST, MUST NOT, SHOULD and MAY are those of RFC 2119.

*Binds* says who breaks the clause when it is broken. *Judged* says how: from one step of a trace, by a monitor that remembers
something of earlier steps, at the end of an execution, or on the cycles and dead ends of a whole state graph. A clause
*requires* a capability where it speaks of something that not every generation of the fault path has; where the subject lacks it,
the clause is not applicable. Every other clause is judged in every generation, also in those that were made before the kernel
kept it.
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
    if clause.requires:
        names = sorted(f"`{need.name.lower()}` ({need.value})" for need in clause.requires)
        yield f"- Requires: {'; '.join(names)}."
    yield f"- Source: {clause.source}."
    yield f"- A violation shows as: {clause.symptom}."
    yield ""


def _chapter(number: int, module: ModuleType) -> Iterator[str]:
    title, _, introduction = (module.__doc__ or "").strip().partition("\n")
    yield f"## {number}. {title.strip()}"
    yield ""
    yield introduction.strip()
    yield ""
    for clause in sorted(REGISTRY.values(), key=lambda clause: clause.id):
        if clause.chapter == module.__name__:
            yield from _clause(clause)


def document() -> str:
    """The whole text of docs/SPEC.md."""
    lines = [INTRODUCTION]
    for number, module in enumerate(CHAPTERS, 1):
        lines.extend(_chapter(number, module))
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
