"""hmm_range_fault: what is reported, what is faulted in, what is refused, and how often it looks again."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import TRYLOCKED, WAITING
from migrate_vma_impl.mm import hmm, mmu_notifier, syscalls
from migrate_vma_impl.mm.folio import folio_trylock, folio_unlock
from migrate_vma_impl.mm.hmm import HmmPfn, HmmRange
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_impl.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from migrate_vma_spec.events import (
    FaultBegan,
    FolioLockMissed,
    InvalidateEnded,
    PointPassed,
    RangeFaultBegan,
    RangeFaultEnded,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import Errno, Memory, NotifyReason, PteKind
from tests.impl.stage import DEVICE_PAGE, READ_ONLY, A, FakeDriver, Stage


class Failing(FakeDriver):
    """Has no memory for a page that comes back."""

    async def fill(self, src: list[int], dst: list[int], *, device: bool) -> bool:
        return await super().fill(src, dst, device=True) if device else False


@pytest.fixture
def stage():
    return Stage(WAITING)


async def range_fault(stage: Stage, range_: HmmRange) -> int:
    await mmu_notifier.mmu_interval_read_begin(stage.kernel, range_.device, A)
    range_.vmas = await mmap_read_lock(A)
    result = await hmm.hmm_range_fault(stage.kernel, range_)
    await mmap_read_unlock(A)
    return result


def asked(start: int = 0, end: int = 1, **fields) -> HmmRange:
    return HmmRange("dev0", A, (), start, end, **fields)


def look(stage: Stage, range_: HmmRange) -> int:
    return stage.run(range_fault, stage, range_)


def test_a_written_page_is_reported_writable(stage):
    stage.touch(0, write=True)
    range_ = asked()
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(valid=True, write=True, folio=Folio(1))]


def test_nothing_is_faulted_that_is_there(stage):
    stage.touch(0, write=True)
    before = len(stage.trace)
    look(stage, asked(write=True))
    assert not stage.said(FaultBegan, since=before)


def test_a_hole_is_faulted_in_for_a_write(stage):
    range_ = asked(write=True)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns[0].write
    assert stage.said(FaultBegan) == [FaultBegan(0, 0, write=True, device=True)]


def test_a_hole_that_is_only_read_is_the_zero_page(stage):
    range_ = asked()
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(valid=True, write=False, folio=None)]
    assert stage.said(RangeFaultEnded) == [RangeFaultEnded("dev0", 0, 0, 0, (None,))]


def test_the_zero_page_is_replaced_for_a_write(stage):
    stage.touch(0, write=False)
    range_ = asked(write=True)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns[0].folio == Folio(1)


def test_without_fault_a_snapshot_reports_what_is_not_there(stage):
    stage.touch(1, write=True)
    range_ = asked(0, 3, fault=False)
    assert look(stage, range_) == 0
    assert [pfn.valid for pfn in range_.hmm_pfns] == [False, True, False]
    assert stage.pte(0).kind is PteKind.NONE


def test_an_own_device_page_is_reported_and_stays(stage):
    stage.touch(0, write=True)
    stage.to_device()
    range_ = asked(write=True, dev_private_owner="dev0")
    before = len(stage.trace)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(valid=True, write=True, folio=DEVICE_PAGE)]
    assert not stage.said(FaultBegan, since=before)


def test_an_own_device_page_behind_a_read_only_entry_is_reported_as_it_is(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.run(syscalls.fork, stage.kernel, A, syscalls.Mm(1))
    range_ = asked(write=True, dev_private_owner="dev0")
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(valid=True, write=False, folio=DEVICE_PAGE)]


@pytest.mark.parametrize("owner", [None, "dev1"])
def test_a_device_page_of_another_is_brought_back(stage, owner):
    stage.touch(0, write=True)
    stage.to_device()
    range_ = asked(dev_private_owner=owner)
    assert look(stage, range_) == 0
    found = range_.hmm_pfns[0].folio
    assert found is not None
    assert stage.folio(found.pfn).memory is Memory.SYSTEM


def test_a_page_that_cannot_be_brought_back_is_an_error():
    stage = Stage(WAITING, Failing)
    stage.touch(0, write=True)
    stage.to_device()
    assert look(stage, asked()) == -Errno.ENOMEM


def test_a_write_to_a_read_only_mapping_is_refused(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1, READ_ONLY)
    assert look(stage, asked(write=True)) == -Errno.EPERM


def test_an_address_without_a_mapping_is_refused_only_if_a_fault_was_asked_for(stage):
    assert look(stage, asked(2, 4)) == -Errno.EFAULT
    range_ = asked(2, 4, fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(error=True)] * 2


def test_an_invalidation_between_two_looks_ends_the_walk(stage):
    reader = stage.start("reader", range_fault, stage, asked(write=True))
    reader.until(FaultBegan)

    async def invalidate() -> None:
        await stage.driver.open(A)
        await mmu_notifier.invalidate_range_start(stage.kernel, A, 0, 1, NotifyReason.CLEAR)
        await mmu_notifier.invalidate_range_end(stage.kernel, A, 0, 1)

    stage.run(invalidate)
    assert reader.finish() == -Errno.EBUSY


def test_a_migration_entry_is_waited_for_and_looked_at_again(stage):
    stage.touch(0, write=True)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(InvalidateEnded)
    assert stage.pte(0).kind is PteKind.MIGRATION
    range_ = asked(dev_private_owner="dev0")
    reader = stage.start("reader", range_fault, stage, range_, cpu=1)
    reader.until(WaitBegan, pfn=1)
    reader.block()
    migrator.finish()
    assert reader.finish() == 0
    assert range_.hmm_pfns[0].folio == DEVICE_PAGE


def spinning(generation):
    """A reader that needs a device page which somebody keeps locked."""
    stage = Stage(generation)
    stage.touch(0, write=True)
    stage.to_device()
    stage.run(folio_trylock, DEVICE_PAGE)
    return stage, stage.start("reader", range_fault, stage, asked())


def test_the_loser_of_the_page_lock_looks_again_without_a_scheduling_point():
    stage, reader = spinning(TRYLOCKED)
    before = len(stage.trace)
    for _ in range(3):
        reader.until(FolioLockMissed)
    assert not stage.said(PointPassed, since=before)
    assert len(stage.said(RangeFaultBegan)) == 1


def test_where_the_loser_waits_the_walk_goes_on_after_the_unlock():
    stage, reader = spinning(WAITING)
    reader.block()
    stage.run(folio_unlock, DEVICE_PAGE)
    assert reader.finish() == 0
