"""Leaves of device-private folios under the walkers: zap, fork, mprotect, split."""

from typing import ClassVar

import pytest

from migrate_vma_impl.mm import huge_memory, syscalls
from migrate_vma_impl.mm.mm_types import Folio, Vma
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap
from migrate_vma_spec.events import FolioFreed, FolioSplit, FreeCallback, PmdSplit, RmapRemoved, SplitCallback, TlbFlushed
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFlags
from tests.impl.huge_stage import HUGE, HugeStage, split
from tests.impl.stage import A, B, FakeDriver

WHOLE = Vma(A, 0, 8, HUGE, 0)
LEAF = Pte(PteKind.DEVICE_PRIVATE, 100, write=True, soft_dirty=True)


class FourPages(FakeDriver):
    frames: ClassVar[int] = 4


async def map_device_folio(kernel, free):
    """As an insert at a hole leaves it: mapped by a leaf of its own, unlocked, with the mapping's reference."""
    folio = await free.pop()
    for _ in range(3):
        await free.pop()
    await kernel.zone_device_page_init(folio, order=2)
    await folio_add_new_anon_rmap(folio, WHOLE, 0, pages=4)
    await huge_memory.pte_alloc_one(kernel, A)
    await huge_memory.set_pmd_at(kernel, A, 0, LEAF)
    await kernel.folio_unlock(folio)


@pytest.fixture
def stage():
    stage = HugeStage(driver=FourPages)
    stage.run(map_device_folio, stage.kernel, stage.driver.state.free)
    return stage


def test_a_zapped_leaf_frees_its_folio_under_the_lock_and_needs_no_flush(stage):
    since = len(stage.trace)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 4)
    assert (stage.pmd(0), stage.tables()) == (PTE_NONE, 0)
    assert stage.said(FreeCallback) == [FreeCallback(100)]
    assert stage.said(FolioFreed) == [FolioFreed(100, 2)]
    assert not stage.said(TlbFlushed, since)


def test_a_part_of_it_splits_the_leaf_and_leaves_the_folio_whole(stage):
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
    kinds = [stage.pte(addr).kind for addr in range(4)]
    assert kinds == [PteKind.DEVICE_PRIVATE, PteKind.NONE, PteKind.DEVICE_PRIVATE, PteKind.DEVICE_PRIVATE]
    assert (stage.counts(100), stage.folio(100).order) == ((3, 3), 2)
    assert stage.said(RmapRemoved)[-1] == RmapRemoved(101, 0, 1, 3)


def test_fork_maps_it_twice_and_read_only_and_keeps_soft_dirty(stage):
    assert stage.fork(B) == 0
    assert stage.pmd(0) == stage.pmd(0, B) == Pte(PteKind.DEVICE_PRIVATE, 100, soft_dirty=True)
    assert (stage.counts(100), stage.folio(100).exclusive) == ((2, 2), False)


def test_mprotect_makes_it_readable_and_flushes_nothing(stage):
    since = len(stage.trace)
    assert stage.run(syscalls.mprotect, stage.kernel, A, 0, 4, VmFlags.READ) == 0
    assert stage.pmd(0) == Pte(PteKind.DEVICE_PRIVATE, 100)
    assert not stage.said(TlbFlushed, since)


def test_its_page_table_has_device_private_entries_for_each_page(stage):
    since = len(stage.trace)
    stage.run(huge_memory.split_huge_pmd, stage.kernel, WHOLE, 0)
    assert [stage.pte(addr) for addr in range(4)] == [
        Pte(PteKind.DEVICE_PRIVATE, 100 + addr, write=True, soft_dirty=True) for addr in range(4)
    ]
    assert (stage.counts(100), stage.exclusive(100)) == ((4, 4), [True] * 4)
    assert len(stage.said(PmdSplit)) == 1
    assert not stage.said(TlbFlushed, since)


@pytest.mark.parametrize("advice", [syscalls.madvise_free, syscalls.madvise_cold], ids=lambda each: each.__name__)
def test_advice_about_present_memory_leaves_it_alone(stage, advice):
    before = stage.folio(100)
    assert stage.run(advice, stage.kernel, A, 0, 4) == 0
    assert (stage.pmd(0), stage.folio(100)) == (LEAF, before)


def test_it_moves_with_mremap(stage):
    assert stage.run(syscalls.mremap, stage.kernel, A, 0, 4, 4) == 0
    assert (stage.pmd(0), stage.pmd(4)) == (PTE_NONE, LEAF)


def test_the_driver_is_told_of_every_new_folio_and_of_the_end(stage):
    assert stage.run(split, stage.kernel, Folio(102))
    assert stage.said(SplitCallback) == [SplitCallback(100, tail) for tail in (101, 102, 103, None)]
    assert stage.said(FolioSplit) == [FolioSplit(100, 2, 0, (1,) * 4, (0,) * 4)]
    assert [stage.pte(addr) for addr in range(4)] == [
        Pte(PteKind.DEVICE_PRIVATE, 100 + addr, write=True, soft_dirty=True) for addr in range(4)
    ]
    assert [stage.counts(pfn) for pfn in range(100, 104)] == [(1, 1)] * 4
