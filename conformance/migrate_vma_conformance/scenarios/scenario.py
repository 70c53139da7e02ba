"""What a scenario is, and the system that is built of it for a generation and a driver."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import frozen

from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.drivers.wide import make_wide
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.vocabulary import Capability

MakeCore = Callable[[Generation, Config], Kernel]
Act = Callable[[Kernel, Driver], Coroutine[Any, Any, None]]


@frozen
class Actor:
    """A task of a scenario: a name, the CPU that it is pinned to, and what it does."""

    name: str
    cpu: int
    act: Act


@frozen
class Scenario:
    """`short`: allocations may fail. `workers`: CPUs have their workers. `driver`: a built-in driver that plays instead.

    `loads` are the operations that a driver must offer for the scenario to make sense; without them it is not run. `judges` are
    the clauses that it is judged by: where the scenario itself calls the kernel wrongly, nobody else is to be blamed for it.
    `adds_to` are the clauses to whose evidence it belongs, where that is not all of them; what it breaks counts for every
    clause. With `lockstep` a fair cycle is looked for before the whole state graph is. It is run on generations that have what
    it `requires`, and shows nothing on others. `another`: there is a second device of that name, with the wide driver.
    """

    name: str
    sentence: str
    config: Config
    prologue: Act
    actors: tuple[Actor, ...]
    progress: tuple[str, ...] = ()
    preemption: tuple[Preemption, ...] = (Preemption.FULL,)
    short: bool = False
    workers: bool = False
    driver: str | None = None
    loads: frozenset[Load] = frozenset({Load.TO_DEVICE})
    quick: bool = False
    judges: frozenset[str] | None = None
    adds_to: frozenset[str] | None = None
    lockstep: bool = False
    requires: frozenset[Capability] = frozenset()
    another: bool = False

    def concerns(self, clause: str) -> bool:
        return self.judges is None or clause in self.judges

    def is_evidence_for(self, clause: str) -> bool:
        return self.concerns(clause) and (self.adds_to is None or clause in self.adds_to)


def build(
    scenario: Scenario, generation: Generation, make_driver: Callable[[Kernel], Driver], make_core: MakeCore = Kernel
) -> System:
    """The system that the machine runs. Whatever the factory or the driver raises goes to the caller."""
    kernel = make_core(generation, scenario.config)
    driver = make_driver(kernel)
    kernel.attach(driver)
    if scenario.another:
        kernel.attach(make_wide(kernel, "another"))
    workers = tuple(
        Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True)
        for cpu in range(scenario.config.cpus if scenario.workers else 0)
    )
    actors = tuple(Task(actor.name, actor.cpu, _act, (actor.act, kernel, driver)) for actor in scenario.actors)
    prologue = Task("init", 0, _boot, (scenario.prologue, kernel, driver))
    return System(kernel.slots(), prologue, (*workers, *actors), scenario.config.cpus, scenario.short)


async def _boot(prologue: Act, kernel: Kernel, driver: Driver) -> None:
    await kernel.boot()
    await prologue(kernel, driver)


async def _act(act: Act, kernel: Kernel, driver: Driver) -> None:
    await act(kernel, driver)
