"""A device's view of an address space: mm/hmm.c, hmm_range_fault.

Rules:
- The caller holds mmap_lock for reading, with a read of its interval notifier open; entries are read without the page-table lock.
- A device-private entry of the caller's own device is a page that the device can use: reported, never faulted, even where a write
  was asked for and the entry is read-only. Everything else that is not there, or not writable, is faulted in if asked for.
- After a fault or a wait the walk begins again where it stood, without looking up, and without a scheduling point: neither here
  nor in do_swap_page does the kernel have one (the starvation that a69d1ab971a6 mended).
- An invalidation since the read began ends it with -EBUSY: the caller begins anew.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm import memory, migrate, mmu_notifier
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.pgtable import pte_present, ptep_get
from migrate_vma_spec.events import RangeFaultBegan, RangeFaultEnded
from migrate_vma_spec.vocabulary import Errno, Pte, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

VM_FAULT_ERROR = VmFault.OOM | VmFault.SIGBUS | VmFault.SIGSEGV | VmFault.HWPOISON


@frozen
class HmmPfn:
    """What hmm_range_fault reports of one page: `valid` says that it can be used. `folio` is None for the zero page."""

    valid: bool = False
    write: bool = False
    folio: Folio | None = None


@define
class HmmRange:
    """struct hmm_range. `fault` and `write` stand for HMM_PFN_REQ_FAULT and HMM_PFN_REQ_WRITE over the whole range.

    `vmas` is what mmap_read_lock answered. `hmm_pfns` is the result, one for each page of [start, end).
    """

    device: str
    mm: Mm
    vmas: tuple[Vma, ...]
    start: int
    end: int
    fault: bool = True
    write: bool = False
    dev_private_owner: str | None = None
    hmm_pfns: list[HmmPfn] = field(factory=list[HmmPfn])


class _Need(enum.Enum):
    """What a page needs before it can be reported."""

    NOTHING = "nothing"
    FAULT = "a fault"
    WRITE_FAULT = "a write fault"


def _need(range_: HmmRange, found: HmmPfn) -> _Need:
    if not range_.fault:
        return _Need.NOTHING
    if range_.write and not found.write:
        return _Need.WRITE_FAULT
    return _Need.NOTHING if found.valid else _Need.FAULT


async def hmm_range_fault(kernel: Kernel, range_: HmmRange) -> int:
    """0 and `hmm_pfns`; or -EBUSY (invalidated), -EFAULT (no such memory, or its fault failed), -EPERM (a write to read-only)."""
    device, mm = range_.device, range_.mm
    await traps.note(RangeFaultBegan(device, mm.number, range_.start, range_.end, range_.write))
    range_.hmm_pfns = []
    result = await _walk(kernel, range_)
    pfns = tuple(None if pfn.folio is None else pfn.folio.pfn for pfn in range_.hmm_pfns)
    await traps.note(RangeFaultEnded(device, mm.number, range_.start, result, pfns))
    return result


async def _walk(kernel: Kernel, range_: HmmRange) -> int:
    """Page after page; one that had to be faulted or waited for is looked at again. A walk that begins again checks the read."""
    addr, result = range_.start, -Errno.EBUSY
    while addr < range_.end:
        if result and await mmu_notifier.mmu_interval_check_retry(kernel, range_.device, range_.mm):
            return -Errno.EBUSY
        result = await _handle_page(kernel, range_, addr)
        if not result:
            addr += 1
        elif result != -Errno.EBUSY:
            return result
    return 0


async def _handle_page(kernel: Kernel, range_: HmmRange, addr: int) -> int:
    """hmm_vma_walk_test, then hmm_vma_handle_pte: 0 with one more entry of hmm_pfns, or -EBUSY after a fault or a wait."""
    vma = find_vma(range_.vmas, addr)
    if vma is None or not vma.flags & VmFlags.READ or vma.flags & (VmFlags.IO | VmFlags.PFNMAP):
        if range_.fault:
            return -Errno.EFAULT
        range_.hmm_pfns.append(HmmPfn())
        return 0
    pte = await ptep_get(range_.mm, addr)
    found = _found(kernel, range_, pte)
    own_page = found.valid and not pte_present(pte)
    need = _Need.NOTHING if own_page else _need(range_, found)
    if need is _Need.NOTHING:
        range_.hmm_pfns.append(found)
        return 0
    if pte.kind is PteKind.MIGRATION:
        await migrate.migration_entry_wait(kernel, FaultContext(vma, addr, range_.write, pte))
        return -Errno.EBUSY
    return await _fault(kernel, vma, addr, need is _Need.WRITE_FAULT)


def _found(kernel: Kernel, range_: HmmRange, pte: Pte) -> HmmPfn:
    """What an entry offers as it is: a present page, the zero page, or a page of the caller's own device."""
    if pte_present(pte):
        return HmmPfn(valid=True, write=pte.write, folio=None if pte.pfn is None else Folio(pte.pfn))
    if pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None:
        folio = Folio(pte.pfn)
        if range_.dev_private_owner is not None and kernel.driver_of(folio).owner == range_.dev_private_owner:
            return HmmPfn(valid=True, write=pte.write, folio=folio)
    return HmmPfn()


async def _fault(kernel: Kernel, vma: Vma, addr: int, write: bool) -> int:
    """hmm_vma_fault: -EBUSY stands for "look again", whatever the fault did."""
    if write and not vma.flags & VmFlags.WRITE:
        return -Errno.EPERM
    result = await memory.handle_mm_fault(kernel, vma, addr, write, device=True)
    return -Errno.EFAULT if result & VM_FAULT_ERROR else -Errno.EBUSY
