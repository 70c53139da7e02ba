"""The slots of the swap device: mm/swapfile.c, with the swap table of mm/swap_table.h (7.3).

Rules:
- A slot is free when no page-table entry holds it and the swap cache has no folio for it. The smallest free one is taken.
- The count and the folio of a slot are one entry of the swap table: what is done to both is one step, for the cluster's lock is
  held.
- A folio in the swap cache is locked by whoever changes that. Its slot can be freed only when no page-table entry holds it:
  entries may be copied (fork) and dropped (zap) meanwhile, but the first one is made by whoever holds the page lock.
- The device is fast enough to write and read at once, and not so fast that the swap cache were not worth keeping
  (SWP_SYNCHRONOUS_IO is not set), and never full enough to give that up (vm_swap_full).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Key, Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_trylock, folio_unlock
from migrate_vma_impl.mm.mm_types import Folio, FolioState, SwapSlot, SwapSlotState
from migrate_vma_impl.mm.rmap import folio_mark_dirty
from migrate_vma_impl.mm.swap_state import swap_cache_get_folio
from migrate_vma_spec.events import AllocationFailed, FolioRead, Oops, SwapCacheAdded, SwapCacheRemoved, SwapCounted
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def slots(number: int) -> dict[Key, Any]:
    """The slots of this file with their first values."""
    return {SwapSlot(swap): SwapSlotState() for swap in range(number)}


# ---- a slot for a folio ----------------------------------------------------------------------------------------------


def _allocate(f: FolioState, *table: SwapSlotState) -> Outcome:
    free = next((i for i, entry in enumerate(table) if entry == SwapSlotState()), None)
    if free is None:
        return (f, *table), False, AllocationFailed("a swap slot")
    new = evolve(f, swap=free, refcount=f.refcount + 1)
    after = (*table[:free], SwapSlotState(folio=f.pfn), *table[free + 1 :])
    return (new, *after), True, SwapCacheAdded(f.pfn, free, new.refcount)


async def folio_alloc_swap(kernel: Kernel, folio: Folio) -> bool:
    """A slot for a locked anonymous folio, which is in the swap cache from here on; False where no slot is free."""
    table = (SwapSlot(number) for number in range(kernel.config.swap_slots))
    return bool(await traps.step(_allocate, folio, *table))


def _delete(f: FolioState, entry: SwapSlotState, number: int, unused: bool, frozen: bool) -> Outcome:
    if f.swap != number or entry.folio != f.pfn:
        return (f, entry), False, Oops("a page is removed from a swap cache that does not have it", f.pfn)
    if (unused and entry.count) or (frozen and (f.refcount != 2 or f.dirty)):
        return (f, entry), False, FolioRead(f.pfn, f.refcount, f.mapcount)
    new = evolve(f, swap=None, refcount=f.refcount - 1)
    return (new, evolve(entry, folio=None)), True, SwapCacheRemoved(f.pfn, number, new.refcount)


async def remove_swap_mapping(folio: Folio, number: int) -> bool:
    """__remove_mapping: out of the swap cache if the page is clean and nobody but the cache and the caller has it."""
    return bool(await traps.step(_delete, folio, SwapSlot(number), args=(number, False, True)))


def _which(f: FolioState) -> Outcome:
    return (f,), f.swap, FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_swap_slot(folio: Folio) -> int | None:
    """folio_test_swapcache, and folio->swap: stable under the page lock."""
    return await traps.step(_which, folio)  # type: ignore[no-any-return]


async def folio_free_swap(kernel: Kernel, folio: Folio) -> bool:
    """Take a locked folio out of the swap cache, if no page-table entry holds its slot. It is dirty then: nothing has a copy."""
    number = await folio_swap_slot(folio)
    if number is None or not await traps.step(_delete, folio, SwapSlot(number), args=(number, True, False)):
        return False
    await folio_mark_dirty(folio)
    return True


# ---- page-table entries ----------------------------------------------------------------------------------------------


def _count(entry: SwapSlotState, number: int, by: int) -> Outcome:
    new = evolve(entry, count=entry.count + by)
    if new.count < 0 or (by > 0 and entry == SwapSlotState()):
        return (entry,), None, Oops(f"swap slot {number} is counted by {by}, and nobody holds it")
    return (new,), new, SwapCounted(number, new.count)


async def swap_duplicate(number: int) -> None:
    """One more page-table entry holds the slot (folio_dup_swap, swap_dup_entry_direct)."""
    await traps.step(_count, SwapSlot(number), args=(number, 1))


async def folio_put_swap(number: int) -> None:
    """An entry has given way to a page of the swap cache, whose lock the caller holds: the slot goes with that page."""
    await traps.step(_count, SwapSlot(number), args=(number, -1))


async def swap_put_entries_direct(kernel: Kernel, number: int) -> None:
    """An entry is zapped. With the last one the slot is of no use, so the page that the swap cache has for it gives it back."""
    left: SwapSlotState = await traps.step(_count, SwapSlot(number), args=(number, -1))
    if not left.count and left.folio is not None:
        await try_to_reclaim_swap(kernel, number)


def _mapped(f: FolioState, number: int) -> Outcome:
    return (f,), f.swap == number and not f.mapcount, FolioRead(f.pfn, f.refcount, f.mapcount)


async def try_to_reclaim_swap(kernel: Kernel, number: int) -> None:
    """__try_to_reclaim_swap: the page lock is only tried, for this runs under a page-table lock; reclaim finds what is left."""
    folio = await swap_cache_get_folio(kernel, number)
    if folio is None:
        return
    if await folio_trylock(folio):
        if await traps.step(_mapped, folio, args=(number,)):
            await folio_free_swap(kernel, folio)
        await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
