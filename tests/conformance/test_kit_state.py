"""Shared state in words: what differs from boot, and nothing else."""

from __future__ import annotations

import pytest
from attrs import evolve

from migrate_vma_conformance.report.state import describe
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.containers import DriverSlot, MirrorEntry
from migrate_vma_impl.machine.locks import Mutex, RwSem, SpinLock
from migrate_vma_impl.mm.mm_types import Folio, FreePages, LruBatch, Mm, PteSlot, Tlb, TlbEntry, Vma, Waiter, WaitMode
from migrate_vma_impl.mm.mmu_notifier import Reader, Subscriptions
from migrate_vma_spec.vocabulary import Lru, Pte, PteKind, VmFlags

BOOT = Kernel(WAITING, Config(cpus=1, system_frames=2, addresses=1, mms=1)).slots() | {
    SpinLock("ptl"): False,
    Mutex("mutex"): False,
    DriverSlot("dev", "mirror"): (),
    DriverSlot("dev", "owner"): None,
    "something else": 0,
}
PTE = Pte(PteKind.PRESENT, 1, write=True, dirty=True)


def test_at_boot_there_is_nothing_to_say():
    assert describe(BOOT, BOOT) == ()


@pytest.mark.parametrize(
    ("key", "change", "line"),
    [
        (Folio(1), {"refcount": 1, "locked": True, "lru": Lru.ON}, "folio 1: refcount 1, locked, lru on"),
        (Folio(2), {"queue": (Waiter("t1", WaitMode.LOCK), Waiter("t2", WaitMode.TOLD))}, "folio 2: queue t1 (lock), t2 (wait)"),
        (Folio(2), {"zone_device_data": Mm(0)}, "folio 2: zone_device_data mm 0"),
        (
            Mm(0),
            {"users": 0, "vmas": (Vma(Mm(0), 0, 2, VmFlags.READ | VmFlags.WRITE, 0),)},
            "mm 0: vmas mm0:0-1 READ|WRITE, users 0",
        ),
        (
            Subscriptions(0),
            {"active": 1, "readers": (Reader("dev", "t1", stale=True),)},
            "notifiers of mm 0: active 1, readers t1 for dev (stale)",
        ),
    ],
)
def test_of_an_object_the_fields_that_changed_are_told(key, change, line):
    assert describe(BOOT, BOOT | {key: evolve(BOOT[key], **change)}) == (line,)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (PteSlot(0, 0), PTE, "pte mm0:0: page 1 wd"),
        (Tlb(0), (TlbEntry(0, 0, PTE),), "TLB of CPU 0: mm0:0 page 1 wd"),
        (SpinLock("ptl"), True, "spinlock ptl:0: held"),
        (Mutex("mutex"), True, "lock mutex:0: held"),
        (RwSem("mmap_lock"), 1, "rwsem mmap_lock:0: held by 1 reader"),
        (RwSem("mmap_lock"), 2, "rwsem mmap_lock:0: held by 2 readers"),
        (RwSem("mmap_lock"), -1, "rwsem mmap_lock:0: held by a writer"),
        (LruBatch(0), (1, 2), "LRU batch of CPU 0: 1, 2"),
        (FreePages(), (), "free system frames: empty"),
        (DriverSlot("dev", "mirror"), (MirrorEntry(0, 1, None, write=False),), "dev.mirror: mm0:1 -> zero page"),
        (DriverSlot("dev", "owner"), Folio(1), "dev.owner: folio 1"),
        ("something else", 3, "'something else': 3"),
    ],
)
def test_of_everything_else_the_value_is_told(key, value, line):
    assert describe(BOOT, BOOT | {key: value}) == (line,)
