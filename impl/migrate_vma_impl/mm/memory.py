"""The fault path: mm/memory.c, order-0 anonymous and device-private pages (7.3, but for what a generation replaces).

Rules:
- handle_mm_fault runs with mmap_lock held for reading, or under the VMA's own lock. What calls a driver wants mmap_lock: it drops
  the VMA's lock and answers RETRY. So does who waits for a userfault. With RETRY nothing is held, and the VMA may be gone.
- The entry is first read without the page-table lock; whoever acts on it takes the lock and looks again. What has changed is
  not an error: the fault returns, and the access is tried again.
- A VMA has its anon_vma from the start, so no fault under its lock has to come back for that (vmf_anon_prepare).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import hugetlb, memcontrol, swap
from migrate_vma_impl.mm.highmem import clear_highpage
from migrate_vma_impl.mm.huge_memory_fault import handle_pmd_fault
from migrate_vma_impl.mm.memory_exclusive import remove_device_exclusive_entry
from migrate_vma_impl.mm.memory_file import do_fault
from migrate_vma_impl.mm.memory_lock import lock_if_same
from migrate_vma_impl.mm.memory_swap import do_swap_entry
from migrate_vma_impl.mm.memory_wp import do_wp_page
from migrate_vma_impl.mm.migrate import migration_entry_wait
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Folio, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma, lock_vma_under_rcu, mmap_read_lock, mmap_read_unlock, vma_end_read
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import (
    mk_pte,
    pmd_is_huge,
    pmdp_get,
    pte_alloc,
    pte_clear,
    pte_mkdirty,
    pte_offset_map_lock,
    pte_present,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap
from migrate_vma_impl.mm.tlb import Access, access_memory
from migrate_vma_impl.mm.userfaultfd import handle_userfault, userfaultfd_missing, vmf_orig_pte_uffd_wp
from migrate_vma_spec.events import CallbackEntered, CallbackReturned, FaultBegan, FaultEnded
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFault, VmFlags

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
        access = await access_memory(kernel, mm, addr, write)
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
    """The architecture's page fault handler: find the VMA, see whether it allows the access, and handle the fault.

    Under the lock of the VMA alone where there is such, else, or if that does not do, under mmap_lock.
    """
    if kernel.config.vma_locks:
        signal = await _fault_under_vma_lock(kernel, mm, addr, write)
        if signal is not None:
            return signal
    while True:
        vma = find_vma(await mmap_read_lock(mm), addr)
        if vma is None or access_error(vma, write):
            await mmap_read_unlock(mm)
            return -SIGSEGV
        result = await handle_mm_fault(kernel, vma, addr, write, flags=FaultFlag.ALLOW_RETRY)
        if not result & VmFault.RETRY:
            await mmap_read_unlock(mm)
            return fault_signal(result)


async def _fault_under_vma_lock(kernel: Kernel, mm: Mm, addr: int, write: bool) -> int | None:
    """None where the fault has to be made again with mmap_lock."""
    vma = await lock_vma_under_rcu(mm, addr)
    if vma is None:
        return None
    if access_error(vma, write):
        await vma_end_read(vma)
        return -SIGSEGV
    result = await handle_mm_fault(kernel, vma, addr, write, flags=FaultFlag.ALLOW_RETRY | FaultFlag.VMA_LOCK)
    if result & VmFault.RETRY:
        return None
    await vma_end_read(vma)
    return fault_signal(result)


def access_error(vma: Vma, write: bool) -> bool:
    return not vma.flags & (VmFlags.WRITE if write else VmFlags.READ | VmFlags.WRITE)


async def handle_mm_fault(
    kernel: Kernel, vma: Vma, addr: int, write: bool, device: bool = False, flags: FaultFlag = FaultFlag.NONE
) -> VmFault:
    """One fault; `device` for one that hmm_range_fault takes. With RETRY the lock that `flags` tells of is dropped."""
    await traps.note(FaultBegan(vma.mm.number, addr, write, device, bool(flags & FaultFlag.VMA_LOCK)))
    result = VmFault.FALLBACK
    if vma.flags & VmFlags.HUGETLB:
        result = await hugetlb.hugetlb_fault(kernel, FaultContext(vma, addr, write, orig_pte=PTE_NONE, flags=flags))
    elif kernel.config.pmd_order:
        result = await handle_pmd_fault(kernel, FaultContext(vma, addr, write, orig_pte=PTE_NONE, flags=flags))
    if result & VmFault.FALLBACK:
        result = await handle_pte_fault(kernel, vma, addr, write, flags)
    await traps.note(FaultEnded(vma.mm.number, addr, result))
    return result


async def handle_pte_fault(kernel: Kernel, vma: Vma, addr: int, write: bool, flags: FaultFlag = FaultFlag.NONE) -> VmFault:
    table = await pmdp_get(kernel, vma.mm, addr)
    if pmd_is_huge(table):
        return VmFault.NONE
    pte = PTE_NONE if table.kind is PteKind.NONE else await ptep_get(vma.mm, addr)
    vmf = FaultContext(vma, addr, write, orig_pte=pte, flags=flags)
    if vmf.orig_pte.kind is PteKind.NONE:
        return await do_pte_missing(kernel, vmf)
    if not pte_present(vmf.orig_pte):
        return await do_swap_page(kernel, vmf)
    if not await lock_if_same(vmf):
        return VmFault.NONE
    if (write or flags & FaultFlag.UNSHARE) and not vmf.orig_pte.write:
        return await do_wp_page(kernel, vmf)
    await spin_unlock(vma.mm.ptl)
    return VmFault.NONE


# ---- nothing there ---------------------------------------------------------------------------------------------------


async def do_pte_missing(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """do_pte_missing: anonymous memory gets a page, or the zero page for a read; a file is asked for its page."""
    return await (do_anonymous_page if vmf.vma.anonymous else do_fault)(kernel, vmf)


async def lock_if_empty(kernel: Kernel, vmf: FaultContext) -> bool:
    """As lock_if_same for an entry that was empty, above which a leaf may hang by now; False without the lock."""
    if not await pte_offset_map_lock(kernel, vmf.vma.mm, vmf.address):
        return False
    if await ptep_get(vmf.vma.mm, vmf.address) == vmf.orig_pte:
        return True
    await spin_unlock(vmf.vma.mm.ptl)
    return False


async def do_anonymous_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """The zero page for a read, a page of its own for a write; or the monitor of a userfaultfd is told that it is missing."""
    await pte_alloc(kernel, vmf.vma.mm, vmf.address)
    if not vmf.write:
        if not await lock_if_empty(kernel, vmf):
            return VmFault.NONE
        if userfaultfd_missing(vmf):
            await spin_unlock(vmf.vma.mm.ptl)
            return await handle_userfault(kernel, vmf, write_protected=False)
        await set_pte_at(vmf.vma.mm, vmf.address, evolve(ZERO_PAGE, uffd_wp=vmf_orig_pte_uffd_wp(vmf)))
        await spin_unlock(vmf.vma.mm.ptl)
        return VmFault.NONE
    folio = await new_zeroed_folio(kernel, "a page for a fault")
    if folio is None:
        return VmFault.OOM
    if not await lock_if_empty(kernel, vmf):
        await swap.folio_put(kernel, folio)
        return VmFault.NONE
    if userfaultfd_missing(vmf):
        await spin_unlock(vmf.vma.mm.ptl)
        await swap.folio_put(kernel, folio)
        return await handle_userfault(kernel, vmf, write_protected=False)
    await folio_add_new_anon_rmap(folio, vmf.vma, vmf.address)
    await swap.folio_add_lru(kernel, folio)
    guarded = vmf_orig_pte_uffd_wp(vmf)
    await set_pte_at(vmf.vma.mm, vmf.address, pte_mkdirty(evolve(mk_pte(folio), write=not guarded, uffd_wp=guarded)))
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
    """An entry that is neither empty nor present: what is done about it goes by its kind."""
    for kind, handler in SWAP_PAGE_BRANCHES:
        if vmf.orig_pte.kind is kind:
            return await handler(kernel, vmf)
    return VmFault.SIGBUS


async def _do_migration_entry(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """A migration entry is waited for."""
    await migration_entry_wait(kernel, vmf)
    return VmFault.NONE


async def _do_hwpoison_entry(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """The page that was here is broken."""
    return VmFault.HWPOISON


def refuses_vma_lock(vmf: FaultContext) -> bool:
    """migrate_to_ram is not for faults under the lock of a VMA alone."""
    return bool(vmf.flags & FaultFlag.VMA_LOCK)


async def do_device_private_page(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """A device-private entry: claim the page as the generation does, call the driver to bring it back, let go."""
    if vmf.orig_pte.pfn is None:
        return VmFault.SIGBUS
    if kernel.generation.steps.refuses_vma_lock(vmf):
        await vma_end_read(vmf.vma)
        return VmFault.RETRY
    folio = Folio(vmf.orig_pte.pfn)
    if not await kernel.generation.claim_fault_page(kernel, vmf, folio):
        return VmFault.NONE
    vmf.page = folio
    await traps.note(CallbackEntered(folio.pfn, vmf.vma.mm.number, vmf.address))
    driver = kernel.driver_of(folio)
    result = driver.fault_result(await driver.migrate_to_ram(vmf))
    await traps.note(CallbackReturned(folio.pfn, vmf.vma.mm.number, vmf.address, result))
    await kernel.generation.release_fault_page(kernel, folio)
    return kernel.generation.steps.fault_result(result)


# ---- markers ---------------------------------------------------------------------------------------------------------


async def handle_pte_marker(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """handle_pte_marker: a page is missing that was write-protected. The marker of a VMA that nobody watches is just dropped."""
    if not vmf.orig_pte.uffd_wp:
        return VmFault.SIGBUS
    if vmf.vma.flags & VmFlags.UFFD_WP:
        return await do_pte_missing(kernel, vmf)
    if await lock_if_same(vmf):
        await pte_clear(vmf.vma.mm, vmf.address)
        await spin_unlock(vmf.vma.mm.ptl)
    return VmFault.NONE


SWAP_PAGE_BRANCHES: tuple[tuple[PteKind, Callable[[Kernel, FaultContext], Coroutine[Any, Any, VmFault]]], ...] = (
    (PteKind.MIGRATION, _do_migration_entry),
    (PteKind.EXCLUSIVE, remove_device_exclusive_entry),
    (PteKind.DEVICE_PRIVATE, do_device_private_page),
    (PteKind.HWPOISON, _do_hwpoison_entry),
    (PteKind.MARKER, handle_pte_marker),
    (PteKind.SWAP, do_swap_entry),
)
"""The branches of do_swap_page in the kernel's order; a kind that has none is a bad entry."""
