"""The alternative: refill, clause by clause."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CallbackReturned,
    EntryRefilled,
    FaultEnded,
    FinalizeReturned,
    FolioGot,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    Oops,
    PagesCalled,
    PteChanged,
    PteRead,
    RmapAdded,
    SetupReturned,
)
from migrate_vma_spec.vocabulary import VmFault, migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, put, the, up_to, without
from tests.spec.fault_traces import FAULT_REFILL, TAKEN
from tests.spec.parts import NO_CAPABILITY, PTL, PTL_OFF, REFILL, by, migrating, migration, private
from tests.spec.traces import TO_DEVICE

REFILLED = EntryRefilled(0, 0, migrating(10))
SET_UP = the(FAULT_REFILL, SetupReturned)[0]
PAGES = the(FAULT_REFILL, PagesCalled)[0]
RETURNED = CallbackReturned(10, 0, 2, VmFault.NONE)
ENDED = FaultEnded(0, 2, VmFault.NONE)
ERROR = up_to(FAULT_REFILL, SET_UP) + by("cpu1", CallbackReturned(10, 0, 2, VmFault.SIGBUS))
RESTORE = (
    *(PTL, FolioGot(10, 2), RmapAdded(10, 0, 2, 1, exclusive=True), PteChanged(0, 2, migration(10), private(10)), PTL_OFF),
    *(FolioUnlocked(10), FolioPut(10, 1)),
)
FAILED = FaultEnded(0, 2, VmFault.SIGBUS)
MOVED_BACK = FolioMoved(10, 2, 1, 1, moved=True)
FINALIZED = FinalizeReturned(0)
READ_ONLY_TAKEN = PteChanged(0, 2, private(10, write=False), migration(10, write=False, exclusive=True))
TO_DEVICE_REFILLED = up_to(TO_DEVICE, the(TO_DEVICE, SetupReturned)[0]) + by("mig0", EntryRefilled(0, 0, migrating(1)))

READ_ONLY_REFILLED = put(up_to(FAULT_REFILL, REFILLED), TAKEN, READ_ONLY_TAKEN)
READ_ONLY_REFILLED = put(READ_ONLY_REFILLED, PteRead(0, 2, migration(10)), PteRead(0, 2, READ_ONLY_TAKEN.new))

CASES = [
    case(
        "C92",
        kept=FAULT_REFILL,
        capabilities=REFILL,
        without_the_capability=wrong(up_to(FAULT_REFILL, REFILLED), capabilities=NO_CAPABILITY),
        never=change(up_to(without(FAULT_REFILL, REFILLED), PAGES), PagesCalled, src=(0,)),
        twice=up_to(after(FAULT_REFILL, REFILLED, REFILLED), REFILLED, nth=1),
        another_page=change(up_to(FAULT_REFILL, REFILLED), EntryRefilled, entry=migrating(11)),
        without_migrate=change(up_to(FAULT_REFILL, REFILLED), EntryRefilled, entry=migrate_pfn(10)),
        at_another_address=change(up_to(FAULT_REFILL, REFILLED), EntryRefilled, index=1),
        with_write_that_the_entry_has_not=READ_ONLY_REFILLED,
        after_pages=up_to(after(FAULT_REFILL, PAGES, REFILLED), REFILLED, nth=1),
        outside_of_a_callback=TO_DEVICE_REFILLED,
    ),
    case(
        "C93",
        kept=FAULT_REFILL,
        capabilities=REFILL,
        refused=change(up_to(FAULT_REFILL, MOVED_BACK), FolioMoved, moved=False),
        finalize_keeps_the_lock=up_to(without(FAULT_REFILL, FolioUnlocked(10), nth=1), FINALIZED),
        the_handler_unlocks_it=before(FAULT_REFILL, ENDED, FolioUnlocked(10)),
        the_handler_puts_it=before(FAULT_REFILL, ENDED, FolioPut(10, 0)),
        the_handler_puts_what_is_free=before(FAULT_REFILL, ENDED, Oops("folio_put of a free folio", 10)),
    ),
    case(
        "C94",
        kept=ERROR + by("cpu1", *RESTORE, FAILED),
        capabilities=REFILL,
        the_entry_is_left=ERROR + by("cpu1", FAILED),
        the_lock_is_left=wrong(ERROR + by("cpu1", *RESTORE[:5], FolioPut(10, 1), FAILED), "C36"),
        the_reference_is_left=ERROR + by("cpu1", *RESTORE[:6], FAILED),
    ),
]
