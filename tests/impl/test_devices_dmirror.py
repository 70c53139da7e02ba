"""The model of lib/test_hmm.c, against what that driver and its selftest do."""

from __future__ import annotations

import pytest

from migrate_vma_impl.drivers.test_hmm import AdaptedDmirror, Dmirror
from migrate_vma_impl.generations import ENTRY_FIRST, GENERATIONS, WAITING
from migrate_vma_impl.machine.containers import DriverSlot, MirrorEntry
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Pgmap
from migrate_vma_spec.events import (
    AllocationFailed,
    CpuAccessed,
    DeviceAccessed,
    DeviceGone,
    DeviceMapped,
    DeviceUnmapped,
    EntryRefilled,
    FaultBegan,
    FinalizeCalled,
    IntervalRetry,
    PageCleared,
    PageCopied,
    PagesReturned,
    RangeFaultBegan,
)
from migrate_vma_spec.vocabulary import Errno, PteKind
from tests.impl.stage import READ_ONLY, A, B, Stage


def opened(generation=WAITING, driver=Dmirror, **config) -> Stage:
    stage = Stage(generation, driver, **config)
    stage.run(stage.driver.open, A)
    return stage


@pytest.fixture
def stage():
    return opened()


@pytest.fixture
def on_device(stage):
    stage.touch(0, write=True)
    assert stage.to_device() == 1
    return stage


each_with_the_plain_driver = pytest.mark.parametrize(
    "generation", [each for each in GENERATIONS.values() if each is not ENTRY_FIRST], ids=lambda each: each.name
)


def mirror(stage: Stage) -> tuple[MirrorEntry, ...]:
    return stage.slots[DriverSlot("dev0", "mirror")]


def test_a_written_page_is_copied_and_a_hole_cleared(stage):
    stage.touch(0, write=True)
    assert stage.to_device(0, 2) == 2
    assert stage.said(PageCopied) == [PageCopied(1, 100)]
    assert stage.said(PageCleared)[-1] == PageCleared(101)
    assert [stage.pte(addr).kind for addr in (0, 1)] == [PteKind.DEVICE_PRIVATE] * 2


def test_the_mirror_maps_what_migrated_between_pages_and_finalize(on_device):
    told = [type(event) for event in on_device.trace if isinstance(event, (PagesReturned, DeviceMapped, FinalizeCalled))]
    assert told == [PagesReturned, DeviceMapped, FinalizeCalled]
    assert mirror(on_device) == (MirrorEntry(0, 0, 100, write=True),)


def test_a_filled_hole_is_mirrored_read_only(stage):
    stage.to_device()
    assert mirror(stage) == (MirrorEntry(0, 0, 100, write=False),)


def test_what_went_to_the_device_is_read_back_through_the_mirror(on_device):
    assert on_device.said(DeviceAccessed) == [DeviceAccessed("dev0", 0, 0, 100, write=False)]


def test_a_page_that_stayed_behind_is_no_entry(stage):
    stage.run(stage.driver.to_device, A, 0, 2)
    stage.run(stage.driver.state.free.close)
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3)
    assert stage.to_device(2, 3) == -Errno.ENOENT


@pytest.mark.parametrize(("start", "end"), [(1, 3), (3, 4)])
def test_a_range_with_a_gap_is_invalid(stage, start, end):
    assert stage.to_device(start, end) == -Errno.EINVAL


def test_a_range_over_two_mappings_is_two_windows(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 2, 4)
    assert stage.to_device(0, 4) == 4


def test_an_address_space_that_is_gone_is_invalid(stage):
    assert stage.run(stage.driver.to_device, B, 0, 1) == -Errno.EINVAL


@each_with_the_plain_driver
def test_a_cpu_fault_brings_the_page_back(generation):
    stage = opened(generation)
    stage.touch(0, write=True)
    stage.to_device()
    assert stage.touch(0, write=True) == 0
    assert stage.said(PageCopied)[-1] == PageCopied(100, 1)
    assert stage.said(DeviceUnmapped) == [DeviceUnmapped("dev0", 0, 0, 100)]
    assert stage.slots[Pgmap("dev0")].refs == 0


def test_the_adapted_driver_brings_it_back_where_the_fault_installs_the_entry():
    stage = opened(ENTRY_FIRST, AdaptedDmirror)
    stage.touch(0, write=True)
    stage.to_device()
    assert stage.touch(0, write=True) == 0
    assert len(stage.said(EntryRefilled)) == 1
    assert stage.slots[Pgmap("dev0")].refs == 0


@each_with_the_plain_driver
def test_elsewhere_the_adapted_driver_does_as_the_plain_one(generation):
    traces = []
    for driver in (Dmirror, AdaptedDmirror):
        stage = opened(generation, driver)
        stage.touch(0, write=True)
        stage.to_device()
        stage.touch(0, write=False)
        traces.append(stage.trace)
    assert traces[0] == traces[1]


def test_a_fault_without_memory_is_tried_again(on_device):
    on_device.answers["alloc_page in migrate_to_ram"] = [1, 1]
    before = len(on_device.trace)
    assert on_device.touch(0, write=False) == 0
    assert len(on_device.said(FinalizeCalled, before)) == 3


def test_a_failed_round_leaves_the_state_as_it_was(on_device):
    """So a search sees the cycle, and calls it endless retry."""
    on_device.answers["alloc_page in migrate_to_ram"] = [1, 1, 1]
    faulter = on_device.start("faulter", syscalls.touch, on_device.kernel, A, 0, False)
    faulter.until(FinalizeCalled)
    first = dict(on_device.slots)
    faulter.until(FinalizeCalled)
    assert on_device.slots == first


def test_to_system_brings_the_range_back(on_device):
    assert on_device.run(on_device.driver.to_system, A, 0, 2) == 1
    assert on_device.pte(0).kind is PteKind.PRESENT
    assert mirror(on_device) == ()


def test_to_system_counts_what_memory_was_there_for(on_device):
    on_device.answers["alloc_page in migrate_to_system"] = [1]
    assert on_device.run(on_device.driver.to_system, A, 0, 2) == 0
    assert on_device.pte(0).kind is PteKind.DEVICE_PRIVATE


def test_eviction_empties_the_device_and_its_notifier_the_mirror(on_device):
    assert on_device.run(on_device.driver.evict) == 1
    assert on_device.pte(0).kind is PteKind.PRESENT
    assert on_device.said(DeviceUnmapped) == [DeviceUnmapped("dev0", 0, 0, 100)]


def test_eviction_waits_for_memory():
    stage = opened(system_frames=1)
    stage.touch(0, write=True)
    stage.to_device()
    stage.touch(1, write=True)
    evictor = stage.start("evictor", stage.driver.evict)
    evictor.block()
    stage.run(syscalls.munmap, stage.kernel, A, 1, 2)
    stage.run(stage.kernel.lru_add_drain)
    assert evictor.finish() == 1
    assert not stage.said(AllocationFailed)


def test_release_evicts_and_unbinds(on_device):
    assert on_device.run(on_device.driver.release) == 1
    assert DeviceGone("dev0") in on_device.trace
    assert on_device.to_device() == -Errno.ENOENT


def test_the_device_writes_to_a_page_that_is_faulted_in(stage):
    assert stage.run(stage.driver.device_write, A, 1) == 0
    assert mirror(stage) == (MirrorEntry(0, 1, 1, write=True),)
    assert stage.said(DeviceAccessed) == [DeviceAccessed("dev0", 0, 1, 1, write=True)]


def test_the_device_reads_the_zero_page(stage):
    assert stage.run(stage.driver.device_read, A, 1) == 0
    assert stage.said(DeviceAccessed) == [DeviceAccessed("dev0", 0, 1, None, write=False)]


def test_the_device_may_not_write_what_is_read_only(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3, READ_ONLY)
    assert stage.run(stage.driver.device_write, A, 2) == -Errno.EPERM


@pytest.mark.parametrize(("mm", "addr"), [(A, 3), (B, 0)])
def test_the_device_cannot_reach_what_is_not_mapped(stage, mm, addr):
    assert stage.run(stage.driver.device_read, mm, addr) == -Errno.EFAULT


def test_a_zap_between_the_walk_and_the_mapping_is_noticed(stage):
    reader = stage.start("reader", stage.driver.device_write, A, 0)
    while stage.pte(0).kind is PteKind.NONE or stage.slots[A.mmap_lock]:
        reader.step()
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert reader.finish() == 0
    assert [event.stale for event in stage.said(IntervalRetry)].count(True) == 1
    assert stage.said(DeviceAccessed)[-1].pfn == stage.pte(0).pfn


def test_unmapping_takes_the_page_out_of_the_mirror(on_device):
    on_device.run(syscalls.munmap, on_device.kernel, A, 0, 1)
    assert mirror(on_device) == ()
    assert on_device.slots[Pgmap("dev0")].refs == 0


def test_fork_takes_the_write_permission_from_the_device(on_device):
    on_device.run(on_device.driver.device_write, A, 0)
    on_device.run(syscalls.fork, on_device.kernel, A, B)
    assert on_device.run(on_device.driver.device_write, A, 0) == -Errno.EFAULT
    assert on_device.run(on_device.driver.device_read, A, 0) == 0


def test_a_childs_fault_takes_the_page_out_of_the_parents_mirror(on_device):
    on_device.run(syscalls.fork, on_device.kernel, A, B)
    on_device.run(on_device.driver.device_read, A, 0)
    assert on_device.touch(0, write=False, mm=B) == 0
    assert mirror(on_device) == ()


def test_the_selftests_round_trips_end_with_the_page_where_the_cpu_left_it(on_device):
    for _ in range(2):
        assert on_device.touch(0, write=True) == 0
        assert on_device.to_device(0, 2) == 2
        assert on_device.run(on_device.driver.device_write, A, 0) == 0
    assert on_device.touch(0, write=False) == 0
    assert on_device.said(CpuAccessed)[-1].pfn == on_device.pte(0).pfn


def test_the_device_reads_a_range_with_one_fault_for_what_is_missing(on_device):
    before = len(on_device.trace)
    assert on_device.run(on_device.driver.device_read, A, 0, 2) == 0
    assert [event.addr for event in on_device.said(DeviceAccessed, before)] == [0, 1]
    assert [(event.start, event.end) for event in on_device.said(RangeFaultBegan, before)] == [(1, 2)]


def test_a_snapshot_faults_nothing(on_device):
    before = len(on_device.trace)
    assert on_device.run(on_device.driver.snapshot, A, 0, 2) == 2
    assert on_device.said(FaultBegan, before) == []


def test_an_address_space_that_is_gone_has_no_snapshot(stage):
    assert stage.run(stage.driver.snapshot, B, 0, 1) == -Errno.EINVAL


def test_what_the_device_has_for_itself_it_loses_to_a_cpu(stage):
    stage.touch(0, write=True)
    assert stage.run(stage.driver.exclusive, A, 0, 1) == 1
    assert mirror(stage) == (MirrorEntry(0, 0, 1, write=False, atomic=True),)
    assert stage.run(stage.driver.check_exclusive, A, 0) == -Errno.EPERM
    assert stage.touch(0, write=True) == 0
    assert stage.run(stage.driver.check_exclusive, A, 0) == 0


def test_what_cannot_be_had_exclusively_stops_there(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3, READ_ONLY)
    assert stage.run(stage.driver.exclusive, A, 1, 3) == -Errno.EFAULT
    assert mirror(stage) == (MirrorEntry(0, 1, 1, write=False, atomic=True),)
