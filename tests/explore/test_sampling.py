"""Sampling and lockstep: what they find in known bugs, and that they find the same everywhere."""

from __future__ import annotations

import itertools
import time

import pytest

from migrate_vma_conformance.explore.explain import record, smallest_break, smallest_deadlock
from migrate_vma_conformance.explore.lockstep import explain_cycle, find_lasso
from migrate_vma_conformance.explore.replay import Follower, check_cycle
from migrate_vma_conformance.explore.sampling import (
    End,
    Pct,
    RandomWalk,
    mixture,
    sample,
)
from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.bugs.collection import find_bug
from migrate_vma_impl.generations import REFERENCED, TRYLOCKED, UNREFERENCED, WAITING
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_impl.machine.system import Preemption, System
from migrate_vma_spec.registry import Progress
from tests.explore.subjects import faults, subject
from tests.machine.toy import B, add, lock, read, system, unlock, write
from tests.processes import printed_under_any_order_of_hashes


def with_bug(name):
    return subject("fault2", find_bug(name).record)


def walks(count):
    return (RandomWalk(number) for number in range(count))


def pct(of, count):
    return (Pct(number, len(of.system.tasks), 2 + number % 3, 80) for number in range(count))


STRATEGIES = {"walk": lambda of: walks(60), "pct": lambda of: pct(of, 60), "mixture": lambda of: mixture(of, 0)}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finds_the_page_that_is_gone(strategy):
    """The bug that 16ce101db85d mended: without a reference the page is freed under the driver's feet."""
    of = subject("fault2", UNREFERENCED)
    samples = sample(of, STRATEGIES[strategy](of), executions=60)
    assert "C50" in samples.broken
    schedule, recording = smallest_break(of, samples.broken["C50"], "C50")
    assert len(schedule.switches) <= 3
    assert recording.stacks
    assert "C50" in record(of, schedule).broken


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finds_a_mutation_of_one_step(strategy):
    of = with_bug("B07")
    assert "C36" in sample(of, STRATEGIES[strategy](of), executions=5).broken


@pytest.mark.slow
def test_a_sound_protocol_breaks_nothing_and_its_clauses_are_reached():
    of = subject("fault2", WAITING)
    samples = sample(of, mixture(of, 1), executions=20)
    assert (samples.executions, samples.ends[End.FINISHED]) == (20, 20)
    assert not samples.broken
    assert samples.stuck is None
    assert {"C41", "C50", "C57"} <= samples.reached


@pytest.mark.slow
def test_a_lost_wake_up_is_found_as_a_stuck_execution():
    of = with_bug("wake_up_lost")
    samples = sample(of, pct(of, 60), executions=60)
    assert samples.stuck is not None
    schedule, recording = smallest_deadlock(of, samples.stuck)
    assert recording.stuck
    assert len(schedule.switches) <= 3


def test_a_deadline_ends_sampling_and_a_limit_cuts_an_execution():
    of = subject("fault2", WAITING)
    assert sample(of, mixture(of, 0), executions=9, deadline=time.monotonic() - 1).executions == 0
    cut = sample(of, mixture(of, 0), executions=2, steps=3)
    assert cut.ends[End.CUT] == 2


def toy_subject(*functions):
    toy = system(*functions)
    made = System(toy.slots, toy.prologue, toy.tasks, toy.cpus, toy.fallible)
    return type(subject("fault2", WAITING))(made, Preemption.FULL, (), frozenset())


def test_what_a_task_raises_is_kept_with_its_schedule():
    async def careful():
        if await read(B):
            raise ValueError("seen")

    of = toy_subject(careful, lambda: write(B, True))
    samples = sample(of, walks(20), executions=20)
    (error,) = samples.errors
    assert "seen" in error
    assert samples.ends[End.RAISED]
    assert record(of, samples.errors[error]).errors == (error,)


def test_pct_lets_the_highest_priority_run_but_at_its_change_points():
    async def three():
        for _ in range(3):
            await add(B, 1)

    of = toy_subject(three, three)
    run, strategy = Run(of.system, of.preemption), Pct(4, 2, 1, 8)
    order = []
    while (pick := strategy.pick(run)) is not None:
        order.append(pick[0])
        run.step(*pick)
    assert len(set(order)) == 2
    assert order == sorted(order, key=order.index), "of depth 1: one task after the other"


def test_a_task_that_waits_for_one_that_never_runs_again_is_cut():
    async def one():
        await lock()
        while not await read(B):
            pass
        await unlock()

    async def other():
        await lock()
        await write(B, True)
        await unlock()

    samples = sample(toy_subject(one, other), walks(8), executions=8, steps=40)
    assert samples.ends[End.CUT], "one looks for what the other can only do with its lock"
    assert samples.ends[End.FINISHED], "unless the other came first"


def test_a_walk_that_stays_changes_task_less_often():
    def changes(stay):
        of = subject("fault2", WAITING)
        run, strategy = Run(of.system, of.preemption), RandomWalk(0, stay=stay)
        order = []
        while (pick := strategy.pick(run)) is not None:
            order.append(pick[0])
            run.step(*pick)
        return sum(one != other for one, other in itertools.pairwise(order))

    assert changes(0.9) < changes(0.0) / 2


PRINT = """
import sys
from migrate_vma_conformance.explore.sampling import mixture, sample
from migrate_vma_impl.generations import UNREFERENCED
from tests.explore.subjects import subject
of = subject("fault2", UNREFERENCED)
samples = sample(of, mixture(of, 3), executions=12)
print(samples.broken, samples.ends, sorted(samples.reached))
"""


@pytest.mark.slow
def test_samples_are_the_same_in_every_process_and_for_every_order_of_hashes():
    (said,) = printed_under_any_order_of_hashes(PRINT)
    assert "C41" in said


# ---- lockstep --------------------------------------------------------------------------------------------------------


def assert_is_fair(of, found, fairness, *, defaults=True):
    check = check_cycle(of.system, of.preemption, found.schedule, fairness, defaults=defaults)
    assert (check.recurs, check.fair) == (True, True)
    schedule, recording = explain_cycle(of, found)
    assert schedule.cycle is not None
    assert recording.steps[recording.offsets[schedule.cycle] :] == found.steps


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [3, 4])
def test_lockstep_finds_the_livelock_of_many_cpus(cpus):
    """Too large to exhaust in this time."""
    of = subject(faults(cpus), REFERENCED)
    found = find_lasso(of, Fairness.STRONG)
    assert found is not None
    assert found.kind is Progress.LIVELOCK
    assert {step.task for step in found.steps} == {f"t{number}" for number in range(1, cpus + 1)}
    assert_is_fair(of, found, Fairness.STRONG)


@pytest.mark.slow
def test_lockstep_finds_the_starved_worker():
    of = subject("drain", TRYLOCKED, preemption=Preemption.VOLUNTARY)
    found = find_lasso(of, Fairness.STRONG)
    assert found is not None
    assert found.kind is Progress.STARVATION
    assert_is_fair(of, found, Fairness.STRONG)


@pytest.mark.slow
def test_lockstep_finds_the_endless_retry_where_memory_stays_short():
    of = subject("fault-short", WAITING)
    found = find_lasso(of, Fairness.STRONG, refuse=True)
    assert found is not None
    assert found.kind is Progress.ENDLESS_RETRY
    assert_is_fair(of, found, Fairness.STRONG, defaults=False)
    assert find_lasso(of, Fairness.STRONG) is None, "with memory to be had it makes progress"


@pytest.mark.slow
def test_lockstep_finds_nothing_where_losers_sleep():
    assert find_lasso(subject("fault2", WAITING), Fairness.WEAK) is None


def test_a_finished_run_is_followed_to_its_end():
    of = subject("fault2", WAITING)
    samples = sample(of, [Follower(Schedule())], executions=5)
    assert (samples.executions, samples.ends[End.FINISHED]) == (1, 1)
