"""hmm_range_fault page by page: what each page is asked for, what a page is reported as, and what one fault brings in."""

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import hmm, mmu_notifier, syscalls
from migrate_vma_impl.mm.hmm import HmmPfn, HmmRange, HmmRequest
from migrate_vma_impl.mm.mm_types import Folio, Mm, PteSlot
from migrate_vma_impl.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from migrate_vma_spec.events import CallbackEntered, FaultBegan, IntervalRetry, InvalidateBegan, WaitBegan
from migrate_vma_spec.vocabulary import Errno, NotifyReason, Pte, PteKind, VmFlags
from tests.impl.pages_stage import Coherent, PagesStage, Taker
from tests.impl.stage import READ_ONLY, A

NOTHING, ERROR = HmmPfn(), HmmPfn(error=True)
FAULT, WRITE = HmmRequest.FAULT, HmmRequest.FAULT | HmmRequest.WRITE


@pytest.fixture
def stage():
    return PagesStage(Taker)


def asked(start=0, end=1, **fields):
    return HmmRange("dev0", A, (), start, end, **fields)


async def range_fault(stage, range_):
    await mmu_notifier.mmu_interval_read_begin(stage.kernel, range_.device, A)
    range_.vmas = await mmap_read_lock(A)
    result = await hmm.hmm_range_fault(stage.kernel, range_)
    await mmap_read_unlock(A)
    return result


def look(stage, range_):
    return stage.run(range_fault, stage, range_)


def look_again(stage, range_):
    """As drivers do: until nothing has come in between, not even what the look itself has caused."""
    while (result := look(stage, range_)) == -Errno.EBUSY:
        pass
    return result


def page(pfn, *, write):
    return HmmPfn(valid=True, write=write, folio=Folio(pfn))


# ---- requests --------------------------------------------------------------------------------------------------------


def test_each_page_can_be_asked_for_by_itself(stage):
    range_ = asked(0, 2, fault=False, requests=(HmmRequest.NONE, WRITE), pfn_flags_mask=WRITE)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [NOTHING, page(1, write=True)]


def test_what_the_mask_holds_back_is_not_asked(stage):
    range_ = asked(0, 2, fault=False, requests=(FAULT, WRITE), pfn_flags_mask=FAULT)
    assert look(stage, range_) == 0
    zero = HmmPfn(valid=True)
    assert range_.hmm_pfns == [zero, zero]


def test_what_is_asked_of_every_page_is_added(stage):
    range_ = asked(0, 2, requests=(HmmRequest.NONE, HmmRequest.WRITE), pfn_flags_mask=WRITE)
    assert look_again(stage, range_) == 0
    assert [found.write for found in range_.hmm_pfns] == [False, True]


def test_to_ask_for_a_write_without_a_fault_asks_for_nothing(stage):
    range_ = asked(fault=False, write=True)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [NOTHING]


def test_one_lacking_page_has_all_behind_it_faulted_before_the_next_look(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 4)
    stage.touch(0, write=True)
    stage.touch(2, write=True)
    since = len(stage.trace)
    range_ = asked(0, 4, write=True)
    assert look(stage, range_) == 0
    assert [event.addr for event in stage.said(FaultBegan, since)] == [1, 2, 3]
    assert len(stage.said(IntervalRetry, since)) == 2
    assert all(found.write for found in range_.hmm_pfns)


# ---- mappings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prot", [VmFlags.NONE, VmFlags.WRITE])
def test_memory_that_may_not_be_read_is_an_error(stage, prot):
    stage.touch(0, write=True)
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 1, prot)
    range_ = asked(0, 2, fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [ERROR, NOTHING]
    assert look(stage, asked(0, 2)) == -Errno.EFAULT


@pytest.mark.parametrize("flag", [VmFlags.IO, VmFlags.PFNMAP])
def test_memory_without_pages_is_an_error(stage, flag):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1, READ_ONLY | flag)
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [ERROR]
    assert look(stage, asked()) == -Errno.EFAULT


def test_a_gap_is_an_error_and_what_lies_around_it_is_not(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 4)
    stage.run(syscalls.munmap, stage.kernel, A, 1, 3)
    stage.touch(3, write=True)
    range_ = asked(0, 4, fault=False)
    assert look(stage, range_) == 0
    assert [found.error for found in range_.hmm_pfns] == [False, True, True, False]
    assert range_.hmm_pfns[3].valid


def test_an_unasked_page_in_memory_that_cannot_be_used_does_no_harm(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1, VmFlags.NONE)
    range_ = asked(0, 2, fault=False, requests=(HmmRequest.NONE, FAULT), pfn_flags_mask=FAULT)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [ERROR, HmmPfn(valid=True)]


# ---- entries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pte",
    [
        Pte(PteKind.MARKER, uffd_wp=True),
        Pte(PteKind.SWAP, swap=0),
        Pte(PteKind.EXCLUSIVE, 1, write=True),
        Pte(PteKind.MIGRATION, 1, write=True),
        Pte(PteKind.DEVICE_PRIVATE, 100, write=True),
        Pte(PteKind.HWPOISON, 1),
    ],
    ids=lambda pte: pte.kind.value,
)
def test_a_snapshot_reports_nothing_of_what_is_not_there_and_leaves_it(stage, pte):
    stage.slots[PteSlot(0, 0)] = pte
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [NOTHING]
    assert stage.pte(0) == pte


def test_a_broken_page_is_an_error_for_who_asks_for_it(stage):
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.HWPOISON, 1)
    assert look(stage, asked()) == -Errno.EFAULT
    assert not stage.said(FaultBegan)


def test_a_page_that_a_device_has_for_itself_is_faulted_away_from_it(stage):
    stage.touch(0, write=True)
    stage.settle()
    stage.run(stage.driver.exclusive, A, 0, 1)
    range_ = asked(write=True)
    assert look(stage, range_) == -Errno.EBUSY  # the fault's own notification is one that the reader hears of
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [page(1, write=True)]
    assert InvalidateBegan(0, 0, 1, NotifyReason.CLEAR, None) in stage.trace


def test_a_migration_entry_that_nobody_asks_for_is_not_waited_for(stage):
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.MIGRATION, 1)
    look(stage, asked(fault=False))
    assert not stage.said(WaitBegan)


def test_a_coherent_page_is_reported_as_any_other():
    stage = PagesStage(Coherent)
    stage.touch(0, write=True)
    stage.settle()
    stage.to_device()
    range_ = asked(write=True)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [page(100, write=True)]


# ---- whose device page it is -----------------------------------------------------------------------------------------


def two_devices(generation):
    stage = PagesStage(Taker, devices=2)
    stage.kernel.generation = generation
    stage.touch(0, write=True)
    stage.settle()
    assert stage.to_device() == 1
    return stage


def test_another_devices_page_is_faulted_in():
    stage = two_devices(WAITING)
    range_ = asked(dev_private_owner="dev1")
    assert look_again(stage, range_) == 0
    assert len(stage.said(CallbackEntered)) == 1
    assert range_.hmm_pfns[0].folio.pfn in stage.kernel.system_pfns


def test_to_take_it_for_an_error_is_the_bug_of_the_first_years():
    """Before 8a295dbbaf72."""
    only_own = WAITING.with_steps(hmm_faults_in=lambda pte: pte.kind is not PteKind.DEVICE_PRIVATE)
    stage = two_devices(only_own)
    assert look(stage, asked(dev_private_owner="dev1")) == -Errno.EFAULT
    assert not stage.said(CallbackEntered)


def test_to_take_it_for_ones_own_would_report_memory_that_the_device_cannot_reach():
    stage = two_devices(WAITING.with_steps(hmm_owns=lambda kernel, owner, pte: pte.kind is PteKind.DEVICE_PRIVATE))
    range_ = asked(dev_private_owner="dev1")
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [page(100, write=True)]


def test_a_process_that_has_ended_has_nothing(stage):
    stage.run(syscalls.exit, stage.kernel, A)
    assert stage.slots[Mm(0)].vmas == ()
    assert look(stage, asked()) == -Errno.EFAULT
