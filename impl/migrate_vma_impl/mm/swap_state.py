"""The swap cache: finding a page by its slot, and reading it in (mm/swap_state.c, 7.3).

Rules:
- A page is found without a lock, as in the page cache: read the table, take a reference, read the table again.
- Whoever reads a page in puts it into the swap cache first, locked, so that all others who want it wait for its lock.
- One page is read at a time: there is no readahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import memcontrol, swap
from migrate_vma_impl.mm.folio import folio_try_get, folio_trylock, folio_unlock
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import Folio, FolioState, SwapSlot, SwapSlotState
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_spec.events import CacheRead, PageFilled, SwapCacheAdded
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def _look_up(entry: SwapSlotState, number: int) -> Outcome:
    return (entry,), entry, CacheRead(None, number, entry.folio)


async def _read_table(number: int) -> SwapSlotState:
    return await traps.step(_look_up, SwapSlot(number), args=(number,))  # type: ignore[no-any-return]


async def swap_cache_get_folio(kernel: Kernel, number: int) -> Folio | None:
    """The page that the swap cache has for a slot, with a reference, or None."""
    while True:
        pfn = (await _read_table(number)).folio
        if pfn is None:
            return None
        folio = Folio(pfn)
        if not await folio_try_get(folio):
            continue
        if (await _read_table(number)).folio == pfn:
            return folio
        await swap.folio_put(kernel, folio)


def _insert(entry: SwapSlotState, f: FolioState, number: int) -> Outcome:
    if entry.folio is not None or not entry.count:
        return (entry, f), False, CacheRead(None, number, entry.folio)
    new = evolve(f, swap=number, refcount=f.refcount + 1)
    return (evolve(entry, folio=f.pfn), new), True, SwapCacheAdded(f.pfn, number, new.refcount)


def _fill(f: FolioState, number: int) -> Outcome:
    return (f,), None, PageFilled(f.pfn, None, number)


async def _read_in(kernel: Kernel, folio: Folio, number: int) -> bool:
    """Put a new page into the swap cache and read it; False, unlocked, where the slot has a page by now, or no user."""
    await folio_trylock(folio)
    if not await traps.step(_insert, SwapSlot(number), folio, args=(number,)):
        await folio_unlock(folio)
        return False
    await memcontrol.mem_cgroup_charge(kernel, folio)
    await swap.folio_add_lru(kernel, folio)
    await traps.step(_fill, folio, args=(number,))
    await folio_mark_uptodate(folio)
    await folio_unlock(folio)
    return True


async def swapin(kernel: Kernel, number: int) -> Folio | None:
    """swapin_sync: the page of a slot with a reference, read in where the swap cache has none.

    None where there is no memory for it, or no page-table entry holds the slot any more.
    """
    while (folio := await swap_cache_get_folio(kernel, number)) is None:
        if not (await _read_table(number)).count:
            return None
        new = await alloc_page(kernel, "a page to swap in")
        if new is None:
            return None
        if await _read_in(kernel, new, number):
            return new
        await swap.folio_put(kernel, new)
    return folio
