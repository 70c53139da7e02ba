"""userfaultfd: who waits for its monitor and who is woken, what the bit that guards a page survives, and forks."""

import pytest

from migrate_vma_impl.mm.memory import handle_mm_fault
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.userfaultfd_ioctl import userfaultfd_monitor
from migrate_vma_spec.events import (
    FaultEnded,
    InvalidateBegan,
    LockDropped,
    LockTaken,
    PageCleared,
    PageCopied,
    TlbFlushed,
    UserfaultRaised,
    VmaChanged,
)
from migrate_vma_spec.vocabulary import PTE_NONE, NotifyReason, Pte, PteKind, VmFault, VmFlags
from tests.impl.stage import A, B
from tests.impl.vma_stage import MISSING, RW, WP, judged


@pytest.fixture
def stage():
    yield from judged()


@pytest.fixture
def guarded():
    """Page 0 is written, and guarded against stores."""
    for stage in judged():
        stage.touch(0, write=True)
        stage.call("uffd_register", 0, 1, WP)
        assert stage.call("uffd_writeprotect", 0, 1, True) == 0
        yield stage


# ---- missing pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [False, True])
def test_a_fault_on_a_missing_page_waits_without_mmap_lock_until_it_is_copied_in(stage, write):
    stage.touch(0, write=True)
    stage.call("uffd_register", 1, 2, MISSING)
    waiter = stage.begin("waiter", "touch", 1, write, cpu=1)
    waiter.block()
    assert stage.said(UserfaultRaised) == [UserfaultRaised(0, 1, write_protected=False)]
    assert stage.slots[A.mmap_lock] == 0
    assert stage.call("uffd_copy", 1, 0) == 0
    assert waiter.finish() == 0
    assert stage.said(PageCopied) == [PageCopied(1, stage.pte(1).pfn)]
    assert VmFault.RETRY in [event.result for event in stage.said(FaultEnded)]


def test_the_access_is_made_again_where_the_answer_came_before_the_wait(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    waiter = stage.begin("waiter", "touch", 1, False, cpu=1)
    waiter.until(UserfaultRaised)
    assert stage.call("uffd_zeropage", 1) == 0
    assert waiter.finish() == 0
    assert not stage.slots[A].userfaults


def test_the_monitor_wakes_a_waiter_of_a_place_that_is_not_mapped_any_more(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    waiter = stage.begin("waiter", "touch", 1, False, cpu=1)
    waiter.block()
    stage.call("munmap", 1, 2)
    assert not waiter.step(), "munmap wakes nobody"
    assert stage.call("uffd_serve") == -2
    assert waiter.finish() == -11


def test_a_page_that_somebody_else_filled_is_not_filled_again(stage):
    stage.touch(0, write=True)
    stage.call("uffd_register", 1, 2, MISSING)
    assert stage.call("uffd_copy", 1, 0) == 0
    frames = stage.free_frames
    assert stage.call("uffd_copy", 1, 0) == -17
    assert stage.call("uffd_zeropage", 1) == -17
    assert stage.free_frames == frames


def test_a_source_that_is_not_there_is_faulted_in_without_the_lock(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    assert stage.call("uffd_copy", 1, 2) == 0
    assert stage.pte(2).kind is PteKind.ZERO
    assert len(stage.said(PageCleared)) == 1


def test_a_source_that_nobody_may_read_is_an_error_and_the_page_goes_back(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    assert stage.call("uffd_copy", 1, 5) == -14
    assert stage.free_frames == 6
    assert stage.pte(1) == PTE_NONE


def test_only_watched_memory_is_filled(stage):
    assert stage.call("uffd_copy", 1, 0) == -2
    assert stage.call("uffd_zeropage", 1) == -2
    assert stage.call("uffd_zeropage", 5) == -2


def test_a_fault_that_may_not_drop_the_lock_is_a_bus_error(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    vma = find_vma(stage.run(stage.kernel.mmap_read_lock, A), 1)
    assert stage.run(handle_mm_fault, stage.kernel, vma, 1, False) is VmFault.SIGBUS
    stage.run(stage.kernel.mmap_read_unlock, A)
    assert not stage.said(UserfaultRaised)


def test_waiters_of_other_pages_sleep_on(stage):
    stage.call("uffd_register", 0, 2, MISSING)
    waiters = [stage.begin(f"waiter{addr}", "touch", addr, True, cpu=1) for addr in (0, 1)]
    for waiter in waiters:
        waiter.block()
    stage.call("uffd_zeropage", 0)
    waiters[1].block()
    assert [each.addr for each in stage.slots[A].userfaults] == [1]
    stage.call("uffd_zeropage", 1)
    assert [waiter.finish() for waiter in waiters] == [0, 0]


def test_unregistering_lets_the_waiters_go_and_the_page_is_the_kernels_to_fill(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    waiter = stage.begin("waiter", "touch", 1, True, cpu=1)
    waiter.block()
    assert stage.call("uffd_unregister", 0, 3) == 0
    assert waiter.finish() == 0
    assert stage.pte(1).kind is PteKind.PRESENT


def test_a_process_that_ends_does_not_leave_its_waiters_behind(stage):
    stage.call("uffd_register", 1, 2, MISSING)
    waiter = stage.begin("waiter", "touch", 1, True, cpu=1)
    waiter.block()
    stage.call("exit")
    assert waiter.finish() == -11


def test_a_monitor_answers_message_after_message(stage):
    stage.touch(0, write=True)
    stage.call("uffd_register", 1, 3, MISSING)
    monitor = stage.start("monitor", userfaultfd_monitor, stage.kernel, A, 0, cpu=1)
    for addr in (1, 2):
        waiter = stage.begin("waiter", "touch", addr, False)
        waiter.block()
        monitor.block()
        assert waiter.finish() == 0
    assert [event.src for event in stage.said(PageCopied)] == [1, 1]
    monitor.coroutine.close()


def test_a_migration_to_the_device_does_not_fill_watched_holes(stage):
    stage.touch(0, write=True)
    stage.call("uffd_register", 0, 3, MISSING)
    assert stage.to_device(0, 3) == 1
    assert stage.pte(1) == PTE_NONE


def test_what_is_mapped_of_a_range_with_a_gap_is_watched(stage):
    assert stage.call("uffd_register", 2, 4, MISSING) == 0
    assert {(changed.start, changed.end) for changed in stage.said(VmaChanged)} == {(2, 3)}


@pytest.mark.parametrize(("start", "mode"), [(3, MISSING), (0, VmFlags.NONE)], ids=["nothing is mapped", "nothing to hear of"])
def test_a_registration_of_nothing_is_refused(stage, start, mode):
    assert stage.call("uffd_register", start, start + 1, mode) == -22
    assert not stage.said(VmaChanged)


# ---- guarded pages ---------------------------------------------------------------------------------------------------


def test_a_guarded_page_is_read_only_and_a_store_waits_until_it_is_let_through(guarded):
    assert guarded.pte(0) == Pte(PteKind.PRESENT, 1, young=True, dirty=True, soft_dirty=True, uffd_wp=True)
    assert guarded.touch(0, write=False) == 0
    waiter = guarded.begin("waiter", "touch", 0, True, cpu=1)
    waiter.block()
    assert guarded.said(UserfaultRaised) == [UserfaultRaised(0, 0, write_protected=True)]
    assert guarded.call("uffd_serve") == 0
    assert waiter.finish() == 0
    assert (guarded.pte(0).write, guarded.pte(0).uffd_wp) == (True, False)


def test_guarding_holds_mmap_lock_for_reading_and_flushes_before_it_drops_it(stage):
    stage.touch(0, write=True)
    stage.call("uffd_register", 0, 1, WP)
    since = stage.since()
    stage.call("uffd_writeprotect", 0, 1, True)
    order = [
        event for event in stage.trace[since:] if getattr(event, "lock", "") == "mmap_lock:0" or isinstance(event, TlbFlushed)
    ]
    assert [type(event) for event in order] == [LockTaken, TlbFlushed, LockDropped]
    assert order[0].mode.value == "read"
    assert [event.reason for event in stage.said(InvalidateBegan, since)] == [NotifyReason.PROTECTION]


def test_the_guard_survives_a_round_trip_through_the_device(guarded):
    assert guarded.to_device() == 1
    assert guarded.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, soft_dirty=True, uffd_wp=True)
    assert guarded.touch(0, write=False) == 0
    assert (guarded.pte(0).uffd_wp, guarded.pte(0).write) == (True, False)


def test_a_page_on_the_device_can_be_guarded(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.call("uffd_register", 0, 1, WP)
    assert stage.call("uffd_writeprotect", 0, 1, True) == 0
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, uffd_wp=True)
    waiter = stage.begin("waiter", "touch", 0, True, cpu=1)
    waiter.block()
    assert stage.pte(0).kind is PteKind.PRESENT
    stage.call("uffd_serve")
    assert waiter.finish() == 0


def test_mprotect_does_not_open_a_guarded_page(guarded):
    guarded.call("mprotect", 0, 1, VmFlags.READ)
    guarded.call("mprotect", 0, 1, RW)
    assert (guarded.pte(0).write, guarded.pte(0).uffd_wp) == (False, True)


def test_a_moved_page_is_not_guarded_any_more_and_its_mapping_not_watched(guarded):
    guarded.call("mremap", 0, 1, 4)
    assert not guarded.pte(4).uffd_wp
    assert find_vma(guarded.slots[A].vmas, 4).flags == RW
    assert guarded.touch(4, write=True) == 0


def test_a_page_that_goes_from_anonymous_memory_takes_its_guard_along(guarded):
    guarded.call("madvise_dontneed", 0, 1)
    assert guarded.pte(0) == PTE_NONE
    assert guarded.touch(0, write=True) == 0


def test_a_copied_page_can_be_guarded_from_the_start(stage):
    stage.touch(0, write=True)
    stage.call("uffd_register", 1, 2, MISSING | WP)
    assert stage.call("uffd_copy", 1, 0, True) == 0
    assert (stage.pte(1).write, stage.pte(1).uffd_wp) == (False, True)
    stage.call("uffd_register", 2, 3, MISSING)
    assert stage.call("uffd_copy", 2, 0, True) == -22


def test_unregistering_opens_what_was_guarded(guarded):
    guarded.call("uffd_unregister", 0, 1)
    assert (guarded.pte(0).write, guarded.pte(0).uffd_wp) == (True, False)


def test_guarding_needs_a_mapping_that_is_watched_for_it(stage):
    stage.call("uffd_register", 0, 1, MISSING)
    assert stage.call("uffd_writeprotect", 0, 1, True) == -2
    assert stage.call("uffd_writeprotect", 4, 5, True) == -2


def test_a_copy_on_write_flushes_while_another_guards_pages_and_has_yet_to_flush(stage):
    """Page 0 is shared with a child, so its store copies; page 1 is being guarded, and its flush is pending."""
    for addr in (0, 1):
        stage.touch(addr, write=True)
    stage.call("fork", B)
    stage.call("uffd_register", 0, 2, WP)
    guard = stage.begin("guard", "uffd_writeprotect", 1, 2, True, cpu=1)
    guard.until(InvalidateBegan)
    since = stage.since()
    stage.touch(0, write=True)
    flushed = [event for event in stage.said(TlbFlushed, since) if event.start < event.end]
    assert len(flushed) == 2, "once for the pending flush, once for the copy"
    guard.finish()


# ---- forks -----------------------------------------------------------------------------------------------------------


def test_a_child_is_not_watched_and_its_pages_not_guarded(guarded):
    guarded.call("fork", B)
    assert find_vma(guarded.slots[B].vmas, 0).flags == RW
    assert (guarded.pte(0).uffd_wp, guarded.pte(0, B).uffd_wp) == (True, False)
    assert guarded.touch(0, write=True, mm=B) == 0


def test_a_fork_that_the_monitor_follows_waits_until_it_is_told(stage):
    stage.touch(0, write=True)
    stage.call("uffd_register", 0, 1, WP, True)
    stage.call("uffd_writeprotect", 0, 1, True)
    forker = stage.begin("forker", "fork", B, cpu=1)
    forker.block()
    assert stage.slots[A.mmap_lock] == stage.slots[B.mmap_lock] == 0
    assert stage.call("uffd_serve") == 0
    assert forker.finish() == 0
    assert find_vma(stage.slots[B].vmas, 0).flags == RW | WP
    assert stage.pte(0, B).uffd_wp


def test_a_guarded_device_page_stays_guarded_in_a_child_that_is_followed(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.call("uffd_register", 0, 1, WP, True)
    stage.call("uffd_writeprotect", 0, 1, True)
    forker = stage.begin("forker", "fork", B, cpu=1)
    forker.block()
    stage.call("uffd_serve")
    forker.finish()
    assert stage.pte(0) == stage.pte(0, B) == Pte(PteKind.DEVICE_PRIVATE, 100, uffd_wp=True)
