"""Replacing the mappings of a folio by migration entries: mm/rmap.c:try_to_migrate and page_vma_mapped_walk (7.3).

Rules:
- The walk takes the page-table lock before it looks, once for each entry of the middle level. The kernel looks first and locks
  when it sees something of interest, which saves it locks and us nothing.
- The entries of each VMA change in a notifier bracket of their own, event CLEAR without an owner.
- A folio that is mapped by a leaf gets a migration entry at the middle level, or, for a split (TTU_SPLIT_HUGE_PMD), a page table
  of them. Where a pin keeps the leaf's pages mapped, the walk finds them so, and stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_nr_pages
from migrate_vma_impl.mm.huge_memory_leaf import split_huge_pmd_locked
from migrate_vma_impl.mm.huge_memory_migrate import set_pmd_migration_entry
from migrate_vma_impl.mm.mm_types import Folio, Vma
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    flush_tlb_page,
    pmd_is_huge,
    pmd_ranges,
    pmdp_get,
    pte_present,
    ptep_get,
    ptep_get_and_clear,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import (
    folio_mapping_place,
    folio_mark_dirty,
    folio_remove_rmap,
    folio_try_share_anon_rmap,
    rmap_walk_begin,
    rmap_walk_end,
    shows,
)
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def try_to_migrate(kernel: Kernel, folio: Folio) -> None:
    """Replace every mapping of a locked folio by a migration entry; a pinned page stops it."""
    mapped, place = await folio_mapping_place(folio)
    if not mapped or place is None:
        return
    tree, index = place
    pages = await folio_nr_pages(kernel, folio)
    for vma, _ in await rmap_walk_begin(tree, index, pages):
        if not await try_to_migrate_one(kernel, folio, vma, index, pages):
            break
    await rmap_walk_end(tree)


async def try_to_migrate_one(kernel: Kernel, folio: Folio, vma: Vma, index: int, pages: int, *, split: bool = False) -> bool:
    """What one VMA shows of the folio's pages. False: a page of it is pinned, and stays mapped."""
    shown = shows(vma, index, pages)
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, shown.start, shown.stop, NotifyReason.CLEAR)
    done = True
    for first, last in pmd_ranges(kernel, shown.start, shown.stop):
        if done:
            await spin_lock(vma.mm.ptl)
            done = await _unmap_range(kernel, folio, vma, first, last, pages, split)
            await spin_unlock(vma.mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, shown.start, shown.stop)
    return done


def maps(pte: Pte, folio: Folio, pages: int = 1) -> bool:
    """check_pte: whether an entry maps one of the folio's pages."""
    mapping = pte.kind in (PteKind.PRESENT, PteKind.DEVICE_PRIVATE, PteKind.EXCLUSIVE)
    return mapping and pte.pfn is not None and folio.pfn <= pte.pfn < folio.pfn + pages


async def _unmap_range(kernel: Kernel, folio: Folio, vma: Vma, start: int, end: int, pages: int, split: bool) -> bool:
    """The addresses below one entry of the middle level, under the page-table lock."""
    pmd = await pmdp_get(kernel, vma.mm, start)
    if pmd_is_huge(pmd):
        if not maps(pmd, folio, pages):
            return True
        if not split:
            return await set_pmd_migration_entry(kernel, vma, start, folio)
        await split_huge_pmd_locked(kernel, vma, start, freeze=True)
    elif pmd.kind is PteKind.NONE:
        return True
    for addr in range(start, end):
        pte = await ptep_get(vma.mm, addr)
        if maps(pte, folio, pages) and not await _unmap_one(kernel, folio, vma, addr, pte):
            return False
    return True


async def _unmap_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int, pte: Pte) -> bool:
    """The entry maps a page of the folio and its page-table lock is held: put a migration entry there."""
    page = folio if pte.pfn is None else Folio(pte.pfn)
    present = pte_present(pte)
    if present:
        await flush_cache_page(vma.mm, addr)
    pte, exclusive = await ptep_get_and_clear(vma.mm, addr, page)
    if present:
        await flush_tlb_page(kernel, vma.mm, addr)
        if pte.dirty:
            await folio_mark_dirty(folio)
    if exclusive and not await folio_try_share_anon_rmap(folio, page):
        await set_pte_at(vma.mm, addr, pte)
        return False
    await set_pte_at(vma.mm, addr, kernel.generation.steps.unmap_entry(pte, exclusive))
    await folio_remove_rmap(folio, vma, addr, page=page)
    await swap.folio_put(kernel, folio)
    return True
