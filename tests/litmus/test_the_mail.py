"""The questions of the mail that this project starts from, each answered by computation on the built-in driver."""

from __future__ import annotations

import functools

import pytest

from migrate_vma_conformance import kit, unit
from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.unit import Outcome, Unit
from migrate_vma_conformance.verdict import Verdict
from migrate_vma_impl.generations import GENERATIONS
from migrate_vma_impl.machine.system import Preemption

LOCKING = ["trylocked", "waiting"]


@functools.cache
def outcome(
    generation: str,
    scenario: str,
    preemption: Preemption = Preemption.FULL,
    fairness: Fairness = Fairness.STRONG,
    adapted: bool = False,
) -> Outcome:
    found = unit.run(Unit("test_hmm", generation, scenario, preemption, fairness, adapted))
    assert not found.failure
    return found


def broken(*arguments, **options) -> set[str]:
    return {example.clause for example in outcome(*arguments, **options).examples}


def test_without_a_reference_the_page_is_used_after_it_was_freed():
    assert broken("unreferenced", "fault2") == {"C41", "C50"}


def test_without_a_reference_nobody_makes_the_others_fail():
    assert outcome("unreferenced", "fault2").complete
    assert "C84" not in broken("unreferenced", "fault2")


def test_a_reference_of_each_faulter_livelocks_two_cpus():
    found = outcome("referenced", "fault2")
    assert broken("referenced", "fault2") == {"C84"}
    (lasso,) = found.examples
    assert lasso.fairness is Fairness.STRONG
    assert {step.task for step in lasso.steps[lasso.cycle_start :]} == {"t1", "t2"}


def test_a_reference_of_each_faulter_livelocks_three_cpus():
    (lasso,) = outcome("referenced", "fault3").examples
    assert (lasso.clause, lasso.fairness) == ("C84", Fairness.STRONG)
    assert {step.task for step in lasso.steps[lasso.cycle_start :]} == {"t1", "t2", "t3"}


def test_the_trylock_makes_progress_under_strong_fairness_alone():
    assert "C84" not in broken("trylocked", "fault2")
    assert outcome("trylocked", "fault2").weakest["C84"] is Fairness.STRONG
    assert "C84" in broken("trylocked", "fault2", fairness=Fairness.WEAK)


@pytest.mark.parametrize(
    ("generation", "preemption", "starves"),
    [
        ("trylocked", Preemption.VOLUNTARY, True),
        ("trylocked", Preemption.FULL, False),
        ("waiting", Preemption.VOLUNTARY, False),
        ("waiting", Preemption.FULL, False),
    ],
)
def test_who_spins_for_the_page_lock_starves_the_drain_that_its_holder_waits_for(generation, preemption, starves):
    assert ("C85" in broken(generation, "drain", preemption)) is starves


def test_waiting_makes_progress_even_under_weak_fairness():
    found = outcome("waiting", "fault2")
    assert found.complete
    assert found.weakest["C84"] is Fairness.WEAK


def test_the_alternative_with_an_adapted_driver_makes_progress_with_one_mapping():
    found = outcome("entry-first", "fault2", adapted=True)
    assert found.complete
    assert not found.examples
    assert found.weakest["C84"] is Fairness.WEAK


def test_the_alternative_with_drivers_as_they_are_leaves_the_entry_behind_and_names_who_waits():
    found = {example.clause: example.sentence for example in outcome("entry-first", "fault2").examples}
    assert "C94" in found
    assert "waits" in found["C82"]


def test_the_alternative_moves_a_page_that_another_address_space_still_maps():
    assert "C56" in broken("entry-first", "fault2-forked", adapted=True)
    assert all("C56" not in broken(generation, "fault2-forked") for generation in ("referenced", *LOCKING))


@pytest.mark.parametrize("generation", [name for name in GENERATIONS if name != "entry-first"])
def test_a_fault_that_fails_for_want_of_memory_brings_the_state_back(generation):
    """Nothing in the state only grows, or this cycle would not close."""
    assert broken(generation, "fault-short") - {"C41"} == {"C79"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_two_cpus_on_one_page_are_searched_to_the_end(generation):
    found = outcome(generation, "fault2")
    assert found.complete
    assert found.executions > found.states > 100


@pytest.mark.parametrize(
    ("generation", "scenario", "preemption", "clause"),
    [
        ("unreferenced", "fault2", Preemption.FULL, "C50"),
        ("referenced", "fault2", Preemption.FULL, "C84"),
        ("referenced", "fault3", Preemption.FULL, "C84"),
        ("trylocked", "drain", Preemption.VOLUNTARY, "C85"),
        ("entry-first", "fault2", Preemption.FULL, "C82"),
        ("entry-first", "fault2", Preemption.FULL, "C94"),
        ("waiting", "fault-short", Preemption.FULL, "C79"),
    ],
)
def test_a_counterexample_replays_to_the_same_verdict_and_trace(generation, scenario, preemption, clause):
    example = next(each for each in outcome(generation, scenario, preemption).examples if each.clause == clause)
    again = kit.replay(example.token)
    assert again.verdict.verdict is Verdict.VIOLATED
    assert again.verdict.clause == clause
    assert again.steps == example.steps


def test_the_reference_model_refuses_what_no_clause_forbids_yet():
    """A driver that maps its page after an invalidation that it did not look for: see docs/findings/README.md."""
    assert broken("waiting", "migrate-discard") == {"REF"}
