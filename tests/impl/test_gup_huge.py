"""get_user_pages, pins and make_device_exclusive where leaves of the middle level map large folios."""

import pytest

from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import PmdSlot
from migrate_vma_spec.events import FaultBegan, FolioGot, LockTaken, PmdSplit, PteChanged
from migrate_vma_spec.vocabulary import PteKind, VmFlags
from tests.impl.pages_stage import LONGTERM, PIN, READ, WRITE, PagesStage, Taker
from tests.impl.stage import A, B

HUGE = VmFlags.READ | VmFlags.WRITE | VmFlags.HUGEPAGE


def written(**config):
    """A large folio of two pages at 0, with no reference in a batch."""
    stage = PagesStage(Taker, pmd_order=1, system_frames=9, pages=0, **config)
    stage.run(syscalls.mmap, stage.kernel, A, 0, 4, HUGE)
    stage.touch(0, write=True)
    stage.settle()
    assert stage.folio(pmd(stage).pfn).refcount == 1
    return stage


def pmd(stage, addr=0, mm=A):
    return stage.slots[PmdSlot(mm.number, addr)]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("flags", [READ, WRITE, PIN, PIN | WRITE, PIN | WRITE | LONGTERM])
def test_each_page_of_a_leaf_is_a_reference_to_its_folio(fast, flags):
    stage = written(gup_fast=True)
    head = pmd(stage).pfn
    assert stage.take(0, 2, flags, fast=fast) == (head, head + 1)
    pins = 2 if flags & PIN else 0
    assert (stage.folio(head).refcount, stage.folio(head).pins) == (3, pins)
    assert stage.folio(head + 1).refcount == 0
    stage.drop(flags)
    assert (stage.folio(head).refcount, stage.folio(head).pins) == (1, 0)


def test_the_slow_way_takes_all_pages_of_a_leaf_at_once():
    stage = written()
    since = len(stage.trace)
    stage.take(0, 2, WRITE)
    assert [event.refcount for event in stage.said(FolioGot, since)] == [3]


def test_the_fast_way_needs_no_lock():
    stage = written(gup_fast=True)
    since = len(stage.trace)
    stage.take(0, 2, PIN | WRITE, fast=True)
    assert not stage.said(LockTaken, since)


def test_from_the_middle_of_a_leaf_into_the_next():
    stage = written()
    head = pmd(stage).pfn
    found = stage.take(1, 4, PIN | WRITE)
    assert found[0] == head + 1
    assert found[1:] == (pmd(stage, 2).pfn, pmd(stage, 2).pfn + 1)
    assert [event.addr for event in stage.said(FaultBegan)] == [0, 2]


def test_a_pinned_large_folio_does_not_migrate():
    stage = written()
    before = pmd(stage)
    stage.take(1, 2, PIN | WRITE)
    stage.run(stage.driver.to_device, A, 0, 2)
    assert stage.folio(before.pfn).pins == 1
    stage.drop(PIN)


def test_a_read_only_leaf_is_unshared_for_a_pin_that_reads():
    stage = written()
    head = pmd(stage).pfn
    stage.fork(B)
    (found,) = stage.take(0, 1, PIN)
    assert found not in (head, head + 1)
    assert stage.folio(found).exclusive


def test_one_page_of_a_leaf_is_made_exclusive_and_the_others_stay_mapped():
    stage = written()
    head = pmd(stage).pfn
    assert stage.run(stage.driver.exclusive, A, 1, 2) == 1
    assert stage.said(PmdSplit)
    assert (stage.pte(0).kind, stage.pte(1).kind) == (PteKind.PRESENT, PteKind.EXCLUSIVE)
    assert (stage.pte(1).pfn, stage.folio(head).mapcount, stage.folio(head).refcount) == (head + 1, 2, 2)
    assert not stage.folio(head).locked


def test_a_fault_restores_the_one_page():
    stage = written()
    head = pmd(stage).pfn
    stage.run(stage.driver.exclusive, A, 1, 2)
    assert stage.touch(1, write=True) == 0
    assert (stage.pte(1).kind, stage.pte(1).pfn, stage.pte(1).write) == (PteKind.PRESENT, head + 1, True)
    assert (stage.folio(head).mapcount, stage.folio(head).refcount, stage.folio(head).locked) == (2, 2, False)


def test_a_leaf_that_changes_under_the_fast_walk_is_dropped_again():
    stage = written(gup_fast=True)
    head = pmd(stage).pfn
    taker = stage.start("taker", take_slowly, stage, cpu=1)
    taker.until(FolioGot, pfn=head)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 2)
    pages = taker.finish()
    assert [page.pfn for page in pages] == [pmd(stage).pfn, pmd(stage).pfn + 1]
    assert stage.folio(pmd(stage).pfn).pins == 2
    assert not stage.said(PteChanged)


async def take_slowly(stage):
    from migrate_vma_impl.mm import syscalls_pin

    return await syscalls_pin.take_user_pages(stage.kernel, A, 0, 2, PIN | WRITE, fast=True)
