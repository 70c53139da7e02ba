"""The page lock: no FIFO, but nobody is told too late; references to free pages; pages as other tasks hold them."""

import pytest

from migrate_vma_impl.generations import ENTRY_FIRST, WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import (
    UNFAIRNESS,
    folio_get,
    folio_lock,
    folio_put_testzero,
    folio_trylock,
    folio_unlock,
    queue_on_page_lock,
    sleep_on_page_lock,
)
from migrate_vma_impl.mm.highmem import clear_highpage, copy_highpage
from migrate_vma_impl.mm.mm_types import Folio, WaitMode
from migrate_vma_impl.mm.swap import folio_isolate_lru, folio_putback_lru
from migrate_vma_spec.events import (
    CallbackEntered,
    ExclusiveTaken,
    FolioLocked,
    FolioLockMissed,
    FolioRead,
    LruIsolated,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import Lru, PteKind
from tests.impl.stage import A, B, Stage, Stopped

PAGE = Folio(1)


@pytest.fixture
def stage():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    return stage


async def wait(folio):
    return await queue_on_page_lock(folio) and await sleep_on_page_lock(folio)


def test_a_locker_sleeps_until_the_unlock(stage):
    stage.run(folio_lock, PAGE)
    locker = stage.start("locker", folio_lock, PAGE)
    locker.block()
    stage.run(folio_unlock, PAGE)
    locker.finish()
    assert stage.folio(1).locked


def test_a_locker_who_lost_five_times_is_handed_the_lock(stage):
    stage.run(folio_lock, PAGE)
    locker = stage.start("locker", folio_lock, PAGE)
    for _ in range(UNFAIRNESS):
        locker.block()
        assert stage.folio(1).queue[0].mode is WaitMode.LOCK
        stage.run(folio_unlock, PAGE)
        assert stage.run(folio_trylock, PAGE)
    locker.block()
    assert stage.folio(1).queue[0].mode is WaitMode.HANDOFF
    stage.run(folio_unlock, PAGE)
    assert not stage.run(folio_trylock, PAGE)
    locker.finish()
    assert (stage.folio(1).locked, stage.folio(1).handed) == (True, None)
    assert stage.said(FolioLocked)[-1] == FolioLocked(1, blocking=True)


def test_an_unlock_wakes_those_who_only_wait_up_to_the_first_locker(stage):
    stage.run(folio_lock, PAGE)
    told, locker, behind = (
        stage.start(name, act, PAGE) for name, act in (("told", wait), ("locker", folio_lock), ("behind", wait))
    )
    for player in (told, locker, behind):
        player.block()
    stage.run(folio_unlock, PAGE)
    assert [waiter.task for waiter in stage.folio(1).queue] == ["behind"]
    told.finish()
    locker.finish()
    stage.run(folio_unlock, PAGE)
    assert behind.finish() is False


def test_who_finds_the_page_unlocked_does_not_wait(stage):
    assert stage.run(wait, PAGE) is False
    assert not stage.said(WaitBegan)


@pytest.mark.parametrize("act", [folio_get, folio_put_testzero], ids=lambda each: each.__name__)
def test_a_reference_on_a_free_page_stops_the_machine(stage, act):
    with pytest.raises(Stopped, match="free folio"):
        stage.run(act, Folio(3))


def test_an_unlock_too_many_stops_the_machine(stage):
    with pytest.raises(Stopped, match="not locked"):
        stage.run(folio_unlock, PAGE)


def test_writing_to_a_free_page_stops_the_machine(stage):
    with pytest.raises(Stopped, match="free page is written"):
        stage.run(clear_highpage, Folio(3))
    with pytest.raises(Stopped, match="free page is written"):
        stage.run(copy_highpage, Folio(3), PAGE)
    with pytest.raises(Stopped, match="onto itself"):
        stage.run(copy_highpage, PAGE, PAGE)


def test_a_page_that_another_isolated_is_restored_with_its_isolation_left_alone(stage):
    assert stage.run(folio_isolate_lru, stage.kernel, PAGE)
    before = stage.pte(0)
    assert stage.to_device() == 0
    assert stage.said(LruIsolated)[-1].done is False
    assert (stage.pte(0), stage.folio(1).lru, stage.folio(1).refcount, stage.folio(1).locked) == (before, Lru.ISOLATED, 2, False)
    stage.run(folio_putback_lru, stage.kernel, PAGE)
    assert stage.to_device() == 1


def test_a_write_fault_copies_a_page_that_somebody_has_locked(stage):
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls.exit, stage.kernel, B)
    writer = stage.start("writer", syscalls.touch, stage.kernel, A, 0, True)
    writer.until(FolioRead, pfn=1, refcount=1)
    stage.run(folio_get, PAGE)
    stage.run(folio_lock, PAGE)
    assert writer.finish() == 0
    assert (stage.pte(0).pfn, stage.folio(1).refcount) == (2, 1)
    assert stage.said(FolioLockMissed)


def test_a_write_fault_copies_a_page_of_which_somebody_took_a_reference_after_the_first_look(stage):
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls.exit, stage.kernel, B)
    writer = stage.start("writer", syscalls.touch, stage.kernel, A, 0, True)
    writer.until(FolioRead, pfn=1, refcount=1)
    stage.run(folio_get, PAGE)
    assert writer.finish() == 0
    assert stage.said(ExclusiveTaken) == [ExclusiveTaken(1, 2, done=False)]
    assert stage.pte(0).pfn == 2


def test_the_loser_of_a_page_that_two_spaces_map_waits_where_the_entry_of_the_other_was_replaced():
    stage = Stage(ENTRY_FIRST)
    stage.touch(0, write=True)
    stage.to_device()
    stage.run(syscalls.fork, stage.kernel, A, B)
    first = stage.start("first", syscalls.touch, stage.kernel, A, 0, False)
    second = stage.start("second", syscalls.touch, stage.kernel, B, 0, False, cpu=1)
    first.until(CallbackEntered)
    assert (stage.pte(0).kind, stage.pte(0, B).kind) == (PteKind.MIGRATION, PteKind.DEVICE_PRIVATE)
    second.until(FolioLockMissed)
    second.block()
    assert first.finish() == 0
    assert second.finish() == 0
