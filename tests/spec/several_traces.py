"""A trace of several pages in one call, written by hand: one dirty, two holes, one read-only, and one that is pinned.

They are addr 2 to 6. All but the last go to the device, each to a frame of its own.
"""

from __future__ import annotations

from migrate_vma_spec.events import (
    CacheFlushed,
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
    InvalidateBegan,
    InvalidateEnded,
    LruIsolated,
    LruPutBack,
    MemcgCharged,
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
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, NotifyReason, Pte, PteKind, Select, migrate_pfn
from tests.spec.parts import (
    BOOT,
    HOLE,
    MMAP,
    MMAP_OFF,
    PTL,
    PTL_OFF,
    by,
    migrating,
    migration,
    present,
    private,
    system_page,
)

ZERO = Pte(PteKind.ZERO)
DIRTY, READ_ONLY, PINNED = present(1, dirty=True), present(3, write=False), present(4)
TAKEN = {
    DIRTY: migration(1, young=True, dirty=True),
    READ_ONLY: migration(3, write=False, exclusive=True, young=True),
    PINNED: migration(4, young=True),
}
SRC = (migrating(1), HOLE, HOLE, migrating(3, write=False), 0)
DST = (*map(migrate_pfn, (10, 11, 12, 13)), 0)


def _taken(addr, old, refs=1):
    """The page of an entry, which has so many references besides the one that setup takes."""
    pfn = old.pfn
    return (
        *(PteRead(0, addr, old), FolioGot(pfn, refs + 1), FolioLocked(pfn, blocking=False), CacheFlushed(0, addr)),
        *(PteChanged(0, addr, old, PTE_NONE), TlbFlushed(0, addr, addr + 1), ExclusiveShared(pfn, done=True)),
        *((FolioDirtied(pfn),) if old.dirty else ()),
        *(PteChanged(0, addr, PTE_NONE, TAKEN[old]), RmapRemoved(pfn, 0, addr, 0), FolioPut(pfn, refs)),
    )


def _filled(addr, old, pfn):
    return (
        *(MemcgCharged(pfn), FolioUptodate(pfn), PTL, RmapAdded(pfn, 0, addr, 1, exclusive=True), FolioGot(pfn, 2)),
        *(PteChanged(0, addr, old, private(pfn)), PTL_OFF),
    )


def _arrived(addr, old, pfn):
    entry = TAKEN[old]
    return (
        *(PTL, FolioGot(pfn, 2), RmapAdded(pfn, 0, addr, 1, exclusive=True)),
        *(PteChanged(0, addr, entry, private(pfn, write=entry.write)), PTL_OFF),
        *(FolioUnlocked(old.pfn), FolioPut(old.pfn, 0), FolioFreed(old.pfn), FolioUnlocked(pfn), FolioPut(pfn, 1)),
    )


SEVERAL = (
    BOOT
    + system_page(1, 2, DIRTY)
    + by("boot", PteChanged(0, 4, PTE_NONE, ZERO))
    + system_page(3, 5, READ_ONLY)
    + system_page(4, 6, PINNED)
    + by("pin1", FolioGot(4, 2))
    + by(
        "mig0",
        *(OperationBegan("migrate"), MMAP, SetupCalled(0, 0, 2, 7, Select.SYSTEM, "gpu", None, 5, 5)),
        *(InvalidateBegan(0, 2, 7, NotifyReason.MIGRATE, "gpu"), PTL),
        *(*_taken(2, DIRTY), PteRead(0, 3, PTE_NONE), PteRead(0, 4, ZERO), *_taken(5, READ_ONLY), *_taken(6, PINNED, 2)),
        *(PTL_OFF, InvalidateEnded(0, 2, 7)),
        *(event for pfn in (1, 3) for event in (LruIsolated(pfn, done=True, refcount=2), FolioPut(pfn, 1))),
        *(LruIsolated(4, done=True, refcount=3), FolioPut(4, 2)),
        *(FolioChecked(1, 1, 0, ok=True), FolioChecked(3, 1, 0, ok=True), FolioChecked(4, 2, 0, ok=False)),
        *(FolioGot(4, 3), LruPutBack(4, 2), PTL, FolioGot(4, 3), RmapAdded(4, 0, 6, 1, exclusive=True)),
        *(PteChanged(0, 6, TAKEN[PINNED], PINNED), PTL_OFF, FolioUnlocked(4), FolioPut(4, 2)),
        SetupReturned(0, 0, 2, 7, 4, 5, SRC),
        *(FolioAllocated(pfn, 1, locked=True) for pfn in (10, 11, 12, 13)),
        *(PageCopied(1, 10), PageCleared(11), PageCleared(12), PageCopied(3, 13)),
        PagesCalled(0, SRC, DST, vma=True),
        *(FolioMoved(1, 10, 1, 1, moved=True), FlagsMoved(1, 10)),
        *(InvalidateBegan(0, 3, 7, NotifyReason.MIGRATE, "gpu"), *_filled(3, PTE_NONE, 11), *_filled(4, ZERO, 12)),
        *(FolioMoved(3, 13, 1, 1, moved=True), FlagsMoved(3, 13), InvalidateEnded(0, 3, 7)),
        PagesReturned(0, SRC),
        *(DeviceMapped("gpu", 0, 2 + at, 10 + at, write=at != 3) for at in range(4)),
        FinalizeCalled(0, SRC, DST, vma=True),
        *(*_arrived(2, DIRTY, 10), FolioUnlocked(11), FolioPut(11, 1), FolioUnlocked(12), FolioPut(12, 1)),
        *(*_arrived(5, READ_ONLY, 13), FinalizeReturned(0), MMAP_OFF, OperationEnded("migrate", 0)),
    )
    + by("pin1", FolioPut(4, 1))
)
