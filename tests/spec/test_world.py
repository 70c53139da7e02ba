"""The folded world: what it knows after a trace, that it forgets what ended, and that it depends on nothing else."""

from __future__ import annotations

import pickle

import pytest
from attrs import evolve

from migrate_vma_spec import events as ev
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import Mirror, Phase, Stage
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, Lru, Memory, NotifyReason, VmFault, VmFlags
from migrate_vma_spec.world import World, fold
from tests.spec.edits import the, up_to
from tests.spec.fault_traces import DEVICE_START, FAULT
from tests.spec.large_traces import ALL_FLOWS
from tests.spec.parts import BOOT, MMAP, PTL, PTL_OFF, RW, by, migration, present, private, system_page
from tests.spec.traces import FLOWS, TO_DEVICE


def folded(trace, world=None):
    world = world or World()
    for step in trace:
        world = fold(world, step)
    return world


@pytest.mark.parametrize("name", FLOWS)
def test_folding_twice_gives_equal_worlds_with_equal_hashes(name):
    trace, _ = FLOWS[name]
    one, two = folded(trace), folded(trace)
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_a_world_that_was_hashed_on_the_way_is_the_same(name):
    hashed = plain = World()
    for step in ALL_FLOWS[name][0]:
        hashed, plain = fold(hashed, step), fold(plain, step)
        hash(hashed)
    assert hashed == plain
    assert hash(hashed) == hash(plain)


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_no_task_is_left_when_all_have_ended(name):
    assert folded(ALL_FLOWS[name][0]).idle


def test_a_round_of_events_that_changes_nothing_gives_the_world_from_before():
    before = folded(DEVICE_START)
    page_round = by("cpu1", ev.FolioGot(10, 2), ev.FolioLocked(10, blocking=False), ev.FolioUnlocked(10), ev.FolioPut(10, 1))
    lock_round = by("cpu1", MMAP, PTL, PTL_OFF, ev.LockDropped("mmap_lock:0", LockMode.READ))
    fault_round = by("cpu1", ev.FaultBegan(0, 2, write=True), ev.FaultEnded(0, 2, VmFault.NONE))
    assert folded(page_round + lock_round + fault_round, before) == before


def test_a_page_that_went_to_the_device_and_back_leaves_only_its_new_frame():
    world = folded(FAULT)
    assert world.frame(10) == folded(BOOT).frame(10)
    assert world.pte(0, 2).pfn == 2
    assert dict(world.named) == {2: frozenset({(0, 2)})}
    assert not world.mirrors
    assert not world.mirrored


def test_a_frame_is_followed_through_its_life():
    world = folded(BOOT + system_page())
    frame = world.frame(1)
    assert (frame.memory, frame.allocated, frame.refcount, frame.mapcount) == (Memory.SYSTEM, True, 1, 1)
    assert (frame.lru, frame.charged, frame.exclusive, frame.locked) == (Lru.ON, True, True, False)


def test_an_isolation_takes_a_reference_whether_or_not_the_event_says_the_count():
    counted = folded(by("a0", ev.LruIsolated(1, done=True, refcount=2)), folded(BOOT + system_page()))
    uncounted = folded(by("a0", ev.LruIsolated(1, done=True)), folded(BOOT + system_page()))
    assert counted == uncounted
    assert counted.frame(1).refcount == 2


def test_what_no_event_has_told_is_unknown():
    frame = folded(by("a0", ev.FolioGot(7, 3))).frame(7)
    assert frame.refcount == 3
    assert (frame.memory, frame.allocated, frame.locked, frame.mapcount, frame.lru) == (None,) * 5


def test_a_lock_that_its_holder_hands_over_is_the_heirs():
    world = folded(by("a0", ev.FolioLocked(10, blocking=False)), folded(DEVICE_START))
    assert (world.frame(10).holder, world.task("a0").pages) == ("a0", {10})
    world = folded(by("b0", ev.FolioLocked(10, blocking=True)), world)
    assert (world.frame(10).holder, world.task("a0").pages, world.task("b0").pages) == ("b0", frozenset(), {10})


def test_a_call_is_followed_from_phase_to_phase():
    phases = []
    world = World()
    for step in TO_DEVICE:
        world = fold(world, step)
        call = world.task("mig0").calls.get(0)
        if call is not None and (not phases or phases[-1] is not call.phase):
            phases.append(call.phase)
    assert phases == list(Phase)


def test_a_calls_ledger_says_what_the_library_holds():
    call = folded(up_to(TO_DEVICE, the(TO_DEVICE, ev.SetupReturned)[0])).task("mig0").calls[0]
    assert {pfn: (held.refs, held.locks) for pfn, held in call.ledger.items()} == {1: (1, 1)}


def test_a_fault_knows_its_page_and_its_references():
    fault = folded(up_to(FAULT, ev.CallbackEntered(10, 0, 2))).task("cpu1").fault
    assert (fault.page, fault.refs, fault.stage, fault.live) == (10, 1, Stage.CALLBACK, True)


def test_a_refused_setup_leaves_no_call():
    call = the(TO_DEVICE, ev.SetupCalled)[0]
    world = folded(by("mig0", call, ev.SetupReturned(0, -22, 2, 3, 0, 0, None)))
    assert world == World()


def test_an_operation_that_ends_takes_its_calls_and_faults_with_it():
    world = folded(up_to(FAULT, ev.CallbackEntered(10, 0, 2)) + by("cpu1", ev.OperationEnded("touch", 0)))
    task = world.task("cpu1")
    assert (task.faults, task.calls, task.operation, task.pages) == ((), FrozenMap(), None, frozenset())
    assert world.frame(10).locked
    assert world.frame(10).holder is None


def test_the_walk_that_fills_a_tlb_sets_the_entrys_bits():
    world = folded(by("cpu1", ev.TlbFilled(0, 2, present(1, dirty=True))), folded(BOOT + system_page()))
    assert world.pte(0, 2) == present(1, dirty=True)
    assert dict(world.tlbs[0, 2]) == {1: present(1, dirty=True)}


@pytest.mark.parametrize(("start", "end", "left"), [(2, 3, 1), (0, 1 << 40, 0), (3, 4, 1), (5, 6, 2)])
def test_a_flush_empties_every_cpus_tlb_of_its_range(start, end, left):
    filled = by("cpu1", ev.TlbFilled(0, 2, present(1)), ev.TlbFilled(0, 3, present(2)))
    filled += by("cpu2", ev.TlbFilled(0, 2, present(1)), ev.TlbFlushed(0, start, end))
    assert len(folded(filled).tlbs) == left


def test_a_mirror_that_maps_another_page_forgets_the_old_one():
    world = folded(by("gpu0", ev.DeviceMapped("gpu", 0, 2, 10, write=True), ev.DeviceMapped("gpu", 0, 2, 11, write=False)))
    assert dict(world.mirrors) == {("gpu", 0, 2): Mirror(11, write=False)}
    assert dict(world.mirrored) == {11: frozenset({("gpu", 0, 2)})}


@pytest.mark.parametrize(
    ("event", "ranges"),
    [
        (ev.VmaUnmapped(0, 2, 4), [(0, 2), (4, 8)]),
        (ev.VmaUnmapped(0, 0, 8), []),
        (ev.VmaUnmapped(0, 6, 12), [(0, 6)]),
        (ev.VmaMapped(0, 2, 4, VmFlags.READ, anonymous=True), [(0, 2), (2, 4), (4, 8)]),
        (ev.VmaMapped(0, 8, 9, RW, anonymous=True), [(0, 8), (8, 9)]),
    ],
)
def test_vmas_are_cut_and_joined_as_the_events_say(event, ranges):
    vmas = folded(BOOT + by("a0", event)).mms[0]
    assert [(vma.start, vma.end) for vma in vmas] == ranges


def test_a_forked_address_space_has_its_parents_vmas():
    world = folded(BOOT + by("a0", ev.MmCreated(1), ev.MmForked(0, 1)))
    assert world.mms[1] == world.mms[0]
    assert world.task("a0").forking == (0, 1)


def test_an_address_space_that_exits_is_forgotten():
    trace = by("gpu0", ev.TlbFilled(0, 2, present(10)), ev.NotifierSubscribed("gpu", 0), ev.MmExited(0))
    world = folded(trace, folded(DEVICE_START))
    assert (world.mms, world.ptes, world.tlbs, world.mirrors) == (FrozenMap(),) * 4
    assert (world.named, world.subscribed) == (FrozenMap(), frozenset())


def test_notifier_ranges_of_two_tasks_are_told_apart():
    range_ = ev.InvalidateBegan(0, 2, 3, NotifyReason.CLEAR, None)
    opened = folded(by("b0", range_) + by("a0", range_))
    assert opened == folded(by("a0", range_) + by("b0", range_))
    left = folded(by("a0", ev.InvalidateEnded(0, 2, 3)), opened)
    assert [each.task for each in left.invalidations[0]] == ["b0"]


def test_a_copied_flag_moves_charge_and_dirtiness():
    charged = by("a0", ev.FolioAllocated(3, 1, locked=True), ev.FolioDirtied(1), ev.FlagsMoved(1, 3))
    world = folded(charged, folded(BOOT + system_page()))
    assert (world.frame(1).charged, world.frame(3).charged, world.frame(3).dirty) == (False, True, True)


def test_an_event_about_nothing_leaves_the_very_same_world():
    world = folded(DEVICE_START)
    for event in (ev.FolioLockMissed(10), ev.Chose("alloc", 0), ev.DrainEnded(), ev.PteRead(0, 2, private(10))):
        assert fold(world, ev.Step("a0", 0, event)) is world


def test_a_frozen_map_is_its_content():
    one = FrozenMap({1: "a", 2: "b"})
    two = FrozenMap().set(2, "b").set(3, "c").set(1, "a").drop(3)
    assert one == two
    assert hash(one) == hash(two)
    assert one.set(1, "z") != one
    assert (one.drop(9), len(one), 2 in one, sorted(one)) == (one, 2, True, [1, 2])
    assert one.drop_all([1, 7]) == FrozenMap({2: "b"})
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


def test_a_frozen_maps_hash_follows_its_changes():
    one = FrozenMap({1: "a"})
    hash(one)
    changed = one.set(1, "b").set(2, "c").drop(1)
    assert hash(changed) == hash(FrozenMap({2: "c"}))
    assert repr(changed) == "FrozenMap({2: 'c'})"


def test_entries_are_found_by_what_they_name():
    world = folded(BOOT + by("a0", ev.PteChanged(0, 2, PTE_NONE, migration(1)), ev.PteChanged(0, 5, PTE_NONE, present(1))))
    assert world.migration_entries(1) == [(0, 2)]
    assert world.named[1] == {(0, 2), (0, 5)}
    cleared = folded(by("a0", ev.PteChanged(0, 2, migration(1), PTE_NONE)), world)
    assert cleared.named[1] == {(0, 5)}
    assert evolve(cleared, ptes=FrozenMap(), named=FrozenMap()) == folded(BOOT)
