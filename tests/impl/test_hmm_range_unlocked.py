"""hmm_range_fault_unlocked: it takes mmap_lock itself, faults may drop it, and it begins anew until the range is still."""

import pytest

from migrate_vma_impl.mm import mmu_notifier, syscalls
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_spec.events import (
    FaultEnded,
    IntervalRead,
    LockDropped,
    LockTaken,
    RangeFaultBegan,
    RangeFaultEnded,
    UserfaultRaised,
)
from migrate_vma_spec.vocabulary import Errno, LockMode, NotifyReason, PteKind, VmFault, VmFlags
from tests.impl.pages_stage import PIN, WRITE, PagesStage, Taker, take
from tests.impl.stage import A


@pytest.fixture
def stage():
    return PagesStage(Taker)


async def unlocked(stage, range_):
    return await stage.kernel.hmm_range_fault_unlocked(range_)


def asked(**fields):
    return HmmRange("dev0", A, (), 0, 1, **fields)


def reader(stage, range_):
    return stage.start("reader", unlocked, stage, range_, cpu=1)


def locks(stage, since=0):
    """How often mmap_lock was taken and dropped."""
    return [
        sum(event.lock == "mmap_lock:0" and event.mode is LockMode.READ for event in stage.said(kind, since))
        for kind in (LockTaken, LockDropped)
    ]


def test_it_needs_no_lock_and_leaves_none(stage):
    range_ = asked(write=True)
    assert reader(stage, range_).finish() == 0
    assert range_.hmm_pfns[0].folio == Folio(1)
    assert locks(stage) == [1, 1]


def test_its_read_of_the_notifier_stays_open_for_the_driver(stage):
    reader(stage, asked(write=True)).finish()
    assert not stage.start("reader", mmu_notifier.mmu_interval_read_retry, stage.kernel, "dev0", A).finish()


def test_an_invalidation_makes_it_begin_anew_by_itself(stage):
    stage.touch(0, write=False)
    since = len(stage.trace)
    range_ = asked(write=True)
    assert reader(stage, range_).finish() == 0
    assert range_.hmm_pfns[0].write
    assert [event.result for event in stage.said(RangeFaultEnded)] == [-Errno.EBUSY, 0]
    assert len(stage.said(IntervalRead)) == 2
    assert locks(stage, since) == [2, 2]


def test_an_error_ends_it_and_drops_the_lock(stage):
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 1, VmFlags.READ)
    assert reader(stage, asked(write=True)).finish() == -Errno.EPERM
    assert stage.slots[A.mmap_lock] == 0


def test_a_fault_that_waits_for_a_page_waits_without_mmap_lock(stage):
    stage.touch(0, write=True)
    stage.settle()
    stage.run(stage.driver.exclusive, A, 0, 1)
    stage.run(stage.kernel.folio_lock, Folio(1))
    range_ = asked(write=True)
    player = reader(stage, range_)
    player.block()
    assert stage.slots[A.mmap_lock] == 0
    assert stage.run(syscalls.mmap, stage.kernel, A, 2, 3) == 0
    stage.run(stage.kernel.folio_unlock, Folio(1))
    assert player.finish() == 0
    assert [event.result for event in stage.said(FaultEnded)][-2:] == [VmFault.RETRY, VmFault.NONE]
    assert range_.hmm_pfns[0].folio == Folio(1)
    assert stage.pte(0).kind is PteKind.PRESENT


def test_what_was_unmapped_meanwhile_is_looked_up_anew(stage):
    stage.touch(0, write=True)
    stage.settle()
    stage.run(stage.driver.exclusive, A, 0, 1)
    stage.run(stage.kernel.folio_lock, Folio(1))
    player = reader(stage, asked(write=True))
    player.block()
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    stage.run(stage.kernel.folio_unlock, Folio(1))
    assert player.finish() == -Errno.EFAULT
    assert len(stage.said(RangeFaultBegan)) == 2
    assert NotifyReason.UNMAP in {event.reason for event in stage.trace if hasattr(event, "reason")}


# ---- memory that a userfaultfd watches -------------------------------------------------------------------------------


def watched(stage):
    stage.run(syscalls.uffd_register, stage.kernel, A, 0, 1)


def test_the_monitor_of_a_userfaultfd_can_answer_for_it_has_mmap_lock_to_itself(stage):
    watched(stage)
    range_ = asked()
    player = reader(stage, range_)
    player.until(UserfaultRaised)
    player.block()
    assert stage.slots[A.mmap_lock] == 0
    stage.run(syscalls.uffd_copy, stage.kernel, A, 0, 1)
    assert player.finish() == 0
    assert range_.hmm_pfns[0].folio.pfn == stage.pte(0).pfn


def test_the_call_that_keeps_mmap_lock_cannot_wait_for_a_monitor(stage):
    watched(stage)

    async def locked():
        await mmu_notifier.mmu_interval_read_begin(stage.kernel, "dev0", A)
        range_ = asked()
        range_.vmas = await stage.kernel.mmap_read_lock(A)
        result = await stage.kernel.hmm_range_fault(range_)
        await stage.kernel.mmap_read_unlock(A)
        return result

    assert stage.run(locked) == -Errno.EFAULT
    assert not stage.said(UserfaultRaised)


@pytest.mark.parametrize("fast", [False, True])
def test_a_pin_waits_for_the_monitor_too_and_keeps_what_it_has(stage, fast):
    stage.touch(1, write=True)
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3)
    stage.run(syscalls.uffd_register, stage.kernel, A, 2, 3)
    player = stage.start("pinner", take, stage.kernel, A, 1, 3, PIN | WRITE, fast, cpu=1)
    player.until(UserfaultRaised)
    player.block()
    assert stage.slots[A.mmap_lock] == 0
    assert stage.folio(stage.pte(1).pfn).pins == 1
    stage.run(syscalls.uffd_copy, stage.kernel, A, 2, 1)
    assert [page.pfn for page in player.finish()] == [stage.pte(1).pfn, stage.pte(2).pfn]
