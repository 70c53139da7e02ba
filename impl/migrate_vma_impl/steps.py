"""The small steps that a known bug changes, each a field with its right default.

A mutation is a generation with one field replaced: `generation.with_steps(flush_and_unlock=drop_ptl_then_flush)`. The kernel's
code calls every one of these steps as `kernel.generation.steps.x(...)`, and says there what it is for. What differs between
generations (the claim on the fault page, its release, setup's checks of it) is a part of the generation itself and can be
replaced in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from migrate_vma_impl.machine.locks import SpinLock, spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_trylock
from migrate_vma_impl.mm.memory_copy import forked_entry
from migrate_vma_impl.mm.migrate import (
    entry_after_migration,
    expected_references,
    folio_migrate_flags,
    queue_then_drop_ptl,
    remove_migration_ptes,
)
from migrate_vma_impl.mm.migrate_device import (
    add_destination_to_lru,
    no_unexpected_references,
    unlock_unless_fault_page,
)
from migrate_vma_impl.mm.migrate_device_collect import (
    dirty_present,
    empty_entry,
    flush_then_drop_ptl,
    migrate_vma_collect,
    selects,
)
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate, inserted_entry, still_a_hole
from migrate_vma_impl.mm.mm_types import Folio, FolioState, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.pgtable import flush_cache_page, flush_tlb_page, migration_entry_for, ptep_set_wrprotect
from migrate_vma_impl.mm.rmap import folio_try_share_anon_rmap, try_to_migrate
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, Pte, VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

Does = Coroutine[Any, Any, None]
Asks = Coroutine[Any, Any, bool]


def propagate(result: VmFault) -> VmFault:
    return result


async def drop_ptl(mm: Mm) -> None:
    await spin_unlock(mm.ptl)


def one_if_migrating(entry: int) -> int:
    return int(bool(entry & MIGRATE_PFN_MIGRATE))


@frozen
class Steps:
    """In the order in which a page meets them."""

    canonical_constant: ClassVar[bool] = True

    # -- do_swap_page and the waits, in memory.py and migrate.py
    fault_result: Callable[[VmFault], VmFault] = propagate
    wait_on_locked: Callable[[Folio, SpinLock], Asks] = queue_then_drop_ptl

    # -- collect, in migrate_device_collect.py
    collect: Callable[[Kernel, MigrateVma], Does] = migrate_vma_collect
    empty_entry: Callable[[MigrateVma, Vma, Pte], int | None] = empty_entry
    selects: Callable[[Kernel, MigrateVma, Pte], bool] = selects
    lock_collected: Callable[[Folio], Asks] = folio_trylock
    flush_cache: Callable[[Mm, int], Does] = flush_cache_page
    flush_exclusive: Callable[[Kernel, Mm, int], Does] = flush_tlb_page
    share_exclusive: Callable[[Folio], Asks] = folio_try_share_anon_rmap
    keep_dirty: Callable[[Folio, Pte], Does] = dirty_present
    collect_entry: Callable[[Pte, bool], Pte] = migration_entry_for
    flush_and_unlock: Callable[[Kernel, Mm, int, int, int], Does] = flush_then_drop_ptl

    # -- unmap, in migrate_device.py, rmap.py
    count_empty: Callable[[int], int] = one_if_migrating
    unmap_all: Callable[[Kernel, Folio], Does] = try_to_migrate
    unmap_entry: Callable[[Pte, bool], Pte] = migration_entry_for
    check_page: Callable[[FolioState, int], bool] = no_unexpected_references
    restore_mappings: Callable[[Kernel, Folio, Folio], Does] = remove_migration_ptes
    unlock_restored: Callable[[Kernel, Folio, Folio | None], Does] = unlock_unless_fault_page

    # -- pages, in migrate_device_pages.py, migrate.py
    expected_references: Callable[[FolioState, int], int] = expected_references
    move_flags: Callable[[Folio, Folio], Does] = folio_migrate_flags
    mark_uptodate: Callable[[Folio], Does] = folio_mark_uptodate
    may_insert: Callable[[Vma, Pte], bool] = still_a_hole
    abort_insert: Callable[[Mm], Does] = drop_ptl
    inserted_entry: Callable[[Vma, Folio, bool], Pte] = inserted_entry

    # -- finalize, in migrate_device.py, migrate.py
    add_to_lru: Callable[[Kernel, Folio, Folio], Does] = add_destination_to_lru
    map_destination: Callable[[Kernel, Folio, Folio], Does] = remove_migration_ptes
    restored_entry: Callable[[Pte, Folio, bool, bool], Pte] = entry_after_migration
    unlock_migrated: Callable[[Kernel, Folio, Folio | None], Does] = unlock_unless_fault_page
    put_migrated: Callable[[Kernel, Folio], Does] = swap.folio_put

    # -- fork, in memory_copy.py
    write_protect_parent: Callable[[Mm, int], Does] = ptep_set_wrprotect
    forked_entry: Callable[[Pte], Pte] = forked_entry


SOUND = Steps()
