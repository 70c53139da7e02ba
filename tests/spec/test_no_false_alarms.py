"""Traces that look suspicious and are right: what other tasks do meanwhile, what the contract allows, what is not known."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    CacheFlushed,
    CallbackEntered,
    CallbackReturned,
    CpuAccessed,
    ExclusiveShared,
    ExclusiveTaken,
    FaultBegan,
    FaultEnded,
    FinalizeCalled,
    FinalizeReturned,
    FlagsMoved,
    FolioAllocated,
    FolioChecked,
    FolioFreed,
    FolioGot,
    FolioLocked,
    FolioLockMissed,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FreeCallback,
    InvalidateBegan,
    LockDropped,
    LockTaken,
    LruIsolated,
    MmCreated,
    MmExited,
    MmForked,
    Oops,
    OperationBegan,
    OperationEnded,
    PageCacheAdded,
    PageCopied,
    PageFilled,
    PagesCalled,
    PageWritten,
    PmdSplit,
    PteChanged,
    RangeFaultBegan,
    RangeFaultEnded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    TlbFilled,
    TlbFlushed,
    VmaChanged,
    VmaMapped,
    VmaMoved,
    VmaUnmapped,
)
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, NotifyReason, Pte, PteKind, Select, VmFault, VmFlags
from tests.spec import alternative_cases
from tests.spec.edits import after, before, change, the, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT, FAULT_REFERENCED, FAULT_REFILL, LOSER
from tests.spec.large_parts import LARGE_BOOT, system_leaf
from tests.spec.parts import (
    BOOT,
    HOLE,
    MMAP,
    MMAP_OFF,
    PTL,
    PTL_OFF,
    REFERENCED,
    REFILL,
    RW,
    TRYLOCKED,
    by,
    events,
    judged,
    migration,
    present,
    system_page,
)
from tests.spec.traces import ABORTED, ENTRY, PINNED, SETUP, TO_DEVICE, collected

TRACES = {}


def accepted(make):
    TRACES[make.__name__] = make
    return make


SET_UP = the(TO_DEVICE, SetupReturned)[0]
ENTERED = CallbackEntered(10, 0, 2)
RETURNED = CallbackReturned(10, 0, 2, VmFault.NONE)
FINALIZED = FinalizeReturned(0)
PAGES = the(TO_DEVICE, PagesCalled)[0]


@accepted
def a_transient_reference_of_another_task_comes_and_goes():
    return before(TO_DEVICE, PAGES, FolioGot(1, 2), FolioPut(1, 1), task="spec1"), TRYLOCKED


@accepted
def a_loser_retries_while_the_winner_migrates():
    return up_to(FAULT, ENTERED) + LOSER + FAULT[len(up_to(FAULT, ENTERED)) :], TRYLOCKED


@accepted
def a_page_that_setup_restored_begins_another_migration_before_setup_returns():
    other = (
        *(FolioGot(1, 3), FolioLocked(1, blocking=False), InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"), PTL),
        *(CacheFlushed(0, 2), PteChanged(0, 2, present(1), PTE_NONE), TlbFlushed(0, 2, 3), ExclusiveShared(1, done=True)),
        *(PteChanged(0, 2, PTE_NONE, migration(1, young=True)), RmapRemoved(1, 0, 2, 0), FolioPut(1, 2), PTL_OFF),
    )
    start = by("mig1", OperationBegan("migrate"), MMAP, SETUP)
    returned = the(PINNED, SetupReturned)[0]
    return up_to(
        before(before(PINNED, returned, *events(start), task="mig1"), returned, *other, task="mig1"), returned
    ), TRYLOCKED


@accepted
def a_zap_flushes_after_it_dropped_the_page_table_lock():
    zap = (PTL, PteChanged(0, 2, present(1, dirty=True), PTE_NONE), RmapRemoved(1, 0, 2, 0), PTL_OFF)
    load = CpuAccessed(0, 2, 1, write=True)
    trace = BOOT + system_page() + by("cpu1", TlbFilled(0, 2, present(1, dirty=True)), load) + by("zap0", *zap)
    return trace + by("cpu1", load) + by("zap0", TlbFlushed(0, 2, 3), FolioPut(1, 0), FolioFreed(1)), TRYLOCKED


@accepted
def a_parent_still_writes_while_it_forks_and_the_child_sees_it():
    fork = (
        *(OperationBegan("fork"), MmCreated(1), MmForked(0, 1), PTL, FolioGot(1, 2)),
        *(PteChanged(0, 2, present(1), present(1, write=False)), PteChanged(1, 2, PTE_NONE, present(1, write=False)), PTL_OFF),
    )
    store = CpuAccessed(0, 2, 1, write=True)
    trace = BOOT + system_page() + by("cpu1", TlbFilled(0, 2, present(1)), store) + by("fork0", *fork) + by("cpu1", store)
    end = by("fork0", TlbFlushed(0, 0, 8), OperationEnded("fork", 0))
    return trace + end + by("cpu2", CpuAccessed(1, 2, 1, write=False)), TRYLOCKED


@accepted
def the_winner_frees_the_page_in_its_own_finalize_and_it_is_used_again_in_the_callback():
    again = (FolioAllocated(10, 1, locked=False), FolioPut(10, 0), FreeCallback(10), FolioFreed(10))
    return before(FAULT_REFILL, RETURNED, *again, task="drv0"), REFILL


@accepted
def a_driver_gives_up_an_entry_together_with_its_destination():
    return change(ABORTED, PagesCalled, src=(ENTRY & ~HOLE,)), TRYLOCKED


@accepted
def a_driver_stops_after_a_setup_that_took_nothing():
    return PINNED, TRYLOCKED


@accepted
def a_migration_under_a_fault_elsewhere_needs_no_fault_page():
    call = SetupCalled(0, 0, 4, 5, Select.SYSTEM, "gpu", None, 1, 1)
    nothing = (call, SetupReturned(0, 0, 4, 5, 0, 1, (0,)))
    return after(FAULT, ENTERED, *nothing), TRYLOCKED


@accepted
def a_page_is_tolerated_with_one_reference_too_many_on_the_device_and_then_refused():
    trace = before(EVICT, the(EVICT, FolioChecked)[0], FolioGot(10, 2), task="pin1")
    trace = change(trace, FolioChecked, refcount=2)
    trace = without(change(trace, FolioMoved, refcount=2, moved=False), FlagsMoved(10, 2))
    return up_to(trace, the(trace, FolioMoved)[0]), TRYLOCKED


@accepted
def a_trace_that_shows_no_frame_is_not_judged_by_what_it_does_not_say():
    return [step for step in TO_DEVICE if type(step.event).__name__ != "FrameAdded"], TRYLOCKED


@accepted
def a_lock_is_handed_over_and_the_heir_is_slow_to_take_it():
    handed = (FolioLockMissed(10), FolioLocked(10, blocking=True), FolioUnlocked(10))
    return DEVICE_START + by("a1", FolioLocked(10, blocking=False), FolioUnlocked(10)) + by("b2", *handed), TRYLOCKED


@accepted
def the_mapping_is_restored_by_the_handler_when_the_driver_fails():
    return alternative_cases.ERROR + by("cpu1", *alternative_cases.RESTORE, alternative_cases.FAILED), REFILL


@accepted
def a_referenced_fault_meets_a_second_one_and_gives_up():
    second = by("cpu2", MMAP, FaultBegan(0, 2, write=False), PTL, FolioGot(10, 3), PTL_OFF, ENTERED)
    second += by("cpu2", RETURNED, FolioPut(10, 2), FaultEnded(0, 2, VmFault.NONE), MMAP_OFF)
    return up_to(FAULT_REFERENCED, ENTERED) + second + FAULT_REFERENCED[len(up_to(FAULT_REFERENCED, ENTERED)) :], REFERENCED


@accepted
def a_lock_of_the_core_is_no_drivers_lock():
    drain = LockTaken("lru_add_drain_all:0", LockMode.SLEEP), LockDropped("lru_add_drain_all:0", LockMode.SLEEP)
    ranges = RangeFaultBegan("gpu", 0, 5, 6, write=False), RangeFaultEnded("gpu", 0, 5, 0, (None,))
    return after(FAULT, ENTERED, *drain) + by("gpu0", drain[0], *ranges, drain[1]), TRYLOCKED


def written_again(*gone):
    """A CPU stores, the memory goes, and a new page at the same address reads as zeroes."""
    store, load = CpuAccessed(0, 2, 1, write=True), CpuAccessed(0, 2, 3, write=False)
    unmapped = (PteChanged(0, 2, present(1), PTE_NONE), RmapRemoved(1, 0, 2, 0), FolioPut(1, 0), FolioFreed(1))
    mapped = (MmCreated(0), VmaMapped(0, 0, 8, RW, anonymous=True))
    return BOOT + system_page() + by("cpu1", store, *unmapped, *gone, *mapped) + system_page(3) + by("cpu1", load), TRYLOCKED


@accepted
def an_address_that_was_unmapped_reads_as_zeroes_again():
    return written_again(VmaUnmapped(0, 0, 8))


@accepted
def an_address_space_that_takes_the_number_of_one_that_exited_is_empty():
    return written_again(MmExited(0))


@accepted
def a_page_that_a_store_made_exclusive_migrates_as_such():
    shared = by("boot", ExclusiveShared(1, done=True), ExclusiveTaken(1, 1, done=True))
    place = len(BOOT + system_page())
    trace = collected()
    return trace[:place] + shared + trace[place:], TRYLOCKED


TO_SWAP = PteChanged(0, 2, PTE_NONE, Pte(PteKind.SWAP, swap=7))
FROM_SWAP = PteChanged(0, 2, Pte(PteKind.SWAP, swap=7), present(2))
STORE = CpuAccessed(0, 2, 1, write=True)


@accepted
def a_page_is_read_back_from_swap_as_it_was():
    out = (
        PTL,
        PteChanged(0, 2, present(1, dirty=True), PTE_NONE),
        TO_SWAP,
        PTL_OFF,
        TlbFlushed(0, 2, 3),
        PageWritten(1, None, 7),
    )
    back = (FolioAllocated(2, 1, locked=True), PageFilled(2, None, 7), FROM_SWAP, CpuAccessed(0, 2, 2, write=False))
    return BOOT + system_page() + by("cpu1", STORE) + by("swap0", *out) + by("cpu1", *back), TRYLOCKED


@accepted
def a_page_that_reclaim_isolated_meanwhile_is_not_the_migrations():
    trace = up_to(PINNED, the(PINNED, SetupReturned)[0])
    return before(trace, trace[-1].event, LruIsolated(1, done=True, refcount=3), task="swap0"), TRYLOCKED


@accepted
def a_file_that_two_address_spaces_share_shows_what_either_wrote():
    files = (MmCreated(1), *(VmaMapped(mm, 0, 8, RW, anonymous=False, file=0) for mm in (0, 1)))
    page = (FolioAllocated(1, 1, locked=False), PageCacheAdded(1, 0, 2, 2), PageFilled(1, 0, 2), FolioGot(1, 3))
    mapped = (PteChanged(0, 2, PTE_NONE, present(1)), PteChanged(1, 2, PTE_NONE, present(1)))
    stores = by("cpu1", STORE) + by("cpu2", CpuAccessed(1, 2, 1, write=True)) + by("cpu1", CpuAccessed(0, 2, 1, write=False))
    return BOOT + by("boot", *files, *page, *mapped) + stores, TRYLOCKED


@accepted
def a_monitor_copies_a_page_in():
    guarded = VmaMapped(0, 0, 8, RW | VmFlags.UFFD_MISSING, anonymous=True)
    own = system_page(addr=1) + by("cpu1", CpuAccessed(0, 1, 1, write=True))
    copy = (FolioAllocated(2, 1, locked=False), PageCopied(1, 2), PteChanged(0, 2, PTE_NONE, present(2)))
    return BOOT + own + by("boot", guarded) + by("mon0", *copy) + by("cpu1", CpuAccessed(0, 2, 2, write=False)), TRYLOCKED


@accepted
def what_was_moved_is_read_where_it_is_now():
    moved = (VmaMoved(0, 2, 3, 12), PteChanged(0, 2, present(1), PTE_NONE), PteChanged(0, 12, PTE_NONE, present(1)))
    return BOOT + system_page() + by("cpu1", STORE) + by("mv0", *moved) + by(
        "cpu1", CpuAccessed(0, 12, 1, write=False)
    ), TRYLOCKED


@accepted
def setup_splits_a_leaf_of_memory_that_it_does_not_select():
    """As all kernels before v6.19 do."""
    parts = tuple(migration(40 + at, young=True) for at in range(4))
    setup = SetupCalled(0, 0, 4, 8, Select.DEVICE_PRIVATE, "gpu", None, 4, 4)
    begin = (OperationBegan("migrate"), MMAP, setup, InvalidateBegan(0, 4, 8, NotifyReason.MIGRATE, "gpu"))
    take = (FolioGot(40, 2), FolioLocked(40, blocking=False), PTL, ExclusiveShared(40, done=True))
    split = (PmdSplit(0, 4, present(40), parts), TlbFlushed(0, 4, 8))
    return LARGE_BOOT + system_leaf() + by("mig0", *begin, *take, *split), TRYLOCKED


@accepted
def an_entry_is_restored_before_mprotect_has_walked_to_it():
    mprotect = (LockTaken("mmap_lock:0", LockMode.WRITE), VmaChanged(0, 0, 8, VmFlags.READ))
    return before(EVICT, the(EVICT, FinalizeCalled)[0], *mprotect, task="cpu1"), TRYLOCKED


@pytest.mark.parametrize("name", TRACES)
def test_it_breaks_no_clause(name):
    trace, capabilities = TRACES[name]()
    assert judged(trace, capabilities, end=False)[0] == []


def test_nothing_is_judged_after_an_oops():
    oops = by("mig0", Oops("use after free", 1))
    judge = Judge(TRYLOCKED)
    assert judge.feed_all(up_to(TO_DEVICE, SET_UP) + oops + by("mig0", OperationEnded("migrate", 0))) == []
    assert judge.end() == []


def test_at_a_dead_end_nothing_is_a_leak_yet():
    assert judged(up_to(TO_DEVICE, SET_UP), TRYLOCKED)[0] == []
