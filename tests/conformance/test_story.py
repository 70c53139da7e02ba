"""What is told of an execution: what is left out, what is told as one, and that a cycle is as short as it can be."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.report.execution import Execution, rolled
from migrate_vma_conformance.report.story import tell
from migrate_vma_spec import events as e
from migrate_vma_spec.events import Step
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, NotifyReason, Pte, PteKind, migrate_pfn

DEVICE, MIGRATION = Pte(PteKind.DEVICE_PRIVATE, 8), Pte(PteKind.MIGRATION, 8)
CLEARED, REPLACED = e.PteChanged(0, 0, DEVICE, PTE_NONE), e.PteChanged(0, 0, PTE_NONE, MIGRATION)
OWN_LIFE = (
    e.FolioAllocated(3, 1, locked=False),
    e.FolioLocked(3, blocking=False),
    e.PageCopied(8, 3),
    e.FolioUnlocked(3),
    e.FolioPut(3, 0),
    e.FolioFreed(3),
)
END = e.Oops("the end")


def execution(*events, **about):
    """Of one task, unless a pair names another."""
    pairs = [each if isinstance(each, tuple) else ("t1", each) for each in events]
    steps = tuple(Step(task, int(task[1:]) - 1, event) for task, event in pairs)
    return Execution(steps, (("do_swap_page",),) * len(steps), **about)


def words(*events, **about):
    return [line.words for line in tell(execution(*events, **about))]


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_a_page_that_one_task_took_and_freed_is_left_out():
    assert words(*OWN_LIFE, END) == ["OOPS: the end"]


def test_a_page_that_somebody_else_touched_is_told():
    seen = (*OWN_LIFE[:2], ("t2", e.FolioLockMissed(3)), *OWN_LIFE[2:], END)
    assert "trylock page 3 fails" in words(*seen)
    assert "free 3" in words(*seen)


def test_a_page_that_was_mapped_is_told():
    mapped = e.PteChanged(0, 0, PTE_NONE, Pte(PteKind.PRESENT, 3))
    assert "free 3" in words(*OWN_LIFE[:3], mapped, *OWN_LIFE[3:], END)


def test_a_page_that_lives_on_is_told():
    assert words(*OWN_LIFE[:2], END)[:2] == ["alloc 3, refs 1", "trylock page 3 works"]


def test_a_page_that_the_break_is_about_is_told():
    assert "alloc 3, refs 1" in words(*OWN_LIFE)


def test_a_readers_share_of_a_lock_is_told_only_where_somebody_waits():
    taken = e.LockTaken("mmap_lock:0", LockMode.READ)
    assert words(taken, END) == ["OOPS: the end"]
    assert words(taken, END, waiting=True)[0] == "lock mmap_lock:0 read"


def test_of_a_lock_that_is_held_at_the_end_only_the_last_take_is_told():
    taken, dropped = e.LockTaken("ptl:0", LockMode.SPIN), e.LockDropped("ptl:0", LockMode.SPIN)
    assert words(taken, dropped, taken, END) == ["lock ptl:0", "OOPS: the end"]


def test_a_lock_that_is_taken_anew_in_each_round_is_left_out_of_a_cycle():
    taken, dropped = e.LockTaken("mmap_lock:0", LockMode.READ), e.LockDropped("mmap_lock:0", LockMode.READ)
    fault = e.FaultBegan(0, 0, write=True)
    assert words(taken, fault, dropped, taken, fault, cycle_start=2) == ["fault mm0:0 write"] * 2


def test_a_lock_that_is_held_all_the_way_through_a_cycle_is_told():
    taken = "t2", e.LockTaken("lru_add_drain_all:0", LockMode.SLEEP)
    assert words(taken, e.FolioLockMissed(8), cycle_start=1) == ["lock lru_add_drain_all:0", "trylock page 8 fails"]


def test_what_nobody_waits_for_is_left_out_of_a_cycle():
    data = e.FolioDirtied(8), e.TlbFlushed(0, 0, 1), e.PageCopied(8, 3)
    assert words(*data, END)[:3] == ["dirty 8", "tlb flush mm0:0", "copy 8 -> 3"]
    assert words(*data, e.FolioLockMissed(8), cycle_start=3) == ["trylock page 8 fails"]


def test_a_notifier_is_told_where_a_device_uses_the_page():
    invalidated = e.InvalidateBegan(0, 0, 1, NotifyReason.CLEAR, None)
    assert words(invalidated, END) == ["OOPS: the end"]
    assert "invalidate start mm0:0 clear" in words(e.DeviceMapped("hmm", 0, 0, 8, write=True), invalidated, END)


def test_pages_that_leave_src_as_it_was_return_nothing_worth_telling():
    src = (migrate_pfn(8) | 2,)
    called = e.PagesCalled(0, src, (0,), vma=True)
    assert "pages done, src [8m]" not in words(called, e.PagesReturned(0, src), END)
    assert "pages done, src [8]" in words(called, e.PagesReturned(0, (migrate_pfn(8),)), END)


def test_everything_is_told_where_that_is_asked_for():
    assert len(tell(execution(*OWN_LIFE, END), show_all=True)) == len(OWN_LIFE) + 1


# ---- what is told as one ---------------------------------------------------------------------------------------------


def test_an_entry_that_is_cleared_and_set_is_told_as_one_change():
    lines = tell(execution(CLEARED, REPLACED, END))
    assert [(line.number, line.words) for line in lines[:1]] == [(1, "pte mm0:0 device 8 -> migration 8")]


def test_an_entry_and_the_count_of_its_mappings_are_told_as_one_change():
    assert words(CLEARED, REPLACED, e.RmapRemoved(8, 0, 0, 1), END)[0] == "pte mm0:0 device 8 -> migration 8, maps 1"
    back = e.PteChanged(0, 0, MIGRATION, DEVICE)
    assert words(e.RmapAdded(8, 0, 0, 1, exclusive=False), back, END)[0] == "pte mm0:0 migration 8 -> device 8, maps 1"


def test_two_changes_with_another_step_between_them_stay_two():
    assert len(words(CLEARED, e.TlbFlushed(0, 0, 1), REPLACED, END)) == 4
    assert len(words(CLEARED, ("t2", e.FolioLockMissed(8)), REPLACED, END)) == 4
    assert len(words(CLEARED, evolve(REPLACED, addr=1), END)) == 3


def test_two_changes_are_not_told_as_one_across_the_beginning_of_a_cycle():
    assert len(words(CLEARED, REPLACED, e.FolioLockMissed(8), cycle_start=1)) == 3


# ---- cycles ----------------------------------------------------------------------------------------------------------


def test_a_cycle_begins_as_early_as_its_steps_repeat():
    a, b, c = e.FolioGot(8, 2), e.FolioPut(8, 1), e.FolioGot(9, 1)
    short = rolled(execution(c, a, b, a, b, cycle_start=3))
    assert [step.event for step in short.steps] == [c, a, b]
    assert (short.cycle_start, len(short.stacks)) == (1, 3)


def test_a_cycle_is_turned_where_only_a_part_of_the_way_repeats():
    a, b, c = e.FolioGot(8, 2), e.FolioPut(8, 1), e.FolioGot(9, 1)
    short = rolled(execution(c, b, a, b, cycle_start=2))
    assert [step.event for step in short.steps] == [c, b, a]
    assert short.cycle_start == 1


def test_a_cycle_whose_way_does_not_repeat_is_left_alone():
    whole = execution(e.FolioGot(8, 2), e.FolioGot(9, 2), e.FolioPut(8, 1), cycle_start=1)
    assert rolled(whole) == whole
    assert rolled(execution(END)) == execution(END)


def test_the_same_event_in_another_function_does_not_repeat():
    a, b = e.FolioGot(8, 2), e.FolioPut(8, 1)
    whole = evolve(execution(a, b, a, b, cycle_start=2), stacks=(("f",), ("f",), ("g",), ("g",)))
    assert rolled(whole) == whole
