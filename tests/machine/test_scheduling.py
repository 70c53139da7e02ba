"""Preemption models, spinlocks and daemons: the state space against brute force, and the direct run against the state space."""

from __future__ import annotations

import random

import pytest

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import (
    Mutex,
    RwSem,
    SpinLock,
    down_read,
    down_write,
    mutex_lock,
    mutex_unlock,
    spin_lock,
    spin_unlock,
    up_read,
    up_write,
)
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_spec.events import WorkDone
from tests.machine.toy import A, B, add, ends_of_brute_force, ends_of_space, lock, nothing, read, system, unlock, write

SPIN, MUTEX, SEM = SpinLock("spin"), Mutex("mutex"), RwSem("sem")


def locked_system(*functions, cpus=None):
    toy = system(*functions, cpus=cpus)
    slots = {**toy.slots, SPIN: SPIN.free, MUTEX: MUTEX.free, SEM: SEM.free}
    return System(slots, toy.prologue, toy.tasks, toy.cpus)


async def increment_without_a_lock():
    value = await read(A)
    await write(A, value + 1)


async def increment_under_a_spinlock():
    await spin_lock(SPIN)
    await increment_without_a_lock()
    await spin_unlock(SPIN)


async def increment_under_a_mutex():
    await mutex_lock(MUTEX)
    await increment_without_a_lock()
    await mutex_unlock(MUTEX)


async def increment_as_a_writer():
    await down_write(SEM)
    await increment_without_a_lock()
    await up_write(SEM)


async def read_as_a_reader():
    await down_read(SEM)
    first, second = await read(A), await read(A)
    await up_read(SEM)
    await write(B, first == second)


async def increment_with_a_point():
    value = await read(A)
    await traps.cond_resched()
    await write(A, value + 1)


async def increment_with_a_might_sleep():
    value = await read(A)
    await traps.might_sleep()
    await write(A, value + 1)


async def increment_around_a_mutex():
    value = await read(A)
    await mutex_lock(MUTEX)
    await mutex_unlock(MUTEX)
    await write(A, value + 1)


PROGRAMS = {
    "and a mutex": increment_around_a_mutex,
    "without a lock": increment_without_a_lock,
    "under a spinlock": increment_under_a_spinlock,
    "under a mutex": increment_under_a_mutex,
    "as a writer": increment_as_a_writer,
    "with a point": increment_with_a_point,
    "with a might_sleep": increment_with_a_might_sleep,
}


def finals(ends, number=0):
    return {cells[number][1] for _, (cells, _) in ends}


@pytest.mark.parametrize("preemption", Preemption)
@pytest.mark.parametrize("cpus", [(0, 1), (0, 0)], ids=["two CPUs", "one CPU"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_state_space_has_the_ends_of_brute_force(program, cpus, preemption):
    toy = locked_system(program, program, cpus=cpus)
    assert ends_of_space(toy, preemption)[0] == ends_of_brute_force(toy, preemption)


@pytest.mark.parametrize("program", ["under a spinlock", "under a mutex", "as a writer"])
def test_a_lock_excludes(program):
    assert finals(ends_of_space(locked_system(PROGRAMS[program], PROGRAMS[program]))[0]) == {2}


def test_without_a_lock_an_increment_is_lost():
    assert finals(ends_of_space(locked_system(increment_without_a_lock, increment_without_a_lock))[0]) == {1, 2}


def test_readers_share_and_exclude_a_writer():
    ends, _ = ends_of_space(locked_system(read_as_a_reader, increment_as_a_writer))
    assert finals(ends, 1) == {True}


@pytest.mark.parametrize(
    ("program", "preemption", "lost"),
    [
        ("without a lock", Preemption.FULL, True),
        ("without a lock", Preemption.VOLUNTARY, False),
        ("with a point", Preemption.VOLUNTARY, True),
        ("with a point", Preemption.NONE, True),
        ("with a might_sleep", Preemption.VOLUNTARY, True),
        ("with a might_sleep", Preemption.NONE, False),
        ("under a spinlock", Preemption.FULL, False),
        ("and a mutex", Preemption.VOLUNTARY, True),
        ("and a mutex", Preemption.NONE, False),
    ],
)
def test_where_a_task_can_lose_its_cpu(program, preemption, lost):
    toy = locked_system(PROGRAMS[program], PROGRAMS[program], cpus=(0, 0))
    assert (1 in finals(ends_of_space(toy, preemption)[0])) is lost


def test_two_locks_in_two_orders_deadlock():
    async def one():
        await lock()
        await mutex_lock(MUTEX)
        await mutex_unlock(MUTEX)
        await unlock()

    async def other():
        await mutex_lock(MUTEX)
        await lock()
        await unlock()
        await mutex_unlock(MUTEX)

    assert {kind for kind, _ in ends_of_space(locked_system(one, other))[0]} == {"ended", "stuck"}


def _pop(queue):
    return ((queue[1:],), queue[0], WorkDone(str(queue[0]))) if queue else None


async def worker():
    while True:
        await add(A, await traps.sleep_until(_pop, B))


async def give_work():
    await write(B, (1, 2))


def test_a_daemon_works_until_there_is_nothing_to_do_and_is_not_waited_for():
    toy = system(give_work, b=())
    toy = System({**toy.slots, B: ()}, Task("init", 0, nothing), (*toy.tasks, Task("kworker/0", 0, worker, daemon=True)), 1)
    ends, _ = ends_of_space(toy)
    assert {kind for kind, _ in ends} == {"ended"}
    assert finals(ends) == {3}


@pytest.mark.parametrize("preemption", Preemption)
@pytest.mark.parametrize("seed", range(5))
def test_a_run_and_the_state_space_offer_the_same_steps_and_leave_the_same_trace(seed, preemption):
    toy = locked_system(
        increment_under_a_spinlock, increment_with_a_point, read_as_a_reader, increment_as_a_writer, cpus=(0, 0, 1, 1)
    )
    space, run, draw = Space(toy, preemption), Run(toy, preemption), random.Random(seed)
    state = space.first
    while following := space.successors(state):
        assert run.runnable() == sorted({move.task for move, _ in following})
        move, state = draw.choice(following)
        assert tuple(run.step(move.task, move.answer)) == move.steps
        assert all(run.value(key) == space.value(state, key) for key in toy.slots)
    assert run.runnable() == []
    assert run.finished
