"""Which results operations, faults and callbacks may have."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    AllocationFailed,
    CallbackEntered,
    CallbackReturned,
    Chose,
    CpuAccessed,
    DeviceAccessed,
    DeviceUnmapped,
    FaultBegan,
    FaultEnded,
    FolioGetMissed,
    FolioGot,
    FolioLocked,
    IntervalRetry,
    LockMissed,
    MmGetMissed,
    OperationBegan,
    OperationEnded,
    PteChanged,
    RangeFaultBegan,
    RangeFaultEnded,
    VmaMapped,
    VmaUnmapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, VmFault, VmFlags
from tests.spec.edits import put
from tests.spec.model_traces import (
    DISCARD,
    EVICTION,
    FORK,
    MIGRATED,
    NAP,
    PLACED,
    TO_GPU,
    UNMAP,
    WRITTEN,
    ZERO,
    allowed_last,
    device_access,
    load,
    memory_after,
    operation,
    refusals,
)
from tests.spec.parts import BOOT, MMAP, MMAP_OFF, PTL, PTL_OFF, RW, TRYLOCKED, by, migration, present, private

READ_ONLY = by("boot", VmaMapped(0, 0, 8, VmFlags.READ, anonymous=True))
NO_ACCESS = by("boot", VmaMapped(0, 0, 8, VmFlags.NONE, anonymous=True))
OOM, SIGBUS, SIGSEGV, NONE = VmFault.OOM, VmFault.SIGBUS, VmFault.SIGSEGV, VmFault.NONE


def ends(trace, name, arguments, *during, capabilities=TRYLOCKED):
    """The results that an operation may have after this trace, with these events in it."""
    steps = by("t1", OperationBegan(name, arguments)) + [step for steps in during for step in steps]
    found = allowed_last(trace + steps + by("t1", OperationEnded(name, 0)), capabilities)
    (results,) = [values for what, values in found.items() if what.endswith("ended with")]
    return results


def fault_that_ended(result, write=True):
    return by("t1", FaultBegan(0, 2, write), FaultEnded(0, 2, result))


ACCESSED = by("t1", CpuAccessed(0, 2, 1, write=True))
GONE = by("other3", VmaUnmapped(0, 2, 3))


# ---- what a CPU does -----------------------------------------------------------------------------------------------------------


def test_alone_an_access_has_one_result():
    assert ends(WRITTEN, "write", (0, 2), ACCESSED) == {0}
    assert ends(BOOT, "read", (0, 9)) == {-11}
    assert ends(WRITTEN + READ_ONLY, "write", (0, 2)) == {-11}
    assert ends(WRITTEN + NO_ACCESS, "read", (0, 2)) == {-11}
    assert ends(WRITTEN, "write", (0, 2), fault_that_ended(SIGBUS)) == {-7}
    assert ends(WRITTEN, "write", (0, 2), fault_that_ended(OOM)) == {-12}
    assert ends(WRITTEN, "write", (0, 2), fault_that_ended(SIGSEGV)) == {-11}


def test_an_access_that_never_took_place_did_not_succeed():
    assert ends(WRITTEN, "write", (0, 2)) == set()
    assert ends(WRITTEN, "write", (0, 2), by("t1", CpuAccessed(0, 3, 1, write=True))) == set()
    assert ends(WRITTEN, "write", (0, 2), by("t1", CpuAccessed(0, 2, 1, write=False))) == set()


def test_an_access_that_races_with_an_unmap_may_be_refused():
    assert ends(WRITTEN + NAP, "write", (0, 2), GONE) == {-11}
    back = by("other3", VmaMapped(0, 2, 3, RW, anonymous=True))
    assert ends(WRITTEN + NAP, "write", (0, 2), GONE, back) == {-11}
    assert ends(WRITTEN + NAP, "write", (0, 2), ACCESSED, GONE) == {0}


def test_an_access_that_the_vma_forbids_is_refused_when_it_happens():
    assert refusals(WRITTEN + READ_ONLY + by("t1", *[step.event for step in ACCESSED])) == [
        "store of CPU 1 at mm 0 addr 2 reached frame 1; allowed: nothing"
    ]
    changing = by("t2", OperationBegan("mprotect", (0, 0, 8)))
    assert refusals(WRITTEN + changing + READ_ONLY + ACCESSED) == []


def test_a_pin_needs_a_mapping_that_may_be_written():
    assert ends(WRITTEN, "pin", (0, 2)) == {0}
    assert ends(WRITTEN + READ_ONLY, "pin", (0, 2)) == {-14}
    assert ends(WRITTEN, "pin", (0, 2), by("t1", FaultBegan(0, 2, True), Chose("page", 1), FaultEnded(0, 2, OOM))) == {-12}


def test_changes_of_the_address_space_succeed():
    mapped = by("t1", VmaMapped(0, 8, 9, RW, anonymous=True))
    assert ends(BOOT, "mmap", (0, 8, 9, int(RW)), mapped) == {0}
    assert ends(
        WRITTEN, "fork", (0, 1), [step for step in FORK if not isinstance(step.event, (OperationBegan, OperationEnded))]
    ) == {0}
    assert ends(WRITTEN, "fork", (0, 1), by("t1", AllocationFailed("page table"))) == {0, -12}
    assert ends(WRITTEN, "madvise_dontneed", (0, 2, 3)) == {0}
    assert ends(WRITTEN, "madvise_dontneed", (0, 6, 9)) == {-12}
    assert ends(WRITTEN, "unpin", (1,)) == {0}


def test_what_a_change_of_the_address_space_left_undone_is_refused():
    assert "mapped with these flags" in refusals(BOOT + operation("t1", "mmap", (0, 8, 9, int(RW))))[0]
    assert "left mapped 1; allowed: 0" in refusals(WRITTEN + put(UNMAP, VmaUnmapped(0, 2, 3)))[0]
    assert refusals(WRITTEN + UNMAP) == []
    assert refusals(WRITTEN + DISCARD) == []


def test_a_speculative_reference_misses_only_a_page_without_one():
    assert ends(MIGRATED, "speculative_reference", (10,), by("t1", FolioGot(10, 2))) == {0}
    assert ends(MIGRATED, "speculative_reference", (11,), by("t1", FolioGetMissed(11))) == {-11}


def test_an_operation_that_the_model_does_not_know_is_not_judged():
    assert refusals(BOOT + operation("t1", "defragment", (), result=-99)) == []
    assert refusals(BOOT + operation("t1", "gpu.reset", (), result=-99)) == []


# ---- what a device does --------------------------------------------------------------------------------------------------------


def test_a_count_of_a_device_is_what_moved_or_what_is_there():
    steps = [step for step in TO_GPU if not isinstance(step.event, (OperationBegan, OperationEnded))]
    moves = by("t1", *[step.event for step in steps])
    assert ends(WRITTEN, "gpu.to_device", (0, 2, 3), moves) == {0, 1}
    assert ends(MIGRATED, "gpu.to_device", (0, 1, 3)) == {0, 1}
    assert ends(WRITTEN, "gpu.to_system", (0, 1, 3)) == {0, 2}
    assert ends(MIGRATED, "gpu.to_system", (0, 2, 3)) == {0}
    assert ends(MIGRATED + NAP, "gpu.to_device", (0, 1, 3)) == {0, 1, 2}


def test_a_device_gives_an_error_only_where_some_page_is_not_there():
    wrong = MIGRATED + operation("t1", "gpu.to_device", (0, 2, 3), result=-2)
    assert refusals(wrong) == ["gpu.to_device(0, 2, 3) ended with -2; allowed: 0 or 1"]
    assert refusals(MIGRATED + NAP + operation("t1", "gpu.to_device", (0, 2, 3), result=-2)) == []
    assert refusals(WRITTEN + operation("t1", "gpu.to_device", (0, 2, 3), result=-2)) == []
    unmapped = MIGRATED + by("boot", DeviceUnmapped("gpu", 0, 2, 10))
    assert refusals(unmapped + operation("t1", "gpu.to_device", (0, 2, 3), result=-2)) == []
    assert refusals(MIGRATED + EVICTION + operation("t1", "gpu.evict", (), result=-16)) == [
        "gpu.evict ended with -16; allowed: 0"
    ]


def test_an_eviction_counts_the_pages_that_left():
    assert refusals(MIGRATED + EVICTION) == []
    assert refusals(MIGRATED + put(EVICTION, OperationEnded("gpu.evict", 1), OperationEnded("gpu.evict", 2))) == [
        "gpu.evict ended with 2; allowed: 0 or 1"
    ]


def test_a_device_access_succeeds_if_it_took_place():
    assert refusals(MIGRATED + device_access(write=True) + device_access(write=False)) == []
    assert refusals(MIGRATED + operation("t1", "gpu.device_read", (0, 2))) == [
        "gpu.device_read(0, 2) ended with 0; allowed: nothing"
    ]
    other = operation("t1", "gpu.device_read", (0, 2), DeviceAccessed("npu", 0, 2, 10, write=False))
    assert refusals(MIGRATED + other) == ["gpu.device_read(0, 2) ended with 0; allowed: nothing"]


def test_a_device_access_fails_for_a_reason():
    failed = operation("t1", "gpu.device_write", (0, 2), result=-14)
    assert refusals(MIGRATED + failed) == ["gpu.device_write(0, 2) ended with -14; allowed: nothing"]
    assert refusals(MIGRATED + NAP + failed) == []
    read_only = by("boot", PteChanged(0, 2, private(10), private(10, write=False)))
    assert refusals(MIGRATED + read_only + failed) == []
    assert refusals(MIGRATED + READ_ONLY + read_only + failed) == []


# ---- faults --------------------------------------------------------------------------------------------------------------------


def fault(trace, *during, write=True, result=NONE):
    """The results that a fault on addr 2 may have."""
    steps = by("t1", MMAP, FaultBegan(0, 2, write)) + [step for steps in during for step in steps]
    return allowed_last(trace + steps + by("t1", FaultEnded(0, 2, result)))["fault of mm 0 addr 2 ended with"]


def callback(result):
    return by("t1", CallbackEntered(10, 0, 2), CallbackReturned(10, 0, 2, result))


def test_alone_a_fault_has_one_result():
    assert fault(BOOT) == {NONE}
    assert fault(BOOT + READ_ONLY) == {SIGSEGV}
    assert fault(BOOT + READ_ONLY, write=False) == {NONE}
    assert fault(BOOT, by("t1", Chose("page", 1))) == {OOM}
    assert fault(BOOT, by("t1", AllocationFailed("page"))) == {OOM}


@pytest.mark.parametrize("result", [NONE, SIGBUS, OOM, VmFault.NOPAGE, VmFault.RETRY])
def test_a_fault_passes_the_callbacks_result_on(result):
    assert fault(PLACED, callback(result)) == {result}


def test_only_a_fault_without_the_mmap_lock_asks_for_a_retry():
    assert fault(BOOT, by("t1", MMAP_OFF)) == {NONE, VmFault.RETRY}


def test_a_fault_that_nobody_disturbed_makes_the_access_possible():
    nothing = BOOT + by("t1", MMAP, FaultBegan(0, 2, True), FaultEnded(0, 2, NONE))
    assert "left an entry that is none" in refusals(nothing)[0]
    read_only = by("t1", MMAP, FaultBegan(0, 2, True), PteChanged(0, 2, PTE_NONE, ZERO), FaultEnded(0, 2, NONE))
    assert "left an entry that is zero" in refusals(BOOT + read_only)[0]
    assert refusals(BOOT + NAP + [step for step in nothing if step not in BOOT]) == []


def returns(trace, result, *during):
    steps = by("t1", FaultBegan(0, 2, True), PTL, FolioGot(10, 2), PTL_OFF, CallbackEntered(10, 0, 2))
    steps += [step for steps_ in during for step in steps_]
    found = allowed_last(trace + steps + by("t1", CallbackReturned(10, 0, 2, result)))
    (results,) = [values for what, values in found.items() if what.endswith("returned")]
    return results


def test_alone_a_callback_brings_the_page_or_gives_an_error():
    brought = by("t1", PteChanged(0, 2, private(10), present(2)))
    assert returns(PLACED, NONE, brought) == {NONE}
    assert returns(PLACED, VmFault.NOPAGE, brought) == {NONE}
    assert returns(PLACED, NONE) == set()
    assert returns(PLACED, SIGBUS) == {SIGBUS}


@pytest.mark.parametrize(
    "reason",
    [NAP, by("t1", Chose("page", 1)), by("t1", MmGetMissed(0)), by("t1", LockMissed("gpu:lock", LockMode.SLEEP))],
    ids=["a race", "no memory", "no address space", "a lock missed"],
)
def test_a_callback_may_leave_the_page_for_a_reason(reason):
    assert returns(PLACED, NONE, reason) == {NONE, VmFault.RETRY}


def test_a_callback_may_leave_a_page_that_somebody_else_holds():
    assert returns(PLACED, NONE, by("boot", FolioGot(10, 3))) == {NONE}


def test_a_callback_never_leaves_a_migration_entry():
    left = by("t1", PteChanged(0, 2, private(10), migration(10)))
    steps = by("t1", FaultBegan(0, 2, True), CallbackEntered(10, 0, 2)) + left
    for result in (NONE, SIGBUS):
        (refusal,) = refusals(PLACED + steps + by("t1", CallbackReturned(10, 0, 2, result)))
        assert refusal == "migrate_to_ram for mm 0 addr 2 left a migration entry of frame 10; allowed: nothing"


# ---- hmm_range_fault -----------------------------------------------------------------------------------------------------------


def range_fault(trace, *during, write=False, pfns=(None,), result=0):
    steps = by("t1", RangeFaultBegan("gpu", 0, 2, 3, write)) + [step for steps in during for step in steps]
    found = allowed_last(trace + steps + by("t1", RangeFaultEnded("gpu", 0, 2, result, pfns)))
    return {what.split("[2, 3) ")[1]: values for what, values in found.items()}


@pytest.mark.parametrize(
    ("trace", "write", "reported"),
    [
        pytest.param(WRITTEN, True, {1}, id="a page"),
        pytest.param(MIGRATED, True, {10}, id="its own page"),
        pytest.param(BOOT + by("boot", PteChanged(0, 2, PTE_NONE, ZERO)), False, {None}, id="the zero page"),
        pytest.param(BOOT + by("boot", PteChanged(0, 2, PTE_NONE, ZERO)), True, set(), id="the zero page, to write"),
        pytest.param(BOOT + by("boot", PteChanged(0, 2, PTE_NONE, present(1, write=False))), True, set(), id="a page, read-only"),
        pytest.param(BOOT + by("boot", PteChanged(0, 2, PTE_NONE, private(20))), False, set(), id="another device's page"),
        pytest.param(BOOT, False, set(), id="nothing"),
    ],
)
def test_alone_a_range_fault_reports_the_page(trace, write, reported):
    assert range_fault(trace, write=write) == {"returned": {0}, "reported addr 2 as": reported}


def test_a_range_fault_fails_for_a_reason():
    failed = by("t1", FaultBegan(0, 2, False), FaultEnded(0, 2, SIGBUS))
    short = by("t1", FaultBegan(0, 2, False), FaultEnded(0, 2, OOM))
    stale = by("t1", IntervalRetry("gpu", 0, stale=True))
    assert range_fault(WRITTEN, stale, result=-16)["returned"] == {0, -16}
    assert range_fault(WRITTEN + NO_ACCESS, result=-14)["returned"] == {-14, -1}
    assert range_fault(MIGRATED, failed, result=-14)["returned"] == {-14, -1}
    assert range_fault(MIGRATED, short, result=-12)["returned"] == {-12, -14}


# ---- what else holds -----------------------------------------------------------------------------------------------------------


def test_an_operation_whose_end_is_lost_makes_room_for_the_next():
    trace = WRITTEN + by("t1", OperationBegan("read", (0, 2)), FolioLocked(1, False)) + load("t1")
    assert refusals(trace) == []
    assert "t1" not in memory_after(trace).tasks
