"""What can be listed and named: the clauses of the contract, and the generations of the fault path.

Loading the registry imports every chapter of the contract; nothing of a subject runs here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import migrate_vma_spec.clauses  # noqa: F401  (fills the registry)
from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.report.table import clause_key
from migrate_vma_impl.generations import GENERATIONS, Generation
from migrate_vma_spec.model import REFERENCE
from migrate_vma_spec.registry import REGISTRY, Clause


def clauses_by_id() -> Mapping[str, Clause]:
    """Every clause, in the order of the contract's numbers."""
    return {clause: REGISTRY[clause] for clause in sorted(REGISTRY, key=clause_key)}


def judged_clauses() -> Mapping[str, Clause]:
    """What a subject is judged by: every clause, and the reference model as the row REF."""
    return {**clauses_by_id(), REFERENCE.id: REFERENCE}


def clause_named(text: str, source: str) -> Clause:
    """The clause of an id, in either case.

    Raises:
        UsageError: there is no such clause.
    """
    clause = REGISTRY.get(text) or REGISTRY.get(text.upper())
    if clause is None:
        raise UsageError(text, source, "there is no such clause", "an id such as C41; `migrate-vma clauses` lists them")
    return clause


def generation_records() -> list[Generation]:
    """Every generation, oldest first."""
    return list(GENERATIONS.values())


def newest_generation() -> Generation:
    """The generation of the newest kernel that an alias names: what a driver meets today."""
    return max(generation_records(), key=lambda record: max(map(_version, record.aliases), default=()))


def _version(alias: str) -> tuple[int, ...]:
    """The numbers of `v6.15`; of anything else, none."""
    found = re.fullmatch(r"v(\d+(?:\.\d+)*)", alias)
    return tuple(map(int, found[1].split("."))) if found else ()
