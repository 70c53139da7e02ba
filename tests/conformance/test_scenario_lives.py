"""The scenarios with one task: nothing fires in them on the kernel as it is, and they reach what no race is needed for."""

from __future__ import annotations

import pytest

from migrate_vma_conformance import kit, unit
from migrate_vma_conformance.options import CheckOptions
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_impl.generations import find_generation

KNOWN = {"life-two-devices": {"C77"}}
"""What the test driver does wrong by itself: its own mirror maps a page that it copies."""

REACHED = {
    "life-forked": {"C38"},
    "life-swapped": {"C75"},
    "life-exclusive": {"C91"},
    "life-released": {"C88"},
    "life-vma-lock": {"C40"},
    "life-large": {"C24", "C25", "C26", "C52", "C53"},
    "large-watched": {"C70"},
    "evict-fork": {"C67"},
}


def outcome(scenario, driver="test_hmm", generation="waiting"):
    record = find_generation(generation)
    column = kit.Column(generation, record.name, record.capabilities)
    (one,) = kit.units_of(driver, column, [SCENARIOS[scenario]], CheckOptions(), None)
    return unit.run(one)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("life-") or name in REACHED])
def test_nothing_fires_and_what_it_is_for_is_reached(name):
    large = bool(SCENARIOS[name].requires)
    found = outcome(name, generation="waiting+compound" if large else "waiting")
    assert not found.failure
    assert found.complete
    assert {example.clause for example in found.examples} == KNOWN.get(name, set())
    assert found.reached >= REACHED.get(name, set())


@pytest.mark.slow
def test_a_migration_of_a_forked_page_under_a_drivers_lock_reaches_c39():
    assert "C39" in outcome("migrate-forked", "wide").reached


def test_a_driver_without_the_operations_is_left_out():
    assert outcome("life-exclusive", "wide").skipped == "the driver offers no check_exclusive, exclusive"
