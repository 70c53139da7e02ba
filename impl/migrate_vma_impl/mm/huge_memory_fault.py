"""Faults that one leaf of the middle level can serve: mm/memory.c:__handle_mm_fault and mm/huge_memory.c (7.3).

Rules:
- Anonymous memory that asks for it (VmFlags.HUGEPAGE) gets a large folio, or the huge zero page for a read, where nothing hangs
  yet and the VMA shows the whole of the leaf's range. Where there is no such folio, or not for it alone, the fault goes on page
  by page (FALLBACK).
- A leaf is first read without the page-table lock; whoever acts on it takes the lock and looks again. What has changed is no
  error: the fault returns, and the access is tried again.
- A store to a read-only leaf makes it writable if the folio is this mapping's alone; else the leaf is split, and the page copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import memcontrol, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get, folio_lock, folio_trylock, folio_unlock
from migrate_vma_impl.mm.highmem import folio_zero_user
from migrate_vma_impl.mm.huge_memory_device import do_huge_pmd_device_private, lock_if_same_pmd
from migrate_vma_impl.mm.huge_memory_leaf import (
    hpage_start,
    pmdp_huge_clear_flush,
    pte_alloc_one,
    pte_free,
    set_pmd_at,
    split_huge_pmd,
)
from migrate_vma_impl.mm.huge_memory_migrate import pmd_migration_entry_wait
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Folio, FolioState, Vma
from migrate_vma_impl.mm.page_alloc import folio_alloc
from migrate_vma_impl.mm.pgtable import hpage_nr, mk_pte, pmd_trans_huge, pmdp_get, pte_mkdirty
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap, folio_move_anon_rmap
from migrate_vma_impl.mm.userfaultfd import handle_userfault, userfaultfd_missing, userfaultfd_pte_wp
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

HUGE_ZERO = Pte(PteKind.ZERO, young=True)


def thp_vma_allowable_order(kernel: Kernel, vma: Vma, addr: int) -> bool:
    """Whether a leaf may map large anonymous folios at `addr`: the VMA asks for them and shows all that the leaf would map."""
    asks = vma.flags & (VmFlags.HUGEPAGE | VmFlags.NOHUGEPAGE) == VmFlags.HUGEPAGE
    start = hpage_start(kernel, addr)
    return asks and vma.anonymous and vma.start <= start and start + hpage_nr(kernel) <= vma.end


async def handle_pmd_fault(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """The part of __handle_mm_fault above the page table. FALLBACK: go on with the page-table entry."""
    pmd = await pmdp_get(kernel, vmf.vma.mm, vmf.address)
    if pmd.kind is PteKind.NONE and thp_vma_allowable_order(kernel, vmf.vma, vmf.address):
        return await do_huge_pmd_anonymous_page(kernel, vmf)
    vmf.orig_pmd = pmd
    if pmd.kind in (PteKind.NONE, PteKind.TABLE):
        return VmFault.FALLBACK
    if not pmd_trans_huge(pmd):
        return await _not_present(kernel, vmf)
    if (vmf.write or vmf.flags & FaultFlag.UNSHARE) and not pmd.write:
        return await wp_huge_pmd(kernel, vmf)
    await spin_lock(vmf.vma.mm.ptl)
    await spin_unlock(vmf.vma.mm.ptl)
    return VmFault.NONE


async def _not_present(kernel: Kernel, vmf: FaultContext) -> VmFault:
    if vmf.orig_pmd.kind is PteKind.DEVICE_PRIVATE:
        return await do_huge_pmd_device_private(kernel, vmf)
    if vmf.orig_pmd.kind is PteKind.MIGRATION:
        await pmd_migration_entry_wait(kernel, vmf)
    return VmFault.NONE


# ---- nothing there ---------------------------------------------------------------------------------------------------


async def do_huge_pmd_anonymous_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """The huge zero page for a read, a large folio for a write; or the monitor of a userfaultfd is told that it is missing."""
    folio = None
    if vmf.write:
        folio = await new_zeroed_huge_folio(kernel)
        if folio is None:
            return VmFault.FALLBACK
    mm = vmf.vma.mm
    await pte_alloc_one(kernel, mm)
    await spin_lock(mm.ptl)
    empty = (await pmdp_get(kernel, mm, vmf.address)).kind is PteKind.NONE
    missing = empty and userfaultfd_missing(vmf)
    if empty and not missing:
        await _map_new(kernel, vmf.vma, vmf.address, folio)
        await spin_unlock(mm.ptl)
        return VmFault.NONE
    await spin_unlock(mm.ptl)
    await pte_free(kernel, mm)
    if folio is not None:
        await swap.folio_put(kernel, folio)
    return await handle_userfault(kernel, vmf, write_protected=False) if missing else VmFault.NONE


async def new_zeroed_huge_folio(kernel: Kernel) -> Folio | None:
    """vma_alloc_anon_folio_pmd: a large folio, charged, cleared and uptodate."""
    folio = await folio_alloc(kernel, "a large folio for a fault", kernel.config.pmd_order)
    if folio is not None:
        await memcontrol.mem_cgroup_charge(kernel, folio)
        await folio_zero_user(folio, hpage_nr(kernel))
        await folio_mark_uptodate(folio)
    return folio


async def _map_new(kernel: Kernel, vma: Vma, addr: int, folio: Folio | None) -> None:
    """map_anon_folio_pmd, or set_huge_zero_folio: with the page-table lock, and a page table to deposit."""
    if folio is None:
        await set_pmd_at(kernel, vma.mm, addr, HUGE_ZERO)
        return
    await folio_add_new_anon_rmap(folio, vma, hpage_start(kernel, addr), pages=hpage_nr(kernel))
    await swap.folio_add_lru(kernel, folio)
    write = bool(vma.flags & VmFlags.WRITE)
    await set_pmd_at(kernel, vma.mm, addr, pte_mkdirty(evolve(mk_pte(folio), write=write)))


# ---- stores to what is read-only -------------------------------------------------------------------------------------


async def wp_huge_pmd(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """wp_huge_pmd: a store that userfaultfd guards is its monitor's; else do_huge_pmd_wp_page."""
    if not vmf.flags & FaultFlag.UNSHARE and userfaultfd_pte_wp(vmf, vmf.orig_pmd):
        return await handle_userfault(kernel, vmf, write_protected=True)
    return await do_huge_pmd_wp_page(kernel, vmf)


async def do_huge_pmd_wp_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """Reuse the folio in place if it is this mapping's alone; else split the leaf, and let the page be copied."""
    if vmf.orig_pmd.pfn is None:
        result = await do_huge_zero_wp_pmd(kernel, vmf)
        if result is not VmFault.FALLBACK:
            return result
    else:
        reused = await _reuse(kernel, vmf, Folio(vmf.orig_pmd.pfn))
        if reused is not None:
            return reused
    await split_huge_pmd(kernel, vmf.vma, vmf.address)
    return VmFault.FALLBACK


async def do_huge_zero_wp_pmd(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """A large folio in the place of the huge zero page; FALLBACK where there is none. The deposited page table stays."""
    mm, start = vmf.vma.mm, hpage_start(kernel, vmf.address)
    folio = await new_zeroed_huge_folio(kernel)
    if folio is None:
        return VmFault.FALLBACK
    await mmu_notifier.invalidate_range_start(kernel, mm, start, start + hpage_nr(kernel), NotifyReason.CLEAR)
    same = await lock_if_same_pmd(kernel, vmf)
    if same:
        await pmdp_huge_clear_flush(kernel, mm, vmf.address, None)
        await _map_new(kernel, vmf.vma, vmf.address, folio)
        await spin_unlock(mm.ptl)
    else:
        await swap.folio_put(kernel, folio)
    await mmu_notifier.invalidate_range_end(kernel, mm, start, start + hpage_nr(kernel))
    return VmFault.NONE


def _exclusive(f: FolioState) -> Outcome:
    return (f,), f.exclusive, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _reuse(kernel: Kernel, vmf: FaultContext, folio: Folio) -> VmFault | None:
    """None, with nothing held, where others have the folio too. Its lock may be waited for, with the page-table lock dropped."""
    mm = vmf.vma.mm
    if not await lock_if_same_pmd(kernel, vmf):
        return VmFault.NONE
    if not await traps.step(_exclusive, folio):
        if not await folio_trylock(folio) and not await _wait_for_lock(kernel, vmf, folio):
            return VmFault.NONE
        alone = await folio_move_anon_rmap(folio)
        await folio_unlock(folio)
        if not alone:
            await spin_unlock(mm.ptl)
            return None
    if not vmf.flags & FaultFlag.UNSHARE:
        await set_pmd_at(kernel, mm, vmf.address, pte_mkdirty(evolve(vmf.orig_pmd, write=True, young=True)))
    await spin_unlock(mm.ptl)
    return VmFault.NONE


async def _wait_for_lock(kernel: Kernel, vmf: FaultContext, folio: Folio) -> bool:
    """folio_lock with the page-table lock dropped, and a reference meanwhile. False, without both: the leaf has changed."""
    await folio_get(folio)
    await spin_unlock(vmf.vma.mm.ptl)
    await folio_lock(folio)
    same = await lock_if_same_pmd(kernel, vmf)
    if not same:
        await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
    return same
