"""References and lifetime, clause by clause."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CallbackEntered,
    CallbackReturned,
    DeviceGone,
    DeviceUnbound,
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
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FreeCallback,
    LockTaken,
    Oops,
    OperationEnded,
    PagesCalled,
    PagesReturned,
    PointPassed,
    PteChanged,
    RangeReturned,
    SetupReturned,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, Point, VmFault, migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, later, put, the, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT, FAULT_REFILL, FAULT_UNREFERENCED, FREED
from tests.spec.parts import BOOT, HOLE, MMAP, NO_CAPABILITY, PTL_OFF, REFILL, by, private
from tests.spec.traces import ENTRY, HOLE_FILLED, MAPPED, PINNED, TO_DEVICE

ENTERED = CallbackEntered(10, 0, 2)
RETURNED = CallbackReturned(10, 0, 2, VmFault.NONE)
ENDED = FaultEnded(0, 2, VmFault.NONE)
FINALIZE = the(TO_DEVICE, FinalizeCalled)[0]
FINALIZED = FinalizeReturned(0)
SET_UP = the(TO_DEVICE, SetupReturned)[0]
PAGES_RETURNED = the(TO_DEVICE, PagesReturned)[0]
FAILED = change(up_to(TO_DEVICE, PAGES_RETURNED), FolioMoved, refcount=2, moved=False)
FAILED = change(without(FAILED, FlagsMoved(1, 10)), PagesReturned, src=(ENTRY & ~HOLE,))
PUT_IN_CALLBACK = before(change(FAULT, FolioMoved, refcount=1), the(FAULT, PagesCalled)[0], FolioPut(10, 1))
PUT_IN_CALLBACK = up_to(put(PUT_IN_CALLBACK, FolioPut(10, 1), FolioPut(10, 0), nth=1), FolioPut(10, 0))
UNBOUND, GONE = DeviceUnbound("gpu"), DeviceGone("gpu")
MUTEX = LockTaken("svm:0", LockMode.SLEEP)
PTE_GONE = PteChanged(0, 2, private(10), PTE_NONE)


def failed_and_finalized(src):
    """pages() could not move the page, and finalize is given `src`."""
    return FAILED + by("mig0", FinalizeCalled(0, (src,), (migrate_pfn(10),), vma=True))


CASES = [
    case(
        "C41",
        kept=FAULT,
        no_reference_at_all=wrong(FAULT_UNREFERENCED, capabilities=NO_CAPABILITY),
        taken_after_the_ptl_was_dropped=up_to(later(FAULT, FolioGot(10, 2), PTL_OFF), ENTERED),
        taken_after_the_entry_went=up_to(before(FAULT, FolioGot(10, 2), PTE_GONE, task="zap2"), ENTERED),
        put_in_the_callback=PUT_IN_CALLBACK,
        handed_over_and_put=wrong(
            up_to(before(FAULT_REFILL, the(FAULT_REFILL, PagesCalled)[0], FolioPut(10, 0)), FolioPut(10, 0)),
            "C58",
            capabilities=REFILL,
        ),
    ),
    case(
        "C42",
        kept=EVICT + by("drv0", UNBOUND, GONE),
        allocated_too_late=EVICT + by("drv0", UNBOUND, FolioAllocated(11, 1, locked=True)),
        gone_with_a_page_in_use=wrong(DEVICE_START + by("drv0", GONE)),
    ),
    case(
        "C43",
        kept=EVICT,
        a_reference_to_a_free_page=EVICT + by("evict0", FolioGot(10, 2)),
        allocated_with_two_references=change(up_to(TO_DEVICE, PAGES_RETURNED), FolioAllocated, 1, refcount=2),
        allocated_twice=up_to(TO_DEVICE, PAGES_RETURNED) + by("mig1", FolioAllocated(10, 1, locked=True)),
        freed_with_a_reference=put(up_to(EVICT, FolioFreed(10)), FolioPut(10, 0), FolioPut(10, 1)),
    ),
    case(
        "C44",
        kept=TO_DEVICE,
        src_is_not_put=without(TO_DEVICE, FolioPut(1, 0), FolioFreed(1)),
        dst_is_not_put=without(TO_DEVICE, FolioPut(10, 1)),
        dst_is_not_unlocked=without(TO_DEVICE, FolioUnlocked(10)),
        a_hole_takes_a_reference_too_many=after(HOLE_FILLED, FolioGot(10, 2), FolioGot(10, 3)),
        the_fault_keeps_its_reference=without(FAULT, *FREED),
        an_operation_keeps_a_lock=EVICT + by("evict0", FolioLocked(2, blocking=False), OperationEnded("evict", 0)),
        someone_elses_lock=wrong(up_to(before(TO_DEVICE, SET_UP, FolioUnlocked(1), task="cpu1"), FolioUnlocked(1)), "C58"),
        put_of_a_free_page=EVICT + by("evict0", Oops("folio_put of a free folio", 10)),
        never_freed=without(TO_DEVICE, FolioFreed(1)),
        never_put=BOOT + by("drv0", FolioAllocated(3, 1, locked=False)),
    ),
    case(
        "C45",
        kept=TO_DEVICE,
        unlocked_before_finalize=up_to(before(TO_DEVICE, FINALIZE, FolioUnlocked(10)), FINALIZE),
        put_before_finalize=up_to(before(TO_DEVICE, FINALIZE, FolioPut(10, 0)), FINALIZE),
        freed_before_pages=change(up_to(TO_DEVICE, the(TO_DEVICE, PagesCalled)[0]), PagesCalled, dst=(migrate_pfn(11),)),
    ),
    case(
        "C46",
        kept=TO_DEVICE,
        a_pinned_page_moves=change(TO_DEVICE, FolioMoved, refcount=2),
        the_fault_reference_is_not_counted=change(FAULT, FolioMoved, refcount=1),
        the_handed_over_reference_is_counted_twice=wrong(change(FAULT_REFILL, FolioMoved, refcount=2), capabilities=REFILL),
    ),
    case(
        "C47",
        kept=PINNED,
        a_pinned_page_is_taken=change(up_to(TO_DEVICE, SET_UP), FolioChecked, refcount=2),
        two_references_too_many_on_the_device=change(up_to(EVICT, the(EVICT, RangeReturned)[0]), FolioChecked, refcount=3),
    ),
    case(
        "C48",
        kept=failed_and_finalized(ENTRY & ~HOLE),
        the_entries_of_setup_are_used=failed_and_finalized(ENTRY),
    ),
    case(
        "C49",
        kept=TO_DEVICE,
        a_page_that_did_not_move=FAILED + by("mig0", MAPPED),
        a_page_that_was_freed=EVICT + by("gpu0", MAPPED),
    ),
    case(
        "C50",
        kept=FAULT,
        free_when_the_callback_begins=wrong(EVICT + by("cpu1", FaultBegan(0, 2, write=True), MMAP, ENTERED), "C41"),
        freed_by_another_task=wrong(
            up_to(after(FAULT_UNREFERENCED, ENTERED, FolioPut(10, 0), task="cpu2"), FolioPut(10, 0)),
            "C41",
            capabilities=NO_CAPABILITY,
        ),
    ),
    case(
        "C51",
        kept=FAULT,
        it_takes_a_mutex=after(FAULT, FreeCallback(10), MUTEX),
        it_waits=after(FAULT, FreeCallback(10), WaitBegan("fence")),
        it_may_sleep=after(FAULT, FreeCallback(10), PointPassed(Point.MIGHT_SLEEP)),
    ),
]
