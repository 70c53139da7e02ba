"""Each axiom, by traces written by hand: what keeps it, and what breaks it and no other."""

from __future__ import annotations

import pytest

from migrate_vma_spec.axioms import AXIOMS, Violation, judge_trace
from migrate_vma_spec.events import (
    CpuAccessed,
    DeviceAccessed,
    FinalizeCalled,
    FinalizeReturned,
    FolioAllocated,
    FolioChecked,
    FolioFreed,
    FolioGot,
    FolioLocked,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    LockDropped,
    LockTaken,
    MmCreated,
    MmForked,
    Oops,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PageCopied,
    PageFilled,
    PageWritten,
    PteChanged,
    SwapCacheAdded,
    SwapCacheRemoved,
    VmaMapped,
    VmaMoved,
    WaitBegan,
    WaitEnded,
)
from migrate_vma_spec.registry import REGISTRY
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, Pte, PteKind
from tests.spec.edits import after, before, change, put, the, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT
from tests.spec.large_traces import ALL_FLOWS
from tests.spec.parts import BOOT, MMAP, MMAP_OFF, PTL, PTL_OFF, RW, by, device_page, migration, present, private, system_page
from tests.spec.traces import COLLECT, RESTORED, TO_DEVICE

FINALIZED = FinalizeReturned(0)
READ_ON_DEVICE = DeviceAccessed("gpu", 0, 2, 10, write=False)
STORE, LOAD = (CpuAccessed(0, 2, 1, write=write) for write in (True, False))
OTHER = by("boot", MmCreated(1), VmaMapped(1, 0, 8, RW, anonymous=True))
READ_ONLY = present(1, write=False)
SHARED = system_page(pte=READ_ONLY) + OTHER + by("boot", FolioGot(1, 2))
MIGRATION_LEFT = (MMAP, *COLLECT, FolioUnlocked(1), FolioPut(1, 0), MMAP_OFF)
LOCK_10 = FolioLocked(10, blocking=False)
UNDER_PTL = by("cpu1", OperationBegan("read"), PTL, PTL_OFF, OperationEnded("read", 0))
SWAP = Pte(PteKind.SWAP, swap=0)


def sleeping(*events):
    """Something done under the page-table lock."""
    return BOOT + device_page() + after(UNDER_PTL, PTL, *events)


BROKEN = {
    "A-REF-SUM": {
        "a count is read that nobody made": change(TO_DEVICE, FolioChecked, refcount=2),
        "a put raises the count": change(EVICT, FolioPut, refcount=3),
    },
    "A-REF-HOLDERS": {
        "a second mapping has no reference": BOOT
        + without(SHARED, FolioGot(1, 2))
        + by("fork0", PteChanged(1, 2, PTE_NONE, READ_ONLY)),
        "the reference of a mapping is put": BOOT + system_page() + by("cpu1", FolioPut(1, 0)),
        "the reference of the swap cache is put": BOOT
        + system_page()
        + by("cpu1", SwapCacheAdded(1, 0, 2), FolioPut(1, 1)),
    },
    "A-REF-FREED": {
        "a free page is referenced": EVICT + by("evict0", FolioGot(10, 1)),
        "a page is freed with a reference": BOOT + by("cpu1", FolioAllocated(1, 1, locked=False), FolioFreed(1)),
        "a page is freed twice": EVICT + by("evict0", FolioFreed(10)),
        "a page without references gets one": BOOT
        + by("cpu1", FolioAllocated(1, 1, locked=False), FolioPut(1, 0), FolioGot(1, 1), FolioPut(1, 0), FolioFreed(1)),
        "a page in use is allocated": BOOT
        + by("cpu1", FolioAllocated(1, 1, locked=False), FolioAllocated(1, 1, locked=False), FolioPut(1, 0), FolioFreed(1)),
        "the kernel refuses to put a free page": EVICT + by("evict0", Oops("folio_put of a free folio", 10)),
    },
    "A-REF-LEFT": {
        "the source is not put": without(TO_DEVICE, FolioPut(1, 0), FolioFreed(1)),
        "a page is allocated and forgotten": BOOT + by("drv0", FolioAllocated(3, 1, locked=False)),
        "a page has no reference and is not freed": without(TO_DEVICE, FolioFreed(1)),
    },
    "A-LOCK-ALONE": {
        "two writers": BOOT + by("a1", PTL) + by("b2", PTL, PTL_OFF) + by("a1", PTL_OFF),
        "a reader beside a writer": BOOT
        + by("a1", MMAP)
        + by("b2", *(kind("mmap_lock:0", LockMode.WRITE) for kind in (LockTaken, LockDropped)))
        + by("a1", MMAP_OFF),
        "two holders of a page lock": DEVICE_START
        + by("a1", LOCK_10)
        + by("b2", LOCK_10, FolioUnlocked(10))
        + by("a1", FolioUnlocked(10)),
    },
    "A-LOCK-TURNS": {
        "another task's page lock is let go": DEVICE_START + by("a1", LOCK_10) + by("b2", FolioUnlocked(10)),
        "a page lock is let go twice": DEVICE_START + by("a1", LOCK_10, FolioUnlocked(10), FolioUnlocked(10)),
        "a page-table lock is let go twice": BOOT + by("a1", PTL, PTL_OFF, PTL_OFF),
        "the kernel refuses to unlock": DEVICE_START + by("a1", Oops("folio_unlock of a folio that is not locked", 10)),
    },
    "A-LOCK-KEPT": {
        "a page lock": DEVICE_START + by("a1", OperationBegan("read"), LOCK_10, OperationEnded("read", 0)),
        "a page-table lock": BOOT + by("a1", OperationBegan("read"), PTL, OperationEnded("read", 0)),
    },
    "A-LOCK-SLEEP": {
        "it waits for a page lock": sleeping(FolioLocked(10, blocking=True), FolioUnlocked(10)),
        "it takes a lock that sleeps": sleeping(LockTaken("svm:0", LockMode.SLEEP), LockDropped("svm:0", LockMode.SLEEP)),
        "it queues and sleeps": sleeping(WaitBegan("PG_locked", 10), WaitEnded("PG_locked", 10)),
        "it waits for an event": sleeping(WaitBegan("invalidate_range_end")),
    },
    "A-MAP-LOCKED": {
        "the source of a migration is unlocked": BOOT + system_page() + by("mig0", *MIGRATION_LEFT),
        "an entry names a page that nobody locked": BOOT
        + device_page()
        + by("a1", PteChanged(0, 2, private(10), migration(10))),
    },
    "A-MAP-FOLLOWS": {
        "the old page after it was moved": put(
            up_to(TO_DEVICE, RESTORED), RESTORED, FolioGot(1, 2), PteChanged(0, 2, RESTORED.old, present(1))
        ),
        "a page that nothing was moved to": put(
            up_to(TO_DEVICE, RESTORED), RESTORED, FolioAllocated(11, 1, locked=True), PteChanged(0, 2, RESTORED.old, private(11))
        ),
    },
    "A-MAP-MOVES": {
        "a page that one entry maps": BOOT
        + system_page()
        + by("mig0", FolioAllocated(10, 1, locked=True), FolioMoved(1, 10, 1, 1, moved=True)),
    },
    "A-MAP-WRITER": {
        "the child may write": BOOT + SHARED + by("fork0", PteChanged(1, 2, PTE_NONE, present(1))),
        "the parent may still": BOOT
        + system_page()
        + OTHER
        + by("fork0", FolioGot(1, 2), PteChanged(1, 2, PTE_NONE, READ_ONLY)),
    },
    "A-DATA-READ": {
        "nothing was copied": without(TO_DEVICE, PageCopied(1, 10)) + by("gpu0", READ_ON_DEVICE),
        "a store comes after the copy": before(TO_DEVICE, the(TO_DEVICE, FinalizeCalled)[0], STORE, task="cpu1")
        + by("gpu0", READ_ON_DEVICE),
        "a page is not cleared": without(BOOT + system_page(), PageCleared(1)) + by("cpu1", LOAD),
    },
}


def alone(trace, ended=True):
    return {violation.axiom for violation in judge_trace(trace, ended=ended)}


CASES = [pytest.param(axiom, trace, id=f"{axiom}-{name}") for axiom, traces in BROKEN.items() for name, trace in traces.items()]
IN_THE_MIDDLE = {"A-REF-HOLDERS", "A-LOCK-TURNS", "A-MAP-LOCKED", "A-MAP-FOLLOWS", "A-MAP-MOVES"}
"""Their traces stop where they are broken, before the end at which nothing may be left."""


@pytest.mark.parametrize(("axiom", "trace"), CASES)
def test_an_axiom_is_broken_and_no_other(axiom, trace):
    assert alone(trace, ended=axiom not in IN_THE_MIDDLE) == {axiom}


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_what_a_right_core_and_driver_do_breaks_none(name):
    assert judge_trace(ALL_FLOWS[name][0], ended=True) == ()


def test_every_axiom_has_a_trace_that_breaks_it():
    assert set(BROKEN) == {axiom.id for axiom in AXIOMS}


def test_an_axiom_names_clauses_that_exist_and_covers_some_of_those_it_names():
    named = {clause for axiom in AXIOMS for clause in axiom.clauses} - {"REF"}
    assert named <= REGISTRY.keys()
    assert all(set(axiom.covers) <= set(axiom.clauses) for axiom in AXIOMS)


def test_a_violation_says_which_steps_make_it():
    (found,) = judge_trace(BOOT + system_page() + by("cpu1", STORE) + by("mon0", PageCleared(1)) + by("cpu1", LOAD))
    store, load = (len(BOOT + system_page()) + step for step in (0, 2))
    assert found == Violation("A-DATA-READ", f"(0, 2) reads zeroes, and the store of step {store} is due", (store, load))


def test_before_the_end_nothing_is_left_behind_yet():
    assert judge_trace(up_to(TO_DEVICE, the(TO_DEVICE, FolioMoved)[0])) == ()


def test_a_task_that_is_still_at_work_may_hold_what_it_took():
    working = BOOT + by("drv0", OperationBegan("to_device"), FolioAllocated(3, 1, locked=False))
    assert judge_trace(working, ended=True) == ()


# ---- what a read may find --------------------------------------------------------------------------------------------

MINE = BOOT + system_page() + by("cpu1", OperationBegan("write"), STORE, OperationEnded("write", 0))
ZAP = (OperationBegan("madvise_dontneed"), PTL, PteChanged(0, 2, present(1), PTE_NONE), PTL_OFF)
ZAPPED = OperationEnded("madvise_dontneed", 0)


def refilled(pfn=2):
    """A CPU faults a new page in, and loads from it."""
    page = (FolioAllocated(pfn, 1, locked=False), PageCleared(pfn), PteChanged(0, 2, PTE_NONE, present(pfn)))
    return by("cpu3", *page, CpuAccessed(0, 2, pfn, write=False))


def test_what_was_discarded_reads_as_zeroes():
    assert alone(MINE + by("zap0", *ZAP, ZAPPED) + refilled(), ended=False) == set()
    wrong = by("cpu3", PteChanged(0, 2, PTE_NONE, present(1)), LOAD)
    assert alone(MINE + by("zap0", *ZAP, ZAPPED) + wrong, ended=False) == {"A-DATA-READ"}


def test_a_store_through_a_stale_translation_may_be_lost_while_the_discard_is_under_way():
    late = by("cpu1", OperationBegan("write"), STORE)
    during = MINE + by("zap0", *ZAP) + late + by("zap0", ZAPPED)
    afterwards = MINE + by("zap0", *ZAP, ZAPPED) + late
    assert alone(during + refilled(), ended=False) == set()
    assert alone(afterwards + refilled(), ended=False) == {"A-DATA-READ"}


def test_a_load_through_a_stale_translation_may_find_what_was_there_when_it_began():
    load = by("cpu2", OperationBegan("read"), LOAD)
    assert alone(MINE + load[:1] + by("zap0", *ZAP, ZAPPED) + load[1:], ended=False) == set()
    assert alone(MINE + by("zap0", *ZAP, ZAPPED) + load, ended=False) == {"A-DATA-READ"}


def test_a_child_has_what_its_parent_had():
    fork = (OperationBegan("fork"), MmForked(0, 1), PTL, PteChanged(0, 2, present(1), READ_ONLY), FolioGot(1, 2))
    fork = (*fork, PteChanged(1, 2, PTE_NONE, READ_ONLY), PTL_OFF, OperationEnded("fork", 0))
    forked = MINE + by("boot", MmCreated(1)) + by("fork0", *fork)
    cow = (FolioAllocated(3, 1, locked=False), PageCopied(1, 3), PteChanged(0, 2, READ_ONLY, present(3)))
    parent = by("cpu1", *cow, FolioPut(1, 1), CpuAccessed(0, 2, 3, write=True))
    assert alone(forked + parent + by("cpu2", CpuAccessed(1, 2, 1, write=False)), ended=False) == set()
    assert alone(forked + by("cpu2", PageCleared(1), CpuAccessed(1, 2, 1, write=False)), ended=False) == {"A-DATA-READ"}


def test_what_was_moved_is_read_where_it_is_and_can_be_moved_back():
    def move(old, new):
        entries = (PTL, PteChanged(0, old, present(1), PTE_NONE), PteChanged(0, new, PTE_NONE, present(1)), PTL_OFF)
        return by("mv0", OperationBegan("mremap"), VmaMoved(0, old, old + 1, new), *entries, OperationEnded("mremap", 0))

    there = MINE + move(2, 12)
    assert alone(there + by("cpu1", CpuAccessed(0, 12, 1, write=False)), ended=False) == set()
    assert alone(there + move(12, 2) + by("cpu1", LOAD), ended=False) == set()
    assert alone(there + by("cpu1", PageCleared(1), CpuAccessed(0, 12, 1, write=False)), ended=False) == {"A-DATA-READ"}


def test_a_page_comes_back_from_swap_with_what_was_written_there():
    out = (SwapCacheAdded(1, 0, 2), PTL, PteChanged(0, 2, present(1), SWAP), FolioPut(1, 1), PTL_OFF)
    gone = (PageWritten(1, None, 0), SwapCacheRemoved(1, 0, 0), FolioFreed(1))
    back = (FolioAllocated(2, 1, locked=False), PageFilled(2, None, 0), PteChanged(0, 2, SWAP, present(2)))
    trace = MINE + by("reclaim0", *out, *gone) + by("cpu1", *back, CpuAccessed(0, 2, 2, write=False))
    assert alone(trace, ended=False) == set()
    assert alone(put(trace, PageFilled(2, None, 0), PageCleared(2)), ended=False) == {"A-DATA-READ"}


def test_a_fault_page_that_comes_back_has_the_device_s_last_store():
    loads, store = change(FAULT, CpuAccessed, write=False), DeviceAccessed("gpu", 0, 2, 10, write=True)
    assert alone(before(loads, PageCopied(10, 2), store, task="gpu0")) == set()
    assert alone(after(loads, PageCopied(10, 2), store, task="gpu0")) == {"A-DATA-READ"}


def test_frames_of_one_folio_have_one_lock_and_one_count():
    large = by("boot", FolioAllocated(1, 1, locked=True, order=1), FolioUnlocked(1), FolioPut(1, 0), FolioFreed(1, 1))
    assert judge_trace(BOOT + large, ended=True) == ()
    assert alone([*BOOT, *large, *by("boot", FolioGot(2, 1))]) == {"A-REF-FREED"}
