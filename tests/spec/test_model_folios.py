"""Large folios and leaves: what setup, device_range and pages() may leave of them, and where their contents are."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    FolioGot,
    FolioLocked,
    FolioLockMissed,
    FolioMoved,
    FolioSplit,
    LruAdded,
    OperationBegan,
    PageCleared,
    PageCopied,
    PagesCalled,
    PagesReturned,
    PmdChanged,
    PmdRead,
    PmdSplit,
    PteChanged,
    RangeCalled,
    RangeReturned,
    RmapAdded,
    SetupCalled,
    SetupReturned,
    TlbFlushed,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    PTE_NONE,
    Pte,
    PteKind,
    Select,
    VmFlags,
    migrate_pfn,
)
from tests.spec.edits import change, put, up_to, without
from tests.spec.large_fault_traces import BIG_FAULT
from tests.spec.large_parts import LARGE, LARGE_BOOT, PAGES, TABLE, alone, compound, device_leaf, system_leaf
from tests.spec.large_traces import (
    BIG_ENTRY,
    BIG_FLUSHED,
    BIG_GIVEN,
    BIG_HOLE,
    BIG_HOLE_FILLED,
    BIG_RESTORED,
    BIG_TO_DEVICE,
    LARGE_FLOWS,
    PARTS,
    SMALL,
    SPLIT_IN_PAGES,
)
from tests.spec.model_traces import NAP, allowed_last, load, operation, refusals, store
from tests.spec.parts import HOLE, MMAP, PTL, PTL_OFF, RW, TRYLOCKED, by, migrating, migration, present, private

SYSTEM, DEVICE, WHOLE = Select.SYSTEM, Select.DEVICE_PRIVATE, Select.COMPOUND
LEAF = LARGE_BOOT + system_leaf()
MM = by("mig0", OperationBegan("migrate"), MMAP)
EACH = [{entry} for entry in PARTS]
NOTHING = [{0}] * 4
HOLES = [{HOLE}] * 4
HUGE_ZERO = by("boot", PmdChanged(0, 4, 4, PTE_NONE, Pte(PteKind.ZERO)))
SPLIT_PMD = by("boot", PmdSplit(0, 4, present(40), tuple(present(40 + at) for at in PAGES)))
SIZE_IS_KNOWN = by("boot", PmdChanged(0, 0, 4, PTE_NONE, TABLE))
HELD = by("boot", FolioGot(40, 2))


@pytest.mark.parametrize("name", LARGE_FLOWS)
def test_a_correct_flow_is_allowed(name):
    trace, capabilities = LARGE_FLOWS[name]
    assert refusals(trace, capabilities) == []


# ---- setup, alone ------------------------------------------------------------------------------------------------------


def entries(trace, *during, start=4, end=8, select=SYSTEM | WHOLE, capabilities=LARGE, fault_page=None):
    """What setup may leave in each entry of src."""
    pages = end - start
    whole = trace + MM + by("mig0", SetupCalled(0, 0, start, end, select, "gpu", fault_page, pages, pages))
    whole += [step for steps in during for step in steps]
    found = allowed_last(whole + by("mig0", SetupReturned(0, 0, start, end, 0, pages, (0,) * pages)), capabilities)
    return [found[f"setup of [{start}, {end}) returned src[{index}] ="] for index in range(pages)]


@pytest.mark.parametrize(
    ("trace", "arguments", "wanted"),
    [
        pytest.param(LEAF, {}, [{BIG_ENTRY}, {0}, {0}, {0}], id="a leaf, as a whole"),
        pytest.param(LEAF, {"select": SYSTEM}, EACH, id="a leaf, page by page"),
        pytest.param(LEAF, {"end": 6}, EACH[:2], id="half a leaf"),
        pytest.param(LEAF, {"select": DEVICE | WHOLE}, NOTHING, id="a leaf, not selected"),
        pytest.param(LEAF + HELD, {}, NOTHING, id="a pinned leaf"),
        pytest.param(LEAF + by("boot", FolioLocked(40, True)), {}, NOTHING, id="a locked leaf"),
        pytest.param(LEAF + by("boot", LruAdded(40, 2)), {}, [{BIG_ENTRY}, {0}, {0}, {0}], id="a leaf in an LRU batch"),
        pytest.param(LEAF + by("boot", LruAdded(40, 2)), {"select": SYSTEM}, NOTHING, id="one in a batch is not split"),
        pytest.param(LEAF + SPLIT_PMD, {}, EACH, id="a folio that is mapped page by page"),
        pytest.param(LEAF + SPLIT_PMD + by("boot", FolioGot(40, 5)), {}, NOTHING, id="the same, pinned"),
        pytest.param(
            LARGE_BOOT + device_leaf(), {"select": DEVICE | WHOLE}, [{compound(migrating(60))}, {0}, {0}, {0}], id="a device leaf"
        ),
        pytest.param(
            LARGE_BOOT + device_leaf() + by("boot", FolioGot(60, 2)),
            {"select": DEVICE | WHOLE},
            [{compound(migrating(60))}, {0}, {0}, {0}],
            id="a device leaf with the legacy slack",
        ),
        pytest.param(
            LARGE_BOOT + device_leaf() + by("boot", FolioGot(60, 2)),
            {"select": DEVICE},
            NOTHING,
            id="which a split does not have",
        ),
        pytest.param(LARGE_BOOT + HUGE_ZERO, {}, [{BIG_HOLE}, {0}, {0}, {0}], id="the huge zero page"),
        pytest.param(LARGE_BOOT + HUGE_ZERO, {"select": SYSTEM}, HOLES, id="the huge zero page, page by page"),
        pytest.param(LARGE_BOOT + HUGE_ZERO, {"select": DEVICE | WHOLE}, NOTHING, id="the huge zero page, not selected"),
        pytest.param(LARGE_BOOT + SIZE_IS_KNOWN, {}, [{BIG_HOLE}, {0}, {0}, {0}], id="a whole hole"),
        pytest.param(LARGE_BOOT + SIZE_IS_KNOWN, {"end": 6}, HOLES[:2], id="half a hole"),
        pytest.param(
            LARGE_BOOT + SIZE_IS_KNOWN + by("boot", PmdChanged(0, 4, 4, PTE_NONE, TABLE)), {}, HOLES, id="an empty page table"
        ),
        pytest.param(
            LARGE_BOOT + by("boot", PmdChanged(0, 4, 4, PTE_NONE, migration(40))), {}, NOTHING, id="a leaf that migrates"
        ),
    ],
)
def test_alone_setup_leaves_one_entry_for_each_page(trace, arguments, wanted):
    assert entries(trace, **arguments) == wanted


def test_a_large_folio_that_cannot_be_split_ends_the_walk_of_its_leaf():
    after = by("boot", PteChanged(0, 7, present(43), PTE_NONE))
    assert entries(LEAF + SPLIT_PMD + after + by("boot", FolioGot(40, 6)), start=6) == [{0}, {0}]
    assert entries(LEAF + SPLIT_PMD + after, start=6) == [{PARTS[2]}, {HOLE}]


def exclusive(*addrs):
    """The leaf as a page table, in which a device has these pages for itself."""
    taken = (PteChanged(0, at, present(36 + at), Pte(PteKind.EXCLUSIVE, 36 + at, write=True)) for at in addrs)
    return SPLIT_PMD + by("boot", *taken)


def test_a_split_gives_back_the_pages_behind_it_that_a_device_has_for_itself():
    counted = LEAF + by("boot", FolioGot(40, 4), *(RmapAdded(40 + at, 0, 4 + at, at + 1, True) for at in PAGES))
    back = [{migrating(40 + at, write=False)} for at in PAGES]
    assert entries(counted + exclusive(5, 7)) == [EACH[0], back[1], EACH[2], back[3]]
    assert entries(counted + exclusive(4, 5)) == [{0}, {0}, *EACH[2:]]


def test_a_core_without_large_migrations_splits_what_it_is_asked_to_take_whole():
    assert entries(LEAF, capabilities=TRYLOCKED) == [{0, entry} for entry in PARTS]
    assert entries(LARGE_BOOT + SIZE_IS_KNOWN, capabilities=TRYLOCKED) == HOLES


def test_a_hole_of_unknown_extent_may_be_taken_either_way():
    assert entries(LARGE_BOOT) == [{HOLE, BIG_HOLE}] + [{HOLE, BIG_HOLE, 0}] * 3


# ---- setup, in a race --------------------------------------------------------------------------------------------------

WALK = by("mig0", PTL, PTL_OFF)


def test_in_a_race_a_folio_whose_lock_was_missed_is_left_as_a_whole():
    locked = by("other3", FolioLocked(40, True)) + by("mig0", FolioLockMissed(40))
    assert entries(LEAF, NAP, WALK) == [{BIG_ENTRY, PARTS[0], 0}] + [{entry, 0} for entry in PARTS[1:]]
    assert entries(LEAF, NAP, WALK, locked) == NOTHING


def test_in_a_race_a_leaf_that_another_split_is_taken_page_by_page():
    split = by("other3", PTL, *[step.event for step in SPLIT_PMD], PTL_OFF)
    assert entries(LEAF, NAP, split, WALK, select=SYSTEM) == [{entry, 0} for entry in PARTS]


def test_what_setup_took_as_a_leaf_stays_taken():
    took = by("mig0", PTL, PmdChanged(0, 4, 4, present(40), PTE_NONE), PmdChanged(0, 4, 4, PTE_NONE, migration(40)), PTL_OFF)
    zapped = by("other3", PmdChanged(0, 4, 4, migration(40), PTE_NONE))
    assert entries(LEAF, NAP, took, zapped, WALK)[0] >= {BIG_ENTRY}
    assert HOLE not in set().union(*entries(LEAF, NAP, took, zapped, WALK))


def test_what_a_split_for_setup_puts_back_is_not_taken_yet():
    split = tuple(migration(40 + at) for at in PAGES)
    apart = by("mig0", PTL, PmdSplit(0, 4, present(40), split), PTL_OFF, FolioSplit(40, 2, 0, (1, 1, 1, 1), (0, 0, 0, 0)))
    back = by("mig0", PTL, *(PteChanged(0, 4 + at, migration(40 + at), present(40 + at)) for at in PAGES), PTL_OFF)
    assert entries(LEAF, NAP, WALK, apart, back, WALK, select=SYSTEM) == [{entry, 0} for entry in PARTS]
    assert entries(LEAF, NAP, apart, back, WALK, select=SYSTEM) == [{entry, 0} for entry in PARTS]


def test_in_a_race_setup_believes_what_it_read_of_the_middle_level():
    empty = LARGE_BOOT + SIZE_IS_KNOWN
    filled = by("other3", PmdChanged(0, 4, 4, PTE_NONE, TABLE), PteChanged(0, 6, PTE_NONE, private(60)))
    nothing = by("mig0", PmdRead(0, 4, 4, PTE_NONE))
    assert entries(empty, NAP, nothing, filled, select=SYSTEM) == HOLES
    assert entries(empty, NAP, nothing, filled) == [{BIG_HOLE}, {0}, {0}, {0}]
    assert entries(empty, NAP, nothing, filled, end=7) == HOLES[:3]
    assert entries(empty, NAP, filled, WALK, select=SYSTEM) == [{HOLE}, {HOLE}, {0}, {HOLE}]


def test_in_a_race_a_whole_hole_is_taken_as_one_or_page_by_page():
    assert entries(LARGE_BOOT + SIZE_IS_KNOWN, NAP, WALK) == [{HOLE, BIG_HOLE}] + [{HOLE, 0}] * 3
    assert entries(LARGE_BOOT + SIZE_IS_KNOWN, NAP, WALK, end=7) == HOLES[:3]


# ---- device_range ------------------------------------------------------------------------------------------------------

RANGE = tuple(60 + at for at in PAGES)
GONE_WHOLE = compound(migrating(60, write=False))


def ranged(*before, pfns=RANGE, during=()):
    trace = LARGE_BOOT + device_leaf() + [step for steps in before for step in steps] + by("mig0", RangeCalled(0, pfns))
    found = allowed_last(trace + list(during) + by("mig0", RangeReturned(0, 0, (0,) * len(pfns))), LARGE)
    return [found[f"device range of {len(pfns)} pages returned src[{index}] ="] for index in range(len(pfns))]


def test_alone_device_range_takes_a_large_folio_by_its_head():
    assert ranged() == [{GONE_WHOLE}, {0}, {0}, {0}]
    assert ranged(pfns=(61, 62)) == [{0}, {0}]


def test_a_folio_that_is_larger_than_the_room_left_is_not_taken():
    assert GONE_WHOLE not in ranged(pfns=(60, 61))[0]


def test_a_large_folio_whose_lock_was_missed_is_marked_all_the_same():
    assert ranged(by("boot", FolioLocked(60, True)))[0] == {0, MIGRATE_PFN_COMPOUND}
    missed = by("other3", FolioLocked(60, True)) + by("mig0", FolioLockMissed(60))
    assert ranged(NAP, during=missed)[0] == {0, MIGRATE_PFN_COMPOUND}


# ---- pages() -----------------------------------------------------------------------------------------------------------

BEFORE_PAGES = up_to(BIG_TO_DEVICE, PagesCalled(0, alone(BIG_ENTRY), BIG_GIVEN, vma=True))[:-1]
BEFORE_SMALL = up_to(SPLIT_IN_PAGES, PagesCalled(0, alone(BIG_ENTRY), SMALL, vma=True))[:-1]
FAILED = BIG_ENTRY & ~MIGRATE_PFN_MIGRATE


def left(trace, src, dst, *during, vma=True):
    called = by("mig0", PagesCalled(0, src, dst, vma=vma)) + [step for steps in during for step in steps]
    found = allowed_last(trace + called + by("mig0", PagesReturned(0, src)), LARGE)
    return [found[f"pages() returned src[{index}] ="] for index in range(len(src))]


def test_alone_pages_moves_a_folio_into_a_large_one():
    assert left(BEFORE_PAGES, alone(BIG_ENTRY), BIG_GIVEN) == [{BIG_ENTRY}, {0}, {0}, {0}]
    assert left(BEFORE_PAGES, alone(BIG_ENTRY), alone(0)) == [{FAILED}, {0}, {0}, {0}]
    assert left(BEFORE_PAGES + by("boot", FolioGot(40, 2)), alone(BIG_ENTRY), BIG_GIVEN)[0] == {FAILED}


def test_alone_pages_splits_a_folio_for_small_destinations():
    assert left(BEFORE_SMALL, alone(BIG_ENTRY), SMALL) == EACH
    some = [{PARTS[0]}, {PARTS[1] & ~MIGRATE_PFN_MIGRATE}, {PARTS[2]}, {PARTS[3] & ~MIGRATE_PFN_MIGRATE}]
    assert left(BEFORE_SMALL, alone(BIG_ENTRY), (SMALL[0], 0, SMALL[2], 0)) == some


def test_a_folio_that_somebody_holds_is_not_split():
    held = BEFORE_SMALL + by("boot", FolioGot(40, 2))
    assert left(held, alone(BIG_ENTRY), SMALL) == [{FAILED & ~MIGRATE_PFN_COMPOUND}, {0}, {0}, {0}]
    assert left(held, alone(BIG_ENTRY), SMALL, NAP)[1] == {0, PARTS[1]}


def test_without_a_vma_a_folio_is_not_split():
    left_over = left(BEFORE_SMALL[:0] + LARGE_BOOT + device_leaf(), alone(GONE_WHOLE), SMALL, vma=False)
    assert left_over[0] == {migrate_pfn(60)}


def test_a_page_is_not_moved_into_a_large_folio():
    assert left(BEFORE_PAGES, PARTS, BIG_GIVEN)[0] == {PARTS[0] & ~MIGRATE_PFN_MIGRATE}
    assert left(BEFORE_PAGES, PARTS, BIG_GIVEN, NAP)[0] == {PARTS[0] & ~MIGRATE_PFN_MIGRATE}


def test_in_a_race_the_counts_of_the_head_decide():
    held = by("other3", FolioGot(40, 2)) + by("mig0", FolioMoved(40, 60, 2, 1, moved=False))
    assert left(BEFORE_PAGES, alone(BIG_ENTRY), BIG_GIVEN, NAP, held)[0] == {FAILED}
    assert left(BEFORE_PAGES, alone(BIG_ENTRY), BIG_GIVEN, NAP)[0] == {BIG_ENTRY}


BEFORE_HOLE = up_to(BIG_HOLE_FILLED, PagesCalled(0, alone(BIG_HOLE), BIG_GIVEN, vma=True))[:-1]
FILLED_BY_ANOTHER = by("boot", PmdChanged(0, 4, 4, PTE_NONE, present(44)))
WATCHED = by("boot", VmaMapped(0, 0, 8, RW | VmFlags.UFFD_MISSING, anonymous=True))


def test_alone_a_whole_hole_is_filled_or_left():
    assert left(BEFORE_HOLE, alone(BIG_HOLE), BIG_GIVEN)[0] == {BIG_HOLE}
    assert left(BEFORE_HOLE + FILLED_BY_ANOTHER, alone(BIG_HOLE), BIG_GIVEN)[0] == {MIGRATE_PFN_COMPOUND}
    assert left(BEFORE_HOLE + WATCHED, alone(BIG_HOLE), BIG_GIVEN)[0] == {MIGRATE_PFN_COMPOUND}


def test_a_whole_hole_is_filled_page_by_page_with_small_pages():
    assert left(BEFORE_HOLE, alone(BIG_HOLE), SMALL) == HOLES
    assert left(BEFORE_HOLE + FILLED_BY_ANOTHER, alone(BIG_HOLE), SMALL) == NOTHING


def test_in_a_race_a_whole_hole_that_another_filled_is_left():
    assert left(BEFORE_HOLE, alone(BIG_HOLE), BIG_GIVEN, NAP, WALK)[0] == {BIG_HOLE}
    raced = by("other3", PmdChanged(0, 4, 4, PTE_NONE, present(44)))
    assert left(BEFORE_HOLE, alone(BIG_HOLE), BIG_GIVEN, NAP, raced, WALK)[0] == {MIGRATE_PFN_COMPOUND}


# ---- contents ----------------------------------------------------------------------------------------------------------

WRONG = {
    "a page of the folio is not copied": (
        without(BIG_TO_DEVICE, PageCopied(41, 61)),
        "with nothing running, mm 0 addr 5 leads to frame 61; allowed: nothing",
    ),
    "a page is copied to its neighbour": (
        put(SPLIT_IN_PAGES, PageCopied(41, 11), PageCopied(41, 12)),
        "mm 0 addr 5 leads to frame 11; allowed: nothing",
    ),
    "the leaf leads to another folio": (
        put(BIG_TO_DEVICE, BIG_RESTORED, PmdChanged(0, 4, 4, BIG_RESTORED.old, private(64))),
        "mm 0 addr 4 leads to frame 64",
    ),
    "a TLB keeps a page of the leaf": (without(BIG_TO_DEVICE, BIG_FLUSHED), "CPU 1's TLB maps mm 0 addr 5 to frame 41"),
    "the leaf stays a migration entry": (without(BIG_TO_DEVICE, BIG_RESTORED), "mm 0 addr 4 is migration"),
    "a page of the filled hole is not cleared": (
        without(BIG_HOLE_FILLED, PageCleared(62)),
        "mm 0 addr 6 leads to frame 62; allowed:",
    ),
    "the fault brings the wrong page": (
        put(BIG_FAULT, PageCopied(61, 41), PageCopied(62, 41)) + load(addr=6, pfn=41),
        "load of CPU 1 at mm 0 addr 6 found what is in frame 41",
    ),
    "setup counts pages": (change(BIG_TO_DEVICE, SetupReturned, cpages=4), "returned cpages 4; allowed: 1"),
}


@pytest.mark.parametrize(("trace", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused(trace, sentence):
    (refusal,) = refusals(trace, LARGE)
    assert sentence in refusal


def test_a_leaf_that_is_discarded_reads_as_zeros():
    written = LEAF + store(addr=5, pfn=41)
    zap = PmdChanged(0, 4, 4, present(40), PTE_NONE)
    discard = operation("cpu2", "madvise_dontneed", (0, 4, 8), MMAP, zap, TlbFlushed(0, 4, 8))
    assert refusals(written + discard + load(addr=5, pfn=None), LARGE) == []
    assert "found what is in frame 41; allowed: frame 40 or" in refusals(written + discard + load(addr=5, pfn=41), LARGE)[0]
    without_zap = without(discard, zap)
    assert "left the contents of pages (5,)" in refusals(written + without_zap, LARGE)[0]


def test_a_leaf_that_is_split_leads_to_the_same_pages():
    written = LEAF + store(addr=5, pfn=41)
    assert refusals(written + SPLIT_PMD + load(addr=5, pfn=41), LARGE) == []
    swapped = tuple(present(pfn) for pfn in (40, 42, 41, 43))
    wrong = by("boot", PmdSplit(0, 4, present(40), swapped)) + load(addr=5, pfn=41)
    assert "mm 0 addr 5 leads to frame 42; allowed: frame 41" in refusals(written + wrong, LARGE)[0]
