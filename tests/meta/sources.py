"""The files that the meta tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("spec", "impl", "conformance")


def modules(*sources: str) -> list[Path]:
    """Every module of these source roots, relative to the project's root."""
    found = (path for source in sources or SOURCES for path in (ROOT / source).rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in found)
