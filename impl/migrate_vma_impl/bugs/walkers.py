"""Faults of those who meet device pages and migration entries: fork, hmm_range_fault, exclusive access, userfaultfd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl import fault_page
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm.folio import folio_unlock
from migrate_vma_impl.mm.hmm_walk import is_faulted_in
from migrate_vma_impl.mm.memory_copy import forked_entry
from migrate_vma_impl.mm.migrate import entry_after_migration
from migrate_vma_impl.mm.mm_types import FaultContext, Folio
from migrate_vma_impl.mm.pgtable import migration_entry_for
from migrate_vma_spec.vocabulary import Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def copied_as_present(pte: Pte) -> Pte:
    """Fork makes of a migration entry what it takes it for: a mapping of the page that it names."""
    if pte.kind is PteKind.MIGRATION:
        return evolve(pte, kind=PteKind.PRESENT, write=False, exclusive=False)
    return forked_entry(pte)


def foreign_is_an_error(pte: Pte) -> bool:
    return is_faulted_in(pte) and pte.kind is not PteKind.DEVICE_PRIVATE


def owned_by_anybody(kernel: Kernel, owner: str | None, pte: Pte) -> bool:
    return pte.kind is PteKind.DEVICE_PRIVATE


async def release_lock_only(kernel: Kernel, folio: Folio) -> None:
    await folio_unlock(folio)


def under_any_lock(vmf: FaultContext) -> bool:
    return False


def guard_lost(pte: Pte, exclusive: bool) -> Pte:
    return evolve(migration_entry_for(pte, exclusive), uffd_wp=False)


def restored_without_soft_dirty(old: Pte, dst: Folio, device: bool, dirty: bool) -> Pte:
    return evolve(entry_after_migration(old, dst, device, dirty), soft_dirty=False)


BUGS = (
    Bug(
        "B23",
        "another device's page is an error",
        "hmm_range_fault fails on a device-private page that it should have faulted in.",
        ("C90",),
        WAITING.with_steps(hmm_faults_in=foreign_is_an_error),
        commit="8a295dbbaf72",
        year=2022,
        kernels="before v6.0",
    ),
    Bug(
        "foreign_reported",
        "a device is told of another device's page",
        "hmm_range_fault does not ask whose a device-private page is.",
        ("C90",),
        WAITING.with_steps(hmm_owns=owned_by_anybody),
    ),
    Bug(
        "forked_as_present",
        "fork copies a migration entry as a mapping",
        "The child has the page that is being moved, and the move does not know.",
        ("C20", "C56"),
        WAITING.with_steps(forked_entry=copied_as_present),
    ),
    Bug(
        "exclusive_not_unlocked",
        "a fault on an exclusive page keeps its reference",
        "The page is never freed.",
        ("C44",),
        WAITING.with_steps(release_exclusive=release_lock_only),
    ),
    Bug(
        "exclusive_stays_locked",
        "a fault on an exclusive page keeps its lock",
        "Whoever needs the page next waits for ever.",
        ("C44", "C82"),
        WAITING.with_steps(release_exclusive=fault_page.release_reference),
    ),
    Bug(
        "callback_under_vma_lock",
        "the driver is called under the VMA's lock",
        "It migrates in an address space that others may change.",
        ("C40",),
        WAITING.with_steps(refuses_vma_lock=under_any_lock),
    ),
    Bug(
        "uffd_guard_lost",
        "the guard of a userfaultfd is lost",
        "The migration entry of a guarded page does not say so, and a store is not told of.",
        ("C64",),
        WAITING.with_steps(collect_entry=guard_lost),
    ),
    Bug(
        "soft_dirty_not_restored",
        "finalize drops soft-dirty",
        "A checkpoint misses a write.",
        ("C64",),
        WAITING.with_steps(restored_entry=restored_without_soft_dirty),
    ),
)
