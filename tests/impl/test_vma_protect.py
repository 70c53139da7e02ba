"""mprotect, soft-dirty tracking, mremap: what becomes of entries of each kind, where the flush is, when stores are allowed."""

import pytest
from attrs import evolve

from migrate_vma_impl.mm.mm_types import AnonVma, Vma
from migrate_vma_impl.mm.task_mmu import Pagemap
from migrate_vma_spec.events import (
    CacheFlushed,
    FaultBegan,
    InvalidateBegan,
    InvalidateEnded,
    LazyMmuEntered,
    LazyMmuLeft,
    LockDropped,
    PageCopied,
    PteChanged,
    TlbFlushed,
    VmaChanged,
)
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind, VmFlags
from tests.impl.stage import READ_ONLY, A, B
from tests.impl.vma_stage import RW, VmaStage

NOTHING = VmFlags.NONE


@pytest.fixture
def stage():
    stage = VmaStage(pages=3)
    yield stage
    assert not stage.broken, stage.broken


def evicting(stage):
    """The page of address 0 is on the device, and an eviction, which needs no mmap_lock, has a migration entry in its place."""
    stage.touch(0, write=True)
    stage.to_device()
    evictor = stage.start("evictor", stage.driver.evict, cpu=1)
    evictor.until(PageCopied, src=100)
    assert stage.pte(0) == Pte(PteKind.MIGRATION, 100, write=True, soft_dirty=True)
    return evictor


def test_a_page_made_read_only_cannot_be_stored_to_and_can_be_read(stage):
    stage.touch(0, write=True)
    assert stage.call("mprotect", 0, 1, READ_ONLY) == 0
    assert stage.touch(0, write=True) == -11
    assert stage.touch(0, write=False) == 0


def test_a_page_without_permissions_cannot_be_read_not_even_through_an_old_translation(stage):
    stage.touch(0, write=True)
    stage.call("mprotect", 0, 1, NOTHING)
    assert stage.touch(0, write=False) == -11


def test_an_exclusive_page_is_writable_again_without_a_fault(stage):
    stage.touch(0, write=True)
    before = stage.pte(0)
    stage.call("mprotect", 0, 1, READ_ONLY)
    assert stage.pte(0) == evolve(before, write=False)
    since = stage.since()
    stage.call("mprotect", 0, 1, RW)
    assert stage.pte(0) == before
    assert not stage.said(TlbFlushed, since)
    since = stage.since()
    assert stage.touch(0, write=True) == 0
    assert not stage.said(FaultBegan, since)


def test_a_page_that_a_child_shares_is_not_made_writable_by_mprotect(stage):
    stage.touch(0, write=True)
    stage.call("fork", B)
    stage.call("mprotect", 0, 1, READ_ONLY)
    stage.call("mprotect", 0, 1, RW)
    assert not stage.pte(0).write
    stage.touch(0, write=True)
    assert len(stage.said(PageCopied)) == 1


def test_the_zero_page_never_becomes_writable(stage):
    stage.touch(0, write=False)
    stage.call("mprotect", 0, 1, READ_ONLY)
    stage.call("mprotect", 0, 1, RW)
    assert stage.pte(0) == Pte(PteKind.ZERO, young=True)


def test_a_writable_migration_entry_becomes_readable_exclusive_and_keeps_soft_dirty(stage):
    evictor = evicting(stage)
    stage.call("mprotect", 0, 1, READ_ONLY)
    assert stage.pte(0) == Pte(PteKind.MIGRATION, 100, exclusive=True, soft_dirty=True)
    assert evictor.finish() == 1
    assert (stage.pte(0).write, stage.pte(0).soft_dirty, stage.folio(stage.pte(0).pfn).exclusive) == (False, True, True)
    assert stage.touch(0, write=True) == -11


def test_a_migration_entry_that_was_made_readable_stays_so_until_a_store_faults(stage):
    evictor = evicting(stage)
    stage.call("mprotect", 0, 1, READ_ONLY)
    stage.call("mprotect", 0, 1, RW)
    assert not stage.pte(0).write
    evictor.finish()
    assert not stage.pte(0).write
    assert stage.touch(0, write=True) == 0
    assert len(stage.said(PageCopied)) == 2, "to the device and back, and none on write"


def test_a_writable_device_entry_becomes_readable_and_loses_soft_dirty_and_keeps_exclusivity(stage):
    stage.touch(0, write=True)
    stage.to_device()
    assert stage.pte(0).soft_dirty
    stage.call("mprotect", 0, 1, READ_ONLY)
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100)
    stage.call("mprotect", 0, 1, RW)
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100)
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0).write
    assert len(stage.said(PageCopied)) == 2, "to the device and back, and none on write"


def test_entries_change_inside_the_bracket_and_the_flush_comes_before_mmap_lock_is_dropped(stage):
    stage.touch(0, write=True)
    since = stage.since()
    stage.call("mprotect", 0, 1, READ_ONLY)
    wanted = (VmaChanged, InvalidateBegan, LazyMmuEntered, PteChanged, LazyMmuLeft, InvalidateEnded, TlbFlushed)
    order = [type(event) for event in stage.trace[since:] if isinstance(event, wanted)]
    assert order == [VmaChanged, VmaChanged, *wanted[1:]]
    assert stage.said(InvalidateBegan, since) == [InvalidateBegan(0, 0, 1, NotifyReason.PROTECTION, None)]
    flushed = stage.trace.index(stage.said(TlbFlushed, since)[0], since)
    assert flushed < stage.trace.index(stage.said(LockDropped, since)[-1], since)


def test_the_middle_of_a_mapping_is_split_off_with_its_place_in_the_memory(stage):
    assert stage.call("mprotect", 1, 2, READ_ONLY) == 0
    parts = (Vma(A, 0, 1, RW, 0), Vma(A, 1, 2, READ_ONLY, 0, pgoff=1), Vma(A, 2, 3, RW, 0, pgoff=2))
    assert stage.slots[A].vmas == stage.slots[AnonVma(0)] == parts
    assert VmaChanged(0, 1, 2, READ_ONLY) in stage.trace


def test_pages_of_a_split_mapping_are_still_found_by_the_reverse_map(stage):
    stage.touch(2, write=True)
    stage.call("mprotect", 2, 3, READ_ONLY)
    assert stage.to_device(2, 3) == 1
    assert stage.run(stage.driver.evict) == 1
    assert stage.pte(2).kind is PteKind.PRESENT


def test_a_gap_ends_it_after_what_comes_before(stage):
    stage.call("munmap", 1, 2)
    assert stage.call("mprotect", 0, 3, READ_ONLY) == -12
    assert [vma.flags for vma in stage.slots[A].vmas] == [READ_ONLY, RW]


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (1, 1), (5, 7)])
def test_a_range_outside_the_address_space_is_refused(stage, start, end):
    assert stage.call("mprotect", start, end, RW) == -22


# ---- soft-dirty ------------------------------------------------------------------------------------------------------


def soft_dirty(stage, addr):
    return bool(stage.call("pagemap", addr) & Pagemap.SOFT_DIRTY)


def test_everything_counts_as_written_until_tracking_begins(stage):
    assert soft_dirty(stage, 0)
    stage.call("clear_refs")
    assert not soft_dirty(stage, 0)


def test_a_store_after_clear_refs_is_noticed_and_a_load_is_not(stage):
    for addr in (0, 1):
        stage.touch(addr, write=True)
    stage.call("clear_refs")
    assert not stage.pte(0).write
    stage.touch(0, write=True)
    stage.touch(1, write=False)
    assert (soft_dirty(stage, 0), soft_dirty(stage, 1)) == (True, False)


def test_mprotect_does_not_hide_the_first_store_from_soft_dirty(stage):
    stage.touch(0, write=True)
    stage.call("clear_refs")
    stage.call("mprotect", 0, 1, READ_ONLY)
    stage.call("mprotect", 0, 1, RW)
    assert not stage.pte(0).write
    stage.touch(0, write=True)
    assert soft_dirty(stage, 0)


def test_tracking_flushes_what_lost_its_permission_and_tells_the_notifiers(stage):
    stage.touch(0, write=True)
    since = stage.since()
    stage.call("clear_refs")
    assert stage.said(InvalidateBegan, since) == [InvalidateBegan(0, 0, 6, NotifyReason.SOFT_DIRTY, None)]
    assert stage.said(TlbFlushed, since) == [TlbFlushed(0, 0, 6)]


def test_pagemap_says_what_an_entry_is(stage):
    stage.touch(0, write=True)
    assert stage.call("pagemap", 0) == Pagemap.PRESENT | Pagemap.SOFT_DIRTY
    stage.to_device()
    assert stage.call("pagemap", 0) == Pagemap.SWAP | Pagemap.SOFT_DIRTY
    assert stage.call("pagemap", 5) == Pagemap.NONE
    assert stage.call("pagemap", 6) == -22


def test_a_device_page_is_written_unnoticed_after_clear_refs_as_in_the_kernel(stage):
    """clear_soft_dirty leaves entries that are not present writable, so the page comes back writable and soft-clean."""
    stage.touch(0, write=True)
    stage.to_device()
    stage.call("clear_refs")
    stage.touch(0, write=False)
    assert stage.pte(0).write
    since = stage.since()
    stage.touch(0, write=True)
    assert not stage.said(FaultBegan, since)
    assert not soft_dirty(stage, 0)


# ---- moving ----------------------------------------------------------------------------------------------------------


def test_a_moved_page_is_at_the_new_place_alone_and_soft_dirty(stage):
    stage.touch(0, write=True)
    stage.call("clear_refs")
    before = stage.pte(0)
    since = stage.since()
    assert stage.call("mremap", 0, 1, 4) == 0
    assert stage.pte(0).kind is PteKind.NONE
    assert stage.pte(4) == evolve(before, soft_dirty=True)
    assert stage.slots[A].vmas[-1] == Vma(A, 4, 5, RW, 0, pgoff=0, soft_dirty_tracked=True)
    assert stage.said(CacheFlushed, since) == [CacheFlushed(0, 0, 1)]
    assert stage.said(TlbFlushed, since)[0] == TlbFlushed(0, 0, 1)


def test_the_old_place_is_flushed_before_the_page_table_lock_is_dropped(stage):
    stage.touch(0, write=True)
    since = stage.since()
    stage.call("mremap", 0, 1, 4)
    events = stage.trace[since:]
    moved = next(i for i, event in enumerate(events) if isinstance(event, PteChanged) and event.addr == 4)
    after = [event for event in events[moved:] if isinstance(event, (TlbFlushed, LockDropped))]
    assert after[:2] == [TlbFlushed(0, 0, 1), after[1]]
    assert after[1].lock == "ptl:0"


def test_a_moved_page_is_found_by_the_reverse_map_migrates_and_comes_back(stage):
    stage.touch(1, write=True)
    stage.call("mremap", 0, 2, 3)
    assert stage.to_device(4, 5) == 1
    assert stage.pte(4).kind is PteKind.DEVICE_PRIVATE
    assert stage.touch(4, write=True) == 0
    assert stage.pte(4).kind is PteKind.PRESENT


def test_a_device_page_moves_and_faults_at_its_new_place(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.call("mremap", 0, 1, 5)
    assert stage.pte(5).kind is PteKind.DEVICE_PRIVATE
    assert stage.touch(5, write=True) == 0
    assert stage.folio(100).refcount == 0
    assert stage.touch(0, write=True) == -11


def test_a_migration_entry_moves_and_finalize_finds_it(stage):
    evictor = evicting(stage)
    stage.call("mremap", 0, 1, 5)
    assert stage.pte(5) == Pte(PteKind.MIGRATION, 100, write=True, soft_dirty=True)
    assert evictor.finish() == 1
    assert (stage.pte(5).kind, stage.pte(0).kind) == (PteKind.PRESENT, PteKind.NONE)


@pytest.mark.parametrize(("start", "end", "to"), [(0, 2, 1), (0, 7, 0), (0, 1, 6), (0, 1, 0)])
def test_a_move_onto_itself_or_out_of_the_address_space_is_refused(stage, start, end, to):
    assert stage.call("mremap", start, end, to) == -22


def test_a_move_of_more_than_one_mapping_is_refused(stage):
    stage.call("mprotect", 1, 2, READ_ONLY)
    assert stage.call("mremap", 0, 2, 4) == -14
    assert stage.call("mremap", 3, 4, 5) == -14


@pytest.mark.parametrize("to", [1, 2])
def test_a_move_within_the_own_mapping_replaces_what_was_there(stage, to):
    for addr in range(3):
        stage.touch(addr, write=True)
    assert stage.call("mremap", 0, 1, to) == 0
    assert [stage.pte(addr).pfn for addr in range(3)] == [None, *((1, 3) if to == 1 else (2, 1))]
    assert stage.to_device(to, to + 1) == 1


def test_the_last_part_moves_to_the_front(stage):
    for addr in range(3):
        stage.touch(addr, write=True)
    assert stage.call("mremap", 2, 3, 0) == 0
    assert [stage.pte(addr).pfn for addr in range(3)] == [3, 2, None]
    assert [(vma.start, vma.pgoff) for vma in stage.slots[A].vmas] == [(0, 2), (1, 1)]
