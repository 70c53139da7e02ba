"""The folded world of large folios, leaves, files and swap: what it knows, and that it costs other traces nothing."""

from __future__ import annotations

import pytest

from migrate_vma_spec import events as ev
from migrate_vma_spec.extras import NO_EXTRAS, piece
from migrate_vma_spec.objects import PAGE_KINDS, Held
from migrate_vma_spec.vocabulary import PTE_NONE, Lru, Memory, Pte, PteKind, VmFlags
from migrate_vma_spec.world import World, fold
from tests.spec.edits import before, up_to
from tests.spec.large_fault_traces import DEVICE_SPLIT, HANDED, SPLIT_IN_SETUP
from tests.spec.large_parts import LARGE, LARGE_BOOT, PAGES, TABLE, system_leaf
from tests.spec.large_traces import (
    BIG_CLEARED,
    BIG_INSTALLED,
    BIG_RETURNED,
    BIG_SPLIT,
    BIG_TO_DEVICE,
    SPLIT_IN_PAGES,
)
from tests.spec.parts import BOOT, RW, by, migration, present, private, system_page
from tests.spec.traces import FLOWS


def folded(trace, world=None):
    world = world or World(capabilities=LARGE)
    for step in trace:
        world = fold(world, step)
    return world


LEAF = folded(LARGE_BOOT + system_leaf())


@pytest.mark.parametrize("name", FLOWS)
def test_order_0_anonymous_memory_has_no_extras(name):
    assert folded(FLOWS[name][0]).extras is NO_EXTRAS


def test_a_leaf_says_what_each_of_its_pages_is():
    assert [LEAF.pte(0, addr) for addr in range(3, 9)] == [PTE_NONE, *(present(40 + at) for at in PAGES), PTE_NONE]
    assert LEAF.leaf(0, 6) == (4, present(40))
    assert LEAF.entries(42, PAGE_KINDS) == [(0, 6)]
    assert LEAF.entries(44, PAGE_KINDS) == []
    assert LEAF.is_named(43)


def test_a_page_table_says_nothing_of_its_pages():
    assert piece(TABLE, 2) == PTE_NONE
    assert folded(by("a0", ev.PmdRead(0, 4, 4, TABLE))).pte(0, 5) == PTE_NONE


def test_a_tail_knows_its_head():
    assert [LEAF.head(pfn) for pfn in range(39, 45)] == [39, 40, 40, 40, 40, 44]
    assert LEAF.folio(42) is LEAF.frame(40)
    assert list(LEAF.folio_pages(43)) == [40, 41, 42, 43]
    assert (LEAF.frame(42).allocated, LEAF.frame(42).refcount) == (True, None)


def test_a_folio_that_is_freed_leaves_free_frames():
    world = folded(BIG_TO_DEVICE)
    assert [world.frame(pfn) for pfn in range(40, 44)] == [folded(LARGE_BOOT).frame(pfn) for pfn in range(40, 44)]
    assert dict(world.extras.orders) == {60: 2}
    assert set(world.extras.heads) == {61, 62, 63}


def test_a_migration_entry_of_a_leaf_stands_for_all_its_pages():
    world = folded(up_to(BIG_TO_DEVICE, BIG_INSTALLED))
    assert world.migration_entries(42) == [(0, addr) for addr in range(4, 8)]
    assert world.pte(0, 6) == migration(42, young=True, dirty=True)


def test_what_a_task_cleared_of_a_leaf_is_known_page_by_page():
    world = folded(up_to(BIG_TO_DEVICE, BIG_INSTALLED))
    assert world.task("mig0").cleared[0, 7] == present(43, dirty=True)


def test_a_leaf_that_is_split_maps_the_same_pages():
    split = ev.PmdSplit(0, 4, present(40), tuple(present(40 + at) for at in PAGES))
    world = folded(by("a0", split), LEAF)
    assert world.leaf(0, 5) == (4, TABLE)
    assert world.entries(42, PAGE_KINDS) == [(0, 6)]
    assert world.is_named(41)


def test_the_references_of_the_pages_of_a_leaf_are_taken_at_once():
    trace = before(up_to(BIG_TO_DEVICE, BIG_CLEARED), BIG_CLEARED, ev.FolioGot(40, 5))
    assert dict(folded(trace).task("mig0").calls[0].ledger) == {40: Held(4, 1)}


def test_the_reference_of_the_caller_is_taken_over_where_a_coherent_page_goes_back():
    boot = BOOT + by("boot", ev.FrameAdded(30, Memory.DEVICE_COHERENT, "gpu"), ev.FolioAllocated(30, 2, locked=False))
    lock, get = ev.FolioLocked(30, blocking=True), ev.FolioGot(30, 3)
    taken_over = folded(boot + by("a0", ev.RangeCalled(0, (30,)), lock))
    assert dict(taken_over.task("a0").calls[0].ledger) == {30: Held(1, 1)}
    taken = folded(boot + by("a0", ev.RangeCalled(0, (30,)), get, lock))
    assert dict(taken.task("a0").calls[0].ledger) == {30: Held(1, 1)}


def test_the_parts_of_a_folio_are_the_splitters():
    world = folded(up_to(SPLIT_IN_PAGES, BIG_SPLIT))
    assert world.task("mig0").pages >= {40, 41, 42, 43}
    assert [(world.frame(pfn).lru, world.frame(pfn).charged, world.frame(pfn).dirty) for pfn in (41, 43)] == [
        (Lru.ISOLATED, True, True)
    ] * 2
    assert world.task("mig0").calls[0].ledger[42] == Held(1, 1)
    assert not world.extras.heads


def test_a_split_in_two_leaves_two_folios():
    world = folded(by("a0", ev.FolioSplit(40, 2, 1, (1, 1), (0, 0))), LEAF)
    assert dict(world.extras.orders) == {40: 1, 42: 1}
    assert (world.head(41), world.head(43)) == (40, 42)


def test_the_faults_lock_and_reference_are_owed_to_the_fault_page_until_they_are_handed_over():
    task = folded(up_to(SPLIT_IN_SETUP, DEVICE_SPLIT)).task("cpu1")
    assert task.fault.split
    assert dict(task.calls[0].ledger) == {60: Held(2, 1), 62: Held(1, 1), 63: Held(1, 1)}
    assert not folded(up_to(SPLIT_IN_SETUP, HANDED[2])).task("cpu1").calls[0].ledger


def test_a_walk_through_a_leaf_sets_the_leafs_bits():
    world = folded(by("cpu1", ev.TlbFilled(0, 6, present(42, dirty=True))), LEAF)
    assert world.leaf(0, 4) == (4, present(40, dirty=True))


def test_an_exit_takes_the_leaves_with_it():
    world = folded(by("a0", ev.MmExited(0)), LEAF)
    assert (dict(world.extras.pmds), dict(world.extras.leaves)) == ({}, {})


def test_the_page_cache_and_the_swap_cache_hold_references():
    world = folded(by("a0", ev.PageCacheAdded(1, 0, 3, 2), ev.SwapCacheAdded(1, 7, 3)), folded(BOOT + system_page()))
    assert (world.cache_refs(1), world.frame(1).refcount) == (2, 3)
    moved = folded(by("a0", ev.FolioMoved(1, 2, 3, 3, moved=True)), world)
    assert (moved.cache_refs(1), moved.cache_refs(2)) == (0, 2)
    left = folded(by("a0", ev.PageCacheRemoved(2, 0, 3, 2), ev.SwapCacheRemoved(2, 7, 1)), moved)
    assert left.extras == NO_EXTRAS


def test_a_large_folio_of_the_cache_is_held_page_by_page():
    world = folded(by("a0", ev.SwapCacheAdded(40, 8, 5)), LEAF)
    assert world.cache_refs(42) == 4
    split = folded(by("a0", ev.FolioSplit(40, 2, 0, (1, 1, 1, 1), (0, 0, 0, 0))), world)
    assert dict(split.extras.swapped) == {40: 8, 41: 9, 42: 10, 43: 11}


def test_a_swap_slot_that_nobody_holds_is_forgotten():
    world = folded(by("a0", ev.SwapCounted(7, 1)))
    assert dict(world.extras.swaps) == {7: 1}
    assert folded(by("a0", ev.SwapCounted(7, 0)), world).extras == NO_EXTRAS


def test_a_flush_that_was_put_off_is_owed_until_it_is_made():
    world = folded(by("a0", ev.FlushDeferred(0, 2, 3), ev.FlushDeferred(1, 2, 3), ev.TlbFlushed(0, 0, 8)))
    assert dict(world.extras.owed) == {"a0": {(1, 2, 3)}}
    assert folded(by("a0", ev.OperationEnded("reclaim", 0)), world).extras == NO_EXTRAS


def test_a_page_table_in_hand_is_known_until_it_is_used_or_freed():
    allocated = folded(by("a0", ev.PageTableAllocated(0, 1)))
    assert dict(allocated.extras.spare) == {"a0": 1}
    assert not folded(by("a0", ev.PageTableFreed(0, 0)), allocated).extras.spare
    assert not folded(by("a0", ev.PmdChanged(0, 4, 4, PTE_NONE, private(60))), allocated).extras.spare


def test_new_flags_of_a_part_divide_a_vma():
    world = folded(BOOT + by("a0", ev.VmaChanged(0, 2, 4, VmFlags.READ)))
    assert [(vma.start, vma.end, vma.flags) for vma in world.mms[0]] == [(0, 2, RW), (2, 4, VmFlags.READ), (4, 8, RW)]


def test_mremap_takes_a_file_mapping_along():
    mapped = by("a0", ev.VmaMapped(0, 0, 8, RW, anonymous=False, file=1, index=10), ev.VmaMoved(0, 2, 4, 20))
    vmas = folded(BOOT + mapped).mms[0]
    assert [(vma.start, vma.end, vma.index) for vma in vmas] == [(0, 2, 10), (4, 8, 14), (20, 22, 12)]


def test_an_exclusive_entry_maps_its_page():
    entry = Pte(PteKind.EXCLUSIVE, 1, write=True)
    world = folded(BOOT + system_page() + by("a0", ev.PteChanged(0, 2, present(1), entry)))
    assert world.entries(1, PAGE_KINDS) == [(0, 2)]


def test_the_fault_knows_whether_it_runs_under_the_vmas_lock():
    assert folded(by("a0", ev.FaultBegan(0, 2, write=True, vma_lock=True))).task("a0").fault.vma_lock


def test_a_leaf_in_a_call_is_booked_as_one_reference():
    call = folded(up_to(BIG_TO_DEVICE, BIG_RETURNED)).task("mig0").calls[0]
    assert dict(call.ledger) == {40: Held(1, 1)}
