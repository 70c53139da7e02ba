"""Every bug of the collection is caught by a clause that it names, and that clause says nothing of what it is a bug of."""

from __future__ import annotations

import functools

import pytest
from attrs import evolve

from migrate_vma_conformance import kill_matrix, kit, unit
from migrate_vma_conformance.catalogue import clauses_by_id, judged_clauses
from migrate_vma_conformance.options import CheckOptions
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_impl.bugs import collection
from migrate_vma_impl.bugs.collection import BUGS, NOT_ALONE, NOT_SHOWN, find_bug
from tests.bugs.places import SHOWN_IN


def searched(driver, column, scenario, wanted=frozenset()):
    """The outcomes of one scenario; with `wanted` clauses, as far as to the first of them."""
    work = kit.units_of(driver, column, [SCENARIOS[scenario]], CheckOptions(), None)
    return [unit.run(evolve(one, wanted=wanted)) for one in work]


@functools.cache
def without_it(what, scenario):
    """What fires in the scenario without a bug."""
    found = kill_matrix.fired(searched(what[0], kill_matrix.sound_column(what), scenario))
    return frozenset().union(*found.values())


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_bug_is_caught_by_its_clause(bug):
    scenario = SHOWN_IN[bug.id]
    own = frozenset(bug.clauses) - without_it(kill_matrix.beside(bug), scenario)
    outcomes = searched(bug.driver, kill_matrix.column_of(bug), scenario, own)
    assert not any("kit" in outcome.failure for outcome in outcomes), outcomes
    found = {example.clause for outcome in outcomes for example in outcome.examples}
    assert own & found, sorted(found)


def test_ids_are_told_apart_and_clauses_exist():
    names = [row.id for row in (*BUGS, *NOT_SHOWN)]
    assert len(set(names)) == len(names)
    assert all(bug.id.isidentifier() for bug in BUGS)
    named = {clause for row in (*BUGS, *NOT_SHOWN) for clause in row.clauses}
    assert named <= judged_clauses().keys()


def test_every_clause_is_named_by_a_bug_or_has_a_reason():
    named = {clause for bug in BUGS for clause in bug.clauses}
    assert set(clauses_by_id()) - named <= NOT_ALONE.keys()
    assert clauses_by_id().keys() >= NOT_ALONE.keys()


def test_every_bug_has_its_place():
    assert SHOWN_IN.keys() == {bug.id for bug in BUGS}


def test_what_cannot_be_shown_says_why():
    with pytest.raises(ValueError, match=r"B40 .* cannot be shown: waits for the xe driver"):
        find_bug("B40")
    with pytest.raises(ValueError, match="there is no bug 'B99'"):
        find_bug("B99")


def test_a_counterexample_names_its_core_by_the_path_of_the_bug():
    assert collection.B07 is find_bug("B07")
    with pytest.raises(AttributeError, match="there is no bug 'B99'"):
        _ = collection.B99
