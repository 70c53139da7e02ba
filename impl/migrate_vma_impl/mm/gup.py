"""get_user_pages and pin_user_pages: the pages behind addresses of user space, with references (mm/gup.c, 7.3).

Rules:
- The slow path looks at an entry under the page-table lock, and takes its reference there; what is not there, or not writable,
  is faulted in with mmap_lock alone, and looked at again. A device-private page is not there: it comes back.
- A call that holds mmap_lock for the caller (`Gup.locked` at its begin) keeps it; one that takes it itself may lose it to a fault
  that waits (userfaultfd), and goes on where it was.
- A pin for long may not stay on device-coherent memory: such pages are migrated away, and the range is pinned anew.
- Who gets fewer pages than asked for keeps those; who gets none learns why. FOLL_FORCE, hardware poison and signals are left out.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from attrs import define, field

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import memory
from migrate_vma_impl.mm.folio import folio_get, page_folio
from migrate_vma_impl.mm.gup_fast import gup_fast
from migrate_vma_impl.mm.gup_grab import Foll, Grab, Page, gup_put_folio, try_grab_folio, unpin_user_pages
from migrate_vma_impl.mm.huge_memory import split_huge_pmd
from migrate_vma_impl.mm.memory_copy import is_cow_mapping
from migrate_vma_impl.mm.migrate_device_coherent import migrate_device_coherent_folio
from migrate_vma_impl.mm.mm_types import FaultFlag, Folio, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma, mmap_read_lock, mmap_read_unlock
from migrate_vma_impl.mm.pgtable import hpage_nr, leaf_page, pmd_trans_huge, pmdp_get, pte_alloc, pte_offset_map_lock, ptep_get
from migrate_vma_impl.mm.rmap import folio_mark_dirty
from migrate_vma_spec.vocabulary import Errno, Pte, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

VM_FAULT_ERROR = VmFault.OOM | VmFault.SIGBUS | VmFault.SIGSEGV | VmFault.HWPOISON


def vm_fault_to_errno(result: VmFault) -> int:
    """include/linux/mm.h: what a failed fault is to who caused it for somebody else, 0 for one that did not fail."""
    if result & VmFault.OOM:
        return -Errno.ENOMEM
    return -Errno.EFAULT if result & VM_FAULT_ERROR else 0


class Follow(enum.Enum):
    """What a look at the page tables answers where it has no page."""

    NO_PAGE = "nothing that can be taken: fault it in"
    UNSHARE = "a page that must be unshared (-EMLINK)"


@define
class Gup:
    """One call: [addr, addr + nr) is asked, `pages` is what it has so far. `vmas` is what mmap_read_lock answered."""

    mm: Mm
    addr: int
    nr: int
    flags: Foll
    vmas: tuple[Vma, ...] = ()
    locked: bool = False
    pages: list[Page] = field(factory=list[Page])


# ---- looking at entries ----------------------------------------------------------------------------------------------


async def follow_page_mask(kernel: Kernel, vma: Vma, addr: int, flags: Foll, room: int) -> list[Page] | Follow:
    """The page of `addr` with a reference; of a leaf at the middle level as many as it maps from there, up to `room`."""
    pmd = await pmdp_get(kernel, vma.mm, addr)
    if pmd.kind is PteKind.TABLE:
        return await follow_page_pte(kernel, vma, addr, flags)
    if not pmd_trans_huge(pmd):
        return Follow.NO_PAGE
    await spin_lock(vma.mm.ptl)
    pmd = await pmdp_get(kernel, vma.mm, addr)
    if not pmd_trans_huge(pmd) or flags & Foll.SPLIT_PMD:
        await spin_unlock(vma.mm.ptl)
        return await _follow_below(kernel, vma, addr, flags, pmd)
    found = await follow_huge_pmd(kernel, vma, addr, flags, pmd, room)
    await spin_unlock(vma.mm.ptl)
    return found


async def _follow_below(kernel: Kernel, vma: Vma, addr: int, flags: Foll, pmd: Pte) -> list[Page] | Follow:
    """The leaf is none any more, or is split as FOLL_SPLIT_PMD wants it."""
    if pmd_trans_huge(pmd):
        await split_huge_pmd(kernel, vma, addr)
        await pte_alloc(kernel, vma.mm, addr)
        return await follow_page_pte(kernel, vma, addr, flags)
    return await follow_page_pte(kernel, vma, addr, flags) if pmd.kind is PteKind.TABLE else Follow.NO_PAGE


async def follow_huge_pmd(kernel: Kernel, vma: Vma, addr: int, flags: Foll, pmd: Pte, room: int) -> list[Page] | Follow:
    if flags & Foll.WRITE and not pmd.write:
        return Follow.NO_PAGE
    offset = addr % hpage_nr(kernel)
    nr = min(room, hpage_nr(kernel) - offset)
    pages: list[Page] = [_page_of(leaf_page(pmd, offset + i)) for i in range(nr)]
    return await _grab(kernel, vma, pmd, flags, pages)


async def follow_page_pte(kernel: Kernel, vma: Vma, addr: int, flags: Foll) -> list[Page] | Follow:
    """Under the page-table lock: the page of a present entry that allows what is asked."""
    if not await pte_offset_map_lock(kernel, vma.mm, addr):
        return Follow.NO_PAGE
    pte = await ptep_get(vma.mm, addr)
    found: list[Page] | Follow = Follow.NO_PAGE
    if pte.kind in (PteKind.PRESENT, PteKind.ZERO) and (pte.write or not flags & Foll.WRITE):
        found = await _grab(kernel, vma, pte, flags, [_page_of(pte)])
    await spin_unlock(vma.mm.ptl)
    return found


def _page_of(entry: Pte) -> Page:
    return None if entry.pfn is None else Folio(entry.pfn)


async def _grab(kernel: Kernel, vma: Vma, entry: Pte, flags: Foll, pages: list[Page]) -> list[Page] | Follow:
    """The pages of one entry, which the page-table lock keeps, with a reference each; a written folio is made dirty."""
    first = pages[0]
    if first is None:
        # The zero page belongs to no mapping: who reads it for long would not see what is written at this address.
        return Follow.UNSHARE if flags & Foll.PIN and flags & Foll.LONGTERM and is_cow_mapping(vma) else pages
    grab = await try_grab_folio(kernel, first, len(pages), flags, None if entry.write else is_cow_mapping(vma))
    if grab is Grab.UNSHARE:
        return Follow.UNSHARE
    if grab is Grab.CLEAN and not entry.dirty:
        await folio_mark_dirty(await page_folio(kernel, first))
    return pages


# ---- the slow path ---------------------------------------------------------------------------------------------------


def check_vma_flags(vma: Vma | None, flags: Foll) -> int:
    """Whether the mapping may be used so: 0 or -EFAULT, or -EOPNOTSUPP for hugetlb memory that is to be split."""
    if vma is None or vma.flags & (VmFlags.IO | VmFlags.PFNMAP):
        return -Errno.EFAULT
    if flags & Foll.SPLIT_PMD and vma.flags & VmFlags.HUGETLB:
        return -Errno.EOPNOTSUPP
    return 0 if vma.flags & (VmFlags.WRITE if flags & Foll.WRITE else VmFlags.READ) else -Errno.EFAULT


async def get_user_pages_slow(kernel: Kernel, gup: Gup) -> int:
    """__get_user_pages: page after page under mmap_lock. 0, or the errno of the page that stopped it; see gup.locked."""
    while len(gup.pages) < gup.nr:
        addr = gup.addr + len(gup.pages)
        vma = find_vma(gup.vmas, addr)
        result = check_vma_flags(vma, gup.flags)
        if result or vma is None:
            return result
        result = await _get_pages(kernel, gup, vma, addr)
        if result or not gup.locked:
            return result
    return 0


async def _get_pages(kernel: Kernel, gup: Gup, vma: Vma, addr: int) -> int:
    while True:
        found = await follow_page_mask(kernel, vma, addr, gup.flags, min(gup.nr - len(gup.pages), vma.end - addr))
        if not isinstance(found, Follow):
            gup.pages += found
            return 0
        result = await faultin_page(kernel, gup, vma, addr, unshare=found is Follow.UNSHARE)
        if result or not gup.locked:
            return result
        await traps.cond_resched()


async def faultin_page(kernel: Kernel, gup: Gup, vma: Vma, addr: int, *, unshare: bool) -> int:
    """One fault for a page that could not be taken. Where it dropped mmap_lock, gup.locked is False."""
    flags = (FaultFlag.ALLOW_RETRY if gup.flags & Foll.UNLOCKABLE else FaultFlag.NONE) | (
        FaultFlag.UNSHARE if unshare else FaultFlag.NONE
    )
    result = await memory.handle_mm_fault(kernel, vma, addr, bool(gup.flags & Foll.WRITE), flags=flags)
    if result & VmFault.RETRY:
        gup.locked = False
        return 0
    return vm_fault_to_errno(result)


async def get_user_pages_locked(kernel: Kernel, gup: Gup) -> int:
    """__get_user_pages_locked: 0, or why there is no page after those that it has.

    mmap_lock is taken and dropped here, unless the caller holds it; then it stays held.
    """
    must_unlock = not gup.locked
    while True:
        if not gup.locked:
            gup.vmas = await mmap_read_lock(gup.mm)
            gup.locked = True
        result = await get_user_pages_slow(kernel, gup)
        if gup.locked:
            break
    if must_unlock:
        await mmap_read_unlock(gup.mm)
        gup.locked = False
    return result


# ---- pins for long ---------------------------------------------------------------------------------------------------


async def gup_longterm_locked(kernel: Kernel, gup: Gup) -> int:
    """__gup_longterm_locked: pin, and pin again after pages that may not be pinned for long were migrated away."""
    if not gup.flags & Foll.LONGTERM:
        return await get_user_pages_locked(kernel, gup)
    had = len(gup.pages)
    while True:
        result = await get_user_pages_locked(kernel, gup)
        moved = await check_and_migrate_movable_pages(kernel, gup.pages[had:])
        if not moved:
            return result
        del gup.pages[had:]
        if moved != -Errno.EAGAIN:
            return moved


def folio_is_longterm_pinnable(kernel: Kernel, page: Page) -> bool:
    """Device-coherent memory must stay evictable. There is no movable zone here, nor memory of the contiguous allocator."""
    return page is None or not kernel.is_device_coherent(page)


async def check_and_migrate_movable_pages(kernel: Kernel, pages: list[Page]) -> int:
    """0 if all may stay pinned. Else none is pinned any more: -EAGAIN if those that may not have moved, or an errno."""
    if all(folio_is_longterm_pinnable(kernel, page) for page in pages):
        return 0
    for i, page in enumerate(pages):
        if page is None or folio_is_longterm_pinnable(kernel, page):
            await gup_put_folio(kernel, page, Foll.PIN)
            continue
        # A pin would keep the page where it is: it becomes an ordinary reference, which the migration consumes.
        await folio_get(page)
        await gup_put_folio(kernel, page, Foll.PIN)
        if await migrate_device_coherent_folio(kernel, page):
            await unpin_user_pages(kernel, pages[i + 1 :])
            return -Errno.EBUSY
    return -Errno.EAGAIN


# ---- the calls -------------------------------------------------------------------------------------------------------


async def get_user_pages_remote(kernel: Kernel, mm: Mm, vmas: tuple[Vma, ...], addr: int, nr: int, flags: Foll) -> Gup | Errno:
    """get_user_pages_remote for a caller that holds mmap_lock (`vmas` is what taking it answered) and keeps it."""
    gup = Gup(mm, addr, nr, flags | Foll.GET | Foll.TOUCH, vmas, locked=True)
    result = await get_user_pages_locked(kernel, gup)
    return gup if gup.pages else Errno(-result)


async def user_pages(kernel: Kernel, mm: Mm, addr: int, nr: int, flags: Foll) -> list[Page] | Errno:
    """get_user_pages_unlocked or pin_user_pages_unlocked: the pages, perhaps fewer than asked for, or why there is none."""
    gup = Gup(mm, addr, nr, flags | Foll.TOUCH | Foll.UNLOCKABLE)
    result = await gup_longterm_locked(kernel, gup)
    return gup.pages or Errno(-result)


async def user_pages_fast(kernel: Kernel, mm: Mm, addr: int, nr: int, flags: Foll) -> list[Page] | Errno:
    """get_user_pages_fast or pin_user_pages_fast, for the address space of the caller: without a lock, as far as that goes.

    What it cannot take so it takes as the slow call does (gup_fast_fallback).
    """
    fast = await gup_fast(kernel, mm, addr, nr, flags)
    if len(fast) == nr:
        return fast
    rest = Gup(mm, addr + len(fast), nr - len(fast), flags | Foll.TOUCH | Foll.UNLOCKABLE)
    result = await gup_longterm_locked(kernel, rest)
    pages = fast + rest.pages
    return pages or Errno(-result)


async def pin_user_page(kernel: Kernel, mm: Mm, addr: int) -> Folio | Errno:
    """pin_user_pages of one page that is written, under mmap_lock; it is faulted in until it can be pinned."""
    gup = Gup(mm, addr, 1, Foll.PIN | Foll.WRITE)
    result = await get_user_pages_locked(kernel, gup)
    return gup.pages[0] if gup.pages and gup.pages[0] is not None else Errno(-result)
