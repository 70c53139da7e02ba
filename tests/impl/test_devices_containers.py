"""What drivers keep their state in: each method is one step with one event, and misuse says what to write instead."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.containers import (
    Cell,
    Counter,
    DeclarationError,
    DriverSlot,
    Fence,
    FreeList,
    Lock,
    Map,
    Mirror,
    MirrorEntry,
    Queue,
    RwSem,
    SpinLock,
    shared,
)
from migrate_vma_impl.machine.traps import Kind
from migrate_vma_impl.mm.mm_types import Folio, Mm
from migrate_vma_spec.events import (
    DeviceAccessed,
    DeviceMapped,
    DeviceUnmapped,
    DriverStep,
    LockDropped,
    LockMissed,
    LockTaken,
    WaitEnded,
)
from migrate_vma_spec.vocabulary import LockMode
from tests.impl.stage import A, FakeDriver, Stage


class Full(FakeDriver):
    """A field of each kind."""

    state = shared(
        cell=Cell("first"),
        count=Counter(2),
        free=FreeList(),
        few=FreeList(1),
        map=Map(),
        queue=Queue(),
        mirror=Mirror(),
        lock=Lock(),
        spin=SpinLock(),
        sem=RwSem(),
        fence=Fence(),
    )


@pytest.fixture
def stage():
    return Stage(WAITING, Full, pages=0)


@pytest.fixture
def state(stage):
    return stage.driver.state


def test_a_cell_is_set_swapped_and_compared(stage, state):
    assert stage.run(state.cell.get) == "first"
    stage.run(state.cell.set, "second")
    assert stage.run(state.cell.swap, "third") == "second"
    assert not stage.run(state.cell.compare_and_set, "second", "fourth")
    assert stage.run(state.cell.compare_and_set, "third", "fourth")
    assert stage.trace[-1] == DriverStep("dev0", "cell", "was 'third', set to 'fourth'")


def test_a_cell_can_be_waited_for(stage, state):
    waiter = stage.start("waiter", state.cell.wait_for, 3)
    waiter.block()
    stage.run(state.cell.set, 3)
    waiter.finish()
    assert stage.trace[-1] == WaitEnded("dev0:cell")


def test_a_counter_goes_up_and_down(stage, state):
    assert (stage.run(state.count.add), stage.run(state.count.sub, 3)) == (3, 0)
    assert stage.run(state.count.get) == 0
    stage.run(state.count.wait_for, 0)


def test_a_free_list_begins_with_the_devices_frames_or_some_of_them(stage):
    first = stage.kernel.slots()
    assert first[DriverSlot("dev0", "free")] == (100, 101, 102)
    assert first[DriverSlot("dev0", "few")] == (100,)


def test_a_free_list_gives_the_smallest_frame_first(stage, state):
    one, two = stage.run(state.free.pop), stage.run(state.free.pop)
    stage.run(state.free.push, one)
    assert (one, two, stage.run(state.free.pop)) == (Folio(100), Folio(101), Folio(100))


def test_an_empty_free_list_gives_none(stage, state):
    stage.run(state.few.pop)
    assert stage.run(state.few.pop) is None


def test_a_free_list_larger_than_the_device_is_refused():
    class Short(FakeDriver):
        state = shared(free=FreeList(4))

    with pytest.raises(DeclarationError, match=r"FreeList\(4\) for a device of 3 frames"):
        Stage(WAITING, Short)


def test_a_map_answers_none_for_what_it_lacks(stage, state):
    stage.run(state.map.set, 5, Folio(3))
    assert stage.run(state.map.get, 5) == Folio(3)
    assert stage.trace[-1] == DriverStep("dev0", "map", "[5] is folio 3")
    assert stage.run(state.map.pop, 5) == Folio(3)
    assert stage.run(state.map.get, 5) is None


def test_maps_with_the_same_items_are_the_same_state(stage, state):
    for key in (10, 9, (1, 2), "x"):
        stage.run(state.map.set, key, 0)
    one = stage.run(state.map.items)
    stage.run(state.map.pop, 9)
    stage.run(state.map.set, 9, 0)
    assert stage.run(state.map.items) == one


def test_a_queue_is_first_in_first_out_and_can_be_waited_for(stage, state):
    assert stage.run(state.queue.tryget) is None
    getter = stage.start("getter", state.queue.get)
    getter.block()
    stage.run(state.queue.put, 1)
    stage.run(state.queue.put, 2)
    assert (getter.finish(), stage.run(state.queue.tryget)) == (1, 2)


def test_a_mirror_is_looked_up_and_accessed_by_the_permission_that_it_has(stage, state):
    stage.run(state.mirror.map, A, 1, Folio(2), False)
    assert stage.run(state.mirror.lookup, A, 1) == MirrorEntry(0, 1, 2, write=False)
    assert stage.run(state.mirror.access, A, 1, False)
    assert not stage.run(state.mirror.access, A, 1, True)
    assert not stage.run(state.mirror.access, Mm(1), 1, False)
    assert stage.said(DeviceMapped) == [DeviceMapped("dev0", 0, 1, 2, write=False)]
    assert stage.said(DeviceAccessed) == [DeviceAccessed("dev0", 0, 1, 2, write=False)]


def test_a_new_mapping_takes_the_place_of_the_old(stage, state):
    stage.run(state.mirror.map, A, 1, Folio(2), False)
    stage.run(state.mirror.map, A, 1, None, False)
    assert stage.run(state.mirror.lookup, A, 1) == MirrorEntry(0, 1, None, write=False)


def test_unmapping_a_range_takes_a_step_for_each_page_of_it(stage, state):
    for addr in range(4):
        stage.run(state.mirror.map, A, addr, Folio(addr + 1), True)
    stage.run(state.mirror.unmap_range, A, 1, 3)
    assert stage.said(DeviceUnmapped) == [DeviceUnmapped("dev0", 0, 1, 2), DeviceUnmapped("dev0", 0, 2, 3)]
    assert stage.run(state.mirror.unmap, A, 0)
    assert not stage.run(state.mirror.unmap, A, 0)


def test_unmapping_nothing_is_one_step(stage, state):
    before = len(stage.trace)
    stage.run(state.mirror.unmap_range, A, 0, 4)
    assert [type(event) for event in stage.trace[before:]] == [DriverStep]


def test_a_lock_puts_who_waits_to_sleep(stage, state):
    stage.run(state.lock.lock)
    assert not stage.run(state.lock.trylock)
    waiter = stage.start("waiter", state.lock.lock)
    waiter.block()
    assert waiter.trap.kind is Kind.SLEEP
    stage.run(state.lock.unlock)
    waiter.finish()
    lock = ("dev0:lock", LockMode.SLEEP)
    assert stage.trace[-4:] == [LockTaken(*lock), LockMissed(*lock), LockDropped(*lock), LockTaken(*lock)]


def test_a_spinlock_spins(stage, state):
    stage.run(state.spin.lock)
    assert not stage.run(state.spin.trylock)
    waiter = stage.start("waiter", state.spin.lock)
    waiter.block()
    assert waiter.trap.kind is Kind.SPIN_LOCK
    stage.run(state.spin.unlock)
    waiter.finish()


def test_readers_share_and_a_writer_does_not(stage, state):
    stage.run(state.sem.down_read)
    assert stage.run(state.sem.down_read_trylock)
    writer = stage.start("writer", state.sem.down_write)
    writer.block()
    stage.run(state.sem.up_read)
    stage.run(state.sem.up_read)
    writer.finish()
    assert not stage.run(state.sem.down_read_trylock)
    stage.run(state.sem.up_write)


def test_a_fence_holds_waiters_from_arming_to_signal(stage, state):
    stage.run(state.fence.wait)
    stage.run(state.fence.arm)
    waiter = stage.start("waiter", state.fence.wait)
    waiter.block()
    assert not stage.run(state.fence.signalled)
    stage.run(state.fence.signal)
    waiter.finish()


@pytest.mark.parametrize("method", ["map.set", "cell.set", "queue.put"])
def test_what_can_change_by_itself_is_refused(stage, state, method):
    field, name = method.split(".")
    arguments = ("key", []) if field == "map" else ([],)
    with pytest.raises(DeclarationError, match=f"dev0.state.{field} is given .*immutable"):
        stage.run(getattr(getattr(state, field), name), *arguments)


def test_a_field_that_is_not_declared_is_named_with_those_that_are(state):
    with pytest.raises(AttributeError, match="state of dev0 has no fre: it declares cell, count"):
        _ = state.fre


def test_a_value_where_a_container_belongs_is_refused():
    with pytest.raises(DeclarationError, match=r"declare busy=Cell\(False\)"):
        shared(busy=False)


def test_a_container_outside_a_driver_says_where_it_belongs():
    with pytest.raises(DeclarationError, match=r"state = shared\(x=Cell\(\.\.\.\)\)"):
        _ = Cell(1).key


def test_a_subclass_adds_to_the_state_of_its_base():
    class More(Full):
        state = shared(**Full.state.fields, extra=Cell(None))

    stage = Stage(WAITING, More, pages=0)
    assert stage.run(stage.driver.state.extra.get) is None
    assert stage.run(stage.driver.state.count.get) == 2


def test_two_devices_of_one_class_share_nothing():
    stage = Stage(WAITING, Full, pages=0, devices=2)
    one, two = stage.drivers
    stage.run(one.state.cell.set, "mine")
    assert stage.run(two.state.cell.get) == "first"
    assert (stage.run(one.state.free.pop), stage.run(two.state.free.pop)) == (Folio(100), Folio(200))
