"""Every mutation is caught by its clause, and nothing of the kind is said of what was not mutated."""

from __future__ import annotations

import pytest

from migrate_vma_conformance import unit
from migrate_vma_conformance.explore.explain import record
from migrate_vma_conformance.tokens import decode
from migrate_vma_conformance.unit import Unit
from migrate_vma_impl.machine.system import Preemption
from tests.bugs.mutants import CORE, DRIVERS, Mutant


def unit_of(mutant: Mutant, scenario: str, **changes) -> Unit:
    return Unit(
        "mutant",
        mutant.generation.name,
        scenario,
        Preemption.FULL,
        states=60_000,
        make=lambda kernel: mutant.driver(kernel, "test_hmm"),
        record=mutant.generation,
        **changes,
    )


def broken_by(mutant: Mutant) -> dict[str, str]:
    found: dict[str, str] = {}
    for scenario in mutant.scenarios:
        outcome = unit.run(unit_of(mutant, scenario))
        assert "kit" not in outcome.failure, outcome.failure
        found.update({example.clause: example.sentence for example in outcome.examples})
    return found


@pytest.mark.parametrize("mutant", [*CORE, *DRIVERS], ids=lambda mutant: mutant.name)
def test_a_mutation_is_caught_by_its_clause(mutant):
    assert set(mutant.clauses) & set(broken_by(mutant)), broken_by(mutant)


@pytest.mark.parametrize("mutant", [CORE[0], CORE[1], DRIVERS[0]], ids=lambda mutant: mutant.name)
def test_what_catches_a_mutation_says_nothing_of_the_original(mutant):
    sound = Mutant("sound", mutant.clauses, mutant.scenarios)
    assert not set(mutant.clauses) & set(broken_by(sound))


def test_the_counterexample_of_a_mutation_replays():
    mutant = CORE[0]
    (example,) = [example for example in unit.run(unit_of(mutant, "fault2")).examples if example.clause == "C36"]
    subject = unit.subject_of(unit_of(mutant, "fault2"))
    again = record(subject, decode(example.token).schedule, until="C36", stacks=True)
    assert again.steps == example.steps
    assert again.broken["C36"] == example.sentence
