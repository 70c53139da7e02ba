"""Pins for long, which may not stay on device-coherent memory: they send the page home first."""

import pytest

from migrate_vma_impl.mm import syscalls_pin
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_spec.events import CallbackEntered, FolioFreed, FolioLocked, OperationEnded, PageCopied, PagesReturned
from migrate_vma_spec.vocabulary import PteKind
from tests.impl.pages_stage import LONGTERM, PIN, WRITE, on_coherent_device
from tests.impl.stage import A

LONG = PIN | LONGTERM | WRITE


@pytest.fixture
def stage():
    return on_coherent_device()


def result(stage):
    return stage.said(OperationEnded)[-1].result


def test_the_page_moves_to_system_memory_and_is_pinned_there(stage):
    (pfn,) = stage.take(0, 1, LONG)
    assert stage.pte(0).pfn == pfn
    assert (stage.pte(0).kind, stage.pte(0).write) == (PteKind.PRESENT, True)
    assert (stage.folio(pfn).pins, stage.folio(pfn).exclusive) == (1, True)
    assert FolioFreed(100) in stage.trace
    assert not stage.said(CallbackEntered)


def test_its_contents_are_copied_when_it_is_known_to_move(stage):
    stage.take(0, 1, LONG)
    order = [event for event in stage.trace if isinstance(event, (PagesReturned, PageCopied))]
    assert [type(event) for event in order[-2:]] == [PagesReturned, PageCopied]


def test_a_short_pin_leaves_it_on_the_device(stage):
    assert stage.take(0, 1, PIN | WRITE) == (100,)
    assert stage.folio(100).pins == 1
    stage.drop(PIN)
    assert stage.touch(0, write=True) == 0


def test_what_somebody_else_holds_cannot_move_and_is_not_pinned(stage):
    stage.run(folio_get, Folio(100))
    stage.run(folio_get, Folio(100))
    assert stage.take(0, 1, LONG) == ()
    assert result(stage) == -16
    page = stage.folio(100)
    assert (page.pins, page.locked, page.refcount, stage.pte(0).pfn) == (0, False, 3, 100)


def test_one_reference_too_many_is_noticed_only_at_commit(stage):
    """The check after unmapping has one reference of slack for device memory."""
    stage.run(folio_get, Folio(100))
    since = len(stage.trace)
    assert stage.take(0, 1, LONG) == ()
    assert stage.said(PagesReturned, since)
    assert (result(stage), stage.folio(100).refcount) == (-16, 2)


def test_without_memory_it_stays_where_it_is(stage):
    stage.answers["a page in the place of a device-coherent one"] = [1]
    assert stage.take(0, 1, LONG) == ()
    assert result(stage) == -16
    assert (stage.folio(100).refcount, stage.folio(100).locked, stage.pte(0).pfn) == (1, False, 100)


def test_the_other_pages_of_the_call_are_pinned_anew(stage):
    stage.touch(1, write=True)
    stage.settle()
    first, second = stage.take(0, 2, LONG)
    assert stage.pte(0).pfn == first
    assert stage.pte(1).pfn == second
    assert [stage.folio(pfn).pins for pfn in (first, second)] == [1, 1]
    stage.drop(PIN)
    stage.settle()
    assert [stage.folio(pfn).refcount for pfn in (first, second)] == [1, 1]


def test_a_page_that_cannot_move_costs_the_whole_call_its_pins(stage):
    stage.touch(1, write=True)
    stage.settle()
    stage.run(folio_get, Folio(100))
    assert stage.take(0, 2, LONG) == ()
    assert stage.folio(stage.pte(1).pfn).pins == 0


def test_the_pins_of_several_tasks_keep_the_page_until_the_last_of_them_asks(stage):
    stage.take(0, 1, PIN | WRITE)
    first = stage.taken
    assert stage.take(0, 1, LONG) == ()
    stage.taken = first
    stage.drop(PIN)
    (pfn,) = stage.take(0, 1, LONG)
    assert pfn in stage.kernel.system_pfns


def test_it_waits_for_the_page_lock(stage):
    stage.run(stage.kernel.folio_lock, Folio(100))
    taker = stage.start("taker", syscalls_pin.gup_test, stage.kernel, A, 0, 1, LONG, cpu=1)
    taker.block()
    assert stage.folio(100).queue
    stage.run(stage.kernel.folio_unlock, Folio(100))
    assert taker.finish() == 1
    assert FolioLocked(100, blocking=False) in stage.trace
