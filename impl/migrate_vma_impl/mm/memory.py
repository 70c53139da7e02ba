"""The fault path: mm/memory.c, order-0 anonymous and device-private pages (7.3, but for what a generation replaces).

Rules:
- handle_mm_fault runs with mmap_lock held for reading; faults under a VMA lock alone are not modelled (the kernel refuses them
  on this path anyway).
- The entry is first read without the page-table lock; whoever acts on it takes the lock and looks again. What has changed is
  not an error: the fault returns, and the access is tried again.
- A hole in a VMA that userfaultfd watches is filled as if its monitor answered at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import memcontrol, swap
from migrate_vma_impl.mm.highmem import clear_highpage
from migrate_vma_impl.mm.memory_wp import do_wp_page
from migrate_vma_impl.mm.migrate import migration_entry_wait
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma, mmap_read_lock, mmap_read_unlock
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import mk_pte, pte_mkdirty, pte_present, ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap
from migrate_vma_impl.mm.tlb import Access, access_memory
from migrate_vma_spec.events import CallbackEntered, CallbackReturned, FaultBegan, FaultEnded
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

SIGBUS = 7
SIGKILL = 9
SIGSEGV = 11
OUT_OF_MEMORY = 12

ZERO_PAGE = Pte(PteKind.ZERO, young=True)


async def cpu_access(kernel: Kernel, mm: Mm, addr: int, write: bool) -> int:
    """A load or store by user space on this CPU, with the faults that it takes. 0, or minus the number that ended it.

    Minus 11 and minus 7 stand for SIGSEGV and SIGBUS; minus 12 for an access that met VM_FAULT_OOM.
    """
    if not 0 <= addr < kernel.config.addresses:
        return -SIGSEGV
    while True:
        access = await access_memory(mm, addr, write)
        if access is Access.DONE:
            return 0
        if access is Access.FAULT:
            result = await user_fault(kernel, mm, addr, write)
            if result:
                return result
            await traps.return_to_user()


def fault_signal(result: VmFault) -> int:
    """What a failed fault does to the one who accessed."""
    if result & VmFault.OOM:
        return -OUT_OF_MEMORY
    if result & (VmFault.SIGBUS | VmFault.HWPOISON):
        return -SIGBUS
    return -SIGSEGV if result & VmFault.SIGSEGV else 0


async def user_fault(kernel: Kernel, mm: Mm, addr: int, write: bool) -> int:
    """The architecture's page fault handler: find the VMA under mmap_lock, and see whether it allows the access."""
    vma = find_vma(await mmap_read_lock(mm), addr)
    if vma is None or not vma.flags & (VmFlags.WRITE if write else VmFlags.READ | VmFlags.WRITE):
        await mmap_read_unlock(mm)
        return -SIGSEGV
    result = await handle_mm_fault(kernel, vma, addr, write)
    await mmap_read_unlock(mm)
    return fault_signal(result)


async def handle_mm_fault(kernel: Kernel, vma: Vma, addr: int, write: bool, device: bool = False) -> VmFault:
    """One fault; `device` for one that hmm_range_fault takes."""
    await traps.note(FaultBegan(vma.mm.number, addr, write, device))
    result = await handle_pte_fault(kernel, vma, addr, write)
    await traps.note(FaultEnded(vma.mm.number, addr, result))
    return result


async def handle_pte_fault(kernel: Kernel, vma: Vma, addr: int, write: bool) -> VmFault:
    vmf = FaultContext(vma, addr, write, orig_pte=await ptep_get(vma.mm, addr))
    if vmf.orig_pte.kind is PteKind.NONE:
        return await do_anonymous_page(kernel, vmf)
    if not pte_present(vmf.orig_pte):
        return await do_swap_page(kernel, vmf)
    if not await lock_if_same(vmf):
        return VmFault.NONE
    if write and not vmf.orig_pte.write:
        return await do_wp_page(kernel, vmf)
    await spin_unlock(vma.mm.ptl)
    return VmFault.NONE


async def lock_if_same(vmf: FaultContext) -> bool:
    """Take the page-table lock and see whether the entry is still the one of the fault; False without the lock."""
    await spin_lock(vmf.vma.mm.ptl)
    if await ptep_get(vmf.vma.mm, vmf.address) == vmf.orig_pte:
        return True
    await spin_unlock(vmf.vma.mm.ptl)
    return False


# ---- nothing there ---------------------------------------------------------------------------------------------------


async def do_anonymous_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    if not vmf.write:
        if await lock_if_same(vmf):
            await set_pte_at(vmf.vma.mm, vmf.address, ZERO_PAGE)
            await spin_unlock(vmf.vma.mm.ptl)
        return VmFault.NONE
    folio = await new_zeroed_folio(kernel, "a page for a fault")
    if folio is None:
        return VmFault.OOM
    if not await lock_if_same(vmf):
        await swap.folio_put(kernel, folio)
        return VmFault.NONE
    await folio_add_new_anon_rmap(folio, vmf.vma, vmf.address)
    await swap.folio_add_lru(kernel, folio)
    await set_pte_at(vmf.vma.mm, vmf.address, pte_mkdirty(evolve(mk_pte(folio), write=True)))
    await spin_unlock(vmf.vma.mm.ptl)
    return VmFault.NONE


async def new_zeroed_folio(kernel: Kernel, what: str) -> Folio | None:
    """vma_alloc_zeroed_movable_folio, charged and uptodate."""
    folio = await alloc_page(kernel, what)
    if folio is not None:
        await clear_highpage(folio)
        await memcontrol.mem_cgroup_charge(kernel, folio)
        await folio_mark_uptodate(folio)
    return folio


# ---- what is not present ---------------------------------------------------------------------------------------------


async def do_swap_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """Migration entries are waited for, device-private ones brought back by their driver; there is no swap here."""
    if vmf.orig_pte.kind is PteKind.MIGRATION:
        await migration_entry_wait(kernel, vmf)
        return VmFault.NONE
    if vmf.orig_pte.pfn is None:
        return VmFault.SIGBUS
    return await do_device_private_page(kernel, vmf, Folio(vmf.orig_pte.pfn))


async def do_device_private_page(kernel: Kernel, vmf: FaultContext, folio: Folio) -> VmFault:
    """The device-private branch of do_swap_page: claim the page as the generation does, call the driver, let go."""
    if not await kernel.generation.claim_fault_page(kernel, vmf, folio):
        return VmFault.NONE
    vmf.page = folio
    await traps.note(CallbackEntered(folio.pfn, vmf.vma.mm.number, vmf.address))
    driver = kernel.driver_of(folio)
    result = driver.fault_result(await driver.migrate_to_ram(vmf))
    await traps.note(CallbackReturned(folio.pfn, vmf.vma.mm.number, vmf.address, result))
    await kernel.generation.release_fault_page(kernel, folio)
    return kernel.generation.steps.fault_result(result)
