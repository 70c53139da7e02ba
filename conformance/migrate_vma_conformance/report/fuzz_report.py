"""What drawn workloads came to, as text and as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_conformance.report.layout import paragraph, shell_command

if TYPE_CHECKING:
    from migrate_vma_conformance.fuzz import Finding, Fuzzing, Row


def lines(found: Fuzzing) -> list[str]:
    """A line for each generation and world, and each finding whole, with the command that comes to it again."""
    said = [f"{'generation':<24}{'world':<8}{'examples':>10}  found"]
    said += [_line(row) for row in found.rows]
    for finding in found.findings:
        said += ["", *_paragraphs(finding)]
    for reason in found.lost:
        said += ["", *paragraph(f"without a result: {reason}", hang="  ")]
    return said


def _line(row: Row) -> str:
    words = ", ".join(finding.told.what for finding in row.findings) or "nothing"
    lost = f"; {len(row.lost)} of {row.shards} shards without a result" if row.lost else ""
    return f"{row.generation:<24}{row.world:<8}{row.examples:>10,}  {words}{lost}"


def _paragraphs(finding: Finding) -> list[str]:
    asked = finding.shard.asked
    seen = f", and by {finding.shards - 1} more" if finding.shards > 1 else ""
    first = f"On {asked.generation}, in the world {finding.shard.world}, by the shard of seed {asked.seed}{seen}:"
    return [*paragraph(first), finding.told.text, *shell_command(finding.shard.command)]


def document(found: Fuzzing) -> dict[str, Any]:
    return {
        "driver": found.driver,
        "interrupted": found.interrupted,
        "shards": {"asked": found.asked, "done": sum(row.shards for row in found.rows)},
        "rows": [_row_document(row) for row in found.rows],
    }


def _row_document(row: Row) -> dict[str, Any]:
    return {
        "generation": row.generation,
        "world": row.world,
        "examples": row.examples,
        "findings": [_finding_document(finding) for finding in row.findings],
        "lost": list(row.lost),
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    return {
        "what": finding.told.what,
        "binding": finding.told.binding,
        "seed": finding.shard.asked.seed,
        "shards": finding.shards,
        "command": finding.shard.command,
        "text": finding.told.text,
    }
