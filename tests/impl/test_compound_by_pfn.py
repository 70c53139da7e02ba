"""Large folios taken by frame number: eviction, folios larger than the room, ranges that begin inside one."""

from __future__ import annotations

import pytest

from migrate_vma_impl.mm.folio import folio_trylock, folio_unlock
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_spec.events import FolioLockMissed, FolioUnlocked
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, MIGRATE_PFN_MIGRATE, PteKind, migrate_pfn
from tests.impl.compound_stage import NR, CompoundStage

LARGE = migrate_pfn(100) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND


@pytest.fixture
def stage():
    stage = CompoundStage()
    stage.to_huge_device()
    return stage


def take(stage, start, npages):
    src = [7] * npages
    assert stage.run(stage.kernel.migrate_device_range, src, start, npages) == 0
    return src


def restore(stage, src):
    stage.run(stage.kernel.migrate_device_finalize, src, [0] * len(src), len(src))
    assert (stage.pmd().kind, stage.pmd().pfn) == (PteKind.DEVICE_PRIVATE, 100)
    assert stage.nothing_is_held()


def test_a_large_folio_is_one_entry_and_its_leaf_a_migration_entry(stage):
    src = take(stage, 100, 8)
    assert src == [LARGE, *[0] * 7]
    assert stage.pmd().kind is PteKind.MIGRATION
    restore(stage, src)


def test_a_folio_larger_than_the_room_is_left_and_the_call_stops_there(stage):
    stage.touch(NR, write=True)
    stage.to_huge_device(NR, 2 * NR)
    src = take(stage, 100, NR + 2)
    assert src == [LARGE, *[0] * (NR + 1)]
    assert stage.said(FolioUnlocked)[-1] == FolioUnlocked(104)
    assert stage.counts(104) == (1, 1, False)
    restore(stage, src)


def test_a_range_that_begins_inside_a_folio_takes_the_next_one(stage):
    stage.touch(NR, write=True)
    stage.to_huge_device(NR, 2 * NR)
    src = take(stage, 102, 6)
    assert src == [0, 0, migrate_pfn(104) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND, 0, 0, 0]
    restore(stage, src)


def test_a_locked_folio_is_not_taken_and_leaves_no_flag(stage):
    stage.run(folio_trylock, Folio(100))
    assert take(stage, 100, NR) == [0] * NR
    assert len(stage.said(FolioLockMissed)) == 1
    assert stage.counts(100)[:2] == (1, 1)
    stage.run(folio_unlock, Folio(100))


def test_pfns_that_name_all_pages_of_a_folio_give_one_entry(stage):
    src = [100, 101, 102, 103, 104]
    stage.run(stage.kernel.migrate_device_pfns, src, 5)
    assert src == [LARGE, 0, 0, 0, 0]
    restore(stage, src)


def test_a_whole_folio_is_evicted_to_a_large_one(stage):
    src, dst = take(stage, 100, NR), [0] * NR
    folio = stage.run(stage.kernel.folio_alloc, "a large folio", 2)
    stage.run(stage.kernel.folio_lock, folio)
    dst[0] = migrate_pfn(folio.pfn) | MIGRATE_PFN_COMPOUND
    stage.run(stage.kernel.migrate_device_pages, src, dst, NR)
    assert src[0] == LARGE
    stage.run(stage.kernel.migrate_device_finalize, src, dst, NR)
    assert (stage.pmd().kind, stage.pmd().write) == (PteKind.PRESENT, True)
    assert stage.device_pages() == 0
    assert stage.nothing_is_held()


def test_device_memory_that_is_not_aligned_cannot_be_one_folio(stage):
    with pytest.raises(Exception, match="not aligned"):
        stage.run(stage.kernel.zone_device_page_init, Folio(105), None, 1)
