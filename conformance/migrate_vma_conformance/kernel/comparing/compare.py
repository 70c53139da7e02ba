"""The same sequences on a kernel, on the simulated core and on the reference model: where their answers differ.

Rules:
- A sequence is compared up to its first difference. An operation differs where the kernel and the core are observed otherwise, or
  where the model does not allow what one of them is observed as.
- Two kernels that end with the same operation agree; how each of them words its end is not compared.
- Without a guest the core is compared with the model alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from typing import Protocol

from attrs import define, field, fields, frozen

from migrate_vma_conformance.kernel.commands import Command, Module
from migrate_vma_conformance.kernel.comparing.core_subject import CoreSubject
from migrate_vma_conformance.kernel.comparing.expectation import Expectation
from migrate_vma_conformance.kernel.comparing.known import Case, Known, recognised
from migrate_vma_conformance.kernel.comparing.model_subject import ModelSubject
from migrate_vma_conformance.kernel.comparing.operations import Observation, Sequence

COMPARED = tuple(each.name for each in fields(Observation) if each.name not in ("ended", "evidence"))
"""What is compared of an observation."""


class Kernel(Protocol):
    """A subject that answers many sequences in one go: a guest."""

    @property
    def name(self) -> str: ...

    def run_all(self, sequences: Several[Sequence]) -> Iterable[tuple[Observation, ...]]: ...


@frozen
class Difference:
    """The first operation of a sequence that was answered in different ways.

    Attributes:
        case: where, and what the kernel (None without one) and the core answered.
        expected: what the model allows.
        who: whose answer is at odds: `kernel` with the core, or the one that the model does not allow.
        why: in words.
        known: the record that it is, if any.
    """

    case: Case
    expected: Expectation
    who: str
    why: str
    known: Known | None = None

    @property
    def sequence(self) -> Sequence:
        """The operations up to this one."""
        return self.case.sequence[: self.case.place + 1]

    @property
    def operation(self) -> Command:
        return self.case.operation

    @property
    def kind(self) -> str:
        """Differences of one kind are looked at as one, until each is explained."""
        return f"{self.case.guest}: {self.operation.verb}: {self.who}"


def differing(one: Observation, other: Observation) -> tuple[str, ...]:
    """The names of what differs."""
    if one.ended is not None or other.ended is not None:
        return () if (one.ended is None) == (other.ended is None) else ("end",)
    return tuple(name for name in COMPARED if getattr(one, name) != getattr(other, name))


def first_difference(
    guest: str, module: Module, sequence: Sequence, kernel: tuple[Observation, ...] | None, core: tuple[Observation, ...]
) -> Difference | None:
    """Where the answers to a sequence are not all the same, and all allowed. `kernel` is None where there is no guest."""
    expected = ModelSubject().follow(sequence, kernel or core)
    for place in range(len(sequence)):
        case = Case(guest, module, sequence, place, None if kernel is None else kernel[place], core[place])
        found = _at_odds(case, expected[place])
        if found is not None:
            who, why = found
            return Difference(case, expected[place], who, why, recognised(case))
        if core[place].ended is not None:
            return None
    return None


def _at_odds(case: Case, expected: Expectation) -> tuple[str, str] | None:
    if case.kernel is not None:
        names = differing(case.kernel, case.core)
        if names:
            return "kernel and core by " + ", ".join(names), f"the kernel answered {case.kernel}, the core {case.core}"
    seen = case.core if case.kernel is None else case.kernel
    refusal = expected.refusal(seen)
    whose = "core" if case.kernel is None else "kernel and core"
    return None if refusal is None else (f"{whose} and model", f"the model refuses {refusal}")


# ---- many sequences ----------------------------------------------------------------------------------------------------


@define
class Tally:
    """What came of the sequences that were compared."""

    guest: str
    sequences: int = 0
    operations: int = 0
    results: dict[Sequence, Difference | None] = field(factory=dict["Sequence", "Difference | None"], repr=False)
    known: Counter[str] = field(factory=Counter[str])
    examples: dict[str, Difference] = field(factory=dict[str, Difference])
    """Of each known difference the shortest one."""
    found: list[Difference] = field(factory=list[Difference])

    def add(self, sequence: Sequence, difference: Difference | None) -> None:
        self.sequences += 1
        self.operations += len(sequence)
        self.results[sequence] = difference
        if difference is None:
            return
        if difference.known is None:
            self.found.append(difference)
            return
        name = difference.known.id
        self.known[name] += 1
        if name not in self.examples or len(difference.sequence) < len(self.examples[name].sequence):
            self.examples[name] = difference

    @property
    def agreed(self) -> int:
        """Sequences without any difference."""
        return self.sequences - self.known.total() - len(self.found)

    def kinds(self) -> dict[str, Difference]:
        """Of each kind of difference that is not known the shortest one."""
        kinds: dict[str, Difference] = {}
        for each in sorted(self.found, key=lambda difference: len(difference.sequence)):
            kinds.setdefault(each.kind, each)
        return kinds


@frozen
class Comparison:
    """One kernel (or none) beside the core that is to be like it."""

    guest: str
    core: CoreSubject
    kernel: Kernel | None = None
    module: Module = Module.MENDED

    def compare(self, sequences: Several[Sequence]) -> list[Difference | None]:
        """The first difference of each."""
        return list(self.each(sequences))

    def each(self, sequences: Several[Sequence]) -> Iterator[Difference | None]:
        answers: Iterable[tuple[Observation, ...] | None] = [None] * len(sequences)
        if self.kernel is not None:
            answers = self.kernel.run_all(sequences)
        for sequence, kernel in zip(sequences, answers, strict=True):
            yield first_difference(self.guest, self.module, sequence, kernel, self.core.run(sequence))


Told = Callable[[Tally], None]

BATCH = 50
"""Sequences in one round trip to a guest."""


def run(comparison: Comparison, sequences: Several[Sequence], tally: Tally, told: Told, batch: int = BATCH) -> None:
    """Compare them all, a batch at a time. What was found is in the tally, also where this is interrupted."""
    for start in range(0, len(sequences), batch):
        some = sequences[start : start + batch]
        for sequence, difference in zip(some, comparison.each(some), strict=True):
            tally.add(sequence, difference)
            told(tally)
