"""Device pages and their pgmap: initialising, freeing, unbinding."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.containers import DriverSlot
from migrate_vma_impl.mm import memcontrol, memremap, swap
from migrate_vma_impl.mm.folio import folio_unlock
from migrate_vma_impl.mm.mm_types import Folio, Pgmap, PgmapState
from migrate_vma_spec.events import (
    DeviceGone,
    DeviceUnbound,
    DriverStep,
    FolioAllocated,
    FolioFreed,
    FolioPut,
    FreeCallback,
    MemcgUncharged,
    PgmapPut,
    ZoneDeviceDataRead,
)
from tests.impl.stage import DEVICE_PAGE, Stage, Stopped


@pytest.fixture
def stage():
    return Stage(WAITING, pages=0)


def taken(stage: Stage, data: object = None) -> Folio:
    folio = stage.run(stage.driver.state.free.pop)
    stage.run(memremap.zone_device_page_init, stage.kernel, folio, data)
    return folio


def let_go(stage: Stage, folio: Folio) -> None:
    stage.run(folio_unlock, folio)
    stage.run(swap.folio_put, stage.kernel, folio)


def test_a_device_page_comes_locked_with_one_reference_and_one_on_its_pgmap(stage):
    folio = taken(stage, data="mine")
    state = stage.folio(folio.pfn)
    assert (state.refcount, state.locked, state.zone_device_data) == (1, True, "mine")
    assert stage.slots[Pgmap("dev0")].refs == 1
    assert stage.said(FolioAllocated) == [FolioAllocated(100, 1, locked=True)]


def test_freeing_says_all_in_order_and_drops_the_pgmap_last(stage):
    folio = taken(stage)
    stage.run(memcontrol.mem_cgroup_charge, stage.kernel, folio)
    stage.run(folio_unlock, folio)
    stage.run(swap.folio_put, stage.kernel, folio)
    assert [type(event) for event in stage.trace[-6:]] == [
        FolioPut,
        MemcgUncharged,
        FreeCallback,
        DriverStep,
        FolioFreed,
        PgmapPut,
    ]
    assert stage.slots[Pgmap("dev0")].refs == 0


def test_a_freed_page_is_as_good_as_new_but_for_its_data(stage):
    before = dict(stage.slots)
    let_go(stage, taken(stage))
    assert stage.slots == before


def test_a_page_in_use_is_not_initialised_again(stage):
    folio = taken(stage)
    with pytest.raises(Stopped, match="in use"):
        stage.run(memremap.zone_device_page_init, stage.kernel, folio)


def test_a_page_freed_while_locked_holds_up_its_next_user(stage):
    folio = taken(stage)
    stage.run(swap.folio_put, stage.kernel, folio)
    assert not stage.start("next", memremap.zone_device_page_init, stage.kernel, folio).step()


def test_a_page_put_on_the_free_list_twice_stops_the_kernel(stage):
    with pytest.raises(Stopped, match="free list twice"):
        stage.run(stage.driver.folio_free, DEVICE_PAGE)


def test_unbinding_waits_for_the_last_page(stage):
    folio = taken(stage)
    unbind = stage.start("unbind", memremap.memunmap_pages, stage.kernel, "dev0")
    unbind.block()
    let_go(stage, folio)
    unbind.finish()
    assert stage.trace[-1] == DeviceGone("dev0")


def test_a_page_taken_after_unbinding_began_holds_up_nobody(stage):
    stage.start("unbind", memremap.memunmap_pages, stage.kernel, "dev0").until(DeviceUnbound)
    taken(stage)
    assert stage.slots[Pgmap("dev0")] == PgmapState(refs=0, dying=True)
    assert [type(event) for event in stage.trace[-3:]] == [DeviceUnbound, DriverStep, FolioAllocated]


def test_freeing_a_page_taken_after_unbinding_stops_the_kernel(stage):
    stage.start("unbind", memremap.memunmap_pages, stage.kernel, "dev0").until(DeviceUnbound)
    folio = taken(stage)
    with pytest.raises(Stopped, match="pgmap reference that it does not hold"):
        let_go(stage, folio)


def test_zone_device_data_of_a_page_is_what_the_driver_set(stage):
    folio = taken(stage, data=7)
    assert stage.run(memremap.zone_device_data, stage.kernel, folio) == 7
    assert stage.trace[-1] == ZoneDeviceDataRead(100)


def test_zone_device_data_of_a_free_page_stops_the_kernel(stage):
    with pytest.raises(Stopped, match="zone_device_data of a free page"):
        stage.run(memremap.zone_device_data, stage.kernel, DEVICE_PAGE)


def test_a_closed_free_list_takes_no_page_back(stage):
    folio = taken(stage)
    stage.run(stage.driver.state.free.close)
    let_go(stage, folio)
    assert stage.run(stage.driver.state.free.pop) is None
    assert stage.slots[DriverSlot("dev0", "free")] is None
