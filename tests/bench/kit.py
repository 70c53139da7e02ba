"""How fast drawn workloads are lived and judged, a state graph is searched, and a trace is judged.

What is done is the same each time: seeds are fixed. A drawn workload is a whole example of the state machine: Hypothesis draws
it, a kernel lives it, the contract judges it. How many steps there are in one differs from world to world, so steps are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import hypothesis
from attrs import frozen
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.explore.graph import explore
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.fuzz import WORLDS
from migrate_vma_conformance.life import NO_DRAWN, Living
from migrate_vma_conformance.machine import UNFIT_HEALTH_CHECKS, ContractMachine, make_machine
from migrate_vma_conformance.scenarios import SCENARIOS, build
from migrate_vma_conformance.subject import find_generation
from migrate_vma_conformance.workbench import Workbench
from migrate_vma_conformance.workload import Act, Operation
from migrate_vma_impl.drivers.test_hmm import make_test_hmm
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import Step
from migrate_vma_spec.judge import Judge

ROUNDS = 3
EXAMPLES = 60
PLACES: Mapping[str, str] = {"small": "waiting", "swap": "waiting", "huge": "waiting+compound"}
ENDS = frozenset(
    {
        "dmirror_device_evict_chunk locks a folio that it did not get",
        "dmirror_migrate_alloc_and_copy writes to a page that it did not get",
    }
)
"""What the test driver comes to by itself with large folios."""


@frozen
class Speed:
    """So many pieces a second of processor time."""

    name: str
    unit: str
    number: float


def examples(world: str) -> list[Speed]:
    """Examples of the state machine in a world, and the steps that were judged in them."""
    generation = find_generation(PLACES[world])
    everything = frozenset(judged_clauses())
    machine = make_machine(make_test_hmm, generation, config=WORLDS[world], allow=everything, ends=ENDS)
    how = settings(max_examples=EXAMPLES, stateful_step_count=20, deadline=None, phases=(Phase.generate,), database=None)
    how = settings(how, suppress_health_check=UNFIT_HEALTH_CHECKS)
    counted = _Counted()
    seconds = min(_timed(lambda: counted.run(machine, how)) for _ in range(ROUNDS))
    name = f"drawn workloads, world {world}, {generation.name}"
    return [Speed(name, "examples", EXAMPLES / seconds), Speed(name, "judged steps", counted.steps / seconds)]


class _Counted:
    """Runs a machine, and counts the steps that are judged."""

    def __init__(self) -> None:
        self.steps = 0

    def run(self, machine: type[ContractMachine], how: settings) -> None:
        self.steps = 0
        feed = Judge.feed

        def counting(judge: Judge, step: Step) -> list[tuple[str, str]]:
            self.steps += 1
            return feed(judge, step)

        Judge.feed = counting  # type: ignore[method-assign]
        try:
            run_state_machine_as_test(hypothesis.seed(1)(machine), settings=how)
        finally:
            Judge.feed = feed  # type: ignore[method-assign]


def states() -> Speed:
    """States of the two-CPU fault race, searched and judged from nothing."""
    generation = find_generation("waiting")
    system = build(SCENARIOS["fault2"], generation, make_test_hmm)
    found: list[int] = []

    def search() -> None:
        product = Product(judged_clauses().values(), generation.capabilities)
        found.append(len(explore(Space(system, Preemption.FULL), product).states))

    seconds = min(_timed(search) for _ in range(ROUNDS))
    return Speed("search of fault2, waiting", "states", found[0] / seconds)


def events() -> Speed:
    """Events of a trace, judged by every clause as they come: migrations there and back, by the driver and by faults."""
    generation = find_generation("waiting")
    trace = _trace(Living(make_test_hmm, generation))

    def judge() -> None:
        judged = Judge(generation.capabilities, judged_clauses().values())
        judged.feed_all(trace)

    seconds = min(_timed(judge) for _ in range(ROUNDS))
    return Speed("judging of migrations", "events", len(trace) / seconds)


def _trace(living: Living) -> list[Step]:
    bench = Workbench(living.make, living.generation, living.config, living.preemption)
    trace = list(bench.steps)
    for act in (Act.WRITE, Act.TO_DEVICE, Act.TO_SYSTEM, Act.TO_DEVICE, Act.READ, Act.DISCARD) * 20:
        trace += bench.burst(bench.plan([Operation(act)]), NO_DRAWN).steps
    return trace


def _timed(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def speeds() -> list[Speed]:
    return [*(speed for world in PLACES for speed in examples(world)), states(), events()]
