"""What migrate_vma does with pages of files, with shared memory, and with pages in the swap cache."""

import pytest

from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.mm_types import PageCache, SwapSlot, SwapSlotState
from migrate_vma_spec.events import (
    DeviceAccessed,
    FolioMoved,
    MemcgCharged,
    MemcgUncharged,
    PageCacheAdded,
    PageCacheRemoved,
    PagesReturned,
    SetupReturned,
    SwapCacheAdded,
    SwapCacheRemoved,
)
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    PTE_NONE,
    Errno,
    Lru,
    Pte,
    PteKind,
    migrate_pfn,
)
from tests.impl.file_races import SWAP_STEPS, settle
from tests.impl.stage import A, B, FakeDriver, Stage, Stopped
from tests.impl.test_mm_generations import recording

TAKEN = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE


def mapped(driver: type[FakeDriver] | type[Dmirror] = FakeDriver, generation=WAITING, *, shared: bool = False) -> Stage:
    """Pages 1 and 2 map a file's pages 0 and 1."""
    stage = Stage(generation, driver, pages=0, files=1, file_pages=2, swap_slots=1, system_frames=6)
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 1, 3, 0, 0, syscalls.READ_WRITE, shared)
    return stage


def opened(stage: Stage) -> Stage:
    stage.run(stage.driver.open, A)
    return stage


def setup_of(stage: Stage) -> SetupReturned:
    return stage.said(SetupReturned)[-1]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_holes_of_a_file_are_not_collected():
    stage = mapped()
    assert stage.to_device(1, 3) == 0
    assert (setup_of(stage).src, setup_of(stage).cpages, setup_of(stage).npages) == ((0, 0), 0, 2)


@pytest.mark.parametrize("shared", [False, True])
def test_a_page_of_the_page_cache_is_collected_and_does_not_migrate(shared):
    stage = mapped(shared=shared)
    stage.touch(1, write=shared)
    settle(stage)
    before = stage.folio(1), stage.pte(1)
    assert stage.to_device(1, 2) == 0
    assert setup_of(stage).src == (migrate_pfn(1) | (TAKEN if shared else MIGRATE_PFN_MIGRATE),)
    assert stage.said(PagesReturned)[-1].src == (setup_of(stage).src[0] & ~MIGRATE_PFN_MIGRATE,)
    settle(stage)
    assert (stage.folio(1), stage.pte(1)) == before
    assert stage.slots[PageCache(0)] == (1, None)
    assert not stage.said(FolioMoved)


def test_a_page_of_the_page_cache_that_somebody_holds_is_restored_by_setup():
    stage = mapped()
    stage.touch(1, write=False)
    settle(stage)
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0)
    stage.touch(0, write=False)
    stage.run(stage.kernel.folio_get, stage.kernel.migrate_pfn_to_folio(migrate_pfn(1)))
    assert stage.to_device(1, 2) == 0
    assert setup_of(stage).src == (0,)
    assert (stage.pte(0).pfn, stage.pte(1).pfn, stage.folio(1).mapcount) == (1, 1, 2)


def test_a_collected_page_of_a_file_is_unmapped_wherever_it_is_mapped():
    stage = mapped()
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0)
    stage.touch(0, write=False)
    stage.touch(1, write=False)
    settle(stage)
    device = stage.start("device", stage.driver.to_device, A, 1, 2)
    device.until(SetupReturned)
    assert stage.pte(0) == stage.pte(1) == Pte(PteKind.MIGRATION, 1, young=True)
    device.finish()
    assert stage.pte(0) == stage.pte(1) == Pte(PteKind.PRESENT, 1, young=True)


def test_a_hole_that_is_punched_during_a_migration_leaves_no_entry_and_no_page():
    stage = mapped(shared=True)
    stage.touch(1, write=False)
    settle(stage)
    device = stage.start("device", stage.driver.to_device, A, 1, 2)
    device.until(SetupReturned)
    punch = stage.start("punch", syscalls_files.punch_hole, stage.kernel, 0, 0, cpu=1)
    punch.block()
    assert stage.pte(1) == PTE_NONE
    device.finish()
    punch.finish()
    settle(stage)
    assert (stage.pte(1), stage.slots[PageCache(0)], stage.folio(1).refcount) == (PTE_NONE, (None, None), 0)


def test_the_written_pages_of_a_private_mapping_migrate_and_come_back():
    stage = opened(mapped(Dmirror))
    stage.touch(1, write=True)
    stage.touch(2, write=True)
    assert stage.to_device(1, 3) == 2
    assert [stage.pte(addr).kind for addr in (1, 2)] == [PteKind.DEVICE_PRIVATE] * 2
    assert all(stage.folio(pfn).anon_vma == A.number and stage.folio(pfn).charged for pfn in (100, 101))
    stage.touch(1, write=False)
    assert stage.pte(1).kind is PteKind.PRESENT
    assert stage.folio(stage.pte(1).pfn).file is None
    assert stage.slots[PageCache(0)] == (stage.said(PageCacheAdded)[0].pfn, stage.said(PageCacheAdded)[1].pfn)


def test_a_written_page_on_the_device_survives_the_end_of_the_file_mapping():
    stage = opened(mapped(Dmirror))
    stage.touch(1, write=True)
    stage.to_device(1, 2)
    stage.run(syscalls.munmap, stage.kernel, A, 1, 3)
    settle(stage)
    assert stage.folio(100).refcount == 0
    assert len(stage.said(MemcgCharged)) == 2
    assert len(stage.said(MemcgUncharged)) == 1


def test_shared_memory_does_not_migrate_and_the_driver_says_so():
    stage = opened(Stage(WAITING, Dmirror, pages=0, files=1, file_pages=2, system_frames=6))
    stage.run(syscalls_files.mmap_shared, stage.kernel, A, 1, 3)
    stage.touch(1, write=True)
    settle(stage)
    assert stage.to_device(1, 3) == -Errno.ENOENT
    assert stage.pte(1) == Pte(PteKind.PRESENT, 1, write=True, young=True, dirty=True, soft_dirty=True)
    assert (stage.folio(1).refcount, stage.folio(1).mapcount, stage.folio(1).exclusive) == (3, 1, False)


# ---- the device reads and writes files -------------------------------------------------------------------------------


def test_the_device_reads_a_file():
    stage = opened(mapped(Dmirror))
    assert stage.run(stage.driver.device_read, A, 1) == 0
    assert stage.said(DeviceAccessed)[-1].pfn == stage.slots[PageCache(0)][0]


def test_the_device_writes_a_shared_file_and_the_page_is_dirty():
    stage = opened(mapped(Dmirror, shared=True))
    assert stage.run(stage.driver.device_write, A, 1) == 0
    page = stage.slots[PageCache(0)][0]
    assert (stage.said(DeviceAccessed)[-1].pfn, stage.folio(page).dirty) == (page, True)
    assert stage.run(syscalls_files.write_back, stage.kernel, 0, 0) == 1


def test_write_back_takes_the_devices_mapping_away():
    stage = opened(mapped(Dmirror, shared=True))
    stage.run(stage.driver.device_write, A, 1)
    stage.run(syscalls_files.write_back, stage.kernel, 0, 0)
    page = stage.slots[PageCache(0)][0]
    assert not stage.folio(page).dirty
    assert stage.run(stage.driver.device_write, A, 1) == 0
    assert stage.folio(page).dirty


def test_a_device_write_to_shared_memory_is_seen_by_the_child():
    stage = opened(Stage(WAITING, Dmirror, pages=0, files=1, file_pages=2, system_frames=6))
    stage.run(syscalls_files.mmap_shared, stage.kernel, A, 1, 3)
    stage.touch(1, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(stage.driver.open, B)
    assert stage.run(stage.driver.device_write, B, 1) == 0
    assert stage.said(DeviceAccessed)[-1].pfn == stage.pte(1).pfn


# ---- the swap cache --------------------------------------------------------------------------------------------------


def swapped(generation=WAITING, driver=FakeDriver) -> Stage:
    """Page 0 was swapped out, and is about to be read."""
    stage = Stage(generation, driver, swap_slots=1, system_frames=6)
    stage.touch(0, write=True)
    settle(stage)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    return stage


def in_swap_cache(generation=WAITING, driver=FakeDriver) -> Stage:
    """Page 0 was swapped out and read in again: page frame 1 is mapped, and in the swap cache."""
    stage = swapped(generation, driver)
    stage.touch(0, write=False)
    settle(stage)
    assert stage.folio(1).swap == 0
    return stage


def test_a_swap_entry_is_not_collected():
    stage = swapped()
    before = stage.pte(0)
    assert stage.to_device() == 0
    assert (setup_of(stage).src, stage.pte(0)) == ((0,), before)


def test_a_page_leaves_the_swap_cache_to_migrate():
    stage = in_swap_cache()
    assert stage.to_device() == 1
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, write=True, soft_dirty=True)
    assert stage.slots[SwapSlot(0)] == SwapSlotState()
    assert [event.pfn for event in stage.said(SwapCacheRemoved)] == [1, 1]
    assert stage.folio(100).dirty
    assert (stage.folio(1).refcount, stage.folio(100).refcount, stage.folio(100).exclusive) == (0, 1, True)
    assert stage.touch(0, write=False) == 0


def test_its_expected_count_has_the_swap_caches_reference_until_then():
    stage = in_swap_cache()
    assert stage.to_device() == 1
    assert stage.said(FolioMoved) == [FolioMoved(1, 100, 1, 1, moved=True)]


def test_a_page_whose_slot_another_entry_holds_stays():
    stage = swapped()
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.touch(0, write=False)
    settle(stage)
    assert stage.to_device() == 0
    assert stage.said(PagesReturned)[-1].src == (migrate_pfn(1),)
    page = stage.folio(1)
    settle(stage)
    assert (stage.pte(0).pfn, page.mapcount, page.swap, page.locked) == (1, 1, 0, False)
    assert stage.slots[SwapSlot(0)] == SwapSlotState(count=1, folio=1)


def test_refusing_every_page_in_the_swap_cache_makes_the_device_try_for_ever():
    """As before v6.5 (6.1: any mapping is refused): the page never gets to the device, however often that is asked."""

    async def refuse(kernel, folio):
        return False

    stage = in_swap_cache(WAITING.with_steps(free_swap=refuse))
    assert [stage.to_device() for _ in range(3)] == [0, 0, 0]
    settle(stage)
    assert (stage.folio(1).swap, stage.folio(1).refcount, stage.pte(0).pfn) == (0, 2, 1)


def test_a_mapping_that_is_not_read_again_counts_a_reference_that_is_gone():
    """The mended mistake of 7.2: the page has left the swap cache, and is moved as if it had not."""

    async def as_before(kernel, folio, before):
        return before

    stage = in_swap_cache(WAITING.with_steps(mapping_by_now=as_before))
    with pytest.raises(Stopped, match="folio_put of a free folio"):
        stage.to_device()


def test_a_migrated_page_can_be_swapped_when_it_is_back():
    stage = in_swap_cache()
    stage.to_device()
    stage.touch(0, write=True)
    settle(stage)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert (stage.pte(0).kind, stage.pte(0).exclusive, stage.pte(0).swap) == (PteKind.SWAP, True, 0)


def test_the_device_faults_a_swapped_page_in():
    stage = opened(swapped(driver=Dmirror))
    assert stage.run(stage.driver.device_read, A, 0) == 0
    assert stage.said(DeviceAccessed)[-1].pfn == stage.pte(0).pfn


def test_the_kernel_takes_every_step_of_swap_that_can_be_replaced():
    used = set()
    stage = in_swap_cache(WAITING.with_steps(**recording(used)))
    assert stage.to_device() == 1
    assert used >= SWAP_STEPS


# ---- destinations in system memory -----------------------------------------------------------------------------------


class Mover(FakeDriver):
    """Moves system pages to other system pages, as a driver may that balances memory."""

    async def to_device(self, mm, start, end):
        return await super().to_device(mm, start, end)

    async def fill(self, src, dst, *, device):
        return await super().fill(src, dst, device=False)


def test_a_page_of_the_page_cache_moves_with_its_place_in_the_cache():
    stage = mapped(Mover, shared=True)
    stage.touch(1, write=True)
    settle(stage)
    assert stage.to_device(1, 2) == 1
    settle(stage)
    assert stage.slots[PageCache(0)] == (2, None)
    page = stage.folio(2)
    assert (page.file, page.index, page.refcount, page.mapcount, page.dirty, page.lru) == (0, 0, 2, 1, True, Lru.ON)
    assert stage.pte(1) == Pte(PteKind.PRESENT, 2, write=True, young=True, dirty=True, soft_dirty=True)
    assert stage.folio(1).refcount == 0
    assert stage.said(FolioMoved) == [FolioMoved(1, 2, 2, 2, moved=True)]
    assert stage.said(PageCacheRemoved) == [PageCacheRemoved(1, 0, 0, 1)]


def test_a_page_moves_with_its_place_in_the_swap_cache():
    stage = in_swap_cache(driver=Mover)
    assert stage.to_device() == 1
    assert stage.slots[SwapSlot(0)] == SwapSlotState(folio=2)
    assert (stage.folio(2).swap, stage.folio(2).refcount) == (0, 3)
    assert stage.said(SwapCacheAdded)[-1] == SwapCacheAdded(2, 0, 2)
    settle(stage)
    assert stage.folio(1).refcount == 0


def test_a_page_that_somebody_found_in_the_cache_does_not_move():
    stage = mapped(Mover, shared=True)
    stage.touch(1, write=False)
    settle(stage)
    device = stage.start("device", stage.driver.to_device, A, 1, 2)
    device.until(SetupReturned)
    reader = stage.start("reader", syscalls_files.write_back, stage.kernel, 0, 0, cpu=1)
    reader.block()
    assert stage.folio(1).refcount == 3
    device.finish()
    assert stage.said(FolioMoved) == [FolioMoved(1, 2, 3, 2, moved=False)]
    assert reader.finish() == 0
    assert (stage.slots[PageCache(0)], stage.pte(1).pfn) == ((1, None), 1)
