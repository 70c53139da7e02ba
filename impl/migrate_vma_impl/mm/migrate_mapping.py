"""Pages that a cache holds, when they migrate: the part of mm/migrate.c:__folio_migrate_mapping with a mapping (7.3).

Rules:
- The page cache, or the swap cache, has a reference to the page, which the expected count includes. It goes to the new page with
  the place in the cache. Nobody finds either page meanwhile: the count is frozen and the cache locked, one step here.
- Where a Config has neither files nor swap slots, no page has a mapping, and nobody has to look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState, PageCache, SwapSlot, SwapSlotState
from migrate_vma_spec.events import (
    FolioMoved,
    FolioRead,
    PageCacheAdded,
    PageCacheRemoved,
    SwapCacheAdded,
    SwapCacheRemoved,
)
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

Mapping = PageCache | SwapSlot


def _mapping(f: FolioState) -> Outcome:
    place = PageCache(f.file) if f.file is not None else None if f.swap is None else SwapSlot(f.swap)
    return (f,), place, FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_mapping(kernel: Kernel, folio: Folio) -> Mapping | None:
    """folio_mapping: the cache that holds the page. The page lock keeps it stable."""
    if not kernel.config.files and not kernel.config.swap_slots:
        return None
    return await traps.step(_mapping, folio)  # type: ignore[no-any-return]


async def mapping_by_now(kernel: Kernel, folio: Folio, before: Mapping) -> Mapping | None:
    """The mapping after the page left the swap cache, which must not be taken for the one of `before`."""
    return await folio_mapping(kernel, folio)


def _replaced(cache: Any, src: FolioState, dst: FolioState) -> Any:
    """The cache's slot, with `dst` in the place of `src`."""
    if isinstance(cache, SwapSlotState):
        return evolve(cache, folio=dst.pfn) if cache.folio == src.pfn else cache
    return tuple(dst.pfn if pfn == src.pfn else pfn for pfn in cache)


def _move(src: FolioState, dst: FolioState, cache: Any, expect: Callable[[FolioState, int], int], extra: int) -> Outcome:
    expected = expect(src, extra)
    moved = src.refcount == expected
    event = FolioMoved(src.pfn, dst.pfn, src.refcount, expected, moved)
    if not moved:
        return (src, dst, cache), None, event
    new = evolve(dst, refcount=dst.refcount + 1, anon_vma=src.anon_vma, index=src.index, file=src.file, swap=src.swap)
    old = evolve(src, refcount=src.refcount - 1, file=None, swap=None)
    return (old, new, _replaced(cache, src, dst)), (src.index, old.refcount, new.refcount), event


async def move_in_cache(dst: Folio, src: Folio, mapping: Mapping, expect: Callable[[FolioState, int], int], extra: int) -> bool:
    """Give `dst` the place of `src`, in the cache as well, if nobody holds `src` who is not counted."""
    moved: tuple[int | None, int, int] | None = await traps.step(_move, src, dst, mapping, args=(expect, extra))
    if moved is None:
        return False
    index, old, new = moved
    if isinstance(mapping, SwapSlot):
        await traps.note(SwapCacheRemoved(src.pfn, mapping.number, old))
        await traps.note(SwapCacheAdded(dst.pfn, mapping.number, new))
    elif index is not None:
        await traps.note(PageCacheRemoved(src.pfn, mapping.file, index, old))
        await traps.note(PageCacheAdded(dst.pfn, mapping.file, index, new))
    return True
