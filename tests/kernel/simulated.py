"""Executions of the simulated kernel, as a tracer would have shown them, judged both ways."""

from __future__ import annotations

from attrs import frozen

from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.explore.sampling import RandomWalk
from migrate_vma_conformance.kernel.traces.judging import recordings
from migrate_vma_conformance.kernel.traces.lines import Line
from migrate_vma_conformance.kernel.traces.setups import RETURN_ARGUMENTS, header, probes
from migrate_vma_conformance.scenarios import SCENARIOS, build
from migrate_vma_conformance.subject import find_driver
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.judge import Judge
from tests.kernel.projection import Projection

LONGEST = 1500
HEADER = header("7.3.4", "4096", probes(RETURN_ARGUMENTS, "", "any"))


@frozen(eq=False)
class Execution:
    """The lines that probes would show of a run, and the clauses that the whole trace of it breaks."""

    generation: object
    lines: tuple[str, ...]
    broken: frozenset[str]


def execution(scenario, generation, seed, *, driver="test_hmm", **shape):
    """A random walk through a scenario."""
    of = SCENARIOS[scenario]
    system = build(of, generation, DRIVERS[of.driver] if of.driver else find_driver(driver).make)
    run, walk = Run(system, Preemption.FULL), RandomWalk(seed)
    while len(run.trace) < LONGEST and (pick := walk.pick(run)) is not None:
        run.step(*pick)
    trace = tuple(run.trace)
    run.close()
    judge = Judge(generation.capabilities, clauses_by_id().values())
    broken = frozenset(clause for clause, _ in judge.feed_all(trace))
    lines = Projection(generation.capabilities, **shape).take(trace).lines
    return Execution(generation, tuple(lines), broken)


def recorded(lines, generation, *, head=HEADER):
    """The recording of these lines, judged as this generation."""
    (found,) = recordings([Line(number, text) for number, text in enumerate((head, *lines), 1)], "trace", [generation])
    return found


def judged_from(lines, generation, **more):
    """The clauses that these lines break."""
    found = recorded(lines, generation, **more)
    return {clause for jury in found.juries for clause in jury.broken}
