"""Retired and borrowed pages, driver data, files and the swap cache, clause by clause."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec.events import (
    FaultBegan,
    FlushDeferred,
    FolioFreed,
    FolioGot,
    FolioLocked,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FreeCallback,
    InvalidateBegan,
    InvalidateEnded,
    MmCreated,
    MmExited,
    MmGot,
    MmPut,
    OperationBegan,
    OperationEnded,
    PageCacheAdded,
    PageWritten,
    PteChanged,
    RangeFaultBegan,
    RmapRemoved,
    SwapCacheAdded,
    SwapCacheRemoved,
    SwapCounted,
    TlbFlushed,
    ZoneDeviceDataRead,
)
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, put, the, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT, FREED
from tests.spec.large_fault_traces import BIG_FAULT
from tests.spec.large_parts import LARGE
from tests.spec.parts import BOOT, HOLE, MMAP, MMAP_OFF, PTL, PTL_OFF, by, present, system_page
from tests.spec.traces import ENTRY, MOVED, TO_DEVICE

# ---- exclusive ----------------------------------------------------------------------------------------------------------------

BORROWED = Pte(PteKind.EXCLUSIVE, 1, write=True)
MADE = PteChanged(0, 2, present(1, dirty=True), BORROWED)
RESTORED = PteChanged(0, 2, BORROWED, present(1))
BORROW = (
    OperationBegan("exclusive"),
    MMAP,
    FolioGot(1, 2),
    FolioLocked(1, blocking=True),
    InvalidateBegan(0, 2, 3, NotifyReason.EXCLUSIVE, "gpu"),
    PTL,
    MADE,
    PTL_OFF,
    InvalidateEnded(0, 2, 3),
    FolioUnlocked(1),
    FolioPut(1, 1),
    MMAP_OFF,
    OperationEnded("exclusive", 0),
)
GIVE_BACK = (
    FolioGot(1, 2),
    FolioLocked(1, blocking=True),
    InvalidateBegan(0, 2, 3, NotifyReason.CLEAR, None),
    PTL,
    RESTORED,
    PTL_OFF,
    FolioUnlocked(1),
    FolioPut(1, 1),
    InvalidateEnded(0, 2, 3),
)
EXCLUSIVE = BOOT + system_page(pte=present(1, dirty=True)) + by("gpu0", *BORROW) + by("cpu1", *GIVE_BACK)

# ---- the end of an address space ----------------------------------------------------------------------------------------------

WORKER = DEVICE_START + by("gpu0", OperationBegan("evict"), MmGot(0, 2), MMAP, MMAP_OFF, MmPut(0, 1), OperationEnded("evict", 0))
IN_NOTIFIER = by("gpu0", InvalidateBegan(0, 2, 3, NotifyReason.UNMAP, None), MmPut(0, 1), InvalidateEnded(0, 2, 3))
EXITED = by("boot", MmCreated(1), MmExited(0))

# ---- an eviction that meets a page whose content has left it -------------------------------------------------------------------

RETIRED = up_to(EVICT, FREED[0])
AGAIN = FolioMoved(10, 3, 1, 1, moved=True)

# ---- swap and files -----------------------------------------------------------------------------------------------------------

IN_SWAP_CACHE = by("boot", SwapCacheAdded(1, 7, 2), SwapCounted(7, 0))
LEFT_SWAP = SwapCacheRemoved(1, 7, 1)


def with_swap(*steps):
    """The page that goes to the device is in the swap cache; `steps` come before it is moved."""
    trace = before(TO_DEVICE, MOVED, SwapCacheAdded(1, 7, 2), task="boot")
    return before(trace, MOVED, *steps)


REFUSED = FolioMoved(1, 10, 1, 2, moved=False)
NOT_MOVED = ENTRY & ~HOLE
FILE_PAGE = before(up_to(TO_DEVICE, MOVED), MOVED, PageCacheAdded(1, 0, 3, 2), task="boot")
FILE_REFUSED = put(FILE_PAGE, MOVED, FolioMoved(1, 10, 2, 2, moved=False))
FILE_MOVED = put(FILE_PAGE, MOVED, FolioMoved(1, 10, 2, 2, moved=True))

# ---- reclaim ------------------------------------------------------------------------------------------------------------------

OWED = FlushDeferred(0, 2, 3)
PAID = TlbFlushed(0, 2, 3)
SWAPPED_OUT = PteChanged(0, 2, present(1, dirty=True), Pte(PteKind.SWAP, swap=7))
WRITTEN = PageWritten(1, None, 7)
RECLAIM = up_to(TO_DEVICE, the(TO_DEVICE, OperationBegan)[0]) + by(
    "swap0",
    FolioGot(1, 2),
    FolioLocked(1, blocking=False),
    PTL,
    SWAPPED_OUT,
    OWED,
    RmapRemoved(1, 0, 2, 0),
    FolioPut(1, 1),
    PTL_OFF,
    PAID,
    WRITTEN,
    FolioUnlocked(1),
    FolioPut(1, 0),
    FolioFreed(1),
)

CASES = [
    case("C18", kept=FILE_REFUSED, a_file_page_is_moved=FILE_MOVED),
    case(
        "C40",
        kept=FAULT,
        the_fault_is_under_the_vmas_lock=up_to(
            put(FAULT, FaultBegan(0, 2, write=True), FaultBegan(0, 2, write=True, vma_lock=True)),
            the(FAULT, ZoneDeviceDataRead)[0],
        ),
    ),
    case(
        "C54",
        kept=EVICT,
        elsewhere=DEVICE_START,
        moved_again_before_it_is_freed=before(RETIRED, FREED[0], AGAIN),
    ),
    case(
        "C59",
        kept=RECLAIM,
        freed_before_the_flush=without(without(RECLAIM, PAID), WRITTEN),
        written_out_before_the_flush=without(RECLAIM, PAID),
    ),
    case(
        "C75",
        kept=with_swap(LEFT_SWAP),
        elsewhere=TO_DEVICE,
        moved_with_its_swap_slot=put(with_swap(), MOVED, evolve(MOVED, refcount=2, expected=2)),
        an_entry_still_holds_the_slot=before(with_swap(LEFT_SWAP), LEFT_SWAP, SwapCounted(7, 1)),
        the_count_of_before_is_expected=up_to(put(with_swap(LEFT_SWAP), MOVED, REFUSED), REFUSED),
    ),
    case(
        "C89",
        kept=WORKER,
        elsewhere=TO_DEVICE,
        put_in_a_notifier=DEVICE_START + IN_NOTIFIER,
        put_in_a_free_callback=up_to(after(FAULT, FreeCallback(10), MmPut(0, 1)), MmPut(0, 1)),
        put_under_mmap_lock=put(put(WORKER, MMAP_OFF, MmPut(0, 1)), MmPut(0, 1), MMAP_OFF, nth=1),
        an_mm_that_has_exited=BOOT + EXITED + by("gpu0", RangeFaultBegan("gpu", 0, 2, 3, write=False)),
        a_tail_of_a_free_folio=wrong(BIG_FAULT + by("drv0", ZoneDeviceDataRead(62)), capabilities=LARGE),
    ),
    case(
        "C91",
        kept=EXCLUSIVE,
        elsewhere=TO_DEVICE,
        the_lock_is_kept=without(up_to(EXCLUSIVE, BORROW[-1]), FolioUnlocked(1)),
        the_reference_is_kept=without(up_to(EXCLUSIVE, BORROW[-1]), FolioPut(1, 1)),
        made_without_the_lock=without(EXCLUSIVE, BORROW[3]),
        made_without_a_reference=without(up_to(EXCLUSIVE, BORROW[-1]), BORROW[2]),
        restored_without_the_lock=without(EXCLUSIVE, GIVE_BACK[1], nth=1),
    ),
]
