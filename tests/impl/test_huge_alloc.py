"""Large folios in the page allocator, their heads and tails, and the LRU."""

import pytest

from migrate_vma_impl.mm import highmem
from migrate_vma_impl.mm.folio import folio_nr_pages, page_folio
from migrate_vma_impl.mm.mm_types import Folio, FolioState, FreePages, LruBatch
from migrate_vma_impl.mm.page_alloc import first_fit
from migrate_vma_spec.events import AllocationFailed, FolioAllocated, FolioFreed, LruDrained, PageCleared, PageCopied
from migrate_vma_spec.vocabulary import Lru
from tests.impl.huge_stage import HugeStage
from tests.impl.stage import Stopped


@pytest.fixture
def stage():
    return HugeStage()


def alloc(stage, order=2):
    return stage.run(stage.kernel.folio_alloc, "a folio", order)


@pytest.mark.parametrize(
    ("free", "order", "found"),
    [
        ((1, 2, 3), 0, 1),
        ((), 0, None),
        ((1, 2, 3, 4), 1, 2),
        ((1, 2, 3, 4, 5, 6), 2, None),
        ((4, 5, 6, 7), 2, 4),
        ((3, 5, 7), 1, None),
    ],
)
def test_the_smallest_aligned_frames_are_taken(free, order, found):
    assert first_fit(free, order) == found


def test_a_large_folio_has_its_count_and_order_in_the_head_and_tails_that_know_it(stage):
    assert alloc(stage) == Folio(4)
    assert (stage.folio(4).refcount, stage.folio(4).order, stage.folio(4).head) == (1, 2, None)
    assert [(stage.folio(pfn).refcount, stage.folio(pfn).head) for pfn in (5, 6, 7)] == [(0, 4)] * 3
    assert stage.said(FolioAllocated)[-1] == FolioAllocated(4, 1, locked=False, order=2)
    assert stage.slots[FreePages()] == (1, 2, 3, 8, 9, 10, 11)


def test_an_order_that_finds_no_room_fails_while_single_pages_are_free(stage):
    assert [alloc(stage), alloc(stage), alloc(stage)] == [Folio(4), Folio(8), None]
    assert stage.said(AllocationFailed) == [AllocationFailed("a folio")]
    assert alloc(stage, 0) == Folio(1)


def test_that_an_order_cannot_be_had_is_a_data_choice(stage):
    stage.answers["a folio"] = [1]
    assert alloc(stage) is None
    assert len(stage.slots[FreePages()]) == 11


def test_a_single_page_taken_of_an_aligned_range_leaves_no_room_for_a_large_folio(stage):
    taken = [alloc(stage, 0) for _ in range(4)]
    assert taken[-1] == Folio(4)
    assert alloc(stage) == Folio(8)


def test_the_last_put_frees_all_pages_of_a_folio_as_they_were(stage):
    before = [stage.folio(pfn) for pfn in range(4, 8)]
    stage.run(stage.kernel.folio_put, alloc(stage))
    assert [stage.folio(pfn) for pfn in range(4, 8)] == before == [FolioState(pfn) for pfn in range(4, 8)]
    assert stage.said(FolioFreed) == [FolioFreed(4, 2)]
    assert len(stage.slots[FreePages()]) == 11


def test_a_tail_page_has_no_reference_of_its_own_to_drop(stage):
    alloc(stage)
    with pytest.raises(Stopped, match="folio_put of a free folio"):
        stage.run(stage.kernel.folio_put, Folio(6))


@pytest.mark.parametrize("pfn", range(4, 8))
def test_every_page_leads_to_the_head(stage, pfn):
    alloc(stage)
    assert stage.run(page_folio, stage.kernel, Folio(pfn)) == Folio(4)


@pytest.mark.parametrize("pfn", [1, 3, 5, 8])
def test_a_page_that_is_no_tail_is_its_own_folio(stage, pfn):
    assert stage.run(page_folio, stage.kernel, Folio(pfn)) == Folio(pfn)
    assert stage.run(folio_nr_pages, stage.kernel, Folio(pfn)) == 1


def test_a_head_knows_how_many_pages_it_has(stage):
    assert stage.run(folio_nr_pages, stage.kernel, alloc(stage)) == 4


def test_a_large_folio_drains_the_batch_that_it_joins(stage):
    stage.run(stage.kernel.folio_add_lru, alloc(stage, 0))
    assert stage.slots[LruBatch(0)] == (1,)
    stage.run(stage.kernel.folio_add_lru, alloc(stage))
    assert stage.slots[LruBatch(0)] == ()
    assert stage.said(LruDrained)[-1] == LruDrained((1, 4))
    assert (stage.folio(4).lru, stage.folio(4).refcount, stage.folio(5).lru) == (Lru.ON, 1, Lru.OFF)


def test_a_large_folio_is_cleared_and_copied_page_by_page(stage):
    src, dst = alloc(stage), alloc(stage)
    stage.run(highmem.folio_zero_user, src, 4)
    stage.run(highmem.folio_copy, dst, src, 4)
    assert stage.said(PageCleared) == [PageCleared(pfn) for pfn in range(4, 8)]
    assert stage.said(PageCopied) == [PageCopied(pfn, pfn + 4) for pfn in range(4, 8)]


def test_a_free_page_is_not_cleared_as_if_it_were_a_tail(stage):
    with pytest.raises(Stopped, match="a free page is written"):
        stage.run(stage.kernel.clear_highpage, Folio(5))
