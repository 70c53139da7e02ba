"""The page cache: mm/filemap.c (7.3), with the write-back of mm/page-writeback.c and the unmapping of mm/truncate.c.

Rules:
- Files 0 to Config.files - 1 have names and are there from the start; as many more have none, and are shared anonymous memory
  for as long as something maps them (`shmem.py`). The cache of one that is not there is None.
- A page is found without a lock: read the cache, take a reference if the page has one, read the cache again. So for a moment a
  stranger's page may have an unexpected reference.
- A page in the cache has the cache's reference, and is not up to date before its reader drops the page lock.
- A page leaves the cache under its lock, and only if nobody but the cache and whoever removes it has it, or when its file goes.
- Reads and writes of the medium are done at once: there is no page under writeback. Files have a fixed size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import RwSem, spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Key, Outcome
from migrate_vma_impl.mm import memcontrol, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_lock, folio_try_get, folio_trylock, folio_unlock
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import Folio, FolioState, IMmap, PageCache, Vma
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import flush_cache_page, flush_tlb_page, ptep_get, ptep_get_and_clear, set_pte_at
from migrate_vma_impl.mm.rmap import rmap_walk_begin, rmap_walk_end
from migrate_vma_spec.events import (
    CacheRead,
    FolioCleaned,
    FolioRead,
    Oops,
    PageCacheAdded,
    PageCacheRemoved,
    PageFilled,
    PageWritten,
)
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import NotifyReason, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

Cache = tuple[int | None, ...]


def slots(files: int, pages: int) -> dict[Key, Any]:
    """The slots of this file, for `files` files with names and as many without, with their first values."""
    slots: dict[Key, Any] = {}
    for file in range(2 * files):
        cache = (None,) * pages if file < files else None
        slots.update({PageCache(file): cache, IMmap(file): (), IMmap(file).rwsem: RwSem.free})
    return slots


def has_name(kernel: Kernel, file: int) -> bool:
    """It is a file of a filesystem that writes it back, and so wants to hear of the first write to each page (page_mkwrite)."""
    return file < kernel.config.files


# ---- looking up ------------------------------------------------------------------------------------------------------


def _look_up(cache: Cache, file: int, index: int) -> Outcome:
    return (cache,), cache[index], CacheRead(file, index, cache[index])


async def filemap_get_folio(kernel: Kernel, file: int, index: int) -> Folio | None:
    """filemap_get_entry: the page with a reference, or None where the cache has none."""
    while True:
        pfn: int | None = await traps.step(_look_up, PageCache(file), args=(file, index))
        if pfn is None:
            return None
        folio = Folio(pfn)
        if not await folio_try_get(folio):
            continue
        if await traps.step(_look_up, PageCache(file), args=(file, index)) == pfn:
            return folio
        await swap.folio_put(kernel, folio)


def _belongs(f: FolioState, file: int, index: int) -> Outcome:
    return (f,), (f.file, f.index) == (file, index), FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_in_cache(folio: Folio, file: int, index: int) -> bool:
    """Whether the locked page is still this page of the file: the file may have lost it while its lock was waited for."""
    return bool(await traps.step(_belongs, folio, args=(file, index)))


async def lock_cached_folio(kernel: Kernel, file: int, index: int) -> Folio | None:
    """The page locked and with a reference, or None where the cache has none."""
    while (folio := await filemap_get_folio(kernel, file, index)) is not None:
        await folio_lock(folio)
        if await folio_in_cache(folio, file, index):
            return folio
        await unlock_and_put(kernel, folio)
    return None


async def unlock_and_put(kernel: Kernel, folio: Folio) -> None:
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)


# ---- adding and removing ---------------------------------------------------------------------------------------------


def _insert(cache: Cache, f: FolioState, file: int, index: int) -> Outcome:
    if cache[index] is not None:
        return (cache, f), False, CacheRead(file, index, cache[index])
    new = evolve(f, file=file, index=index, refcount=f.refcount + 1)
    after = (*cache[:index], f.pfn, *cache[index + 1 :])
    return (after, new), True, PageCacheAdded(f.pfn, file, index, new.refcount)


async def filemap_add_folio(kernel: Kernel, folio: Folio, file: int, index: int) -> bool:
    """Charge and lock a new page and put it into the cache and on the LRU; False, unlocked, where another one is there now."""
    await memcontrol.mem_cgroup_charge(kernel, folio)
    await folio_trylock(folio)
    if not await traps.step(_insert, PageCache(file), folio, args=(file, index)):
        await folio_unlock(folio)
        return False
    await swap.folio_add_lru(kernel, folio)
    return True


def _delete(cache: Cache, f: FolioState, file: int, index: int, frozen: bool) -> Outcome:
    if cache[index] != f.pfn:
        return (cache, f), False, Oops("a page is removed from a page cache that does not have it", f.pfn)
    if frozen and (f.refcount != 2 or f.dirty):
        return (cache, f), False, FolioRead(f.pfn, f.refcount, f.mapcount)
    new = evolve(f, file=None, index=None, refcount=f.refcount - 1)
    after = (*cache[:index], None, *cache[index + 1 :])
    return (after, new), True, PageCacheRemoved(f.pfn, file, index, new.refcount)


async def filemap_remove_folio(folio: Folio, file: int, index: int) -> None:
    """Take a locked page out of the cache, whoever has it besides; the cache's reference goes with it."""
    await traps.step(_delete, PageCache(file), folio, args=(file, index, False))


async def remove_mapping(folio: Folio, file: int, index: int) -> bool:
    """__remove_mapping: take a locked page out if it is clean and nobody but the cache and the caller has it."""
    return bool(await traps.step(_delete, PageCache(file), folio, args=(file, index, True)))


# ---- reading ---------------------------------------------------------------------------------------------------------


def _fill(f: FolioState, file: int, index: int) -> Outcome:
    return (f,), None, PageFilled(f.pfn, file, index)


async def page_cache_ra(kernel: Kernel, file: int, index: int) -> bool:
    """Read one page ahead of its user: a new page, locked until its contents are complete. False where there is no memory."""
    folio = await alloc_page(kernel, "a page for the page cache")
    if folio is None:
        return False
    if await filemap_add_folio(kernel, folio, file, index):
        await traps.step(_fill, folio, args=(file, index))
        await folio_mark_uptodate(folio)
        await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
    return True


async def filemap_fault(kernel: Kernel, file: int, index: int) -> Folio | None:
    """The page of the file, locked and with a reference; None where there is no memory for it."""
    while (folio := await lock_cached_folio(kernel, file, index)) is None:
        if not await page_cache_ra(kernel, file, index):
            return None
    return folio


# ---- writing back ----------------------------------------------------------------------------------------------------


async def folio_mkclean(kernel: Kernel, folio: Folio, file: int, index: int) -> None:
    """Make every entry that maps the locked page clean and read-only, so that the next write to it is noticed (mm/rmap.c)."""
    tree = IMmap(file)
    for vma, addr in await rmap_walk_begin(tree, index):
        await page_vma_mkclean_one(kernel, folio, vma, addr)
    await rmap_walk_end(tree)


async def page_vma_mkclean_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int) -> None:
    mm = vma.mm
    await mmu_notifier.invalidate_range_start(kernel, mm, addr, addr + 1, NotifyReason.PROTECTION_PAGE)
    await spin_lock(mm.ptl)
    pte = await ptep_get(mm, addr)
    if pte.kind is PteKind.PRESENT and pte.pfn == folio.pfn and (pte.write or pte.dirty):
        await flush_cache_page(mm, addr)
        pte, _ = await ptep_get_and_clear(mm, addr, folio)
        await flush_tlb_page(kernel, mm, addr)
        await set_pte_at(mm, addr, evolve(pte, write=False, dirty=False))
    await spin_unlock(mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, mm, addr, addr + 1)


def _is_dirty(f: FolioState) -> Outcome:
    return (f,), f.dirty, FolioRead(f.pfn, f.refcount, f.mapcount)


def _clean(f: FolioState) -> Outcome:
    return (evolve(f, dirty=False),), None, FolioCleaned(f.pfn)


async def folio_clear_dirty(folio: Folio) -> None:
    await traps.step(_clean, folio)


def _write(f: FolioState, file: int | None, index: int) -> Outcome:
    return (f,), None, PageWritten(f.pfn, file, index)


async def write_page(folio: Folio, file: int | None, index: int) -> None:
    """The contents go to the medium: to page `index` of a file, or to a swap slot."""
    await traps.step(_write, folio, args=(file, index))


async def write_back_page(kernel: Kernel, file: int, index: int) -> int:
    """write_cache_pages for one page: 1 if it was dirty and is written, else 0.

    The entries are cleaned first, then the flag, then the page is written: a write that comes in between makes it dirty again.
    """
    folio = await lock_cached_folio(kernel, file, index)
    if folio is None:
        return 0
    written = bool(await traps.step(_is_dirty, folio))
    if written:
        await folio_mkclean(kernel, folio, file, index)
        await folio_clear_dirty(folio)
        await write_page(folio, file, index)
    await unlock_and_put(kernel, folio)
    return int(written)


# ---- shrinking -------------------------------------------------------------------------------------------------------


async def mapping_evict_folio(kernel: Kernel, file: int, index: int) -> int:
    """invalidate_mapping_pages for one page: 1 if it was clean and unused and is gone, else 0."""
    folio = await lock_cached_folio(kernel, file, index)
    if folio is None:
        return 0
    gone = await remove_mapping(folio, file, index)
    await unlock_and_put(kernel, folio)
    return int(gone)
