"""Traces of large folios, written by hand: a fault on a page of one, which comes back alone, or with all of the leaf."""

from __future__ import annotations

from migrate_vma_spec.events import (
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
    FreeCallback,
    InvalidateBegan,
    InvalidateEnded,
    LruAdded,
    OperationBegan,
    OperationEnded,
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
)
from migrate_vma_spec.vocabulary import NotifyReason, Select, VmFault, migrate_pfn
from tests.spec.large_parts import LARGE_BOOT, MIGRATE_RANGE, PAGES, alone, compound, device_leaf
from tests.spec.parts import MMAP, MMAP_OFF, PTL, PTL_OFF, by, migrating, migration, present, private

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
