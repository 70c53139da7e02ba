"""What fork, munmap, MADV_DONTNEED and exit do about leaves of the middle level."""

import pytest
from attrs import evolve

from migrate_vma_impl.mm import huge_memory, syscalls
from migrate_vma_impl.mm.mm_types import Folio, PmdSlot, Tlb, Vma
from migrate_vma_impl.mm.rmap_migrate import try_to_migrate
from migrate_vma_spec.events import (
    ExclusiveShared,
    FolioFreed,
    FolioPut,
    LruDrained,
    MemcgUncharged,
    PageCopied,
    PageTableFreed,
    PmdChanged,
    PmdSplit,
    RmapAdded,
    RmapRemoved,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFlags
from tests.impl.huge_stage import HUGE, RW, HugeStage
from tests.impl.stage import A, B

TABLE = Pte(PteKind.TABLE)


@pytest.fixture
def stage():
    stage = HugeStage()
    stage.touch(0, write=True)
    return stage


def migrating(stage):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))


# ---- fork ------------------------------------------------------------------------------------------------------------


def test_fork_copies_a_leaf_read_only_to_both_and_maps_the_folio_twice(stage):
    before = stage.pmd(0)
    assert stage.fork(B) == 0
    assert stage.pmd(0) == evolve(before, write=False)
    assert stage.pmd(0, B) == evolve(before, write=False, young=False)
    assert (stage.counts(4), stage.folio(4).exclusive, stage.tables(B)) == ((2, 2), False, 1)
    assert stage.said(RmapAdded)[-1] == RmapAdded(4, 1, 0, 2, exclusive=False, pages=4)


def test_fork_shares_the_huge_zero_page(stage):
    stage.touch(4, write=False)
    stage.fork(B)
    assert stage.pmd(4, B) == Pte(PteKind.ZERO)
    assert stage.tables(B) == 2


def test_the_child_of_a_fork_that_userfaultfd_does_not_follow_loses_its_bit(stage):
    stage.slots[PmdSlot(0, 0)] = evolve(stage.pmd(0), uffd_wp=True)
    stage.fork(B)
    assert (stage.pmd(0).uffd_wp, stage.pmd(0, B).uffd_wp) == (True, False)


def test_a_pinned_leaf_is_split_and_its_pages_are_copied_for_the_child(stage):
    stage.run(syscalls.pin, stage.kernel, A, 1)
    stage.slots[Tlb(0)] = ()
    assert stage.fork(B) == 0
    assert (stage.pmd(0), stage.pmd(0, B), stage.tables(B)) == (TABLE, TABLE, 1)
    assert ExclusiveShared(4, done=False) in stage.trace
    assert [event.src for event in stage.said(PageCopied)] == [4, 5, 6, 7]
    assert stage.exclusive(4) == [True] * 4


@pytest.mark.parametrize("kept", [{"write": True}, {"exclusive": True}, {}])
def test_a_migration_leaf_is_copied_readable_without_reference_or_mapping(stage, kept):
    migrating(stage)
    bits = {"young": True, "dirty": True, "soft_dirty": True}
    stage.slots[PmdSlot(0, 0)] = Pte(PteKind.MIGRATION, 4, **kept, **bits)
    before = stage.folio(4)
    stage.fork(B)
    assert stage.pmd(0) == stage.pmd(0, B) == Pte(PteKind.MIGRATION, 4, **bits)
    assert stage.folio(4) == before


def test_fork_copies_page_tables_behind_leaves_and_leaves_behind_page_tables(stage):
    stage.touch(4, write=True)
    stage.run(syscalls.munmap, stage.kernel, A, 1, 2)
    stage.fork(B)
    assert (stage.pmd(0, B), stage.pmd(4, B).pfn) == (TABLE, 8)
    assert [stage.pte(addr, B).pfn for addr in range(4)] == [4, None, 6, 7]
    assert (stage.counts(4), stage.counts(8)) == ((6, 6), (2, 2))


def test_a_shared_page_under_a_page_table_gives_up_its_own_exclusivity_alone(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 1, 4)
    stage.fork(B)
    assert stage.exclusive(4) == [False, True, True, True]


# ---- zap -------------------------------------------------------------------------------------------------------------


def test_a_whole_leaf_goes_at_once_and_its_folio_is_freed_after_the_flush(stage):
    since = len(stage.trace)
    assert stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 4) == 0
    kinds = (PmdChanged, RmapRemoved, PageTableFreed, TlbFlushed, LruDrained, FolioPut, MemcgUncharged, FolioFreed)
    said = [event for event in stage.trace[since:] if isinstance(event, kinds)]
    assert [type(event) for event in said] == list(kinds)
    assert said[1] == RmapRemoved(4, 0, 0, 0, pages=4)
    assert said[-1] == FolioFreed(4, 2)
    assert (stage.pmd(0), stage.tables()) == (PTE_NONE, 0)


def test_a_part_of_a_leaf_splits_it_first(stage):
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 2, 6)
    assert stage.pmd(0) == TABLE
    assert [stage.pte(addr).pfn for addr in range(4)] == [4, 5, None, None]
    assert (stage.counts(4), stage.folio(6).head) == ((2, 2), 4)
    assert len(stage.said(PmdSplit)) == 1


def test_the_last_page_of_a_large_folio_frees_it_whole(stage):
    for addr in range(4):
        stage.run(syscalls.madvise_dontneed, stage.kernel, A, addr, addr + 1)
    assert stage.said(FolioFreed) == [FolioFreed(4, 2)]
    assert [stage.folio(pfn).head for pfn in range(4, 8)] == [None] * 4


def test_the_huge_zero_page_takes_no_reference_with_it(stage):
    stage.touch(4, write=False)
    since = len(stage.trace)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 4, 8)
    assert (stage.pmd(4), stage.tables()) == (PTE_NONE, 1)
    assert not stage.said(FolioPut, since)
    assert TlbFlushed(0, 4, 8) in stage.trace[since:]


def test_a_migration_leaf_is_just_removed_with_its_page_table(stage):
    migrating(stage)
    before, since = stage.folio(4), len(stage.trace)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 4)
    assert (stage.pmd(0), stage.tables(), stage.folio(4)) == (PTE_NONE, 0, before)
    assert not stage.said(TlbFlushed, since)
    whole = Vma(A, 0, 8, HUGE, 0)
    assert not stage.run(huge_memory.remove_migration_pmd, stage.kernel, Folio(4), Folio(4), whole, 0)


def test_page_tables_go_with_the_last_mapping_above_them(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 1, 4)
    assert stage.pmd(0) == TABLE
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    assert (stage.pmd(0), stage.tables()) == (PTE_NONE, 0)


@pytest.mark.parametrize("flags", [RW, HUGE])
def test_exit_leaves_nothing_behind_and_states_recur(flags):
    stage = HugeStage(flags=flags)
    start = {key: value for key, value in stage.slots.items() if key != A}
    for addr in (1, 6):
        stage.touch(addr, write=True)
    stage.fork(B)
    stage.touch(2, write=True, mm=B)
    stage.run(syscalls.exit, stage.kernel, B)
    stage.run(syscalls.munmap, stage.kernel, A, 0, 8)
    stage.run(syscalls.mmap, stage.kernel, A, 0, 8, flags)
    for key, value in start.items():
        if not isinstance(key, Tlb) and key != B:
            assert stage.slots[key] == value, key


def test_memory_with_leaves_can_be_split_into_two_mappings(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 4, 8)
    assert stage.run(syscalls.mmap, stage.kernel, A, 2, 4, VmFlags.READ) == 0
    assert [stage.pte(addr).pfn for addr in range(4)] == [4, 5, None, None]
