"""Traces of large folios, written by hand: a leaf goes to the device as a whole or in pages, or its hole is filled there."""

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
    FolioSplit,
    FolioUnlocked,
    FolioUptodate,
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
    RmapAdded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    TlbFilled,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Select, migrate_pfn
from tests.spec.large_fault_traces import BIG_FAULT, SPLIT_IN_SETUP
from tests.spec.large_parts import LARGE, LARGE_BOOT, MIGRATE_RANGE, PAGES, alone, compound, system_leaf
from tests.spec.parts import HOLE, MMAP, MMAP_OFF, PTL, PTL_OFF, by, migrating, migration, present, private
from tests.spec.traces import FLOWS

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

LARGE_FLOWS = {
    "a leaf to the device": (BIG_TO_DEVICE, LARGE),
    "a leaf to the device, split in pages()": (SPLIT_IN_PAGES, LARGE),
    "a leaf's hole filled": (BIG_HOLE_FILLED, LARGE),
    "a fault, split in setup": (SPLIT_IN_SETUP, LARGE),
    "a fault on a leaf": (BIG_FAULT, LARGE),
}

ALL_FLOWS = {**FLOWS, **LARGE_FLOWS}
