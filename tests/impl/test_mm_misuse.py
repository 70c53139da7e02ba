"""Drivers that misuse the migration calls: the kernel's own checks stop the machine."""

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm.mm_types import MigrateVma
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, Select, migrate_pfn
from tests.impl.stage import DEVICE_PAGE, VMA, Stage, Stopped


def taken(stage):
    args = MigrateVma(VMA, 0, 1, [0], [0], "dev0", Select.SYSTEM)
    stage.touch(0, write=True)
    stage.run(stage.kernel.migrate_vma_setup, args)
    return args


async def fill_for_device(driver, args):
    await driver.fill(args.src, args.dst, device=True)


def test_finalize_twice_stops_the_machine():
    stage = Stage(WAITING)
    args = taken(stage)
    stage.run(stage.kernel.migrate_vma_finalize, args)
    with pytest.raises(Stopped):
        stage.run(stage.kernel.migrate_vma_finalize, args)


@pytest.mark.parametrize("call", ["migrate_vma_pages", "migrate_vma_finalize"])
def test_a_destination_that_is_no_frame_stops_the_machine(call):
    stage = Stage(WAITING)
    args = taken(stage)
    args.dst[0] = migrate_pfn(77)
    with pytest.raises(Stopped, match="names no page frame"):
        stage.run(getattr(stage.kernel, call), args)


def test_an_array_cut_short_after_setup_stops_the_machine():
    stage = Stage(WAITING)
    args = taken(stage)
    args.dst = []
    with pytest.raises(Stopped, match="0 migration entries"):
        stage.run(stage.kernel.migrate_vma_pages, args)


def test_an_unlocked_destination_stops_the_machine_in_finalize():
    stage = Stage(WAITING)
    args = taken(stage)
    page = stage.run(stage.kernel.alloc_page, "system page")
    args.dst[0] = migrate_pfn(page.pfn)
    stage.run(stage.kernel.migrate_vma_pages, args)
    with pytest.raises(Stopped, match="not locked"):
        stage.run(stage.kernel.migrate_vma_finalize, args)


def test_finalize_with_a_destination_but_without_pages_leaves_an_entry_that_stops_the_next_access():
    stage = Stage(WAITING)
    args = taken(stage)
    stage.run(fill_for_device, stage.driver, args)
    stage.run(stage.kernel.migrate_vma_finalize, args)
    with pytest.raises(Stopped, match="not locked"):
        stage.touch(0, write=True)


def test_a_hole_in_a_migration_without_addresses_stops_the_machine():
    stage = Stage(WAITING)
    stage.run(stage.kernel.zone_device_page_init, DEVICE_PAGE)
    with pytest.raises(Stopped, match="without a VMA"):
        stage.run(stage.kernel.migrate_device_pages, [MIGRATE_PFN_MIGRATE], [migrate_pfn(100)], 1)


@pytest.mark.parametrize("pfn", [0, 99, 103, 200])
def test_a_frame_number_that_does_not_exist_stops_the_machine(pfn):
    stage = Stage(WAITING)
    with pytest.raises(Stopped, match="does not exist"):
        stage.run(stage.kernel.migrate_device_range, [0], pfn, 1)
