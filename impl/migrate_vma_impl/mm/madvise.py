"""Advice about memory: mm/madvise.c (7.3).

Rules:
- What takes or looks at pages needs mmap_lock for reading only; what changes VMAs needs it for writing.
- Advice is carried out where something is mapped; a gap in the range makes the answer -ENOMEM, after the rest is done.
- MADV_COLD changes no mapping, so its walk has no notifier bracket. (MADV_PAGEOUT is in `madvise_pageout.py`.)
- A page that others map too, and a part of a large folio, is left alone. (The kernel splits the folio if it can.)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.filemap import folio_clear_dirty
from migrate_vma_impl.mm.folio import folio_trylock, folio_unlock, page_folio
from migrate_vma_impl.mm.huge_memory_walk import madvise_free_huge_pmd
from migrate_vma_impl.mm.memory_zap import tlb_finish_mmu
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, PteSlot, Vma
from migrate_vma_impl.mm.mmap import covers, in_range, inside, overlap, vma_modify_flags, zap_range
from migrate_vma_impl.mm.mmap_lock import mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock
from migrate_vma_impl.mm.pgtable import (
    flush_tlb_range,
    pmd_ranges,
    pmd_trans_huge,
    pmdp_get,
    pte_clear,
    pte_offset_map_lock,
    ptep_get,
)
from migrate_vma_impl.mm.swapfile import folio_free_swap, swap_put_entries_direct
from migrate_vma_impl.mm.tlb_batch import flush_tlb_batched_pending
from migrate_vma_spec.events import FolioLazyfreed, FolioRead, LazyMmuEntered, LazyMmuLeft, PteChanged
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Errno, Lru, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

ChangePte = Callable[["Kernel", Vma, int], Coroutine[Any, Any, bool]]
"""What is done with one entry under the page-table lock; whether its translation has to go."""

Behavior = Callable[["Kernel", Vma], Coroutine[Any, Any, None]]
"""What is done with the part of a VMA that lies in the range."""


async def _for_each_vma(
    kernel: Kernel, mm: Mm, start: int, end: int, behavior: Behavior, refused: VmFlags, *, of_files: bool = True
) -> int:
    """madvise_walk_vmas with mmap_lock for reading.

    A VMA with one of the flags `refused` ends it with -EINVAL; so does one of a file, unless `of_files`.
    """
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    vmas = await mmap_read_lock(mm)
    result = 0 if covers(vmas, start, end) else -Errno.ENOMEM
    for vma in overlap(vmas, start, end):
        if vma.flags & refused or not (vma.anonymous or of_files):
            result = -Errno.EINVAL
            break
        await behavior(kernel, inside(vma, start, end))
    await mmap_read_unlock(mm)
    return result


# ---- the contents are not wanted -------------------------------------------------------------------------------------


async def _dontneed(kernel: Kernel, part: Vma) -> None:
    gathered: list[Folio] = []
    present = await zap_range(kernel, part, part.start, part.end, NotifyReason.CLEAR, gathered)
    await tlb_finish_mmu(kernel, part.mm, part.start, part.end, present, gathered)


async def madvise_dontneed_range(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """MADV_DONTNEED: zap_page_range_single for each VMA."""
    return await _for_each_vma(kernel, mm, start, end, _dontneed, VmFlags.NONE)


async def madvise_free_range(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """MADV_FREE: the contents may be dropped when memory is short, unless they are written again. No mapping of a file."""
    return await _for_each_vma(kernel, mm, start, end, _free, VmFlags.LOCKED | VmFlags.PFNMAP, of_files=False)


async def _free(kernel: Kernel, part: Vma) -> None:
    """madvise_free_single_vma."""
    await swap.lru_add_drain(kernel)
    await mmu_notifier.invalidate_range_start(kernel, part.mm, part.start, part.end, NotifyReason.CLEAR)
    flush = False
    for first, last in pmd_ranges(kernel, part.start, part.end):
        flush |= await madvise_free_pte_range(kernel, part, first, last)
        await traps.cond_resched()
    await mmu_notifier.invalidate_range_end(kernel, part.mm, part.start, part.end)
    if flush:
        await flush_tlb_range(kernel, part.mm, part.start, part.end)


async def madvise_free_pte_range(kernel: Kernel, vma: Vma, start: int, end: int) -> bool:
    """Whether the translations have to go, for the next store must set the dirty bit again. A leaf sees to its own."""
    if pmd_trans_huge(await pmdp_get(kernel, vma.mm, start)) and await madvise_free_huge_pmd(kernel, vma, start, end):
        return False
    return await _walk_ptes(kernel, vma, start, end, _free_pte)


async def _walk_ptes(kernel: Kernel, vma: Vma, start: int, end: int, change: ChangePte) -> bool:
    """What a walk below one page table does to each entry; whether translations have to go."""
    if not await pte_offset_map_lock(kernel, vma.mm, start):
        return False
    await flush_tlb_batched_pending(kernel, vma.mm)
    await traps.note(LazyMmuEntered(vma.mm.number))
    flush = False
    for addr in range(start, end):
        flush |= await change(kernel, vma, addr)
    await traps.note(LazyMmuLeft(vma.mm.number))
    await spin_unlock(vma.mm.ptl)
    return flush


async def _free_pte(kernel: Kernel, vma: Vma, addr: int) -> bool:
    pte = await ptep_get(vma.mm, addr)
    if pte.kind is PteKind.SWAP and pte.swap is not None:
        await swap_put_entries_direct(kernel, pte.swap)
    if pte.kind in (PteKind.SWAP, PteKind.HWPOISON):
        await pte_clear(vma.mm, addr)
    folio = await _normal_folio(kernel, pte)
    if folio is None or not await _unwritten(kernel, folio):
        return False
    cleared: bool = await traps.step(_make_old_and_clean, PteSlot(vma.mm.number, addr), args=(vma.mm.number, addr, True))
    await traps.step(_mark_lazyfree, folio)
    return cleared


async def _normal_folio(kernel: Kernel, pte: Pte) -> Folio | None:
    """vm_normal_folio, but for pages of devices."""
    page = Folio(pte.pfn) if pte.kind is PteKind.PRESENT and pte.pfn is not None else None
    return None if page is None or kernel.is_zone_device(page) else await page_folio(kernel, page)


async def _unwritten(kernel: Kernel, folio: Folio) -> bool:
    """Make the folio clean and take it from the swap cache, under its lock, if it is nobody else's. False: leave it alone."""
    f = await _look(folio)
    if f.order or f.head is not None or f.file is not None:
        return False
    if f.swap is None and not f.dirty:
        return True
    if not await folio_trylock(folio):
        return False
    f = await _look(folio)
    alone = f.mapcount == 1 and (f.swap is None or await folio_free_swap(kernel, folio))
    if alone:
        await folio_clear_dirty(folio)
    await folio_unlock(folio)
    return alone


def _read(f: FolioState) -> Outcome:
    return (f,), f, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _look(folio: Folio) -> FolioState:
    return await traps.step(_read, folio)  # type: ignore[no-any-return]


def _make_old_and_clean(old: Pte, mm: int, addr: int, clean: bool) -> Outcome:
    new = evolve(old, young=False, dirty=old.dirty and not clean)
    return (new,), new != old, PteChanged(mm, addr, old, new)


def _mark_lazyfree(f: FolioState) -> Outcome:
    """folio_mark_lazyfree. The kernel goes through a batch of the CPU; one step here."""
    if f.lru is not Lru.ON or f.swap is not None or f.lazyfree:
        return (f,), None, FolioRead(f.pfn, f.refcount, f.mapcount)
    return (evolve(f, lazyfree=True),), None, FolioLazyfreed(f.pfn)


# ---- the pages are not needed soon -----------------------------------------------------------------------------------


async def madvise_cold_range(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """MADV_COLD: make the pages old."""
    return await _for_each_vma(kernel, mm, start, end, _cold, VmFlags.LOCKED | VmFlags.PFNMAP)


async def _cold(kernel: Kernel, part: Vma) -> None:
    await swap.lru_add_drain(kernel)
    flush = False
    for first, last in pmd_ranges(kernel, part.start, part.end):
        flush |= await madvise_cold_pte_range(kernel, part, first, last)
        await traps.cond_resched()
    if flush:
        await flush_tlb_range(kernel, part.mm, part.start, part.end)


async def madvise_cold_pte_range(kernel: Kernel, vma: Vma, start: int, end: int) -> bool:
    """madvise_cold_or_pageout_pte_range, for MADV_COLD. Whether translations have to go, for the next access must set young."""
    return await _walk_ptes(kernel, vma, start, end, _make_cold)


async def _make_cold(kernel: Kernel, vma: Vma, addr: int) -> bool:
    folio = await _normal_folio(kernel, await ptep_get(vma.mm, addr))
    f = None if folio is None else await _look(folio)
    if f is None or f.order or f.lru is not Lru.ON or f.mapcount != 1:
        return False
    return bool(await traps.step(_make_old_and_clean, PteSlot(vma.mm.number, addr), args=(vma.mm.number, addr, False)))


# ---- large folios ----------------------------------------------------------------------------------------------------


async def madvise_hugepage_range(kernel: Kernel, mm: Mm, start: int, end: int, enable: bool) -> int:
    """MADV_HUGEPAGE and MADV_NOHUGEPAGE: a flag of the VMAs. One that has it is left alone, with its leaves."""
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    on, off = (VmFlags.HUGEPAGE, VmFlags.NOHUGEPAGE) if enable else (VmFlags.NOHUGEPAGE, VmFlags.HUGEPAGE)
    for vma in overlap(vmas, start, end):
        part, flags = inside(vma, start, end), vma.flags & ~off | on
        if flags != vma.flags:
            await vma_modify_flags(kernel, vma, part.start, part.end, flags)
    await mmap_write_unlock(mm)
    return 0 if covers(vmas, start, end) else -Errno.ENOMEM
