"""What named kernels have wrong, each shown beside the mended kernel on the same steps."""

from __future__ import annotations

import pytest

from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.generations import REFERENCED
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import folio_trylock
from migrate_vma_impl.mm.mm_types import Folio, Mm, Tlb
from migrate_vma_spec.events import (
    FaultEnded,
    FolioDirtied,
    FolioSplit,
    LazyMmuLeft,
    LockDropped,
    SetupReturned,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, MIGRATE_PFN_MIGRATE, PteKind, VmFlags, migrate_pfn
from tests.impl.compound_stage import COMPOUND, NR, CompoundStage
from tests.impl.stage import A, B, Stage, Stopped
from tests.impl.test_compound_collect import page_mapped as under_a_page_table
from tests.impl.test_compound_collect import setup
from tests.impl.test_compound_faults import PageByPage, on_device, page_mapped
from tests.impl.test_compound_pages import LARGE, Migration

SHIPPED = AS_SHIPPED["v7.3"]
BOTH = pytest.mark.parametrize("generation", [AS_SHIPPED["v7.2"], SHIPPED], ids=["v7.2", "v7.3"])
HEAD = 4

# ---- v6.1, v6.12 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v6.1", "v6.12"])
def test_a_leaf_whose_lock_is_taken_keeps_a_reference_for_ever(version):
    references = []
    for generation in (REFERENCED, AS_SHIPPED[version]):
        stage = CompoundStage(generation)
        stage.run(folio_trylock, Folio(HEAD))
        setup(stage)
        references.append(stage.counts(HEAD)[0])
    assert references == [1, 2]


@pytest.mark.parametrize(("generation", "dirty"), [(REFERENCED, 0), (AS_SHIPPED["v6.1"], 1), (AS_SHIPPED["v6.12"], 0)])
def test_a_writable_device_entry_looks_dirty_in_v6_1(generation, dirty):
    stage = Stage(generation)
    stage.touch(0, write=True)
    stage.to_device()
    before = len(stage.trace)
    stage.touch(0, write=False)
    assert len(stage.said(FolioDirtied, before)) == dirty


# ---- v7.2, v7.3: collect ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("generation", "stale"), [(COMPOUND, 0), (AS_SHIPPED["v7.2"], 1), (SHIPPED, 1)])
def test_a_cleared_entry_has_a_translation_still_when_the_lock_is_dropped_for_a_split(generation, stale):
    """A small page that fork shares, so that it is not flushed at once, and behind it a large folio under the same page table."""
    stage = CompoundStage(generation, mms=3)
    under_a_page_table(stage)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.touch(0, write=True)
    stage.run(syscalls.fork, stage.kernel, A, Mm(2))
    stage.touch(0, write=False)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, NR)
    migrator.until(LazyMmuLeft)
    while stage.slots[A.ptl]:
        migrator.step()
    assert stage.pte(0).kind is PteKind.MIGRATION
    assert [entry.addr for entry in stage.slots[Tlb(0)]] == [0] * stale
    migrator.finish()
    assert stage.nothing_is_held()


def test_the_handed_over_lock_is_waited_for_and_somebody_may_be_faster():
    stage = page_mapped(SHIPPED)
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, 2, True)
    faulter.until(FolioSplit)
    while stage.folio(102).locked:
        faulter.step()
    stage.run(folio_trylock, Folio(102))
    faulter.block()
    assert stage.said(WaitBegan) == [WaitBegan("PG_locked", 102)]
    assert stage.folio(100).locked


def test_the_folio_of_the_first_page_is_collected_without_its_lock():
    stage = page_mapped(SHIPPED)
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, 2, True)
    faulter.until(SetupReturned)
    assert stage.pte(0).kind is PteKind.MIGRATION
    assert not stage.folio(100).locked
    with pytest.raises(Stopped, match="migration entry names a page that is not locked"):
        stage.touch(0, write=False)


def test_and_is_unlocked_though_it_was_not_locked():
    with pytest.raises(Stopped, match="folio_unlock of a folio that is not locked"):
        page_mapped(SHIPPED).touch(2, write=True)


def test_in_v7_2_a_folio_is_referenced_after_its_entry_may_be_gone():
    def race(generation):
        stage = page_mapped(generation)
        migrator = stage.start("migrator", stage.driver.to_device, A, 0, NR)
        migrator.until(LazyMmuLeft)
        migrator.until(LockDropped, lock="ptl:0")
        stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, NR)
        return migrator.finish()

    assert race(COMPOUND) == race(SHIPPED) == NR
    with pytest.raises(Stopped, match="folio_get of a free folio"):
        race(AS_SHIPPED["v7.2"])


@BOTH
def test_a_driver_that_asks_for_one_page_of_a_leaf_faults_for_ever(generation):
    stage = on_device(generation, PageByPage)
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, 1, True)
    for _ in range(3):
        assert faulter.until(SetupReturned).cpages == 0
        faulter.until(FaultEnded)
    assert stage.pmd().pfn == 100


# ---- v7.2, v7.3: pages -----------------------------------------------------------------------------------------------


def faulting_with_small_pages(generation, addr):
    stage = on_device(generation)
    stage.answers["folio_alloc in migrate_to_ram"] = [1]
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, addr, True)
    faulter.until(FaultEnded)
    return stage, faulter


@BOTH
def test_a_fault_with_small_pages_alone_brings_nothing_back_but_a_page_table(generation):
    stage, _ = faulting_with_small_pages(COMPOUND, 0)
    assert stage.device_pages() == 0
    stage, faulter = faulting_with_small_pages(generation, 0)
    assert [stage.pte(addr).pfn for addr in range(NR)] == [100, 101, 102, 103]
    assert faulter.finish() == 0


@BOTH
def test_and_the_fault_behind_it_meets_the_folio_that_is_not_locked(generation):
    _, faulter = faulting_with_small_pages(generation, 1)
    with pytest.raises(Stopped, match="folio_unlock of a folio that is not locked"):
        faulter.finish()


@BOTH
def test_a_leaf_of_a_forked_address_space_is_left_with_an_entry_for_a_page(generation):
    stage = CompoundStage(generation)
    stage.run(syscalls.fork, stage.kernel, A, B)
    migration = Migration(stage)
    for i in range(NR):
        migration.give(i)
    migration.pages()
    assert stage.pmd(mm=B).kind is PteKind.MIGRATION
    with pytest.raises(Stopped, match="names a folio that is smaller than a leaf"):
        migration.finish()


@BOTH
def test_a_large_destination_for_a_small_page_is_migrated_to_all_the_same(generation):
    migration = Migration(CompoundStage(generation, flags=VmFlags.READ | VmFlags.WRITE))
    migration.give(0, 2)
    with pytest.raises(Stopped, match="a folio of order 0 is migrated to one of order 2"):
        migration.pages()


@BOTH
def test_a_large_destination_for_a_small_hole_is_mapped_beyond_the_range(generation):
    stage = CompoundStage(generation, written=False)
    migration = Migration(stage, 0, 2)
    migration.give(0, 2)
    migration.pages()
    assert stage.pmd().kind is PteKind.DEVICE_PRIVATE


@BOTH
def test_or_cleared_past_the_end_of_the_array(generation):
    stage = CompoundStage(generation, written=False)
    migration = Migration(stage, 0, 2)
    migration.give(0, 2)
    stage.touch(3, write=True)
    with pytest.raises(Stopped, match="past the end of the array"):
        migration.pages()


@BOTH
def test_a_missing_small_destination_of_a_large_hole_is_looked_at(generation):
    migration = Migration(CompoundStage(generation, written=False))
    migration.give(0)
    with pytest.raises(Stopped, match="destination entry 1 does not have"):
        migration.pages()


# ---- v7.2, v7.3: by frame number -------------------------------------------------------------------------------------


@BOTH
def test_a_folio_that_cannot_be_locked_leaves_compound_in_its_entry(generation):
    stage = on_device(generation)
    stage.run(folio_trylock, Folio(100))
    src = [0] * NR
    stage.run(stage.kernel.migrate_device_range, src, 100, NR)
    assert src == [LARGE, 0, 0, 0]


@BOTH
def test_a_range_that_begins_inside_a_folio_skips_pages_behind_it(generation):
    stage = on_device(generation)
    stage.touch(NR, write=True)
    stage.to_huge_device(NR, 2 * NR)
    src = [0] * 6
    stage.run(stage.kernel.migrate_device_range, src, 102, 6)
    assert not any(entry & MIGRATE_PFN_MIGRATE for entry in src)
    taken = [0] * NR
    stage.run(stage.kernel.migrate_device_range, taken, 104, NR)
    assert taken[0] == migrate_pfn(104) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
