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
from migrate_vma_impl.mm.hmm_walk import is_faulted_in, own_device_private
from migrate_vma_impl.mm.huge_memory_folio import tell_of_split
from migrate_vma_impl.mm.memory import refuses_vma_lock
from migrate_vma_impl.mm.memory_copy import forked_entry
from migrate_vma_impl.mm.memory_exclusive import unlock_and_put
from migrate_vma_impl.mm.memory_swap import swapped_in_entry
from migrate_vma_impl.mm.memremap import cleared_frame
from migrate_vma_impl.mm.migrate import (
    entry_after_migration,
    expected_references,
    folio_migrate_flags,
    queue_then_drop_ptl,
    remove_migration_ptes,
)
from migrate_vma_impl.mm.migrate_device import (
    add_destination_to_lru,
    check_arguments,
    no_unexpected_references,
    unlock_unless_fault_page,
)
from migrate_vma_impl.mm.migrate_device_by_pfn import lock_pfn
from migrate_vma_impl.mm.migrate_device_collect import (
    Walk,
    dirty_present,
    empty_entry,
    flush_then_drop_ptl,
    migrate_vma_collect,
    selects,
)
from migrate_vma_impl.mm.migrate_device_huge import (
    drop_ptl_and_table,
    fault_folio_again,
    flush_cache_range,
    migrate_vma_split_folio,
    part_entry,
    pin_flush_and_leave,
    split_leaf,
    split_migration_pmds,
    split_unmapped,
)
from migrate_vma_impl.mm.migrate_device_pages import (
    folio_mark_uptodate,
    inserted_entry,
    is_swap_cache,
    no_destination,
    refuse_large_destination,
    skipped_entry,
    still_a_hole,
)
from migrate_vma_impl.mm.migrate_mapping import Mapping, mapping_by_now
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.mprotect import Change, can_change_pte_writable, protected_entry
from migrate_vma_impl.mm.mremap import flush_moved_then_drop_ptl, moved_entry
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    flush_tlb_page,
    flush_tlb_page_if_pending,
    migration_entry_for,
    ptep_set_wrprotect,
)
from migrate_vma_impl.mm.rmap import folio_try_share_anon_rmap
from migrate_vma_impl.mm.rmap_migrate import try_to_migrate
from migrate_vma_impl.mm.rmap_unmap import swapped_out_entry
from migrate_vma_impl.mm.swapfile import folio_free_swap
from migrate_vma_impl.mm.tlb_batch import UnmapBatch, flush_tlb_mm_batched, try_to_unmap_flush, try_to_unmap_flush_dirty
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, Pte, VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

Does = Coroutine[Any, Any, None]
Asks = Coroutine[Any, Any, bool]
Finds = Coroutine[Any, Any, Mapping | None]


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
    refuses_vma_lock: Callable[[FaultContext], bool] = refuses_vma_lock
    fault_result: Callable[[VmFault], VmFault] = propagate
    wait_on_locked: Callable[[Folio, SpinLock], Asks] = queue_then_drop_ptl

    # -- setup, in migrate_device.py
    check_arguments: Callable[[MigrateVma], int] = check_arguments

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

    # -- large folios in collect, in migrate_device_huge.py
    put_not_split: Callable[[Kernel, Folio], Does] = swap.folio_put
    split_leaf: Callable[[Kernel, Folio, bool], Asks] = split_leaf
    pin_and_leave: Callable[[Kernel, Walk, Folio], Does] = pin_flush_and_leave
    split_large: Callable[[Kernel, Folio, Folio | None], Asks] = migrate_vma_split_folio
    fault_folio_again: Callable[[Kernel, Folio | None, Folio | None], Coroutine[Any, Any, Folio | None]] = fault_folio_again

    # -- by frame number, in migrate_device_by_pfn.py
    lock_pfn: Callable[[Kernel, int], Coroutine[Any, Any, tuple[int, int]]] = lock_pfn

    # -- unmap, in migrate_device.py, rmap.py
    count_empty: Callable[[int], int] = one_if_migrating
    unmap_all: Callable[[Kernel, Folio], Does] = try_to_migrate
    unmap_entry: Callable[[Pte, bool], Pte] = migration_entry_for
    check_page: Callable[[FolioState, int], bool] = no_unexpected_references
    restore_mappings: Callable[[Kernel, Folio, Folio], Does] = remove_migration_ptes
    unlock_restored: Callable[[Kernel, Folio, Folio | None], Does] = unlock_unless_fault_page

    # -- pages, in migrate_device_pages.py, migrate.py
    expected_references: Callable[[FolioState, int], int] = expected_references
    skipped_entry: Callable[[int], int] = skipped_entry
    may_leave_cache: Callable[[Mapping], bool] = is_swap_cache
    free_swap: Callable[[Kernel, Folio], Asks] = folio_free_swap
    mapping_by_now: Callable[[Kernel, Folio, Mapping], Finds] = mapping_by_now
    move_flags: Callable[[Folio, Folio], Does] = folio_migrate_flags
    split_migration_pmds: Callable[[Kernel, Vma, int, Folio], Does] = split_migration_pmds
    split_unmapped: Callable[[Kernel, Folio, Folio | None], Asks] = split_unmapped
    refuse_large_destination: Callable[[int], bool] = refuse_large_destination
    part_entry: Callable[[int, int, int], int] = part_entry
    tell_of_split: Callable[[Kernel, Folio, tuple[Folio, ...]], Does] = tell_of_split
    no_destination: Callable[[int], bool] = no_destination
    mark_uptodate: Callable[[Folio], Does] = folio_mark_uptodate
    may_insert: Callable[[Vma, Pte], bool] = still_a_hole
    abort_insert: Callable[[Mm], Does] = drop_ptl
    abort_huge_insert: Callable[[Kernel, Mm], Does] = drop_ptl_and_table
    flush_cache_huge: Callable[[Kernel, Mm, int], Does] = flush_cache_range
    inserted_entry: Callable[[Vma, Folio, bool], Pte] = inserted_entry

    # -- finalize, in migrate_device.py, migrate.py
    add_to_lru: Callable[[Kernel, Folio, Folio], Does] = add_destination_to_lru
    map_destination: Callable[[Kernel, Folio, Folio], Does] = remove_migration_ptes
    restored_entry: Callable[[Pte, Folio, bool, bool], Pte] = entry_after_migration
    unlock_migrated: Callable[[Kernel, Folio, Folio | None], Does] = unlock_unless_fault_page
    put_migrated: Callable[[Kernel, Folio], Does] = swap.folio_put

    # -- device pages, in memremap.py
    clear_device_frame: Callable[[FolioState], FolioState] = cleared_frame

    # -- swap, in rmap_unmap.py, tlb_batch.py, vmscan.py, memory_swap.py
    flush_unmapped: Callable[[Kernel, Mm, int], Does] = flush_tlb_page
    flush_before_pageout: Callable[[Kernel, UnmapBatch], Does] = try_to_unmap_flush_dirty
    flush_before_free: Callable[[Kernel, UnmapBatch], Does] = try_to_unmap_flush
    flush_batched: Callable[[Kernel, Mm], Does] = flush_tlb_mm_batched
    swapped_out_entry: Callable[[Pte, int, bool], Pte] = swapped_out_entry
    swapped_in_entry: Callable[[Vma, Pte, Folio, bool], Pte] = swapped_in_entry

    # -- fork, in memory_copy.py
    write_protect_parent: Callable[[Mm, int], Does] = ptep_set_wrprotect
    forked_entry: Callable[[Pte], Pte] = forked_entry

    # -- copies on write in VMAs that userfaultfd guards, in memory_wp.py
    flush_before_copy: Callable[[Kernel, Mm, int], Does] = flush_tlb_page_if_pending

    # -- mprotect and mremap, in mprotect.py, mremap.py
    protected_entry: Callable[[Pte, Change], Pte] = protected_entry
    moved_entry: Callable[[Vma, Pte], Pte] = moved_entry
    flush_moved: Callable[[Kernel, Mm, int, int, int], Does] = flush_moved_then_drop_ptl

    # -- device-exclusive entries, in memory_exclusive.py
    exclusive_writable: Callable[[Vma, Pte, bool], bool] = can_change_pte_writable
    release_exclusive: Callable[[Kernel, Folio], Does] = unlock_and_put

    # -- hmm_range_fault, in hmm_walk.py
    hmm_owns: Callable[[Kernel, str | None, Pte], bool] = own_device_private
    hmm_faults_in: Callable[[Pte], bool] = is_faulted_in


SOUND = Steps()
