"""MADV_PAGEOUT: mm/madvise.c:madvise_cold_or_pageout_pte_range (7.3), for pages of the smallest size.

Rules:
- Only a page that this entry alone maps, and that is on the LRU, is taken: others' mappings are not interfered with. Pages of a
  device and large folios are passed over.
- The pages of one page table are isolated under its lock, and reclaimed when that is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, Vma
from migrate_vma_impl.mm.mmap import covers, in_range, inside, overlap
from migrate_vma_impl.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from migrate_vma_impl.mm.pgtable import pmd_ranges, pte_offset_map_lock, ptep_get
from migrate_vma_impl.mm.tlb_batch import flush_tlb_batched_pending
from migrate_vma_impl.mm.vmscan import reclaim_pages
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.vocabulary import Errno, Lru, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

NOT_ON_LRU = VmFlags.LOCKED | VmFlags.PFNMAP | VmFlags.HUGETLB


async def madvise_pageout_range(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """Reclaim what can be reclaimed of [start, end); -EINVAL at a VMA whose pages are not on the LRU."""
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    vmas = await mmap_read_lock(mm)
    result = 0 if covers(vmas, start, end) else -Errno.ENOMEM
    for vma in overlap(vmas, start, end):
        if vma.flags & NOT_ON_LRU:
            result = -Errno.EINVAL
            break
        await madvise_pageout(kernel, vma, inside(vma, start, end))
    await mmap_read_unlock(mm)
    return result


async def madvise_pageout(kernel: Kernel, vma: Vma, part: Vma) -> None:
    await swap.lru_add_drain(kernel)
    for first, last in pmd_ranges(kernel, part.start, part.end):
        await _pageout_pte_range(kernel, vma, first, last)


async def _pageout_pte_range(kernel: Kernel, vma: Vma, start: int, end: int) -> None:
    if not await pte_offset_map_lock(kernel, vma.mm, start):
        return
    await flush_tlb_batched_pending(kernel, vma.mm)
    isolated: list[Folio] = []
    for addr in range(start, end):
        pte = await ptep_get(vma.mm, addr)
        folio = None if pte.kind is not PteKind.PRESENT or pte.pfn is None else Folio(pte.pfn)
        if folio is not None and await _isolate(kernel, folio):
            isolated.append(folio)
    await spin_unlock(vma.mm.ptl)
    await reclaim_pages(kernel, isolated)


def _ours(f: FolioState) -> Outcome:
    ours = f.lru is Lru.ON and f.mapcount == 1 and not f.order and f.head is None and not f.is_zone_device
    return (f,), ours, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _isolate(kernel: Kernel, folio: Folio) -> bool:
    return bool(await traps.step(_ours, folio)) and await swap.folio_isolate_lru(kernel, folio)
