"""Taking a page from a file for good: mm/truncate.c, and mm/memory.c:unmap_mapping_range (7.3).

Rules:
- The page is unmapped before its lock is taken, and again under it where a fault has mapped it in between.
- Private copies are not the file's: their entries stay (even_cows is not set, as for a hole that is punched).
- A migration entry of the page goes as a present one does; the migrator finds that nobody wants the page any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.filemap import filemap_remove_folio, folio_clear_dirty, lock_cached_folio, unlock_and_put
from migrate_vma_impl.mm.memory_zap import tlb_finish_mmu
from migrate_vma_impl.mm.mm_types import Folio, FolioState, IMmap, Vma
from migrate_vma_impl.mm.pgtable import pte_clear, pte_offset_map_lock, pte_present, ptep_get
from migrate_vma_impl.mm.rmap import folio_mapping_place, folio_mark_dirty, folio_remove_rmap, rmap_walk_begin, rmap_walk_end
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.vocabulary import NotifyReason, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def truncate_inode_page(kernel: Kernel, file: int, index: int) -> None:
    """truncate_pagecache_range for one page."""
    await unmap_mapping_page(kernel, file, index)
    folio = await lock_cached_folio(kernel, file, index)
    if folio is None:
        return
    mapped, _ = await folio_mapping_place(folio)
    if mapped:
        await unmap_mapping_page(kernel, file, index)
    await folio_clear_dirty(folio)
    await filemap_remove_folio(folio, file, index)
    await unlock_and_put(kernel, folio)


async def unmap_mapping_page(kernel: Kernel, file: int, index: int) -> None:
    """unmap_mapping_range for one page, without private copies."""
    tree = IMmap(file)
    for vma, addr in await rmap_walk_begin(tree, index):
        await _zap_one(kernel, vma, addr, file)
    await rmap_walk_end(tree)


async def _zap_one(kernel: Kernel, vma: Vma, addr: int, file: int) -> None:
    """zap_page_range_single."""
    gathered: list[Folio] = []
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, addr, addr + 1, NotifyReason.CLEAR)
    if await pte_offset_map_lock(kernel, vma.mm, addr):
        await _zap_pte(vma, addr, file, gathered)
        await spin_unlock(vma.mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, addr, addr + 1)
    await tlb_finish_mmu(kernel, vma.mm, addr, addr + 1, len(gathered), gathered)


def _of_file(f: FolioState, file: int) -> Outcome:
    return (f,), f.file == file, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _zap_pte(vma: Vma, addr: int, file: int, gathered: list[Folio]) -> None:
    pte = await ptep_get(vma.mm, addr)
    folio = None if pte.kind not in (PteKind.PRESENT, PteKind.MIGRATION) or pte.pfn is None else Folio(pte.pfn)
    if folio is None or not await traps.step(_of_file, folio, args=(file,)):
        return
    await pte_clear(vma.mm, addr)
    if pte_present(pte):
        if pte.dirty:
            await folio_mark_dirty(folio)
        await folio_remove_rmap(folio, vma, addr)
        gathered.append(folio)
