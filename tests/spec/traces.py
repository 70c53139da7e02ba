"""Traces written by hand: a page goes to the device, or does not, or a hole is filled there. All about addr 2, step by step."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CacheFlushed,
    CpuAccessed,
    DeviceMapped,
    ExclusiveShared,
    FinalizeCalled,
    FinalizeReturned,
    FlagsMoved,
    FolioAllocated,
    FolioChecked,
    FolioDirtied,
    FolioFreed,
    FolioGot,
    FolioLocked,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FolioUptodate,
    FreeCallback,
    InvalidateBegan,
    InvalidateEnded,
    LruAdded,
    LruIsolated,
    LruPutBack,
    MemcgCharged,
    MemcgUncharged,
    NotifierSubscribed,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PageCopied,
    PagesCalled,
    PagesReturned,
    PteChanged,
    PteRead,
    RmapAdded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    TlbFilled,
    TlbFlushed,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, PTE_NONE, NotifyReason, Select, VmFlags, migrate_pfn
from tests.spec.edits import change, put, without
from tests.spec.fault_traces import EVICT, FAULT, FAULT_REFERENCED, FAULT_REFILL
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
    migrating,
    migration,
    present,
    private,
    system_page,
)
from tests.spec.several_traces import SEVERAL

# ---- system memory to the device ----------------------------------------------------------------------------------------

SETUP = SetupCalled(0, 0, 2, 3, Select.SYSTEM, "gpu", None, 1, 1)
ENTRY = migrating(1)
MOVED = FolioMoved(1, 10, 1, 1, moved=True)
MAPPED = DeviceMapped("gpu", 0, 2, 10, write=True)
LRU_ISOLATED = LruIsolated(1, done=True, refcount=2)
CLEARED = PteChanged(0, 2, present(1, dirty=True), PTE_NONE)
INSTALLED = PteChanged(0, 2, PTE_NONE, migration(1, young=True, dirty=True))
RESTORED = PteChanged(0, 2, migration(1, young=True, dirty=True), private(10))

COLLECT = (
    SETUP,
    InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"),
    PTL,
    PteRead(0, 2, present(1, dirty=True)),
    FolioGot(1, 2),
    FolioLocked(1, blocking=False),
    CacheFlushed(0, 2),
    CLEARED,
    TlbFlushed(0, 2, 3),
    ExclusiveShared(1, done=True),
    FolioDirtied(1),
    INSTALLED,
    RmapRemoved(1, 0, 2, 0),
    FolioPut(1, 1),
    PTL_OFF,
    InvalidateEnded(0, 2, 3),
    LRU_ISOLATED,
    FolioPut(1, 1),
    FolioChecked(1, 1, 0, ok=True),
    SetupReturned(0, 0, 2, 3, 1, 1, (ENTRY,)),
)


def collected(old=None, new=None, entry=ENTRY, boot=BOOT):
    """Setup takes a page that `old` maps: `new` is the migration entry, `entry` what src then says."""
    old = old or present(1)
    new = new or migration(1, young=True)
    trace = boot + system_page(pte=old) + by("mig0", OperationBegan("migrate"), MMAP, *COLLECT)
    trace = put(trace, PteRead(0, 2, present(1, dirty=True)), PteRead(0, 2, old))
    trace = put(put(trace, CLEARED, PteChanged(0, 2, old, PTE_NONE)), INSTALLED, PteChanged(0, 2, PTE_NONE, new))
    trace = trace if old.dirty else without(trace, FolioDirtied(1))
    return change(trace, SetupReturned, src=(entry,))


TO_DEVICE = (
    BOOT
    + by("boot", NotifierSubscribed("gpu", 0))
    + system_page()
    + by("cpu1", TlbFilled(0, 2, present(1, dirty=True)), CpuAccessed(0, 2, 1, write=True))
    + by(
        "mig0",
        OperationBegan("migrate"),
        MMAP,
        *COLLECT,
        FolioAllocated(10, 1, locked=True),
        PageCopied(1, 10),
        PagesCalled(0, (ENTRY,), (migrate_pfn(10),), vma=True),
        MOVED,
        FlagsMoved(1, 10),
        PagesReturned(0, (ENTRY,)),
        DeviceMapped("gpu", 0, 2, 10, write=True),
        FinalizeCalled(0, (ENTRY,), (migrate_pfn(10),), vma=True),
        PTL,
        FolioGot(10, 2),
        RmapAdded(10, 0, 2, 1, exclusive=True),
        RESTORED,
        PTL_OFF,
        FolioUnlocked(1),
        FolioPut(1, 0),
        FolioFreed(1),
        FolioUnlocked(10),
        FolioPut(10, 1),
        FinalizeReturned(0),
        MMAP_OFF,
        OperationEnded("migrate", 0),
    )
)
"""A page of system memory, dirty and in CPU 1's TLB, goes to the device."""

ABORTED = (
    BOOT
    + system_page()
    + by(
        "mig0",
        OperationBegan("migrate"),
        MMAP,
        *COLLECT,
        PagesCalled(0, (ENTRY,), (0,), vma=True),
        PagesReturned(0, (ENTRY & ~MIGRATE_PFN_MIGRATE,)),
        FinalizeCalled(0, (ENTRY & ~MIGRATE_PFN_MIGRATE,), (0,), vma=True),
        LruAdded(1, 2),
        PTL,
        FolioGot(1, 3),
        RmapAdded(1, 0, 2, 1, exclusive=True),
        PteChanged(0, 2, migration(1, young=True, dirty=True), present(1, dirty=True)),
        PTL_OFF,
        FolioUnlocked(1),
        FolioPut(1, 2),
        FinalizeReturned(0),
        MMAP_OFF,
        OperationEnded("migrate", 0),
    )
)
"""The driver has no destination for a page that setup collected, and finalize restores it."""

PINNED = (
    BOOT
    + system_page()
    + by("pin1", FolioGot(1, 2))
    + by(
        "mig0",
        OperationBegan("migrate"),
        MMAP,
        SETUP,
        InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"),
        PTL,
        PteRead(0, 2, present(1)),
        FolioGot(1, 3),
        FolioLocked(1, blocking=False),
        CacheFlushed(0, 2),
        PteChanged(0, 2, present(1), PTE_NONE),
        TlbFlushed(0, 2, 3),
        ExclusiveShared(1, done=True),
        PteChanged(0, 2, PTE_NONE, migration(1, young=True)),
        RmapRemoved(1, 0, 2, 0),
        FolioPut(1, 2),
        PTL_OFF,
        InvalidateEnded(0, 2, 3),
        LruIsolated(1, done=True, refcount=3),
        FolioPut(1, 2),
        FolioChecked(1, 2, 0, ok=False),
        FolioGot(1, 3),
        LruPutBack(1, 2),
        PTL,
        FolioGot(1, 3),
        RmapAdded(1, 0, 2, 1, exclusive=True),
        PteChanged(0, 2, migration(1, young=True), present(1)),
        PTL_OFF,
        FolioUnlocked(1),
        FolioPut(1, 2),
        SetupReturned(0, 0, 2, 3, 0, 1, (0,)),
        MMAP_OFF,
        OperationEnded("migrate", 0),
    )
    + by("pin1", FolioPut(1, 1))
)
"""A page with an unexpected reference is restored by setup."""


# ---- a hole, filled with device memory -----------------------------------------------------------------------------------

INSERTED = PteChanged(0, 2, PTE_NONE, private(10))

HOLE_BEGUN = (
    SETUP,
    InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"),
    PTL,
    PteRead(0, 2, PTE_NONE),
    PTL_OFF,
    InvalidateEnded(0, 2, 3),
    SetupReturned(0, 0, 2, 3, 1, 1, (HOLE,)),
    FolioAllocated(10, 1, locked=True),
    PageCleared(10),
    PagesCalled(0, (HOLE,), (migrate_pfn(10),), vma=True),
    InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"),
    MemcgCharged(10),
    FolioUptodate(10),
    PTL,
)
"""Setup finds nothing, the driver has a page for it, and pages() has the page-table lock."""

HOLE_FILLED = BOOT + by(
    "mig0",
    OperationBegan("migrate"),
    MMAP,
    *HOLE_BEGUN,
    RmapAdded(10, 0, 2, 1, exclusive=True),
    FolioGot(10, 2),
    INSERTED,
    PTL_OFF,
    InvalidateEnded(0, 2, 3),
    PagesReturned(0, (HOLE,)),
    DeviceMapped("gpu", 0, 2, 10, write=True),
    FinalizeCalled(0, (HOLE,), (migrate_pfn(10),), vma=True),
    FolioUnlocked(10),
    FolioPut(10, 1),
    FinalizeReturned(0),
    MMAP_OFF,
    OperationEnded("migrate", 0),
)

HOLE_LOST = (
    BOOT
    + by("boot", VmaMapped(0, 0, 8, RW | VmFlags.UFFD_MISSING, anonymous=True))
    + by(
        "mig0",
        OperationBegan("migrate"),
        MMAP,
        *HOLE_BEGUN,
        PTL_OFF,
        InvalidateEnded(0, 2, 3),
        PagesReturned(0, (0,)),
        FinalizeCalled(0, (0,), (migrate_pfn(10),), vma=True),
        FolioUnlocked(10),
        FolioPut(10, 0),
        FreeCallback(10),
        MemcgUncharged(10),
        FolioFreed(10),
        FinalizeReturned(0),
        MMAP_OFF,
        OperationEnded("migrate", 0),
    )
)
"""The hole is userfaultfd's, so pages() leaves it alone."""

FLOWS = {
    "to device": (TO_DEVICE, TRYLOCKED),
    "aborted": (ABORTED, TRYLOCKED),
    "pinned": (PINNED, TRYLOCKED),
    "hole filled": (HOLE_FILLED, TRYLOCKED),
    "hole lost": (HOLE_LOST, TRYLOCKED),
    "several pages": (SEVERAL, TRYLOCKED),
    "fault, trylocked": (FAULT, TRYLOCKED),
    "fault, referenced": (FAULT_REFERENCED, REFERENCED),
    "fault, handed over": (FAULT_REFILL, REFILL),
    "evict": (EVICT, TRYLOCKED),
}
"""Every correct flow, with the capabilities of the generation that it is of."""
