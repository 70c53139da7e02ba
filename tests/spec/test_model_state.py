"""The model's memory: a value that says what holds now, and forgets how it came to be."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import FolioFreed, MmCreated, MmExited, MmForked, OperationBegan, OperationEnded
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.model import REFERENCE, START, allowed, next_state
from migrate_vma_spec.model.reach import allowed_access
from migrate_vma_spec.model.state import Seen
from migrate_vma_spec.objects import World
from migrate_vma_spec.registry import REGISTRY
from migrate_vma_spec.world import fold
from tests.spec.fault_traces import DEVICE_START, LOSER
from tests.spec.model_traces import (
    BACK_BY_STORE,
    DISCARD,
    FORK,
    MIGRATED,
    NAP,
    UNMAP,
    WRITTEN,
    ZERO_READ,
    copy_on_write,
    first_store,
    load,
    memory_after,
    operation,
    refusals,
    store,
)
from tests.spec.parts import BOOT, TRYLOCKED, by

ROUND = MIGRATED + BACK_BY_STORE
FRESH = memory_after(BOOT)


def test_equal_situations_are_equal_whatever_led_to_them():
    assert memory_after(ROUND) == memory_after(BOOT + first_store(pfn=2))
    assert hash(memory_after(ROUND)) == hash(memory_after(BOOT + first_store(pfn=2)))
    assert memory_after(WRITTEN) != memory_after(BOOT)


@pytest.mark.parametrize("steps", [store() + load(), ZERO_READ, operation("t1", "unpin", (1,))], ids=["access", "zero", "unpin"])
def test_operations_that_change_nothing_leave_the_memory_as_it_was(steps):
    once = memory_after(WRITTEN + steps)
    assert once == memory_after(WRITTEN)
    assert memory_after(WRITTEN + steps * 20) == once


def test_rounds_of_faults_that_fail_come_back_to_the_same_memory():
    assert memory_after(DEVICE_START + LOSER) == memory_after(DEVICE_START)
    racing = NAP + LOSER[:-1]
    assert memory_after(DEVICE_START + racing) == memory_after(DEVICE_START + racing + LOSER[1:-1])


@pytest.mark.parametrize("end", [DISCARD, UNMAP, by("boot", FolioFreed(1), MmExited(0))], ids=["discard", "unmap", "exit"])
def test_dead_things_are_forgotten(end):
    after = memory_after(WRITTEN + end)
    assert (after.pages, after.overtaken, after.tasks) == (FRESH.pages, FRESH.overtaken, FRESH.tasks)


def test_a_frame_that_is_freed_is_reached_through_no_tlb_any_more():
    until = [step for step in DISCARD if not isinstance(step.event, OperationEnded)]
    freed = [step for step in until if not isinstance(step.event, FolioFreed)]
    assert memory_after(WRITTEN + freed).overtaken == FrozenMap({(0, 2): frozenset({1})})
    assert memory_after(WRITTEN + until).overtaken == FRESH.overtaken
    other = freed + by("boot", FolioFreed(3))
    assert memory_after(WRITTEN + other).overtaken == FrozenMap({(0, 2): frozenset({1})})


def test_an_address_space_that_exits_is_followed_no_more():
    assert memory_after(BOOT).followed == {0}
    assert memory_after(WRITTEN + FORK).followed == {0, 1}
    assert memory_after(WRITTEN + FORK + by("t1", MmExited(1))).followed == {0}
    assert memory_after(by("t1", MmForked(5, 6))).followed == set()
    assert memory_after(by("t1", MmCreated(5), MmForked(5, 6))).followed == {5, 6}


def test_a_race_is_seen_by_both_and_only_while_it_lasts():
    racing = by("t1", OperationBegan("nap")) + by("t2", OperationBegan("nap"))
    memory = memory_after(BOOT + racing)
    assert [scope.seen for scopes in memory.tasks.values() for scope in scopes] == [Seen.RACED, Seen.RACED]
    over = racing + by("t1", OperationEnded("nap", 0)) + by("t2", OperationEnded("nap", 0), OperationBegan("nap"))
    assert memory_after(BOOT + over).tasks["t2"][0].quiet


def test_frames_that_hold_the_contents_are_all_known():
    shared = memory_after(WRITTEN + FORK + copy_on_write("cpu2", 1, 2))
    assert shared.copies((0, 2)) == {1}
    assert shared.copies((1, 2)) == {2}
    assert memory_after(MIGRATED).copies((0, 2)) == {10}
    assert shared.copies((0, 7)) == memory_after(WRITTEN + FORK).zeroed


def test_the_model_judges_by_the_world_before_the_step():
    state, world = START, World(capabilities=TRYLOCKED)
    for step in WRITTEN:
        state, world = next_state(state, world, step), fold(world, step)
    step = load()[1]
    assert allowed(state, world, step) == allowed_access(state, world, "CPU 1", (0, 2), 1, False, tlb=True)
    assert allowed(state, world, step)[0].refusal is None


def test_with_nothing_else_running_every_result_has_one_value():
    """Frames are no results: equal copies are equally good. The counts of a device have two forms and 0 besides."""
    several = []
    state, world = START, World(capabilities=TRYLOCKED)
    for step in ROUND + load(pfn=2):
        several += [one for one in allowed(state, world, step) if len(one.allowed) != 1]
        state, world = next_state(state, world, step), fold(world, step)
    assert {one.what.partition(" ")[0] for one in several} <= {"with", "gpu.to_device(0,"}


def test_the_model_is_no_clause_of_the_registry():
    assert REFERENCE.id not in REGISTRY
    assert REFERENCE.applies(frozenset())
    assert refusals(BOOT + load()) == ["load of CPU 1 at mm 0 addr 2 found what is in frame 1; allowed: the zero page"]
