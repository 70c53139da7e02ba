"""What a CPU or a device must find in a page: stores, copies, copy-on-write, discards, and what is reachable at rest."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    CpuAccessed,
    DeviceAccessed,
    FolioAllocated,
    FrameAdded,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PageCopied,
    PteChanged,
    RmapAdded,
    TlbFlushed,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, VmFlags
from tests.spec.edits import before, put, up_to, without
from tests.spec.model_traces import (
    BACK_BY_STORE,
    DISCARD,
    EVICTION,
    FORK,
    MIGRATED,
    NAP,
    PLACED,
    UNMAP,
    WRITTEN,
    ZAPPED,
    ZERO_READ,
    copy_on_write,
    device_access,
    first_store,
    load,
    memory_after,
    refusals,
    store,
)
from tests.spec.parts import BOOT, by, present, private

FORKED = WRITTEN + FORK
CORRECT = {
    "a load finds the store": WRITTEN + load(),
    "the zero page is read": BOOT + ZERO_READ,
    "the page follows to the device": MIGRATED + device_access(write=True) + device_access(write=False),
    "and back": MIGRATED + BACK_BY_STORE + load(pfn=2),
    "an eviction brings it back": MIGRATED + EVICTION + load(pfn=2),
    "both read what was there at the fork": FORKED + load() + load("cpu2", mm=1),
    "the child's store is its own": FORKED + copy_on_write("cpu2", 1, 2) + load() + load("cpu2", mm=1, pfn=2),
    "the parent's store is its own": FORKED + copy_on_write("cpu1", 0, 2) + load(pfn=2) + load("cpu2", mm=1),
    "a discarded page reads as zero": WRITTEN + DISCARD + ZERO_READ,
    "a discarded page is new": WRITTEN + DISCARD + first_store(pfn=2) + load(pfn=2),
    "a store that the copy still takes": put(MIGRATED, PageCopied(1, 10), CpuAccessed(0, 2, 1, write=True), PageCopied(1, 10)),
    "an unmapped page is gone": WRITTEN + UNMAP + by("boot", VmaMapped(0, 2, 3, VmFlags.READ, anonymous=True)) + ZERO_READ,
}


@pytest.mark.parametrize("trace", CORRECT.values(), ids=CORRECT)
def test_what_is_right_is_allowed(trace):
    assert refusals(trace) == []


WRONG = {
    "a stale load": (MIGRATED + load(pfn=1), "load of CPU 1 at mm 0 addr 2 found what is in frame 1; allowed: frame 10"),
    "a load of zeros": (WRITTEN + load(pfn=None), "found what is in the zero page; allowed: frame 1"),
    "a page that nobody cleared": (without(PLACED, PageCleared(10)) + device_access(write=False), "found what is in frame 10"),
    "the copy is skipped": (without(MIGRATED, PageCopied(1, 10)), "mm 0 addr 2 leads to frame 10; allowed: nothing"),
    "the copy comes after the store": (
        MIGRATED + put(BACK_BY_STORE, CpuAccessed(0, 2, 2, write=True), CpuAccessed(0, 2, 2, write=True), PageCopied(10, 2)),
        "leads to frame 2; allowed: nothing",
    ),
    "a store after the copy": (
        put(MIGRATED, PageCopied(1, 10), PageCopied(1, 10), CpuAccessed(0, 2, 1, write=True)),
        "leads to frame 10; allowed: nothing",
    ),
    "the device's store comes after the copy": (
        MIGRATED + put(BACK_BY_STORE, PageCopied(10, 2), PageCopied(10, 2), DeviceAccessed("gpu", 0, 2, 10, write=True)),
        "store of CPU 1 at mm 0 addr 2 found what is in frame 2; allowed: nothing",
    ),
    "the page is cleared after the copy": (
        MIGRATED + put(BACK_BY_STORE, PageCopied(10, 2), PageCopied(10, 2), PageCleared(2)),
        "found what is in frame 2; allowed: nothing",
    ),
    "the child sees the parent's store": (FORKED + store() + load("cpu2", mm=1), "leads to frame 1; allowed: nothing"),
    "the parent sees the child's store": (FORKED + store("cpu2", mm=1), "mm 0 addr 2 leads to frame 1; allowed: nothing"),
    "a device writes a shared page": (
        FORKED + by("gpu2", OperationBegan("nap"), DeviceAccessed("gpu", 0, 2, 1, write=True)) + load("cpu2", mm=1),
        "load of CPU 2 at mm 1 addr 2 found what is in frame 1; allowed: nothing",
    ),
    "a discarded page comes back": (
        WRITTEN + without(DISCARD, ZAPPED) + load(),
        "madvise_dontneed(0, 2, 3) left the contents of pages (2,); allowed: ()",
    ),
    "a mapping to another page's frame": (
        WRITTEN + first_store(addr=5, pfn=2) + load(addr=5, pfn=1),
        "load of CPU 1 at mm 0 addr 5 found what is in frame 1; allowed: frame 2",
    ),
    "a store through the zero page": (BOOT + ZERO_READ + store(pfn=None), "at mm 0 addr 2 found what is in the zero page"),
}


@pytest.mark.parametrize(("trace", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_lost_stale_or_leaked_is_refused(trace, sentence):
    (found,) = refusals(trace)
    assert sentence in found


def test_a_store_that_a_fork_has_yet_to_flush_reaches_the_child_as_well():
    forking = before(FORKED, TlbFlushed(0, 0, 8), CpuAccessed(0, 2, 1, write=True), task="cpu2")
    assert refusals(forking + load() + load("cpu2", mm=1)) == []


def test_a_store_that_reaches_the_old_frame_of_a_discard_is_dropped_with_it():
    through_the_tlb = CpuAccessed(0, 2, 1, write=True), CpuAccessed(0, 2, 1, write=False)
    racing = before(DISCARD, TlbFlushed(0, 2, 3), *through_the_tlb, task="cpu1")
    assert refusals(WRITTEN + racing + ZERO_READ) == []
    late = WRITTEN + DISCARD + by("cpu1", CpuAccessed(0, 2, 1, write=False))
    assert "found what is in frame 1; allowed: the zero page" in refusals(late)[0]


def test_a_page_is_left_in_a_migration_entry_only_while_somebody_works_on_it():
    half = [*up_to(MIGRATED, OperationBegan("gpu.to_device", (0, 2, 3)))[:-1]]
    collected = MIGRATED[len(half) : MIGRATED.index(next(step for step in MIGRATED if isinstance(step.event, PageCopied)))]
    left = half + collected + by("mig0", OperationEnded("gpu.to_device", -22))
    assert "mm 0 addr 2 is migration" in refusals(left)[0]
    assert refusals(NAP + left) == []


def test_a_frame_that_the_trace_never_announced_is_not_judged():
    strange = by("boot", FolioAllocated(99, 1, locked=False), RmapAdded(99, 0, 6, 1, exclusive=True))
    mapped = by("boot", PteChanged(0, 6, PTE_NONE, present(99)), PageCopied(99, 3), CpuAccessed(0, 6, 99, write=False))
    assert refusals(BOOT + strange + mapped + load(addr=6, pfn=99)) == []
    assert 3 in memory_after(BOOT + strange + mapped).unknown


def test_an_address_space_whose_beginning_the_trace_does_not_show_is_not_judged():
    trace = by("boot", FrameAdded(1, *_system()), VmaMapped(7, 0, 8, VmFlags.READ, anonymous=True))
    assert refusals(trace + store(mm=7) + by("cpu1", PteChanged(7, 2, PTE_NONE, private(1)))) == []


def _system():
    frame = BOOT[0].event
    return frame.memory, frame.owner


def test_contents_of_files_and_of_shared_mappings_are_not_judged():
    shared = by("boot", VmaMapped(0, 0, 8, VmFlags.READ | VmFlags.SHARED, anonymous=True))
    assert refusals(BOOT + shared + load(pfn=5)) == []
