"""Contents, LRU and charge, clause by clause."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CpuAccessed,
    DeviceAccessed,
    DeviceUnmapped,
    FinalizeCalled,
    FinalizeReturned,
    FlagsMoved,
    FolioDirtied,
    FolioMoved,
    FolioUnlocked,
    FolioUptodate,
    LruAdded,
    MemcgCharged,
    PageCleared,
    PageCopied,
    PagesReturned,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, put, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT, TRYLOCKED_P, cpu_fault
from tests.spec.parts import by
from tests.spec.traces import ABORTED, HOLE_FILLED, RESTORED, TO_DEVICE

DEVICE_STORE = DeviceAccessed("gpu", 0, 2, 10, write=True)
STORED_BY_DEVICE = DEVICE_START + by("gpu0", DEVICE_STORE) + cpu_fault(TRYLOCKED_P)
COPIED = PageCopied(10, 2)
UNMAPPED = DeviceUnmapped("gpu", 0, 2, 10)
EVICTION_FAILED = change(without(up_to(EVICT, LruAdded(2, 2)), FlagsMoved(10, 2)), FolioMoved, refcount=2, moved=False)
EVICTION_FAILED = change(change(EVICTION_FAILED, PagesReturned, src=(migrate_pfn(10),)), FinalizeCalled, src=(migrate_pfn(10),))
FINALIZED = FinalizeReturned(0)


def aborted_with(*extra):
    """A migration without a destination, with more events after finalize was called."""
    return after(ABORTED, LruAdded(1, 2), *extra, nth=1)


CASES = [
    case("C62", kept=STORED_BY_DEVICE, the_destination_is_clean=without(STORED_BY_DEVICE, FolioDirtied(2))),
    case(
        "C71",
        kept=STORED_BY_DEVICE,
        not_copied=without(STORED_BY_DEVICE, COPIED),
        copied_the_wrong_way=put(STORED_BY_DEVICE, COPIED, PageCopied(2, 10)),
        cleared_instead=put(STORED_BY_DEVICE, COPIED, PageCleared(2)),
        the_device_stores_after_the_copy=wrong(after(without(FAULT, UNMAPPED), COPIED, DEVICE_STORE), "C77"),
        a_cpu_stores_after_the_copy=wrong(
            after(without(TO_DEVICE, TlbFlushed(0, 2, 3)), PageCopied(1, 10), CpuAccessed(0, 2, 1, write=True), task="cpu1")
            + by("gpu0", DeviceAccessed("gpu", 0, 2, 10, write=False)),
            "C59",
        ),
        a_hole_shows_old_memory=wrong(
            without(HOLE_FILLED, PageCleared(10)) + by("gpu0", DeviceAccessed("gpu", 0, 2, 10, write=False)), "C17"
        ),
    ),
    case("C72", kept=HOLE_FILLED, not_uptodate=without(HOLE_FILLED, FolioUptodate(10))),
    case(
        "C73",
        kept=ABORTED,
        the_old_page_is_put_back=wrong(up_to(before(TO_DEVICE, FolioUnlocked(1), LruAdded(1, 2)), LruAdded(1, 2), nth=1)),
        put_back_twice=aborted_with(LruAdded(1, 3)),
        a_failed_destination_is_put_on=EVICTION_FAILED,
        the_restored_page_is_left_off=without(ABORTED, LruAdded(1, 2), nth=1),
        a_device_page_is_put_on=after(TO_DEVICE, RESTORED, LruAdded(10, 3)),
    ),
    case(
        "C74",
        kept=TO_DEVICE,
        the_charge_stays=without(TO_DEVICE, FlagsMoved(1, 10)),
        a_filled_hole_is_not_charged=without(HOLE_FILLED, MemcgCharged(10)),
    ),
]
