"""What one scenario alone is for: memory that is short, whole lives, refused calls, a driver's end, the drain."""

from __future__ import annotations

from migrate_vma_conformance.scenarios.acts import refused_setups, release, round_trip, to_device, to_system, touch
from migrate_vma_conformance.scenarios.prologues import (
    CHILD,
    ONE_PAGE,
    PARENT,
    THREE_PAGES,
    TWO_PAGES_FORKED,
    batched_beside_forked,
    one_device_page,
    three_kinds,
)
from migrate_vma_conformance.scenarios.scenario import Actor, Scenario
from migrate_vma_impl.driver import Load
from migrate_vma_impl.machine.system import Preemption

SCENARIOS = (
    Scenario(
        "fault-refused",
        "A CPU faults a device page while memory is short, and the driver says so.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)),),
        progress=("C79",),
        short=True,
        driver="wide",
        quick=True,
    ),
    Scenario(
        "round-trip",
        "One CPU and the device use three pages through their whole life.",
        THREE_PAGES,
        three_kinds,
        (Actor("t1", 0, round_trip),),
        workers=True,
        quick=True,
    ),
    Scenario(
        "refused",
        "migrate_vma_setup is called with everything that it refuses.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, refused_setups),),
        quick=True,
        judges=frozenset({"C02", "C03", "C06", "C30"}),
    ),
    Scenario(
        "unbind",
        "A CPU faults a device page while the driver is unbound.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, release)),
        progress=("C82",),
        loads=frozenset({Load.RELEASE}),
    ),
    Scenario(
        "drain",
        "A wide migration drains the LRU batches with a device page locked, which a CPU in hmm_range_fault needs.",
        TWO_PAGES_FORKED,
        batched_beside_forked,
        (Actor("t1", 1, to_device(PARENT, 0, 2)), Actor("t2", 0, to_system(CHILD, 1, 2))),
        progress=("C85",),
        preemption=(Preemption.FULL, Preemption.VOLUNTARY),
        workers=True,
        driver="wide",
        quick=True,
    ),
)
