"""make_device_exclusive: what it needs, what it leaves, in which order, and what makes it try again."""

import pytest

from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_impl.mm.pgtable import pte_present
from migrate_vma_spec.events import (
    CallbackEntered,
    CpuAccessed,
    DeviceMapped,
    DeviceUnmapped,
    FaultBegan,
    FolioDirtied,
    FolioGot,
    FolioLocked,
    FolioUnlocked,
    InvalidateBegan,
    InvalidateEnded,
    PteChanged,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, NotifyReason, Pte, PteKind, VmFlags
from tests.impl.pages_stage import CoherentTaker, PagesStage, Taker
from tests.impl.stage import READ_ONLY, A, B

EXCLUSIVE = Pte(PteKind.EXCLUSIVE, 1, write=True, soft_dirty=True)


@pytest.fixture
def stage():
    return PagesStage(Taker)


def written(stage):
    stage.touch(0, write=True)
    stage.settle()
    return len(stage.trace)


def exclusive(stage, start=0, end=1):
    return stage.run(stage.driver.exclusive, A, start, end)


def still_exclusive(stage, addr=0):
    return stage.run(stage.driver.check_exclusive, A, addr) == -1


def test_the_entry_keeps_the_page_and_its_mapping(stage):
    written(stage)
    assert exclusive(stage) == 1
    assert stage.pte(0) == EXCLUSIVE
    page = stage.folio(1)
    assert (page.refcount, page.mapcount, page.locked, page.exclusive) == (1, 1, False, True)
    assert still_exclusive(stage)


def test_its_steps_are_in_order(stage):
    since = written(stage)
    exclusive(stage)
    wanted = [
        FolioGot(1, 2),
        FolioLocked(1, blocking=False),
        InvalidateBegan(0, 0, 1, NotifyReason.EXCLUSIVE, "dev0"),
        TlbFlushed(0, 0, 1),
        FolioDirtied(1),
        InvalidateEnded(0, 0, 1),
        DeviceMapped("dev0", 0, 0, 1, write=True),
        FolioUnlocked(1),
    ]
    places = [stage.trace.index(event, since) for event in wanted]
    assert places == sorted(places)
    assert [each.new.kind for each in stage.said(PteChanged, since)] == [PteKind.NONE, PteKind.EXCLUSIVE]


def test_a_page_that_nobody_wrote_is_faulted_in_writable(stage):
    assert exclusive(stage, 0, 2) == 2
    assert stage.said(FaultBegan) == [FaultBegan(0, 0, write=True), FaultBegan(0, 1, write=True)]
    assert {stage.pte(addr).kind for addr in (0, 1)} == {PteKind.EXCLUSIVE}


def test_a_shared_page_is_copied_first(stage):
    written(stage)
    stage.fork(B)
    assert exclusive(stage) == 1
    assert (stage.pte(0).pfn, stage.pte(0, B).pfn) == (2, 1)


def test_a_device_private_page_comes_back_first(stage):
    written(stage)
    stage.to_device()
    assert exclusive(stage) == 1
    assert stage.said(CallbackEntered)
    assert stage.pte(0).pfn in stage.kernel.system_pfns


def test_a_coherent_page_may_stay_where_it_is():
    stage = PagesStage(CoherentTaker)
    written(stage)
    stage.to_device()
    assert exclusive(stage) == 1
    assert stage.pte(0) == Pte(PteKind.EXCLUSIVE, 100, write=True, soft_dirty=True)


def test_a_page_that_is_exclusive_already_is_given_up_and_taken_again(stage):
    written(stage)
    exclusive(stage)
    since = len(stage.trace)
    assert exclusive(stage) == 1
    assert len(stage.said(FaultBegan, since)) == 1
    assert [type(event) for event in stage.trace[since:] if isinstance(event, (DeviceMapped, DeviceUnmapped))] == [
        DeviceUnmapped,
        DeviceMapped,
    ]
    assert stage.pte(0) == EXCLUSIVE


def test_memory_that_may_not_be_written_is_refused(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1, READ_ONLY)
    assert exclusive(stage) == -14
    assert exclusive(stage, 2, 3) == -14


def test_without_memory_it_is_refused(stage):
    stage.answers["a page for a fault"] = [1]
    assert exclusive(stage) == -12


def test_other_devices_let_go_of_the_page():
    stage = PagesStage(Taker, devices=2)
    written(stage)
    other = stage.drivers[1]
    stage.run(other.open, A)
    assert stage.run(other.exclusive, A, 0, 1) == 1
    assert exclusive(stage) == 1
    assert still_exclusive(stage)
    assert stage.run(other.check_exclusive, A, 0) == 0


# ---- races -----------------------------------------------------------------------------------------------------------


def maker(stage):
    return stage.start("maker", stage.driver.exclusive, A, 0, 1, cpu=1)


def test_a_page_that_went_before_the_second_look_is_let_go_and_another_taken(stage):
    written(stage)
    player = maker(stage)
    player.until(FolioLocked)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert player.finish() == 1
    stage.run(stage.kernel.lru_add_drain, cpu=1)
    assert len(stage.said(InvalidateBegan)) == len(stage.said(InvalidateEnded))
    assert stage.pte(0).kind is PteKind.EXCLUSIVE
    page = stage.folio(stage.pte(0).pfn)
    assert (page.refcount, page.locked) == (1, False)


def test_a_store_before_the_entry_goes_is_kept_as_dirt_of_the_page(stage):
    written(stage)
    player = maker(stage)
    player.until(InvalidateBegan)
    assert stage.touch(0, write=True) == 0
    player.finish()
    assert stage.folio(1).dirty
    assert not pte_present(stage.pte(0))


def test_a_cpu_that_comes_while_the_driver_has_the_lock_waits_until_the_device_has_the_page(stage):
    written(stage)
    player = maker(stage)
    player.until(PteChanged, new=EXCLUSIVE)
    cpu = stage.start("cpu", syscalls.touch, stage.kernel, A, 0, True)
    cpu.block()
    assert not stage.said(DeviceMapped)
    assert stage.folio(1).queue
    player.until(DeviceMapped)
    assert not cpu.step()
    player.finish()
    assert cpu.finish() == 0
    assert not still_exclusive(stage)


def test_no_translation_survives_the_entry(stage):
    written(stage)
    exclusive(stage)
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    faulted, accessed = stage.said(FaultBegan, since), stage.said(CpuAccessed, since)
    assert stage.trace.index(faulted[0], since) < stage.trace.index(accessed[0], since)


def test_a_discarded_page_takes_the_entry_with_it(stage):
    written(stage)
    exclusive(stage)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert stage.pte(0) == PTE_NONE
    assert stage.folio(1).refcount == 0
    assert not still_exclusive(stage)


def test_what_may_no_longer_be_written_stays_readable(stage):
    written(stage)
    exclusive(stage)
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 1, VmFlags.READ)
    assert not still_exclusive(stage)
    assert exclusive(stage) == -14
    assert stage.touch(0, write=False) == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, young=True, soft_dirty=True)
    assert stage.touch(0, write=True) == -11
    assert stage.slots[Folio(1)].refcount == 1
