"""Faults on large device folios: whole, at a page of one, without memory, and with others who want the same."""

from __future__ import annotations

import pytest
from attrs import evolve

from migrate_vma_impl import fault_page
from migrate_vma_impl.generations import ENTRY_FIRST, TRYLOCKED, WAITING, with_compound
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.huge_memory import split_huge_pmd
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.events import (
    CallbackEntered,
    EntryRefilled,
    FaultBegan,
    FolioLockMissed,
    FolioSplit,
    LockDropped,
    SetupReturned,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import PteKind, Select, VmFault
from tests.impl.compound_stage import COMPOUND, NR, CompoundStage, Wide8
from tests.impl.stage import A, B

CARRYING = [with_compound(each) for each in (TRYLOCKED, WAITING, ENTRY_FIRST)]
EVERY = pytest.mark.parametrize("generation", CARRYING, ids=lambda each: each.name)


def on_device(generation=COMPOUND, driver=Wide8, **more) -> CompoundStage:
    stage = CompoundStage(generation, driver, **more)
    assert stage.to_huge_device() == NR
    return stage


def page_mapped(generation=COMPOUND, **more) -> CompoundStage:
    """A large device folio whose leaf became a page table."""
    stage = on_device(generation, **more)
    stage.run(split_huge_pmd, stage.kernel, find_vma(stage.slots[A].vmas, 0), 0)
    assert stage.counts(100) == (NR, NR, False)
    return stage


def kinds(stage, mm=A):
    return [stage.pte(addr, mm).kind for addr in range(NR)]


# ---- the whole folio -------------------------------------------------------------------------------------------------


@EVERY
def test_a_fault_on_a_leaf_brings_the_whole_folio_back(generation):
    stage = on_device(generation)
    assert stage.touch(2, write=True) == 0
    assert stage.said(CallbackEntered) == [CallbackEntered(100, 0, 2)]
    assert stage.pmd().kind is PteKind.PRESENT
    assert stage.device_pages() == 0
    assert stage.nothing_is_held()


def test_the_alternative_refills_the_entry_of_the_whole_leaf():
    stage = on_device(with_compound(ENTRY_FIRST))
    stage.touch(3, write=False)
    assert [(event.index, event.entry & 0x3F) for event in stage.said(EntryRefilled)] == [(0, 0x1B)]


@EVERY
def test_a_leaf_that_fork_shares_comes_back_in_both_address_spaces(generation):
    stage = on_device(generation)
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert stage.touch(1, write=False) == 0
    assert stage.touch(1, write=True, mm=B) == 0
    assert stage.touch(1, write=False, mm=B) == 0


def test_without_a_large_system_folio_the_pages_come_back_one_by_one():
    stage = on_device()
    stage.answers["folio_alloc in migrate_to_ram"] = [1]
    assert stage.touch(1, write=True) == 0
    assert len(stage.said(FaultBegan)) == 2  # the first touch of the folio, and this one
    assert kinds(stage) == [PteKind.PRESENT] * NR
    assert stage.device_pages() == 0
    assert stage.nothing_is_held()


def test_with_a_page_for_the_faulting_one_alone_the_rest_stays_on_the_device():
    stage = on_device()
    stage.answers["folio_alloc in migrate_to_ram"] = [1]
    stage.answers["alloc_page in migrate_to_ram"] = [0, 1]
    assert stage.touch(0, write=True) == 0
    assert kinds(stage) == [PteKind.PRESENT, *[PteKind.DEVICE_PRIVATE] * 3]
    assert [stage.folio(100 + i).order for i in range(NR)] == [0] * NR
    assert stage.nothing_is_held()


def test_without_memory_the_fault_fails_and_the_leaf_is_as_it_was():
    stage = on_device()
    stage.answers["folio_alloc in migrate_to_ram"] = [1]
    stage.answers["alloc_page in migrate_to_ram"] = [1]
    assert stage.touch(1, write=True) == -12
    assert (stage.pmd().kind, stage.pmd().pfn) == (PteKind.DEVICE_PRIVATE, 100)
    assert stage.counts(100) == (1, 1, False)


def test_a_page_that_is_freed_large_can_be_small_next_and_large_again():
    stage = on_device()
    stage.touch(0, write=False)
    page = stage.run(stage.driver.state.free.pop)
    stage.run(stage.kernel.zone_device_page_init, page)
    assert (page, stage.folio(100).order, stage.folio(101).head) == (Folio(100), 0, 100)
    second = stage.run(stage.driver.state.free.pop)
    stage.run(stage.kernel.zone_device_page_init, second)
    assert (stage.folio(101).head, stage.folio(101).refcount, stage.device_pages()) == (None, 1, 2)
    for each in (page, second):
        stage.run(stage.kernel.folio_unlock, each)
        stage.run(stage.kernel.folio_put, each)
    assert stage.to_huge_device() == NR
    assert [stage.folio(100 + i).head for i in range(NR)] == [None, 100, 100, 100]


# ---- a page of it ----------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("addr", range(NR))
def test_a_fault_on_a_page_of_a_large_folio_splits_it_and_brings_all_back(generation, addr):
    stage = page_mapped(generation)
    assert stage.touch(addr, write=True) == 0
    assert kinds(stage) == [PteKind.PRESENT] * NR
    assert stage.device_pages() == 0
    assert stage.nothing_is_held()


def test_lock_and_reference_follow_the_fault_page_through_the_split():
    stage = page_mapped()
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, 2, True)
    assert faulter.until(CallbackEntered).pfn == 102
    assert stage.counts(100) == (NR + 1, NR, True)
    faulter.until(FolioSplit)
    result = faulter.until(SetupReturned)
    assert result.cpages == NR
    assert [stage.counts(100 + i) for i in range(NR)] == [(1, 0, True), (1, 0, True), (2, 0, True), (1, 0, True)]
    faulter.finish()
    assert stage.nothing_is_held()


def test_a_fault_on_a_page_of_a_referenced_folio_is_tried_again():
    stage = page_mapped()
    stage.run(folio_get, Folio(100))
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, 2, True)
    assert faulter.until(SetupReturned).cpages == 0
    faulter.until(FaultBegan)
    stage.run(stage.kernel.folio_put, Folio(100))
    assert faulter.finish() == 0
    assert stage.nothing_is_held()


# ---- losers ----------------------------------------------------------------------------------------------------------


def lose(generation):
    """Who loses the lock of a large folio that two faults want, from there on."""
    stage = on_device(generation)
    first, second = (stage.start(name, syscalls.touch, stage.kernel, A, 1, False) for name in ("first", "second"))
    first.until(CallbackEntered)
    second.until(FolioLockMissed)
    return stage, first, second


@pytest.mark.parametrize("generation", [*map(with_compound, (TRYLOCKED, WAITING))], ids=lambda each: each.name)
def test_at_the_middle_level_the_loser_spins_even_where_it_sleeps_for_a_page(generation):
    stage, first, second = lose(generation)
    for _ in range(3):
        second.until(FolioLockMissed)
    second.until(LockDropped, lock="ptl:0")
    assert stage.said(WaitBegan) == []
    first.finish()
    second.finish()
    assert stage.nothing_is_held()


def test_one_part_makes_the_loser_sleep_there_too():
    stage, first, second = lose(evolve(COMPOUND, lose_page_lock_pmd=fault_page.lose_by_waiting))
    second.block()
    assert stage.said(WaitBegan) == [WaitBegan("PG_locked", 100)]
    first.finish()
    assert second.finish() == 0


def test_a_fault_finds_that_its_leaf_is_another_by_now():
    stage = on_device()
    late = stage.start("late", syscalls.touch, stage.kernel, A, 1, False)
    late.until(FaultBegan)
    late.step()
    assert stage.touch(2, write=False) == 0
    late.finish()
    assert len(stage.said(CallbackEntered)) == 1


def test_the_second_address_space_waits_for_the_migration_entry_of_the_leaf():
    stage = on_device()
    stage.run(syscalls.fork, stage.kernel, A, B)
    first = stage.start("first", syscalls.touch, stage.kernel, A, 1, False)
    first.until(SetupReturned)
    second = stage.start("second", syscalls.touch, stage.kernel, B, 1, False)
    second.block()
    assert stage.pmd(mm=B).kind is PteKind.MIGRATION
    first.finish()
    assert second.finish() == 0
    assert stage.nothing_is_held()


# ---- a driver that wants pages ---------------------------------------------------------------------------------------


class PageByPage(Wide8):
    """It takes large folios, and brings back nothing but the page that was touched."""

    async def migrate_to_ram(self, vmf):
        src, dst = [0], [0]
        args = self.arguments(vmf, src, dst)
        if await self.kernel.migrate_vma_setup(args) or not args.cpages:
            return VmFault.NONE
        await self._fill_from_system(src, dst)
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE

    def arguments(self, vmf, src, dst):
        return MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, Select.DEVICE_PRIVATE, vmf.page)


@pytest.mark.parametrize("addr", range(NR))
def test_a_driver_that_asks_for_one_page_of_a_leaf_gets_it_after_a_split(addr):
    stage = on_device(driver=PageByPage)
    assert stage.touch(addr, write=True) == 0
    assert kinds(stage) == [PteKind.PRESENT if each == addr else PteKind.DEVICE_PRIVATE for each in range(NR)]
    assert stage.device_pages() == NR - 1
    assert stage.nothing_is_held()
