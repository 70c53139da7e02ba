"""hugetlb memory: whole leaves, seen by devices, pinned, shared by fork, and refused by what works page by page."""

import pytest

from migrate_vma_impl.mm import syscalls, syscalls_pin
from migrate_vma_impl.mm.hmm import HmmPfn, HmmRange
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, PageTables, PmdSlot
from migrate_vma_spec.events import FaultBegan, LruAdded, PageCopied, PmdSplit
from migrate_vma_spec.vocabulary import Errno, PteKind, Select
from tests.impl.pages_stage import PIN, WRITE, PagesStage, Taker
from tests.impl.stage import A, B
from tests.impl.test_hmm_range_requests import look, look_again


@pytest.fixture
def stage():
    stage = PagesStage(Taker, pmd_order=1, system_frames=9, pages=0)
    assert stage.run(syscalls_pin.mmap_huge_pages, stage.kernel, A, 0, 4) == 0
    return stage


def pmd(stage, addr=0, mm=A):
    return stage.slots[PmdSlot(mm.number, addr)]


def asked(start=0, end=2, **fields):
    return HmmRange("dev0", A, (), start, end, **fields)


def pages(pfn, *, write):
    return [HmmPfn(valid=True, write=write, folio=Folio(pfn + i), order=1) for i in range(2)]


def test_a_device_that_writes_faults_whole_pages_in(stage):
    range_ = asked(write=True)
    assert look_again(stage, range_) == 0
    assert range_.hmm_pfns == pages(pmd(stage).pfn, write=True)
    assert [event.addr for event in stage.said(FaultBegan)] == [0, 1]


def test_a_read_gets_a_page_too_for_there_is_no_zero_page(stage):
    stage.touch(1, write=False)
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == pages(pmd(stage).pfn, write=False)


def test_a_store_makes_it_writable_where_it_is(stage):
    stage.touch(0, write=False)
    before = pmd(stage).pfn
    assert stage.touch(1, write=True) == 0
    assert (pmd(stage).pfn, pmd(stage).write) == (before, True)


def test_an_empty_entry_is_reported_with_its_order(stage):
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(order=1)] * 2


def test_without_a_large_folio_the_access_is_killed(stage):
    stage.answers["a large folio for a fault"] = [1]
    assert stage.touch(0, write=True) == -7
    assert pmd(stage).kind is PteKind.NONE


def test_it_neither_migrates_nor_becomes_exclusive_nor_goes_on_the_lru(stage):
    stage.touch(0, write=True)

    async def setup():
        vmas = await stage.kernel.mmap_read_lock(A)
        result = await stage.kernel.migrate_vma_setup(MigrateVma(vmas[0], 0, 2, [0, 0], [0, 0], "dev0", Select.SYSTEM))
        await stage.kernel.mmap_read_unlock(A)
        return result

    assert stage.run(setup) == -Errno.EINVAL
    assert stage.run(stage.driver.exclusive, A, 0, 1) == -Errno.EOPNOTSUPP
    assert not stage.said(LruAdded)
    assert not stage.said(PmdSplit)


def test_its_pages_can_be_pinned(stage):
    found = stage.take(0, 2, PIN | WRITE)
    head = pmd(stage).pfn
    assert found == (head, head + 1)
    assert stage.folio(head).pins == 2
    stage.drop(PIN)
    assert (stage.folio(head).refcount, stage.folio(head).pins) == (1, 0)


def test_after_fork_a_store_copies_the_whole_and_the_last_one_stays(stage):
    stage.touch(0, write=True)
    head = pmd(stage).pfn
    assert stage.fork(B) == 0
    assert (stage.folio(head).mapcount, pmd(stage).write, pmd(stage, 0, B).write) == (2, False, False)
    assert stage.touch(1, write=True, mm=B) == 0
    copy = pmd(stage, 0, B).pfn
    assert copy != head
    assert stage.said(PageCopied) == [PageCopied(head, copy), PageCopied(head + 1, copy + 1)]
    assert stage.touch(0, write=True) == 0
    assert (pmd(stage).pfn, pmd(stage).write, stage.folio(head).exclusive) == (head, True, True)


def test_a_pin_that_reads_unshares_the_whole(stage):
    stage.touch(0, write=True)
    stage.fork(B)
    (found, _) = stage.take(0, 2, PIN)
    assert found == pmd(stage).pfn != pmd(stage, 0, B).pfn
    assert not pmd(stage).write
    assert stage.folio(found).exclusive


def test_it_goes_whole_with_its_mapping(stage):
    stage.touch(0, write=True)
    head = pmd(stage).pfn
    stage.run(syscalls.munmap, stage.kernel, A, 0, 4)
    assert stage.folio(head).refcount == 0
    assert stage.slots[PageTables(0)] == 0


@pytest.mark.parametrize(("start", "end"), [(1, 3), (0, 3), (0, 8)])
def test_only_whole_leaves_are_mapped(stage, start, end):
    assert stage.run(syscalls_pin.mmap_huge_pages, stage.kernel, A, start, end) == -Errno.EINVAL


def test_where_there_are_no_leaves_there_is_no_such_memory():
    assert PagesStage(Taker).run(syscalls_pin.mmap_huge_pages, PagesStage(Taker).kernel, A, 0, 2) == -Errno.EINVAL
