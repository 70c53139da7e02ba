"""Address spaces: mapping, unmapping, forking and ending them (mm/mmap.c, mm/madvise.c, kernel/fork.c).

Rules:
- VMAs change under mmap_lock held for writing; entries go under it too, except by MADV_DONTNEED, which needs it for reading.
- mmap maps at the address that it is given, over what is there (MAP_FIXED). VMAs are not merged.
- An address space is torn down by its last user, who may be a driver (mmget_not_zero, mmput).
- fork flushes the parent's TLB once, after all entries are copied and before mmap_lock is dropped, as the kernel does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.memory_copy import copy_page_range
from migrate_vma_impl.mm.memory_zap import tlb_finish_mmu, zap_pte_range
from migrate_vma_impl.mm.mm_types import AnonVma, Folio, Mm, MmState, Vma
from migrate_vma_impl.mm.mmap_lock import mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock
from migrate_vma_impl.mm.pgtable import flush_tlb_range
from migrate_vma_impl.mm.rmap import anon_vma_fork, unlink_anon_vmas
from migrate_vma_spec.events import MmExited, MmForked, MmGetMissed, MmGot, MmPut, Oops, VmaMapped, VmaUnmapped
from migrate_vma_spec.vocabulary import Errno, NotifyReason, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def overlap(vmas: tuple[Vma, ...], start: int, end: int) -> tuple[Vma, ...]:
    """The VMAs that touch [start, end)."""
    return tuple(vma for vma in vmas if vma.start < end and start < vma.end)


def outside(vma: Vma, start: int, end: int) -> tuple[Vma, ...]:
    """What [start, end) leaves of a VMA."""
    parts = (evolve(vma, end=min(vma.end, start)), evolve(vma, start=max(vma.start, end)))
    return tuple(part for part in parts if part.start < part.end)


def _in_range(kernel: Kernel, start: int, end: int) -> bool:
    return 0 <= start < end <= kernel.config.addresses


# ---- mapping ---------------------------------------------------------------------------------------------------------


def _map(mm: MmState, tree: tuple[Vma, ...], vma: Vma) -> Outcome:
    vmas = tuple(sorted((*mm.vmas, vma), key=lambda each: each.start))
    event = VmaMapped(mm.number, vma.start, vma.end, vma.flags, anonymous=vma.anon_vma is not None)
    return (evolve(mm, vmas=vmas), (*tree, vma)), None, event


async def mmap_region(kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags) -> int:
    """Map private anonymous memory.

    The VMA joins its anon_vma here, without that tree's lock: the kernel waits for the first fault (anon_vma_prepare), but no
    walk of the reverse map can look for anything in a range that has no pages yet.
    """
    if not _in_range(kernel, start, end):
        return -Errno.EINVAL
    users, vmas = await mmap_write_lock(mm)
    if users:
        await _unmap(kernel, mm, vmas, start, end)
        await traps.step(_map, mm, AnonVma(mm.number), args=(Vma(mm, start, end, flags, mm.number),))
    await mmap_write_unlock(mm)
    return 0 if users else -Errno.EINVAL


# ---- unmapping -------------------------------------------------------------------------------------------------------


def _forget(mm: MmState, start: int, end: int) -> Outcome:
    left = tuple(part for vma in mm.vmas for part in outside(vma, start, end))
    return (evolve(mm, vmas=left),), None, VmaUnmapped(mm.number, start, end)


async def _unmap(kernel: Kernel, mm: Mm, vmas: tuple[Vma, ...], start: int, end: int) -> None:
    """unmap_region, with mmap_lock held for writing: entries, reverse map, TLB and pages, and at last the VMAs."""
    hit = overlap(vmas, start, end)
    if not hit:
        return
    gathered: list[Folio] = []
    present = 0
    for vma in hit:
        present += await _zap_range(kernel, vma, start, end, NotifyReason.UNMAP, gathered)
    for vma in hit:
        await unlink_anon_vmas(vma, outside(vma, start, end))
    await tlb_finish_mmu(kernel, mm, start, end, present, gathered)
    await traps.step(_forget, mm, args=(start, end))


async def _zap_range(kernel: Kernel, vma: Vma, start: int, end: int, reason: NotifyReason, gathered: list[Folio]) -> int:
    """unmap_single_vma: the part of the VMA inside [start, end), in a notifier bracket of its own."""
    first, last = max(start, vma.start), min(end, vma.end)
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, first, last, reason)
    present = await zap_pte_range(kernel, vma, first, last, gathered)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, first, last)
    return present


async def munmap_region(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    if not _in_range(kernel, start, end):
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    await _unmap(kernel, mm, vmas, start, end)
    await mmap_write_unlock(mm)
    return 0


async def madvise_dontneed_range(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """MADV_DONTNEED: zap_page_range_single for each VMA; -ENOMEM where a part of the range is not mapped."""
    if not _in_range(kernel, start, end):
        return -Errno.EINVAL
    hit = overlap(await mmap_read_lock(mm), start, end)
    for vma in hit:
        gathered: list[Folio] = []
        present = await _zap_range(kernel, vma, start, end, NotifyReason.CLEAR, gathered)
        await tlb_finish_mmu(kernel, mm, max(start, vma.start), min(end, vma.end), present, gathered)
    await mmap_read_unlock(mm)
    covered = sum(min(end, vma.end) - max(start, vma.start) for vma in hit)
    return 0 if covered == end - start else -Errno.ENOMEM


# ---- users and exit --------------------------------------------------------------------------------------------------


def _get_user(mm: MmState) -> Outcome:
    if not mm.users:
        return (mm,), False, MmGetMissed(mm.number)
    return (evolve(mm, users=mm.users + 1),), True, MmGot(mm.number, mm.users + 1)


async def mmget_not_zero(kernel: Kernel, mm: Mm) -> bool:
    """Keep the address space from ending; False if it has."""
    return bool(await traps.step(_get_user, mm))


def _put_user(mm: MmState) -> Outcome:
    if mm.users <= 0:
        return (mm,), False, Oops(f"mmput of mm {mm.number}, which has no user")
    return (evolve(mm, users=mm.users - 1),), mm.users == 1, MmPut(mm.number, mm.users - 1)


async def mmput(kernel: Kernel, mm: Mm) -> None:
    """Drop a use; the last one tears the address space down."""
    if await traps.step(_put_user, mm):
        await exit_mmap(kernel, mm)


def _exit(mm: MmState) -> Outcome:
    return (evolve(mm, vmas=(), subscriptions=()),), None, MmExited(mm.number)


async def exit_mmap(kernel: Kernel, mm: Mm) -> None:
    """Tell the notifiers, then unmap everything (mm/mmap.c:exit_mmap, which takes mmap_lock for writing before it frees)."""
    whole = kernel.config.addresses
    await mmu_notifier.invalidate_range_start(kernel, mm, 0, whole, NotifyReason.RELEASE)
    await mmu_notifier.invalidate_range_end(kernel, mm, 0, whole)
    _, vmas = await mmap_write_lock(mm)
    await _unmap(kernel, mm, vmas, 0, whole)
    await traps.step(_exit, mm)
    await mmap_write_unlock(mm)


# ---- fork ------------------------------------------------------------------------------------------------------------


def _fork(parent: MmState, child: MmState) -> Outcome:
    vmas = tuple(evolve(vma, mm=Mm(child.number)) for vma in parent.vmas)
    return (parent, MmState(child.number, vmas)), vmas, MmForked(parent.number, child.number)


async def dup_mmap(kernel: Kernel, mm: Mm, child: Mm) -> int:
    """Fork into an address space that is free: VMAs, their places in the reverse map, then the entries. 0 or a negated errno."""
    if mm == child:
        return -Errno.EINVAL
    users, vmas = await mmap_write_lock(mm)
    others, _ = await mmap_write_lock(child)
    free = users and not others
    result = await _copy_vmas(kernel, mm, child, vmas) if free else -Errno.EAGAIN
    await mmap_write_unlock(child)
    if free:
        await flush_tlb_range(kernel, mm, 0, kernel.config.addresses)
    await mmap_write_unlock(mm)
    if free and result:
        await mmput(kernel, child)
    return result


async def _copy_vmas(kernel: Kernel, mm: Mm, child: Mm, vmas: tuple[Vma, ...]) -> int:
    copies: tuple[Vma, ...] = await traps.step(_fork, mm, child)
    for i in range(len(copies)):
        await anon_vma_fork(copies[i])
        result = await copy_page_range(kernel, copies[i], vmas[i])
        if result:
            return result
    return 0
