"""mm/huge_memory.c in parts: what the rest of the kernel calls of them, by one name.

- `huge_memory_leaf`: leaves of the middle level, their primitives and their split
- `huge_memory_migrate`: migration entries in their place
- `huge_memory_folio`: the split of folios
- `huge_memory_fault`: faults
- `huge_memory_walk`: fork, zap, mprotect, mremap, madvise
- `huge_memory_device`: faults on leaves of device-private folios
"""

from __future__ import annotations

from migrate_vma_impl.mm.huge_memory_folio import folio_split_unmapped, split_folio, split_huge_page
from migrate_vma_impl.mm.huge_memory_leaf import (
    flush_pmd_tlb_range,
    hpage_start,
    pmdp_huge_clear_flush,
    pmdp_huge_get_and_clear,
    pmdp_set_wrprotect,
    pte_alloc_one,
    pte_free,
    set_pmd_at,
    spans_leaf,
    split_huge_pmd,
    split_huge_pmd_address,
    split_huge_pmd_locked,
    vma_adjust_trans_huge,
)
from migrate_vma_impl.mm.huge_memory_migrate import pmd_migration_entry_wait, remove_migration_pmd, set_pmd_migration_entry
from migrate_vma_impl.mm.huge_memory_walk import (
    change_huge_pmd,
    copy_huge_pmd,
    madvise_free_huge_pmd,
    move_huge_pmd,
    zap_huge_pmd,
)

__all__ = [
    "change_huge_pmd",
    "copy_huge_pmd",
    "flush_pmd_tlb_range",
    "folio_split_unmapped",
    "hpage_start",
    "madvise_free_huge_pmd",
    "move_huge_pmd",
    "pmd_migration_entry_wait",
    "pmdp_huge_clear_flush",
    "pmdp_huge_get_and_clear",
    "pmdp_set_wrprotect",
    "pte_alloc_one",
    "pte_free",
    "remove_migration_pmd",
    "set_pmd_at",
    "set_pmd_migration_entry",
    "spans_leaf",
    "split_folio",
    "split_huge_page",
    "split_huge_pmd",
    "split_huge_pmd_address",
    "split_huge_pmd_locked",
    "vma_adjust_trans_huge",
    "zap_huge_pmd",
]
