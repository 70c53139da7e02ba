"""Removing mappings: mm/memory.c:zap_pte_range and mm/mmu_gather.c (7.3).

Rules:
- Present pages lose their entry and their mapping under the page-table lock; their references are put after the TLB flush, by
  `tlb_finish_mmu`, so that no CPU has a translation to a page that is free.
- A device-private or device-exclusive page has no translation, so its reference is put at once, under the lock, and its driver's
  free callback may run there.
- A migration entry is just removed: its page belongs to the migrator, who will find that nobody wants it any more.
- A swap entry gives up its hold on the slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import page_folio
from migrate_vma_impl.mm.huge_memory_leaf import spans_leaf, split_huge_pmd
from migrate_vma_impl.mm.huge_memory_walk import zap_huge_pmd
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, Vma
from migrate_vma_impl.mm.pgtable import (
    flush_tlb_range,
    pmd_is_huge,
    pmd_ranges,
    pmdp_get,
    pte_clear,
    pte_offset_map_lock,
    pte_present,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_remove_rmap
from migrate_vma_impl.mm.swapfile import swap_put_entries_direct
from migrate_vma_impl.mm.tlb_batch import flush_tlb_batched_pending
from migrate_vma_spec.events import FolioDirtied, FolioRead
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def zap_pmd_range(kernel: Kernel, vma: Vma, start: int, end: int, gathered: list[Folio], drop_markers: bool = True) -> int:
    """Remove entries and leaves of [start, end); puts into `gathered` the folios to put after the flush. How many need a flush.

    `drop_markers`: the mapping itself goes, and with it what userfaultfd wants to remember of a file's pages.
    """
    present = 0
    for first, last in pmd_ranges(kernel, start, end):
        if pmd_is_huge(await pmdp_get(kernel, vma.mm, first)):
            if spans_leaf(kernel, first, last):
                zapped = await zap_huge_pmd(kernel, vma, first, gathered)
                if zapped is not None:
                    present += zapped
                    continue
            else:
                await split_huge_pmd(kernel, vma, first)
        present += await zap_pte_range(kernel, vma, first, last, gathered, drop_markers)
    return present


async def zap_pte_range(kernel: Kernel, vma: Vma, start: int, end: int, gathered: list[Folio], drop_markers: bool = True) -> int:
    """The part of it that lies below one page table."""
    if not await pte_offset_map_lock(kernel, vma.mm, start):
        return 0
    await flush_tlb_batched_pending(kernel, vma.mm)
    present = 0
    for addr in range(start, end):
        pte = await ptep_get(vma.mm, addr)
        marker = PTE_NONE if drop_markers else marker_left_by(vma, pte)
        if pte.kind is PteKind.MARKER and marker == pte:
            continue
        present += await _zap_pte(kernel, vma, addr, pte, gathered)
        if marker.kind is PteKind.MARKER:
            await set_pte_at(vma.mm, addr, marker)
    await spin_unlock(vma.mm.ptl)
    return present


def marker_left_by(vma: Vma, pte: Pte) -> Pte:
    """zap_install_uffd_wp_if_needed: a page of a file stays write-protected where its entry goes and the mapping does not."""
    watched = pte.uffd_wp and not vma.anonymous and vma.flags & VmFlags.UFFD_WP
    return Pte(PteKind.MARKER, uffd_wp=True) if watched else PTE_NONE


async def _zap_pte(kernel: Kernel, vma: Vma, addr: int, pte: Pte, gathered: list[Folio]) -> bool:
    if pte.kind is PteKind.NONE:
        return False
    page = None if pte.pfn is None else Folio(pte.pfn)
    folio = None if page is None else await page_folio(kernel, page)
    if pte_present(pte):
        await pte_clear(vma.mm, addr)
        if folio is not None:
            if pte.dirty and not vma.anonymous:
                await traps.step(_dirty_if_of_file, folio)
            await folio_remove_rmap(folio, vma, addr, page=page)
            gathered.append(folio)
        return True
    if pte.kind in (PteKind.DEVICE_PRIVATE, PteKind.EXCLUSIVE) and folio is not None:
        await folio_remove_rmap(folio, vma, addr, page=page)
        await swap.folio_put(kernel, folio)
    if pte.kind is PteKind.SWAP and pte.swap is not None:
        await swap_put_entries_direct(kernel, pte.swap)
    await pte_clear(vma.mm, addr)
    return False


def _dirty_if_of_file(f: FolioState) -> Outcome:
    """zap_present_folio_ptes: a page of a file takes over the dirty bit; a private copy's contents go with it."""
    if f.file is None:
        return (f,), None, FolioRead(f.pfn, f.refcount, f.mapcount)
    return (evolve(f, dirty=True),), None, FolioDirtied(f.pfn)


async def tlb_finish_mmu(kernel: Kernel, mm: Mm, start: int, end: int, present: int, gathered: list[Folio]) -> None:
    """Flush, then put the gathered pages; this CPU's LRU batch goes first, for it may hold references to them."""
    if present:
        await flush_tlb_range(kernel, mm, start, end)
    if gathered:
        await swap.lru_add_drain(kernel)
    for folio in gathered:
        await swap.folio_put(kernel, folio)
