"""Taking device pages by frame number, without any address: mm/migrate_device.c, migrate_device_range and migrate_device_pfns.

Rules:
- No VMA and no mmap_lock: whoever maps the pages is found by the reverse map. Entries never carry WRITE.
- A page is taken only with a reference that it had, and a lock that was free. A tail page has no reference of its own.
- A large folio has one entry, that of its first page, and needs room for all of its pages: with less room the call stops there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_nr_pages, folio_try_get, folio_trylock, folio_unlock
from migrate_vma_impl.mm.migrate_device import migrate_device_unmap, too_short
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_spec.events import RangeCalled, RangeReturned
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, MIGRATE_PFN_MIGRATE, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def migrate_device_range(kernel: Kernel, src: list[int], start: int, npages: int, call: int = 0) -> int:
    """Take the pages of `npages` frames from `start`, wherever they are mapped, without any address. Always 0."""
    return await _migrate_pfns(kernel, src, list(range(start, start + npages)), npages, call)


async def migrate_device_pfns(kernel: Kernel, src: list[int], npages: int, call: int = 0) -> int:
    """As migrate_device_range, for the frame numbers that `src` holds on entry; a large folio stands there with all its own."""
    return await _migrate_pfns(kernel, src, src[:npages], npages, call)


async def _migrate_pfns(kernel: Kernel, src: list[int], pfns: list[int], npages: int, call: int) -> int:
    await traps.note(RangeCalled(call, tuple(pfns)))
    if not await too_short(npages, src):
        await _lock_pfns(kernel, src, pfns, npages)
        await migrate_device_unmap(kernel, src, npages, None)
    await traps.note(RangeReturned(call, 0, tuple(src)))
    return 0


async def _lock_pfns(kernel: Kernel, src: list[int], pfns: list[int], npages: int) -> None:
    i = 0
    while i < npages:
        src[i], nr = await kernel.generation.steps.lock_pfn(kernel, pfns[i])
        if nr > npages - i:
            if src[i] & MIGRATE_PFN_MIGRATE:
                await folio_unlock(Folio(pfns[i]))
                await swap.folio_put(kernel, Folio(pfns[i]))
            nr = npages - i
            src[i] = 0
        src[i + 1 : i + nr] = [0] * (nr - 1)
        i += nr


async def lock_pfn(kernel: Kernel, pfn: int) -> tuple[int, int]:
    """The entry of a frame number, 0 if the page cannot be had, and how many frames it stands for.

    The folio's size is looked at once its lock is held, and only then: what cannot be had stands for one frame.
    """
    entry = await migrate_device_pfn_lock(kernel, pfn)
    nr = await folio_nr_pages(kernel, Folio(pfn)) if entry else 1
    return entry | (MIGRATE_PFN_COMPOUND if nr > 1 else 0), nr


async def migrate_device_pfn_lock(kernel: Kernel, pfn: int) -> int:
    """Reference (folio_get_nontail_page) and lock the folio that begins with this frame, or 0."""
    if not kernel.has_frame(pfn):
        await traps.oops("migrate_device_range of a frame that does not exist", pfn)
        return 0
    folio = Folio(pfn)
    if not await folio_try_get(folio):
        return 0
    if not await folio_trylock(folio):
        await swap.folio_put(kernel, folio)
        return 0
    return migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE
