"""get_user_pages and pin_user_pages: which page is taken, what is faulted in or unshared for it, and what is dropped again."""

import pytest

from migrate_vma_impl.mm import syscalls, syscalls_pin
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_spec.events import CallbackEntered, FaultBegan, FolioDirtied, FolioLocked, OperationEnded, PageCopied
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFlags
from tests.impl.pages_stage import LONGTERM, PIN, READ, WRITE, PagesStage
from tests.impl.stage import READ_ONLY, A, B


@pytest.fixture
def stage():
    return PagesStage()


def counts(stage, pfn):
    page = stage.folio(pfn)
    return page.refcount, page.pins


def result(stage):
    return stage.said(OperationEnded)[-1].result


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_a_page_that_is_there_gets_a_reference_and_loses_it_again(stage):
    stage.touch(0, write=True)
    stage.settle()
    assert stage.take(0, 1, WRITE) == (1,)
    assert counts(stage, 1) == (2, 0)
    stage.drop(WRITE)
    assert counts(stage, 1) == (1, 0)
    assert len(stage.said(FaultBegan)) == 1


def test_a_pin_is_a_reference_that_is_counted_besides(stage):
    stage.touch(0, write=True)
    stage.settle()
    assert stage.take(0, 1, PIN | WRITE) == (1,)
    assert counts(stage, 1) == (2, 1)
    stage.drop(PIN)
    assert counts(stage, 1) == (1, 0)


def test_a_hole_that_is_read_is_the_zero_page_which_nobody_counts(stage):
    assert stage.take(0, 1, PIN) == (None,)
    stage.drop(PIN)
    assert stage.pte(0).kind is PteKind.ZERO


def test_a_hole_that_is_written_gets_a_page(stage):
    assert stage.take(0, 2, PIN | WRITE) == (1, 2)
    assert stage.said(FaultBegan) == [FaultBegan(0, 0, write=True), FaultBegan(0, 1, write=True)]


def test_without_memory_there_is_no_page(stage):
    stage.answers["a page for a fault"] = [1]
    assert stage.take(0, 1, WRITE) == ()
    assert result(stage) == -12


@pytest.mark.parametrize("flags", [READ, PIN], ids=["get", "pin"])
def test_a_device_private_page_comes_back(stage, flags):
    stage.touch(0, write=True)
    stage.to_device()
    (pfn,) = stage.take(0, 1, flags)
    assert pfn in stage.kernel.system_pfns
    assert len(stage.said(CallbackEntered)) == 1
    assert stage.pte(0).pfn == pfn


# ---- what is allowed -------------------------------------------------------------------------------------------------


def test_what_may_not_be_written_is_not_taken_for_writing(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 0, 1, READ_ONLY)
    assert stage.take(0, 1, WRITE) == ()
    assert result(stage) == -14
    assert stage.take(0, 1, READ) == (None,)


def test_memory_that_nobody_may_access_is_not_taken(stage):
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 1, VmFlags.NONE)
    assert stage.take(0, 1, READ) == ()
    assert result(stage) == -14


def test_up_to_a_gap_the_pages_are_taken_and_behind_it_none_are(stage):
    assert stage.take(1, 4, WRITE) == (1,)
    assert result(stage) == 1
    assert stage.take(2, 4, WRITE) == ()
    assert result(stage) == -14


@pytest.mark.parametrize(("start", "end", "flags"), [(1, 1, READ), (0, 9, READ), (0, 1, LONGTERM)])
def test_a_call_that_makes_no_sense_is_refused(stage, start, end, flags):
    assert stage.take(start, end, flags) == ()
    assert result(stage) == -22


# ---- unsharing -------------------------------------------------------------------------------------------------------


def shared(stage):
    stage.touch(0, write=True)
    stage.settle()
    stage.fork(B)
    assert not stage.folio(1).exclusive


def test_a_pin_for_reading_of_a_shared_page_gets_a_copy_that_stays_read_only(stage):
    shared(stage)
    assert stage.take(0, 1, PIN) == (2,)
    assert stage.folio(2).exclusive
    assert stage.pte(0) == Pte(PteKind.PRESENT, 2, young=True, soft_dirty=True)
    assert stage.pte(0, B).pfn == 1
    assert stage.said(FaultBegan)[-1] == FaultBegan(0, 0, write=False)


def test_a_reference_for_reading_takes_the_shared_page(stage):
    shared(stage)
    assert stage.take(0, 1, READ) == (1,)
    assert not stage.said(PageCopied)


def test_a_pin_for_reading_of_a_page_that_is_alone_again_makes_it_exclusive_where_it_is(stage):
    shared(stage)
    before = stage.pte(0)
    stage.run(syscalls.exit, stage.kernel, B)
    assert stage.take(0, 1, PIN) == (1,)
    assert stage.folio(1).exclusive
    assert stage.pte(0) == before
    assert not before.write


def test_a_pin_for_writing_of_a_shared_page_gets_a_writable_copy(stage):
    shared(stage)
    assert stage.take(0, 1, PIN | WRITE) == (2,)
    assert stage.pte(0).write


def test_only_a_pin_for_long_puts_a_page_in_the_place_of_the_zero_page(stage):
    stage.touch(0, write=False)
    assert stage.take(0, 1, PIN) == (None,)
    assert stage.take(0, 1, PIN | LONGTERM) == (1,)
    assert (stage.pte(0).pfn, stage.pte(0).write) == (1, False)


def test_what_is_pinned_for_reading_stays_the_processs_when_it_writes(stage):
    shared(stage)
    assert stage.take(0, 1, PIN) == (2,)
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0).pfn == 2


# ---- dropping --------------------------------------------------------------------------------------------------------


def test_pages_that_were_written_by_pins_are_made_dirty_under_their_lock(stage):
    stage.take(0, 1, PIN | WRITE)
    assert not stage.folio(1).dirty
    since = len(stage.trace)
    stage.drop(PIN | WRITE)
    order = [type(event) for event in stage.trace[since:]]
    assert order.index(FolioLocked) < order.index(FolioDirtied)
    assert stage.folio(1).dirty
    since = len(stage.trace)
    stage.take(0, 1, PIN | WRITE)
    stage.drop(PIN | WRITE)
    assert not stage.said(FolioLocked, since)


def test_a_page_that_its_process_has_unmapped_goes_with_the_last_pin(stage):
    stage.take(0, 1, PIN | WRITE)
    stage.settle()
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    assert counts(stage, 1) == (1, 1)
    stage.drop(PIN)
    assert counts(stage, 1) == (0, 0)


def test_a_test_that_takes_and_drops_leaves_nothing(stage):
    assert stage.run(syscalls_pin.gup_test, stage.kernel, A, 0, 2, PIN | WRITE) == 2
    stage.settle()
    assert [counts(stage, pfn) for pfn in (1, 2)] == [(1, 0), (1, 0)]


def test_a_dead_space_has_no_pages(stage):
    assert stage.take(0, 1, READ, mm=Mm(1)) == ()
    assert result(stage) == -14
