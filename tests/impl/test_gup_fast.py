"""get_user_pages_fast: what it takes without a lock, when it gives up, and what may change under it."""

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_pin
from migrate_vma_impl.mm.gup_seq import SeqState, WriteProtectSeq
from migrate_vma_impl.mm.mm_types import MigrateVma
from migrate_vma_spec.events import (
    ExclusiveShared,
    FaultBegan,
    FolioGetMissed,
    FolioGot,
    FolioPut,
    LockTaken,
    PteChanged,
    PteRead,
    WriteProtectSeqChanged,
    WriteProtectSeqRead,
)
from migrate_vma_spec.vocabulary import PteKind, Select
from tests.impl.pages_stage import LONGTERM, PIN, READ, WRITE, Coherent, PagesStage
from tests.impl.stage import A, B, Stage


@pytest.fixture
def stage():
    return PagesStage(gup_fast=True)


def written(stage):
    stage.touch(0, write=True)
    stage.settle()
    return len(stage.trace)


def taker(stage, flags, name="taker", cpu=1):
    return stage.start(name, take_one, stage, flags, cpu=cpu)


async def take_one(stage, flags):
    return await syscalls_pin.take_user_pages(stage.kernel, A, 0, 1, flags, fast=True)


@pytest.mark.parametrize("flags", [READ, WRITE, PIN, PIN | WRITE])
def test_a_page_that_is_there_is_taken_without_a_lock(stage, flags):
    since = written(stage)
    assert stage.take(0, 1, flags, fast=True) == (1,)
    assert not stage.said(LockTaken, since)
    assert (stage.folio(1).refcount, stage.folio(1).pins) == (2, int(bool(flags & PIN)))
    stage.drop(flags)
    assert (stage.folio(1).refcount, stage.folio(1).pins) == (1, 0)


def test_what_is_missing_is_taken_the_slow_way_behind_what_was_there(stage):
    since = written(stage)
    assert stage.take(0, 2, PIN | WRITE, fast=True) == (1, 2)
    assert stage.said(FaultBegan, since) == [FaultBegan(0, 1, write=True)]
    assert stage.folio(1).pins == stage.folio(2).pins == 1


def test_the_zero_page_is_taken_the_slow_way(stage):
    stage.touch(0, write=False)
    since = len(stage.trace)
    assert stage.take(0, 1, READ, fast=True) == (None,)
    assert stage.said(LockTaken, since)


def test_behind_the_end_of_the_address_space_there_is_nothing(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 3, 4)
    stage.touch(3, write=True)
    assert len(stage.take(3, 4, READ, fast=True)) == 1


def test_without_the_configuration_the_slow_way_is_the_only_one():
    stage = PagesStage()
    since = written(stage)
    assert stage.take(0, 1, PIN | WRITE, fast=True) == (1,)
    assert stage.said(LockTaken, since)
    assert not any(isinstance(key, WriteProtectSeq) for key in stage.slots)


def test_a_shared_page_is_not_pinned_for_reading_without_a_lock(stage):
    written(stage)
    stage.fork(B)
    since = len(stage.trace)
    assert stage.take(0, 1, PIN, fast=True) == (2,)
    assert stage.said(FaultBegan, since)
    assert stage.folio(1).pins == 0


def test_a_coherent_page_is_not_pinned_for_long_without_a_lock():
    stage = PagesStage(Coherent, gup_fast=True)
    written(stage)
    stage.to_device()
    (pfn,) = stage.take(0, 1, PIN | LONGTERM, fast=True)
    assert pfn in stage.kernel.system_pfns
    assert stage.folio(100).refcount == 0


# ---- what changes under it -------------------------------------------------------------------------------------------


def test_a_page_that_was_freed_after_the_look_at_its_entry_is_not_taken(stage):
    since = written(stage)
    player = taker(stage, READ)
    player.until(PteRead)
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    assert player.finish() == ()
    assert stage.said(FolioGetMissed, since) == [FolioGetMissed(1)]
    assert stage.folio(1).refcount == 0


def test_a_page_whose_entry_has_changed_is_dropped_again(stage):
    written(stage)
    player = taker(stage, PIN | WRITE)
    player.until(FolioGot)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    (page,) = player.finish()
    assert FolioPut(1, 0) in stage.trace
    assert stage.pte(0).pfn == page.pfn
    assert stage.folio(page.pfn).pins == 1


def test_a_pin_that_came_first_keeps_the_page_from_a_migration(stage):
    written(stage)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(LockTaken, lock="ptl:0")
    player = taker(stage, PIN | WRITE)
    player.finish()
    assert migrator.finish() == 0
    assert ExclusiveShared(1, done=False) in stage.trace
    assert (stage.pte(0).kind, stage.pte(0).pfn) == (PteKind.PRESENT, 1)


def test_a_pin_that_came_between_clearing_and_sharing_is_seen_by_both(stage):
    """The migration finds the pin and keeps the page; the walk finds the entry gone, drops the pin, and waits for the lock."""
    written(stage)
    player = taker(stage, PIN | WRITE)
    player.until(PteRead)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(PteChanged)
    assert stage.pte(0).kind is PteKind.NONE
    player.until(FolioPut)
    migrator.finish()
    (page,) = player.finish()
    assert (stage.pte(0).kind, stage.pte(0).pfn) == (PteKind.PRESENT, page.pfn)
    assert stage.folio(page.pfn).pins == 1


def test_a_reference_after_the_migration_has_looked_makes_it_fail_at_commit(stage):
    written(stage)
    player = taker(stage, READ)
    player.until(PteRead)

    async def migrate():
        vmas = await stage.kernel.mmap_read_lock(A)
        args = MigrateVma(vmas[0], 0, 1, [0], [0], "dev0", Select.SYSTEM)
        await stage.kernel.migrate_vma_setup(args)
        await stage.driver.fill(args.src, args.dst, device=True)
        player.until(FolioGot)
        await stage.kernel.migrate_vma_pages(args)
        moved = list(args.src)
        await stage.kernel.migrate_vma_finalize(args)
        await stage.kernel.mmap_read_unlock(A)
        return moved

    assert not stage.run(migrate)[0] & 2
    player.finish()
    assert stage.pte(0).pfn == 1


# ---- forks -----------------------------------------------------------------------------------------------------------


def forker(stage):
    return stage.start("forker", syscalls.fork, stage.kernel, A, B)


def test_a_pin_that_meets_a_fork_goes_the_slow_way_and_waits(stage):
    written(stage)
    fork = forker(stage)
    fork.until(WriteProtectSeqChanged, writing=True)
    player = taker(stage, PIN | WRITE)
    player.until(WriteProtectSeqRead, stale=True)
    player.block()
    assert stage.folio(1).pins == 0
    assert fork.finish() == 0
    (page,) = player.finish()
    assert stage.folio(page.pfn).exclusive


def test_a_fork_that_comes_over_a_pin_undoes_it(stage):
    """Between giving up exclusivity and taking the write permission the entry still looks as if the page could be pinned."""
    written(stage)
    player = taker(stage, PIN | WRITE)
    player.until(WriteProtectSeqRead, stale=False)
    fork = forker(stage)
    while stage.folio(1).mapcount < 2:
        assert fork.step()
    assert stage.pte(0).write
    player.until(WriteProtectSeqRead, stale=True)
    player.block()
    assert stage.folio(1).pins == 0
    assert fork.finish() == 0
    (page,) = player.finish()
    assert page.pfn != 1
    assert stage.folio(page.pfn).exclusive
    assert stage.slots[WriteProtectSeq(0)] == SeqState()


def test_a_reference_without_a_pin_does_not_ask_for_forks(stage):
    written(stage)
    fork = forker(stage)
    fork.until(WriteProtectSeqChanged, writing=True)
    assert len(taker(stage, READ).finish()) == 1


def test_a_fork_pays_nothing_where_there_is_no_fast_walk():
    stage = Stage(WAITING)
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert not stage.said(WriteProtectSeqChanged)
