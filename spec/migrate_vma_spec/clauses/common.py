"""What several chapters ask of a world and of the entries of a call. No clause is here."""

from __future__ import annotations

from collections.abc import Iterator

from migrate_vma_spec.events import Step
from migrate_vma_spec.objects import Call, World
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Memory,
    migrate_pfn_to_pfn,
)

FLAGS = {
    MIGRATE_PFN_VALID: "VALID",
    MIGRATE_PFN_MIGRATE: "MIGRATE",
    MIGRATE_PFN_WRITE: "WRITE",
    MIGRATE_PFN_COMPOUND: "COMPOUND",
}


def is_migrating(entry: int) -> bool:
    return bool(entry & MIGRATE_PFN_MIGRATE)


def is_hole(entry: int) -> bool:
    """Nothing is mapped there (or the zero page), and it migrates: MIGRATE without VALID."""
    return entry & (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE) == MIGRATE_PFN_MIGRATE


def pfn_of(entry: int) -> int | None:
    return migrate_pfn_to_pfn(entry)


def pfns_of(entries: tuple[int, ...] | None) -> list[int]:
    """The frames that an array names, in its order."""
    return [entry >> MIGRATE_PFN_SHIFT for entry in entries or () if entry & MIGRATE_PFN_VALID]


def show(entry: int) -> str:
    """An entry as a reader wants it: `pfn 3|VALID|MIGRATE`, or 0."""
    words = [name for flag, name in FLAGS.items() if entry & flag]
    if entry >> MIGRATE_PFN_SHIFT:
        words.insert(0, f"pfn {entry >> MIGRATE_PFN_SHIFT}")
    return "|".join(words) or "0"


def entry_at(entries: tuple[int, ...] | None, index: int) -> int:
    """The entry at `index`; an array that is shorter, or absent, has 0 there."""
    return entries[index] if entries is not None and index < len(entries) else 0


def pairs(src: tuple[int, ...] | None, dst: tuple[int, ...] | None) -> Iterator[tuple[int, int, int]]:
    """(index, src entry, dst entry) over the longer of both arrays."""
    for index in range(max(len(src or ()), len(dst or ()))):
        yield index, entry_at(src, index), entry_at(dst, index)


def call_before(world: World, step: Step, number: int) -> Call | None:
    """The task's call of this number as it was before the step."""
    return world.task(step.task).calls.get(number)


def is_zone_device(memory: Memory | None) -> bool:
    return memory in (Memory.DEVICE_PRIVATE, Memory.DEVICE_COHERENT)


def names(entries: list[tuple[int, int]]) -> str:
    """Page-table entries as `mm 0 addr 2, mm 1 addr 2`."""
    return ", ".join(f"mm {mm} addr {addr}" for mm, addr in entries)
