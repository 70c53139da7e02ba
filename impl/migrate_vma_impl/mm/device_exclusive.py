"""make_device_exclusive: a page for one device alone, until a CPU touches it (mm/rmap.c, 7.3; by ranges, 6.1).

Rules:
- The caller holds mmap_lock for reading, and must ignore the notification of its own (event EXCLUSIVE, with `owner`), or it would
  never get the page. All others let go of it.
- The page comes back locked and referenced: no fault can restore the entry before the driver has put the page into its device's
  page table, unlocked it and put it (C91).
- Memory of one process that may be written, and no hugetlb memory. A folio that is mapped by a leaf of the middle level is mapped
  page by page first, and one of its pages is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_lock, folio_trylock, page_folio
from migrate_vma_impl.mm.gup import get_user_pages_remote
from migrate_vma_impl.mm.gup_grab import Foll
from migrate_vma_impl.mm.memory_exclusive import unlock_and_put
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    flush_tlb_page,
    pte_offset_map_lock,
    ptep_get,
    ptep_get_and_clear,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_mark_dirty
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.vocabulary import Errno, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def make_device_exclusive_entry(pte: Pte) -> Pte:
    """The entry for a page that was mapped writable: uffd-wp does not apply to it, young and dirty it has not."""
    return Pte(PteKind.EXCLUSIVE, pte.pfn, write=True, soft_dirty=pte.soft_dirty)


def _is_anon(f: FolioState) -> Outcome:
    return (f,), f.anon_vma is not None and f.file is None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def make_device_exclusive(
    kernel: Kernel, mm: Mm, vmas: tuple[Vma, ...], addr: int, owner: str | None = None
) -> tuple[Folio, Folio] | Errno:
    """The page at `addr`, and its folio, which is locked and referenced, for the driver to unlock and put; or why there is none.

    `vmas` is what mmap_read_lock answered.
    """
    vma = find_vma(vmas, addr)
    while True:
        found = await get_user_pages_remote(kernel, mm, vmas, addr, 1, Foll.WRITE | Foll.SPLIT_PMD)
        if isinstance(found, Errno):
            return found
        page = found.pages[0]
        if page is None or vma is None:
            return Errno.EFAULT
        folio = await page_folio(kernel, page)
        if vma.flags & VmFlags.HUGETLB or not await traps.step(_is_anon, folio):
            await swap.folio_put(kernel, folio)
            return Errno.EOPNOTSUPP
        await folio_lock(folio)
        await mmu_notifier.invalidate_range_start(kernel, mm, addr, addr + 1, NotifyReason.EXCLUSIVE, owner)
        made = await _replace(kernel, vma, addr, page, folio)
        await mmu_notifier.invalidate_range_end(kernel, mm, addr, addr + 1)
        if made:
            return page, folio
        await unlock_and_put(kernel, folio)


async def make_device_exclusive_range(
    kernel: Kernel, mm: Mm, vmas: tuple[Vma, ...], start: int, end: int, owner: str | None = None
) -> list[Folio | None]:
    """As drivers called it up to v6.14: what get_user_pages found of [start, end), which may be less than all, with None for the
    pages that were not to be had. The others are locked and referenced, for the driver to unlock and put.

    Only the first page of a folio is to be had, and none that is locked.
    """
    found = await get_user_pages_remote(kernel, mm, vmas, start, end - start, Foll.WRITE | Foll.SPLIT_PMD)
    pages = [] if isinstance(found, Errno) else found.pages
    return [await _take_found(kernel, mm, vmas, start + i, page, owner) for i, page in enumerate(pages)]


async def _take_found(
    kernel: Kernel, mm: Mm, vmas: tuple[Vma, ...], addr: int, page: Folio | None, owner: str | None
) -> Folio | None:
    """folio_make_device_exclusive, for one page that get_user_pages found."""
    vma = find_vma(vmas, addr)
    if page is None or vma is None:
        return None
    folio = await page_folio(kernel, page)
    if page != folio or not await folio_trylock(folio):
        await swap.folio_put(kernel, folio)
        return None
    made = False
    if await traps.step(_is_anon, folio):
        await mmu_notifier.invalidate_range_start(kernel, mm, addr, addr + 1, NotifyReason.EXCLUSIVE, owner)
        made = await _replace(kernel, vma, addr, page, folio)
        await mmu_notifier.invalidate_range_end(kernel, mm, addr, addr + 1)
    if not made:
        await unlock_and_put(kernel, folio)
    return page if made else None


async def _replace(kernel: Kernel, vma: Vma, addr: int, page: Folio, folio: Folio) -> bool:
    """Put the entry there if the page is mapped writable still: by this entry alone, then, for it is exclusive."""
    if not await pte_offset_map_lock(kernel, vma.mm, addr):
        return False
    pte = await ptep_get(vma.mm, addr)
    same = pte.kind is PteKind.PRESENT and pte.pfn == page.pfn and pte.write
    if same:
        await flush_cache_page(vma.mm, addr)
        pte, _ = await ptep_get_and_clear(vma.mm, addr, page)
        await flush_tlb_page(kernel, vma.mm, addr)
        if pte.dirty:
            await folio_mark_dirty(folio)
        await set_pte_at(vma.mm, addr, make_device_exclusive_entry(pte))
    await spin_unlock(vma.mm.ptl)
    return same
