"""Device pages and their pgmap: mm/memremap.c.

Rules:
- A free device page has no reference (since v6.1), and leaves that state only through zone_device_page_init, which also locks it
  and takes a reference to the pgmap for it, or for each page of a large folio.
- What a page was part of before (its order, its head) stays in it when it is free, and goes when it is initialised again.
- A device page is the driver's again once folio_free has put it where the driver finds free pages. From that step on another CPU
  may initialise it anew, so nothing of the core touches the page behind the callback: only the pgmap's reference goes, last.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Key, Outcome
from migrate_vma_impl.mm.folio import folio_nr_pages
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Pgmap, PgmapState
from migrate_vma_spec.events import (
    DeviceGone,
    DeviceUnbound,
    FolioAllocated,
    FolioFreed,
    FreeCallback,
    Oops,
    PgmapPut,
    ZoneDeviceDataRead,
)
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def slots(device: str) -> dict[Key, Any]:
    """The slots of this file for one device, with their first values."""
    return {Pgmap(device): PgmapState()}


def cleared_frame(f: FolioState) -> FolioState:
    """What is left of a free page when it is taken again: its place, and who waits in its lock's queue (a table beside it)."""
    return FolioState(f.pfn, f.memory, f.owner, queue=f.queue)


def _init(*values: Any) -> Outcome:
    """The frames of the folio, its head first; the pgmap; the parts that vary."""
    *frames, pgmap, data, clear = values
    head: FolioState = frames[0]
    order = len(frames).bit_length() - 1
    if any(f.refcount or f.mapcount for f in frames):
        return (*frames, pgmap), None, Oops("zone_device_page_init of a page that is in use", head.pfn)
    if head.locked:
        return None
    fresh = [clear(f) for f in frames]
    fresh[0] = evolve(fresh[0], refcount=1, locked=True, order=order or fresh[0].order, zone_device_data=data)
    fresh[1:] = (evolve(f, head=head.pfn) for f in fresh[1:])
    # A dying pgmap gives no reference: the kernel warns and goes on. The trace shows the allocation after DeviceUnbound.
    live = pgmap if pgmap.dying else evolve(pgmap, refs=pgmap.refs + len(frames))
    return (*fresh, live), None, FolioAllocated(head.pfn, 1, locked=True, order=order)


async def zone_device_page_init(kernel: Kernel, folio: Folio, data: Hashable = None, order: int = 0) -> None:
    """zone_device_page_init: free device pages become a destination: one reference, locked, zone_device_data set on its head.

    With an order: the 1 << order pages from `folio` on, which is aligned for it, become one large folio.
    """
    if order and (order > kernel.config.pmd_order or folio.pfn % (1 << order)):
        await traps.oops(f"zone_device_page_init of order {order}, for which the page is not aligned", folio.pfn)
        return
    pgmap = Pgmap(kernel.driver_of(folio).name)
    frames = (Folio(folio.pfn + i) for i in range(1 << order))
    await traps.sleep_until(_init, *frames, pgmap, args=(data, kernel.generation.steps.clear_device_frame))


def _put_pgmap(pgmap: PgmapState, device: str, pages: int) -> Outcome:
    if pgmap.refs < pages:
        return (pgmap,), None, Oops(f"a page of {device} drops a pgmap reference that it does not hold")
    return (evolve(pgmap, refs=pgmap.refs - pages),), None, PgmapPut(device, pgmap.refs - pages)


async def free_zone_device_folio(kernel: Kernel, folio: Folio) -> None:
    """free_zone_device_folio / free_zone_device_page: the driver gets the page back, then the pgmap its reference.

    `swap.folio_put`, whose put was the last, has uncharged the folio and cleared its mapping. The exclusivity of the other pages
    of a large folio, which goes here too in the kernel, is gone when they are initialised again: nobody looks before.
    """
    driver = kernel.driver_of(folio)
    pages = await folio_nr_pages(kernel, folio)
    await traps.note(FreeCallback(folio.pfn))
    await driver.folio_free(folio)
    await traps.note(FolioFreed(folio.pfn, pages.bit_length() - 1))
    await traps.step(_put_pgmap, Pgmap(driver.name), args=(driver.name, pages))


def _kill(pgmap: PgmapState, device: str) -> Outcome:
    return (evolve(pgmap, dying=True),), None, DeviceUnbound(device)


def _reap(pgmap: PgmapState, device: str) -> Outcome:
    return None if pgmap.refs else ((pgmap,), None, DeviceGone(device))


async def memunmap_pages(kernel: Kernel, device: str) -> None:
    """memunmap_pages: no page of the device is to be had any more; sleep until none is in use."""
    await traps.step(_kill, Pgmap(device), args=(device,))
    await traps.sleep_until(_reap, Pgmap(device), args=(device,))


def _data(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), None, Oops("zone_device_data of a free page is read", f.pfn)
    return (f,), f.zone_device_data, ZoneDeviceDataRead(f.pfn)


async def zone_device_data(kernel: Kernel, folio: Folio) -> Any:
    """page->zone_device_data, as zone_device_page_init set it. The caller knows that the page has a reference."""
    return await traps.step(_data, folio)
