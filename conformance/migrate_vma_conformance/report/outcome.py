"""What every face of a report says in the same words: what its columns are, and how it came out."""

from __future__ import annotations

from migrate_vma_conformance.report.table import runs
from migrate_vma_conformance.subject import KNOWN_GENERATIONS
from migrate_vma_conformance.verdict import Report, Verdict, exit_code
from migrate_vma_spec.registry import Level


def column_sentence(name: str) -> str:
    """A column of the table in a sentence; empty for a generation of the caller's own, which says it itself."""
    plain = name.removesuffix("+adapted")
    generation = KNOWN_GENERATIONS.get(plain)
    if generation is None:
        return ""
    if plain != name:
        return f"As {plain}, with the driver's variant that calls refill_fault_entry."
    kernel, at, version = plain.partition("@")
    own, plus, _ = kernel.partition("+")
    large = " With device-private folios of more than a page." if plus else ""
    shipped = f" With what {version} has wrong, as its source has it." if at else ""
    return f"{KNOWN_GENERATIONS[own].sentence}{large}{shipped}"


def result_sentence(report: Report, *, strict: bool = False) -> str:
    """The outcome in a sentence, with the exit code that says the same."""
    words = [
        _count(report, "a MUST is violated", Verdict.VIOLATED, Level.MUST),
        _count(report, "a SHOULD is violated", Verdict.VIOLATED, Level.SHOULD),
        _count(report, "unknown", Verdict.INCONCLUSIVE, None),
    ]
    said = "; ".join(word for word in words if word) or "nothing violated"
    return f"Result: {said}. Exit code {exit_code(report, strict=strict)}."


def _count(report: Report, title: str, outcome: Verdict, level: Level | None) -> str:
    """`a MUST is violated: unreferenced C41 C50, referenced C84`; empty where nothing is."""
    found: list[str] = []
    for generation in report.generations:
        ids = [each.clause for each in generation.clauses.values() if each.verdict is outcome and level in {None, each.level}]
        if ids:
            found.append(f"{generation.name} {' '.join(runs(ids))}")
    return f"{title}: {', '.join(found)}" if found else ""
