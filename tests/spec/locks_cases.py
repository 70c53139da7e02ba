"""Locks, clause by clause."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CallbackEntered,
    CallbackReturned,
    FaultBegan,
    FaultEnded,
    FolioAllocated,
    FolioGot,
    FolioLocked,
    FolioLockMissed,
    FolioPut,
    FolioUnlocked,
    InvalidateBegan,
    InvalidateEnded,
    LockDropped,
    LockTaken,
    Oops,
    PagesCalled,
    RangeCalled,
    RangeFaultBegan,
    RangeFaultEnded,
    SetupCalled,
    SetupReturned,
    WaitBegan,
    WaitEnded,
)
from migrate_vma_spec.vocabulary import Errno, LockMode, NotifyReason, Select, VmFault, migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, later, put, the, up_to, without
from tests.spec.fault_traces import BACK, DEVICE_START, EVICT, FAULT
from tests.spec.parts import MMAP, PTL, PTL_OFF, by, device_page
from tests.spec.traces import LRU_ISOLATED, SETUP, TO_DEVICE

PAGES = the(TO_DEVICE, PagesCalled)[0]
SETUP_RETURNED = the(FAULT, SetupReturned)[0]
FAULT_SETUP = the(FAULT, SetupCalled)[0]
ENTERED = CallbackEntered(10, 0, 2)
RETURNED = CallbackReturned(10, 0, 2, VmFault.NONE)
ENDED = FaultEnded(0, 2, VmFault.NONE)
SVM, SVM_OFF = LockTaken("svm:0", LockMode.SLEEP), LockDropped("svm:0", LockMode.SLEEP)
RANGE_FAULT = RangeFaultBegan("gpu", 0, 2, 3, write=False)
RANGE_FAULT_ENDED = RangeFaultEnded("gpu", 0, 2, 0, (2,))
CLEAR, CLEAR_OFF = InvalidateBegan(0, 2, 3, NotifyReason.CLEAR, None), InvalidateEnded(0, 2, 3)
PTL_OF_1 = LockTaken("ptl:1", LockMode.SPIN)
EINVAL = -int(Errno.EINVAL)


def in_callback(*events):
    """A CPU's fault on addr 2 has entered the callback, which then does this."""
    enter = (MMAP, FaultBegan(0, 2, write=True), PTL, FolioLocked(10, blocking=False), FolioGot(10, 2), PTL_OFF, ENTERED)
    return DEVICE_START + device_page(11, 3) + by("cpu1", *enter, *events)


def setup_elsewhere(fault_page, result):
    """A setup over addr 3, with a fault page that it must refuse."""
    call = SetupCalled(0, 0, 3, 4, Select.SYSTEM, "gpu", fault_page, 1, 1)
    return in_callback(call, SetupReturned(0, result, 3, 4, 0, 1, (0,)))


CALLBACK_WITH_LOCK = after(before(FAULT, RETURNED, SVM_OFF), ENTERED, SVM)
DEVICE_FAULT = (RANGE_FAULT, FaultBegan(0, 3, write=False, device=True), ENDED, RANGE_FAULT_ENDED)
LOCKS_AND_LOSES = before(up_to(TO_DEVICE, PTL_OFF), PTL_OFF, FolioGot(2, 2), FolioLockMissed(2), FolioPut(2, 1))
OWN_FAULT = (
    *(MMAP, SVM, RANGE_FAULT, FaultBegan(0, 3, write=False, device=True), PTL),
    *(FolioLocked(11, blocking=False), FolioGot(11, 2), PTL_OFF, CallbackEntered(11, 0, 3)),
)
OWN_NOTIFIER = (SVM, RangeCalled(0, (10,)), FolioGot(10, 2), FolioLocked(10, blocking=False), CLEAR)

CASES = [
    case(
        "C28",
        kept=TO_DEVICE,
        dst_is_not_locked=change(up_to(TO_DEVICE, PAGES), FolioAllocated, 1, locked=False),
    ),
    case(
        "C29",
        kept=FAULT,
        no_fault_page_in_the_callback=change(up_to(FAULT, FAULT_SETUP), SetupCalled, fault_page=None),
        another_fault_page=change(up_to(FAULT, FAULT_SETUP), SetupCalled, fault_page=11),
        a_fault_page_outside_of_a_callback=change(up_to(TO_DEVICE, SETUP), SetupCalled, fault_page=10),
    ),
    case(
        "C30",
        kept=setup_elsewhere(fault_page=1, result=EINVAL),
        system_memory_is_accepted=setup_elsewhere(fault_page=1, result=0),
        an_unlocked_page_is_accepted=setup_elsewhere(fault_page=11, result=0),
    ),
    case(
        "C31",
        kept=FAULT,
        finalize_unlocks_it=wrong(up_to(after(FAULT, BACK, PTL_OFF, FolioUnlocked(10)), FolioUnlocked(10), nth=1)),
        setup_tries_to_lock_it=up_to(after(FAULT, FolioGot(10, 3), FolioLockMissed(10)), FolioLockMissed(10)),
    ),
    case(
        "C33",
        kept=FAULT,
        a_page_is_its_own_destination=change(up_to(FAULT, the(FAULT, PagesCalled)[0]), PagesCalled, dst=(migrate_pfn(10),)),
    ),
    case(
        "C34",
        kept=FAULT,
        setup_waits_under_the_ptl=change(TO_DEVICE, FolioLocked, blocking=True),
        a_fault_sleeps_under_the_ptl=FAULT[: len(DEVICE_START) + 5]
        + by("cpu2", MMAP, FaultBegan(0, 3, write=False), PTL_OF_1, WaitBegan("PG_locked", 10), WaitEnded("PG_locked", 10)),
    ),
    case(
        "C35",
        kept=LOCKS_AND_LOSES,
        it_waits_in_setup=before(
            up_to(TO_DEVICE, LRU_ISOLATED), LRU_ISOLATED, WaitBegan("PG_locked", 2), WaitEnded("PG_locked", 2)
        ),
        it_locks_in_setup=before(up_to(TO_DEVICE, LRU_ISOLATED), LRU_ISOLATED, FolioLocked(2, blocking=True)),
    ),
    case(
        "C36",
        kept=FAULT,
        put_comes_first=up_to(later(FAULT, FolioUnlocked(10), FolioPut(10, 0), nth=1), FolioPut(10, 0)),
    ),
    case(
        "C37",
        kept=FAULT,
        never=up_to(without(FAULT, PTL_OFF), ENTERED),
        twice=before(up_to(FAULT, ENTERED), ENTERED, PTL_OFF),
        twice_and_the_kernel_notices=before(up_to(FAULT, ENTERED), ENTERED, Oops("unlock of ptl:0, which is not locked"))[:-1],
    ),
    case(
        "C38",
        kept=CALLBACK_WITH_LOCK + by("gpu0", *DEVICE_FAULT),
        the_same_lock_over_both=CALLBACK_WITH_LOCK + by("gpu0", SVM, *DEVICE_FAULT),
        learned_the_other_way_round=by("gpu0", SVM, *DEVICE_FAULT, SVM_OFF) + CALLBACK_WITH_LOCK,
        stuck_for_ever=DEVICE_START + device_page(11, 3) + by("gpu0", *OWN_FAULT),
    ),
    case(
        "C39",
        kept=before(after(EVICT, CLEAR_OFF, SVM_OFF), CLEAR, SVM),
        stuck_for_ever=DEVICE_START + by("evict0", *OWN_NOTIFIER),
    ),
    case(
        "C40",
        kept=FAULT,
        only_the_vma_is_locked=put(up_to(FAULT, ENTERED), MMAP, LockTaken("vma:0", LockMode.READ)),
    ),
]
