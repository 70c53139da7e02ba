"""Files, shared memory and swap: where their contents are, who sees a store, and what of them can migrate."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    CpuAccessed,
    FlagsMoved,
    FolioAllocated,
    FolioFreed,
    FolioGot,
    FolioMoved,
    LruAdded,
    LruDrained,
    MmCreated,
    MmForked,
    OperationBegan,
    OperationEnded,
    PageCacheAdded,
    PageCacheRemoved,
    PageCleared,
    PageCopied,
    PageFilled,
    PagesCalled,
    PagesReturned,
    PageWritten,
    PteChanged,
    RmapAdded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    SwapCacheAdded,
    SwapCacheRemoved,
    SwapCounted,
    VmaMapped,
    VmaUnmapped,
)
from migrate_vma_spec.model.state import Store
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, PTE_NONE, Pte, PteKind, Select, VmFlags, migrate_pfn
from tests.spec.edits import put, without
from tests.spec.model_traces import NAP, SETTLED, allowed_last, load, memory_after, operation, refusals, store
from tests.spec.parts import BOOT, MMAP, PTL, PTL_OFF, RW, by, migrating, present

SHARED = by("boot", VmaMapped(0, 0, 8, RW | VmFlags.SHARED, anonymous=False, file=7, index=10))
PRIVATE = by("boot", VmaMapped(0, 0, 8, RW, anonymous=False, file=7, index=10))
OTHER = by("boot", MmCreated(1), VmaMapped(1, 4, 8, RW | VmFlags.SHARED, anonymous=False, file=7, index=12))
"""Another address space: its addr 4 shows what addr 2 of mm 0 shows, page 12 of file 7."""


def cached(pfn, index=12, filled=True):
    """Page `index` of file 7 comes into the page cache."""
    first = PageFilled(pfn, 7, index) if filled else PageCleared(pfn)
    return by("boot", FolioAllocated(pfn, 1, locked=False), PageCacheAdded(pfn, 7, index, 2), first)


def mapped(mm, addr, pfn, **bits):
    return by("boot", PteChanged(mm, addr, PTE_NONE, present(pfn, **bits)))


READ = BOOT + SHARED + cached(1) + mapped(0, 2, 1)
BOTH = READ + OTHER + mapped(1, 4, 1)
WRITTEN_BACK = by("boot", PageWritten(1, 7, 12))
UNMAPPED_PAGE = by("boot", PteChanged(0, 2, present(1), PTE_NONE))
RECLAIMED = UNMAPPED_PAGE + by("boot", PageCacheRemoved(1, 7, 12, 0), FolioFreed(1))
READ_AGAIN = cached(2) + mapped(0, 2, 2)
GIVEN_BACK = by("boot", VmaUnmapped(0, 0, 8), PageCacheRemoved(1, 7, 12, 0), FolioFreed(1))


def copied(mm=0, addr=2, pfn=2):
    """A private mapping gets a page of its own."""
    old = present(1, write=False)
    return by("boot", FolioAllocated(pfn, 1, locked=False), PageCopied(1, pfn), PteChanged(mm, addr, old, present(pfn)))


PRIVATE_READ = BOOT + PRIVATE + cached(1) + mapped(0, 2, 1, write=False)
OWN = PRIVATE_READ + OTHER + mapped(1, 4, 1) + copied()

CORRECT = {
    "a file is read": READ + load(),
    "a shared store is seen by the other mapping": BOTH + store() + load("cpu2", mm=1, addr=4),
    "shared memory begins with zeros": BOOT + SHARED + cached(1, filled=False) + mapped(0, 2, 1) + load(),
    "a page is written out and read again": READ + store() + WRITTEN_BACK + RECLAIMED + READ_AGAIN + load(pfn=2),
    "a clean page is dropped": READ + RECLAIMED + READ_AGAIN + load(pfn=2),
    "a private store is its own": OWN + store(pfn=2) + load(pfn=2) + load("cpu2", mm=1, addr=4),
    "a private page is not changed by the file": OWN + store("cpu2", mm=1, addr=4) + load(pfn=2),
    "an unmapped file keeps what was written": READ + store() + WRITTEN_BACK + GIVEN_BACK + SHARED + READ_AGAIN + load(pfn=2),
    "shared memory that nobody maps is new again": READ
    + store()
    + GIVEN_BACK
    + SHARED
    + cached(1, filled=False)
    + mapped(0, 2, 1)
    + load(),
}


@pytest.mark.parametrize("trace", CORRECT.values(), ids=CORRECT)
def test_what_is_right_is_allowed(trace):
    assert refusals(trace) == []


WRONG = {
    "the other mapping shows an old page": (
        READ + OTHER + cached(2) + mapped(1, 4, 2) + store() + load("cpu2", mm=1, addr=4, pfn=2),
        "mm 1 addr 4 leads to frame 2; allowed: frame 1",
    ),
    "the wrong page of the file is read": (
        BOOT + SHARED + put(cached(1), PageFilled(1, 7, 12), PageFilled(1, 7, 13)) + mapped(0, 2, 1) + load(),
        "load of CPU 1 at mm 0 addr 2 found what is in frame 1",
    ),
    "a dirty page is dropped": (
        READ + store() + RECLAIMED + operation("cpu1", "nap", ()),
        "with nothing running, the contents of page 12 of file 7 are lost; allowed: kept",
    ),
    "what was not written out is read again": (
        READ + store() + RECLAIMED + READ_AGAIN + load(pfn=2),
        "load of CPU 1 at mm 0 addr 2 found what is in frame 2; allowed: nothing",
    ),
    "a store after the page was written out": (
        READ + WRITTEN_BACK + store() + RECLAIMED + READ_AGAIN + load(pfn=2),
        "found what is in frame 2; allowed: nothing",
    ),
    "a private store reaches the file": (
        PRIVATE_READ + OTHER + mapped(1, 4, 1) + store("cpu2", mm=1, addr=4) + copied() + store() + load(pfn=2),
        "mm 0 addr 2 leads to frame 2; allowed: frame 1",
    ),
    "the copy of a private page is skipped": (
        without(OWN, PageCopied(1, 2)) + load(pfn=2),
        "load of CPU 1 at mm 0 addr 2 found what is in frame 2",
    ),
    "a private mapping shows another's copy": (
        OWN + store(pfn=2) + load("cpu2", mm=1, addr=4, pfn=2),
        "load of CPU 2 at mm 1 addr 4 found what is in frame 2",
    ),
}


@pytest.mark.parametrize(("trace", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_lost_stale_or_leaked_is_refused(trace, sentence):
    assert sentence in refusals(trace)[0]


def test_a_copy_that_a_store_to_the_file_outdates_is_right_in_a_race():
    fault = by("t1", OperationBegan("write", (0, 2)), FolioAllocated(2, 1, locked=False), PageCopied(1, 2))
    installs = by("t1", PteChanged(0, 2, present(1, write=False), present(2)), CpuAccessed(0, 2, 2, write=True))
    start = PRIVATE_READ + OTHER + mapped(1, 4, 1)
    assert refusals(start + fault + store("cpu2", mm=1, addr=4) + installs) != []
    racing = store("cpu2", mm=1, addr=4)
    assert refusals(start + fault + racing[:-1] + installs) == []


def test_a_discard_of_a_private_page_shows_the_file_again():
    zap = PteChanged(0, 2, present(2), PTE_NONE)
    discard = operation("cpu2", "madvise_dontneed", (0, 2, 3), zap)
    assert refusals(OWN + store(pfn=2) + discard + mapped(0, 2, 1, write=False) + load()) == []
    back = discard + mapped(0, 2, 2) + load(pfn=2)
    assert "found what is in frame 2; allowed: frame 1 or page 12 of file 7" in refusals(OWN + store(pfn=2) + back)[0]


def test_a_discard_of_a_shared_page_changes_nothing():
    discard = operation("cpu2", "madvise_dontneed", (0, 2, 3), PteChanged(0, 2, present(1), PTE_NONE))
    assert refusals(READ + store() + discard + mapped(0, 2, 1) + load()) == []
    zeros = READ + store() + discard + cached(3, filled=False) + mapped(0, 2, 3) + load(pfn=3)
    assert "found what is in frame 3; allowed: frame 1" in refusals(zeros)[0]


def test_a_child_sees_shared_stores_and_none_of_private_pages():
    fork = by("cpu1", OperationBegan("fork", (0, 1)), MmForked(0, 1), PteChanged(1, 2, PTE_NONE, present(1)))
    forked = READ + fork + by("cpu1", OperationEnded("fork", 0))
    assert refusals(forked + store() + load("cpu2", mm=1)) == []
    assert refusals(forked + store("cpu2", mm=1) + load()) == []


def test_a_hole_that_is_punched_reads_as_zeros():
    unmap = PteChanged(0, 2, present(1), PTE_NONE)
    gone = (unmap, PageCacheRemoved(1, 7, 12, 0), FolioFreed(1))
    punch = operation("cpu2", "punch_hole", (7, 12), *gone)
    zeros = cached(3, filled=False) + mapped(0, 2, 3) + load(pfn=3)
    assert refusals(READ + store() + punch + zeros) == []
    assert refusals(READ + store() + punch + READ_AGAIN + load(pfn=2)) == []
    out = READ + store() + WRITTEN_BACK + RECLAIMED
    assert refusals(out + operation("cpu2", "punch_hole", (7, 12)) + READ_AGAIN + load(pfn=2)) == []
    elsewhere = operation("cpu2", "punch_hole", (7, 13))
    assert "found what is in frame 3" in refusals(out + elsewhere + zeros)[0]


def test_a_store_after_the_hole_was_punched_stays():
    gone = by("cpu2", OperationBegan("punch_hole", (7, 12)), PteChanged(0, 2, present(1), PTE_NONE))
    gone += by("cpu2", PageCacheRemoved(1, 7, 12, 0), FolioFreed(1))
    fault = by("cpu1", OperationBegan("write", (0, 2))) + cached(3, filled=False) + mapped(0, 2, 3)
    fault += by("cpu1", CpuAccessed(0, 2, 3, write=True), OperationEnded("write", 0))
    assert refusals(READ + store() + gone + fault + by("cpu2", OperationEnded("punch_hole", 0)) + load(pfn=3)) == []


def test_a_file_is_mapped_from_the_page_on_that_was_asked_for():
    def maps(index):
        vma = VmaMapped(0, 0, 4, RW, anonymous=False, file=7, index=index)
        return operation("cpu1", "mmap_file", (0, 0, 4, 7, 10, int(RW)), vma)

    assert refusals(BOOT + maps(10)) == []
    assert "mapped pages of the file: 0; allowed: 4" in refusals(BOOT + maps(11))[0]


# ---- swap --------------------------------------------------------------------------------------------------------------


def swapped(slot):
    return Pte(PteKind.SWAP, swap=slot)


OUT = by(
    "boot",
    SwapCacheAdded(1, 3, 2),
    PteChanged(0, 2, present(1, dirty=True), swapped(3)),
    SwapCounted(3, 1),
    PageWritten(1, None, 3),
    SwapCacheRemoved(1, 3, 0),
    FolioFreed(1),
)
IN = by(
    "boot",
    FolioAllocated(2, 1, locked=False),
    SwapCacheAdded(2, 3, 2),
    PageFilled(2, None, 3),
    PteChanged(0, 2, swapped(3), present(2)),
    SwapCounted(3, 0),
    SwapCacheRemoved(2, 3, 1),
)


def test_a_page_goes_to_swap_and_comes_back():
    assert refusals(SETTLED + OUT + operation("cpu1", "nap", ())) == []
    assert refusals(SETTLED + OUT + IN + load(pfn=2)) == []
    assert memory_after(SETTLED + OUT).copies((0, 2)) == {Store(None, 3)}
    assert memory_after(SETTLED + OUT + IN).copies((0, 2)) == {2}


@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        pytest.param(
            SETTLED + without(OUT, PageWritten(1, None, 3)) + operation("cpu1", "nap", ()),
            "mm 0 addr 2 leads to swap slot 3; allowed: nothing",
            id="it is not written",
        ),
        pytest.param(
            SETTLED + put(OUT, PageWritten(1, None, 3), PageWritten(1, None, 4)) + operation("cpu1", "nap", ()),
            "mm 0 addr 2 leads to swap slot 3; allowed: swap slot 4",
            id="it is written elsewhere",
        ),
        pytest.param(
            SETTLED + OUT + put(IN, PageFilled(2, None, 3), PageFilled(2, None, 4)) + load(pfn=2),
            "found what is in frame 2; allowed: nothing",
            id="another slot is read",
        ),
        pytest.param(
            SETTLED + OUT + by("boot", SwapCounted(3, 0)) + operation("cpu1", "nap", ()),
            "mm 0 addr 2 leads to swap slot 3; allowed: nothing",
            id="the slot is free",
        ),
    ],
)
def test_what_swap_loses_is_refused(trace, sentence):
    assert sentence in refusals(trace)[0]


def test_a_slot_is_free_when_neither_an_entry_nor_the_swap_cache_holds_it():
    cached_still = OUT[:4] + by("boot", PteChanged(0, 2, swapped(3), present(1)), SwapCounted(3, 0))
    assert Store(None, 3) in memory_after(SETTLED + cached_still).copies((0, 2))
    gone = by("boot", SwapCacheRemoved(1, 3, 1))
    assert memory_after(SETTLED + cached_still + gone).copies((0, 2)) == {1}
    early = OUT[:4] + by("boot", SwapCacheRemoved(1, 3, 1))
    assert Store(None, 3) in memory_after(SETTLED + early).copies((0, 2))


# ---- what can migrate --------------------------------------------------------------------------------------------------


def setup_entry(trace, *refs):
    trace = trace + by("boot", *refs) + by("mig0", OperationBegan("migrate"), MMAP)
    call = by("mig0", SetupCalled(0, 0, 2, 3, Select.SYSTEM, "gpu", None, 1, 1))
    found = allowed_last(trace + call + by("mig0", SetupReturned(0, 0, 2, 3, 0, 1, (0,))))
    return found["setup of [2, 3) returned src[0] ="]


def test_setup_takes_no_swap_entry_and_no_other_that_maps_no_page():
    assert setup_entry(SETTLED + OUT) == {0}
    for kind in (PteKind.MARKER, PteKind.HWPOISON):
        assert setup_entry(BOOT, PteChanged(0, 2, PTE_NONE, Pte(kind))) == {0}
    assert setup_entry(SETTLED, PteChanged(0, 2, present(1, dirty=True), Pte(PteKind.EXCLUSIVE, 1, write=True))) == {0}


def test_the_references_of_the_caches_are_known_to_setup():
    assert setup_entry(SETTLED, SwapCacheAdded(1, 3, 2)) == {migrating(1)}
    assert setup_entry(SETTLED, SwapCacheAdded(1, 3, 2), FolioGot(1, 3)) == {0}


def pages_entry(*before, target=10, during=(), refs=1):
    """What pages() makes of the page of frame 1, unmapped, with so many references."""
    entry = migrating(1)
    taken = by("boot", PteChanged(0, 2, present(1, dirty=True), PTE_NONE), RmapRemoved(1, 0, 2, 0), FolioGot(1, refs))
    start = SETTLED + taken + by("boot", *before) + by("mig0", OperationBegan("migrate"), MMAP)
    setup = by("mig0", SetupCalled(0, 0, 2, 3, Select.SYSTEM, "gpu", None, 1, 1), PTL, PTL_OFF)
    setup += by("mig0", SetupReturned(0, 0, 2, 3, 1, 1, (entry,)), FolioAllocated(target, 1, locked=True))
    trace = start + setup + by("mig0", PagesCalled(0, (entry,), (migrate_pfn(target),), vma=True)) + list(during)
    found = allowed_last(trace + by("mig0", PagesReturned(0, (entry,))))["pages() returned src[0] ="]
    return {"moves" if one & MIGRATE_PFN_MIGRATE else "stays" for one in found}


def test_a_page_in_the_swap_cache_goes_to_the_device_if_no_entry_wants_its_slot():
    assert pages_entry(SwapCacheAdded(1, 3, 2), refs=2) == {"moves"}
    assert pages_entry(SwapCacheAdded(1, 3, 2), SwapCounted(3, 1), refs=2) == {"stays"}
    assert pages_entry(SwapCacheAdded(1, 3, 2), SwapCounted(3, 1), target=3, refs=2) == {"moves"}
    assert pages_entry(SwapCacheAdded(1, 3, 2), FolioGot(1, 3), refs=2) == {"stays"}


def test_a_page_of_a_file_goes_to_no_device():
    assert pages_entry(PageCacheAdded(1, 7, 12, 2), refs=2) == {"stays"}
    assert pages_entry(PageCacheAdded(1, 7, 12, 2), target=3, refs=2) == {"moves"}


def test_in_a_race_a_page_of_a_file_is_left_for_that_reason():
    moved = by("mig0", FolioMoved(1, 10, 2, 2, moved=True), FlagsMoved(1, 10))
    assert pages_entry(PageCacheAdded(1, 7, 12, 2), refs=2, during=NAP + moved) == {"stays"}
    assert pages_entry(PageCacheAdded(1, 7, 12, 2), refs=2, during=NAP) == {"stays"}
    assert pages_entry(PageCacheAdded(1, 7, 12, 2), target=3, refs=2, during=NAP) == {"moves"}
    assert pages_entry(SwapCacheAdded(1, 3, 2), refs=2, during=NAP) == {"stays"}
    freed = by("mig0", SwapCacheRemoved(1, 3, 1))
    alone = by("mig0", FolioMoved(1, 10, 1, 1, moved=True), FlagsMoved(1, 10))
    assert pages_entry(SwapCacheAdded(1, 3, 2), refs=2, during=NAP + freed + alone) == {"moves"}


def test_setup_takes_what_a_private_mapping_of_a_file_wrote_and_no_hole_of_it():
    own = by("boot", RmapAdded(2, 0, 2, 1, exclusive=True), LruAdded(2, 2), LruDrained((2,)))
    assert setup_entry(OWN + own) == {migrating(2)}
    assert setup_entry(BOOT + PRIVATE) == {0}
