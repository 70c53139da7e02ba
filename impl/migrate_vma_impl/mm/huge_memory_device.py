"""A fault on a large device-private folio that one leaf of the middle level maps: mm/huge_memory.c:do_huge_pmd_device_private.

Rules:
- The leaf was read without the page-table lock; the generation's claim takes it and looks again.
- vmf->page is the folio's first page, whichever was touched. The lock and the reference of the claim are that folio's, and stay
  with its first page if it is split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Folio
from migrate_vma_impl.mm.mmap_lock import vma_end_read
from migrate_vma_impl.mm.pgtable import pmdp_get
from migrate_vma_spec.events import CallbackEntered, CallbackReturned
from migrate_vma_spec.vocabulary import VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def lock_if_same_pmd(kernel: Kernel, vmf: FaultContext) -> bool:
    """Take the page-table lock and see whether the leaf is still the one of the fault; False without the lock."""
    await spin_lock(vmf.vma.mm.ptl)
    if await pmdp_get(kernel, vmf.vma.mm, vmf.address) == vmf.orig_pmd:
        return True
    await spin_unlock(vmf.vma.mm.ptl)
    return False


async def do_huge_pmd_device_private(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """Claim the folio as the generation does, call its driver, let go. Under a VMA lock alone it is refused, as for a page."""
    if vmf.flags & FaultFlag.VMA_LOCK:
        await vma_end_read(vmf.vma)
        return VmFault.RETRY
    if vmf.orig_pmd.pfn is None:
        return VmFault.SIGBUS
    folio = Folio(vmf.orig_pmd.pfn)
    if not await kernel.generation.claim_fault_pmd(kernel, vmf, folio):
        return VmFault.NONE
    vmf.page = folio
    await traps.note(CallbackEntered(folio.pfn, vmf.vma.mm.number, vmf.address))
    driver = kernel.driver_of(folio)
    result = driver.fault_result(await driver.migrate_to_ram(vmf))
    await traps.note(CallbackReturned(folio.pfn, vmf.vma.mm.number, vmf.address, result))
    await kernel.generation.release_fault_page(kernel, folio)
    return kernel.generation.steps.fault_result(result)
