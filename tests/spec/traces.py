"""Traces written by hand: what a correct core and driver do, step by step, and the edits that make a wrong one of them.

One address space, mm 0, one anonymous VMA [0, 8). Frames 1 to 5 are system memory, 10 to 13 are the device gpu's, 20 is the
device npu's. Every flow is about addr 2.
"""

from __future__ import annotations

from attrs import evolve, frozen

from migrate_vma_spec.events import (
    CacheFlushed,
    CallbackEntered,
    CallbackReturned,
    CpuAccessed,
    DeviceMapped,
    DeviceUnmapped,
    EntryRefilled,
    Event,
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
    FolioUptodate,
    FrameAdded,
    FreeCallback,
    InvalidateBegan,
    InvalidateEnded,
    LockDropped,
    LockTaken,
    LruAdded,
    LruDrained,
    LruIsolated,
    LruPutBack,
    MemcgCharged,
    MemcgUncharged,
    MmCreated,
    NotifierSubscribed,
    OperationBegan,
    OperationEnded,
    PageCleared,
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
    Step,
    TlbFilled,
    TlbFlushed,
    VmaMapped,
    ZoneDeviceDataRead,
)
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    PTE_NONE,
    Capability,
    LockMode,
    Memory,
    NotifyReason,
    Pte,
    PteKind,
    Select,
    VmFault,
    VmFlags,
    migrate_pfn,
)
from migrate_vma_spec.world import World, fold

HOLE = MIGRATE_PFN_MIGRATE
RW = VmFlags.READ | VmFlags.WRITE
NO_CAPABILITY = frozenset()
REFERENCED = frozenset({Capability.FAULT_PAGE})
TRYLOCKED = frozenset({Capability.FAULT_PAGE, Capability.FAULT_LOCK})
REFILL = frozenset({Capability.FAULT_LOCK, Capability.REFILL})


def migrating(pfn, write=True):
    return migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE | (MIGRATE_PFN_WRITE if write else 0)


def present(pfn, **bits):
    return Pte(PteKind.PRESENT, pfn, **{"write": True, "young": True, **bits})


def private(pfn, **bits):
    return Pte(PteKind.DEVICE_PRIVATE, pfn, **{"write": True, **bits})


def migration(pfn, **bits):
    return Pte(PteKind.MIGRATION, pfn, **{"write": True, **bits})


def by(task, *events):
    """These events as the steps of one task; each task has a CPU of its own, named by its last character if that is a digit."""
    cpu = int(task[-1]) if task[-1].isdigit() else 0
    return [Step(task, cpu, event) for event in events]


def events(trace):
    """What happened in a trace, whoever did it."""
    return tuple(step.event for step in trace)


BOOT = by(
    "boot",
    *(FrameAdded(pfn, Memory.SYSTEM) for pfn in range(1, 6)),
    *(FrameAdded(pfn, Memory.DEVICE_PRIVATE, "gpu") for pfn in range(10, 14)),
    FrameAdded(20, Memory.DEVICE_PRIVATE, "npu"),
    MmCreated(0),
    VmaMapped(0, 0, 8, RW, anonymous=True),
)

PTL, PTL_OFF = LockTaken("ptl:0", LockMode.SPIN), LockDropped("ptl:0", LockMode.SPIN)
MMAP, MMAP_OFF = LockTaken("mmap_lock:0", LockMode.READ), LockDropped("mmap_lock:0", LockMode.READ)


def system_page(pfn=1, addr=2, pte=None):
    """A page of system memory that a CPU has written, on the LRU and charged."""
    return by(
        "boot",
        FolioAllocated(pfn, 1, locked=False),
        PageCleared(pfn),
        MemcgCharged(pfn),
        RmapAdded(pfn, 0, addr, 1, exclusive=True),
        LruAdded(pfn, 2),
        PteChanged(0, addr, PTE_NONE, pte or present(pfn)),
        LruDrained((pfn,)),
    )


def device_page(pfn=10, addr=2, pte=None):
    """A page of device memory that a virtual page lives in."""
    return by(
        "boot",
        FolioAllocated(pfn, 1, locked=True),
        PageCleared(pfn),
        MemcgCharged(pfn),
        RmapAdded(pfn, 0, addr, 1, exclusive=True),
        PteChanged(0, addr, PTE_NONE, pte or private(pfn)),
        FolioUnlocked(pfn),
    )


# ---- edits ----------------------------------------------------------------------------------------------------------------


def _place(trace, event, nth):
    places = [place for place, step in enumerate(trace) if step.event == event]
    assert len(places) > nth, f"no {event} (number {nth}) in the trace"
    return places[nth]


def without(trace, *events, nth=0):
    """The trace less the first (or n-th) step of each of these events."""
    for event in events:
        place = _place(trace, event, nth)
        trace = trace[:place] + trace[place + 1 :]
    return trace


def put(trace, event, *instead, nth=0, task=None):
    """The trace with these events in the place of one."""
    place = _place(trace, event, nth)
    return trace[:place] + by(task or trace[place].task, *instead) + trace[place + 1 :]


def before(trace, event, *extra, nth=0, task=None):
    """The trace with these events, by the same task or by another, ahead of one."""
    place = _place(trace, event, nth)
    return trace[:place] + by(task or trace[place].task, *extra) + trace[place:]


def after(trace, event, *extra, nth=0, task=None):
    place = _place(trace, event, nth)
    return trace[: place + 1] + by(task or trace[place].task, *extra) + trace[place + 1 :]


def later(trace, event, anchor, nth=0):
    """The trace with one step moved to just after another."""
    place = _place(trace, event, nth)
    step = trace[place]
    return after(trace[:place] + trace[place + 1 :], anchor, event, task=step.task)


def up_to(trace, event, nth=0):
    """The trace up to and with this event."""
    return trace[: _place(trace, event, nth) + 1]


def the(trace, kind: type[Event], nth=0, **changes):
    """(the n-th event of this kind, the same with these changes)."""
    event = [step.event for step in trace if type(step.event) is kind][nth]
    return event, evolve(event, **changes)


def change(trace, kind, nth=0, **changes):
    """The trace with fields of its n-th event of this kind changed."""
    places = [place for place, step in enumerate(trace) if type(step.event) is kind]
    step = trace[places[nth]]
    return [*trace[: places[nth]], evolve(step, event=evolve(step.event, **changes)), *trace[places[nth] + 1 :]]


def judged(trace, capabilities=TRYLOCKED, end=True):
    """(ids of the clauses that the trace breaks in order, ids of those that it reaches)."""
    judge = Judge(capabilities)
    broken = [clause for clause, _ in judge.feed_all(trace)]
    broken += [clause for clause, _ in judge.end()] if end else []
    return broken, judge.reached


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

HOLE_FILLED = BOOT + by(
    "mig0",
    OperationBegan("migrate"),
    MMAP,
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
        LruAdded(2, 2),
        PTL,
        FolioGot(2, 3),
        RmapAdded(2, 0, 2, 1, exclusive=True),
        BACK,
        PTL_OFF,
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
    LruAdded(2, 2),
    PTL,
    FolioGot(2, 3),
    RmapAdded(2, 0, 2, 1, exclusive=True),
    BACK,
    PTL_OFF,
    FolioUnlocked(10),
    *FREED,
    FolioUnlocked(2),
    FolioPut(2, 2),
    FinalizeReturned(0),
    OperationEnded("evict", 0),
)

FLOWS = {
    "to device": (TO_DEVICE, TRYLOCKED),
    "aborted": (ABORTED, TRYLOCKED),
    "pinned": (PINNED, TRYLOCKED),
    "hole filled": (HOLE_FILLED, TRYLOCKED),
    "hole lost": (HOLE_LOST, TRYLOCKED),
    "fault, trylocked": (FAULT, TRYLOCKED),
    "fault, referenced": (FAULT_REFERENCED, REFERENCED),
    "fault, handed over": (FAULT_REFILL, REFILL),
    "evict": (EVICT, TRYLOCKED),
}
"""Every correct flow, with the capabilities of the generation that it is of."""


def fold_all(trace, capabilities=TRYLOCKED):
    """The worlds before each step of the trace, and the last one."""
    worlds = [World(capabilities=capabilities)]
    for step in trace:
        worlds.append(fold(worlds[-1], step))
    return worlds
