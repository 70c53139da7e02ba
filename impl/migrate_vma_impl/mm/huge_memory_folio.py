"""Splitting folios: mm/huge_memory.c:__folio_split and folio_split_unmapped (7.3), into pages of order 0.

Rules:
- The caller has the folio's lock and one reference. Afterwards one page's folio is locked and referenced still: the head's, or
  the one that the caller names; the others are unlocked and have no reference but those of their mappings.
- Mapped folios are unmapped first, into migration entries, under the reverse map's lock held for writing, so that the tree stays
  as it is; then the count must be exactly the caller's. A folio that is pinned, or that anybody else refers to, is mapped again
  as it was, in page tables now, and the answer is False (-EAGAIN).
- The step that freezes the count splits the folio too. A driver is told of each new folio of its device behind that step; all
  of them are locked until it has been.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock, up_write
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get, folio_nr_pages, folio_unlock, page_folio
from migrate_vma_impl.mm.mm_types import AnonVma, Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_mapping_place, rmap_lock_write, shows
from migrate_vma_impl.mm.rmap_migrate import try_to_migrate_one
from migrate_vma_spec.events import FolioRead, FolioSplit, SplitCallback
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def split_folio(kernel: Kernel, folio: Folio) -> bool:
    """split_folio: the head stays locked and referenced. False: nothing was split."""
    return await split_huge_page(kernel, folio)


async def split_huge_page(kernel: Kernel, page: Folio) -> bool:
    """split_huge_page: the folio of `page`, which stays locked and referenced (split_huge_page_to_list_to_order)."""
    folio = await page_folio(kernel, page)
    pages = await folio_nr_pages(kernel, folio)
    _, place = await folio_mapping_place(folio)
    if pages == 1 or place is None or not isinstance(place[0], AnonVma):
        return False
    tree, index = place
    vmas = await rmap_lock_write(tree)
    split = await _can_split(folio) and await _unmap_and_split(kernel, folio, vmas, index, pages)
    if split:
        await _release_all_but(kernel, folio, pages, page)
    await up_write(tree.rwsem)
    return split


def _look(f: FolioState) -> Outcome:
    return (f,), f.mapcount == f.refcount - 1, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _can_split(folio: Folio) -> bool:
    """can_split_folio: whether the mappings and the caller have all references, looked at before anything is done."""
    return bool(await traps.step(_look, folio))


async def _unmap_and_split(kernel: Kernel, folio: Folio, vmas: tuple[Vma, ...], index: int, pages: int) -> bool:
    for vma in vmas:
        if shows(vma, index, pages) and not await try_to_migrate_one(kernel, folio, vma, index, pages, split=True):
            break
    split = await folio_split_unmapped(kernel, folio)
    await _remap(kernel, folio, vmas, index, pages)
    return split


# ---- the count and the structs ---------------------------------------------------------------------------------------


def new_folio(head: FolioState, f: FolioState, i: int) -> FolioState:
    """Page `i` as a folio of its own: locked, with one reference; flags, charge and place are the old one's."""
    if not i:
        return evolve(f, order=0)
    index = None if head.index is None else head.index + i
    return evolve(head, pfn=f.pfn, order=0, head=None, index=index, queue=f.queue, handed=None, exclusive=f.exclusive)


def _split(head: FolioState, *tails: FolioState) -> Outcome:
    frames = (head, *tails)
    pages = 1 << head.order
    if head.refcount != 1 or head.mapcount or pages != len(frames):
        return frames, False, FolioRead(head.pfn, head.refcount, head.mapcount)
    after = tuple(new_folio(head, f, i) for i, f in enumerate(frames))
    return after, True, FolioSplit(head.pfn, head.order, 0, (1,) * pages, (0,) * pages)


async def folio_split_unmapped(kernel: Kernel, folio: Folio) -> bool:
    """folio_split_unmapped of a locked folio: if the caller's is the one reference, each page is a folio, locked and with one
    reference. False where anybody else holds it, or maps a page of it.
    """
    pages = await folio_nr_pages(kernel, folio)
    frames = tuple(Folio(folio.pfn + i) for i in range(pages))
    if pages == 1 or not await traps.step(_split, *frames):
        return False
    if kernel.is_device_private(folio):
        await kernel.generation.steps.tell_of_split(kernel, folio, frames[1:])
    return True


async def tell_of_split(kernel: Kernel, head: Folio, tails: tuple[Folio, ...]) -> None:
    """zone_device_private_split_cb: for each new folio, and once more when all are told of."""
    driver = kernel.driver_of(head)
    for tail in (*tails, None):
        await traps.note(SplitCallback(head.pfn, None if tail is None else tail.pfn))
        await driver.folio_split(head, tail)


# ---- mapping again ---------------------------------------------------------------------------------------------------


async def _remap(kernel: Kernel, folio: Folio, vmas: tuple[Vma, ...], index: int, pages: int) -> None:
    """remap_page: migration entries become mappings again, of whichever folios there are now. The tree's lock is held already."""
    for i in range(pages):
        page = Folio(folio.pfn + i)
        owner = await page_folio(kernel, page)
        for vma in vmas:
            addr = vma.address_of(index + i)
            if addr is not None:
                await _remap_page(kernel, owner, page, vma, addr)


async def _remap_page(kernel: Kernel, folio: Folio, page: Folio, vma: Vma, addr: int) -> None:
    """remove_migration_pte for one page of a folio; a leaf never is one here, for the folio was unmapped into page tables."""
    await spin_lock(vma.mm.ptl)
    old = await ptep_get(vma.mm, addr)
    if old.kind is PteKind.MIGRATION and old.pfn == page.pfn:
        await folio_get(folio)
        dirty = await folio_add_anon_rmap(folio, vma, addr, exclusive=old.write or old.exclusive, page=page)
        device = kernel.is_device_private(page)
        await set_pte_at(vma.mm, addr, kernel.generation.steps.restored_entry(old, page, device, dirty))
    await spin_unlock(vma.mm.ptl)


async def _release_all_but(kernel: Kernel, folio: Folio, pages: int, kept: Folio) -> None:
    """Unlock the new folios and put the split's references to them; what nobody maps any more is freed so."""
    for i in range(pages):
        each = Folio(folio.pfn + i)
        if each != kept:
            await folio_unlock(each)
            await swap.folio_put(kernel, each)
