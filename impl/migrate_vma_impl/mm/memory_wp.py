"""Write faults on read-only entries, and the copy that they may make: mm/memory.c:do_wp_page and wp_page_copy (7.3)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import memcontrol, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get, folio_trylock, folio_unlock, page_folio
from migrate_vma_impl.mm.highmem import clear_highpage, copy_highpage
from migrate_vma_impl.mm.memory_file import wp_page_shared
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Folio, FolioState
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    flush_tlb_page,
    mk_pte,
    pte_clear,
    pte_mkdirty,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap, folio_move_anon_rmap, folio_remove_rmap, page_and_head
from migrate_vma_impl.mm.swapfile import folio_free_swap
from migrate_vma_impl.mm.userfaultfd import handle_userfault, userfaultfd_pte_wp
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Lru, NotifyReason, Pte, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


LRU_AND_SWAP_CACHE = 2
"""References besides the mapping's that a page may have at the first look: a batch's and the swap cache's."""


class Reuse(enum.Enum):
    """What the first look at a folio says about reusing it in place."""

    EXCLUSIVE = "it is exclusive already"
    TRY = "nobody else seems to hold it"
    DRAIN = "a batch of this CPU may hold the other reference"
    COPY = "others hold it"


def _look(f: FolioState, *tail: FolioState) -> Outcome:
    """At a folio, and the page of it that is mapped. A large one is not reused for one page, unless that is exclusive already."""
    cached = f.swap is not None
    page = tail[0] if tail else f
    small_anon = f.anon_vma is not None and f.file is None and not f.order
    if page.exclusive:
        hint = Reuse.EXCLUSIVE
    elif not small_anon or f.refcount > 1 + LRU_AND_SWAP_CACHE or (f.refcount > 1 + cached and f.lru is Lru.ON):
        hint = Reuse.COPY
    else:
        hint = Reuse.TRY if f.lru is Lru.ON else Reuse.DRAIN
    return (f, *tail), hint, FolioRead(f.pfn, f.refcount, f.mapcount)


async def wp_can_reuse_anon_folio(kernel: Kernel, folio: Folio, page: Folio) -> bool:
    """Whether the page of the folio is, or under its lock becomes, exclusive to the faulting mapping. A file's never is."""
    hint: Reuse = await traps.step(_look, *page_and_head(folio, page))
    if hint in (Reuse.EXCLUSIVE, Reuse.COPY):
        return hint is Reuse.EXCLUSIVE
    if hint is Reuse.DRAIN:
        await swap.lru_add_drain(kernel)
    if not await folio_trylock(folio):
        return False
    if kernel.config.swap_slots:
        await folio_free_swap(kernel, folio)
    alone = await folio_move_anon_rmap(folio)
    await folio_unlock(folio)
    return alone


async def do_wp_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """Entered with the page-table lock held and the entry unchanged; leaves without the lock.

    To unshare a page is the same, but that the entry stays read-only.
    """
    if not vmf.flags & FaultFlag.UNSHARE:
        if userfaultfd_pte_wp(vmf, vmf.orig_pte):
            await spin_unlock(vmf.vma.mm.ptl)
            return await handle_userfault(kernel, vmf, write_protected=True)
        if vmf.vma.flags & VmFlags.UFFD_WP:
            await kernel.generation.steps.flush_before_copy(kernel, vmf.vma.mm, vmf.address)
    old = None if vmf.orig_pte.pfn is None else Folio(vmf.orig_pte.pfn)
    if old is not None and vmf.vma.flags & VmFlags.SHARED:
        return await wp_page_shared(kernel, vmf, old)
    folio = None if old is None else await page_folio(kernel, old)
    if old is not None and folio is not None and await wp_can_reuse_anon_folio(kernel, folio, old):
        if not vmf.flags & FaultFlag.UNSHARE:
            await flush_cache_page(vmf.vma.mm, vmf.address)
            await set_pte_at(vmf.vma.mm, vmf.address, pte_mkdirty(evolve(vmf.orig_pte, write=True, young=True)))
        await spin_unlock(vmf.vma.mm.ptl)
        return VmFault.NONE
    if folio is not None:
        await folio_get(folio)
    await spin_unlock(vmf.vma.mm.ptl)
    result = await wp_page_copy(kernel, vmf, old, folio)
    if folio is not None:
        await swap.folio_put(kernel, folio)
    return result


async def wp_page_copy(kernel: Kernel, vmf: FaultContext, old: Folio | None, folio: Folio | None) -> VmFault:
    """Copy the page, or clear one for the zero page, and map the copy if the entry is still the same.

    `folio` is that of the old page: the caller's reference keeps it from being split.
    """
    mm, addr = vmf.vma.mm, vmf.address
    new = await alloc_page(kernel, "a page for a copy on write")
    if new is None:
        return VmFault.OOM
    if old is None:
        await clear_highpage(new)
    else:
        await copy_highpage(new, old)
    await memcontrol.mem_cgroup_charge(kernel, new)
    await folio_mark_uptodate(new)
    await mmu_notifier.invalidate_range_start(kernel, mm, addr, addr + 1, NotifyReason.CLEAR)
    await spin_lock(mm.ptl)
    same = await ptep_get(mm, addr) == vmf.orig_pte
    if same:
        await _map_copy(kernel, vmf, new)
        if folio is not None:
            await folio_remove_rmap(folio, vmf.vma, addr, page=old)
    await spin_unlock(mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, mm, addr, addr + 1)
    unused = folio if same else new
    if unused is not None:
        await swap.folio_put(kernel, unused)
    return VmFault.NONE


def copied_entry(vmf: FaultContext, new: Folio) -> Pte:
    """The entry for a copy: writable and dirty, or, if it was made to unshare the page, with what the old one told of writes."""
    if vmf.flags & FaultFlag.UNSHARE:
        return evolve(mk_pte(new), soft_dirty=vmf.orig_pte.soft_dirty, uffd_wp=vmf.orig_pte.uffd_wp)
    return pte_mkdirty(evolve(mk_pte(new), write=True, soft_dirty=True))


async def _map_copy(kernel: Kernel, vmf: FaultContext, new: Folio) -> None:
    """Clear and flush before the new entry, so that no CPU sees both pages; the old mapping is forgotten by the caller."""
    mm, addr = vmf.vma.mm, vmf.address
    await flush_cache_page(mm, addr)
    await pte_clear(mm, addr)
    await flush_tlb_page(kernel, mm, addr)
    await folio_add_new_anon_rmap(new, vmf.vma, addr)
    await swap.folio_add_lru(kernel, new)
    await set_pte_at(mm, addr, copied_entry(vmf, new))
