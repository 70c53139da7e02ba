"""Last references, LRU batches, and the drain that waits for every CPU."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import memcontrol, page_alloc, swap
from migrate_vma_impl.mm.mm_types import Folio, FreePages, LruBatch, WorkList
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.events import DrainEnded, FolioFreed, FolioPut, LruDrained, LruIsolated, MemcgUncharged, WorkDone
from migrate_vma_spec.vocabulary import Lru
from tests.impl.stage import Stage, Stopped


@pytest.fixture
def stage():
    return Stage(WAITING, pages=0)


def allocated(stage: Stage) -> Folio:
    return stage.run(page_alloc.alloc_page, stage.kernel, "test")


def added(stage: Stage, cpu: int = 0) -> Folio:
    """A page whose one reference is its batch's."""
    folio = allocated(stage)
    stage.run(swap.folio_add_lru, stage.kernel, folio, cpu=cpu)
    stage.run(swap.folio_put, stage.kernel, folio)
    return folio


def test_the_last_put_uncharges_then_frees(stage):
    folio = allocated(stage)
    stage.run(memcontrol.mem_cgroup_charge, stage.kernel, folio)
    stage.run(swap.folio_put, stage.kernel, folio)
    assert stage.trace[-3:] == [FolioPut(folio.pfn, 0), MemcgUncharged(folio.pfn), FolioFreed(folio.pfn)]
    assert folio.pfn in stage.slots[FreePages()]


def test_an_uncharged_page_is_freed_without_a_word_of_memcg(stage):
    stage.run(swap.folio_put, stage.kernel, allocated(stage))
    assert not stage.said(MemcgUncharged)


def test_a_put_of_a_free_page_stops_the_kernel(stage):
    with pytest.raises(Stopped, match="folio_put of a free folio"):
        stage.run(swap.folio_put, stage.kernel, Folio(1))


def test_a_second_charge_stops_the_kernel(stage):
    folio = allocated(stage)
    stage.run(memcontrol.mem_cgroup_charge, stage.kernel, folio)
    with pytest.raises(Stopped, match="charged twice"):
        stage.run(memcontrol.mem_cgroup_charge, stage.kernel, folio)


def test_a_batch_holds_a_reference(stage):
    folio = added(stage)
    assert (stage.folio(folio.pfn).refcount, stage.folio(folio.pfn).lru) == (1, Lru.BATCHED)
    assert stage.slots[LruBatch(0)] == (folio.pfn,)


def test_a_drain_frees_what_only_the_batch_held(stage):
    folio = added(stage)
    stage.run(swap.lru_add_drain, stage.kernel)
    assert stage.said(FolioFreed) == [FolioFreed(folio.pfn)]
    assert stage.slots[LruBatch(0)] == ()


def test_a_local_drain_leaves_other_batches_alone(stage):
    here, there = added(stage, cpu=0), added(stage, cpu=1)
    stage.run(swap.lru_add_drain, stage.kernel, cpu=1)
    assert stage.said(LruDrained) == [LruDrained((there.pfn,))]
    assert stage.slots[LruBatch(0)] == (here.pfn,)


def test_what_is_batched_during_a_drain_waits_for_the_next(stage):
    folio = added(stage)
    drain = stage.start("drain", swap.lru_add_drain, stage.kernel)
    drain.step()
    late = added(stage)
    drain.finish()
    assert stage.said(LruDrained) == [LruDrained((folio.pfn,))]
    assert stage.slots[LruBatch(0)] == (late.pfn,)


def test_a_full_batch_drains_itself():
    stage = Stage(WAITING, pages=0, system_frames=16)
    folios = [added(stage) for _ in range(swap.PAGEVEC_SIZE)]
    assert stage.said(LruDrained) == [LruDrained(tuple(folio.pfn for folio in folios))]


def test_a_page_cannot_be_batched_twice(stage):
    folio = added(stage)
    with pytest.raises(Stopped, match="on the LRU or in a batch"):
        stage.run(swap.folio_add_lru, stage.kernel, folio, cpu=1)


def test_only_a_page_on_the_lru_proper_is_isolated(stage):
    folio = allocated(stage)
    stage.run(swap.folio_add_lru, stage.kernel, folio)
    assert not stage.run(swap.folio_isolate_lru, stage.kernel, folio)
    stage.run(swap.lru_add_drain, stage.kernel)
    assert stage.run(swap.folio_isolate_lru, stage.kernel, folio)
    assert not stage.run(swap.folio_isolate_lru, stage.kernel, folio)
    assert [event.refcount for event in stage.said(LruIsolated)] == [2, 2, 2]


def test_putting_back_drops_the_isolations_reference(stage):
    folio = allocated(stage)
    stage.run(swap.folio_add_lru, stage.kernel, folio)
    stage.run(swap.lru_add_drain, stage.kernel)
    stage.run(swap.folio_isolate_lru, stage.kernel, folio)
    stage.run(swap.folio_put, stage.kernel, folio)
    stage.run(swap.folio_putback_lru, stage.kernel, folio)
    assert stage.said(FolioFreed) == [FolioFreed(folio.pfn)]


def test_drain_all_waits_for_the_worker_of_another_cpu(stage):
    folio = added(stage, cpu=1)
    drain = stage.start("drain", swap.lru_add_drain_all, stage.kernel)
    drain.block()
    assert [len(stage.slots[WorkList(cpu)]) for cpu in (0, 1)] == [0, 1]
    worker = stage.start("kworker", kworker, stage.kernel, 1, cpu=1)
    worker.until(WorkDone)
    drain.finish()
    assert stage.slots[WorkList(1)] == ()
    assert stage.said(FolioFreed) == [FolioFreed(folio.pfn)]
    assert not worker.step()


def test_drain_all_of_empty_batches_asks_nobody(stage):
    drain = stage.start("drain", swap.lru_add_drain_all, stage.kernel)
    drain.finish()
    assert stage.said(DrainEnded)


def test_a_second_drain_waits_for_the_first(stage):
    added(stage, cpu=1)
    first = stage.start("first", swap.lru_add_drain_all, stage.kernel)
    first.block()
    second = stage.start("second", swap.lru_add_drain_all, stage.kernel)
    assert not second.step()
    stage.start("kworker", kworker, stage.kernel, 1, cpu=1).until(WorkDone)
    first.finish()
    second.finish()
    assert len(stage.said(DrainEnded)) == 2


def test_an_idle_worker_leaves_nothing_behind(stage):
    before = dict(stage.slots)
    stage.run(swap.lru_add_drain_all, stage.kernel)
    assert stage.slots == before
