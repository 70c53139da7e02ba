"""What devices' operations may answer and leave, what faults do where a userfaultfd watches, and snapshots."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    DeviceMapped,
    DeviceUnmapped,
    FaultBegan,
    FaultEnded,
    FolioGot,
    OperationBegan,
    OperationEnded,
    PteChanged,
    RangeFaultBegan,
    RangeFaultEnded,
    UserfaultRaised,
    VmaChanged,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFault, VmFlags
from tests.spec.edits import without
from tests.spec.model_traces import MIGRATED, NAP, SETTLED, WRITTEN, ZERO, allowed_last, operation, refusals
from tests.spec.parts import BOOT, MMAP, RW, by, present, private

NONE, SIGBUS, RETRY, HWPOISON = VmFault.NONE, VmFault.SIGBUS, VmFault.RETRY, VmFault.HWPOISON
PINNED = WRITTEN + by("boot", FolioGot(1, 2))
MIRRORED = by("boot", DeviceMapped("gpu", 0, 2, 1, write=True))
DIRTY = present(1, dirty=True)
EXCLUSIVE = Pte(PteKind.EXCLUSIVE, 1, write=True)


def ends(trace, name, arguments, *during, result=0):
    """The results that an operation may have after this trace, with these events in it."""
    steps = by("t1", OperationBegan(name, arguments)) + [step for steps in during for step in steps]
    found = allowed_last(trace + steps + by("t1", OperationEnded(name, result)))
    (results,) = [values for what, values in found.items() if what.endswith("ended with")]
    return results


# ---- a page that cannot be moved -----------------------------------------------------------------------------------------


def test_a_driver_counts_a_pinned_page_that_it_reads_where_it_is():
    """It wrote the page before, so it maps it; the page stays where it is, and is read back through the device's page table."""
    assert ends(PINNED + MIRRORED, "gpu.to_device", (0, 2, 3)) == {0, 1}
    assert ends(PINNED, "gpu.to_device", (0, 2, 3)) == {0}
    assert ends(PINNED + MIRRORED, "gpu.to_device", (0, 2, 4)) == {0, 1}
    assert ends(PINNED + MIRRORED, "gpu.to_system", (0, 2, 3)) == {0, 1}
    assert ends(PINNED + MIRRORED, "gpu.to_device", (0, 2, 3), result=-2) == {0, 1, -2}


# ---- exclusive access ------------------------------------------------------------------------------------------------------

TAKEN = PteChanged(0, 2, DIRTY, EXCLUSIVE)
TAKES = operation("t1", "gpu.exclusive", (0, 2, 3), TAKEN, DeviceMapped("gpu", 0, 2, 1, write=True), result=1)


def test_exclusive_access_takes_the_page_from_the_cpus():
    assert refusals(SETTLED + TAKES) == []
    assert "gpu.exclusive(0, 2, 3) left to the CPUs 1; allowed: 0" in refusals(SETTLED + without(TAKES, TAKEN))[0]


def test_exclusive_access_fails_for_a_reason():
    assert ends(SETTLED, "gpu.exclusive", (0, 2, 3), by("t1", TAKEN), result=-16) == {0, 1}
    assert ends(SETTLED, "gpu.exclusive", (0, 2, 3), result=-16) == {0, 1, -16}
    read_only = by("boot", VmaMapped(0, 0, 8, VmFlags.READ, anonymous=True))
    assert ends(SETTLED + read_only, "gpu.exclusive", (0, 2, 3), by("t1", TAKEN), result=-14) == {0, 1, -14}


def test_a_check_says_whether_the_device_has_the_page_for_itself():
    assert ends(SETTLED + TAKES, "gpu.check_exclusive", (0, 2)) == {-1}
    assert ends(SETTLED + TAKES, "npu.check_exclusive", (0, 2)) == {0}
    assert ends(SETTLED, "gpu.check_exclusive", (0, 2)) == {0}
    assert ends(SETTLED + TAKES + by("boot", DeviceUnmapped("gpu", 0, 2, 1)), "gpu.check_exclusive", (0, 2)) == {0}
    assert ends(SETTLED + TAKES + NAP, "gpu.check_exclusive", (0, 2)) == {0, -1}


def test_an_exclusive_entry_leads_to_the_page_and_may_outlive_a_permission():
    other = by("boot", PteChanged(0, 2, EXCLUSIVE, Pte(PteKind.EXCLUSIVE, 3, write=True)))
    assert "mm 0 addr 2 leads to frame 3; allowed: frame 1" in refusals(SETTLED + TAKES + other + operation("t1", "nap", ()))[0]
    forbidden = operation("t1", "mprotect", (0, 2, 3, 1), VmaChanged(0, 2, 3, VmFlags.READ))
    assert refusals(SETTLED + TAKES + forbidden) == []


# ---- snapshots -------------------------------------------------------------------------------------------------------------


def snapshot(trace, result=1):
    return ends(trace, "gpu.snapshot", (0, 2, 3), result=result)


def test_a_snapshot_counts_its_pages_and_gives_no_error_alone():
    assert snapshot(BOOT, result=-14) == {0, 1}
    assert snapshot(BOOT + NAP, result=-14) == {0, 1, -14}


def test_a_snapshot_of_what_is_not_mapped_is_no_error():
    assert ends(BOOT, "gpu.snapshot", (0, 8, 9), result=-14) == {0, 1}


def test_a_snapshot_of_an_address_space_that_nobody_followed_is_not_judged():
    assert refusals(BOOT + operation("t1", "gpu.snapshot", (7, 2, 3), result=99)) == []


def reported(trace, name="gpu.snapshot", write=False):
    """What hmm_range_fault may return, and report of addr 2, in an operation of this name."""
    steps = by("t1", OperationBegan(name, (0, 2, 3)), RangeFaultBegan("gpu", 0, 2, 3, write))
    found = allowed_last(trace + steps + by("t1", RangeFaultEnded("gpu", 0, 2, 0, (None,))))
    return tuple(found.values())


@pytest.mark.parametrize(
    ("trace", "frame"),
    [
        pytest.param(WRITTEN, 1, id="a page"),
        pytest.param(MIGRATED, 10, id="its own page"),
        pytest.param(BOOT, None, id="a hole"),
        pytest.param(BOOT + by("boot", PteChanged(0, 2, PTE_NONE, ZERO)), None, id="the zero page"),
        pytest.param(BOOT + by("boot", PteChanged(0, 2, PTE_NONE, private(20))), None, id="another device's page"),
        pytest.param(SETTLED + TAKES, None, id="an exclusive page"),
        pytest.param(WRITTEN + by("boot", VmaMapped(0, 0, 8, VmFlags.NONE, anonymous=True)), None, id="what may not be read"),
    ],
)
def test_a_snapshot_reports_what_is_there_and_faults_nothing(trace, frame):
    assert reported(trace) == ({0}, {frame})


def test_the_devices_own_page_is_reported_though_it_may_not_be_written():
    read_only = by("boot", VmaMapped(0, 0, 8, VmFlags.READ, anonymous=True))
    assert reported(MIGRATED + read_only, "gpu.device_write", write=True)[0] == {0, -14, -1}
    assert reported(WRITTEN + read_only, "gpu.device_write", write=True)[0] == {-14, -1}


def test_a_range_fault_fails_on_poison_without_a_fault():
    poisoned = BOOT + by("boot", PteChanged(0, 2, PTE_NONE, Pte(PteKind.HWPOISON)))
    assert reported(poisoned, "gpu.device_read")[0] == {-14}
    assert reported(poisoned)[0] == {0}
    assert ends(poisoned, "gpu.device_read", (0, 2), result=-14) == {-14}


# ---- faults where a userfaultfd watches, on poison and on swap -----------------------------------------------------------------

MISSING = by("boot", VmaMapped(0, 0, 8, RW | VmFlags.UFFD_MISSING, anonymous=True))
GUARDED = by("boot", VmaMapped(0, 0, 8, RW | VmFlags.UFFD_WP, anonymous=True))
RAISED = by("t1", UserfaultRaised(0, 2, write_protected=False))
GUARD = by("boot", PteChanged(0, 2, PTE_NONE, present(1, write=False, uffd_wp=True)))


def fault(trace, *during, write=True, result=NONE, name="write"):
    """The results that a fault on addr 2 may have."""
    steps = by("t1", OperationBegan(name, (0, 2)), MMAP, FaultBegan(0, 2, write)) + [step for steps in during for step in steps]
    return allowed_last(trace + steps + by("t1", FaultEnded(0, 2, result)))["fault of mm 0 addr 2 ended with"]


def test_a_fault_that_is_a_userfaultfds_is_told_to_its_monitor():
    assert fault(BOOT + MISSING) == set()
    assert fault(BOOT + MISSING, RAISED) == {RETRY, SIGBUS}
    assert fault(BOOT + MISSING + by("boot", PteChanged(0, 2, PTE_NONE, present(1)))) == {NONE}
    assert fault(BOOT + GUARDED + GUARD) == set()
    assert fault(BOOT + GUARDED + GUARD, write=False) == {NONE}
    assert fault(BOOT + GUARD) == {NONE}
    zero = by("boot", PteChanged(0, 2, PTE_NONE, Pte(PteKind.ZERO, uffd_wp=True)))
    assert fault(BOOT + GUARDED + zero) == set()
    assert fault(BOOT + GUARDED + zero, name="gpu.exclusive") == {SIGBUS}


def test_who_cannot_wait_for_the_monitor_is_refused():
    assert fault(BOOT + MISSING, name="gpu.device_write") == {SIGBUS}


def test_a_driver_may_say_that_a_fault_was_refused():
    refused = by("t1", FaultBegan(0, 2, False), FaultEnded(0, 2, SIGBUS))
    assert ends(BOOT + MISSING, "gpu.to_system", (0, 2, 3), refused, result=-14) == {0, 1, -14}
    assert ends(BOOT + MISSING, "gpu.to_system", (0, 2, 3), result=-14) == {0, 1}


def test_in_a_race_the_monitor_may_have_answered_already():
    assert NONE in fault(BOOT + MISSING + NAP)


def test_a_fault_on_poison_says_so():
    poisoned = by("boot", PteChanged(0, 2, PTE_NONE, Pte(PteKind.HWPOISON)))
    assert fault(BOOT + poisoned) == {HWPOISON}
    assert fault(BOOT + poisoned + NAP) == {HWPOISON, NONE}
    assert ends(BOOT, "read", (0, 2), by("t1", FaultBegan(0, 2, False), FaultEnded(0, 2, HWPOISON))) == {-7}
    assert ends(BOOT, "pin", (0, 2), by("t1", FaultBegan(0, 2, True), FaultEnded(0, 2, HWPOISON))) == {-14}


def test_a_fault_that_read_from_disk_is_a_fault_like_any_other():
    assert refusals(WRITTEN + by("t1", MMAP, FaultBegan(0, 2, False), FaultEnded(0, 2, VmFault.MAJOR))) == []


def test_a_file_may_end_before_its_mapping():
    mapped = by("boot", VmaMapped(0, 0, 8, RW, anonymous=False, file=7))
    assert fault(BOOT + mapped) == {NONE, SIGBUS}
    assert fault(BOOT + mapped + by("boot", PteChanged(0, 2, PTE_NONE, present(1)))) == {NONE}


def left(kind, entry, write=True):
    """What is said of a fault on addr 2 that found an entry of this kind and left that one."""
    steps = by("boot", PteChanged(0, 2, PTE_NONE, kind)) + by("t1", MMAP, FaultBegan(0, 2, write), PteChanged(0, 2, kind, entry))
    return refusals(BOOT + steps + by("t1", FaultEnded(0, 2, NONE)))


def test_a_fault_on_swap_brings_the_page_and_may_come_again_to_write():
    swap = Pte(PteKind.SWAP, swap=3)
    assert left(swap, present(1)) == []
    assert left(swap, present(1, write=False)) == []
    assert "left an entry that is swap" in left(swap, swap)[0]
    assert "left an entry that is device-exclusive" in left(EXCLUSIVE, EXCLUSIVE)[0]
    assert "left an entry that is present; allowed: present and writable" in left(ZERO, present(1, write=False))[0]
