"""Comparing guests with the simulated core: each is booted, asked everything, and what differs is made smaller.

Rules:
- What was found is kept: where the guest is lost, and where the comparison is interrupted.
- All guests are asked the same sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from contextlib import AbstractContextManager

from attrs import define, field, frozen

from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.comparing.compare import Comparison, Difference, Kernel, Tally, Told, first_difference, run
from migrate_vma_conformance.kernel.comparing.core_subject import LARGE, SMALL, core_of
from migrate_vma_conformance.kernel.comparing.expectation import Expectation
from migrate_vma_conformance.kernel.comparing.guest_subject import GuestSubject, Lost
from migrate_vma_conformance.kernel.comparing.model_subject import ModelSubject
from migrate_vma_conformance.kernel.comparing.operations import Observation, Sequence
from migrate_vma_conformance.kernel.comparing.scaling import ScaledKernel
from migrate_vma_conformance.kernel.comparing.strategies import Shape
from migrate_vma_conformance.kernel.guests import Guest
from migrate_vma_conformance.kernel.witness.qemu import NotBooted
from migrate_vma_conformance.kernel.witness.witness import Witness, ways
from migrate_vma_conformance.verdict import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_VIOLATED

MOST_KINDS = 5
"""So many kinds of difference are made smaller for one guest; the others are counted."""


@frozen
class Asked:
    """What is compared: so many sequences, of this shape, drawn by this seed, with this module."""

    sequences: int = 200
    shape: Shape = field(factory=Shape)
    seed: int = 0
    module: Module = Module.MENDED


@define
class Outcome:
    """What came of one guest. `differences` are the smallest ones found, one of each kind, with how often it was met."""

    guest: str
    release: str
    tally: Tally
    differences: list[tuple[Difference, int]] = field(factory=list["tuple[Difference, int]"])
    lost: str | None = None
    interrupted: bool = False


MakeWitness = Callable[[Guest, Module], AbstractContextManager[Witness]]


def witness_of(guest: Guest, module: Module) -> Witness:
    """A guest with this module, yet to be booted."""
    return Witness(guest.name, ways(guest, module))


def compare_guests(
    guests: Several[Guest], asked: Asked, told: Told, make_witness: MakeWitness | None = None
) -> Iterator[Outcome]:
    """What came of each guest, one after the other; none after one that was interrupted."""
    from migrate_vma_conformance.kernel.comparing.shrinking import draw  # noqa: PLC0415  (imports Hypothesis)

    sequences = draw(asked.shape, asked.sequences, asked.seed)
    for guest in guests:
        outcome = Outcome(guest.name, guest.release, Tally(guest.name))
        try:
            with (make_witness or witness_of)(guest, asked.module) as witness:
                kernel = GuestSubject(guest.name, witness)
                comparison = comparison_of(guest.name, kernel, asked.module, large=asked.shape.large)
                _compare(comparison, sequences, asked, outcome, told)
        except (Lost, NotBooted) as error:
            outcome.lost = str(error)
        except KeyboardInterrupt:
            outcome.interrupted = True
        _fill(outcome)
        yield outcome
        if outcome.interrupted:
            return


def comparison_of(guest: str, kernel: Kernel, module: Module, *, large: bool) -> Comparison:
    """A kernel beside the core of its version: page for page, or on large folios."""
    core = core_of(guest, module, config=LARGE if large else SMALL)
    return Comparison(guest, core, ScaledKernel(kernel) if large else kernel, module)


def _compare(comparison: Comparison, sequences: Several[Sequence], asked: Asked, outcome: Outcome, told: Told) -> None:
    from migrate_vma_conformance.kernel.comparing.shrinking import smallest  # noqa: PLC0415  (imports Hypothesis)

    tally = outcome.tally
    run(comparison, sequences, tally, told)
    for kind, shortest in list(tally.kinds().items())[:MOST_KINDS]:
        best = smallest(comparison, shortest, tally.results, asked.shape, asked.sequences, asked.seed)
        outcome.differences.append((best, _count(tally)[kind]))


def _count(tally: Tally) -> Counter[str]:
    return Counter(each.kind for each in tally.found)


def _fill(outcome: Outcome) -> None:
    """What was not made smaller is told as it was met."""
    told = {difference.kind for difference, _ in outcome.differences}
    counts = _count(outcome.tally)
    left = [(each, counts[kind]) for kind, each in outcome.tally.kinds().items() if kind not in told]
    outcome.differences += left


def exit_code(outcomes: Several[Outcome]) -> int:
    """A difference outweighs a guest that was lost beside it."""
    if any(outcome.differences for outcome in outcomes):
        return EXIT_VIOLATED
    if any(outcome.interrupted for outcome in outcomes):
        return EXIT_INTERRUPTED
    return EXIT_INCONCLUSIVE if any(outcome.lost for outcome in outcomes) else EXIT_FINE


# ---- one script ----------------------------------------------------------------------------------------------------------


@frozen
class Played:
    """A script on one guest: the answers to each operation, and the first difference."""

    guest: str
    release: str
    sequence: Sequence
    kernel: tuple[Observation, ...]
    core: tuple[Observation, ...]
    model: tuple[Expectation, ...]
    difference: Difference | None


def play(
    guest: Guest, sequence: Sequence, module: Module, make_witness: MakeWitness | None = None, *, large: bool = False
) -> Played:
    """One sequence on a guest, on its core, and on the model.

    Raises:
        Lost, NotBooted: the guest does not answer.
        Unsupported: the core has no such operation.
    """
    core = core_of(guest.name, module, config=LARGE if large else SMALL).run(sequence)
    with (make_witness or witness_of)(guest, module) as witness:
        subject = GuestSubject(guest.name, witness)
        (kernel,) = (ScaledKernel(subject) if large else subject).run_all([sequence])
    model = ModelSubject().follow(sequence, kernel)
    difference = first_difference(guest.name, module, sequence, kernel, core)
    return Played(guest.name, guest.release, sequence, kernel, core, model, difference)
