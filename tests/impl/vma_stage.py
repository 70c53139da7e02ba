"""A stage whose runs are judged by the clauses as they go, and a search of all interleavings of a few operations, judged too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.explore.graph import Graph, explore
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.scenarios import Actor, Scenario, build
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import WAITING, Generation
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_impl.mm import syscalls
from migrate_vma_spec.events import Oops, Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import VmFlags
from tests.impl.stage import A, Stage

RW = VmFlags.READ | VmFlags.WRITE
MISSING, WP = VmFlags.UFFD_MISSING, VmFlags.UFFD_WP


class VmaStage(Stage):
    """Operations by name: `stage.call("mprotect", 0, 1, RW)` is one on address space A."""

    def __init__(self, generation: Generation = WAITING, **config: Any) -> None:
        self.judge = Judge(generation.capabilities)
        self.broken: dict[str, str] = {}
        super().__init__(generation, **{"addresses": 6, "system_frames": 6, **config})

    def say(self, player: Any, event: Any) -> None:
        self.broken.update(self.judge.feed(Step(player.name, player.cpu, event)))
        super().say(player, event)

    def call(self, name: str, *values: Any, mm: Any = A, cpu: int = 0) -> Any:
        return self.run(getattr(syscalls, name), self.kernel, mm, *values, cpu=cpu)

    def begin(self, task: str, name: str, *values: Any, mm: Any = A, cpu: int = 0) -> Any:
        return self.start(task, getattr(syscalls, name), self.kernel, mm, *values, cpu=cpu)

    def since(self) -> int:
        return len(self.trace)

    @property
    def free_frames(self) -> int:
        """System frames without a reference."""
        return sum(self.folio(pfn).refcount == 0 for pfn in self.kernel.system_pfns)


def judged(**config: Any) -> Iterator[VmaStage]:
    """The body of a fixture: a stage with three pages, which has broken no clause when the test ends."""
    stage = VmaStage(**{"pages": 3, **config})
    yield stage
    assert not stage.broken, stage.broken


def op(name: str, *values: Any, mm: Any = A) -> Any:
    """A system call as an act of a scenario."""

    async def act(kernel: Any, driver: Any) -> None:
        await getattr(syscalls, name)(kernel, mm, *values)

    return act


def load(name: str, *values: Any) -> Any:
    """An operation of the driver as an act of a scenario."""

    async def act(kernel: Any, driver: Any) -> None:
        await getattr(driver, name)(*values)

    return act


def search(prologue: Any, *acts: Any, generation: Generation = WAITING, most: int = 250_000, **config: Any) -> Graph:
    """Every interleaving of the acts, each on a CPU of its own, after the prologue."""
    sizes = {"cpus": len(acts), "system_frames": 2, "addresses": 3, **config}
    actors = tuple(Actor(f"t{number}", number, act) for number, act in enumerate(acts))
    scenario = Scenario("a race", "a race", Config(**sizes), prologue, actors)
    system = build(scenario, generation, DRIVERS["test_hmm"])
    clauses = [clause for clause in clauses_by_id().values() if clause.applies(generation.capabilities)]
    return explore(Space(system, Preemption.FULL), Product(clauses, generation.capabilities), max_states=most)


def ends(graph: Graph, key: Any) -> set[Any]:
    """The values of a slot in all states where everybody has ended."""
    return {
        graph.space.value(graph.states[number], key)
        for number, out in enumerate(graph.out)
        if out == [] and number not in graph.deadlocks
    }


def oopses(graph: Graph) -> set[str]:
    """What the kernel's own checks found, wherever a search came by one."""
    moves = (move for out in graph.out for move, _ in out or ())
    return {step.event.what for move in moves for step in move.steps if isinstance(step.event, Oops)}
