"""One wrong value in a right trace, and the sentence with which the model refuses it."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    CallbackReturned,
    CpuAccessed,
    FaultEnded,
    OperationEnded,
    PageCopied,
    PagesReturned,
    PteChanged,
    RangeReturned,
    SetupReturned,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, VmFault, migrate_pfn
from tests.spec.edits import change, put, without
from tests.spec.fault_traces import FAULT, FAULT_REFERENCED, FAULT_REFILL
from tests.spec.model_traces import (
    BACK_BY_STORE,
    EVICTION,
    FORK,
    MIGRATED,
    TO_GPU,
    WRITTEN,
    copy_on_write,
    device_access,
    load,
    refusals,
)
from tests.spec.parts import HOLE, REFERENCED, REFILL, TRYLOCKED, migrating, private
from tests.spec.traces import FLOWS, RESTORED

ROUND = MIGRATED + BACK_BY_STORE
STAYS = migrating(1) & ~MIGRATE_PFN_MIGRATE
SHARED = WRITTEN + FORK

MUTATIONS = {
    "cpages is one too many": (change(MIGRATED, SetupReturned, cpages=2), "setup of [2, 3) returned cpages 2; allowed: 1"),
    "cpages forgets the page": (change(MIGRATED, SetupReturned, cpages=0), "setup of [2, 3) returned cpages 0; allowed: 1"),
    "setup skips the page": (
        change(MIGRATED, SetupReturned, src=(0,), cpages=0),
        "setup of [2, 3) returned src[0] = 0; allowed: pfn 1|VALID|MIGRATE|WRITE",
    ),
    "setup forgets WRITE": (
        change(MIGRATED, SetupReturned, src=(migrating(1, write=False),)),
        "returned src[0] = pfn 1|VALID|MIGRATE; allowed: pfn 1|VALID|MIGRATE|WRITE",
    ),
    "setup takes another page": (
        change(MIGRATED, SetupReturned, src=(migrating(2),)),
        "returned src[0] = pfn 2|VALID|MIGRATE|WRITE; allowed: pfn 1|VALID|MIGRATE|WRITE",
    ),
    "setup reports a hole": (
        change(MIGRATED, SetupReturned, src=(HOLE,)),
        "src[0] = MIGRATE; allowed: pfn 1|VALID|MIGRATE|WRITE",
    ),
    "setup fails without reason": (change(MIGRATED, SetupReturned, result=-22), "setup of [2, 3) returned -22; allowed: 0"),
    "setup has its own errno": (change(MIGRATED, SetupReturned, result=-12), "setup of [2, 3) returned -12; allowed: 0"),
    "setup moves the range": (change(MIGRATED, SetupReturned, start=1), "returned start and end (1, 3); allowed: (2, 3)"),
    "pages() gives up without reason": (
        change(MIGRATED, PagesReturned, src=(STAYS,)),
        "pages() returned src[0] = pfn 1|VALID|WRITE; allowed: pfn 1|VALID|MIGRATE|WRITE",
    ),
    "pages() drops the entry": (change(MIGRATED, PagesReturned, src=(0,)), "pages() returned src[0] = 0; allowed: pfn 1|VALID"),
    "device range adds WRITE": (
        MIGRATED + change(EVICTION, RangeReturned, src=(migrating(10),)),
        "returned src[0] = pfn 10|VALID|MIGRATE|WRITE; allowed: pfn 10|VALID|MIGRATE",
    ),
    "device range skips the page": (
        MIGRATED + change(EVICTION, RangeReturned, src=(0,)),
        "returned src[0] = 0; allowed: pfn 10|VALID|MIGRATE",
    ),
    "device range fails": (
        MIGRATED + change(EVICTION, RangeReturned, result=-16),
        "device range of 1 pages returned -16; allowed: 0",
    ),
    "the contents stay behind": (without(ROUND, PageCopied(10, 2)), "at mm 0 addr 2 found what is in frame 2; allowed: nothing"),
    "the entry leads to the old page": (
        put(MIGRATED, RESTORED, PteChanged(0, 2, RESTORED.old, private(11))),
        "with nothing running, mm 0 addr 2 leads to frame 11; allowed: frame 10",
    ),
    "a TLB keeps the old page": (
        without(MIGRATED, TlbFlushed(0, 2, 3)),
        "with nothing running, CPU 1's TLB maps mm 0 addr 2 to frame 1; allowed: frame 10",
    ),
    "the callback's error is lost": (
        change(FAULT, CallbackReturned, result=VmFault.SIGBUS),
        "fault of mm 0 addr 2 ended with 0; allowed: SIGBUS",
    ),
    "an error is made up": (
        change(ROUND, FaultEnded, nth=1, result=VmFault.OOM),
        "fault of mm 0 addr 2 ended with OOM; allowed: 0",
    ),
    "a wrong errno": (
        put(ROUND, OperationEnded("write", 0), OperationEnded("write", -7), nth=1),
        "write(0, 2) ended with -7; allowed: 0",
    ),
    "a count that nothing accounts for": (
        WRITTEN + put(TO_GPU, OperationEnded("gpu.to_device", 1), OperationEnded("gpu.to_device", 2)),
        "gpu.to_device(0, 2, 3) ended with 2; allowed: 0 or 1",
    ),
    "a store to what is shared": (
        put(SHARED + copy_on_write("cpu1", 0, 2), CpuAccessed(0, 2, 2, write=True), CpuAccessed(0, 2, 1, write=True)),
        "with nothing running, mm 0 addr 2 leads to frame 2; allowed: frame 1",
    ),
    "the child gets an empty page": (
        without(SHARED + copy_on_write("cpu2", 1, 2), PageCopied(1, 2)),
        "store of CPU 2 at mm 1 addr 2 found what is in frame 2; allowed: frame 1",
    ),
    "the child sees the parent's store": (
        put(
            SHARED + copy_on_write("cpu1", 0, 2) + load("cpu2", mm=1),
            CpuAccessed(1, 2, 1, write=False),
            CpuAccessed(1, 2, 2, False),
        ),
        "load of CPU 2 at mm 1 addr 2 found what is in frame 2; allowed: frame 1",
    ),
    "the device reads the old page": (
        MIGRATED + device_access(write=False, pfn=1),
        "load of device gpu at mm 0 addr 2 found what is in frame 1; allowed: frame 10",
    ),
}


@pytest.mark.parametrize(("trace", "sentence"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_wrong_value_is_refused(trace, sentence):
    (refusal,) = refusals(trace)
    assert sentence in refusal


@pytest.mark.parametrize("trace", [MIGRATED, ROUND, MIGRATED + EVICTION, SHARED, FAULT], ids=range(5))
def test_what_was_not_mutated_is_allowed(trace):
    assert refusals(trace) == []


@pytest.mark.parametrize("name", FLOWS)
def test_a_correct_flow_is_allowed(name):
    trace, capabilities = FLOWS[name]
    assert refusals(trace, capabilities) == []


@pytest.mark.parametrize(
    ("trace", "capabilities"),
    [(FAULT, TRYLOCKED), (FAULT_REFERENCED, REFERENCED), (FAULT_REFILL, REFILL)],
    ids=["trylocked", "referenced", "handed over"],
)
def test_in_each_generation_a_driver_that_brings_nothing_back_is_refused(trace, capabilities):
    """Its pages() leaves everything, so the fault would come again for ever."""
    left = change(trace, PagesReturned, src=(migrate_pfn(10),))
    assert "pages() returned src[0] = pfn 10|VALID; allowed: pfn 10|VALID|MIGRATE|WRITE" in refusals(left, capabilities)[0]
