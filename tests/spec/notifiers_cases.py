"""Notifiers, fault results and progress, clause by clause."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CallbackEntered,
    CallbackReturned,
    DeviceUnbound,
    DeviceUnmapped,
    DrainBegan,
    DrainEnded,
    FaultBegan,
    FaultEnded,
    FolioAllocated,
    FolioGot,
    InvalidateBegan,
    InvalidateEnded,
    NotifierSubscribed,
    PagesReturned,
    PteRead,
    RangeFaultBegan,
    RangeFaultEnded,
    WaitBegan,
    WaitEnded,
    ZoneDeviceDataRead,
)
from migrate_vma_spec.vocabulary import Errno, NotifyReason, VmFault
from tests.spec.cases import case
from tests.spec.edits import after, before, change, later, put, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT, LOSER, TAKEN
from tests.spec.parts import BOOT, MMAP, PTL_OFF, by, device_page, present
from tests.spec.traces import ABORTED, ENTRY, HOLE_FILLED, LRU_ISOLATED, MAPPED, TO_DEVICE

ENTERED = CallbackEntered(10, 0, 2)
ENDED = FaultEnded(0, 2, VmFault.NONE)
RETURNED = CallbackReturned(10, 0, 2, VmFault.NONE)
MIGRATE_RANGE = InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu")
CLEAR_RANGE = InvalidateBegan(0, 2, 3, NotifyReason.CLEAR, None)
SUBSCRIBED = by("boot", NotifierSubscribed("gpu", 0))
FAILED_FAULT = change(FAULT, CallbackReturned, result=VmFault.SIGBUS)
WAIT = WaitBegan("PG_locked", 10)

WAITS_FOR_LOCK = put(LOSER, PTL_OFF, WAIT, PTL_OFF, WaitEnded("PG_locked", 10))


def range_fault(pfn, result=0):
    """hmm_range_fault of the device gpu over addr 2."""
    ended = RangeFaultEnded("gpu", 0, 2, result, (pfn,))
    return BOOT + device_page(pfn, 2) + by("gpu0", RangeFaultBegan("gpu", 0, 2, 3, write=False), ended)


EFAULT = -int(Errno.EFAULT)

CASES = [
    case(
        "C76",
        kept=TO_DEVICE,
        nobody_is_told=without(TO_DEVICE, MIGRATE_RANGE),
        the_wrong_owner=put(TO_DEVICE, MIGRATE_RANGE, InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "npu")),
        it_ended_too_early=later(TO_DEVICE, InvalidateEnded(0, 2, 3), PteRead(0, 2, present(1, dirty=True))),
        try_to_migrate_with_an_owner=put(EVICT, CLEAR_RANGE, MIGRATE_RANGE),
        a_hole_is_filled_outside=without(HOLE_FILLED, MIGRATE_RANGE, nth=1),
    ),
    case(
        "C77",
        kept=SUBSCRIBED + FAULT,
        the_device_still_maps_it=without(FAULT, DeviceUnmapped("gpu", 0, 2, 10)),
    ),
    case(
        "C78",
        kept=TO_DEVICE,
        mapped_before_pages=later(TO_DEVICE, MAPPED, FolioAllocated(10, 1, locked=True)),
    ),
    case(
        "C80",
        kept=change(FAILED_FAULT, FaultEnded, result=VmFault.SIGBUS),
        the_error_is_dropped=FAILED_FAULT,
        an_error_is_made_up=change(FAULT, FaultEnded, result=VmFault.OOM),
    ),
    case(
        "C81",
        kept=ABORTED,
        migrate_is_not_cleared=change(ABORTED, PagesReturned, src=(ENTRY,)),
    ),
    case(
        "C83",
        kept=up_to(FAULT, ENTERED) + WAITS_FOR_LOCK,
        a_reference_for_the_wait=up_to(FAULT, ENTERED) + up_to(before(WAITS_FOR_LOCK, WAIT, FolioGot(10, 3)), WAIT),
        a_reference_for_the_entry=up_to(FAULT, TAKEN) + by("cpu2", MMAP, FaultBegan(0, 2, write=False), FolioGot(10, 3)),
    ),
    case(
        "C87",
        kept=before(TO_DEVICE, LRU_ISOLATED, DrainBegan(), DrainEnded()),
        faulters_can_reach_the_locked_page=after(FAULT, ENTERED, DrainBegan(), DrainEnded()),
    ),
    case(
        "C88",
        kept=EVICT + by("drv0", DeviceUnbound("gpu")),
        a_page_is_forgotten=DEVICE_START + by("drv0", DeviceUnbound("gpu")),
    ),
    case(
        "C89",
        kept=FAULT,
        read_after_the_free=FAULT + by("drv0", ZoneDeviceDataRead(10)),
    ),
    case(
        "C90",
        kept=range_fault(10),
        a_foreign_page_is_reported=range_fault(20),
        a_foreign_page_is_an_error=range_fault(20, EFAULT),
    ),
]
