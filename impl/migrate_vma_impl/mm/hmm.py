"""A device's view of an address space: mm/hmm.c, hmm_range_fault and its form that may drop mmap_lock (7.3).

Rules:
- The caller has a read of its interval notifier open, and for hmm_range_fault holds mmap_lock for reading.
- The walk (`hmm_walk.py`) leaves off where a fault is needed; the fault is taken here, without any lock but mmap_lock, and the
  walk begins again where it stood, without looking up, and without a scheduling point: neither here nor in do_swap_page does
  the kernel have one (the starvation that a69d1ab971a6 mended).
- An invalidation since the read began ends it with -EBUSY: the caller begins anew. hmm_range_fault_unlocked does that itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm import memory, mmu_notifier
from migrate_vma_impl.mm.gup import VM_FAULT_ERROR, vm_fault_to_errno
from migrate_vma_impl.mm.hmm_types import HmmPfn, HmmRange, HmmRequest
from migrate_vma_impl.mm.hmm_walk import HMM_FAULT_PENDING, HmmVmaWalk, Need, walk_page_range
from migrate_vma_impl.mm.mm_types import FaultFlag
from migrate_vma_impl.mm.mmap_lock import find_vma, mmap_read_lock, mmap_read_unlock
from migrate_vma_spec.events import RangeFaultBegan, RangeFaultEnded
from migrate_vma_spec.vocabulary import Errno, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

__all__ = ["HmmPfn", "HmmRange", "HmmRequest", "hmm_range_fault", "hmm_range_fault_unlocked"]


async def hmm_range_fault(kernel: Kernel, range_: HmmRange) -> int:
    """0 and `hmm_pfns`; or -EBUSY (invalidated), -EFAULT (no such memory), -EPERM (a write to read-only), -ENOMEM."""
    return await _range_fault(kernel, HmmVmaWalk(range_, range_.start))


async def hmm_range_fault_unlocked(kernel: Kernel, range_: HmmRange) -> int:
    """hmm_range_fault_unlocked_timeout without a time-out: takes mmap_lock itself, which faults may drop.

    It is entered without a read of the interval notifier, begins one for each walk, and leaves the last one open. Never -EBUSY.
    """
    while True:
        await mmu_notifier.mmu_interval_read_begin(kernel, range_.device, range_.mm)
        range_.vmas = await mmap_read_lock(range_.mm)
        walk = HmmVmaWalk(range_, range_.start, unlockable=True)
        result = await _range_fault(kernel, walk)
        if walk.locked:
            await mmap_read_unlock(range_.mm)
        if result != -Errno.EBUSY:
            return result


async def _range_fault(kernel: Kernel, walk: HmmVmaWalk) -> int:
    """hmm_range_fault_locked, said in the trace."""
    range_ = walk.range_
    device, mm = range_.device, range_.mm
    await traps.note(RangeFaultBegan(device, mm.number, range_.start, range_.end, range_.write))
    range_.hmm_pfns = []
    result = await _walk_and_fault(kernel, walk)
    pfns = tuple(None if pfn.folio is None else pfn.folio.pfn for pfn in range_.hmm_pfns)
    await traps.note(RangeFaultEnded(device, mm.number, range_.start, result, pfns))
    return result


async def _walk_and_fault(kernel: Kernel, walk: HmmVmaWalk) -> int:
    """Walk until nothing is lacking; a walk that begins, or begins again, checks the read first."""
    result = -Errno.EBUSY
    while result == -Errno.EBUSY:
        if await mmu_notifier.mmu_interval_check_retry(kernel, walk.range_.device, walk.range_.mm):
            return -Errno.EBUSY
        result = await walk_page_range(kernel, walk)
        if result == HMM_FAULT_PENDING:
            result = await hmm_do_fault(kernel, walk)
            if not walk.locked:
                return -Errno.EBUSY
    return result


async def hmm_do_fault(kernel: Kernel, walk: HmmVmaWalk) -> int:
    """Fault every page of what the walk noted. -EBUSY stands for "walk again", whatever the faults did."""
    vma = find_vma(walk.range_.vmas, walk.last)
    if vma is None:
        return -Errno.EFAULT
    write = walk.need is Need.WRITE_FAULT
    if write and not vma.flags & VmFlags.WRITE:
        return -Errno.EPERM
    flags = FaultFlag.ALLOW_RETRY if walk.unlockable else FaultFlag.NONE
    for addr in range(walk.last, walk.end):
        result = await memory.handle_mm_fault(kernel, vma, addr, write, device=True, flags=flags)
        if result & VmFault.RETRY:
            walk.locked = False
            return -Errno.EBUSY
        if result & VM_FAULT_ERROR:
            return vm_fault_to_errno(result)
    return -Errno.EBUSY
