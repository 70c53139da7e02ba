"""Faults that a leaf of the middle level serves: nothing there, the huge zero page, stores to read-only leaves, waiting."""

import pytest
from attrs import evolve

from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio, LruBatch, PmdSlot, PteSlot, Tlb
from migrate_vma_spec.events import (
    Chose,
    CpuAccessed,
    FaultBegan,
    FolioAllocated,
    FolioFreed,
    FolioLocked,
    InvalidateBegan,
    PageCleared,
    PageCopied,
    PageTableAllocated,
    PageTableFreed,
    PmdChanged,
    PmdRead,
    PmdSplit,
    TlbFilled,
    TlbFlushed,
    UserfaultRaised,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import PTE_NONE, NotifyReason, Pte, PteKind, VmFlags
from tests.impl.huge_stage import HUGE, RW, HugeStage
from tests.impl.stage import A, B

LEAF = Pte(PteKind.PRESENT, 4, write=True, young=True, dirty=True, soft_dirty=True)
ZERO = Pte(PteKind.ZERO, young=True)
TABLE = Pte(PteKind.TABLE)


@pytest.fixture
def stage():
    return HugeStage()


# ---- nothing there ---------------------------------------------------------------------------------------------------


def test_a_store_gets_a_leaf_for_the_whole_range(stage):
    assert stage.touch(1, write=True) == 0
    assert (stage.pmd(0), stage.pmd(4)) == (LEAF, PTE_NONE)
    assert stage.said(PageCleared) == [PageCleared(pfn) for pfn in range(4, 8)]
    assert stage.said(CpuAccessed)[-1] == CpuAccessed(0, 1, 5, write=True)
    assert (stage.counts(4), stage.exclusive(4)) == ((1, 1), [True, False, False, False])
    assert stage.tables() == 1


def test_its_neighbours_need_no_fault_any_more(stage):
    stage.touch(1, write=True)
    since = len(stage.trace)
    stage.touch(3, write=False)
    assert stage.said(TlbFilled, since)[0].pte.pfn == 7
    assert not stage.said(FolioAllocated, since)


def test_a_load_gets_the_huge_zero_page_and_a_store_then_a_folio_behind_the_same_page_table(stage):
    stage.touch(5, write=False)
    assert stage.pmd(4) == ZERO
    stage.touch(6, write=True)
    assert stage.pmd(4) == LEAF
    assert InvalidateBegan(0, 4, 8, NotifyReason.CLEAR, None) in stage.trace
    assert stage.said(TlbFlushed)[-1] == TlbFlushed(0, 4, 8)
    assert stage.tables() == 1


def test_a_store_to_the_huge_zero_page_that_gets_no_folio_splits_it(stage):
    stage.touch(5, write=False)
    stage.answers["a large folio for a fault"] = [1]
    assert stage.touch(5, write=True) == 0
    assert stage.pmd(4) == TABLE
    zero = Pte(PteKind.ZERO, young=True)
    assert [stage.pte(addr) for addr in (4, 6, 7)] == [zero] * 3
    assert stage.said(PmdSplit) == [PmdSplit(0, 4, ZERO, (zero,) * 4)]
    assert stage.pte(5).kind is PteKind.PRESENT


@pytest.mark.parametrize("flags", [RW, RW | VmFlags.NOHUGEPAGE, HUGE | VmFlags.NOHUGEPAGE])
def test_memory_that_does_not_ask_for_large_folios_gets_none(flags):
    stage = HugeStage(flags=flags)
    stage.touch(1, write=True)
    assert (stage.pmd(0), stage.pte(1).pfn, stage.pte(0)) == (TABLE, 1, PTE_NONE)


def test_a_fault_falls_back_to_a_page_where_there_is_no_large_folio(stage):
    stage.answers["a large folio for a fault"] = [1]
    assert stage.touch(1, write=True) == 0
    assert (stage.pmd(0), stage.pte(1).pfn) == (TABLE, 1)
    stage.touch(2, write=True)
    assert stage.pte(2).pfn == 2, "a page table hangs there now, which no fault replaces by a leaf"


@pytest.mark.parametrize(("start", "end"), [(1, 8), (0, 3)])
def test_a_mapping_that_does_not_show_the_whole_range_gets_pages(start, end):
    stage = HugeStage()
    stage.run(syscalls.munmap, stage.kernel, A, 0, 8)
    stage.run(syscalls.mmap, stage.kernel, A, start, end, HUGE)
    stage.touch(2, write=True)
    assert (stage.pmd(0), stage.pte(2).kind) == (TABLE, PteKind.PRESENT)


def test_the_loser_of_two_first_stores_gives_back_its_folio_and_its_page_table(stage):
    first = stage.start("first", syscalls.touch, stage.kernel, A, 0, True)
    second = stage.start("second", syscalls.touch, stage.kernel, A, 1, True, cpu=1)
    first.until(PageTableAllocated)
    second.until(PageTableAllocated)
    assert first.finish() == second.finish() == 0
    assert stage.pmd(0).pfn == 4
    assert stage.said(FolioFreed) == [FolioFreed(8, 2)]
    assert stage.said(PageTableFreed) == [PageTableFreed(0, 1)]


def test_a_page_fault_that_meets_a_leaf_in_the_meantime_leaves_it_alone(stage):
    stage.answers["a large folio for a fault"] = [1]
    small = stage.start("small", syscalls.touch, stage.kernel, A, 0, True)
    small.until(FolioAllocated, order=0)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 4)
    assert stage.pmd(0) == TABLE
    large = stage.start("large", syscalls.touch, stage.kernel, A, 1, True, cpu=1)
    assert large.finish() == 0
    assert small.finish() == 0
    assert {stage.pte(addr).kind for addr in (0, 1)} == {PteKind.PRESENT}


def test_a_leaf_that_appears_before_the_page_table_is_hung_sends_the_page_fault_back(stage):
    stage.answers["a large folio for a fault"] = [1, 0]
    small = stage.start("small", syscalls.touch, stage.kernel, A, 0, True)
    small.until(Chose)
    small.until(PmdRead, pmd=PTE_NONE)
    assert stage.touch(1, write=True, cpu=1) == 0
    assert small.finish() == 0
    assert stage.pmd(0).kind is PteKind.PRESENT
    assert [stage.pte(addr) for addr in range(4)] == [PTE_NONE] * 4


# ---- the walk --------------------------------------------------------------------------------------------------------


def test_a_store_sets_dirty_in_the_leaf_itself(stage):
    stage.touch(1, write=True)
    stage.slots[PmdSlot(0, 0)] = evolve(LEAF, young=False, dirty=False)
    stage.slots[Tlb(0)] = ()
    stage.touch(2, write=False)
    assert (stage.pmd(0).young, stage.pmd(0).dirty) == (True, False)
    stage.touch(3, write=True)
    assert stage.pmd(0).dirty
    assert all(stage.slots[PteSlot(0, addr)] == PTE_NONE for addr in range(4))


# ---- stores to read-only leaves --------------------------------------------------------------------------------------


def test_the_last_user_of_a_folio_writes_it_in_place(stage):
    stage.touch(0, write=True)
    stage.fork(B)
    stage.run(syscalls.exit, stage.kernel, B)
    assert stage.touch(2, write=True) == 0
    assert stage.pmd(0) == LEAF
    assert stage.folio(4).exclusive
    assert not stage.said(PageCopied)


def test_an_exclusive_leaf_becomes_writable_without_a_look_at_the_counts(stage):
    stage.touch(0, write=True)
    stage.slots[PmdSlot(0, 0)] = evolve(LEAF, write=False)
    stage.slots[Tlb(0)] = ()
    stage.run(stage.kernel.folio_get, Folio(4))
    since = len(stage.trace)
    assert stage.touch(2, write=True) == 0
    assert stage.pmd(0) == LEAF
    assert not stage.said(FolioLocked, since)


def test_a_store_to_a_folio_that_others_map_splits_the_leaf_and_copies_one_page(stage):
    stage.touch(0, write=True)
    stage.fork(B)
    assert stage.touch(2, write=True) == 0
    assert (stage.pmd(0), stage.pmd(0, B).kind) == (TABLE, PteKind.PRESENT)
    assert stage.said(PageCopied) == [PageCopied(6, 1)]
    assert [stage.pte(addr).pfn for addr in range(4)] == [4, 5, 1, 7]
    assert stage.counts(4) == (4, 4)


def test_a_page_of_a_split_leaf_that_is_still_exclusive_is_written_in_place(stage):
    stage.touch(0, write=True)
    stage.run(syscalls.munmap, stage.kernel, A, 3, 4)
    stage.slots[PteSlot(0, 1)] = evolve(stage.pte(1), write=False)
    stage.slots[Tlb(0)] = ()
    assert stage.touch(1, write=True) == 0
    assert stage.pte(1).pfn == 5
    assert not stage.said(PageCopied)


def test_a_store_waits_for_the_page_lock_without_the_page_table_lock_and_looks_again(stage):
    stage.touch(0, write=True)
    stage.fork(B)
    stage.run(syscalls.exit, stage.kernel, B)
    stage.run(stage.kernel.folio_lock, Folio(4))
    writer = stage.start("writer", syscalls.touch, stage.kernel, A, 1, True)
    writer.until(WaitBegan)
    assert not stage.slots[A.ptl]
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 4, cpu=1)
    stage.run(stage.kernel.folio_unlock, Folio(4))
    assert writer.finish() == 0
    assert stage.said(FolioFreed) == [FolioFreed(4, 2)]
    assert stage.said(FolioAllocated)[-1].order == 2
    assert stage.pmd(0) == LEAF


def test_a_store_to_a_guarded_leaf_waits_unless_it_was_let_through_before_the_wait(stage):
    stage.touch(0, write=True)
    stage.run(syscalls.uffd_register, stage.kernel, A, 0, 8, VmFlags.UFFD_WP)
    stage.run(syscalls.uffd_writeprotect, stage.kernel, A, 0, 4, True)
    assert stage.pmd(0).uffd_wp
    waiting = stage.start("waiting", syscalls.touch, stage.kernel, A, 1, True)
    waiting.block()
    late = stage.start("late", syscalls.touch, stage.kernel, A, 2, True, cpu=1)
    late.until(FaultBegan)
    late.until(PmdRead)
    stage.run(syscalls.uffd_writeprotect, stage.kernel, A, 0, 4, False)
    assert (waiting.finish(), late.finish()) == (0, 0)
    assert [event.addr for event in stage.said(UserfaultRaised)] == [1, 2]
    assert stage.pmd(0) == LEAF


def test_nothing_of_a_large_folio_stays_in_a_batch(stage):
    stage.touch(0, write=True)
    assert stage.slots[LruBatch(0)] == ()
    assert stage.said(PmdChanged)[-1].pages == 4
