"""Steps made in a row come to the same as steps made one by one."""

from __future__ import annotations

import random

import pytest

from migrate_vma_conformance.explore.replay import Follower
from migrate_vma_conformance.workbench import Drawn, Workbench
from migrate_vma_conformance.workload import Act, Operation
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import GENERATIONS
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Answer, Schedule, Switch
from migrate_vma_impl.machine.system import Preemption

ACTS = (Act.READ, Act.WRITE, Act.TO_DEVICE, Act.EVICT, Act.DISCARD, Act.FORK, Act.PIN)


def one_by_one(system, follower):
    run, path = Run(system, Preemption.FULL), []
    while (pick := follower.pick(run)) is not None:
        path.append(pick)
        run.step(*pick)
    return run, path


def in_rows(system, follower):
    run, path = Run(system, Preemption.FULL), []
    while made := follower.advance(run):
        path += made
    return run, path


def drawn_schedule(draw, tasks):
    switches = [Switch(draw.randrange(tasks), draw.randrange(60), draw.randrange(tasks)) for _ in range(draw.randrange(6))]
    answers = [Answer(draw.randrange(1, tasks), "alloc_page in migrate_to_ram", 0, 1)]
    return Schedule(tuple(switches), tuple(answers), draw.choice([None, 10, 100]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_schedule_is_followed_to_the_same_steps(generation, seed):
    draw = random.Random(seed)
    config = Config(system_frames=6, addresses=2)
    bench = Workbench(DRIVERS["test_hmm"], GENERATIONS[generation], config, Preemption.FULL)
    for _ in range(4):
        operations = [Operation(draw.choice(ACTS), cpu, addr=draw.randrange(2)) for cpu in range(draw.choice([1, 2, 3]))]
        switches = tuple((draw.randrange(3), draw.randrange(64), draw.randrange(2)) for _ in range(draw.randrange(5)))
        actors = bench.plan(operations)
        if not actors:
            continue
        burst = bench.burst(actors, Drawn(switches, ((draw.randrange(3), draw.randrange(3)),)))
        schedule = drawn_schedule(draw, len(burst.system.tasks) + 1)
        (stepped, path), (run, rows) = one_by_one(burst.system, Follower(schedule)), in_rows(burst.system, Follower(schedule))
        assert rows == path
        assert (run.trace, run.offsets, run.values()) == (stepped.trace, stepped.offsets, stepped.values())
        again = Run(burst.system, Preemption.FULL)
        said = [step for pick in burst.path for step in again.step(*pick)]
        assert tuple(said) == burst.steps
        assert tuple(again.offsets) == burst.offsets
        for each in (stepped, run, again):
            each.close()
