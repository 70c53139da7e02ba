"""Reclaiming pages: mm/vmscan.c:shrink_folio_list for one folio at a time, and reclaim_pages (7.3).

Rules:
- Folios come isolated from the LRU, with the isolation's reference, and go back there or are freed.
- The page lock is only tried. What is in use, pinned, in locked memory or a large folio stays.
- An anonymous page gets a swap slot, is unmapped and written there, and leaves the swap cache when nobody else has it. Clean
  pages of a file are dropped, dirty ones left to write-back, shared memory stays; contents given up by MADV_FREE are dropped.
- What was reclaimed is freed at the end, all at once, after the flushes that were put off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.filemap import folio_clear_dirty, remove_mapping, write_page
from migrate_vma_impl.mm.folio import folio_trylock, folio_unlock
from migrate_vma_impl.mm.mm_types import Folio, FolioState
from migrate_vma_impl.mm.rmap import folio_mark_dirty
from migrate_vma_impl.mm.rmap_unmap import try_to_unmap
from migrate_vma_impl.mm.swapfile import folio_alloc_swap, folio_free_swap, remove_swap_mapping
from migrate_vma_impl.mm.tlb_batch import UnmapBatch
from migrate_vma_spec.events import FolioRead

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def reclaim_pages(kernel: Kernel, folios: Iterable[Folio]) -> int:
    """Reclaim isolated folios, and put back on the LRU what stays. How many were reclaimed."""
    batch, reclaimed = UnmapBatch(), list[Folio]()
    for folio in folios:
        await traps.cond_resched()
        if not await folio_trylock(folio):
            await swap.folio_putback_lru(kernel, folio)
        elif await shrink_locked_folio(kernel, folio, batch):
            await folio_unlock(folio)
            reclaimed.append(folio)
        else:
            await folio_unlock(folio)
            await swap.folio_putback_lru(kernel, folio)
    await kernel.generation.steps.flush_before_free(kernel, batch)
    for folio in reclaimed:
        await swap.folio_put(kernel, folio)
    return len(reclaimed)


def _read(f: FolioState) -> Outcome:
    return (f,), f, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _look(folio: Folio) -> FolioState:
    return await traps.step(_read, folio)  # type: ignore[no-any-return]


async def shrink_locked_folio(kernel: Kernel, folio: Folio, batch: UnmapBatch) -> bool:
    """Take everything from a locked and isolated folio but the isolation's reference; False where that cannot be done."""
    f = await _look(folio)
    if f.order or not await _has_backing(kernel, folio, f):
        return False
    if f.mapcount:
        await try_to_unmap(kernel, folio, batch)
    f = await _look(folio)
    if f.mapcount or f.pins:
        return False
    if f.dirty:
        await kernel.generation.steps.flush_before_pageout(kernel, batch)
        if not await pageout(kernel, folio, f):
            return False
    return await _leave_cache(folio)


async def _has_backing(kernel: Kernel, folio: Folio, f: FolioState) -> bool:
    """Where the contents can come back from: the file, a swap slot (a new one unless it has one), or nowhere after MADV_FREE."""
    if f.file is not None or f.swap is not None or f.lazyfree:
        return True
    if f.pins or not await folio_alloc_swap(kernel, folio):
        return False
    # Its page-table entry need not be dirty, but the slot has no copy of it yet.
    await folio_mark_dirty(folio)
    return True


async def pageout(kernel: Kernel, folio: Folio, f: FolioState) -> bool:
    """Write a dirty page to its swap slot, if only the swap cache and the isolation have it. A file's is not written here."""
    if f.swap is None or f.refcount != 2:
        return False
    await folio_clear_dirty(folio)
    if await folio_free_swap(kernel, folio):
        return False
    await write_page(folio, None, f.swap)
    return True


async def _leave_cache(folio: Folio) -> bool:
    """__remove_mapping: nobody else may have the page, and nobody may have written it since. One without a cache is ours."""
    f = await _look(folio)
    if f.file is not None and f.index is not None:
        return await remove_mapping(folio, f.file, f.index)
    if f.swap is not None:
        return await remove_swap_mapping(folio, f.swap)
    return f.lazyfree and f.refcount == 1
