"""Interval notifiers: one stale bit for each open reader."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.mmu_notifier import NotifierRange, Subscriptions, SubscriptionsState
from migrate_vma_spec.events import IntervalRead, IntervalRetry, InvalidateBegan, InvalidateEnded
from migrate_vma_spec.vocabulary import NotifyReason
from tests.impl.stage import A, FakeDriver, Stage, Stopped


class Deaf(FakeDriver):
    """Ignores every invalidation."""

    async def invalidate(self, range_: NotifierRange) -> None:
        pass


@pytest.fixture
def stage():
    stage = Stage(WAITING, pages=0)
    stage.run(stage.driver.open, A)
    return stage


def invalidation(stage: Stage, name: str = "migrator"):
    async def invalidate() -> None:
        await mmu_notifier.invalidate_range_start(stage.kernel, A, 0, 1, NotifyReason.CLEAR)
        await mmu_notifier.invalidate_range_end(stage.kernel, A, 0, 1)

    return stage.start(name, invalidate)


def begin(stage: Stage, name: str = "reader"):
    return stage.start(name, mmu_notifier.mmu_interval_read_begin, stage.kernel, "dev0", A)


def reached(stage: Stage, name: str = "migrator"):
    """An invalidation that the device's callback has heard of, and that has not ended."""
    migrator = invalidation(stage, name)
    migrator.step()
    migrator.step()
    return migrator


def retry(stage: Stage, name: str = "reader", *, close: bool = True) -> bool:
    async def ask() -> bool:
        return await mmu_notifier.mmu_interval_read_retry(stage.kernel, "dev0", A, close=close)

    return stage.start(name, ask).finish()


def test_an_undisturbed_read_is_fresh(stage):
    begin(stage).finish()
    assert not retry(stage)


def test_an_invalidation_makes_an_open_read_stale(stage):
    begin(stage).finish()
    invalidation(stage).finish()
    assert retry(stage)


def test_an_invalidation_before_the_read_began_does_not(stage):
    invalidation(stage).finish()
    begin(stage).finish()
    assert not retry(stage)


def test_two_readers_have_a_bit_each(stage):
    begin(stage, "early").finish()
    invalidation(stage).finish()
    begin(stage, "late").finish()
    assert (retry(stage, "early"), retry(stage, "late")) == (True, False)


def test_a_read_waits_while_an_invalidation_has_reached_the_device(stage):
    migrator = reached(stage)
    reader = begin(stage)
    reader.block()
    migrator.finish()
    reader.finish()
    assert not retry(stage)


def test_a_read_does_not_wait_for_an_invalidation_on_its_way(stage):
    migrator = invalidation(stage)
    migrator.until(InvalidateBegan)
    begin(stage).finish()
    migrator.finish()
    assert retry(stage)


def test_a_read_does_not_wait_for_an_invalidation_that_the_driver_ignores():
    stage = Stage(WAITING, Deaf, pages=0)
    stage.run(stage.driver.open, A)
    migrator = invalidation(stage)
    migrator.until(InvalidateBegan)
    begin(stage).finish()
    assert not retry(stage)


def test_the_second_of_two_invalidations_at_once_adds_nothing(stage):
    first, second = reached(stage, "first"), invalidation(stage, "second")
    reader = begin(stage)
    reader.block()
    second.step()
    second.step()
    first.finish()
    reader.block()
    second.finish()
    reader.finish()
    assert not retry(stage)


def test_a_waiting_reader_is_let_go_by_the_next_invalidation_too(stage):
    migrator = reached(stage)
    reader = begin(stage)
    reader.block()
    migrator.finish()
    reached(stage, "again")
    reader.finish()
    assert retry(stage)


def test_a_read_may_be_asked_twice_and_is_closed_by_the_last(stage):
    begin(stage).finish()
    assert not retry(stage, close=False)
    invalidation(stage).finish()
    assert retry(stage)
    with pytest.raises(Stopped, match="did not begin, or closed"):
        retry(stage)


def test_closed_reads_and_ended_invalidations_leave_nothing_behind(stage):
    begin(stage).finish()
    invalidation(stage).finish()
    retry(stage)
    assert stage.slots[Subscriptions(0)] == SubscriptionsState()


def test_set_seq_outside_an_invalidation_stops_the_kernel(stage):
    with pytest.raises(Stopped, match="outside an invalidation"):
        stage.run(mmu_notifier.mmu_interval_set_seq, stage.kernel, "dev0", A)


def test_an_end_without_a_start_stops_the_kernel(stage):
    with pytest.raises(Stopped, match="without a start"):
        stage.run(mmu_notifier.invalidate_range_end, stage.kernel, A, 0, 1)


def test_a_device_that_did_not_subscribe_is_not_called():
    stage = Stage(WAITING, pages=0)
    invalidation(stage).finish()
    assert [type(event) for event in stage.trace[-2:]] == [InvalidateBegan, InvalidateEnded]


def test_the_trace_shows_reads_and_retries(stage):
    begin(stage).finish()
    invalidation(stage).finish()
    retry(stage)
    assert stage.said(IntervalRead) == [IntervalRead("dev0", 0)]
    assert stage.said(IntervalRetry) == [IntervalRetry("dev0", 0, stale=True)]
