"""A page of memory is broken: mm/memory-failure.c (7.3), for a mapped anonymous page of the system.

Rules:
- The page is locked, so a migration of it is over or has yet to begin; every mapping becomes an entry that says so.
- The reference that was taken to handle it is kept for good: the page never goes back to the allocator.
- Who touches such an entry gets VM_FAULT_HWPOISON, and SIGBUS from it. (The kernel may also tell the processes at once.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_lock, folio_try_get, folio_unlock
from migrate_vma_impl.mm.mm_types import AnonVma, Folio, Vma
from migrate_vma_impl.mm.pgtable import flush_cache_page, flush_tlb_page, ptep_get, ptep_get_and_clear, set_pte_at
from migrate_vma_impl.mm.rmap import folio_mapping_place, folio_mark_dirty, folio_remove_rmap, rmap_walk_begin, rmap_walk_end
from migrate_vma_spec.vocabulary import Errno, NotifyReason, Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def memory_failure(kernel: Kernel, folio: Folio) -> int:
    """-EBUSY for a page that nobody maps, or no such page of the system: nothing is done about it here."""
    if kernel.is_zone_device(folio) or not await folio_try_get(folio):
        return -Errno.EBUSY
    await folio_lock(folio)
    mapped, place = await folio_mapping_place(folio)
    poisoned = mapped and place is not None and isinstance(place[0], AnonVma)
    if poisoned and place is not None:
        tree, index = place
        for vma, addr in await rmap_walk_begin(tree, index):
            await _poison_one(kernel, folio, vma, addr)
        await rmap_walk_end(tree)
        if await swap.folio_isolate_lru(kernel, folio):
            await swap.folio_put(kernel, folio)
    await folio_unlock(folio)
    if not poisoned:
        await swap.folio_put(kernel, folio)
    return 0 if poisoned else -Errno.EBUSY


async def _poison_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int) -> None:
    """try_to_unmap_one with TTU_HWPOISON."""
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, addr, addr + 1, NotifyReason.CLEAR)
    await spin_lock(vma.mm.ptl)
    pte = await ptep_get(vma.mm, addr)
    if pte.kind is PteKind.PRESENT and pte.pfn == folio.pfn:
        await flush_cache_page(vma.mm, addr)
        pte, _ = await ptep_get_and_clear(vma.mm, addr, folio)
        await flush_tlb_page(kernel, vma.mm, addr)
        if pte.dirty:
            await folio_mark_dirty(folio)
        await set_pte_at(vma.mm, addr, Pte(PteKind.HWPOISON, folio.pfn))
        await folio_remove_rmap(folio, vma, addr)
        await swap.folio_put(kernel, folio)
    await spin_unlock(vma.mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, addr, addr + 1)
