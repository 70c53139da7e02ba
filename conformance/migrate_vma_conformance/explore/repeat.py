"""Whether a model repeats itself: live coroutines must do what the memoised automata say that they do.

A task is run once for each edge of its automaton, so a model that keeps something where the machine cannot see it (a module's
global, a clock, a random number) could get a verdict that no execution of it bears out. A few walks through its own state graph,
run again step by step, show most of those.
"""

from __future__ import annotations

import random

from migrate_vma_conformance.explore.graph import Graph
from migrate_vma_impl.machine.automaton import CURE, ModelError
from migrate_vma_impl.machine.run import Run
from migrate_vma_spec.events import Step

WALKS = 3
STEPS = 400
"""A walk that is longer goes round a cycle, most likely."""


def check_repeats(graph: Graph, seed: int = 0) -> None:
    """Walk at random, the same walks for the same seed.

    Raises:
        ModelError: some step did not do what it did when the graph was built.
    """
    for walk in range(WALKS):
        run = Run(graph.space.system, graph.space.preemption)
        try:
            _same("the prologue", graph.space.steps, tuple(run.trace))
            _walk(graph, run, random.Random(f"repeat {seed} {walk}"))
        finally:
            run.close()


def _walk(graph: Graph, run: Run, draw: random.Random) -> None:
    state = 0
    for _ in range(STEPS):
        out = graph.out[state]
        if not out:
            return
        move, state = draw.choice(out)
        name = graph.space.tasks[move.task].name
        _same(name, move.steps, tuple(run.step(move.task, move.answer)) if run.can_run(move.task) else ())


def _same(name: str, before: tuple[Step, ...], now: tuple[Step, ...]) -> None:
    if before == now:
        return
    place = next((n for n, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), min(len(before), len(now)))
    both = f"{_told(before, place)} once and {_told(now, place)} another time"
    raise ModelError(f"the model does not repeat itself: after the same answers, {name} did {both}; {CURE}")


def _told(steps: tuple[Step, ...], place: int) -> str:
    return str(steps[place].event) if place < len(steps) else "nothing"
