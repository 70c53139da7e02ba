"""Leaves that are split into page tables, and folios that are split into pages: bits, references, locks, and what is put back."""

import pytest
from attrs import evolve

from migrate_vma_impl.mm import huge_memory, syscalls
from migrate_vma_impl.mm.mm_types import Folio, FolioState, PmdSlot, PteSlot, Vma
from migrate_vma_impl.mm.rmap_migrate import try_to_migrate
from migrate_vma_spec.events import (
    ExclusiveShared,
    FolioDirtied,
    FolioFreed,
    FolioGot,
    FolioSplit,
    FolioUnlocked,
    InvalidateBegan,
    LockDropped,
    LockTaken,
    MemcgUncharged,
    PmdSplit,
    RmapAdded,
    RmapRemoved,
    TlbFlushed,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, Lru, NotifyReason, Pte, PteKind
from tests.impl.huge_stage import HUGE, HugeStage, split
from tests.impl.stage import A, B

TABLE = Pte(PteKind.TABLE)
WHOLE = Vma(A, 0, 8, HUGE, 0)


@pytest.fixture
def stage():
    stage = HugeStage()
    stage.touch(0, write=True)
    return stage


def split_leaf(stage, freeze=False):
    stage.run(huge_memory.split_huge_pmd, stage.kernel, WHOLE, 2, freeze)


# ---- a leaf ----------------------------------------------------------------------------------------------------------


def test_the_page_table_maps_what_the_leaf_mapped_and_one_reference_becomes_four(stage):
    before = stage.pmd(0)
    split_leaf(stage)
    assert stage.pmd(0) == TABLE
    assert [stage.pte(addr) for addr in range(4)] == [evolve(before, pfn=4 + addr) for addr in range(4)]
    assert (stage.counts(4), stage.exclusive(4)) == ((4, 4), [True] * 4)
    assert (stage.folio(4).dirty, stage.tables()) == (True, 1)


def test_what_a_split_says_is_the_leaf_then_the_counts_then_the_flush(stage):
    since = len(stage.trace)
    split_leaf(stage)
    kinds = (PmdSplit, FolioDirtied, FolioGot, RmapAdded, RmapRemoved, TlbFlushed, LockDropped)
    said = [event for event in stage.trace[since:] if isinstance(event, kinds)]
    counts = [FolioGot, *[RmapAdded] * 4, RmapRemoved]
    assert [type(event) for event in said] == [PmdSplit, FolioDirtied, *counts, TlbFlushed, LockDropped]
    assert said[2] == FolioGot(4, 4)
    assert said[6] == RmapAdded(7, 0, 3, 5, exclusive=True)
    assert said[7] == RmapRemoved(4, 0, 0, 4, pages=4)
    assert InvalidateBegan(0, 0, 4, NotifyReason.CLEAR, None) in stage.trace[since:]


def test_every_bit_of_a_leaf_is_in_its_entries(stage):
    bits = Pte(PteKind.PRESENT, 4, young=True, soft_dirty=True, uffd_wp=True)
    stage.slots[PmdSlot(0, 0)] = bits
    split_leaf(stage)
    assert [stage.pte(addr) for addr in range(4)] == [evolve(bits, pfn=4 + addr) for addr in range(4)]
    assert not stage.folio(4).dirty


def test_a_leaf_that_is_none_any_more_is_not_split_again(stage):
    split_leaf(stage)
    since = len(stage.trace)
    split_leaf(stage)
    assert not stage.said(PmdSplit, since)


def test_a_frozen_leaf_becomes_migration_entries_and_loses_its_reference(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    split_leaf(stage, freeze=True)
    bits = {"write": True, "young": True, "dirty": True, "soft_dirty": True}
    assert [stage.pte(addr) for addr in range(4)] == [Pte(PteKind.MIGRATION, 4 + addr, **bits) for addr in range(4)]
    assert (stage.counts(4), stage.exclusive(4)) == ((1, 0), [False] * 4)
    assert ExclusiveShared(4, done=True) in stage.trace


def test_a_pinned_leaf_is_not_frozen_but_mapped_page_by_page(stage):
    stage.run(syscalls.pin, stage.kernel, A, 1)
    split_leaf(stage, freeze=True)
    assert {stage.pte(addr).kind for addr in range(4)} == {PteKind.PRESENT}
    assert (stage.counts(4), stage.exclusive(4)) == ((5, 4), [True] * 4)
    assert ExclusiveShared(4, done=False) in stage.trace


@pytest.mark.parametrize("kept", [{"write": True}, {"exclusive": True}, {}])
def test_a_migration_entry_is_split_into_migration_entries_and_nothing_else_changes(stage, kept):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    assert stage.pmd(0).kind is PteKind.MIGRATION
    leaf = stage.slots[PmdSlot(0, 0)] = Pte(PteKind.MIGRATION, 4, young=True, dirty=True, soft_dirty=True, **kept)
    before, since = stage.folio(4), len(stage.trace)
    split_leaf(stage)
    assert [stage.pte(addr) for addr in range(4)] == [evolve(leaf, pfn=4 + addr) for addr in range(4)]
    assert stage.folio(4) == before
    assert not stage.said(TlbFlushed, since)


def test_a_frozen_migration_entry_costs_a_reference_of_the_caller(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    stage.run(stage.kernel.folio_get, Folio(4))
    split_leaf(stage, freeze=True)
    assert stage.counts(4) == (1, 0)


# ---- the reverse map -------------------------------------------------------------------------------------------------


def test_a_leaf_is_replaced_by_one_migration_entry_in_every_address_space(stage):
    stage.fork(B)
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    assert {stage.pmd(0, mm).kind for mm in (A, B)} == {PteKind.MIGRATION}
    assert (stage.counts(4), stage.folio(4).dirty) == ((1, 0), True)
    assert stage.tables(A) == stage.tables(B) == 1


def test_a_folio_that_is_mapped_by_leaf_here_and_by_page_there_is_unmapped_in_both(stage):
    stage.fork(B)
    stage.run(syscalls.munmap, stage.kernel, A, 3, 4)
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    assert [stage.pte(addr).kind for addr in range(4)] == [*[PteKind.MIGRATION] * 3, PteKind.NONE]
    assert stage.pmd(0, B).kind is PteKind.MIGRATION
    assert stage.counts(4) == (1, 0)


def test_a_pinned_leaf_stays_as_it_is(stage):
    stage.run(syscalls.pin, stage.kernel, A, 1)
    before = stage.pmd(0)
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    assert stage.pmd(0) == before
    assert stage.counts(4) == (2, 1)


def test_a_fault_on_a_migration_leaf_sleeps_without_a_reference_until_the_folio_is_unlocked(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    toucher = stage.start("toucher", syscalls.touch, stage.kernel, A, 2, True)
    toucher.until(WaitBegan)
    toucher.block()
    assert stage.counts(4) == (1, 0)
    stage.run(huge_memory.remove_migration_pmd, stage.kernel, Folio(4), Folio(4), WHOLE, 0)
    stage.run(stage.kernel.folio_unlock, Folio(4))
    assert toucher.finish() == 0


@pytest.mark.parametrize(("old", "exclusive"), [({"write": True}, True), ({"exclusive": True}, True), ({}, False)])
def test_the_way_back_from_a_migration_leaf_never_gains_write_and_restores_exclusivity(stage, old, exclusive):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    stage.slots[PmdSlot(0, 0)] = Pte(PteKind.MIGRATION, 4, dirty=True, soft_dirty=True, **old)
    assert stage.run(huge_memory.remove_migration_pmd, stage.kernel, Folio(4), Folio(4), WHOLE, 0)
    leaf = stage.pmd(0)
    assert leaf == Pte(PteKind.PRESENT, 4, write="write" in old, dirty=True, soft_dirty=True)
    assert (stage.folio(4).exclusive, stage.counts(4)) == (exclusive, (2, 1))


# ---- a folio ---------------------------------------------------------------------------------------------------------


def test_a_folio_becomes_four_that_are_mapped_as_before(stage):
    before = stage.pmd(0)
    assert stage.run(split, stage.kernel, Folio(4))
    assert [stage.pte(addr) for addr in range(4)] == [evolve(before, pfn=4 + addr) for addr in range(4)]
    for i in range(4):
        page = stage.folio(4 + i)
        assert (page.refcount, page.mapcount, page.order, page.head, page.index) == (1, 1, 0, None, i)
        assert (page.locked, page.charged, page.uptodate, page.lru, page.exclusive) == (False, True, True, Lru.ON, True)
    assert stage.said(FolioSplit) == [FolioSplit(4, 2, 0, (1,) * 4, (0,) * 4)]


@pytest.mark.parametrize("page", range(4, 8))
def test_the_page_asked_for_stays_locked_and_referenced_and_no_other(stage, page):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    assert stage.run(huge_memory.split_huge_page, stage.kernel, Folio(page))
    assert [pfn for pfn in range(4, 8) if stage.folio(pfn).locked] == [page]
    assert [pfn for pfn in range(4, 8) if stage.counts(pfn) == (2, 1)] == [page]


def test_the_reverse_map_is_locked_for_writing_until_the_last_new_folio_is_let_go(stage):
    since = len(stage.trace)
    stage.run(split, stage.kernel, Folio(4))
    said = stage.trace[since:]
    unlocked = [i for i, event in enumerate(said) if isinstance(event, FolioUnlocked)]
    held = (said.index(LockTaken("anon_vma:0", LockMode.WRITE)), said.index(LockDropped("anon_vma:0", LockMode.WRITE)))
    assert held[0] < unlocked[0] < unlocked[2] < held[1] < unlocked[3]


def test_pages_that_nobody_maps_any_more_are_freed_by_the_split(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 1, 3)
    assert stage.run(split, stage.kernel, Folio(4))
    assert stage.said(FolioFreed) == [FolioFreed(5), FolioFreed(6)]
    assert [event.pfn for event in stage.said(MemcgUncharged)] == [5, 6]
    assert stage.folio(5) == FolioState(5)
    assert stage.counts(7) == (1, 1)


def test_a_folio_that_somebody_refers_to_is_not_even_unmapped(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    before, leaf = stage.folio(4), stage.pmd(0)
    assert not stage.run(split, stage.kernel, Folio(5))
    assert (stage.folio(4), stage.pmd(0)) == (before, leaf)


def test_a_reference_that_comes_after_the_first_look_fails_the_split_and_everything_is_mapped_again(stage):
    before = stage.pmd(0)
    splitter = stage.start("splitter", split, stage.kernel, Folio(4))
    splitter.until(PmdSplit)
    stage.run(stage.kernel.folio_try_get, Folio(4), cpu=1)
    assert splitter.finish() is False
    assert [stage.pte(addr) for addr in range(4)] == [evolve(before, pfn=4 + addr) for addr in range(4)]
    page = stage.folio(4)
    assert (page.refcount, page.mapcount, page.order, page.locked) == (5, 4, 2, False)
    assert stage.exclusive(4) == [True] * 4
    assert not stage.said(FolioSplit)


def test_a_pin_that_comes_after_the_first_look_keeps_the_folio_whole_and_exclusive(stage):
    splitter = stage.start("splitter", split, stage.kernel, Folio(4))
    splitter.until(LockTaken, lock="anon_vma:0")
    splitter.step()
    page = stage.run(syscalls.pin, stage.kernel, A, 1, cpu=1)
    assert splitter.finish() is False
    assert {stage.pte(addr).kind for addr in range(4)} == {PteKind.PRESENT}
    assert (stage.counts(4), stage.folio(4).order) == ((5, 4), 2)
    stage.run(syscalls.unpin, stage.kernel, page)
    assert stage.run(split, stage.kernel, Folio(4))


def test_a_page_zapped_during_the_split_is_freed_and_not_mapped_again(stage):
    splitter = stage.start("splitter", split, stage.kernel, Folio(4))
    splitter.until(FolioSplit)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 2, 3, cpu=1)
    assert splitter.finish() is True
    assert stage.pte(2) == PTE_NONE
    assert stage.said(FolioFreed) == [FolioFreed(6)]


def test_a_folio_of_two_address_spaces_is_mapped_again_in_both(stage):
    stage.fork(B)
    assert stage.run(split, stage.kernel, Folio(4))
    assert [stage.counts(pfn) for pfn in range(4, 8)] == [(2, 2)] * 4
    assert [stage.pte(addr, B).pfn for addr in range(4)] == [4, 5, 6, 7]


def test_a_single_page_and_a_folio_that_never_was_mapped_are_not_split(stage):
    fresh = stage.run(stage.kernel.folio_alloc, "a folio", 2)
    stage.run(stage.kernel.folio_lock, fresh)
    assert not stage.run(huge_memory.split_huge_page, stage.kernel, fresh)
    stage.run(split, stage.kernel, Folio(4))
    assert not stage.run(split, stage.kernel, Folio(4))


def test_an_unmapped_folio_is_split_into_locked_pages_with_one_reference_each(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    assert stage.run(huge_memory.folio_split_unmapped, stage.kernel, Folio(4))
    assert [(stage.counts(pfn), stage.folio(pfn).locked) for pfn in range(4, 8)] == [((1, 0), True)] * 4


def test_an_unmapped_folio_that_is_held_twice_is_not_split(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    before = stage.folio(4)
    assert not stage.run(huge_memory.folio_split_unmapped, stage.kernel, Folio(4))
    assert stage.folio(4) == before


def test_a_fault_on_an_entry_of_a_folio_being_split_waits_for_its_lock(stage):
    splitter = stage.start("splitter", split, stage.kernel, Folio(4))
    splitter.until(FolioSplit)
    assert stage.slots[PteSlot(0, 0)].kind is PteKind.MIGRATION
    toucher = stage.start("toucher", syscalls.touch, stage.kernel, A, 3, True, cpu=1)
    toucher.until(WaitBegan, pfn=7)
    toucher.block()
    splitter.finish()
    assert toucher.finish() == 0
