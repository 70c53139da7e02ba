"""Kernels for the tests of comparisons: cores that answer some operation otherwise, and a witness that is made of a core."""

from __future__ import annotations

import functools

from attrs import define, evolve, field

from migrate_vma_conformance.kernel.commands import Module, Reset, WriteFile
from migrate_vma_conformance.kernel.comparing.core_subject import core_of
from migrate_vma_conformance.kernel.comparing.operations import Observation
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.protocol import Answer
from migrate_vma_conformance.kernel.witness.witness import Ended


@functools.cache
def answered(guest, module, sequence):
    return core_of(guest, module).run(sequence)


@define
class OtherKernel:
    """Answers as the core of a guest does, but for operations of one kind. Counts what it was asked."""

    kind: type
    answer: Observation
    guest: str = "7.3"
    module: Module = Module.MENDED
    asked: int = 0

    @property
    def name(self):
        return self.guest

    def run_all(self, sequences):
        for sequence in sequences:
            self.asked += 1
            yield self._run(sequence)

    def _run(self, sequence):
        seen = answered(self.guest, self.module, sequence)
        place = next((i for i, each in enumerate(sequence) if isinstance(each, self.kind)), None)
        return seen if place is None else (*seen[:place], self.answer, *seen[place + 1 :])


def as_answer(seen):
    """What a guest would have answered."""
    if seen.ended is not None:
        return Ended(Reason.OOPS, seen.ended, "[ 1.0] BUG: so it ended")
    signal = {} if seen.signal is None else {"signal": seen.signal}
    return Answer(seen.result or 0, value=seen.value, cpages=seen.cpages, faults=seen.faults, data=seen.data, **signal)


@define
class CoreWitness:
    """A witness whose guest is a core. It ends as often as its core does, and, if told to, when a store writes this value."""

    name: str = "7.3"
    module: Module = Module.MENDED
    dies_of: int | None = None
    restarts: int = 0
    batches: list[int] = field(factory=list)
    fails: Answer | Ended | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def restart(self):
        self.restarts += 1

    def ask(self, commands):
        self.batches.append(sum(isinstance(command, Reset) for command in commands))
        results = []
        for sequence in self._rounds(commands):
            results += self._answers(sequence)
        ended = next((i for i, each in enumerate(results) if isinstance(each, Ended)), None)
        if ended is None:
            return results
        return [*results[: ended + 1], *[evolve(results[ended], here=False)] * (len(results) - ended - 1)]

    def _rounds(self, commands):
        rounds = []
        for command in commands:
            if isinstance(command, Reset) or not rounds:
                rounds.append([])
            rounds[-1].append(command)
        return rounds

    def _answers(self, commands):
        if self.fails is not None:
            return [self.fails] * len(commands)
        asked = tuple(each for each in commands if not isinstance(each, Reset | WriteFile))
        told = iter([self._died(each, seen) for each, seen in zip(asked, answered(self.name, self.module, asked), strict=True)])
        return [Answer() if isinstance(each, Reset | WriteFile) else as_answer(next(told)) for each in commands]

    def _died(self, operation, seen):
        return Observation(ended="died") if getattr(operation, "value", None) == self.dies_of is not None else seen
