"""The clauses, one module per chapter of the contract. Importing this package fills the registry."""

from __future__ import annotations

from types import ModuleType

from migrate_vma_spec.clauses import (
    alternative,
    bits,
    calling,
    collecting,
    contents,
    counting,
    entries,
    large,
    lifetimes,
    locks,
    notifiers,
    page_tables,
    references,
    walkers,
)

CHAPTERS: tuple[ModuleType, ...] = (
    calling,
    collecting,
    entries,
    locks,
    references,
    counting,
    large,
    lifetimes,
    page_tables,
    bits,
    walkers,
    contents,
    notifiers,
    alternative,
)
"""In the order of the contract. The first line of a chapter's docstring is its title, the rest its introduction."""
