"""What the traces that are written by hand are made of: entries, steps, a first state, and what the contract says of a trace.

One address space, mm 0, one anonymous VMA [0, 8). Frames 1 to 5 are system memory, 10 to 13 are the device gpu's, 20 is the
device npu's.
"""

from __future__ import annotations

from migrate_vma_spec.events import (
    FolioAllocated,
    FolioUnlocked,
    FrameAdded,
    LockDropped,
    LockTaken,
    LruAdded,
    LruDrained,
    MemcgCharged,
    MmCreated,
    PageCleared,
    PteChanged,
    RmapAdded,
    Step,
    VmaMapped,
)
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    PTE_NONE,
    Capability,
    LockMode,
    Memory,
    Pte,
    PteKind,
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


def judged(trace, capabilities=TRYLOCKED, end=True):
    """(ids of the clauses that the trace breaks in order, ids of those that it reaches)."""
    judge = Judge(capabilities)
    broken = [clause for clause, _ in judge.feed_all(trace)]
    broken += [clause for clause, _ in judge.end()] if end else []
    return broken, judge.reached


def fold_all(trace, capabilities=TRYLOCKED):
    """The worlds before each step of the trace, and the last one."""
    worlds = [World(capabilities=capabilities)]
    for step in trace:
        worlds.append(fold(worlds[-1], step))
    return worlds
