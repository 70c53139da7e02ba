"""Progress on toy fault paths: which cycles are fair, held against a second formulation, and confirmed on live coroutines."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest

from migrate_vma_conformance.explore.counting import executions
from migrate_vma_conformance.explore.explain import moves_of
from migrate_vma_conformance.explore.graph import explore
from migrate_vma_conformance.explore.liveness import is_fair_cycle, lassos
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.explore.replay import check_cycle, schedule_of
from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.registry import Progress
from tests.explore.toy_faults import faulting, hogging, retrying
from tests.machine.test_soundness import CASES
from tests.machine.toy import A, add, ends_of_brute_force, system


def graph_of(toy, preemption=Preemption.FULL, **limits):
    return explore(Space(toy, preemption), Product([], frozenset()), **limits)


def kinds(graph, fairness):
    return sorted({lasso.kind for lasso in lassos(graph, fairness)}, key=list(Progress).index)


@pytest.mark.parametrize(
    ("protocol", "weak", "strong"),
    [
        ("referenced", [Progress.LIVELOCK], [Progress.LIVELOCK]),
        ("trylocked", [Progress.LIVELOCK], []),
        ("waiting", [], []),
    ],
)
@pytest.mark.parametrize("cpus", [2, 3])
def test_the_three_protocols_make_progress_under_different_fairness(protocol, weak, strong, cpus):
    graph = graph_of(faulting(protocol, cpus))
    assert graph.complete
    assert kinds(graph, Fairness.WEAK) == weak
    assert kinds(graph, Fairness.STRONG) == strong


@pytest.mark.parametrize("fairness", Fairness)
@pytest.mark.parametrize("cpus", [2, 3])
def test_a_lasso_is_fair_by_definition_and_recurs_on_live_coroutines(fairness, cpus):
    toy = faulting("referenced", cpus)
    graph = graph_of(toy)
    for lasso in lassos(graph, fairness):
        assert is_fair_cycle(graph, lasso)
        path = moves_of([*lasso.stem, *lasso.cycle])
        schedule = schedule_of(toy, Preemption.FULL, path, len(lasso.stem))
        check = check_cycle(toy, Preemption.FULL, schedule, fairness)
        assert (check.recurs, check.fair) == (True, True)


def test_a_cycle_of_the_loser_alone_is_fair_only_under_weak_fairness():
    toy = faulting("trylocked", 2)
    lasso = lassos(graph_of(toy), Fairness.WEAK)[0]
    schedule = schedule_of(toy, Preemption.FULL, moves_of([*lasso.stem, *lasso.cycle]), len(lasso.stem))
    assert check_cycle(toy, Preemption.FULL, schedule, Fairness.WEAK).fair
    assert not check_cycle(toy, Preemption.FULL, schedule, Fairness.STRONG).fair


def test_a_retry_that_only_a_default_answer_ends_is_an_endless_retry():
    graph = graph_of(retrying())
    assert kinds(graph, Fairness.STRONG) == [Progress.ENDLESS_RETRY]


@pytest.mark.parametrize(
    ("preemption", "expected"),
    [(Preemption.FULL, []), (Preemption.VOLUNTARY, [Progress.STARVATION]), (Preemption.NONE, [Progress.STARVATION])],
)
def test_a_task_that_polls_without_a_scheduling_point_starves_its_cpu(preemption, expected):
    assert kinds(graph_of(hogging(), preemption), Fairness.STRONG) == expected


def test_a_graph_that_was_cut_short_says_so_and_still_finds_real_cycles():
    graph = graph_of(faulting("referenced", 2), max_states=500)
    assert not graph.complete
    assert graph.cut
    assert all(is_fair_cycle(graph, lasso) for lasso in lassos(graph, Fairness.STRONG))


def fair_parts_second_formulation(graph, fairness):
    """Does a fair cycle exist? By trying every set of states that the tasks which step leave for the tasks which do not."""
    tasks = range(1, len(graph.space.tasks))
    for stepping in itertools.chain.from_iterable(itertools.combinations(tasks, size) for size in range(1, len(tasks) + 1)):
        inside = nx.MultiDiGraph()
        for state, out in enumerate(graph.out):
            able = {move.task for move, _ in out or ()}
            if fairness is Fairness.STRONG and able - set(stepping):
                continue
            inside.add_edges_from((state, target, move.task) for move, target in out or () if move.task in stepping)
        for part in nx.strongly_connected_components(inside):
            taken = {key for a, b, key in inside.edges(keys=True) if a in part and b in part}
            able = [{move.task for move, _ in graph.out[state] or ()} for state in part]
            if (
                taken
                and taken == set(stepping)
                and all(task in taken or not all(task in some for some in able) for task in tasks)
            ):
                return True
    return False


@pytest.mark.parametrize("fairness", Fairness)
@pytest.mark.parametrize("protocol", ["referenced", "trylocked", "waiting"])
def test_a_second_formulation_agrees_on_whether_a_fair_cycle_exists(protocol, fairness):
    graph = graph_of(faulting(protocol, 2))
    assert bool(lassos(graph, fairness)) == fair_parts_second_formulation(graph, fairness)


@pytest.mark.parametrize("protocol", ["referenced", "trylocked"])
def test_components_are_those_of_networkx(protocol):
    graph = graph_of(faulting(protocol, 2))
    following = {state: [target for _, target in out] for state, out in enumerate(graph.out)}
    drawn = nx.DiGraph()
    drawn.add_nodes_from(following)
    drawn.add_edges_from((state, target) for state, targets in following.items() for target in targets)
    assert set(graph.parts()) == {frozenset(part) for part in nx.strongly_connected_components(drawn)}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_executions_are_as_many_as_brute_force_runs(make):
    toy = make()
    schedules = []
    ends_of_brute_force(toy, complete=schedules)
    graph = graph_of(toy)
    assert executions(graph) == len(schedules)


def test_two_tasks_of_two_steps_have_twenty_executions():
    async def task():
        await add(A, 1)
        await add(A, 10)

    # Each task has three transitions: its start and its two steps.
    assert executions(graph_of(system(task, task))) == 20
