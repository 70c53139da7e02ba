"""Whole migrations: to the device, back by a fault, out by eviction; ledgers of references, bits of entries, misuse."""

import pytest
from attrs import evolve

from migrate_vma_impl.generations import ENTRY_FIRST, GENERATIONS, REFERENCED, TRYLOCKED, UNREFERENCED, WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import folio_try_get
from migrate_vma_impl.mm.mm_types import Folio, FreePages, MigrateVma, PteSlot
from migrate_vma_spec.events import (
    CallbackReturned,
    EntryRefilled,
    FaultEnded,
    FlagsMoved,
    FolioAllocated,
    FolioChecked,
    FolioFreed,
    FolioGot,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FreeCallback,
    InvalidateBegan,
    LruAdded,
    LruIsolated,
    MemcgUncharged,
    PteChanged,
    RangeReturned,
    SetupReturned,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    PTE_NONE,
    Lru,
    NotifyReason,
    Pte,
    PteKind,
    Select,
    VmFault,
    VmFlags,
    migrate_pfn,
)
from tests.impl.stage import DEVICE_PAGE, VMA, A, FakeDriver, Stage, Stopped

EVERY = pytest.mark.parametrize("generation", GENERATIONS.values(), ids=lambda each: each.name)


def counts(stage, pfn, since=0):
    """The reference counts that a page goes through, allocation included."""
    kinds = (FolioAllocated, FolioGot, FolioPut, LruAdded, LruIsolated)
    taken = [event for event in stage.trace[since:] if isinstance(event, kinds) and event.pfn == pfn]
    return [event.refcount for event in taken if event.refcount is not None]


def on_device(generation, driver=None, **config):
    stage = Stage(generation, driver, **config)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    assert stage.to_device() == 1
    return stage


# ---- ledgers ---------------------------------------------------------------------------------------------------------


@EVERY
def test_ledger_of_a_page_that_goes_to_the_device(generation):
    stage = Stage(generation)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    since = len(stage.trace)
    assert stage.to_device() == 1
    assert counts(stage, 1, since) == [2, 1, 2, 1, 0]
    assert counts(stage, 100, since) == [1, 2, 1]
    assert [event.pfn for event in stage.said(FolioFreed, since)] == [1]
    assert stage.folio(100).mapcount == 1
    assert not stage.folio(100).locked


FAULT_LEDGERS = [
    (UNREFERENCED, [2, 1, 0], 1),
    (REFERENCED, [2, 3, 2, 1, 0], 2),
    (TRYLOCKED, [2, 3, 2, 1, 0], 2),
    (WAITING, [2, 3, 2, 1, 0], 2),
    (ENTRY_FIRST, [2, 1, 0], 1),
]


@pytest.mark.parametrize(("generation", "ledger", "expected"), FAULT_LEDGERS, ids=[each[0].name for each in FAULT_LEDGERS])
def test_ledger_of_a_device_page_that_a_fault_brings_back(generation, ledger, expected):
    stage = on_device(generation)
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert counts(stage, 100, since) == ledger
    (moved,) = stage.said(FolioMoved, since)
    assert (moved.moved, moved.refcount, moved.expected) == (True, expected, expected)
    assert [event.pfn for event in stage.said(FolioFreed, since)] == [100]
    assert stage.pte(0).kind is PteKind.PRESENT
    assert stage.folio(1).refcount == 2


@EVERY
def test_who_frees_the_fault_page(generation):
    """finalize where the fault handler holds nothing, and else do_swap_page, after the callback."""
    stage = on_device(generation)
    stage.touch(0, write=True)
    order = [type(event) for event in stage.trace]
    by_handler = order.index(CallbackReturned) < order.index(FreeCallback)
    assert by_handler == (generation.fault_page_references > 0)


@EVERY
def test_ledger_of_an_evicted_page(generation):
    stage = on_device(generation)
    since = len(stage.trace)
    assert stage.run(stage.driver.evict) == 1
    assert counts(stage, 100, since) == [2, 1, 0]
    assert stage.said(FolioMoved, since)[0].expected == 1
    assert stage.pte(0).kind is PteKind.PRESENT


@EVERY
def test_a_round_trip_leaves_the_allocators_as_they_were(generation):
    stage = on_device(generation)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    stage.run(syscalls.munmap, stage.kernel, A, 0, 2)
    fresh = stage.kernel.slots()
    for key in (*map(Folio, (1, 2, 3, 4)), FreePages(), PteSlot(0, 0)):
        assert stage.slots[key] == fresh[key]
    for page in stage.kernel.device_folios("dev0"):
        assert (stage.slots[page].refcount, stage.slots[page].mapcount, stage.slots[page].charged) == (0, 0, False)


# ---- entries and bits ------------------------------------------------------------------------------------------------


def test_a_written_page_comes_back_writable_old_clean_and_soft_dirty():
    stage = on_device(WAITING)
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, write=True, soft_dirty=True)
    reader = stage.start("reader", syscalls.touch, stage.kernel, A, 0, False)
    reader.until(FaultEnded, result=VmFault.NONE)
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, soft_dirty=True)
    assert stage.folio(1).dirty


def test_a_restored_page_keeps_every_bit():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    before = stage.pte(0)
    args = MigrateVma(VMA, 0, 1, [0], [0], "dev0", Select.SYSTEM)
    stage.run(stage.kernel.migrate_vma_setup, args)
    assert stage.pte(0) == evolve(before, kind=PteKind.MIGRATION)
    stage.run(stage.kernel.migrate_vma_pages, args)
    assert args.src == [migrate_pfn(1) | MIGRATE_PFN_WRITE]
    stage.run(stage.kernel.migrate_vma_finalize, args)
    assert stage.pte(0) == before
    assert (stage.folio(1).refcount, stage.folio(1).lru, stage.folio(1).exclusive) == (2, Lru.BATCHED, True)


def test_a_read_only_exclusive_page_gets_a_readable_exclusive_entry_and_comes_back_exclusive():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.PRESENT, 1, young=True)
    args = MigrateVma(VMA, 0, 1, [0], [0], "dev0", Select.SYSTEM)
    stage.run(stage.kernel.migrate_vma_setup, args)
    assert args.src == [migrate_pfn(1) | MIGRATE_PFN_MIGRATE]
    assert stage.pte(0) == Pte(PteKind.MIGRATION, 1, exclusive=True, young=True)
    stage.run(stage.kernel.migrate_vma_finalize, args)
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, young=True)
    assert stage.folio(1).exclusive


def test_dirty_set_by_a_page_walk_during_collect_is_not_lost():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.PRESENT, 1, write=True, young=True)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(FolioGot, pfn=1)
    stage.touch(0, write=True, cpu=1)
    migrator.until(PteChanged, new=PTE_NONE)
    migrator.until(PteChanged)
    assert stage.folio(1).dirty
    assert stage.pte(0).dirty


def test_the_charge_moves_with_the_page_and_is_dropped_once():
    stage = on_device(WAITING)
    assert stage.folio(100).charged
    assert not stage.said(MemcgUncharged)
    stage.touch(0, write=True)
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    stage.run(stage.kernel.lru_add_drain)
    assert [event.pfn for event in stage.said(MemcgUncharged)] == [1]
    assert len(stage.said(FlagsMoved)) == 2


# ---- holes -----------------------------------------------------------------------------------------------------------


def test_holes_and_zero_pages_become_device_pages_in_one_bracket():
    stage = Stage(WAITING)
    stage.touch(1, write=False)
    since = len(stage.trace)
    assert stage.to_device(0, 2) == 2
    assert [stage.pte(addr) for addr in (0, 1)] == [Pte(PteKind.DEVICE_PRIVATE, pfn, write=True) for pfn in (100, 101)]
    inserts = [event for event in stage.said(InvalidateBegan, since) if event.reason is NotifyReason.MIGRATE][1:]
    assert inserts == [InvalidateBegan(0, 0, 2, NotifyReason.MIGRATE, "dev0")]
    assert TlbFlushed(0, 1, 2) in stage.trace[since:]
    assert TlbFlushed(0, 0, 1) not in stage.trace[since:]
    for pfn in (100, 101):
        page = stage.folio(pfn)
        assert (page.refcount, page.mapcount, page.exclusive, page.charged, page.locked) == (1, 1, True, True, False)


def test_a_hole_that_a_cpu_fills_first_stays_the_cpus():
    stage = Stage(WAITING)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(FolioAllocated, pfn=100)
    stage.touch(0, write=True, cpu=1)
    assert migrator.finish() == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, young=True, dirty=True, soft_dirty=True)
    assert [event.pfn for event in stage.said(FreeCallback)] == [100]


def test_a_hole_that_userfaultfd_watches_is_not_filled():
    stage = Stage(WAITING, pages=0)
    flags = VmFlags.READ | VmFlags.WRITE | VmFlags.UFFD_MISSING
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1, flags)
    assert stage.to_device() == 0
    assert stage.pte(0) == PTE_NONE


def test_a_hole_filled_with_system_memory_is_dirty_and_goes_on_the_lru():
    stage = Stage(WAITING)
    args = MigrateVma(VMA, 0, 1, [0], [0], "dev0", Select.SYSTEM)
    stage.run(stage.kernel.migrate_vma_setup, args)
    page = stage.run(stage.kernel.alloc_page, "system page")
    stage.run(stage.kernel.folio_lock, page)
    args.dst[0] = migrate_pfn(page.pfn)
    stage.run(stage.kernel.migrate_vma_pages, args)
    stage.run(stage.kernel.migrate_vma_finalize, args)
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, young=True, dirty=True, soft_dirty=True)
    assert (stage.folio(1).refcount, stage.folio(1).lru) == (2, Lru.BATCHED)


# ---- the exact count, and its weak cousin ----------------------------------------------------------------------------


def test_the_check_after_unmap_forgives_one_reference_and_the_exact_count_does_not():
    stage = on_device(WAITING)
    stage.run(folio_try_get, DEVICE_PAGE)
    since = len(stage.trace)
    assert stage.run(stage.driver.evict) == 0
    assert [event.ok for event in stage.said(FolioChecked, since)] == [True]
    assert [event.moved for event in stage.said(FolioMoved, since)] == [False]
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, write=True, soft_dirty=True)
    assert (stage.folio(100).refcount, stage.folio(100).locked) == (2, False)


def test_two_unexpected_references_are_seen_after_unmap():
    stage = on_device(WAITING)
    for _ in range(2):
        stage.run(folio_try_get, DEVICE_PAGE)
    since = len(stage.trace)
    assert stage.run(stage.driver.evict) == 0
    assert [event.ok for event in stage.said(FolioChecked, since)] == [False]
    assert stage.said(RangeReturned)[-1].src == (0, 0, 0)


def test_eviction_skips_free_and_locked_pages_and_never_says_write():
    stage = on_device(WAITING)
    stage.touch(1, write=True)
    stage.to_device(1, 2)
    stage.run(stage.kernel.folio_lock, Folio(101))
    src = [0, 0, 0]
    stage.run(stage.kernel.migrate_device_range, src, 100, 3)
    assert src == [migrate_pfn(100) | MIGRATE_PFN_MIGRATE, 0, 0]


def test_eviction_by_frame_numbers_takes_them_in_the_order_given():
    stage = on_device(WAITING)
    stage.touch(1, write=True)
    stage.to_device(1, 2)
    src = [101, 102, 100]
    stage.run(stage.kernel.migrate_device_pfns, src, 3)
    assert src == [migrate_pfn(101) | MIGRATE_PFN_MIGRATE, 0, migrate_pfn(100) | MIGRATE_PFN_MIGRATE]


def test_the_exact_count_adds_nothing_for_a_driver_that_hides_the_fault_page():
    class Hiding(FakeDriver):
        async def migrate_to_ram(self, vmf):
            return await super().migrate_to_ram(evolve(vmf, page=None))

    stage = on_device(REFERENCED, Hiding)
    player = stage.start("reader", syscalls.touch, stage.kernel, A, 0, False)
    assert player.until(FolioMoved).moved is False
    assert player.until(FolioMoved).moved is False
    player.coroutine.close()


def test_a_page_given_as_its_own_destination_is_refused_by_the_count():
    stage = on_device(WAITING)
    src = [0]
    stage.run(stage.kernel.migrate_device_range, src, 100, 1)
    stage.run(stage.kernel.folio_get, DEVICE_PAGE)
    dst = [src[0]]
    stage.run(stage.kernel.migrate_device_pages, src, dst, 1)
    assert src == [migrate_pfn(100)]


# ---- the fault's result ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("result", "signal"), [(VmFault.SIGBUS, -7), (VmFault.OOM, -12), (VmFault.SIGSEGV, -11)])
@EVERY
def test_what_the_callback_answers_reaches_the_access(generation, result, signal):
    stage = on_device(generation, type("Failing", (FakeDriver,), {"result": result}))
    assert stage.touch(0, write=True) == signal


@EVERY
def test_a_driver_without_memory_leaves_the_page_on_the_device_unlocked(generation):
    stage = on_device(generation)
    stage.answers["system page"] = [1]
    assert stage.touch(0, write=True) == -12
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, write=True, soft_dirty=True)
    assert (stage.folio(100).refcount, stage.folio(100).mapcount, stage.folio(100).locked) == (1, 1, False)
    assert stage.touch(0, write=True) == 0


# ---- the handed-over page --------------------------------------------------------------------------------------------


def test_a_handed_over_page_is_seen_by_setup_as_a_migration_entry_and_refilled():
    stage = on_device(ENTRY_FIRST)
    since = len(stage.trace)
    stage.touch(0, write=False)
    assert stage.said(SetupReturned, since)[0].src == (0,)
    entry = migrate_pfn(100) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE
    assert stage.said(EntryRefilled, since) == [EntryRefilled(0, 0, entry)]
    assert [event.pfn for event in stage.said(FolioUnlocked, since)] == [100, 1]


def test_a_driver_that_returns_early_leaves_the_handed_over_page_behind_and_waiters_sleep_for_ever():
    class Early(FakeDriver):
        async def migrate_to_ram(self, vmf):
            return VmFault.NONE

    stage = on_device(ENTRY_FIRST, Early)
    first = stage.start("first", syscalls.touch, stage.kernel, A, 0, True)
    first.until(CallbackReturned)
    assert stage.pte(0).kind is PteKind.MIGRATION
    first.block()
    assert [waiter.task for waiter in stage.folio(100).queue] == ["first"]
    assert stage.folio(100).locked


@pytest.mark.parametrize("generation", [UNREFERENCED, REFERENCED, TRYLOCKED, WAITING], ids=lambda each: each.name)
def test_refilling_changes_nothing_where_setup_collects_the_fault_page(generation):
    stage = on_device(generation)
    stage.touch(0, write=True)
    assert not stage.said(EntryRefilled)


def test_an_entry_outside_the_migration_cannot_be_refilled():
    class Elsewhere(FakeDriver):
        async def migrate_to_ram(self, vmf):
            args = MigrateVma(vmf.vma, 1, 2, [0], [0], self.owner, Select.DEVICE_PRIVATE)
            await self.kernel.migrate_vma_setup(args)
            await self.kernel.refill_fault_entry(args, vmf)
            return VmFault.NONE

    with pytest.raises(Stopped, match="does not cover"):
        on_device(ENTRY_FIRST, Elsewhere).touch(0, write=True)
