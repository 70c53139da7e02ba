"""Removing mappings: mm/memory.c:zap_pte_range and mm/mmu_gather.c (7.3).

Rules:
- Present pages lose their entry and their mapping under the page-table lock; their references are put after the TLB flush, by
  `tlb_finish_mmu`, so that no CPU has a translation to a page that is free.
- A device-private page has no translation, so its reference is put at once, under the lock, and its driver's free callback may
  run there.
- A migration entry is just removed: its page belongs to the migrator, who will find that nobody wants it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_impl.mm.pgtable import flush_tlb_range, pte_clear, pte_present, ptep_get
from migrate_vma_impl.mm.rmap import folio_remove_rmap
from migrate_vma_spec.vocabulary import PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def zap_pte_range(kernel: Kernel, vma: Vma, start: int, end: int, gathered: list[Folio]) -> int:
    """Remove the entries of [start, end); puts into `gathered` the pages to put after the flush. How many need a flush."""
    present = 0
    await spin_lock(vma.mm.ptl)
    for addr in range(start, end):
        present += await _zap_pte(kernel, vma, addr, gathered)
    await spin_unlock(vma.mm.ptl)
    return present


async def _zap_pte(kernel: Kernel, vma: Vma, addr: int, gathered: list[Folio]) -> bool:
    pte = await ptep_get(vma.mm, addr)
    if pte.kind is PteKind.NONE:
        return False
    folio = None if pte.pfn is None else Folio(pte.pfn)
    if pte_present(pte):
        await pte_clear(vma.mm, addr)
        if folio is not None:
            await folio_remove_rmap(folio, vma, addr)
            gathered.append(folio)
        return True
    if pte.kind is PteKind.DEVICE_PRIVATE and folio is not None:
        await folio_remove_rmap(folio, vma, addr)
        await swap.folio_put(kernel, folio)
    await pte_clear(vma.mm, addr)
    return False


async def tlb_finish_mmu(kernel: Kernel, mm: Mm, start: int, end: int, present: int, gathered: list[Folio]) -> None:
    """Flush, then put the gathered pages; this CPU's LRU batch goes first, for it may hold references to them."""
    if present:
        await flush_tlb_range(kernel, mm, start, end)
    if gathered:
        await swap.lru_add_drain(kernel)
    for folio in gathered:
        await swap.folio_put(kernel, folio)
