"""Faults on mapped files and shared memory: which page is mapped, who hears of a write, and what is left when it is over."""

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.mm_types import FreePages, IMmap, PageCache, PteSlot
from migrate_vma_spec.events import (
    AllocationFailed,
    CacheRead,
    CpuAccessed,
    FolioAllocated,
    FolioCleaned,
    FolioDirtied,
    InvalidateBegan,
    MemcgCharged,
    MemcgUncharged,
    PageCacheAdded,
    PageCacheRemoved,
    PageCleared,
    PageCopied,
    PageFilled,
    PageWritten,
    PteChanged,
    RmapAdded,
    TlbFlushed,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, Lru, NotifyReason, Pte, PteKind, VmFlags
from tests.impl.stage import READ_ONLY, A, B, Stage

WRITTEN = {"write": True, "young": True, "dirty": True, "soft_dirty": True}


def files(**config) -> Stage:
    return Stage(WAITING, pages=0, files=1, file_pages=2, system_frames=5, **config)


def private(**config) -> Stage:
    stage = files(**config)
    assert stage.run(syscalls_files.mmap_file, stage.kernel, A, 1, 3, 0) == 0
    return stage


def shared(**config) -> Stage:
    stage = files(**config)
    assert stage.run(syscalls_files.mmap_file, stage.kernel, A, 1, 3, 0, 0, VmFlags.READ | VmFlags.WRITE, True) == 0
    return stage


def nameless(**config) -> Stage:
    stage = files(**config)
    assert stage.run(syscalls_files.mmap_shared, stage.kernel, A, 1, 3) == 0
    return stage


def cache(stage: Stage, file: int = 0) -> tuple[int | None, ...] | None:
    return stage.slots[PageCache(file)]


def settle(stage: Stage) -> None:
    for cpu in range(stage.kernel.config.cpus):
        stage.run(stage.kernel.lru_add_drain, cpu=cpu)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_read_fills_the_page_cache_and_maps_the_files_own_page_read_only():
    stage = private()
    assert stage.touch(2, write=False) == 0
    assert stage.pte(2) == Pte(PteKind.PRESENT, 1, young=True)
    assert cache(stage) == (None, 1)
    assert stage.said(PageFilled) == [PageFilled(1, 0, 1)]
    page = stage.folio(1)
    assert (page.file, page.index, page.anon_vma, page.exclusive) == (0, 1, None, False)
    assert (page.mapcount, page.refcount, page.lru) == (1, 3, Lru.BATCHED)


def test_the_page_is_locked_in_the_cache_until_its_contents_are_complete():
    stage = private()
    reader = stage.start("reader", syscalls.touch, stage.kernel, A, 1, False)
    reader.until(PageCacheAdded)
    assert stage.folio(1).locked
    second = stage.start("second", syscalls.touch, stage.kernel, A, 1, False, cpu=1)
    second.block()
    assert not stage.said(CpuAccessed)
    reader.finish()
    assert second.finish() == 0
    assert len(stage.said(PageFilled)) == 1


def test_two_who_miss_the_same_page_end_with_one():
    stage = private()
    slow = stage.start("slow", syscalls.touch, stage.kernel, A, 1, False)
    slow.until(FolioAllocated)
    stage.touch(1, write=False, cpu=1)
    assert slow.finish() == 0
    assert [event.pfn for event in stage.said(PageCacheAdded)] == [2]
    assert stage.slots[FreePages()] == (1, 3, 4, 5)
    assert [event.pfn for event in stage.said(MemcgUncharged)] == [1]


def test_a_page_beyond_the_end_of_the_file_is_a_bus_error():
    stage = files()
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 3, 0, 1)
    assert stage.touch(0, write=False) == 0
    assert stage.touch(1, write=False) == -7
    assert stage.touch(1, write=True) == -7


def test_a_second_mapping_finds_the_page_in_the_cache():
    stage = private()
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0, 1)
    stage.touch(2, write=False)
    stage.touch(0, write=False)
    assert stage.pte(0).pfn == stage.pte(2).pfn == 1
    assert (stage.folio(1).mapcount, len(stage.said(PageFilled))) == (2, 1)


def test_no_memory_for_the_page_cache_is_out_of_memory():
    stage = private()
    stage.answers["a page for the page cache"] = [1]
    assert stage.touch(1, write=False) == -12
    assert stage.pte(1) == PTE_NONE


def test_a_private_write_gets_an_anonymous_copy_and_leaves_the_file_alone():
    stage = private()
    assert stage.touch(1, write=True) == 0
    copy = stage.pte(1).pfn
    assert stage.pte(1) == Pte(PteKind.PRESENT, copy, **WRITTEN)
    assert stage.said(PageCopied) == [PageCopied(cache(stage)[0], copy)]
    page, original = stage.folio(copy), stage.folio(cache(stage)[0])
    assert (page.anon_vma, page.file, page.exclusive, page.charged) == (A.number, None, True, True)
    assert (original.mapcount, original.dirty, original.locked) == (0, False, False)


def test_a_private_write_after_a_read_copies_and_forgets_the_files_page():
    stage = private()
    stage.touch(1, write=False)
    assert stage.touch(1, write=True) == 0
    assert stage.said(PageCopied) == [PageCopied(1, 2)]
    settle(stage)
    assert (stage.folio(1).mapcount, stage.folio(1).refcount) == (0, 1)
    assert stage.folio(2).exclusive


def test_a_private_write_without_memory_leaves_nothing_behind():
    stage = private()
    stage.answers["a page for the page cache"] = [1]
    assert stage.touch(1, write=True) == -12
    assert stage.slots[FreePages()] == (1, 2, 3, 4, 5)


def test_a_private_copy_is_lost_with_its_mapping_and_the_file_is_read_again():
    stage = private()
    stage.touch(1, write=True)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
    assert stage.touch(1, write=False) == 0
    assert stage.pte(1).pfn == cache(stage)[0]
    assert not stage.folio(cache(stage)[0]).dirty


# ---- shared writes ---------------------------------------------------------------------------------------------------


def test_a_shared_write_makes_the_files_page_dirty_before_the_entry_allows_it():
    stage = shared()
    assert stage.touch(1, write=True) == 0
    assert stage.pte(1) == Pte(PteKind.PRESENT, 1, **WRITTEN)
    said = [type(event) for event in stage.trace]
    assert said.index(FolioDirtied) < said.index(RmapAdded)
    assert (cache(stage), stage.folio(1).dirty) == ((1, None), True)


def test_a_shared_read_waits_to_be_told_of_the_first_write():
    stage = shared()
    stage.touch(1, write=False)
    assert not stage.pte(1).write
    since = len(stage.trace)
    assert stage.touch(1, write=True) == 0
    assert stage.pte(1) == Pte(PteKind.PRESENT, 1, **WRITTEN)
    assert not stage.said(PageCopied)
    assert stage.said(FolioDirtied, since)


def test_write_back_cleans_every_entry_before_it_writes():
    stage = shared()
    stage.touch(1, write=True)
    since = len(stage.trace)
    assert stage.run(syscalls_files.write_back, stage.kernel, 0, 0) == 1
    assert stage.pte(1) == Pte(PteKind.PRESENT, 1, young=True, soft_dirty=True)
    assert not stage.folio(1).dirty
    order = [type(event) for event in stage.trace[since:]]
    places = [order.index(kind) for kind in (InvalidateBegan, TlbFlushed, FolioCleaned, PageWritten)]
    assert places == sorted(places)
    assert [event.reason for event in stage.said(InvalidateBegan, since)] == [NotifyReason.PROTECTION_PAGE]
    assert stage.run(syscalls_files.write_back, stage.kernel, 0, 0) == 0


def test_a_write_after_write_back_is_noticed_again():
    stage = shared()
    stage.touch(1, write=True)
    stage.run(syscalls_files.write_back, stage.kernel, 0, 0)
    assert stage.touch(1, write=True) == 0
    assert stage.folio(1).dirty
    assert stage.run(syscalls_files.write_back, stage.kernel, 0, 0) == 1


def test_a_page_that_is_written_while_it_is_written_back_stays_dirty():
    stage = shared()
    stage.touch(1, write=True)
    writer = stage.start("flusher", syscalls_files.write_back, stage.kernel, 0, 0)
    writer.until(FolioCleaned)
    store = stage.start("store", syscalls.touch, stage.kernel, A, 1, True, cpu=1)
    store.block()
    writer.finish()
    assert store.finish() == 0
    assert stage.folio(1).dirty


def test_a_dirty_entry_that_is_zapped_leaves_its_dirt_on_the_page():
    stage = nameless()
    stage.touch(1, write=False)
    assert stage.pte(1).write
    assert not stage.folio(1).dirty
    stage.touch(1, write=True)
    assert not stage.folio(1).dirty
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
    assert stage.folio(1).dirty


# ---- shared memory without a name ------------------------------------------------------------------------------------


def test_shared_memory_begins_cleared_and_is_written_without_a_second_fault():
    stage = nameless()
    assert stage.touch(1, write=False) == 0
    assert stage.pte(1) == Pte(PteKind.PRESENT, 1, write=True, young=True)
    assert stage.said(PageCleared) == [PageCleared(1)]
    assert stage.said(VmaMapped) == [VmaMapped(0, 1, 3, VmFlags(0xB), False, 1, 0)]
    assert cache(stage, 1) == (1, None)


def test_parent_and_child_share_it():
    stage = nameless()
    stage.touch(1, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert stage.pte(1, B) == PTE_NONE
    assert stage.touch(1, write=True, mm=B) == 0
    assert stage.pte(1, B).pfn == stage.pte(1).pfn == 1
    assert stage.pte(1).write
    assert not stage.said(PageCopied)


def test_its_pages_go_with_the_last_mapping():
    stage = nameless()
    stage.touch(1, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls.exit, stage.kernel, A)
    assert cache(stage, 1) == (1, None)
    stage.run(syscalls.munmap, stage.kernel, B, 1, 2)
    assert cache(stage, 1) == (1, None)
    stage.run(syscalls.exit, stage.kernel, B)
    assert (cache(stage, 1), stage.slots[IMmap(1)]) == (None, ())
    settle(stage)
    assert stage.slots[FreePages()] == (1, 2, 3, 4, 5)
    assert len(stage.said(MemcgCharged)) == len(stage.said(MemcgUncharged)) == 1


def test_there_is_a_second_object_only_when_the_first_is_gone():
    stage = nameless()
    assert stage.run(syscalls_files.mmap_shared, stage.kernel, A, 0, 1) == -Errno.ENOMEM
    assert stage.said(AllocationFailed) == [AllocationFailed("a file for shared memory")]
    stage.run(syscalls.munmap, stage.kernel, A, 1, 3)
    assert stage.run(syscalls_files.mmap_shared, stage.kernel, A, 0, 1) == 0


def test_a_file_that_has_a_name_outlives_its_mappings():
    stage = shared()
    stage.touch(1, write=True)
    stage.run(syscalls.munmap, stage.kernel, A, 1, 3)
    settle(stage)
    assert cache(stage) == (1, None)
    assert (stage.folio(1).refcount, stage.folio(1).mapcount, stage.folio(1).dirty) == (1, 0, True)


# ---- dropping pages --------------------------------------------------------------------------------------------------


def test_a_clean_unused_page_is_dropped_from_the_cache():
    stage = private()
    stage.touch(1, write=False)
    settle(stage)
    assert stage.run(syscalls_files.drop_page, stage.kernel, 0, 0) == 0
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
    assert stage.run(syscalls_files.drop_page, stage.kernel, 0, 0) == 1
    assert cache(stage) == (None, None)
    assert stage.slots[FreePages()] == (1, 2, 3, 4, 5)


def test_a_dirty_page_is_not_dropped():
    stage = shared()
    stage.touch(1, write=True)
    stage.run(syscalls.munmap, stage.kernel, A, 1, 3)
    settle(stage)
    assert stage.run(syscalls_files.drop_page, stage.kernel, 0, 0) == 0
    stage.run(syscalls_files.write_back, stage.kernel, 0, 0)
    assert stage.run(syscalls_files.drop_page, stage.kernel, 0, 0) == 1


def test_a_hole_takes_the_page_from_every_shared_mapping_and_leaves_private_copies():
    stage = shared()
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0)
    stage.touch(0, write=True)
    stage.touch(1, write=True)
    copy = stage.pte(0).pfn
    assert stage.run(syscalls_files.punch_hole, stage.kernel, 0, 0) == 0
    assert (stage.pte(0).pfn, stage.pte(1)) == (copy, PTE_NONE)
    assert cache(stage) == (None, None)
    assert [event.pfn for event in stage.said(PageCacheRemoved)] == [2]


def test_a_fault_that_waited_for_a_page_which_the_file_lost_gets_another_one():
    stage = shared()
    stage.touch(1, write=False)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
    reader = stage.start("reader", syscalls.touch, stage.kernel, A, 1, False)
    reader.until(CacheRead, pfn=1)
    reader.until(CacheRead, pfn=1)
    stage.run(syscalls_files.punch_hole, stage.kernel, 0, 0, cpu=1)
    assert cache(stage) == (None, None)
    assert reader.finish() == 0
    assert len(stage.said(PageFilled)) == 2
    assert cache(stage) == (stage.pte(1).pfn, None)


def test_a_hole_in_the_middle_of_a_first_write_does_not_map_the_lost_page():
    stage = shared()
    writer = stage.start("writer", syscalls.touch, stage.kernel, A, 1, True)
    writer.until(PageFilled)
    puncher = stage.start("puncher", syscalls_files.punch_hole, stage.kernel, 0, 0, cpu=1)
    puncher.block()
    assert writer.finish() == 0
    assert puncher.finish() == 0
    assert stage.pte(1) == PTE_NONE
    assert cache(stage) == (None, None)


# ---- fork ------------------------------------------------------------------------------------------------------------


def test_fork_shares_private_copies_and_the_files_pages_of_a_private_mapping():
    stage = private()
    stage.touch(1, write=True)
    stage.touch(2, write=False)
    copy = stage.pte(1).pfn
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert (stage.pte(1, B).pfn, stage.pte(2, B).pfn) == (copy, cache(stage)[1])
    assert not stage.pte(1).write
    assert not stage.folio(copy).exclusive
    assert (stage.folio(copy).mapcount, stage.folio(cache(stage)[1]).mapcount) == (2, 2)
    assert [vma.mm for vma in stage.slots[IMmap(0)]] == [A, B]


def test_the_child_copies_on_write():
    stage = private()
    stage.touch(1, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.touch(1, write=True, mm=B)
    assert stage.pte(1, B).pfn != stage.pte(1).pfn


@pytest.mark.parametrize(("start", "end"), [(1, 2), (2, 3)])
def test_what_is_left_of_a_mapping_shows_the_same_pages(start, end):
    stage = private()
    stage.run(syscalls.munmap, stage.kernel, A, start, end)
    left = 3 - start
    stage.touch(left, write=False)
    assert cache(stage)[left - 1] == stage.pte(left).pfn
    assert [vma.index_of(left) for vma in stage.slots[IMmap(0)]] == [left - 1]


def test_a_read_only_mapping_of_a_file_cannot_be_written():
    stage = files()
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0, 0, READ_ONLY)
    assert stage.touch(0, write=True) == -11
    assert stage.touch(0, write=False) == 0


@pytest.mark.parametrize(("file", "index"), [(1, 0), (-1, 0), (0, -1)])
def test_what_is_no_file_is_refused(file, index):
    stage = files()
    assert stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, file, index) == -Errno.EINVAL
    assert stage.run(syscalls_files.write_back, stage.kernel, file, index) == -Errno.EINVAL
    assert stage.run(syscalls_files.drop_page, stage.kernel, file, index) == -Errno.EINVAL
    assert stage.run(syscalls_files.punch_hole, stage.kernel, file, index) == -Errno.EINVAL
    assert stage.slots[PteSlot(0, 0)] == PTE_NONE
    assert not stage.said(PteChanged)
