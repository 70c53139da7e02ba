"""Executions of scenarios under drawn schedules, for those who judge whole traces."""

from __future__ import annotations

import itertools

from migrate_vma_conformance.explore.sampling import End, end_of, mixture
from migrate_vma_conformance.unit import Unit, subject_of
from migrate_vma_impl.machine.run import Run

STEPS = 800
ENDED = (End.FINISHED, End.STUCK)


def executions(one: Unit, number: int):
    """(trace, capabilities, whether no task takes a step any more) of so many executions."""
    subject = subject_of(one)
    for strategy in itertools.islice(mixture(subject, one.seed), number):
        run = Run(subject.system, subject.preemption)
        steps = 0
        while steps < STEPS and (pick := strategy.pick(run)) is not None:
            run.step(*pick)
            steps += 1
        end, trace = end_of(run), tuple(run.trace)
        run.close()
        yield trace, subject.capabilities, end in ENDED
