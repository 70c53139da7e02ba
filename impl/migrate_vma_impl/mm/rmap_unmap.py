"""Taking a page from all page tables, to reclaim it: mm/rmap.c:try_to_unmap (7.3).

Rules:
- Each entry gives way to a swap entry, if the page is anonymous and has a slot; to nothing, if the page is a file's, or its
  contents may be dropped (MADV_FREE).
- The entry is cleared and flushed before it is replaced, and its dirty bit goes to the page. With Config.tlb_batch the flush is
  put off (tlb_batch.py).
- A page that is pinned, written again after MADV_FREE, or in locked memory stops the walk. Its entry is as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import flush_cache_page, ptep_get, ptep_get_and_clear, set_pte_at
from migrate_vma_impl.mm.rmap import (
    folio_mapping_place,
    folio_mark_dirty,
    folio_remove_rmap,
    folio_try_share_anon_rmap,
    rmap_walk_begin,
    rmap_walk_end,
)
from migrate_vma_impl.mm.swapfile import folio_put_swap, swap_duplicate
from migrate_vma_impl.mm.tlb_batch import UnmapBatch, set_tlb_ubc_flush_pending
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def try_to_unmap(kernel: Kernel, folio: Folio, batch: UnmapBatch) -> None:
    """Unmap a locked page wherever it is mapped, or as far as that can be done. The flushes may be put off, into `batch`."""
    mapped, place = await folio_mapping_place(folio)
    if not mapped or place is None:
        return
    tree, index = place
    for vma, addr in await rmap_walk_begin(tree, index):
        if not await try_to_unmap_one(kernel, folio, vma, addr, batch):
            break
    await rmap_walk_end(tree)


async def try_to_unmap_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int, batch: UnmapBatch) -> bool:
    """The entry of one VMA; False where the page cannot be unmapped."""
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, addr, addr + 1, NotifyReason.CLEAR)
    await spin_lock(vma.mm.ptl)
    done = True
    pte = await ptep_get(vma.mm, addr)
    if pte.kind is PteKind.PRESENT and pte.pfn == folio.pfn:
        done = not vma.flags & VmFlags.LOCKED and await _unmap_one(kernel, folio, vma, addr, batch)
    await spin_unlock(vma.mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, addr, addr + 1)
    return done


def _read(f: FolioState) -> Outcome:
    return (f,), f, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _unmap_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int, batch: UnmapBatch) -> bool:
    """The page-table lock is held, and the entry maps the page."""
    await flush_cache_page(vma.mm, addr)
    pte, exclusive = await ptep_get_and_clear(vma.mm, addr, folio)
    if kernel.config.tlb_batch:
        await set_tlb_ubc_flush_pending(batch, vma.mm, addr, writable=pte.dirty)
    else:
        await kernel.generation.steps.flush_unmapped(kernel, vma.mm, addr)
    if pte.dirty:
        await folio_mark_dirty(folio)
    f: FolioState = await traps.step(_read, folio)
    if f.file is None and not await _replace_anon(kernel, folio, f, vma, addr, pte, exclusive):
        await set_pte_at(vma.mm, addr, pte)
        return False
    await folio_remove_rmap(folio, vma, addr)
    await swap.folio_put(kernel, folio)
    return True


async def _replace_anon(kernel: Kernel, folio: Folio, f: FolioState, vma: Vma, addr: int, pte: Pte, exclusive: bool) -> bool:
    """ttu_anon_folio: a swap entry, or nothing where the contents may be dropped; False where the entry must come back."""
    if f.swap is not None:
        return await _to_swap(kernel, folio, f.swap, vma, addr, pte, exclusive)
    if f.lazyfree and f.dirty:
        await folio_set_swapbacked(folio)
    return f.lazyfree and not f.dirty and f.refcount == 1 + f.mapcount


async def _to_swap(kernel: Kernel, folio: Folio, number: int, vma: Vma, addr: int, pte: Pte, exclusive: bool) -> bool:
    await swap_duplicate(number)
    if exclusive and not await folio_try_share_anon_rmap(folio):
        await folio_put_swap(number)
        return False
    await set_pte_at(vma.mm, addr, kernel.generation.steps.swapped_out_entry(pte, number, exclusive))
    return True


def swapped_out_entry(pte: Pte, number: int, exclusive: bool) -> Pte:
    """The swap entry of a slot: it remembers that the page was exclusive, soft-dirty and uffd-wp; young and dirty are gone."""
    return Pte(PteKind.SWAP, exclusive=exclusive, soft_dirty=pte.soft_dirty, uffd_wp=pte.uffd_wp, swap=number)


def _swapbacked(f: FolioState) -> Outcome:
    return (evolve(f, lazyfree=False),), None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_set_swapbacked(folio: Folio) -> None:
    """Somebody wrote the page after MADV_FREE: its contents count again."""
    await traps.step(_swapbacked, folio)
