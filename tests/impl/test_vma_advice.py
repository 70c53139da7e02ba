"""MADV_FREE, MADV_COLD, large folios asked for; broken pages; faults under the lock of a VMA; exec, and devices that go."""

import pytest

from migrate_vma_impl.drivers.test_hmm import make_test_hmm
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Mm, Pgmap
from migrate_vma_impl.mm.mmap_lock import mmap_write_lock, mmap_write_unlock, vma_start_write
from migrate_vma_spec.events import (
    CallbackEntered,
    FaultBegan,
    FaultEnded,
    FolioCleaned,
    FolioLazyfreed,
    FolioUnlocked,
    InvalidateBegan,
    LockMissed,
    LockTaken,
    MmCreated,
    MmExited,
    PageCopied,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, NotifyReason, Pte, PteKind, VmFault, VmFlags
from tests.impl.stage import READ_ONLY, A, B, Stage
from tests.impl.vma_stage import RW, VmaStage, judged


@pytest.fixture
def stage():
    yield from judged()


@pytest.fixture
def locks():
    """Faults try the VMA's own lock first."""
    yield from judged(vma_locks=True)


# ---- advice ----------------------------------------------------------------------------------------------------------


def test_a_page_whose_contents_are_given_up_is_clean_old_and_flushed(stage):
    stage.touch(0, write=True)
    since = stage.since()
    assert stage.call("madvise_free", 0, 1) == 0
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, write=True, soft_dirty=True)
    assert stage.said(FolioLazyfreed, since) == [FolioLazyfreed(1)]
    assert stage.said(TlbFlushed, since) == [TlbFlushed(0, 0, 1)]
    assert [event.reason for event in stage.said(InvalidateBegan, since)] == [NotifyReason.CLEAR]
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0).dirty


def test_a_dirty_page_is_made_clean_only_if_nobody_else_maps_it(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.run(stage.driver.evict)
    page = stage.pte(0).pfn
    stage.call("madvise_free", 0, 1)
    assert not stage.folio(page).dirty
    stage.touch(0, write=True)
    stage.to_device()
    stage.run(stage.driver.evict)
    stage.call("fork", B)
    since = stage.since()
    stage.call("madvise_free", 0, 1)
    assert not stage.said(FolioCleaned, since)
    assert not stage.said(FolioLazyfreed, since)


def test_contents_can_be_given_up_only_where_something_is_mapped(stage):
    assert stage.call("madvise_free", 2, 4) == -12
    assert stage.call("madvise_free", 4, 7) == -22


def test_a_device_page_is_left_as_it_is(stage):
    stage.touch(0, write=True)
    stage.to_device()
    before = stage.pte(0)
    for call in ("madvise_free", "madvise_cold"):
        assert stage.call(call, 0, 1) == 0
    assert stage.pte(0) == before


def test_a_cold_page_is_old_and_its_translations_are_gone(stage):
    stage.touch(0, write=True)
    since = stage.since()
    assert stage.call("madvise_cold", 0, 3) == 0
    assert (stage.pte(0).young, stage.pte(0).dirty) == (False, True)
    assert stage.said(TlbFlushed, since)
    assert not stage.said(InvalidateBegan, since)


def test_advice_about_large_folios_is_a_flag_of_the_mapping(stage):
    assert stage.call("madvise_hugepage", 1, 2) == 0
    assert [vma.flags for vma in stage.slots[A].vmas] == [RW, RW | VmFlags.HUGEPAGE, RW]
    stage.call("madvise_hugepage", 1, 2, False)
    assert stage.slots[A].vmas[1].flags == RW | VmFlags.NOHUGEPAGE
    assert stage.call("madvise_hugepage", 2, 5) == -12


# ---- broken pages ----------------------------------------------------------------------------------------------------


def test_a_touch_of_a_broken_page_is_a_bus_error_and_the_page_is_not_used_again(stage):
    stage.touch(0, write=True)
    assert stage.run(syscalls.poison, stage.kernel, 1) == 0
    assert stage.pte(0) == Pte(PteKind.HWPOISON, 1)
    assert stage.touch(0, write=False) == -7
    assert VmFault.HWPOISON in [event.result for event in stage.said(FaultEnded)]
    stage.call("munmap", 0, 1)
    stage.run(stage.kernel.lru_add_drain)
    assert stage.folio(1).refcount == 1


def test_a_broken_page_is_taken_from_every_address_space(stage):
    stage.touch(0, write=True)
    stage.call("fork", B)
    stage.run(syscalls.poison, stage.kernel, 1)
    assert stage.pte(0) == stage.pte(0, B) == Pte(PteKind.HWPOISON, 1)
    assert stage.folio(1).mapcount == 0


def test_a_page_that_nobody_maps_or_that_a_device_has_is_not_dealt_with(stage):
    stage.touch(0, write=True)
    stage.to_device()
    assert stage.run(syscalls.poison, stage.kernel, 100) == -16
    assert stage.run(syscalls.poison, stage.kernel, 5) == -16


def test_a_broken_entry_is_not_collected_for_a_migration(stage):
    stage.touch(0, write=True)
    stage.run(syscalls.poison, stage.kernel, 1)
    assert stage.to_device(0, 1) == 0
    assert stage.pte(0).kind is PteKind.HWPOISON


# ---- faults under the lock of a VMA ----------------------------------------------------------------------------------


def taken(stage, since=0):
    return [event.lock for event in stage.said(LockTaken, since) if event.mode in (LockMode.READ, LockMode.WRITE)]


def test_an_anonymous_page_is_faulted_in_without_mmap_lock(locks):
    since = locks.since()
    assert locks.touch(0, write=True) == 0
    assert taken(locks, since) == ["vma:0.0"]
    assert [event.vma_lock for event in locks.said(FaultBegan, since)] == [True]


def test_a_device_page_is_brought_back_under_mmap_lock_alone(locks):
    locks.touch(0, write=True)
    locks.to_device()
    since = locks.since()
    assert locks.touch(0, write=True) == 0
    assert taken(locks, since)[:2] == ["vma:0.0", "mmap_lock:0"]
    assert [event.vma_lock for event in locks.said(FaultBegan, since)] == [True, False]
    assert locks.said(FaultEnded, since)[0].result is VmFault.RETRY
    assert len(locks.said(CallbackEntered, since)) == 1


def test_an_access_that_is_not_allowed_is_refused_under_the_lock_of_the_vma(locks):
    locks.call("mprotect", 0, 1, READ_ONLY)
    since = locks.since()
    assert locks.touch(0, write=True) == -11
    assert taken(locks, since) == ["vma:0.0"]
    assert not locks.slots[A].vma_locks


def test_who_changes_a_vma_waits_for_the_faults_that_hold_it(locks):
    fault = locks.begin("fault", "touch", 0, True, cpu=1)
    fault.until(FaultBegan)
    change = locks.begin("change", "mprotect", 0, 3, READ_ONLY)
    change.block()
    assert fault.finish() == 0
    assert change.finish() == 0
    assert not locks.pte(0).write
    assert not locks.slots[A].vma_locks


def test_a_fault_on_a_vma_that_is_being_changed_waits_for_mmap_lock(locks):
    vmas = locks.run(mmap_write_lock, A)[1]
    locks.run(vma_start_write, locks.kernel, vmas[0])
    fault = locks.begin("fault", "touch", 0, True, cpu=1)
    fault.block()
    assert locks.said(LockMissed) == [LockMissed("vma:0.0", LockMode.READ)]
    locks.run(mmap_write_unlock, A)
    assert fault.finish() == 0


def test_a_fault_that_holds_another_vma_goes_on_while_one_is_changed(locks):
    locks.call("mprotect", 2, 3, READ_ONLY)
    fault = locks.begin("fault", "touch", 0, True, cpu=1)
    fault.until(FaultBegan)
    assert locks.call("mprotect", 2, 3, RW) == 0
    assert fault.finish() == 0


def test_a_userfault_drops_the_lock_of_the_vma_while_it_waits(locks):
    locks.call("uffd_register", 0, 1, VmFlags.UFFD_MISSING)
    waiter = locks.begin("waiter", "touch", 0, False, cpu=1)
    waiter.block()
    assert not locks.slots[A].vma_locks
    locks.call("uffd_zeropage", 0)
    assert waiter.finish() == 0


def test_every_operation_on_vmas_leaves_no_lock_behind(locks):
    locks.touch(0, write=True)
    for name, *values in (
        ("mremap", 0, 1, 4),
        ("mremap", 4, 5, 0),
        ("mprotect", 1, 2, READ_ONLY),
        ("mmap", 1, 3),
        ("clear_refs",),
        ("madvise_hugepage", 0, 1),
        ("uffd_register", 0, 1),
        ("uffd_unregister", 0, 1),
        ("munmap", 1, 2),
    ):
        assert locks.call(name, *values) == 0, name
        assert not locks.slots[A].vma_locks, name
        assert locks.slots[A.mmap_lock] == 0, name
    locks.call("exit")
    assert not locks.slots[A].vma_locks


# ---- exec, exit, and devices that go ---------------------------------------------------------------------------------


def test_exec_frees_what_was_mapped_on_and_off_the_device(stage):
    stage.touch(0, write=True)
    stage.touch(1, write=True)
    stage.to_device(0, 1)
    assert stage.call("execve", B) == 0
    stage.run(stage.kernel.lru_add_drain)
    assert stage.free_frames == 6
    assert stage.folio(100).refcount == 0
    assert (stage.said(MmCreated)[-1], stage.said(MmExited)[-1]) == (MmCreated(1), MmExited(0))
    assert stage.call("mmap", 0, 1, mm=B) == 0
    assert stage.touch(0, write=True, mm=B) == 0


@pytest.mark.parametrize(("mm", "new"), [(A, A), (B, A)])
def test_exec_needs_a_living_process_and_a_free_address_space(stage, mm, new):
    assert stage.call("execve", new, mm=mm) == -11
    assert stage.slots[A].users == 1


def test_exec_while_a_driver_uses_the_old_address_space_leaves_it_to_the_driver(stage):
    stage.touch(0, write=True)
    assert stage.run(stage.kernel.mmget_not_zero, A)
    stage.call("execve", B)
    assert stage.pte(0).kind is PteKind.PRESENT
    stage.run(stage.kernel.mmput, A)
    assert stage.pte(0) == PTE_NONE


def hmm_stage():
    stage = Stage(WAITING, make_test_hmm, pages=2, addresses=6, system_frames=6)
    stage.run(stage.driver.open, A)
    stage.touch(0, write=True)
    assert stage.run(stage.driver.to_device, A, 0, 1) == 1
    return stage


@pytest.mark.parametrize("leave", ["exec", "mremap"])
def test_a_driver_can_go_after_the_address_space_or_the_place_of_its_page_changed(leave):
    stage = hmm_stage()
    if leave == "exec":
        stage.run(syscalls.execve, stage.kernel, A, B)
    else:
        stage.run(syscalls.mremap, stage.kernel, A, 0, 1, 4)
    assert stage.run(stage.driver.release) == (0 if leave == "exec" else 1)
    assert stage.slots[Pgmap("dev0")].refs == 0
    assert stage.pte(4).kind is (PteKind.NONE if leave == "exec" else PteKind.PRESENT)


def test_a_driver_that_goes_waits_for_the_page_of_an_exec_that_is_under_way():
    """The page is unmapped by exec's teardown while the eviction holds it: it is freed by the eviction, and the driver can go."""
    stage = hmm_stage()
    release = stage.start("release", stage.driver.release, cpu=1)
    release.until(PageCopied, src=100)
    stage.run(syscalls.execve, stage.kernel, A, B)
    assert stage.folio(100).refcount > 0
    release.finish()
    assert stage.folio(100).refcount == 0
    assert stage.slots[Pgmap("dev0")].refs == 0
    assert stage.slots[A].vmas == ()


def test_a_page_of_the_device_that_moved_is_unlocked_where_it_is_now():
    stage = hmm_stage()
    release = stage.start("release", stage.driver.release, cpu=1)
    release.until(PageCopied, src=100)
    stage.run(syscalls.mremap, stage.kernel, A, 0, 1, 4)
    release.until(FolioUnlocked, pfn=100)
    release.finish()
    assert (stage.pte(4).kind, stage.pte(0).kind) == (PteKind.PRESENT, PteKind.NONE)


def test_a_dead_address_space_has_no_memory_to_change():
    stage = VmaStage(pages=1)
    dead = Mm(1)
    assert stage.call("mprotect", 0, 1, RW, mm=dead) == -12
    assert stage.call("mremap", 0, 1, 2, mm=dead) == -14
    assert stage.call("madvise_cold", 0, 1, mm=dead) == -12
