"""What the tests of the sampling strategies run: scenarios of the kit, on a generation, judged by every clause that applies."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.explore.explain import Subject
from migrate_vma_conformance.scenarios import PARENT, SCENARIOS, Actor, build, touch
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.machine.system import Preemption


def subject(scenario, generation, *, preemption=Preemption.FULL, driver="test_hmm"):
    scenario = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    system = build(scenario, generation, DRIVERS[scenario.driver or driver])
    capabilities = generation.capabilities
    clauses = tuple(clause for clause in clauses_by_id().values() if clause.applies(capabilities))
    return Subject(system, preemption, clauses, capabilities)


def faults(cpus):
    """As `fault3`, with so many CPUs."""
    scenario = SCENARIOS["fault3"]
    actors = tuple(Actor(f"t{number + 1}", number, touch(PARENT, 0, write=False)) for number in range(cpus))
    return evolve(scenario, config=evolve(scenario.config, cpus=cpus, system_frames=cpus), actors=actors)
