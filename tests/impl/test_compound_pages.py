"""migrate_vma_pages and _finalize with large folios: destinations that are large, small or missing, and holes."""

from __future__ import annotations

from typing import Any

import pytest

from migrate_vma_impl.generations import WAITING, with_compound
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.huge_memory import split_huge_pmd
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.events import FolioMoved, FolioSplit, PageTableFreed, SplitCallback
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    PteKind,
    Select,
    VmFlags,
    migrate_pfn,
)
from tests.impl.compound_stage import COMPOUND_STEPS, HUGE, NR, CompoundStage
from tests.impl.stage import A, B, Player, Stopped
from tests.impl.test_mm_generations import recording

HEAD = 4
LARGE = MIGRATE_PFN_COMPOUND
HOLE = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND


class Migration:
    """A migration of [start, end) to the device, call by call, with the destinations that a test wants."""

    def __init__(self, stage: CompoundStage, start: int = 0, end: int = NR, flags: Select = Select.COMPOUND) -> None:
        self.stage, self.kernel = stage, stage.kernel
        size = end - start
        vma = find_vma(stage.slots[A].vmas, start)
        self.args = MigrateVma(vma, start, end, [0] * size, [0] * size, "dev0", Select.SYSTEM | Select.DEVICE_PRIVATE | flags)
        stage.run(self.kernel.migrate_vma_setup, self.args)

    def give(self, i: int, order: int = 0) -> Folio:
        folio: Folio = self.stage.run(self.stage.driver.state.free.pop, order)
        self.stage.run(self.kernel.zone_device_page_init, folio, None, order)
        assert self.args.dst is not None
        self.args.dst[i] = migrate_pfn(folio.pfn) | (LARGE if order else 0)
        return folio

    def pages(self) -> list[int] | None:
        self.stage.run(self.kernel.migrate_vma_pages, self.args)
        return self.args.src

    def finish(self) -> CompoundStage:
        self.stage.run(self.kernel.migrate_vma_finalize, self.args)
        assert self.stage.nothing_is_held()
        return self.stage


def kinds(stage: CompoundStage, start: int = 0, end: int = NR) -> list[PteKind]:
    return [stage.pte(addr).kind for addr in range(start, end)]


def pfns(stage: CompoundStage, start: int = 0, end: int = NR) -> list[int | None]:
    return [stage.pte(addr).pfn for addr in range(start, end)]


# ---- sources that are pages ------------------------------------------------------------------------------------------


def test_a_large_folio_goes_whole_to_a_large_one():
    migration = Migration(CompoundStage())
    migration.give(0, 2)
    assert migration.pages() == [migrate_pfn(HEAD) | HOLE | MIGRATE_PFN_WRITE, 0, 0, 0]
    stage = migration.finish()
    assert (stage.pmd().kind, stage.pmd().pfn) == (PteKind.DEVICE_PRIVATE, 100)
    assert stage.counts(100) == (1, 1, False)
    assert stage.counts(HEAD) == (0, 0, False)
    assert stage.device_pages() == NR


def test_a_large_folio_that_gets_nothing_is_restored_whole():
    migration = Migration(CompoundStage())
    assert migration.pages() == [migrate_pfn(HEAD) | LARGE | MIGRATE_PFN_WRITE, 0, 0, 0]
    assert migration.finish().pmd().pfn == HEAD


def test_a_large_folio_that_gets_small_pages_is_split_and_its_entries_follow_with_the_same_flags():
    migration = Migration(CompoundStage())
    for i in range(NR):
        migration.give(i)
    small = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE
    assert migration.pages() == [migrate_pfn(HEAD + i) | small for i in range(NR)]
    stage = migration.finish()
    assert pfns(stage) == [100, 101, 102, 103]
    assert kinds(stage) == [PteKind.DEVICE_PRIVATE] * NR
    assert stage.tables() == 1


def test_pages_of_a_split_folio_for_which_there_is_no_destination_stay():
    migration = Migration(CompoundStage())
    migration.give(0)
    migration.give(2)
    migration.pages()
    stage = migration.finish()
    assert pfns(stage) == [100, HEAD + 1, 101, HEAD + 3]
    assert [stage.folio(HEAD + i).order for i in range(NR)] == [0] * NR


def test_a_folio_that_somebody_refers_to_is_not_split_and_mapped_by_a_page_table_again():
    migration = Migration(CompoundStage())
    for i in range(NR):
        migration.give(i)
    migration.stage.run(migration.kernel.folio_get, Folio(HEAD))
    assert migration.pages() == [migrate_pfn(HEAD) | MIGRATE_PFN_WRITE, 0, 0, 0]
    migration.stage.run(migration.kernel.migrate_vma_finalize, migration.args)
    stage = migration.stage
    stage.run(stage.kernel.lru_add_drain)
    assert pfns(stage) == [HEAD + i for i in range(NR)]
    assert stage.counts(HEAD) == (NR + 1, NR, False)
    assert stage.device_pages() == 0


def test_the_leaves_of_a_forked_address_space_are_split_too():
    stage = CompoundStage()
    stage.run(syscalls.fork, stage.kernel, A, B)
    migration = Migration(stage)
    for i in range(NR):
        migration.give(i)
    migration.pages()
    migration.finish()
    for mm in (A, B):
        assert [stage.pte(addr, mm).pfn for addr in range(NR)] == [100, 101, 102, 103]
    assert stage.counts(100) == (2, 2, False)


def test_a_child_that_has_moved_on_keeps_its_own_pages_when_the_parents_are_split():
    stage = CompoundStage()
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.touch(1, write=True, mm=B)
    migration = Migration(stage)
    for i in range(NR):
        migration.give(i)
    migration.pages()
    migration.finish()
    assert [stage.pte(addr).pfn for addr in range(NR)] == [100, 101, 102, 103]
    assert stage.pte(1, B).kind is PteKind.PRESENT
    assert stage.pte(2, B).pfn == 102


def test_a_large_destination_for_a_small_page_is_refused_and_freed():
    stage = CompoundStage(flags=VmFlags.READ | VmFlags.WRITE)
    migration = Migration(stage)
    assert migration.args.src is not None
    migration.give(0, 2)
    page = migration.args.src[0]
    src = migration.pages()
    assert src is not None
    assert src[0] == page & ~MIGRATE_PFN_MIGRATE
    migration.finish()
    assert stage.device_pages() == 0
    assert stage.pte(0).kind is PteKind.PRESENT
    assert stage.said(FolioMoved) == []


def test_a_page_given_as_compound_that_is_not_large_stops_the_machine():
    migration = Migration(CompoundStage())
    folio = migration.give(0)
    migration.args.dst = [migrate_pfn(folio.pfn) | LARGE, 0, 0, 0]
    with pytest.raises(Stopped, match="order 2 is migrated to one of order 0"):
        migration.pages()


def test_by_frame_number_a_large_folio_is_not_split_for_small_pages():
    stage = CompoundStage()
    stage.to_huge_device()
    src, dst = [0] * NR, [0] * NR
    stage.run(stage.kernel.migrate_device_range, src, 100, NR)
    assert src == [migrate_pfn(100) | HOLE, 0, 0, 0]
    page = stage.run(stage.kernel.alloc_page, "a page")
    stage.run(stage.kernel.folio_lock, page)
    dst[0] = migrate_pfn(page.pfn)
    stage.run(stage.kernel.migrate_device_pages, src, dst, NR)
    assert src == [migrate_pfn(100), 0, 0, 0]
    stage.run(stage.kernel.migrate_device_finalize, src, dst, NR)
    assert stage.pmd().pfn == 100
    assert stage.nothing_is_held()


# ---- the driver hears of splits --------------------------------------------------------------------------------------


def test_a_driver_is_told_of_each_part_of_a_split_device_folio():
    stage = CompoundStage()
    stage.to_huge_device()
    stage.answers["folio_alloc in migrate_to_ram"] = [1]
    assert stage.touch(3, write=False) == 0
    assert stage.said(SplitCallback) == [SplitCallback(100, tail) for tail in (101, 102, 103, None)]
    assert stage.device_pages() == 0


# ---- holes -----------------------------------------------------------------------------------------------------------


def empty(**more: Any) -> CompoundStage:
    return CompoundStage(written=False, **more)


def test_a_large_hole_gets_a_leaf():
    migration = Migration(empty())
    migration.give(0, 2)
    assert migration.pages() == [HOLE, 0, 0, 0]
    stage = migration.finish()
    assert (stage.pmd().kind, stage.pmd().pfn, stage.pmd().write) == (PteKind.DEVICE_PRIVATE, 100, True)
    assert (stage.tables(), stage.folio(100).charged) == (1, True)


def test_a_large_hole_with_small_destinations_is_filled_page_by_page_where_there_are_any():
    migration = Migration(empty())
    migration.give(0)
    migration.give(3)
    assert migration.pages() == [MIGRATE_PFN_MIGRATE, 0, 0, MIGRATE_PFN_MIGRATE]
    stage = migration.finish()
    assert kinds(stage) == [PteKind.DEVICE_PRIVATE, PteKind.NONE, PteKind.NONE, PteKind.DEVICE_PRIVATE]
    assert stage.pmd().kind is PteKind.TABLE


def test_the_huge_zero_page_gives_way_to_a_leaf_and_keeps_its_page_table():
    stage = empty()
    stage.touch(1, write=False)
    migration = Migration(stage)
    migration.give(0, 2)
    migration.pages()
    migration.finish()
    assert (stage.pmd().pfn, stage.tables()) == (100, 1)
    assert stage.touch(1, write=False) == 0


def test_the_huge_zero_page_is_split_for_small_destinations():
    stage = empty()
    stage.touch(1, write=False)
    migration = Migration(stage)
    migration.give(0)
    migration.pages()
    migration.finish()
    assert kinds(stage) == [PteKind.DEVICE_PRIVATE, PteKind.ZERO, PteKind.ZERO, PteKind.ZERO]


@pytest.mark.parametrize("how", ["a page table", "a leaf"])
def test_a_large_hole_that_is_filled_meanwhile_frees_the_folio_and_its_page_table(how):
    stage = empty()
    migration = Migration(stage)
    migration.give(0, 2)
    if how == "a page table":
        stage.answers["a large folio for a fault"] = [1]
    stage.touch(2, write=True)
    assert migration.pages() == [LARGE, 0, 0, 0]
    migration.finish()
    assert stage.said(PageTableFreed) != []
    assert (stage.device_pages(), stage.tables()) == (0, 1)


def test_userfaultfd_keeps_a_large_hole_empty():
    stage = empty(flags=HUGE | VmFlags.UFFD_MISSING)
    migration = Migration(stage)
    migration.give(0, 2)
    assert migration.pages() == [LARGE, 0, 0, 0]
    migration.finish()
    assert (stage.pmd().kind, stage.tables(), stage.device_pages()) == (PteKind.NONE, 0, 0)


def test_a_large_destination_for_a_small_hole_is_refused():
    migration = Migration(empty(), 0, 2)
    migration.give(0, 2)
    assert migration.pages() == [0, 0]
    stage = migration.finish()
    assert (stage.pmd().kind, stage.device_pages()) == (PteKind.NONE, 0)


# ---- races -----------------------------------------------------------------------------------------------------------


def between_setup_and_pages(stage: CompoundStage) -> Player:
    return stage.start("migrator", stage.driver.to_device, A, 0, NR)


def test_what_is_zapped_during_the_migration_is_freed_at_its_end():
    stage = CompoundStage()
    migrator = between_setup_and_pages(stage)
    migrator.until(FolioMoved)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, NR)
    migrator.finish()
    assert stage.pmd().kind in (PteKind.NONE, PteKind.TABLE)
    assert stage.device_pages() == 0
    assert stage.nothing_is_held()


def test_what_is_zapped_in_part_during_the_migration_keeps_the_rest():
    stage = CompoundStage()
    migrator = between_setup_and_pages(stage)
    migrator.until(FolioMoved)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
    migrator.finish()
    assert pfns(stage) == [100, None, 102, 103]
    assert stage.counts(100) == (3, 3, False)


def test_a_folio_split_while_its_migration_declines_it_moves_no_page_that_was_zapped():
    stage = CompoundStage()
    stage.run(stage.driver.state.free.pop, 2)
    stage.run(stage.driver.state.free.pop)
    migrator = between_setup_and_pages(stage)
    migrator.until(FolioSplit)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 3)
    migrator.finish()
    assert pfns(stage) == [105, None, None, HEAD + 3]
    assert stage.nothing_is_held()


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_the_kernel_takes_every_step_of_large_folios_that_can_be_replaced():
    used: set[str] = set()
    generation = with_compound(WAITING.with_steps(**recording(used)))
    stage = CompoundStage(generation)
    old = CompoundStage(WAITING.with_steps(**recording(used)))
    old.run(old.kernel.folio_trylock, Folio(HEAD))
    Migration(old)
    declined = Migration(stage)
    declined.give(0)
    declined.pages()
    declined.finish()
    Migration(CompoundStage(generation), flags=Select(0))
    zero = CompoundStage(generation, written=False)
    zero.touch(1, write=False)
    over = Migration(zero)
    over.give(0, 2)
    over.pages()
    late = Migration(CompoundStage(generation, written=False))
    late.give(0, 2)
    late.stage.touch(0, write=True)
    late.pages()
    small = Migration(CompoundStage(generation, written=False), 0, 2)
    small.give(0, 2)
    small.pages()
    split = CompoundStage(generation)
    split.to_huge_device()
    split.run(split_huge_pmd, split.kernel, find_vma(split.slots[A].vmas, 0), 0)
    split.touch(1, write=False)
    assert COMPOUND_STEPS - used == set()
