"""mprotect, mremap and madvise on leaves of the middle level."""

import pytest
from attrs import evolve

from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio, PmdSlot, Tlb
from migrate_vma_impl.mm.rmap_migrate import try_to_migrate
from migrate_vma_spec.events import FolioCleaned, FolioLazyfreed, FolioSplit, PageCopied, PmdChanged, PmdSplit, TlbFlushed
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFlags
from tests.impl.huge_stage import HugeStage
from tests.impl.stage import A, B

TABLE = Pte(PteKind.TABLE)
READ, WRITE = VmFlags.READ, VmFlags.WRITE


@pytest.fixture
def stage():
    stage = HugeStage()
    stage.touch(0, write=True)
    return stage


def migrating(stage, **bits):
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    stage.slots[PmdSlot(0, 0)] = Pte(PteKind.MIGRATION, 4, **bits)


def protect(stage, prot, start=0, end=4):
    assert stage.run(syscalls.mprotect, stage.kernel, A, start, end, prot) == 0


# ---- mprotect --------------------------------------------------------------------------------------------------------


def test_a_leaf_loses_its_write_permission_as_one_and_is_flushed(stage):
    before, since = stage.pmd(0), len(stage.trace)
    protect(stage, READ)
    assert stage.pmd(0) == evolve(before, write=False)
    assert TlbFlushed(0, 0, 4) in stage.trace[since:]
    assert not stage.said(PmdSplit)
    assert stage.touch(2, write=True) == -11


def test_an_exclusive_leaf_gets_its_write_permission_back_without_a_fault(stage):
    before = stage.pmd(0)
    protect(stage, READ)
    protect(stage, READ | WRITE)
    assert stage.pmd(0) == before


def test_a_shared_leaf_stays_read_only_until_a_store(stage):
    stage.fork(B)
    protect(stage, READ)
    protect(stage, READ | WRITE)
    assert not stage.pmd(0).write


def test_a_part_of_a_leaf_is_protected_behind_a_split(stage):
    protect(stage, READ, 1, 3)
    assert [stage.pte(addr).write for addr in range(4)] == [True, False, False, True]
    assert len(stage.said(PmdSplit)) == 1


def test_a_writable_migration_leaf_becomes_readable_exclusive(stage):
    migrating(stage, write=True, young=True)
    since = len(stage.trace)
    protect(stage, READ)
    assert stage.pmd(0) == Pte(PteKind.MIGRATION, 4, exclusive=True, young=True)
    assert not stage.said(TlbFlushed, since)


# ---- mremap ----------------------------------------------------------------------------------------------------------


def move(stage, start, end, to):
    assert stage.run(syscalls.mremap, stage.kernel, A, start, end, to) == 0


def test_a_leaf_moves_whole_with_its_page_table(stage):
    before = stage.pmd(0)
    move(stage, 0, 4, 4)
    assert (stage.pmd(0), stage.pmd(4), stage.tables()) == (PTE_NONE, before, 1)
    assert TlbFlushed(0, 0, 4) in stage.trace
    assert not stage.said(PmdSplit)
    stage.slots[Tlb(0)] = ()
    assert stage.touch(6, write=True) == 0


def test_a_migration_leaf_moves_without_a_flush(stage):
    migrating(stage, write=True)
    since = len(stage.trace)
    move(stage, 0, 4, 4)
    assert stage.pmd(4) == Pte(PteKind.MIGRATION, 4, write=True, soft_dirty=True)
    changed = [event for event in stage.said(PmdChanged, since) if event.addr == 4]
    assert changed[-1].new == stage.pmd(4)


def test_a_leaf_that_moves_to_an_unaligned_place_is_split_first(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 4, 8)
    move(stage, 0, 3, 5)
    assert (len(stage.said(PmdSplit)), stage.pmd(4)) == (1, TABLE)
    assert [stage.pte(addr).pfn for addr in range(8)] == [None, None, None, 7, None, 4, 5, 6]


def test_a_moved_leaf_is_found_by_the_reverse_map(stage):
    move(stage, 0, 4, 4)
    migrating(stage)
    assert stage.folio(4).mapcount == 0


def test_a_moved_page_of_a_large_folio_is_found_at_its_new_place(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 4, 8)
    move(stage, 1, 2, 6)
    stage.run(stage.kernel.folio_get, Folio(4))
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.run(try_to_migrate, stage.kernel, Folio(4))
    assert [stage.pte(addr).kind for addr in (0, 2, 3, 6)] == [PteKind.MIGRATION] * 4
    assert stage.counts(4) == (1, 0)


# ---- madvise ---------------------------------------------------------------------------------------------------------


def free(stage, start=0, end=4):
    assert stage.run(syscalls.madvise_free, stage.kernel, A, start, end) == 0


def test_a_freed_leaf_is_clean_old_and_flushed_and_its_folio_may_be_dropped(stage):
    stage.run(stage.kernel.folio_lock, Folio(4))
    stage.slots[Folio(4)] = evolve(stage.folio(4), dirty=True, locked=False)
    before, since = stage.pmd(0), len(stage.trace)
    free(stage)
    assert stage.pmd(0) == evolve(before, young=False, dirty=False)
    assert (stage.folio(4).lazyfree, stage.folio(4).dirty, stage.folio(4).locked) == (True, False, False)
    assert [event for event in stage.trace[since:] if isinstance(event, (FolioCleaned, TlbFlushed, FolioLazyfreed))] == [
        FolioCleaned(4),
        TlbFlushed(0, 0, 4),
        FolioLazyfreed(4),
    ]


def test_a_part_of_a_leaf_is_freed_behind_a_split_of_its_folio(stage):
    free(stage, 0, 2)
    assert len(stage.said(FolioSplit)) == 1
    assert [stage.folio(pfn).lazyfree for pfn in range(4, 8)] == [True, True, False, False]
    assert [stage.folio(pfn).locked for pfn in range(4, 8)] == [False] * 4


@pytest.mark.parametrize("why", ["shared", "locked", "migrating", "zero"])
def test_what_is_not_this_mappings_alone_is_not_freed(stage, why):
    if why == "shared":
        stage.fork(B)
    elif why == "locked":
        stage.run(stage.kernel.folio_lock, Folio(4))
    elif why == "migrating":
        migrating(stage, write=True)
    else:
        stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 4)
        stage.touch(0, write=False)
    before = stage.pmd(0)
    free(stage)
    assert stage.pmd(0) == before
    assert not stage.said(FolioLazyfreed)


def test_madv_hugepage_makes_leaves_of_later_faults_and_splits_those_across_its_border(stage):
    assert stage.run(syscalls.madvise_hugepage, stage.kernel, A, 2, 8, False) == 0
    assert stage.pmd(0) == TABLE
    stage.touch(5, write=True)
    assert stage.pmd(4) == TABLE
    assert not stage.said(PageCopied)


def test_making_pages_old_leaves_leaves_alone(stage):
    before = stage.pmd(0)
    assert stage.run(syscalls.madvise_cold, stage.kernel, A, 0, 4) == 0
    assert stage.pmd(0) == before
