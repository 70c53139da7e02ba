"""The page allocator: mm/page_alloc.c, for system frames of order 0.

The smallest free frame is taken, so that states which differ only in the history of allocations meet. One step touches the free
list and every system frame, because which frame it takes is known only when it is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState, FreePages
from migrate_vma_spec.events import AllocationFailed, FolioAllocated, FolioFreed, Oops
from migrate_vma_spec.vocabulary import Memory

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def _take(free: tuple[int, ...], *rest: Any) -> Outcome:
    *frames, what = rest
    if not free:
        return (free, *frames), None, AllocationFailed(what)
    taken = free[0]
    after = tuple(evolve(f, refcount=1) if f.pfn == taken else f for f in frames)
    return (free[1:], *after), taken, FolioAllocated(taken, 1, locked=False)


async def alloc_page(kernel: Kernel, what: str) -> Folio | None:
    """A system page with one reference, or None. That it fails is a data choice named `what`, asked first."""
    if await traps.choose(what):
        return None
    frames = (Folio(pfn) for pfn in kernel.system_pfns)
    pfn: int | None = await traps.step(_take, FreePages(), *frames, args=(what,))
    return None if pfn is None else Folio(pfn)


def _take_or_wait(free: tuple[int, ...], *rest: Any) -> Outcome:
    return _take(free, *rest) if free else None


async def alloc_page_nofail(kernel: Kernel) -> Folio:
    """A system page, waited for as __GFP_NOFAIL does; that it fails is no choice."""
    frames = (Folio(pfn) for pfn in kernel.system_pfns)
    return Folio(await traps.sleep_until(_take_or_wait, FreePages(), *frames, args=("__GFP_NOFAIL",)))


def bad_page(f: FolioState) -> str | None:
    """What free_pages_prepare finds wrong with a page that is being freed."""
    wrong = {"referenced": f.refcount != 0, "mapped": f.mapcount != 0, "locked": f.locked, "charged": f.charged}
    found = [word for word, is_so in wrong.items() if is_so]
    return f"bad page state: freed while {' and '.join(found)}" if found else None


def _free(free: tuple[int, ...], f: FolioState) -> Outcome:
    trouble = bad_page(f)
    if trouble is not None:
        return (free, f), None, Oops(trouble, f.pfn)
    # The wait queues are a hash table beside the pages: who waits there outlives the page.
    clean = FolioState(f.pfn, Memory.SYSTEM, queue=f.queue)
    return (tuple(sorted((*free, f.pfn))), clean), None, FolioFreed(f.pfn)


async def free_pages(kernel: Kernel, folio: Folio) -> None:
    """Give a system page without references back to the allocator."""
    await traps.step(_free, FreePages(), folio)
