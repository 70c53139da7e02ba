"""Device pages and their pgmap: mm/memremap.c.

Rules:
- A free device page has no reference (since v6.1), and leaves that state only through zone_device_page_init, which also locks it
  and takes a reference to the pgmap for it.
- A device page is the driver's again once folio_free has put it where the driver finds free pages. From that step on another CPU
  may initialise it anew, so nothing of the core touches the page behind the callback: only the pgmap's reference goes, last.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Key, Outcome
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

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def slots(device: str) -> dict[Key, Any]:
    """The slots of this file for one device, with their first values."""
    return {Pgmap(device): PgmapState()}


def _init(f: FolioState, pgmap: PgmapState, data: Hashable) -> Outcome:
    if f.refcount or f.mapcount:
        return (f, pgmap), None, Oops("zone_device_page_init of a page that is in use", f.pfn)
    if f.locked:
        return None
    fresh = FolioState(f.pfn, f.memory, f.owner, refcount=1, locked=True, queue=f.queue, zone_device_data=data)
    # A dying pgmap gives no reference: the kernel warns and goes on. The trace shows the allocation after DeviceUnbound.
    live = pgmap if pgmap.dying else evolve(pgmap, refs=pgmap.refs + 1)
    return (fresh, live), None, FolioAllocated(f.pfn, 1, locked=True)


async def zone_device_page_init(kernel: Kernel, folio: Folio, data: Hashable = None) -> None:
    """zone_device_page_init: a free device page becomes a destination: one reference, locked, zone_device_data set."""
    pgmap = Pgmap(kernel.driver_of(folio).name)
    await traps.sleep_until(_init, folio, pgmap, args=(data,))


def _put_pgmap(pgmap: PgmapState, device: str) -> Outcome:
    if pgmap.refs <= 0:
        return (pgmap,), None, Oops(f"a page of {device} drops a pgmap reference that it does not hold")
    return (evolve(pgmap, refs=pgmap.refs - 1),), None, PgmapPut(device, pgmap.refs - 1)


async def free_zone_device_folio(kernel: Kernel, folio: Folio) -> None:
    """free_zone_device_folio / free_zone_device_page: the driver gets the page back, then the pgmap its reference.

    `swap.folio_put`, whose put was the last, has uncharged the folio and cleared its mapping.
    """
    driver = kernel.driver_of(folio)
    await traps.note(FreeCallback(folio.pfn))
    await driver.folio_free(folio)
    await traps.note(FolioFreed(folio.pfn))
    await traps.step(_put_pgmap, Pgmap(driver.name), args=(driver.name,))


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
