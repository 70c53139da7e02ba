"""Traces of large folios, of files and of swap, written by hand.

A leaf of the middle level maps four pages, addr 4 to 7 of mm 0. Frames 40 to 47 are system memory, 60 to 67 the device gpu's.
"""

from __future__ import annotations

from migrate_vma_spec.events import (
    CacheFlushed,
    CallbackEntered,
    CallbackReturned,
    CpuAccessed,
    DeviceMapped,
    DeviceUnmapped,
    ExclusiveShared,
    FaultBegan,
    FaultEnded,
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
    FolioSplit,
    FolioUnlocked,
    FolioUptodate,
    FrameAdded,
    FreeCallback,
    InvalidateBegan,
    InvalidateEnded,
    LruAdded,
    LruDrained,
    LruIsolated,
    MemcgCharged,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PageCopied,
    PagesCalled,
    PagesReturned,
    PmdChanged,
    PmdRead,
    PmdSplit,
    PteChanged,
    PteRead,
    RmapAdded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    SplitCallback,
    TlbFilled,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    PTE_NONE,
    Capability,
    Memory,
    NotifyReason,
    Pte,
    PteKind,
    Select,
    VmFault,
    migrate_pfn,
)
from tests.spec.traces import BOOT, HOLE, MMAP, MMAP_OFF, PTL, PTL_OFF, TRYLOCKED, by, migrating, migration, present, private

LARGE = TRYLOCKED | {Capability.COMPOUND}
TABLE = Pte(PteKind.TABLE)
PAGES = range(4)

LARGE_BOOT = BOOT + by(
    "boot",
    *(FrameAdded(pfn, Memory.SYSTEM) for pfn in range(40, 48)),
    *(FrameAdded(pfn, Memory.DEVICE_PRIVATE, "gpu") for pfn in range(60, 68)),
)
MIGRATE_RANGE = InvalidateBegan(0, 4, 8, NotifyReason.MIGRATE, "gpu"), InvalidateEnded(0, 4, 8)


def compound(entry):
    return entry | MIGRATE_PFN_COMPOUND


def alone(entry):
    """An array of a whole leaf with one entry."""
    return (entry, 0, 0, 0)


def system_leaf(pmd=None):
    """A large folio of system memory that a leaf maps, on the LRU and charged."""
    return by(
        "boot",
        FolioAllocated(40, 1, locked=False, order=2),
        *(PageCleared(40 + at) for at in PAGES),
        MemcgCharged(40),
        RmapAdded(40, 0, 4, 1, exclusive=True, pages=4),
        LruAdded(40, 2),
        PmdChanged(0, 4, 4, PTE_NONE, pmd or present(40)),
        LruDrained((40,)),
    )


def device_leaf():
    """A large folio of device memory that a leaf maps."""
    return by(
        "boot",
        FolioAllocated(60, 1, locked=True, order=2),
        *(PageCleared(60 + at) for at in PAGES),
        MemcgCharged(60),
        RmapAdded(60, 0, 4, 1, exclusive=True, pages=4),
        PmdChanged(0, 4, 4, PTE_NONE, private(60)),
        FolioUnlocked(60),
    )


# ---- a whole leaf goes to the device ----------------------------------------------------------------------------------------

BIG_SETUP = SetupCalled(0, 0, 4, 8, Select.SYSTEM | Select.COMPOUND, "gpu", None, 4, 4)
BIG_ENTRY = compound(migrating(40))
BIG_CLEARED = PmdChanged(0, 4, 4, present(40, dirty=True), PTE_NONE)
BIG_INSTALLED = PmdChanged(0, 4, 4, PTE_NONE, migration(40, young=True, dirty=True))
BIG_RESTORED = PmdChanged(0, 4, 4, migration(40, young=True, dirty=True), private(60))
BIG_RETURNED = SetupReturned(0, 0, 4, 8, 1, 4, alone(BIG_ENTRY))
BIG_FLUSHED = TlbFlushed(0, 4, 8)
BIG_MOVED = FolioMoved(40, 60, 1, 1, moved=True)
BIG_GIVEN = alone(compound(migrate_pfn(60)))

BIG_COLLECT = (
    BIG_SETUP,
    MIGRATE_RANGE[0],
    PTL,
    PmdRead(0, 4, 4, present(40, dirty=True)),
    FolioGot(40, 2),
    FolioLocked(40, blocking=False),
    CacheFlushed(0, 4, pages=4),
    BIG_CLEARED,
    BIG_FLUSHED,
    ExclusiveShared(40, done=True),
    FolioDirtied(40),
    BIG_INSTALLED,
    RmapRemoved(40, 0, 4, 0, pages=4),
    FolioPut(40, 1),
    PTL_OFF,
    MIGRATE_RANGE[1],
    LruIsolated(40, done=True, refcount=2),
    FolioPut(40, 1),
    FolioChecked(40, 1, 0, ok=True),
    BIG_RETURNED,
)

BIG_START = (
    LARGE_BOOT
    + system_leaf()
    + by("cpu1", TlbFilled(0, 5, present(41, dirty=True)), CpuAccessed(0, 5, 41, write=True))
    + by("mig0", OperationBegan("migrate"), MMAP, *BIG_COLLECT)
)

BIG_TO_DEVICE = BIG_START + by(
    "mig0",
    FolioAllocated(60, 1, locked=True, order=2),
    *(PageCopied(40 + at, 60 + at) for at in PAGES),
    PagesCalled(0, alone(BIG_ENTRY), BIG_GIVEN, vma=True),
    BIG_MOVED,
    FlagsMoved(40, 60),
    PagesReturned(0, alone(BIG_ENTRY)),
    *(DeviceMapped("gpu", 0, 4 + at, 60 + at, write=True) for at in PAGES),
    FinalizeCalled(0, alone(BIG_ENTRY), BIG_GIVEN, vma=True),
    PTL,
    FolioGot(60, 2),
    RmapAdded(60, 0, 4, 1, exclusive=True, pages=4),
    BIG_RESTORED,
    PTL_OFF,
    FolioUnlocked(40),
    FolioPut(40, 0),
    FolioFreed(40, order=2),
    FolioUnlocked(60),
    FolioPut(60, 1),
    FinalizeReturned(0),
    MMAP_OFF,
    OperationEnded("migrate", 0),
)
"""A leaf of system memory, dirty and in CPU 1's TLB, goes to the device as a whole."""

PARTS = tuple(migrating(40 + at) for at in PAGES)
SMALL = tuple(migrate_pfn(10 + at) for at in PAGES)
BIG_PMD_SPLIT = PmdSplit(
    0, 4, migration(40, young=True, dirty=True), tuple(migration(40 + at, young=True, dirty=True) for at in PAGES)
)
BIG_SPLIT = FolioSplit(40, 2, 0, (1, 1, 1, 1), (0, 0, 0, 0))


def _finalized(at):
    old, new = 40 + at, 10 + at
    return (
        PTL,
        FolioGot(new, 2),
        RmapAdded(new, 0, 4 + at, 1, exclusive=True),
        PteChanged(0, 4 + at, migration(old, young=True, dirty=True), private(new)),
        PTL_OFF,
        FolioUnlocked(old),
        FolioPut(old, 0),
        FolioFreed(old),
        FolioUnlocked(new),
        FolioPut(new, 1),
    )


SPLIT_IN_PAGES = BIG_START + by(
    "mig0",
    *(FolioAllocated(10 + at, 1, locked=True) for at in PAGES),
    *(PageCopied(40 + at, 10 + at) for at in PAGES),
    PagesCalled(0, alone(BIG_ENTRY), SMALL, vma=True),
    PTL,
    BIG_PMD_SPLIT,
    PTL_OFF,
    BIG_SPLIT,
    *(event for at in PAGES for event in (FolioMoved(40 + at, 10 + at, 1, 1, moved=True), FlagsMoved(40 + at, 10 + at))),
    PagesReturned(0, PARTS),
    FinalizeCalled(0, PARTS, SMALL, vma=True),
    *(event for at in PAGES for event in _finalized(at)),
    FinalizeReturned(0),
    MMAP_OFF,
    OperationEnded("migrate", 0),
)
"""The driver has small pages only, so pages() splits the folio that setup took as a whole."""

# ---- a hole of a whole leaf -------------------------------------------------------------------------------------------------

BIG_HOLE = compound(HOLE)
BIG_INSERTED = PmdChanged(0, 4, 4, PTE_NONE, private(60))
BIG_HOLE_FILLED = LARGE_BOOT + by(
    "mig0",
    OperationBegan("migrate"),
    MMAP,
    BIG_SETUP,
    MIGRATE_RANGE[0],
    PmdRead(0, 4, 4, PTE_NONE),
    MIGRATE_RANGE[1],
    SetupReturned(0, 0, 4, 8, 1, 4, alone(BIG_HOLE)),
    FolioAllocated(60, 1, locked=True, order=2),
    *(PageCleared(60 + at) for at in PAGES),
    PagesCalled(0, alone(BIG_HOLE), BIG_GIVEN, vma=True),
    MIGRATE_RANGE[0],
    MemcgCharged(60),
    FolioUptodate(60),
    PTL,
    RmapAdded(60, 0, 4, 1, exclusive=True, pages=4),
    FolioGot(60, 2),
    BIG_INSERTED,
    PTL_OFF,
    MIGRATE_RANGE[1],
    PagesReturned(0, alone(BIG_HOLE)),
    FinalizeCalled(0, alone(BIG_HOLE), BIG_GIVEN, vma=True),
    FolioUnlocked(60),
    FolioPut(60, 1),
    FinalizeReturned(0),
    MMAP_OFF,
    OperationEnded("migrate", 0),
)
"""Nothing was ever there; the driver fills it all."""

# ---- a CPU fault on a page of a large device folio that is mapped page by page ----------------------------------------------

TAIL = 61
TAIL_TAKEN = PteChanged(0, 5, private(TAIL), migration(TAIL))
HANDED = (FolioUnlocked(60), FolioPut(60, 2), FolioPut(60, 1))
DEVICE_SPLIT = FolioSplit(60, 2, 0, (2, 1, 1, 1), (0, 0, 0, 0))
TOLD = (*(SplitCallback(60, tail) for tail in (61, 62, 63)), SplitCallback(60, None))


def _unmapped(at):
    return (
        ExclusiveShared(60 + at, done=True),
        PteChanged(0, 4 + at, private(60 + at), migration(60 + at)),
        RmapRemoved(60 + at, 0, 4 + at, 3 - at),
        FolioPut(60, 5 - at),
    )


def _mapped_again(at):
    return (
        FolioGot(60 + at, 3 if at == 0 else 2),
        RmapAdded(60 + at, 0, 4 + at, 1, exclusive=True),
        PteChanged(0, 4 + at, migration(60 + at), private(60 + at)),
    )


SPLIT_IN_SETUP = (
    LARGE_BOOT
    + device_leaf()
    + by(
        "boot",
        PTL,
        PmdSplit(0, 4, private(60), tuple(private(60 + at) for at in PAGES)),
        FolioGot(60, 4),
        *(RmapAdded(60 + at, 0, 4 + at, 2 + at, exclusive=True) for at in PAGES),
        RmapRemoved(60, 0, 4, 4, pages=4),
        PTL_OFF,
    )
    + by(
        "cpu1",
        OperationBegan("touch"),
        MMAP,
        FaultBegan(0, 5, write=True),
        PTL,
        PteRead(0, 5, private(TAIL)),
        FolioLocked(60, blocking=False),
        FolioGot(60, 5),
        PTL_OFF,
        CallbackEntered(TAIL, 0, 5),
        SetupCalled(0, 0, 5, 6, Select.DEVICE_PRIVATE, "gpu", TAIL, 1, 1),
        InvalidateBegan(0, 5, 6, NotifyReason.MIGRATE, "gpu"),
        PTL,
        PteRead(0, 5, private(TAIL)),
        FolioGot(60, 6),
        PTL_OFF,
        InvalidateBegan(0, 4, 8, NotifyReason.CLEAR, None),
        PTL,
        *(event for at in PAGES for event in _unmapped(at)),
        PTL_OFF,
        InvalidateEnded(0, 4, 8),
        DEVICE_SPLIT,
        *TOLD,
        PTL,
        *(event for at in PAGES for event in _mapped_again(at)),
        PTL_OFF,
        *(event for tail in (62, 63) for event in (FolioUnlocked(tail), FolioPut(tail, 1))),
        *HANDED,
        PTL,
        PteRead(0, 5, private(TAIL)),
        FolioGot(TAIL, 3),
        ExclusiveShared(TAIL, done=True),
        TAIL_TAKEN,
        RmapRemoved(TAIL, 0, 5, 0),
        FolioPut(TAIL, 2),
        PTL_OFF,
        InvalidateEnded(0, 5, 6),
        FolioChecked(TAIL, 2, 0, ok=True),
        SetupReturned(0, 0, 5, 6, 1, 1, (migrating(TAIL),)),
        FolioAllocated(2, 1, locked=False),
        FolioLocked(2, blocking=False),
        PageCopied(TAIL, 2),
        FolioDirtied(2),
        PagesCalled(0, (migrating(TAIL),), (migrate_pfn(2),), vma=True),
        FolioMoved(TAIL, 2, 2, 2, moved=True),
        FlagsMoved(TAIL, 2),
        PagesReturned(0, (migrating(TAIL),)),
        FinalizeCalled(0, (migrating(TAIL),), (migrate_pfn(2),), vma=True),
        LruAdded(2, 2),
        PTL,
        FolioGot(2, 3),
        RmapAdded(2, 0, 5, 1, exclusive=True),
        PteChanged(0, 5, migration(TAIL), present(2, young=False)),
        PTL_OFF,
        FolioPut(TAIL, 1),
        FolioUnlocked(2),
        FolioPut(2, 2),
        FinalizeReturned(0),
        CallbackReturned(TAIL, 0, 5, VmFault.NONE),
        FolioUnlocked(TAIL),
        FolioPut(TAIL, 0),
        FreeCallback(TAIL),
        FolioFreed(TAIL),
        FaultEnded(0, 5, VmFault.NONE),
        MMAP_OFF,
        OperationEnded("touch", 0),
    )
)
"""The library splits the fault page's folio, and hands the lock and the reference over to what the fault page is in then."""

# ---- a CPU fault on a device leaf -------------------------------------------------------------------------------------------

BIG_BACK_ENTRY = alone(compound(migrating(60)))
BIG_BACK_GIVEN = alone(compound(migrate_pfn(40)))
BIG_TAKEN = PmdChanged(0, 4, 4, private(60), migration(60))
BIG_BACK = PmdChanged(0, 4, 4, migration(60), present(40, young=False))

BIG_FAULT = (
    LARGE_BOOT
    + device_leaf()
    + by("gpu0", *(DeviceMapped("gpu", 0, 4 + at, 60 + at, write=True) for at in PAGES))
    + by(
        "cpu1",
        OperationBegan("touch"),
        MMAP,
        FaultBegan(0, 5, write=True),
        PTL,
        PmdRead(0, 4, 4, private(60)),
        FolioLocked(60, blocking=False),
        FolioGot(60, 2),
        PTL_OFF,
        CallbackEntered(60, 0, 5),
        SetupCalled(0, 0, 4, 8, Select.DEVICE_PRIVATE | Select.COMPOUND, "gpu", 60, 4, 4),
        MIGRATE_RANGE[0],
        PTL,
        PmdRead(0, 4, 4, private(60)),
        FolioGot(60, 3),
        ExclusiveShared(60, done=True),
        BIG_TAKEN,
        RmapRemoved(60, 0, 4, 0, pages=4),
        FolioPut(60, 2),
        PTL_OFF,
        MIGRATE_RANGE[1],
        FolioChecked(60, 2, 0, ok=True),
        SetupReturned(0, 0, 4, 8, 1, 4, BIG_BACK_ENTRY),
        FolioAllocated(40, 1, locked=False, order=2),
        FolioLocked(40, blocking=False),
        *(DeviceUnmapped("gpu", 0, 4 + at, 60 + at) for at in PAGES),
        *(PageCopied(60 + at, 40 + at) for at in PAGES),
        FolioDirtied(40),
        PagesCalled(0, BIG_BACK_ENTRY, BIG_BACK_GIVEN, vma=True),
        FolioMoved(60, 40, 2, 2, moved=True),
        FlagsMoved(60, 40),
        PagesReturned(0, BIG_BACK_ENTRY),
        FinalizeCalled(0, BIG_BACK_ENTRY, BIG_BACK_GIVEN, vma=True),
        LruAdded(40, 2),
        PTL,
        FolioGot(40, 3),
        RmapAdded(40, 0, 4, 1, exclusive=True, pages=4),
        BIG_BACK,
        PTL_OFF,
        FolioPut(60, 1),
        FolioUnlocked(40),
        FolioPut(40, 2),
        FinalizeReturned(0),
        CallbackReturned(60, 0, 5, VmFault.NONE),
        FolioUnlocked(60),
        FolioPut(60, 0),
        FreeCallback(60),
        FolioFreed(60, order=2),
        FaultEnded(0, 5, VmFault.NONE),
        TlbFilled(0, 5, present(41, dirty=True)),
        CpuAccessed(0, 5, 41, write=True),
        MMAP_OFF,
        OperationEnded("touch", 0),
    )
)
"""A store to a page of a device leaf brings the whole of it back."""

LARGE_FLOWS = {
    "a leaf to the device": (BIG_TO_DEVICE, LARGE),
    "a leaf to the device, split in pages()": (SPLIT_IN_PAGES, LARGE),
    "a leaf's hole filled": (BIG_HOLE_FILLED, LARGE),
    "a fault, split in setup": (SPLIT_IN_SETUP, LARGE),
    "a fault on a leaf": (BIG_FAULT, LARGE),
}
