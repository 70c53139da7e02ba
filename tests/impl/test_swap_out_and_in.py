"""Swap: what a page becomes when it is reclaimed, what a swap entry remembers, and who gets the page back."""

import pytest
from attrs import evolve

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.mm_types import Folio, FreePages, PteSlot, SwapSlot, SwapSlotState
from migrate_vma_spec.events import (
    AllocationFailed,
    CpuAccessed,
    FolioAllocated,
    FolioCleaned,
    InvalidateBegan,
    MemcgCharged,
    MemcgUncharged,
    PageCopied,
    PageFilled,
    PageWritten,
    SwapCacheAdded,
    SwapCacheRemoved,
    SwapCounted,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, Lru, NotifyReason, Pte, PteKind
from tests.impl.stage import READ_ONLY, A, B, Stage

SLOT = Pte(PteKind.SWAP, exclusive=True, soft_dirty=True, swap=0)


def settle(stage: Stage) -> None:
    for cpu in range(stage.kernel.config.cpus):
        stage.run(stage.kernel.lru_add_drain, cpu=cpu)


def written(**config) -> Stage:
    """A page at address 0 that was written, and is on the LRU."""
    stage = Stage(WAITING, **{"swap_slots": 2, **config})
    stage.touch(0, write=True)
    settle(stage)
    return stage


def swapped(**config) -> Stage:
    stage = written(**config)
    assert stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1) == 0
    return stage


def slot(stage: Stage, number: int = 0) -> SwapSlotState:
    return stage.slots[SwapSlot(number)]


# ---- out -------------------------------------------------------------------------------------------------------------


def test_a_page_is_written_to_the_smallest_free_slot_and_freed():
    stage = swapped()
    assert stage.pte(0) == SLOT
    assert slot(stage) == SwapSlotState(count=1)
    assert stage.said(PageWritten) == [PageWritten(1, None, 0)]
    assert stage.slots[FreePages()] == (1, 2, 3, 4)
    assert len(stage.said(MemcgCharged)) == len(stage.said(MemcgUncharged)) == 1


def test_the_page_is_unmapped_and_flushed_before_it_is_clean_and_clean_before_it_is_written():
    stage = written()
    since = len(stage.trace)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    order = [type(event) for event in stage.trace[since:]]
    places = [order.index(kind) for kind in (SwapCacheAdded, InvalidateBegan, TlbFlushed, SwapCounted, FolioCleaned, PageWritten)]
    assert places == sorted(places)
    assert [event.reason for event in stage.said(InvalidateBegan, since)] == [NotifyReason.CLEAR]


def test_the_swap_entry_keeps_what_userspace_may_ask_for_and_forgets_young_and_dirty():
    stage = written()
    stage.slots[PteSlot(0, 0)] = evolve(stage.pte(0), soft_dirty=False, uffd_wp=True, write=False)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0) == Pte(PteKind.SWAP, exclusive=True, uffd_wp=True, swap=0)


def test_without_a_free_slot_the_page_stays():
    stage = written(swap_slots=1)
    stage.touch(1, write=True)
    settle(stage)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 2)
    assert stage.said(AllocationFailed) == [AllocationFailed("a swap slot")]
    assert [stage.pte(addr).kind for addr in (0, 1)] == [PteKind.SWAP, PteKind.PRESENT]
    page = stage.folio(2)
    assert (page.refcount, page.mapcount, page.lru, page.locked, page.exclusive) == (1, 1, Lru.ON, False, True)


def test_a_pinned_page_stays():
    stage = written()
    pinned = stage.run(syscalls.pin, stage.kernel, A, 0)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0).pfn == 1
    assert slot(stage) == SwapSlotState()
    assert stage.run(syscalls.unpin, stage.kernel, pinned) == 0


def test_a_page_that_two_map_is_left_alone():
    stage = written()
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0).pfn == stage.pte(0, B).pfn == 1


def test_a_page_that_somebody_holds_stays_in_the_swap_cache():
    stage = written()
    since = len(stage.trace)
    out = stage.start("out", syscalls_files.pageout, stage.kernel, A, 0, 1)
    out.until(SwapCounted, count=1)
    holder = stage.start("holder", syscalls.speculative_reference, stage.kernel, 1, cpu=1)
    holder.step()
    out.finish()
    holder.finish()
    assert not stage.said(PageWritten, since)
    assert slot(stage) == SwapSlotState(count=1, folio=1)
    page = stage.folio(1)
    assert (page.refcount, page.swap, page.dirty, page.lru) == (1, 0, True, Lru.ON)


def test_a_range_that_is_not_mapped_is_told_of():
    stage = written()
    assert stage.run(syscalls_files.pageout, stage.kernel, A, 0, 4) == -Errno.ENOMEM
    assert stage.run(syscalls_files.pageout, stage.kernel, A, 0, 5) == -Errno.EINVAL
    assert stage.pte(0).kind is PteKind.SWAP


def test_pages_of_a_file_are_dropped_when_clean_and_kept_when_dirty():
    stage = Stage(WAITING, pages=0, files=1, file_pages=2)
    stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 2, 0, 0, READ_ONLY | syscalls.READ_WRITE, True)
    stage.touch(0, write=False)
    stage.touch(1, write=True)
    settle(stage)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 2)
    assert (stage.pte(0), stage.pte(1)) == (PTE_NONE, PTE_NONE)
    assert stage.slots[FreePages()] == (1, 3, 4)
    assert (stage.folio(2).dirty, stage.folio(2).refcount, stage.folio(2).lru) == (True, 1, Lru.ON)
    assert not stage.said(PageWritten)


# ---- in --------------------------------------------------------------------------------------------------------------


def test_a_write_brings_the_page_back_exclusive_and_frees_the_slot():
    stage = swapped()
    assert stage.touch(0, write=True) == 0
    assert stage.said(PageFilled) == [PageFilled(1, None, 0)]
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, young=True, dirty=True, soft_dirty=True)
    assert slot(stage) == SwapSlotState()
    page = stage.folio(1)
    assert (page.exclusive, page.swap, page.dirty, page.charged) == (True, None, True, True)
    assert (page.anon_vma, page.index, page.mapcount) == (A.number, 0, 1)
    assert not stage.said(PageCopied)


def test_a_read_brings_the_page_back_writable_and_leaves_it_in_the_swap_cache():
    stage = swapped()
    assert stage.touch(0, write=False) == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, young=True, soft_dirty=True)
    assert slot(stage) == SwapSlotState(count=0, folio=1)
    assert (stage.folio(1).swap, stage.folio(1).refcount, stage.folio(1).mapcount) == (0, 3, 1)


def test_a_page_in_the_swap_cache_is_swapped_out_again_without_a_copy_if_it_was_not_written():
    stage = swapped()
    stage.touch(0, write=False)
    settle(stage)
    since = len(stage.trace)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0) == SLOT
    assert not stage.said(PageWritten, since)
    assert slot(stage) == SwapSlotState(count=1)


def test_a_page_in_the_swap_cache_that_was_written_is_written_out_again():
    stage = swapped()
    stage.touch(0, write=False)
    stage.touch(0, write=True)
    settle(stage)
    since = len(stage.trace)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0) == SLOT
    assert stage.said(PageWritten, since) == [PageWritten(1, None, 0)]


def test_two_faults_on_one_slot_read_it_once():
    stage = swapped()
    first = stage.start("first", syscalls.touch, stage.kernel, A, 0, False)
    first.until(SwapCacheAdded)
    second = stage.start("second", syscalls.touch, stage.kernel, A, 0, True, cpu=1)
    second.block()
    assert first.finish() == 0
    assert second.finish() == 0
    assert len(stage.said(PageFilled)) == 1
    settle(stage)
    assert (stage.folio(1).refcount, stage.folio(1).mapcount) == (2 - (stage.folio(1).swap is None), 1)


def test_two_who_miss_the_swap_cache_end_with_one_page():
    stage = swapped()
    slow = stage.start("slow", syscalls.touch, stage.kernel, A, 0, False)
    slow.until(FolioAllocated, pfn=1)
    stage.touch(0, write=False, cpu=1)
    assert slow.finish() == 0
    assert [event.pfn for event in stage.said(SwapCacheAdded)] == [1, 2]
    assert stage.pte(0).pfn == 2
    assert stage.slots[FreePages()] == (1, 3, 4)


def test_a_page_that_was_not_needed_any_more_is_given_up():
    stage = swapped()
    slow = stage.start("slow", syscalls.touch, stage.kernel, A, 0, False)
    slow.until(PageFilled)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1, cpu=1)
    assert slow.finish() == 0
    settle(stage)
    assert stage.pte(0).kind is PteKind.ZERO
    assert slot(stage) == SwapSlotState()
    assert stage.slots[FreePages()] == (1, 2, 3, 4)


def test_without_memory_the_entry_stays():
    stage = swapped()
    stage.answers["a page to swap in"] = [1]
    assert stage.touch(0, write=False) == -12
    assert stage.pte(0) == SLOT
    assert stage.touch(0, write=False) == 0


def test_a_write_to_memory_that_became_read_only_in_between_is_refused():
    stage = swapped()
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 1, READ_ONLY)
    assert stage.touch(0, write=True) == -11
    assert stage.touch(0, write=False) == 0
    assert not stage.pte(0).write
    assert stage.folio(1).exclusive


# ---- contents that were given up -------------------------------------------------------------------------------------


def given_up() -> Stage:
    stage = written()
    stage.run(syscalls.madvise_free, stage.kernel, A, 0, 1)
    assert stage.folio(1).lazyfree
    return stage


def test_contents_that_were_given_up_are_dropped_without_a_slot():
    stage = given_up()
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert (stage.pte(0), slot(stage), stage.slots[FreePages()]) == (PTE_NONE, SwapSlotState(), (1, 2, 3, 4))
    assert not stage.said(PageWritten)
    assert not stage.said(SwapCacheAdded)


def test_a_page_that_was_written_again_is_kept_and_swapped_the_next_time():
    stage = given_up()
    stage.touch(0, write=True)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert (stage.pte(0).pfn, stage.pte(0).dirty, stage.folio(1).lazyfree) == (1, True, False)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0) == SLOT
    assert stage.said(PageWritten) == [PageWritten(1, None, 0)]


def test_a_page_that_is_held_keeps_contents_that_were_given_up():
    stage = given_up()
    stage.run(stage.kernel.folio_get, Folio(1))
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert (stage.pte(0).pfn, stage.folio(1).mapcount, stage.folio(1).lru) == (1, 1, Lru.ON)


def test_that_contents_were_given_up_goes_with_a_page_to_the_device_and_back():
    stage = given_up()
    assert stage.to_device() == 1
    assert stage.folio(100).lazyfree
    stage.touch(0, write=False)
    assert stage.folio(stage.pte(0).pfn).lazyfree
    assert not stage.folio(100).lazyfree


# ---- fork and zap ----------------------------------------------------------------------------------------------------


@pytest.fixture
def forked():
    stage = swapped()
    stage.run(syscalls.fork, stage.kernel, A, B)
    return stage


def test_fork_shares_the_slot(forked):
    shared = evolve(SLOT, exclusive=False)
    assert (forked.pte(0), forked.pte(0, B)) == (shared, shared)
    assert slot(forked).count == 2


def test_a_shared_slot_is_read_only_until_it_is_copied(forked):
    forked.touch(0, write=True)
    assert slot(forked) == SwapSlotState(count=1, folio=1)
    assert forked.said(PageCopied) == [PageCopied(1, 2)]
    assert forked.pte(0).pfn == 2
    assert not forked.folio(1).exclusive


def test_the_last_one_gets_the_page_for_itself(forked):
    forked.run(syscalls.exit, forked.kernel, B)
    assert slot(forked).count == 1
    forked.touch(0, write=True)
    assert slot(forked) == SwapSlotState()
    assert forked.pte(0).write
    assert not forked.said(PageCopied)
    assert forked.folio(forked.pte(0).pfn).exclusive


def test_both_map_the_page_of_the_swap_cache(forked):
    forked.touch(0, write=False)
    forked.touch(0, write=False, mm=B)
    assert forked.pte(0).pfn == forked.pte(0, B).pfn == 1
    assert (forked.folio(1).mapcount, slot(forked)) == (2, SwapSlotState(count=0, folio=1))
    assert not forked.pte(0).write
    assert not forked.pte(0, B).write


def test_the_last_entry_that_is_zapped_frees_the_slot(forked):
    forked.run(syscalls.madvise_dontneed, forked.kernel, A, 0, 1)
    assert (forked.pte(0), slot(forked).count) == (PTE_NONE, 1)
    forked.run(syscalls.exit, forked.kernel, B)
    assert slot(forked) == SwapSlotState()


def test_a_zapped_entry_takes_the_unused_page_of_the_swap_cache_with_it(forked):
    forked.touch(0, write=True)
    settle(forked)
    assert slot(forked) == SwapSlotState(count=1, folio=1)
    forked.run(syscalls.exit, forked.kernel, B)
    assert slot(forked) == SwapSlotState()
    assert [event.pfn for event in forked.said(SwapCacheRemoved)][-1] == 1
    assert forked.slots[FreePages()] == (1, 3, 4)


def test_a_zap_does_not_wait_for_the_lock_of_the_cached_page(forked):
    forked.touch(0, write=True)
    settle(forked)
    forked.run(forked.kernel.folio_lock, Folio(1))
    forked.run(syscalls.exit, forked.kernel, B)
    assert slot(forked) == SwapSlotState(count=0, folio=1)


def test_a_store_between_unmapping_and_writing_out_is_not_lost():
    stage = written()
    out = stage.start("out", syscalls_files.pageout, stage.kernel, A, 0, 1)
    out.until(TlbFlushed)
    store = stage.start("store", syscalls.touch, stage.kernel, A, 0, True, cpu=1)
    store.step()
    out.finish()
    assert store.finish() == 0
    accesses = [event.pfn for event in stage.said(CpuAccessed)]
    assert accesses == [1, stage.pte(0).pfn]
    assert stage.said(PageWritten)
    assert stage.said(PageFilled)


def test_a_fault_that_finds_the_page_on_its_way_out_keeps_it():
    stage = written()
    out = stage.start("out", syscalls_files.pageout, stage.kernel, A, 0, 1)
    out.until(SwapCounted, count=1)
    reader = stage.start("reader", syscalls.touch, stage.kernel, A, 0, False, cpu=1)
    for _ in range(40):
        if not out.ended:
            out.step()
        if not reader.ended:
            reader.step()
    out.finish()
    assert reader.finish() == 0
    assert stage.pte(0).kind is PteKind.PRESENT
    page = stage.folio(stage.pte(0).pfn)
    assert (page.mapcount, page.locked) == (1, False)


def test_a_stale_flush_is_what_makes_reclaim_lose_a_store():
    """The mutation that leaves the flush out: the other CPU writes the page after it was written out."""

    async def no_flush(kernel, mm, addr):
        return None

    stage = Stage(WAITING.with_steps(flush_unmapped=no_flush), swap_slots=1)
    stage.touch(0, write=True)
    settle(stage)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1, cpu=1)
    since = len(stage.trace)
    stage.touch(0, write=True)
    assert stage.said(CpuAccessed, since) == [CpuAccessed(0, 0, 1, write=True)]
    assert stage.pte(0).kind is PteKind.SWAP
