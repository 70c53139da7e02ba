"""The table-speed search against slow formulations of the same: live coroutines re-run from the start, the streaming judge."""

from __future__ import annotations

import random

import pytest

from migrate_vma_conformance.explore.graph import explore
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.scenarios import SCENARIOS, build
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import GENERATIONS
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import REGISTRY


def system_of(scenario, generation, driver="test_hmm"):
    return build(SCENARIOS[scenario], GENERATIONS[generation], DRIVERS[SCENARIOS[scenario].driver or driver])


def walk(run, seed, limit=2000):
    draw = random.Random(seed)
    while able := run.runnable():
        task = draw.choice(able)
        question = run.question(task)
        yield task, draw.randrange(question[2]) if question else 0
        limit -= 1
        if not limit:
            return


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    ("scenario", "preemption"), [("fault2", Preemption.FULL), ("drain", Preemption.VOLUNTARY), ("fault-short", Preemption.FULL)]
)
def test_the_space_and_a_run_offer_the_same_steps_and_leave_the_same_values(scenario, preemption, generation, seed):
    system = system_of(scenario, generation)
    space, run = Space(system, preemption), Run(system, preemption)
    state = space.first
    assert tuple(run.trace) == space.steps
    for task, answer in walk(run, seed, 400):
        following = {(move.task, move.answer): (move, target) for move, target in space.successors(state)}
        assert sorted({number for number, _ in following}) == run.runnable()
        move, state = following[task, answer]
        assert tuple(run.step(task, answer)) == move.steps
        assert all(run.value(key) == space.value(state, key) for key in system.slots)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("scenario", ["fault-munmap", "fault-short", "migrate-watched"])
def test_the_search_finds_the_states_that_running_every_schedule_finds(scenario, generation):
    """Without automata and tables: every state by value, each reached by a run from the start."""
    system = system_of(scenario, generation)
    graph = explore(Space(system, Preemption.FULL), Product([], frozenset()))
    seen, work = set(), [()]
    ends = 0
    while work:
        path = work.pop()
        run = Run(system, Preemption.FULL)
        for task, answer in path:
            run.step(task, answer)
        key = (run.state_key(), run.stopped)
        if key not in seen:
            seen.add(key)
            able = run.runnable()
            ends += not able
            for task in able:
                question = run.question(task)
                work.extend((*path, (task, answer)) for answer in range(question[2] if question else 1))
        run.close()
    assert len(seen) == len(graph.states)
    assert ends == sum(not out for out in graph.out)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_contract_automaton_and_the_streaming_judge_agree(generation, seed):
    capabilities = GENERATIONS[generation].capabilities
    run = Run(system_of("fault2-forked", generation), Preemption.FULL)
    product, judge = Product(REGISTRY.values(), capabilities), Judge(capabilities)
    ours, theirs = set(), {clause for clause, _ in judge.feed_all(run.trace)}
    number, broken = product.follow(product.first, tuple(run.trace))
    ours.update(each.clause for each in broken)
    for task, answer in walk(run, seed):
        steps = run.step(task, answer)
        number, broken = product.follow(number, tuple(steps))
        ours.update(each.clause for each in broken)
        theirs.update(clause for clause, _ in judge.feed_all(steps))
        assert ours == theirs
        assert product.world(number) == judge.world
    assert product.reached == judge.reached
