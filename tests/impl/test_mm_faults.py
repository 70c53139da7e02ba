"""The fault path of memory that no device has: entries, copies on write, TLBs, and what kills an access."""

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import PteSlot
from migrate_vma_spec.events import (
    AllocationFailed,
    CpuAccessed,
    FaultBegan,
    FolioAllocated,
    FolioFreed,
    FolioUptodate,
    InvalidateBegan,
    PageCleared,
    PageCopied,
    PteChanged,
    PteRead,
    RmapAdded,
    TlbFilled,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Lru, NotifyReason, Pte, PteKind, VmFlags
from tests.impl.stage import READ_ONLY, A, B, Stage

WRITTEN = {"write": True, "young": True, "dirty": True, "soft_dirty": True}


@pytest.fixture
def stage():
    return Stage(WAITING)


def test_a_read_of_a_hole_maps_the_zero_page_and_needs_no_frame(stage):
    assert stage.touch(0, write=False) == 0
    assert stage.pte(0) == Pte(PteKind.ZERO, young=True)
    assert not stage.said(FolioAllocated)


def test_a_write_to_a_hole_maps_a_cleared_page_that_is_exclusive_and_on_its_way_to_the_lru(stage):
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, **WRITTEN)
    page = stage.folio(1)
    assert (page.refcount, page.mapcount, page.exclusive, page.charged, page.lru) == (2, 1, True, True, Lru.BATCHED)
    assert (page.anon_vma, page.index) == (A.number, 0)


def test_the_contents_are_complete_before_the_entry_shows_them(stage):
    stage.touch(0, write=True)
    order = [type(event) for event in stage.trace]
    assert order.index(PageCleared) < order.index(FolioUptodate) < order.index(PteChanged)


def test_a_write_after_a_read_copies_the_zero_page_and_flushes_it(stage):
    stage.touch(0, write=False)
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, **WRITTEN)
    assert [event.new for event in stage.said(PteChanged, since)] == [PTE_NONE, stage.pte(0)]
    assert stage.said(TlbFlushed, since)
    assert [event.reason for event in stage.said(InvalidateBegan, since)] == [NotifyReason.CLEAR]
    assert [event.pfn for event in stage.said(CpuAccessed)] == [None, 1]


def test_a_second_access_is_served_by_the_tlb(stage):
    stage.touch(0, write=True)
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert len(stage.said(CpuAccessed, since)) == 1
    assert not stage.said(TlbFilled, since)


def test_a_store_sets_dirty_through_a_walk_of_its_own(stage):
    stage.touch(0, write=True)
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.PRESENT, 1, write=True)
    stage.touch(0, write=False, cpu=1)
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, young=True)
    stage.touch(0, write=True, cpu=1)
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, young=True, dirty=True)


def test_a_store_through_a_stale_translation_reaches_the_old_frame(stage):
    stage.touch(0, write=True)
    stage.slots[PteSlot(0, 0)] = PTE_NONE
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert stage.said(CpuAccessed, since) == [CpuAccessed(0, 0, 1, write=True)]


@pytest.mark.parametrize("addr", [-1, 2, 3, 4, 99])
def test_an_access_outside_every_vma_is_a_segmentation_fault(stage, addr):
    assert stage.touch(addr, write=False) == -11


def test_a_store_to_a_read_only_vma_is_a_segmentation_fault_and_a_load_is_not(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3, READ_ONLY)
    assert stage.touch(2, write=True) == -11
    assert stage.touch(2, write=False) == 0


def test_no_access_is_allowed_in_a_vma_without_permissions(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3, VmFlags.NONE)
    assert stage.touch(2, write=False) == -11


def test_an_allocation_that_fails_by_choice_is_out_of_memory(stage):
    stage.answers["a page for a fault"] = [1]
    assert stage.touch(0, write=True) == -12
    assert stage.pte(0) == PTE_NONE
    assert stage.touch(0, write=True) == 0


def test_an_allocation_without_a_free_frame_is_out_of_memory():
    stage = Stage(WAITING, pages=2, system_frames=1)
    assert stage.touch(0, write=True) == 0
    assert stage.touch(1, write=True) == -12
    assert stage.said(AllocationFailed)


def test_a_copy_that_finds_no_page_leaves_the_old_entry(stage):
    stage.touch(0, write=False)
    stage.answers["a page for a copy on write"] = [1]
    assert stage.touch(0, write=True) == -12
    assert stage.pte(0).kind is PteKind.ZERO


def test_the_loser_of_two_faults_on_a_hole_gives_its_page_back(stage):
    slow = stage.start("slow", syscalls.touch, stage.kernel, A, 0, True)
    slow.until(FolioAllocated, pfn=1)
    stage.touch(0, write=True, cpu=1)
    assert slow.finish() == 0
    assert stage.pte(0).pfn == 2
    assert [event.pfn for event in stage.said(FolioFreed)] == [1]
    assert len(stage.said(RmapAdded)) == 1


def test_the_loser_of_two_reads_of_a_hole_leaves_what_it_finds(stage):
    slow = stage.start("slow", syscalls.touch, stage.kernel, A, 0, False)
    slow.until(FaultBegan)
    slow.until(PteRead)
    stage.touch(0, write=True, cpu=1)
    assert slow.finish() == 0
    assert stage.pte(0).kind is PteKind.PRESENT


def test_a_read_only_page_with_one_reference_is_made_writable_in_place(stage):
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls.exit, stage.kernel, B)
    assert not stage.pte(0).write
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, **WRITTEN)
    assert stage.folio(1).exclusive
    assert not stage.said(PageCopied, since)


def test_a_batch_of_this_cpu_does_not_stand_in_the_way_of_reuse(stage):
    stage.touch(0, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls.exit, stage.kernel, B, cpu=1)
    assert stage.folio(1).lru is Lru.BATCHED
    since = len(stage.trace)
    stage.touch(0, write=True)
    assert not stage.said(PageCopied, since)
    assert stage.folio(1).lru is Lru.ON


def test_a_page_that_somebody_else_holds_is_copied(stage):
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0).pfn == 2
    assert stage.said(PageCopied) == [PageCopied(1, 2)]
    assert (stage.folio(1).refcount, stage.folio(1).mapcount) == (1, 1)
