"""What the monitor of a userfaultfd does: fs/userfaultfd.c's ioctls, and mm/userfaultfd.c (7.3).

Rules:
- Registering changes VMAs, under mmap_lock held for writing. Filling a page and write-protecting hold it for reading: faults,
  migrations and other fills go on meanwhile, and the page-table lock decides. Where a page is already, a fill is -EEXIST.
- A write protection is taken by the walk of mprotect, and its flush comes after the page-table lock is dropped, while faults run:
  mm_tlb_flush_pending, set for that time, tells a copy on write to flush for itself.
- Anonymous and shared memory can be watched; files with names cannot, nor, here, hugetlb memory.
- Waiters are woken at the end, when all locks are dropped, and only where something was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import memcontrol, swap
from migrate_vma_impl.mm.filemap import filemap_add_folio, filemap_remove_folio, has_name
from migrate_vma_impl.mm.folio import folio_unlock
from migrate_vma_impl.mm.highmem import clear_highpage
from migrate_vma_impl.mm.memory import user_fault
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import Folio, Mm, MmState, Userfault, Vma
from migrate_vma_impl.mm.mmap import VM_UFFD, alter_vma, in_range, inside, overlap, split_vma
from migrate_vma_impl.mm.mmap_lock import find_vma, mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock
from migrate_vma_impl.mm.mprotect import Change, change_protection, manual_write_upgrade
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import flush_tlb_range, mk_pte, pte_alloc, pte_mkdirty, pte_offset_map_lock, ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_add_new_anon_rmap
from migrate_vma_impl.mm.tlb import Access, copy_from_user
from migrate_vma_impl.mm.userfaultfd import userfaultfd_ctx_read, wake_userfault
from migrate_vma_spec.events import LockDropped, LockTaken, Oops
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Errno, LockMode, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

ZERO_PAGE = Pte(PteKind.ZERO, young=True)

# ---- registering -----------------------------------------------------------------------------------------------------


async def userfaultfd_register(kernel: Kernel, mm: Mm, start: int, end: int, mode: VmFlags, forks: bool) -> int:
    """UFFDIO_REGISTER: hear of missing pages, of stores to write-protected ones, or of both in [start, end).

    `forks`: with UFFD_FEATURE_EVENT_FORK, which the kernel asks for when the userfaultfd is opened.
    """
    if not in_range(kernel, start, end) or not mode or mode & ~VM_UFFD:
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    hit = overlap(vmas, start, end)
    allowed = bool(hit) and all(vma_can_userfault(kernel, vma) for vma in hit)
    for vma in hit if allowed else ():
        await _set_flags(kernel, vma, start, end, vma.flags & ~VM_UFFD | mode, forks)
    await mmap_write_unlock(mm)
    return 0 if allowed else -Errno.EINVAL


def vma_can_userfault(kernel: Kernel, vma: Vma) -> bool:
    return vma.anonymous or (vma.file is not None and not has_name(kernel, vma.file))


async def userfaultfd_unregister(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """UFFDIO_UNREGISTER: wake whoever waits, take all write protections away, and forget."""
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    hit = overlap(vmas, start, end)
    allowed = bool(hit) and all(vma_can_userfault(kernel, vma) for vma in hit)
    for vma in hit if allowed else ():
        part = inside(vma, start, end)
        if not vma.flags & VM_UFFD:
            continue
        await wake_userfault(mm, part.start, part.end)
        if vma.flags & VmFlags.UFFD_WP:
            await uffd_wp_range(kernel, vma, part.start, part.end, enable_wp=False)
        await _set_flags(kernel, vma, start, end, vma.flags & ~VM_UFFD, forks=False)
    await mmap_write_unlock(mm)
    return 0 if allowed else -Errno.EINVAL


async def _set_flags(kernel: Kernel, vma: Vma, start: int, end: int, flags: VmFlags, forks: bool) -> None:
    first, last = max(vma.start, start), min(vma.end, end)
    part = await split_vma(kernel, vma, first, last)
    await alter_vma(part, evolve(part, flags=flags, uffd_forks=forks))


# ---- write-protecting ------------------------------------------------------------------------------------------------


def _lock_to_flush(holders: int, mm: MmState, name: str) -> Outcome:
    if holders < 0:
        return None
    return (holders + 1, evolve(mm, flush_pending=mm.flush_pending + 1)), mm.vmas, LockTaken(name, LockMode.READ)


def _unlock_flushed(holders: int, mm: MmState, name: str) -> Outcome:
    if holders <= 0 or mm.flush_pending <= 0:
        return (holders, mm), None, Oops(f"up_read of {name} and dec_tlb_flush_pending without their beginnings")
    return (holders - 1, evolve(mm, flush_pending=mm.flush_pending - 1)), None, LockDropped(name, LockMode.READ)


async def mwriteprotect_range(kernel: Kernel, mm: Mm, start: int, end: int, enable_wp: bool) -> int:
    """UFFDIO_WRITEPROTECT: protect the pages of [start, end) against stores, or (`enable_wp` False) let them be made.

    inc_tlb_flush_pending is part of the step that takes mmap_lock, and its end of the one that drops it.
    """
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    name = mm.mmap_lock.name
    vmas: tuple[Vma, ...] = await traps.sleep_until(_lock_to_flush, mm.mmap_lock, mm, args=(name,))
    hit = overlap(vmas, start, end)
    result = 0 if hit else -Errno.ENOENT
    for vma in hit:
        if not vma.flags & VmFlags.UFFD_WP:
            result = -Errno.ENOENT
            break
        await uffd_wp_range(kernel, vma, max(vma.start, start), min(vma.end, end), enable_wp)
    await traps.step(_unlock_flushed, mm.mmap_lock, mm, args=(name,))
    if not result and not enable_wp:
        await wake_userfault(mm, start, end)
    return result


async def uffd_wp_range(kernel: Kernel, vma: Vma, start: int, end: int, enable_wp: bool) -> None:
    change = Change.UFFD_WP if enable_wp else Change.RESOLVE | manual_write_upgrade(vma)
    if await change_protection(kernel, vma, start, end, change):
        await flush_tlb_range(kernel, vma.mm, start, end)


# ---- filling ---------------------------------------------------------------------------------------------------------


def _may_fill(vma: Vma | None) -> bool:
    return vma is not None and bool(vma.flags & VM_UFFD)


async def mfill_atomic_copy(kernel: Kernel, mm: Mm, addr: int, source: int, wp: bool) -> int:
    """UFFDIO_COPY of one page, from page `source` of the same address space; `wp`: write-protected from the start.

    The copy runs with page faults disabled. Where the source is not there it is made again without the lock, and everything
    looked up anew.
    """
    vma = find_vma(await mmap_read_lock(mm), addr)
    if vma is None or not _may_fill(vma) or (wp and not vma.flags & VmFlags.UFFD_WP):
        await mmap_read_unlock(mm)
        return -Errno.EINVAL if vma is not None and vma.flags & VM_UFFD else -Errno.ENOENT
    folio = await alloc_page(kernel, "a page for UFFDIO_COPY")
    if folio is None:
        await mmap_read_unlock(mm)
        return -Errno.ENOMEM
    if not await _copied(kernel, folio, mm, source):
        await mmap_read_unlock(mm)
        result = await _copy_outside(kernel, folio, mm, source)
        again = find_vma(await mmap_read_lock(mm), addr)
        if result or again != vma:
            await mmap_read_unlock(mm)
            await swap.folio_put(kernel, folio)
            return result or -Errno.EAGAIN
    return await _install(kernel, vma, addr, folio, wp)


async def _copied(kernel: Kernel, folio: Folio, mm: Mm, source: int) -> bool:
    access = Access.FILLED
    while access is Access.FILLED:
        access = await copy_from_user(kernel, folio, mm, source)
    return access is Access.DONE


async def _copy_outside(kernel: Kernel, folio: Folio, mm: Mm, source: int) -> int:
    """mfill_copy_folio_retry's copy, which takes the source's faults."""
    while not await _copied(kernel, folio, mm, source):
        if await user_fault(kernel, mm, source, write=False):
            return -Errno.EFAULT
    return 0


async def _install(kernel: Kernel, vma: Vma, addr: int, folio: Folio, wp: bool) -> int:
    """mfill_atomic_pte_copy's second half, and the end of the call."""
    await folio_mark_uptodate(folio)
    await pte_alloc(kernel, vma.mm, addr)
    if vma.file is None:
        await memcontrol.mem_cgroup_charge(kernel, folio)
        result = await mfill_atomic_install_pte(kernel, vma, addr, folio, wp)
    else:
        result = await shmem_mfill_atomic_pte(kernel, vma, addr, folio, vma.file, wp)
    if result:
        await swap.folio_put(kernel, folio)
    await mmap_read_unlock(vma.mm)
    if not result:
        await wake_userfault(vma.mm, addr, addr + 1)
    return result


async def mfill_atomic_install_pte(kernel: Kernel, vma: Vma, addr: int, folio: Folio, wp: bool) -> int:
    """Map the page where there is nothing, or no more than a marker."""
    if not await pte_offset_map_lock(kernel, vma.mm, addr):
        return -Errno.EEXIST
    found = await ptep_get(vma.mm, addr)
    free = found.kind in (PteKind.NONE, PteKind.MARKER)
    if free:
        if vma.file is None:
            await folio_add_new_anon_rmap(folio, vma, addr)
            await swap.folio_add_lru(kernel, folio)
        else:
            await folio_add_anon_rmap(folio, vma, addr, exclusive=False)
        write = bool(vma.flags & VmFlags.WRITE) and not wp
        await set_pte_at(vma.mm, addr, evolve(pte_mkdirty(mk_pte(folio)), write=write, uffd_wp=wp))
    await spin_unlock(vma.mm.ptl)
    return 0 if free else -Errno.EEXIST


async def shmem_mfill_atomic_pte(kernel: Kernel, vma: Vma, addr: int, folio: Folio, file: int, wp: bool) -> int:
    """The second half for shared memory: the page goes into the file, if it has none there yet, and then into the page table."""
    index = vma.index_of(addr)
    if not await filemap_add_folio(kernel, folio, file, index):
        return -Errno.EEXIST
    result = await mfill_atomic_install_pte(kernel, vma, addr, folio, wp)
    if result:
        await filemap_remove_folio(folio, file, index)
    await folio_unlock(folio)
    return result


async def mfill_atomic_zeropage(kernel: Kernel, mm: Mm, addr: int) -> int:
    """UFFDIO_ZEROPAGE of one page."""
    vma = find_vma(await mmap_read_lock(mm), addr)
    result = -Errno.ENOENT
    if vma is not None and _may_fill(vma):
        if vma.file is not None:
            return await _fill_zeroed(kernel, vma, addr)
        await pte_alloc(kernel, mm, addr)
        result = await _install_zero(kernel, mm, addr)
    await mmap_read_unlock(mm)
    if not result:
        await wake_userfault(mm, addr, addr + 1)
    return result


async def _fill_zeroed(kernel: Kernel, vma: Vma, addr: int) -> int:
    """Shared memory has no zero page: a page of its own."""
    folio = await alloc_page(kernel, "a page for UFFDIO_ZEROPAGE")
    if folio is None:
        await mmap_read_unlock(vma.mm)
        return -Errno.ENOMEM
    await clear_highpage(folio)
    return await _install(kernel, vma, addr, folio, wp=False)


async def _install_zero(kernel: Kernel, mm: Mm, addr: int) -> int:
    if not await pte_offset_map_lock(kernel, mm, addr):
        return -Errno.EEXIST
    free = (await ptep_get(mm, addr)).kind is PteKind.NONE
    if free:
        await set_pte_at(mm, addr, ZERO_PAGE)
    await spin_unlock(mm.ptl)
    return 0 if free else -Errno.EEXIST


# ---- the monitor -----------------------------------------------------------------------------------------------------


async def serve_userfault(kernel: Kernel, mm: Mm, source: int | None) -> int:
    """Read one message and answer it: a missing page is filled from page `source`, or with zeros, a guarded store let through.

    What the fill answers; 0 where there was nothing to fill, or the address space has ended.
    """
    return await _answer(kernel, mm, await userfaultfd_ctx_read(mm), source)


async def _answer(kernel: Kernel, mm: Mm, message: Userfault | None, source: int | None) -> int:
    if message is None or message.addr is None:
        return 0
    addr = message.addr
    if message.write_protected:
        result = await mwriteprotect_range(kernel, mm, addr, addr + 1, enable_wp=False)
    elif source is None:
        result = await mfill_atomic_zeropage(kernel, mm, addr)
    else:
        result = await mfill_atomic_copy(kernel, mm, addr, source, wp=False)
    if result:
        # UFFDIO_WAKE: whoever brought the page, or unmapped the place, wakes nobody; and where
        # memory was short the fault comes again.
        await wake_userfault(mm, addr, addr + 1)
    return result


async def userfaultfd_monitor(kernel: Kernel, mm: Mm, source: int | None) -> None:
    """A monitor that answers whatever comes, as long as there is the address space: a daemon."""
    while (message := await userfaultfd_ctx_read(mm)) is not None:
        await _answer(kernel, mm, message, source)
        await traps.return_to_user()
