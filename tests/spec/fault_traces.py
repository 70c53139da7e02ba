"""Traces written by hand: a page of the device comes back, by a fault in each generation or by an eviction. All about addr 2."""

from __future__ import annotations

from attrs import frozen

from migrate_vma_spec.events import (
    CallbackEntered,
    CallbackReturned,
    CpuAccessed,
    DeviceMapped,
    DeviceUnmapped,
    EntryRefilled,
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
    FolioLockMissed,
    FolioMoved,
    FolioPut,
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
    PteChanged,
    PteRead,
    RangeCalled,
    RangeReturned,
    RmapAdded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    TlbFilled,
    ZoneDeviceDataRead,
)
from migrate_vma_spec.vocabulary import Capability, NotifyReason, Select, VmFault, migrate_pfn
from tests.spec.parts import (
    BOOT,
    MMAP,
    MMAP_OFF,
    NO_CAPABILITY,
    PTL,
    PTL_OFF,
    REFERENCED,
    REFILL,
    TRYLOCKED,
    by,
    device_page,
    migrating,
    migration,
    present,
    private,
)

# ---- a CPU fault on a device page, in each generation ---------------------------------------------------------------------


@frozen
class Protocol:
    """What the fault handler does before the callback, and what the library expects of it."""

    capabilities: frozenset[Capability]
    gets: bool
    locks: bool
    hands_over: bool = False


UNREFERENCED_P = Protocol(NO_CAPABILITY, gets=False, locks=False)
REFERENCED_P = Protocol(REFERENCED, gets=True, locks=False)
TRYLOCKED_P = Protocol(TRYLOCKED, gets=True, locks=True)
REFILL_P = Protocol(REFILL, gets=True, locks=True, hands_over=True)

TAKEN = PteChanged(0, 2, private(10), migration(10))
BACK = PteChanged(0, 2, migration(10), present(2, young=False))
REMAPPED = (LruAdded(2, 2), PTL, FolioGot(2, 3), RmapAdded(2, 0, 2, 1, exclusive=True), BACK, PTL_OFF)
"""Finalize maps the page where it is now."""


def _unmap(refs):
    """The fault page's mapping gives way to a migration entry; `refs` are left afterwards."""
    return (ExclusiveShared(10, done=True), TAKEN, RmapRemoved(10, 0, 2, 0), FolioPut(10, refs))


def fault_setup(protocol):
    base = 2 if protocol.gets else 1
    fault_page = 10 if Capability.FAULT_PAGE in protocol.capabilities and not protocol.hands_over else None
    call = SetupCalled(0, 0, 2, 3, Select.DEVICE_PRIVATE, "gpu", fault_page, 1, 1)
    brackets = InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"), InvalidateEnded(0, 2, 3)
    if protocol.hands_over:
        walk = (PTL, PteRead(0, 2, migration(10)), PTL_OFF)
        returned = (SetupReturned(0, 0, 2, 3, 0, 1, (0,)), EntryRefilled(0, 0, migrating(10)))
    else:
        lock = () if protocol.locks else (FolioLocked(10, blocking=False),)
        walk = (PTL, PteRead(0, 2, private(10)), FolioGot(10, base + 1), *lock, *_unmap(base), PTL_OFF)
        returned = (FolioChecked(10, base, 0, ok=True), SetupReturned(0, 0, 2, 3, 1, 1, (migrating(10),)))
    return (call, brackets[0], *walk, brackets[1], *returned)


FREED = (FolioPut(10, 0), FreeCallback(10), FolioFreed(10))


def cpu_fault(protocol, task="cpu1"):
    """A store to a page that lives on the device: it migrates to frame 2."""
    refs = 2 if protocol.gets and not protocol.hands_over else 1
    before = (*((FolioLocked(10, blocking=False),) if protocol.locks else ()), *((FolioGot(10, 2),) if protocol.gets else ()))
    handed = _unmap(1) if protocol.hands_over else ()
    ends_lock = protocol.hands_over or not protocol.locks
    src_ends = (
        *((FolioUnlocked(10),) if ends_lock else ()),
        *(FREED if refs == 1 else (FolioPut(10, 1),)),
    )
    handler_ends = (*((FolioUnlocked(10),) if protocol.locks else ()), *FREED) if refs == 2 else ()
    src, dst = (migrating(10),), (migrate_pfn(2),)
    return by(
        task,
        OperationBegan("touch"),
        MMAP,
        FaultBegan(0, 2, write=True),
        PTL,
        PteRead(0, 2, private(10)),
        *before,
        *handed,
        PTL_OFF,
        CallbackEntered(10, 0, 2),
        ZoneDeviceDataRead(10),
        *fault_setup(protocol),
        FolioAllocated(2, 1, locked=False),
        FolioLocked(2, blocking=False),
        DeviceUnmapped("gpu", 0, 2, 10),
        PageCopied(10, 2),
        FolioDirtied(2),
        PagesCalled(0, src, dst, vma=True),
        FolioMoved(10, 2, refs, refs, moved=True),
        FlagsMoved(10, 2),
        PagesReturned(0, src),
        FinalizeCalled(0, src, dst, vma=True),
        *REMAPPED,
        *src_ends,
        FolioUnlocked(2),
        FolioPut(2, 2),
        FinalizeReturned(0),
        CallbackReturned(10, 0, 2, VmFault.NONE),
        *handler_ends,
        FaultEnded(0, 2, VmFault.NONE),
        TlbFilled(0, 2, present(2, dirty=True)),
        CpuAccessed(0, 2, 2, write=True),
        MMAP_OFF,
        OperationEnded("touch", 0),
    )


DEVICE_START = BOOT + device_page() + by("gpu0", DeviceMapped("gpu", 0, 2, 10, write=True))
FAULT = DEVICE_START + cpu_fault(TRYLOCKED_P)
FAULT_REFERENCED = DEVICE_START + cpu_fault(REFERENCED_P)
FAULT_UNREFERENCED = DEVICE_START + cpu_fault(UNREFERENCED_P)
FAULT_REFILL = DEVICE_START + cpu_fault(REFILL_P)

LOSER = by(
    "cpu2",
    OperationBegan("touch"),
    MMAP,
    FaultBegan(0, 2, write=False),
    PTL,
    PteRead(0, 2, private(10)),
    FolioLockMissed(10),
    PTL_OFF,
    FaultEnded(0, 2, VmFault.NONE),
    MMAP_OFF,
    OperationEnded("touch", 0),
)
"""Another CPU faults on the page, loses the trylock, and goes back to user space."""


# ---- eviction -------------------------------------------------------------------------------------------------------------

EVICT = DEVICE_START + by(
    "evict0",
    OperationBegan("evict"),
    RangeCalled(0, (10,)),
    FolioGot(10, 2),
    FolioLocked(10, blocking=False),
    InvalidateBegan(0, 2, 3, NotifyReason.CLEAR, None),
    PTL,
    *_unmap(1),
    PTL_OFF,
    InvalidateEnded(0, 2, 3),
    FolioChecked(10, 1, 0, ok=True),
    RangeReturned(0, 0, (migrating(10, write=False),)),
    FolioAllocated(2, 1, locked=False),
    FolioLocked(2, blocking=False),
    DeviceUnmapped("gpu", 0, 2, 10),
    PageCopied(10, 2),
    PagesCalled(0, (migrating(10, write=False),), (migrate_pfn(2),), vma=False),
    FolioMoved(10, 2, 1, 1, moved=True),
    FlagsMoved(10, 2),
    PagesReturned(0, (migrating(10, write=False),)),
    FinalizeCalled(0, (migrating(10, write=False),), (migrate_pfn(2),), vma=False),
    *REMAPPED,
    FolioUnlocked(10),
    *FREED,
    FolioUnlocked(2),
    FolioPut(2, 2),
    FinalizeReturned(0),
    OperationEnded("evict", 0),
)
