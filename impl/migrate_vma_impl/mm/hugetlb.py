"""hugetlb memory: private mappings whose every page is a leaf of the middle level (mm/hugetlb.c, 7.3).

Rules:
- A leaf is all or nothing: it is never split, and without a large folio the fault is SIGBUS. There is no zero page.
- Its folios are anonymous once mapped, but neither on the LRU nor taken by migrate_vma_setup, which refuses the VMA.
- A store to a leaf that nobody else maps makes it writable; another one's is copied.
- A reserve of such folios, which would make faults succeed that find none here, is not modelled. Behind each leaf a page table is
  deposited, as behind a transparent one, so that both go by the same zap and fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.highmem import folio_copy
from migrate_vma_impl.mm.huge_memory_device import lock_if_same_pmd
from migrate_vma_impl.mm.huge_memory_fault import new_zeroed_huge_folio
from migrate_vma_impl.mm.huge_memory_leaf import hpage_start, pmdp_huge_clear_flush, pte_alloc_one, pte_free, set_pmd_at
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Folio, FolioState, Mm
from migrate_vma_impl.mm.mmap import mmap_region
from migrate_vma_impl.mm.pgtable import hpage_nr, mk_pte, pmdp_get, pte_mkdirty
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap, folio_remove_rmap
from migrate_vma_spec.events import ExclusiveTaken
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Errno, NotifyReason, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def mmap_hugetlb(kernel: Kernel, mm: Mm, start: int, end: int, prot: VmFlags) -> int:
    """hugetlb_file_setup and hugetlbfs_file_mmap, for MAP_PRIVATE: whole leaves alone, and only where there are leaves."""
    if not kernel.config.pmd_order or start % hpage_nr(kernel) or end % hpage_nr(kernel):
        return -Errno.EINVAL
    return await mmap_region(kernel, mm, start, end, prot | VmFlags.HUGETLB)


async def hugetlb_fault(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """A fault of a hugetlb VMA: nothing is there, or it may not be written."""
    vmf.orig_pmd = await pmdp_get(kernel, vmf.vma.mm, vmf.address)
    if vmf.orig_pmd.kind is PteKind.NONE:
        return await hugetlb_no_page(kernel, vmf)
    if (vmf.write or vmf.flags & FaultFlag.UNSHARE) and not vmf.orig_pmd.write:
        return await hugetlb_wp(kernel, vmf)
    return VmFault.NONE


async def hugetlb_no_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    folio = await new_zeroed_huge_folio(kernel)
    if folio is None:
        return VmFault.SIGBUS
    mm = vmf.vma.mm
    await pte_alloc_one(kernel, mm)
    await spin_lock(mm.ptl)
    empty = (await pmdp_get(kernel, mm, vmf.address)).kind is PteKind.NONE
    if empty:
        await _map(kernel, vmf, folio, write=vmf.write)
    await spin_unlock(mm.ptl)
    if not empty:
        await pte_free(kernel, mm)
        await swap.folio_put(kernel, folio)
    return VmFault.NONE


async def _map(kernel: Kernel, vmf: FaultContext, folio: Folio, *, write: bool) -> None:
    """make_huge_pte behind hugetlb_add_new_anon_rmap."""
    await folio_add_new_anon_rmap(folio, vmf.vma, hpage_start(kernel, vmf.address), pages=hpage_nr(kernel))
    entry = mk_pte(folio)
    await set_pmd_at(kernel, vmf.vma.mm, vmf.address, pte_mkdirty(evolve(entry, write=True)) if write else entry)


def _own(f: FolioState) -> Outcome:
    done = f.exclusive or f.mapcount == 1
    return (evolve(f, exclusive=done),), done, ExclusiveTaken(f.pfn, f.refcount, done)


async def hugetlb_wp(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """A store to a read-only leaf, or, to unshare it, a pin that reads: the same, but that the leaf stays read-only."""
    if vmf.orig_pmd.pfn is None or not await lock_if_same_pmd(kernel, vmf):
        return VmFault.NONE
    old, unshare = Folio(vmf.orig_pmd.pfn), bool(vmf.flags & FaultFlag.UNSHARE)
    if await traps.step(_own, old):
        if not unshare:
            await set_pmd_at(kernel, vmf.vma.mm, vmf.address, pte_mkdirty(evolve(vmf.orig_pmd, write=True, young=True)))
        await spin_unlock(vmf.vma.mm.ptl)
        return VmFault.NONE
    await folio_get(old)
    await spin_unlock(vmf.vma.mm.ptl)
    result = await _copy(kernel, vmf, old, write=not unshare)
    await swap.folio_put(kernel, old)
    return result


async def _copy(kernel: Kernel, vmf: FaultContext, old: Folio, *, write: bool) -> VmFault:
    """A copy in the place of a folio that others have too, if it is still there."""
    mm, start, nr = vmf.vma.mm, hpage_start(kernel, vmf.address), hpage_nr(kernel)
    new = await new_zeroed_huge_folio(kernel)
    if new is None:
        return VmFault.SIGBUS
    await folio_copy(new, old, nr)
    await mmu_notifier.invalidate_range_start(kernel, mm, start, start + nr, NotifyReason.CLEAR)
    same = await lock_if_same_pmd(kernel, vmf)
    if same:
        await pmdp_huge_clear_flush(kernel, mm, vmf.address, None)
        await folio_remove_rmap(old, vmf.vma, start, pages=nr)
        await _map(kernel, vmf, new, write=write)
        await spin_unlock(mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, mm, start, start + nr)
    await swap.folio_put(kernel, old if same else new)
    return VmFault.NONE
