"""What setup, device_range and pages() may answer: alone, one thing; in a race, what the trace gives a reason for."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    Chose,
    ExclusiveShared,
    FolioAllocated,
    FolioChecked,
    FolioGetMissed,
    FolioGot,
    FolioLocked,
    FolioLockMissed,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    LruAdded,
    LruIsolated,
    OperationBegan,
    PageCleared,
    PagesCalled,
    PagesReturned,
    PteChanged,
    RangeCalled,
    RangeReturned,
    RmapAdded,
    RmapRemoved,
    SetupCalled,
    SetupReturned,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, PTE_NONE, Select, VmFlags, migrate_pfn
from tests.spec.model_traces import NAP, ZERO, allowed_last, first_store, refusals
from tests.spec.parts import (
    BOOT,
    HOLE,
    MMAP,
    NO_CAPABILITY,
    PTL,
    PTL_OFF,
    REFERENCED,
    RW,
    TRYLOCKED,
    by,
    device_page,
    migrating,
    migration,
    present,
    private,
    system_page,
)

SYSTEM, DEVICE = Select.SYSTEM, Select.DEVICE_PRIVATE
STAYS = migrating(1) & ~MIGRATE_PFN_MIGRATE
ROOM_AT = migrate_pfn(10)
MM = by("mig0", OperationBegan("migrate"), MMAP)


def setup(start=2, end=3, select=SYSTEM, owner="gpu", fault_page=None, arrays=True, mm=0):
    length = end - start if arrays else None
    return by("mig0", SetupCalled(0, mm, start, end, select, owner, fault_page, length, length))


def returned(src, start=2, end=3, result=0):
    migrate = sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in src)
    return by("mig0", SetupReturned(0, result, start, end, migrate, len(src), tuple(src)))


def entries(trace, *during, capabilities=TRYLOCKED, **arguments):
    """What setup may leave in src[0], when these events happen between its beginning and its end."""
    whole = trace + MM + setup(**arguments) + [step for steps in during for step in steps]
    found = allowed_last(whole + returned((0,)), capabilities)
    return found["setup of [2, 3) returned src[0] ="]


# ---- setup, alone --------------------------------------------------------------------------------------------------------------

FILE = by("boot", VmaMapped(0, 0, 8, RW, anonymous=False))
ZERO_PAGE = by("boot", PteChanged(0, 2, PTE_NONE, ZERO))
MIGRATING = by("boot", PteChanged(0, 2, PTE_NONE, migration(1)))
OTHERS = by("boot", FolioAllocated(20, 1, locked=False), PteChanged(0, 2, PTE_NONE, private(20)))
HELD = by("boot", FolioGot(1, 2))
HELD_TWICE = by("boot", FolioGot(10, 2), FolioGot(10, 3))


@pytest.mark.parametrize(
    ("start", "select", "entry"),
    [
        pytest.param(BOOT, SYSTEM, HOLE, id="a hole"),
        pytest.param(BOOT, DEVICE, HOLE, id="a hole, whatever is selected"),
        pytest.param(BOOT + FILE, SYSTEM, 0, id="a hole of a file"),
        pytest.param(BOOT + ZERO_PAGE, SYSTEM, HOLE, id="the zero page"),
        pytest.param(BOOT + ZERO_PAGE, DEVICE, 0, id="the zero page, not selected"),
        pytest.param(BOOT + system_page(), SYSTEM, migrating(1), id="a page"),
        pytest.param(BOOT + system_page(), DEVICE, 0, id="a page, not selected"),
        pytest.param(BOOT + system_page(pte=present(1, write=False)), SYSTEM, migrating(1, write=False), id="a page, read-only"),
        pytest.param(BOOT + system_page() + HELD, SYSTEM, 0, id="a pinned page"),
        pytest.param(BOOT + system_page() + by("boot", FolioLocked(1, True)), SYSTEM, 0, id="a locked page"),
        pytest.param(BOOT + system_page() + by("boot", LruAdded(1, 2)), SYSTEM, migrating(1), id="a page in an LRU batch"),
        pytest.param(BOOT + system_page() + by("boot", LruIsolated(1, True, 2)), SYSTEM, 0, id="an isolated page"),
        pytest.param(BOOT + device_page(), DEVICE, migrating(10), id="a device page"),
        pytest.param(BOOT + device_page(), SYSTEM, 0, id="a device page, not selected"),
        pytest.param(BOOT + device_page() + HELD_TWICE[:1], DEVICE, migrating(10), id="a device page with the legacy slack"),
        pytest.param(BOOT + device_page() + HELD_TWICE, DEVICE, 0, id="a device page that two hold"),
        pytest.param(BOOT + OTHERS, DEVICE, 0, id="another owner's page"),
        pytest.param(BOOT + MIGRATING, SYSTEM | DEVICE, 0, id="a migration entry"),
    ],
)
def test_alone_setup_leaves_one_entry(start, select, entry):
    assert entries(start, select=select) == {entry}


def test_the_page_that_the_fault_handler_holds_is_taken_when_it_is_named():
    locked = BOOT + device_page() + by("mig0", FolioLocked(10, False), FolioGot(10, 2))
    assert entries(locked, select=DEVICE, fault_page=10) == {migrating(10)}
    assert entries(locked, select=DEVICE) == {0}
    held = BOOT + device_page() + by("mig0", FolioGot(10, 2))
    assert entries(held, select=DEVICE, fault_page=10, capabilities=REFERENCED) == {migrating(10)}
    assert entries(held, select=DEVICE, capabilities=NO_CAPABILITY) == {migrating(10)}


def result_of(trace, capabilities=TRYLOCKED, **arguments):
    found = allowed_last(trace + MM + setup(**arguments) + returned((0,)), capabilities)
    (results,) = [values for what, values in found.items() if what.endswith(") returned")]
    return results


SPECIAL = by("boot", VmaMapped(0, 0, 8, RW | VmFlags.PFNMAP, anonymous=True))
TWO_VMAS = by("boot", VmaMapped(0, 4, 8, VmFlags.READ, anonymous=True))


@pytest.mark.parametrize(
    ("trace", "arguments"),
    [
        pytest.param(BOOT, {"mm": None}, id="no VMA"),
        pytest.param(BOOT + SPECIAL, {}, id="a special VMA"),
        pytest.param(BOOT, {"end": 2}, id="an empty range"),
        pytest.param(BOOT, {"start": 8, "end": 9}, id="a start outside"),
        pytest.param(BOOT, {"end": 9}, id="an end outside"),
        pytest.param(BOOT + TWO_VMAS, {"end": 5}, id="two VMAs"),
        pytest.param(BOOT, {"arrays": False}, id="no arrays"),
        pytest.param(BOOT + system_page(), {"fault_page": 1}, id="a system page as fault page"),
        pytest.param(BOOT + device_page(), {"fault_page": 10}, id="an unlocked fault page"),
    ],
)
def test_setup_refuses_wrong_arguments(trace, arguments):
    assert result_of(trace, **arguments) == {-22}


def test_setup_checks_a_fault_page_only_where_the_generation_has_one():
    assert result_of(BOOT + device_page(), REFERENCED, fault_page=10) == {0}
    assert result_of(BOOT + system_page(), NO_CAPABILITY, fault_page=1) == {0}


def test_setup_counts_what_migrates():
    trace = BOOT + system_page() + MM + setup(0, 3)
    wrong = trace + by("mig0", SetupReturned(0, 0, 0, 3, 2, 3, (HOLE, HOLE, migrating(1))))
    assert refusals(wrong) == ["setup of [0, 3) returned cpages 2; allowed: 3"]
    short = trace + by("mig0", SetupReturned(0, 0, 0, 3, 2, 2, (HOLE, HOLE)))
    assert refusals(short) == ["setup of [0, 3) returned npages 2; allowed: 3"]
    unseen = trace + by("mig0", SetupReturned(0, 0, 0, 3, 2, 3, None))
    assert refusals(unseen) == ["setup of [0, 3) returned cpages 2; allowed: 3"]


# ---- setup, in a race ----------------------------------------------------------------------------------------------------------


def walked(*found):
    return by("mig0", PTL, *found, PTL_OFF)


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param(by("other3", FolioLocked(1, True)) + by("mig0", FolioLockMissed(1)), id="its lock was missed"),
        pytest.param(by("mig0", ExclusiveShared(1, done=False)), id="it could not be shared"),
        pytest.param(by("mig0", LruIsolated(1, done=False)), id="it could not be isolated"),
        pytest.param(by("other3", FolioGot(1, 2)) + by("mig0", FolioChecked(1, 2, 1, ok=False)), id="another holds it"),
    ],
)
def test_in_a_race_a_page_is_left_for_a_reason_that_the_trace_shows(reason):
    start = BOOT + system_page()
    assert entries(start, NAP, walked(), reason) == {0}
    assert entries(start, NAP, walked()) == {migrating(1)}


def test_what_is_no_reason_is_not_taken_for_one():
    start = BOOT + system_page()
    free = by("other3", FolioLocked(1, True), FolioUnlocked(1))
    assert entries(start, NAP, walked(), free, by("mig0", FolioLockMissed(1))) == {migrating(1)}
    unmapped = by("mig0", RmapRemoved(1, 0, 2, 0), FolioChecked(1, 1, 0, ok=False))
    assert entries(start, NAP, walked(), unmapped) == {migrating(1)}
    drained = by("mig0", LruIsolated(1, done=False), LruIsolated(1, done=True, refcount=2))
    assert entries(start, NAP, walked(), drained) == {migrating(1)}


def test_in_a_race_setup_takes_what_it_finds_under_the_lock():
    fills = first_store("other3")
    filled = [step for step in fills if not isinstance(step.event, OperationBegan)]
    assert entries(BOOT, NAP, filled, walked()) == {migrating(1)}
    assert entries(BOOT, NAP, walked(), filled) == {HOLE}
    leaves = by("other3", PteChanged(0, 2, present(1), migration(1)))
    assert entries(BOOT + system_page(), NAP, leaves, walked()) == {0}


def test_what_setup_took_itself_stays_taken():
    took = walked(PteChanged(0, 2, present(1), PTE_NONE), PteChanged(0, 2, PTE_NONE, migration(1)))
    zapped = by("other3", PteChanged(0, 2, migration(1), PTE_NONE))
    assert entries(BOOT + system_page(), NAP, took, zapped, walked()) == {migrating(1)}


def test_a_race_without_locks_in_the_trace_is_not_judged_by_its_entries():
    trace = BOOT + system_page() + MM + setup() + NAP
    assert refusals(trace + returned((0,))) == []


# ---- device_range --------------------------------------------------------------------------------------------------------------

TAKEN = migrating(10, write=False)


def ranged(*before, pfns=(10,), during=()):
    trace = BOOT + device_page() + [step for steps in before for step in steps] + by("mig0", RangeCalled(0, pfns))
    found = allowed_last(trace + list(during) + by("mig0", RangeReturned(0, 0, (0,) * len(pfns))))
    return [found[f"device range of {len(pfns)} pages returned src[{index}] ="] for index in range(len(pfns))]


def test_alone_device_range_takes_what_is_in_use_and_nothing_else():
    assert ranged(pfns=(10, 11, 10)) == [{TAKEN}, {0}, {0}]
    assert ranged(by("boot", FolioLocked(10, True))) == [{0}]
    assert ranged(HELD_TWICE[:1]) == [{TAKEN}]
    assert ranged(HELD_TWICE) == [{0}]


def test_in_a_race_device_range_leaves_what_it_missed():
    assert ranged(NAP) == [{TAKEN}]
    assert ranged(NAP, during=by("other3", FolioLocked(10, True)) + by("mig0", FolioLockMissed(10))) == [{0}]
    assert ranged(NAP, pfns=(11,), during=by("mig0", FolioGetMissed(11))) == [{0}]


# ---- pages() -------------------------------------------------------------------------------------------------------------------

TOOK = walked(PteChanged(0, 2, present(1), migration(1)))
UNMAPPED = by("mig0", FolioGot(1, 2), FolioLocked(1, False), FolioPut(1, 1))
ROOM = by("mig0", FolioAllocated(10, 1, locked=True), PageCleared(10))


def collected(start=None, entry=None):
    """Setup took the page of frame 1, which nobody maps now; its count is one."""
    gone = by("mig0", RmapRemoved(1, 0, 2, 0))
    trace = (start or BOOT + system_page()) + MM + setup() + TOOK + gone
    return trace + UNMAPPED[1:] + returned((entry or migrating(1),)) + ROOM


def left(trace, entry, *during, dst=ROOM_AT, capabilities=TRYLOCKED, vma=True):
    called = by("mig0", PagesCalled(0, (entry,), (dst,), vma=vma))
    whole = trace + called + [step for steps in during for step in steps] + by("mig0", PagesReturned(0, (entry,)))
    return allowed_last(whole, capabilities)["pages() returned src[0] ="]


def hole():
    return BOOT + MM + setup() + walked() + returned((HOLE,)) + ROOM


def test_alone_pages_moves_what_it_can():
    assert left(collected(), migrating(1)) == {migrating(1)}
    assert left(hole(), HOLE) == {HOLE}


def test_alone_pages_leaves_what_it_must():
    assert left(collected(), migrating(1), dst=0) == {STAYS}
    assert left(collected() + by("boot", FolioGot(1, 2)), migrating(1)) == {STAYS}
    assert left(collected(), 0) == {0}
    assert left(collected(), STAYS) == {STAYS}
    assert left(hole() + by("boot", PteChanged(0, 2, PTE_NONE, present(3))), HOLE) == {0}
    assert left(hole() + by("boot", VmaMapped(0, 0, 8, RW | VmFlags.UFFD_MISSING, anonymous=True)), HOLE) == {0}
    assert left(hole(), HOLE, dst=0) == {0}


def test_pages_does_not_move_what_somebody_still_maps():
    mapped = collected() + by("boot", RmapAdded(1, 1, 2, 1, exclusive=False))
    moved = by("mig0", FolioMoved(1, 10, 1, 1, moved=True))
    assert left(mapped, migrating(1)) == {STAYS}
    assert left(mapped, migrating(1), NAP, moved) == {STAYS}


def test_in_a_race_the_counts_decide_when_the_page_is_moved():
    held = by("other3", FolioGot(1, 2))
    put = by("other3", FolioPut(1, 1))
    refused = by("mig0", FolioMoved(1, 10, 2, 1, moved=False))
    moved = by("mig0", FolioMoved(1, 10, 1, 1, moved=True))
    assert left(collected(), migrating(1), NAP, held, refused) == {STAYS}
    assert left(collected(), migrating(1), NAP, held, put, moved) == {migrating(1)}
    assert left(collected(), migrating(1), NAP, held, moved) == {STAYS}
    assert left(collected(), migrating(1), NAP, refused) == {migrating(1)}


def test_in_a_race_a_hole_that_another_filled_first_is_left():
    fills = by("other3", PteChanged(0, 2, PTE_NONE, present(3)))
    assert left(hole(), HOLE, NAP, fills, walked()) == {0}
    assert left(hole(), HOLE, NAP, walked()) == {HOLE}
    assert left(hole(), HOLE, NAP, walked(PteChanged(0, 2, PTE_NONE, private(10)))) == {HOLE}


def test_a_charge_that_failed_is_a_reason_to_leave_a_hole():
    failed = by("mig0", Chose("charge", 1))
    assert left(hole(), HOLE, failed, walked()) == {HOLE, 0}
    assert left(hole(), HOLE, NAP, failed, walked()) == {HOLE, 0}
