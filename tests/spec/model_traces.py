"""Traces of whole operations for the reference model, built from the flows of `traces.py`, and what the model says of them."""

from __future__ import annotations

from migrate_vma_spec.events import (
    CpuAccessed,
    DeviceAccessed,
    FaultBegan,
    FaultEnded,
    FolioAllocated,
    FolioFreed,
    FolioGot,
    FolioPut,
    LockDropped,
    LockTaken,
    LruAdded,
    LruDrained,
    MemcgCharged,
    MmForked,
    NotifierSubscribed,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PageCopied,
    PteChanged,
    RmapAdded,
    RmapRemoved,
    TlbFilled,
    TlbFlushed,
    VmaUnmapped,
)
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.model import REFERENCE, START, allowed, next_state
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, Pte, PteKind, VmFault
from migrate_vma_spec.world import fold
from tests.spec.edits import put
from tests.spec.fault_traces import EVICT, TRYLOCKED_P, cpu_fault
from tests.spec.parts import BOOT, MMAP, MMAP_OFF, TRYLOCKED, by, present
from tests.spec.traces import INSERTED, TO_DEVICE

ZERO = Pte(PteKind.ZERO, young=True)
NAP = by("other3", OperationBegan("nap"))
"""Another task has something open from here on: what follows is a race."""


def refusals(trace, capabilities=TRYLOCKED):
    """The sentence with which the model refuses the trace, if it does."""
    return [sentence for _, sentence in Judge(capabilities, [REFERENCE]).feed_all(trace)]


def memory_after(trace, capabilities=TRYLOCKED):
    return _run(trace, capabilities)[0]


def _run(trace, capabilities):
    state, world = START, World(capabilities=capabilities)
    for step in trace:
        state, world = next_state(state, world, step), fold(world, step)
    return state, world


def allowed_last(trace, capabilities=TRYLOCKED):
    """{what: allowed values} of the last step of the trace."""
    state, world = _run(trace[:-1], capabilities)
    return {one.what: one.allowed for one in allowed(state, world, trace[-1])}


def ptl(mm):
    return LockTaken(f"ptl:{mm}", LockMode.SPIN), LockDropped(f"ptl:{mm}", LockMode.SPIN)


def operation(task, name, arguments, *events, result=0):
    return by(task, OperationBegan(name, arguments), *events, OperationEnded(name, result))


def renamed(steps, old, name, arguments, result):
    steps = put(steps, OperationBegan(old), OperationBegan(name, arguments))
    return put(steps, OperationEnded(old, 0), OperationEnded(name, result))


# ---- what CPUs do ------------------------------------------------------------------------------------------------------------


def first_store(task="cpu1", mm=0, addr=2, pfn=1):
    """A store to a page that was never touched."""
    on, off = ptl(mm)
    lock = f"mmap_lock:{mm}"
    return operation(
        task,
        "write",
        (mm, addr),
        LockTaken(lock, LockMode.READ),
        FaultBegan(mm, addr, write=True),
        FolioAllocated(pfn, 1, locked=False),
        PageCleared(pfn),
        MemcgCharged(pfn),
        on,
        RmapAdded(pfn, mm, addr, 1, exclusive=True),
        LruAdded(pfn, 2),
        PteChanged(mm, addr, PTE_NONE, present(pfn, dirty=True)),
        off,
        FaultEnded(mm, addr, VmFault.NONE),
        LockDropped(lock, LockMode.READ),
        TlbFilled(mm, addr, present(pfn, dirty=True)),
        CpuAccessed(mm, addr, pfn, write=True),
        LruDrained((pfn,)),
    )


def load(task="cpu1", mm=0, addr=2, pfn=1):
    return operation(task, "read", (mm, addr), CpuAccessed(mm, addr, pfn, write=False))


def store(task="cpu1", mm=0, addr=2, pfn=1):
    return operation(task, "write", (mm, addr), CpuAccessed(mm, addr, pfn, write=True))


ZERO_READ = operation(
    "cpu1",
    "read",
    (0, 2),
    MMAP,
    FaultBegan(0, 2, write=False),
    PteChanged(0, 2, PTE_NONE, ZERO),
    FaultEnded(0, 2, VmFault.NONE),
    MMAP_OFF,
    CpuAccessed(0, 2, None, write=False),
)

FORK = operation(
    "cpu1",
    "fork",
    (0, 1),
    MmForked(0, 1),
    FolioGot(1, 2),
    RmapAdded(1, 1, 2, 2, exclusive=False),
    PteChanged(0, 2, present(1, dirty=True), present(1, write=False, dirty=True)),
    PteChanged(1, 2, PTE_NONE, present(1, write=False, dirty=True)),
    TlbFlushed(0, 0, 8),
)
"""Of an address space with one page, at addr 2 in frame 1."""


def copy_on_write(task, mm, pfn):
    """A store to the page that FORK shared: it gets a frame of its own."""
    on, off = ptl(mm)
    lock = f"mmap_lock:{mm}"
    return operation(
        task,
        "write",
        (mm, 2),
        LockTaken(lock, LockMode.READ),
        FaultBegan(mm, 2, write=True),
        FolioAllocated(pfn, 1, locked=False),
        PageCopied(1, pfn),
        MemcgCharged(pfn),
        on,
        PteChanged(mm, 2, present(1, write=False, dirty=True), PTE_NONE),
        TlbFlushed(mm, 2, 3),
        RmapAdded(pfn, mm, 2, 1, exclusive=True),
        LruAdded(pfn, 2),
        PteChanged(mm, 2, PTE_NONE, present(pfn, dirty=True)),
        RmapRemoved(1, mm, 2, 1),
        off,
        FolioPut(1, 1),
        FaultEnded(mm, 2, VmFault.NONE),
        LockDropped(lock, LockMode.READ),
        CpuAccessed(mm, 2, pfn, write=True),
    )


ZAPPED = PteChanged(0, 2, present(1, dirty=True), PTE_NONE)
FREED = (TlbFlushed(0, 2, 3), FolioPut(1, 0), FolioFreed(1))
DISCARD = operation("cpu2", "madvise_dontneed", (0, 2, 3), MMAP, ZAPPED, RmapRemoved(1, 0, 2, 0), *FREED, MMAP_OFF)
UNMAP = operation("cpu2", "munmap", (0, 2, 3), ZAPPED, RmapRemoved(1, 0, 2, 0), *FREED, VmaUnmapped(0, 2, 3))


# ---- what the device does ----------------------------------------------------------------------------------------------------

WRITTEN = BOOT + by("boot", NotifierSubscribed("gpu", 0)) + first_store()
TO_GPU = renamed([step for step in TO_DEVICE if step.task == "mig0"], "migrate", "gpu.to_device", (0, 2, 3), 1)
SETTLED = WRITTEN + by("boot", TlbFlushed(0, 2, 3))
"""A page that a CPU wrote, and that no TLB has any more."""
MIGRATED = WRITTEN + TO_GPU
BACK_BY_STORE = renamed(cpu_fault(TRYLOCKED_P), "touch", "write", (0, 2), 0)
EVICTION = renamed([step for step in EVICT if step.task == "evict0"], "evict", "gpu.evict", (), 1)

PLACED = BOOT + by(
    "boot",
    FolioAllocated(10, 1, locked=False),
    PageCleared(10),
    MemcgCharged(10),
    RmapAdded(10, 0, 2, 1, exclusive=True),
    INSERTED,
)
"""A page that was never written, in frame 10 of the device gpu."""


def device_access(write, pfn=10, result=0):
    name = "gpu.device_write" if write else "gpu.device_read"
    return operation("gpu2", name, (0, 2), DeviceAccessed("gpu", 0, 2, pfn, write=write), result=result)
