"""migrate_vma_setup and large folios: what is taken whole, what is split first, and what is left."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import REFERENCED, TRYLOCKED, UNREFERENCED, WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import folio_get, folio_trylock, folio_unlock
from migrate_vma_impl.mm.huge_memory import split_huge_pmd
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.events import FolioSplit, LazyMmuEntered, LazyMmuLeft, LockDropped, LockTaken, TlbFlushed
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    PteKind,
    Select,
    VmFlags,
    migrate_pfn,
)
from tests.impl.compound_stage import HUGE, NR, CompoundStage
from tests.impl.stage import A, B

HEAD = 4
SMALL = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE
WHOLE = SMALL | MIGRATE_PFN_COMPOUND
OLD = pytest.mark.parametrize("generation", [UNREFERENCED, REFERENCED, TRYLOCKED, WAITING], ids=lambda each: each.name)


def setup(stage, start=0, end=NR, select=Select.SYSTEM | Select.COMPOUND, mm=A) -> MigrateVma:
    vma = find_vma(stage.slots[mm].vmas, start)
    args = MigrateVma(vma, start, end, [0] * (end - start), [0] * (end - start), "dev0", select)
    assert stage.run(stage.kernel.migrate_vma_setup, args) == 0
    return args


def finish(stage, args) -> None:
    """Nothing is migrated: finalize restores."""
    stage.run(stage.kernel.migrate_vma_finalize, args)
    assert stage.nothing_is_held()


def test_a_leaf_is_taken_as_one_entry():
    stage = CompoundStage()
    args = setup(stage)
    assert args.src == [migrate_pfn(HEAD) | WHOLE, 0, 0, 0]
    assert (args.cpages, args.npages, args.end) == (1, NR, NR)
    assert stage.pmd().kind is PteKind.MIGRATION
    assert stage.counts(HEAD) == (1, 0, True)
    finish(stage, args)
    assert stage.pmd().kind is PteKind.PRESENT


def test_a_read_only_leaf_has_no_write_flag():
    stage = CompoundStage()
    stage.run(syscalls.fork, stage.kernel, A, B)
    args = setup(stage)
    assert args.src[0] == migrate_pfn(HEAD) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
    assert stage.pmd(mm=B).kind is PteKind.MIGRATION
    finish(stage, args)


def test_a_leaf_is_split_where_it_is_not_asked_for_whole():
    stage = CompoundStage()
    args = setup(stage, select=Select.SYSTEM)
    assert args.src == [migrate_pfn(HEAD + i) | SMALL for i in range(NR)]
    assert args.cpages == NR
    assert stage.said(FolioSplit) == [FolioSplit(HEAD, 2, 0, (1,) * NR, (0,) * NR)]
    finish(stage, args)


def test_a_leaf_is_split_where_the_range_has_not_all_of_it():
    stage = CompoundStage()
    args = setup(stage, start=1, end=3)
    assert args.src == [migrate_pfn(HEAD + i) | SMALL for i in (1, 2)]
    finish(stage, args)


def test_a_locked_leaf_is_left_with_all_of_its_pages():
    stage = CompoundStage()
    assert stage.run(folio_trylock, Folio(HEAD))
    args = setup(stage)
    assert (args.src, args.cpages, args.npages) == ([0] * NR, 0, NR)
    stage.run(folio_unlock, Folio(HEAD))
    assert stage.nothing_is_held()


def test_a_pinned_leaf_can_neither_be_taken_nor_split():
    stage = CompoundStage()
    page = stage.run(syscalls.pin, stage.kernel, A, 1)
    args = setup(stage)
    assert (args.src, args.cpages) == ([0] * NR, 0)
    assert not stage.folio(HEAD).locked
    stage.run(syscalls.unpin, stage.kernel, page)
    assert stage.nothing_is_held()
    assert setup(stage).cpages


def test_a_referenced_leaf_is_restored_whole():
    stage = CompoundStage()
    stage.run(folio_get, Folio(HEAD))
    args = setup(stage)
    assert (args.src, args.cpages) == ([0] * NR, 0)
    assert stage.pmd().kind is PteKind.PRESENT
    assert stage.counts(HEAD) == (2, 1, False)


def test_an_empty_leaf_is_one_hole_if_it_is_asked_for_and_many_if_not():
    stage = CompoundStage(written=False)
    assert setup(stage).src == [MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND, 0, 0, 0]
    assert setup(stage, select=Select.SYSTEM).src == [MIGRATE_PFN_MIGRATE] * NR
    assert setup(stage, start=1).src == [MIGRATE_PFN_MIGRATE] * 3
    both = setup(stage, end=2 * NR)
    assert both.src == [MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND, 0, 0, 0] * 2
    assert (both.cpages, both.npages) == (2, 2 * NR)


def test_the_huge_zero_page_is_a_hole_if_system_pages_are_asked_for():
    stage = CompoundStage(written=False)
    stage.touch(0, write=False)
    assert stage.pmd().kind is PteKind.ZERO
    assert setup(stage).src == [MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND, 0, 0, 0]
    assert setup(stage, select=Select.DEVICE_PRIVATE | Select.COMPOUND).src == [0] * NR


def test_a_leaf_of_the_device_is_taken_by_its_owner_who_asks_for_device_pages():
    stage = CompoundStage(devices=2)
    assert stage.to_huge_device() == NR
    assert setup(stage).src == [0] * NR
    args = setup(stage, select=Select.DEVICE_PRIVATE | Select.COMPOUND)
    assert args.src == [migrate_pfn(100) | WHOLE, 0, 0, 0]
    args.pgmap_owner = "dev1"
    finish(stage, args)


def test_a_leaf_that_migrates_already_is_left():
    stage = CompoundStage()
    first = setup(stage)
    assert setup(stage).src == [0] * NR
    finish(stage, first)


def page_mapped(stage) -> None:
    """The folio's leaf becomes a page table; the folio stays as large as it is."""
    stage.run(split_huge_pmd, stage.kernel, find_vma(stage.slots[A].vmas, 0), 0)


def test_a_large_folio_under_a_page_table_is_split_and_its_pages_taken():
    stage = CompoundStage()
    page_mapped(stage)
    assert stage.counts(HEAD) == (NR, NR, False)
    args = setup(stage)
    assert args.src == [migrate_pfn(HEAD + i) | SMALL for i in range(NR)]
    assert stage.counts(HEAD + 2) == (1, 0, True)
    finish(stage, args)


def test_a_large_device_folio_under_a_page_table_is_split_too():
    stage = CompoundStage()
    stage.to_huge_device()
    page_mapped(stage)
    args = setup(stage, start=1, select=Select.DEVICE_PRIVATE | Select.COMPOUND)
    assert args.src == [migrate_pfn(100 + i) | SMALL for i in (1, 2, 3)]
    finish(stage, args)


def test_the_walk_ends_at_a_large_folio_that_cannot_be_split():
    stage = CompoundStage()
    page_mapped(stage)
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1)
    stage.touch(0, write=True)
    stage.run(folio_get, Folio(HEAD))
    stage.run(stage.kernel.lru_add_drain)
    vma_of_rest = setup(stage, start=1)
    assert (vma_of_rest.src, vma_of_rest.npages) == ([0] * 3, 3)
    assert not stage.folio(HEAD).locked


def test_what_was_cleared_is_flushed_before_the_lock_is_dropped_for_a_split():
    """A page that fork shares is not flushed at once; then comes a folio to split."""
    stage = CompoundStage(written=False, flags=VmFlags.READ | VmFlags.WRITE)
    stage.touch(0, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.touch(0, write=False)
    walk = list_of_walk(stage)
    assert walk[walk.index(LazyMmuEntered(0)) :][-1] == LockDropped("ptl:0", walk[0].mode)
    assert [type(event) for event in walk if isinstance(event, (TlbFlushed, LazyMmuLeft, LockDropped))] == [
        TlbFlushed,
        LazyMmuLeft,
        LockDropped,
    ]


def list_of_walk(stage):
    since = len(stage.trace)
    args = setup(stage, end=1)
    events = stage.trace[since:]
    first = next(i for i, event in enumerate(events) if isinstance(event, LockTaken) and event.lock == "ptl:0")
    last = next(i for i, event in enumerate(events) if isinstance(event, LockDropped) and event.lock == "ptl:0")
    finish(stage, args)
    return events[first : last + 1]


# ---- before there were large device-private folios -------------------------------------------------------------------


@OLD
def test_before_v6_19_a_leaf_is_split_first(generation):
    stage = CompoundStage(generation)
    args = setup(stage)
    assert args.src == [migrate_pfn(HEAD + i) | SMALL for i in range(NR)]
    finish(stage, args)


@OLD
def test_before_v6_19_a_locked_leaf_is_left_and_no_reference_stays(generation):
    stage = CompoundStage(generation)
    stage.run(folio_trylock, Folio(HEAD))
    assert setup(stage).src == [0] * NR
    assert stage.counts(HEAD)[:2] == (1, 1)


@OLD
def test_before_v6_19_a_large_folio_under_a_page_table_is_left(generation):
    stage = CompoundStage(generation)
    page_mapped(stage)
    assert setup(stage).src == [0] * NR
    stage.run(stage.kernel.lru_add_drain)
    assert stage.counts(HEAD) == (NR, NR, False)


@OLD
def test_before_v6_19_an_empty_leaf_is_a_hole_for_each_page_and_the_huge_zero_page_is_split(generation):
    stage = CompoundStage(generation, written=False, flags=HUGE)
    assert setup(stage).src == [MIGRATE_PFN_MIGRATE] * NR
    stage.touch(0, write=False)
    assert setup(stage).src == [MIGRATE_PFN_MIGRATE] * NR
    assert stage.pmd().kind is PteKind.TABLE
    assert setup(stage, select=Select.DEVICE_PRIVATE).src == [0] * NR
    assert not any(entry & MIGRATE_PFN_VALID for entry in setup(stage).src)
