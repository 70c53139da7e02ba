"""Races of a page's way to the device with what CPUs and the device do to it."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.scenarios.acts import (
    device_access,
    discard,
    evict,
    fork,
    pin_and_unpin,
    reclaim,
    take_exclusive,
    to_device,
    touch,
)
from migrate_vma_conformance.scenarios.prologues import (
    CHILD,
    ONE_PAGE,
    ONE_PAGE_FORKED,
    PARENT,
    THREE_PAGES,
    one_device_page,
    one_forked_system_page,
    one_mirrored_page,
    one_system_page,
    three_kinds,
    watched_hole,
)
from migrate_vma_conformance.scenarios.scenario import Actor, Scenario
from migrate_vma_impl.driver import Load

SCENARIOS = (
    Scenario(
        "migrate-store",
        "A page goes to the device while a CPU stores to it.",
        ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, touch(PARENT, 0, write=True))),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-discard",
        "A page goes to the device while another CPU discards it with MADV_DONTNEED.",
        ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, discard)),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-forked",
        "A page that two address spaces map goes to the device while a CPU of the other one stores to it.",
        ONE_PAGE_FORKED,
        one_forked_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, touch(CHILD, 0, write=True))),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-holes",
        "A page, a zero page and a hole go to the device while a CPU stores to the hole.",
        THREE_PAGES,
        three_kinds,
        (Actor("t1", 0, to_device(PARENT, 0, 3)), Actor("t2", 1, touch(PARENT, 2, write=True))),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-pin",
        "A page goes to the device while another CPU pins it.",
        ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, pin_and_unpin)),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-device",
        "A page that the device maps goes to the device while the device stores to it.",
        ONE_PAGE,
        one_mirrored_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, device_access(PARENT, 0, write=True))),
        progress=("C82",),
        workers=True,
        loads=frozenset({Load.TO_DEVICE, Load.DEVICE_WRITE}),
    ),
    Scenario(
        "migrate-watched",
        "A hole that a userfaultfd watches goes to the device.",
        ONE_PAGE,
        watched_hole,
        (Actor("t1", 0, to_device(PARENT, 0, 1)),),
    ),
    Scenario(
        "migrate-evict",
        "A page goes to the device, which another CPU empties.",
        ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, evict)),
        progress=("C82", "C86"),
        workers=True,
        loads=frozenset({Load.TO_DEVICE, Load.EVICT}),
    ),
    Scenario(
        "migrate-reclaim",
        "A page goes to the device while another CPU swaps it out.",
        evolve(ONE_PAGE, swap_slots=1),
        one_system_page,
        (Actor("t1", 1, to_device(PARENT, 0, 1)), Actor("t2", 0, reclaim)),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-exclusive",
        "A CPU stores to a page that the device takes for itself.",
        ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, take_exclusive), Actor("t2", 1, touch(PARENT, 0, write=True))),
        progress=("C82",),
        loads=frozenset({Load.EXCLUSIVE}),
    ),
    Scenario(
        "evict-fork",
        "A device page is evicted while its process forks.",
        ONE_PAGE_FORKED,
        one_device_page,
        (Actor("t1", 0, evict), Actor("t2", 1, fork)),
        progress=("C82",),
        loads=frozenset({Load.TO_DEVICE, Load.EVICT}),
    ),
)
