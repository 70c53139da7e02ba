"""hmm_range_fault at the middle level: leaves are reported with their order, and lacked as a whole."""

import pytest

from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.hmm import HmmPfn, HmmRange
from migrate_vma_impl.mm.mm_types import Folio, PmdSlot
from migrate_vma_spec.events import FaultBegan, PmdRead, WaitBegan
from migrate_vma_spec.vocabulary import Errno, Pte, PteKind, VmFlags
from tests.impl.pages_stage import PagesStage, Taker
from tests.impl.stage import A
from tests.impl.test_hmm_range_requests import look, look_again

HUGE = VmFlags.READ | VmFlags.WRITE | VmFlags.HUGEPAGE


@pytest.fixture
def stage():
    stage = PagesStage(Taker, pmd_order=1, system_frames=7, pages=0)
    stage.run(syscalls.mmap, stage.kernel, A, 0, 4, HUGE)
    return stage


def asked(start=0, end=2, **fields):
    return HmmRange("dev0", A, (), start, end, **fields)


def pages(*pfns, write=True, order=1):
    return [HmmPfn(valid=True, write=write, folio=Folio(pfn), order=order) for pfn in pfns]


def pmd(stage, addr=0):
    return stage.slots[PmdSlot(0, addr)]


def test_a_leaf_is_reported_page_by_page_with_its_order(stage):
    stage.touch(0, write=True)
    head = pmd(stage).pfn
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == pages(head, head + 1)


def test_a_part_of_a_leaf_begins_at_its_own_page(stage):
    stage.touch(0, write=True)
    range_ = asked(1, 2, fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == pages(pmd(stage).pfn + 1)


def test_the_huge_zero_page_is_valid_and_names_no_frame(stage):
    stage.touch(0, write=False)
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(valid=True, order=1)] * 2


def test_an_empty_one_is_faulted_once_for_each_of_its_pages(stage):
    range_ = asked(0, 4, write=True)
    assert look_again(stage, range_) == 0
    assert [event.addr for event in stage.said(FaultBegan)] == [0, 1, 2, 3]
    assert range_.hmm_pfns == [*pages(pmd(stage).pfn, pmd(stage).pfn + 1), *pages(pmd(stage, 2).pfn, pmd(stage, 2).pfn + 1)]


def test_an_empty_one_that_nobody_asks_for_is_reported_empty(stage):
    range_ = asked(0, 2, fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn()] * 2


def test_a_read_only_leaf_is_faulted_for_a_write(stage):
    stage.touch(0, write=False)
    range_ = asked(write=True)
    assert look_again(stage, range_) == 0
    assert all(found.write for found in range_.hmm_pfns)


def test_below_a_page_table_there_is_no_order(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 2)
    stage.touch(0, write=True)
    stage.touch(1, write=True)
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert [found.order for found in range_.hmm_pfns] == [0, 0]


def test_a_leaf_of_the_callers_own_device_is_reported_as_it_is(stage):
    stage.slots[PmdSlot(0, 0)] = Pte(PteKind.DEVICE_PRIVATE, 100)
    range_ = asked(write=True, dev_private_owner="dev0")
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == pages(100, 101, write=False)


def test_a_leaf_of_another_device_is_an_error_where_nobody_asks_for_it(stage):
    """Page by page it is reported empty."""
    stage.slots[PmdSlot(0, 0)] = Pte(PteKind.DEVICE_PRIVATE, 100)
    range_ = asked(fault=False, dev_private_owner="dev1")
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(error=True)] * 2


def test_a_migration_entry_is_waited_for_if_somebody_asks(stage):
    stage.touch(0, write=True)
    head = pmd(stage)
    stage.run(stage.kernel.folio_lock, Folio(head.pfn))
    stage.slots[PmdSlot(0, 0)] = Pte(PteKind.MIGRATION, head.pfn, write=True)
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn()] * 2
    range_ = asked()
    reader = stage.start("reader", look_once, stage, range_)
    reader.until(WaitBegan, pfn=head.pfn)
    reader.block()
    stage.slots[PmdSlot(0, 0)] = head
    stage.run(stage.kernel.folio_unlock, Folio(head.pfn))
    assert reader.finish() == 0
    assert range_.hmm_pfns == pages(head.pfn, head.pfn + 1)


async def look_once(stage, range_):
    await stage.kernel.mmu_interval_read_begin("dev0", A)
    range_.vmas = await stage.kernel.mmap_read_lock(A)
    result = await stage.kernel.hmm_range_fault(range_)
    await stage.kernel.mmap_read_unlock(A)
    return result


def test_what_may_not_be_written_is_refused_as_a_whole(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 4, VmFlags.READ | VmFlags.HUGEPAGE)
    assert look(stage, asked(write=True)) == -Errno.EPERM
    range_ = asked()
    assert look(stage, range_) == 0
    assert [found.write for found in range_.hmm_pfns] == [False, False]
    assert any(isinstance(event, PmdRead) for event in stage.trace)
