"""Sequences drawn by a seed, and the smallest one that shows a difference: Hypothesis draws, and Hypothesis shrinks.

Rules:
- The same seed and shape draw the same sequences, everywhere and each time.
- Sequences are drawn first and run in batches. For one that differs Hypothesis draws them all again, with what is known of each
  in place of a run, comes upon a difference of that kind, and shrinks it with runs of its own.
- What Hypothesis leaves is gone through once more, operation by operation: it often keeps some that say nothing.
- One that shrinks keeps its kind: it does not slip from one difference to another.
- This module imports Hypothesis; import it late.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import hypothesis
from attrs import evolve, fields_dict
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Command
from migrate_vma_conformance.kernel.comparing.compare import Comparison, Difference
from migrate_vma_conformance.kernel.comparing.operations import Sequence
from migrate_vma_conformance.kernel.comparing.population import PROCESS
from migrate_vma_conformance.kernel.comparing.strategies import Shape, sequences

MOST_RUNS = 400
MOST_SECONDS = 180.0
"""To make one difference smaller; seconds count where every run ends the guest."""

_SIMPLEST = {"process": 0, "device": 0, "page": 0, "first": 0, "count": 1}


class _Differs(Exception):
    """A sequence with a difference of the kind that is looked for."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference)
        self.difference = difference


def _settings(examples: int, *phases: Phase) -> settings:
    return settings(
        max_examples=examples,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
        report_multiple_bugs=False,
    )


def draw(shape: Shape, examples: int, seed: int) -> list[Sequence]:
    """So many sequences, or, where there are not so many, all of them."""
    drawn: list[Sequence] = []

    @hypothesis.seed(seed)
    @_settings(examples, Phase.generate)
    @hypothesis.given(sequences(shape))
    def collect(sequence: Sequence) -> None:
        drawn.append(sequence)

    collect()
    return drawn


# ---- looking for a smaller one -------------------------------------------------------------------------------------------


class _Search:
    """What is known of sequences that were run, and how many more may be run for one difference."""

    def __init__(self, comparison: Comparison, known: Mapping[Sequence, Difference | None], wanted: Difference) -> None:
        self._comparison = comparison
        self._known = dict(known)
        self._kind = wanted.kind
        self._end = time.monotonic() + MOST_SECONDS
        self._left = MOST_RUNS

    def find(self, sequence: Sequence) -> Difference | None:
        """The wanted difference, if the sequence has it. When there are no runs left, no sequence that is new has."""
        if sequence not in self._known:
            if not self._left or time.monotonic() > self._end:
                return None
            self._left -= 1
            self._known[sequence] = self._comparison.compare([sequence])[0]
        found = self._known[sequence]
        return found if found is not None and found.known is None and found.kind == self._kind else None


def smallest(
    comparison: Comparison,
    wanted: Difference,
    known: Mapping[Sequence, Difference | None],
    shape: Shape,
    examples: int,
    seed: int,
) -> Difference:
    """A difference of the same kind with the smallest sequence found. `known` is what came of those that `draw` gave.

    Raises:
        Lost, NotBooted: the guest does not go on.
    """
    search = _Search(comparison, known, wanted)
    return _polished(search, _shrunk(search, wanted, _settings(examples, Phase.generate, Phase.shrink), shape, seed))


def _shrunk(search: _Search, wanted: Difference, how: settings, shape: Shape, seed: int) -> Difference:
    best = wanted

    @hypothesis.seed(seed)
    @how
    @hypothesis.given(sequences(shape))
    def look(sequence: Sequence) -> None:
        found = search.find(sequence)
        if found is not None:
            raise _Differs(found)

    try:
        look()
    except _Differs as found:
        best = min(found.difference, best, key=lambda each: len(each.sequence))
    except Flaky:
        pass  # no runs were left, or the kernel answers otherwise now and then: the one that was met first stands
    return best


def _polished(search: _Search, best: Difference) -> Difference:
    """Nothing can be left out of it any more, and no number of it be simpler."""
    smaller: Difference | None = best
    while smaller is not None:
        best = smaller
        smaller = next((found for each in _simpler(best.sequence) if (found := search.find(each)) is not None), None)
    return best


def _simpler(sequence: Sequence) -> Iterator[Sequence]:
    """The sequence with one operation less, or with one number in its simplest form."""
    for place in range(len(sequence) - 1, -1, -1):
        shorter = (*sequence[:place], *sequence[place + 1 :])
        if is_playable(shorter):
            yield shorter
    for place in range(len(sequence)):
        for plain in _plainer(sequence[place]):
            changed = (*sequence[:place], plain, *sequence[place + 1 :])
            if is_playable(changed):
                yield changed


def _plainer(operation: Command) -> Iterator[Command]:
    for name, value in _SIMPLEST.items():
        if name in fields_dict(type(operation)) and getattr(operation, name) != value:
            change: dict[str, int] = {name: value}
            yield evolve(operation, **change)


def is_playable(sequence: Sequence) -> bool:
    """Whether every operation is of a process that there is then."""
    alive = {PROCESS}
    for operation in sequence:
        if getattr(operation, "process", PROCESS) not in alive:
            return False
        if isinstance(operation, ops.Fork):
            if operation.child in alive:
                return False
            alive.add(operation.child)
        if isinstance(operation, ops.Exit):
            alive.remove(operation.process)
    return True
