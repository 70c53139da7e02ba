"""What the traces of large folios are made of.

A leaf of the middle level maps four pages, addr 4 to 7 of mm 0. Frames 40 to 47 are system memory, 60 to 67 the device gpu's.
"""

from __future__ import annotations

from migrate_vma_spec.events import (
    FolioAllocated,
    FolioUnlocked,
    FrameAdded,
    InvalidateBegan,
    InvalidateEnded,
    LruAdded,
    LruDrained,
    MemcgCharged,
    PageCleared,
    PmdChanged,
    RmapAdded,
)
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, PTE_NONE, Capability, Memory, NotifyReason, Pte, PteKind
from tests.spec.parts import BOOT, TRYLOCKED, by, present, private

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
