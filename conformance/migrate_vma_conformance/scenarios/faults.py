"""Races of a CPU's fault on a device page with everything that others do to the page."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.scenarios.acts import borrow_device_page, device_access, discard, evict, fork, touch, unmap
from migrate_vma_conformance.scenarios.prologues import (
    CHILD,
    ONE_PAGE,
    ONE_PAGE_FORKED,
    PARENT,
    one_device_page,
    one_forked_device_page,
)
from migrate_vma_conformance.scenarios.scenario import Actor, Scenario
from migrate_vma_impl.driver import Load

SCENARIOS = (
    Scenario(
        "fault2",
        "Two CPUs fault one device page.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, touch(PARENT, 0, write=False))),
        progress=("C79", "C82", "C84"),
        quick=True,
    ),
    Scenario(
        "fault3",
        "Three CPUs fault one device page.",
        evolve(ONE_PAGE, cpus=3),
        one_device_page,
        tuple(Actor(f"t{number + 1}", number, touch(PARENT, 0, write=False)) for number in range(3)),
        progress=("C79", "C82", "C84"),
        judges=frozenset({"C82", "C84"}),
        adds_to=frozenset({"C84"}),
        lockstep=True,
    ),
    Scenario(
        "fault2-forked",
        "Two CPUs fault one device page that two address spaces map.",
        ONE_PAGE_FORKED,
        one_forked_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, touch(CHILD, 0, write=False))),
        progress=("C82", "C84"),
    ),
    Scenario(
        "fault-short",
        "A CPU faults a device page while memory is short.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)),),
        progress=("C79",),
        short=True,
        quick=True,
    ),
    Scenario(
        "fault-evict",
        "A CPU faults a device page that the driver evicts.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, evict)),
        progress=("C82",),
        loads=frozenset({Load.EVICT}),
    ),
    Scenario(
        "fault-munmap",
        "A CPU faults a device page that another unmaps.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, unmap)),
        progress=("C82",),
    ),
    Scenario(
        "fault-discard",
        "A CPU faults a device page that another discards with MADV_DONTNEED.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, discard)),
        progress=("C82",),
    ),
    Scenario(
        "fault-fork",
        "A CPU faults a device page while another forks.",
        ONE_PAGE_FORKED,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, fork)),
        progress=("C82",),
    ),
    Scenario(
        "fault-borrow",
        "A CPU faults a device page of which two others take transient references.",
        evolve(ONE_PAGE, cpus=3),
        one_device_page,
        (
            Actor("t1", 0, touch(PARENT, 0, write=True)),
            Actor("t2", 1, borrow_device_page),
            Actor("t3", 2, borrow_device_page),
        ),
        progress=("C82",),
    ),
    Scenario(
        "fault-device",
        "A CPU and the device write one device page.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, device_access(PARENT, 0, write=True))),
        progress=("C82",),
        loads=frozenset({Load.DEVICE_WRITE}),
    ),
)
