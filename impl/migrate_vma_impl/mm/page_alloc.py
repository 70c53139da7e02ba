"""The page allocator: mm/page_alloc.c, for system frames.

The smallest free frames are taken, naturally aligned for their order, so that states which differ only in the history of
allocations meet. One step touches the free list and every system frame, because which ones it takes is known only when it does.
A free list that has no room for the order asked is fragmented or empty, and the allocation fails: nothing is compacted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState, FreePages
from migrate_vma_spec.events import AllocationFailed, FolioAllocated, FolioFreed, Oops
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Memory

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def first_fit(free: tuple[int, ...], order: int) -> int | None:
    """The smallest frame, aligned for the order, that begins 1 << order free ones."""
    if not order:
        return free[0] if free else None
    size = 1 << order
    return next((pfn for pfn in free if not pfn % size and all(pfn + i in free for i in range(size))), None)


def taken_as(f: FolioState, head: int, order: int) -> FolioState:
    """A free frame as part of a new folio: its head has one reference, a tail knows its head (prep_compound_page)."""
    return evolve(f, refcount=1, order=order) if f.pfn == head else evolve(f, head=head)


def _take(free: tuple[int, ...], *rest: Any) -> Outcome:
    *frames, what, order = rest
    head = first_fit(free, order)
    if head is None:
        return (free, *frames), None, AllocationFailed(what)
    taken = range(head, head + (1 << order))
    after = tuple(taken_as(f, head, order) if f.pfn in taken else f for f in frames)
    left = tuple(pfn for pfn in free if pfn not in taken)
    return (left, *after), head, FolioAllocated(head, 1, locked=False, order=order)


async def folio_alloc(kernel: Kernel, what: str, order: int) -> Folio | None:
    """A system folio of 1 << `order` pages with one reference, or None. That it fails is a data choice `what`, asked first."""
    if await traps.choose(what):
        return None
    frames = (Folio(pfn) for pfn in kernel.system_pfns)
    pfn: int | None = await traps.step(_take, FreePages(), *frames, args=(what, order))
    return None if pfn is None else Folio(pfn)


async def alloc_page(kernel: Kernel, what: str) -> Folio | None:
    """A system page with one reference, or None. That it fails is a data choice named `what`, asked first."""
    return await folio_alloc(kernel, what, 0)


def _take_or_wait(free: tuple[int, ...], *rest: Any) -> Outcome:
    return _take(free, *rest) if free else None


async def alloc_page_nofail(kernel: Kernel) -> Folio:
    """A system page, waited for as __GFP_NOFAIL does; that it fails is no choice."""
    frames = (Folio(pfn) for pfn in kernel.system_pfns)
    return Folio(await traps.sleep_until(_take_or_wait, FreePages(), *frames, args=("__GFP_NOFAIL", 0)))


def bad_page(f: FolioState) -> str | None:
    """What free_pages_prepare finds wrong with a page that is being freed."""
    cached = f.file is not None or f.swap is not None
    wrong = {"referenced": f.refcount, "mapped": f.mapcount, "locked": f.locked, "charged": f.charged, "in a cache": cached}
    found = [word for word, is_so in wrong.items() if is_so]
    return f"bad page state: freed while {' and '.join(found)}" if found else None


def folio_frames(kernel: Kernel, folio: Folio) -> tuple[Folio, ...]:
    """Every frame that a folio with this head may have, whatever its order: what a step on all of its pages has to name."""
    size = 1 << kernel.config.pmd_order
    if folio.pfn % size:
        return (folio,)
    return tuple(Folio(pfn) for pfn in range(folio.pfn, folio.pfn + size) if kernel.has_frame(pfn))


def _free(free: tuple[int, ...], f: FolioState, *frames: FolioState) -> Outcome:
    trouble = bad_page(f)
    if trouble is not None:
        return (free, f, *frames), None, Oops(trouble, f.pfn)
    freed = range(f.pfn, f.pfn + (1 << f.order))
    # The wait queues are a hash table beside the pages: who waits there outlives the page.
    clean = tuple(FolioState(each.pfn, Memory.SYSTEM, queue=each.queue) if each.pfn in freed else each for each in (f, *frames))
    return (tuple(sorted((*free, *freed))), *clean), None, FolioFreed(f.pfn, f.order)


async def free_pages(kernel: Kernel, folio: Folio) -> None:
    """Give a system folio without references back to the allocator."""
    await traps.step(_free, FreePages(), *folio_frames(kernel, folio))
