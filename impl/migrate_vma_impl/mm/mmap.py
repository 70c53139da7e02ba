"""Address spaces: mapping, unmapping, forking and ending them (mm/mmap.c, mm/vma.c, kernel/fork.c).

Rules:
- VMAs change under mmap_lock held for writing, and with their own locks held for writing where there are such.
- mmap maps at the address that it is given, over what is there (MAP_FIXED). VMAs are not merged.
- An address space is torn down by its last user, who may be a driver (mmget_not_zero, mmput).
- fork flushes the parent's TLB once, after all entries are copied and before mmap_lock is dropped, as the kernel does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.huge_memory_leaf import vma_adjust_trans_huge
from migrate_vma_impl.mm.memory_copy import copy_page_range
from migrate_vma_impl.mm.memory_zap import tlb_finish_mmu, zap_pmd_range
from migrate_vma_impl.mm.mm_types import AnonVma, Folio, IMmap, Mm, MmState, Vma
from migrate_vma_impl.mm.mmap_lock import mmap_write_lock, mmap_write_unlock, vma_start_write
from migrate_vma_impl.mm.pgtable import flush_tlb_range, free_pgtables
from migrate_vma_impl.mm.rmap import anon_vma_fork, link_file_vma, unlink_anon_vmas
from migrate_vma_impl.mm.shmem import fput
from migrate_vma_impl.mm.userfaultfd import dup_userfaultfd_complete
from migrate_vma_spec.events import (
    Event,
    MmExited,
    MmForked,
    MmGetMissed,
    MmGot,
    MmPut,
    Oops,
    VmaChanged,
    VmaMapped,
    VmaMoved,
    VmaUnmapped,
)
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Errno, NotifyReason, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


VM_UFFD = VmFlags.UFFD_MISSING | VmFlags.UFFD_WP


def overlap(vmas: tuple[Vma, ...], start: int, end: int) -> tuple[Vma, ...]:
    """The VMAs that touch [start, end)."""
    return tuple(vma for vma in vmas if vma.start < end and start < vma.end)


def outside(vma: Vma, start: int, end: int) -> tuple[Vma, ...]:
    """What [start, end) leaves of a VMA."""
    parts = ((vma.start, min(vma.end, start)), (max(vma.start, end), vma.end))
    return tuple(vma.part(first, last) for first, last in parts if first < last)


def inside(vma: Vma, start: int, end: int) -> Vma:
    """The part of a VMA that lies in [start, end)."""
    return vma.part(max(vma.start, start), min(vma.end, end))


def covers(vmas: tuple[Vma, ...], start: int, end: int) -> bool:
    """Whether [start, end) has no gap."""
    return sum(part.end - part.start for part in (inside(vma, start, end) for vma in overlap(vmas, start, end))) == end - start


def in_range(kernel: Kernel, start: int, end: int) -> bool:
    return 0 <= start < end <= kernel.config.addresses


# ---- mapping ---------------------------------------------------------------------------------------------------------


def _add(mm: MmState, *rest: Any) -> Outcome:
    *trees, vma, event = rest
    vmas = tuple(sorted((*mm.vmas, vma), key=lambda each: each.start))
    return (evolve(mm, vmas=vmas), *((*tree, vma) for tree in trees)), None, event


async def mmap_region(
    kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags, file: int | None = None, pgoff: int = 0
) -> int:
    """Map private anonymous memory, or a file from its page `pgoff` on: private too, or SHARED.

    The VMA joins its anon_vma here, without that tree's lock: the kernel waits for the first fault (anon_vma_prepare), but no
    walk of the reverse map can look for anything in a range that has no pages yet.
    """
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    users, vmas = await mmap_write_lock(mm)
    if users:
        await unmap_vmas(kernel, mm, vmas, start, end)
        anon_vma = None if flags & VmFlags.SHARED else mm.number
        vma = Vma(mm, start, end, flags, anon_vma, file, start if file is None else pgoff)
        index = 0 if vma.file is None else vma.pgoff
        await vma_link(kernel, vma, VmaMapped(mm.number, start, end, flags, vma.anonymous, file, index))
    await mmap_write_unlock(mm)
    return 0 if users else -Errno.EINVAL


async def vma_link(kernel: Kernel, vma: Vma, event: Event) -> None:
    """vma_link: the VMA appears in its address space and in the reverse map, in a file's with the lock of that tree."""
    await vma_start_write(kernel, vma)
    if vma.anonymous:
        await traps.step(_add, vma.mm, *_trees(vma), args=(vma, event))
    else:
        await traps.step(_add, vma.mm, args=(vma, event))
        await link_file_vma(vma)


async def vma_link_moved(kernel: Kernel, vma: Vma, start: int) -> None:
    """copy_vma: `vma` shows what was at `start`. It joins the reverse map last, so behind the VMA that it comes from."""
    await vma_start_write(kernel, vma)
    await link_file_vma(vma)
    event = VmaMoved(vma.mm.number, start, start + vma.end - vma.start, vma.start)
    await traps.step(_add, vma.mm, args=(vma, event))
    await traps.note(VmaChanged(vma.mm.number, vma.start, vma.end, vma.flags))


# ---- splitting and changing ------------------------------------------------------------------------------------------


def _trees(vma: Vma) -> tuple[AnonVma | IMmap, ...]:
    """The trees of the reverse map that the VMA is in."""
    anonymous = () if vma.anon_vma is None else (AnonVma(vma.anon_vma),)
    return anonymous if vma.file is None else (*anonymous, IMmap(vma.file))


def _with_parts(vmas: tuple[Vma, ...], old: Vma, parts: tuple[Vma, ...]) -> tuple[Vma, ...]:
    return tuple(part for vma in vmas for part in (parts if vma == old else (vma,)))


def _alter(mm: MmState, *rest: Any) -> Outcome:
    *trees, old, parts, event = rest
    after = (_with_parts(tree, old, parts) for tree in trees)
    return (evolve(mm, vmas=_with_parts(mm.vmas, old, parts)), *after), None, event


async def split_vma(kernel: Kernel, vma: Vma, start: int, end: int) -> Vma:
    """vma_modify's splits: afterwards the part of the VMA in [start, end), which is answered, is a VMA of its own."""
    await vma_start_write(kernel, vma)
    part = inside(vma, start, end)
    if part == vma:
        return vma
    await vma_adjust_trans_huge(kernel, vma, part.start, part.end)
    parts = tuple(sorted((part, *outside(vma, start, end)), key=lambda each: each.start))
    for new in parts:
        if new.start != vma.start:
            await vma_start_write(kernel, new)
    await unlink_anon_vmas(vma, parts)
    event = VmaChanged(vma.mm.number, part.start, part.end, part.flags)
    await traps.step(_alter, vma.mm, args=(vma, parts, event))
    return part


async def alter_vma(vma: Vma, new: Vma) -> None:
    """Give a VMA other flags, or another state. Its entries are changed by the caller."""
    event = VmaChanged(new.mm.number, new.start, new.end, new.flags)
    await traps.step(_alter, vma.mm, *_trees(vma), args=(vma, (new,), event))


async def vma_modify_flags(kernel: Kernel, vma: Vma, start: int, end: int, flags: VmFlags) -> Vma:
    """vma_modify_flags: the part of the VMA in [start, end), split off if need be, with these flags. VMAs are not merged."""
    part = await split_vma(kernel, vma, start, end)
    new = evolve(part, flags=flags)
    if new != part:
        await alter_vma(part, new)
    return new


# ---- unmapping -------------------------------------------------------------------------------------------------------


def _forget(mm: MmState, start: int, end: int) -> Outcome:
    left = tuple(part for vma in mm.vmas for part in outside(vma, start, end))
    return (evolve(mm, vmas=left),), None, VmaUnmapped(mm.number, start, end)


async def unmap_vmas(kernel: Kernel, mm: Mm, vmas: tuple[Vma, ...], start: int, end: int) -> None:
    """unmap_region, with mmap_lock held for writing: entries, reverse map, TLB and pages, and at last the VMAs."""
    hit = overlap(vmas, start, end)
    if not hit:
        return
    for vma in hit:
        await vma_start_write(kernel, vma)
    gathered: list[Folio] = []
    present = 0
    for vma in hit:
        present += await zap_range(kernel, vma, start, end, NotifyReason.UNMAP, gathered)
    unused: list[Vma] = []
    for vma in hit:
        last = await unlink_anon_vmas(vma, outside(vma, start, end))
        unused += [vma] if last else []
    await tlb_finish_mmu(kernel, mm, start, end, present, gathered)
    await traps.step(_forget, mm, args=(start, end))
    await free_pgtables(kernel, mm, start, end)
    for vma in unused:
        await fput(kernel, vma)


async def zap_range(kernel: Kernel, vma: Vma, start: int, end: int, reason: NotifyReason, gathered: list[Folio]) -> int:
    """unmap_single_vma: the part of the VMA inside [start, end), in a notifier bracket of its own."""
    first, last = max(start, vma.start), min(end, vma.end)
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, first, last, reason)
    present = await zap_pmd_range(kernel, vma, first, last, gathered, drop_markers=reason is NotifyReason.UNMAP)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, first, last)
    return present


async def munmap_region(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    await unmap_vmas(kernel, mm, vmas, start, end)
    await mmap_write_unlock(mm)
    return 0


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
    last = mm.users == 1
    # The threads of a process that ends are killed first, and with them those that wait for a userfault's answer.
    waiting = () if last else mm.userfaults
    return (evolve(mm, users=mm.users - 1, userfaults=waiting),), last, MmPut(mm.number, mm.users - 1)


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
    await unmap_vmas(kernel, mm, vmas, 0, whole)
    await traps.step(_exit, mm)
    await mmap_write_unlock(mm)


# ---- fork ------------------------------------------------------------------------------------------------------------


def _fork(parent: MmState, child: MmState) -> Outcome:
    vmas = tuple(_dup_vma(vma, Mm(child.number)) for vma in parent.vmas)
    return (parent, MmState(child.number, vmas)), vmas, MmForked(parent.number, child.number)


def _dup_vma(vma: Vma, child: Mm) -> Vma:
    """A monitor hears of the child only where it asked for forks (dup_userfaultfd)."""
    return evolve(vma, mm=child, flags=vma.flags if vma.uffd_forks else vma.flags & ~VM_UFFD)


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
    if free and any(vma.flags & VM_UFFD and vma.uffd_forks for vma in vmas):
        await dup_userfaultfd_complete(mm)
    if free and result:
        await mmput(kernel, child)
    return result


async def _copy_vmas(kernel: Kernel, mm: Mm, child: Mm, vmas: tuple[Vma, ...]) -> int:
    for vma in vmas:
        await vma_start_write(kernel, vma)
    copies: tuple[Vma, ...] = await traps.step(_fork, mm, child)
    for i in range(len(copies)):
        if copies[i].flags != vmas[i].flags:
            await traps.note(VmaChanged(child.number, copies[i].start, copies[i].end, copies[i].flags))
        await anon_vma_fork(copies[i])
        result = await copy_page_range(kernel, copies[i], vmas[i])
        if result:
            return result
    return 0
