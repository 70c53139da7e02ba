"""Hand-interleaved races on one device page, in each generation: faulters, a migrator, zap, exit, unbinding."""

import pytest

from migrate_vma_impl.generations import ENTRY_FIRST, REFERENCED, TRYLOCKED, UNREFERENCED, WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import WaitMode
from migrate_vma_spec.events import (
    CallbackEntered,
    FaultBegan,
    FolioChecked,
    FolioFreed,
    FolioLockMissed,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FreeCallback,
    LockDropped,
    LockTaken,
    PageCopied,
    PteChanged,
    PteRead,
    SetupReturned,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import LockMode, Lru, Pte, PteKind, VmFault
from tests.impl.stage import A, B, FakeDriver, Stage, Stopped


def on_device(generation, driver=None):
    stage = Stage(generation, driver, system_frames=6)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    assert stage.to_device() == 1
    return stage


def faulter(stage, name, cpu=0, mm=A, write=True):
    return stage.start(name, syscalls.touch, stage.kernel, mm, 0, write, cpu=cpu)


# ---- two and three faulters ------------------------------------------------------------------------------------------


def test_two_referenced_faulters_make_the_winners_copy_useless():
    stage = on_device(REFERENCED)
    first, second = faulter(stage, "first"), faulter(stage, "second", cpu=1)
    first.until(CallbackEntered)
    second.until(CallbackEntered)
    moved = first.until(FolioMoved)
    assert (moved.refcount, moved.expected, moved.moved) == (3, 2, False)
    assert stage.said(FolioChecked)[-1].ok
    assert PageCopied(100, 2) in stage.trace or PageCopied(100, 1) in stage.trace
    assert first.until(SetupReturned).src
    assert first.until(FolioMoved).moved is False


def test_the_second_of_two_referenced_faulters_gets_through_once_the_first_has_left():
    stage = on_device(REFERENCED)
    first, second = faulter(stage, "first"), faulter(stage, "second", cpu=1)
    first.until(CallbackEntered)
    second.until(CallbackEntered)
    first.until(FolioMoved, moved=False)
    first.until(FolioPut, pfn=100, refcount=2)
    assert second.finish() == 0
    assert first.finish() == 0


def test_three_referenced_faulters_stop_the_migration_in_setup():
    stage = on_device(REFERENCED)
    players = [faulter(stage, name, cpu) for name, cpu in (("first", 0), ("second", 1), ("third", 1))]
    for player in players:
        player.until(CallbackEntered)
    returned = players[0].until(SetupReturned)
    assert (returned.cpages, returned.src) == (0, (0,))
    assert stage.said(FolioChecked)[-1].ok is False


def test_the_loser_of_a_trylock_returns_at_once_and_faults_again():
    stage = on_device(TRYLOCKED)
    first, second = faulter(stage, "first"), faulter(stage, "second", cpu=1)
    first.until(CallbackEntered)
    before = stage.folio(100)
    for _ in range(3):
        second.until(FolioLockMissed, pfn=100)
        second.until(FaultBegan)
    assert stage.folio(100) == before
    assert first.finish() == 0
    assert second.finish() == 0
    assert len(stage.said(CallbackEntered)) == 1


def test_the_loser_of_a_trylock_sleeps_without_a_reference_and_is_woken_by_the_unlock():
    stage = on_device(WAITING)
    first, second = faulter(stage, "first"), faulter(stage, "second", cpu=1)
    first.until(CallbackEntered)
    references = stage.folio(100).refcount
    second.until(FolioLockMissed, pfn=100)
    second.until(WaitBegan)
    second.until(LockDropped, lock="ptl:0")
    second.block()
    page = stage.folio(100)
    assert (page.refcount, [(each.task, each.mode) for each in page.queue]) == (references, [("second", WaitMode.TOLD)])
    assert first.finish() == 0
    assert second.finish() == 0
    assert len(stage.said(CallbackEntered)) == 1


@pytest.mark.parametrize("generation", [REFERENCED, TRYLOCKED, WAITING, ENTRY_FIRST], ids=lambda each: each.name)
def test_a_faulter_who_meets_the_migration_entry_sleeps_until_finalize(generation):
    stage = on_device(generation)
    first, second = faulter(stage, "first"), faulter(stage, "second", cpu=1)
    first.until(PageCopied)
    assert stage.pte(0).kind is PteKind.MIGRATION
    second.block()
    assert stage.folio(100).queue
    assert first.finish() == 0
    assert second.finish() == 0


@pytest.mark.parametrize("generation", [REFERENCED, TRYLOCKED, WAITING, ENTRY_FIRST], ids=lambda each: each.name)
def test_a_fault_whose_entry_changed_before_the_lock_claims_nothing(generation):
    stage = on_device(generation)
    slow = faulter(stage, "slow")
    slow.until(FaultBegan)
    slow.until(PteRead)
    assert stage.touch(0, write=True, cpu=1) == 0
    assert slow.finish() == 0
    assert len(stage.said(CallbackEntered)) == 1


def test_an_unreferenced_fault_calls_the_driver_with_a_page_that_is_free():
    stage = on_device(UNREFERENCED)
    slow = faulter(stage, "slow")
    slow.until(FaultBegan)
    slow.until(PteRead)
    assert stage.touch(0, write=True, cpu=1) == 0
    slow.until(CallbackEntered)
    assert stage.folio(100).refcount == 0


def test_an_unreferenced_fault_calls_the_driver_of_a_device_that_is_gone():
    stage = on_device(UNREFERENCED)
    slow = faulter(stage, "slow")
    slow.until(FaultBegan)
    slow.until(PteRead)
    stage.run(stage.driver.evict, cpu=1)
    stage.run(stage.kernel.memunmap_pages, stage.driver.name, cpu=1)
    with pytest.raises(Stopped, match="the device is gone"):
        slow.until(CallbackEntered)


# ---- the mail's open point (c): a page that somebody else maps too ---------------------------------------------------


def test_entry_first_moves_a_page_that_another_address_space_still_maps():
    stage = on_device(ENTRY_FIRST)
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert stage.touch(0, write=False) == 0
    moved = stage.said(FolioMoved)[-1]
    assert (moved.moved, moved.expected) == (True, 2)
    assert stage.pte(0, B) == Pte(PteKind.DEVICE_PRIVATE, 100)
    assert (stage.folio(100).mapcount, stage.folio(100).charged) == (1, False)


def test_the_others_unmap_a_shared_page_everywhere_first():
    stage = on_device(WAITING)
    stage.run(syscalls.fork, stage.kernel, A, B)
    assert stage.touch(0, write=False) == 0
    assert stage.pte(0).pfn == stage.pte(0, B).pfn != 100
    assert {stage.pte(0, mm).kind for mm in (A, B)} == {PteKind.PRESENT}
    assert not stage.pte(0, B).write


# ---- against zap and exit --------------------------------------------------------------------------------------------


def test_zap_during_the_copy_drops_the_entry_and_finalize_frees_the_destination():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(PageCopied)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1, cpu=1)
    assert stage.pte(0).kind is PteKind.NONE
    assert migrator.finish() == 1
    assert stage.pte(0).kind is PteKind.NONE
    assert [event.pfn for event in stage.said(FolioFreed)] == [1, 100]
    assert (stage.folio(100).refcount, stage.folio(100).charged) == (0, False)


def test_munmap_waits_for_a_migration_that_holds_mmap_lock():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(PageCopied)
    unmapper = stage.start("unmapper", syscalls.munmap, stage.kernel, A, 0, 1, cpu=1)
    assert not unmapper.step()
    migrator.finish()
    assert unmapper.finish() == 0
    assert stage.pte(0).kind is PteKind.NONE


def test_discarding_a_device_page_frees_it_under_the_page_table_lock():
    stage = on_device(WAITING)
    since = len(stage.trace)
    assert stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1) == 0
    order = stage.trace[since:]
    freed = next(i for i, event in enumerate(order) if isinstance(event, FreeCallback))
    taken = order.index(LockTaken("ptl:0", LockMode.SPIN))
    dropped = order.index(LockDropped("ptl:0", LockMode.SPIN))
    assert taken < freed < dropped


def test_a_discarded_page_is_put_after_the_flush():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    since = len(stage.trace)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    kinds = [type(event).__name__ for event in stage.trace[since:]]
    assert kinds.index("PteChanged") < kinds.index("RmapRemoved") < kinds.index("TlbFlushed") < kinds.index("FolioPut")
    assert stage.said(FolioFreed)


def test_eviction_and_a_fault_leave_the_page_in_memory_once():
    stage = on_device(WAITING)
    evictor = stage.start("evictor", stage.driver.evict, cpu=1)
    evictor.until(PageCopied)
    reader = faulter(stage, "reader", write=False)
    reader.block()
    assert evictor.finish() == 1
    assert reader.finish() == 0
    assert not stage.said(CallbackEntered)


def test_exit_frees_system_and_device_pages_and_the_space_can_be_used_again():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.touch(1, write=True)
    stage.to_device(0, 1)
    assert stage.run(syscalls.fork, stage.kernel, A, B) == 0
    assert stage.run(syscalls.exit, stage.kernel, A) == 0
    assert stage.touch(0, write=False, mm=A) == -11
    assert stage.touch(0, write=True, mm=B) == 0
    assert stage.run(syscalls.fork, stage.kernel, B, A) == 0
    assert stage.touch(1, write=False, mm=A) == 0


def test_a_user_of_the_address_space_delays_its_end():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    assert stage.run(stage.kernel.mmget_not_zero, A)
    stage.run(syscalls.exit, stage.kernel, A)
    assert stage.pte(0).kind is PteKind.PRESENT
    stage.run(stage.kernel.mmput, A)
    assert stage.pte(0).kind is PteKind.NONE
    assert not stage.run(stage.kernel.mmget_not_zero, A)


def test_one_mmput_too_many_stops_the_machine():
    stage = Stage(WAITING)
    stage.run(stage.kernel.mmput, A)
    with pytest.raises(Stopped, match="no user"):
        stage.run(stage.kernel.mmput, A)


# ---- migration of system memory --------------------------------------------------------------------------------------


def test_a_store_during_collect_reaches_the_page_before_it_is_copied_or_waits():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(PteChanged)
    writer = faulter(stage, "writer", cpu=1)
    while writer.step():
        assert not writer.ended
    assert migrator.finish() == 1
    assert writer.finish() == 0
    assert stage.pte(0).kind is PteKind.PRESENT


def test_a_transient_reference_makes_a_migration_fail_and_nothing_else():
    stage = Stage(WAITING)
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    compaction = stage.start("compaction", syscalls.speculative_reference, stage.kernel, 1, cpu=1)
    compaction.step()
    assert stage.to_device() == 0
    assert compaction.finish() == 0
    assert (stage.folio(1).refcount, stage.folio(1).lru, stage.folio(1).locked) == (1, Lru.ON, False)
    assert stage.to_device() == 1


def test_a_transient_reference_may_be_the_last_one():
    stage = on_device(WAITING)
    walker = stage.start("walker", syscalls.speculative_reference, stage.kernel, 100, cpu=1)
    walker.step()
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    assert not stage.said(FreeCallback)
    assert walker.finish() == 0
    assert stage.said(FreeCallback)


def test_a_reference_to_a_free_frame_cannot_be_had():
    stage = Stage(WAITING)
    assert stage.run(syscalls.speculative_reference, stage.kernel, 100) == -11


def test_a_device_that_has_nothing_to_say_passes_its_result_on():
    class Raced(FakeDriver):
        async def migrate_to_ram(self, vmf):
            return VmFault.NONE

    stage = on_device(WAITING, Raced)
    player = faulter(stage, "player")
    for _ in range(3):
        player.until(FolioUnlocked, pfn=100)
        assert stage.pte(0).kind is PteKind.DEVICE_PRIVATE
    player.coroutine.close()
