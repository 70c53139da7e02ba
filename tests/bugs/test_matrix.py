"""The kill matrix: who is searched for where, what stops a search, what counts, and in which order."""

from __future__ import annotations

import pytest
from attrs import evolve

from migrate_vma_conformance import kill_matrix, kit, unit
from migrate_vma_conformance.explore.graph import FOUND
from migrate_vma_conformance.kill_matrix import Fate, cheapest_first
from migrate_vma_conformance.options import CheckOptions, Profile
from migrate_vma_conformance.report.kills import matrix_document
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.bugs.collection import BUGS, find_bug
from migrate_vma_impl.generations import WAITING

QUICK = CheckOptions(profile=Profile.QUICK, jobs=2)


def search(bug, scenario, **changes):
    (one,) = kit.units_of(bug.driver, kill_matrix.column_of(bug), [SCENARIOS[scenario]], CheckOptions(), None)
    return unit.run(evolve(one, **changes))


@pytest.mark.slow
def test_the_matrix_says_what_caught_a_bug_and_how():
    matrix = kill_matrix.kill_matrix([find_bug("B07"), find_bug("inserts_anywhere")], QUICK)
    caught, other = matrix.rows
    assert caught.fate is Fate.CAUGHT
    (kill,) = [kill for kill in caught.kills if kill.clause == "C36"]
    assert SCENARIOS[kill.scenario].quick
    assert kill.early
    assert kit.replay(kill.token).verdict.verdict.value == "violated"
    assert other.fate is Fate.ESCAPED, "the quick profile has no scenario for it"
    assert other.kills == ()
    assert caught.states < other.states
    told = matrix_document(matrix, ["C36", "C37"])
    assert told["unguarded"] == ["C37"]
    assert [row["fate"] for row in told["bugs"]] == ["caught", "escaped"]


@pytest.mark.slow
def test_what_fires_without_the_bug_as_well_does_not_count():
    nothing = Bug("nothing", "nothing is wrong", "The driver fails as it does.", ("C79",), WAITING)
    (row,) = kill_matrix.kill_matrix([nothing], QUICK).rows
    assert row.fate is Fate.ESCAPED


@pytest.mark.slow
def test_a_matrix_that_is_interrupted_has_the_rows_of_all_bugs():
    def stop(advance):
        raise KeyboardInterrupt

    matrix = kill_matrix.kill_matrix([find_bug("B07"), find_bug("B13")], QUICK, stop)
    assert matrix.interrupted
    assert [(row.bug.id, row.fate) for row in matrix.rows] == [("B07", Fate.ESCAPED), ("B13", Fate.ESCAPED)]


@pytest.mark.slow
def test_a_search_is_over_when_a_wanted_clause_is_broken():
    bug = find_bug("B07")
    whole, part = search(bug, "fault2"), search(bug, "fault2", wanted=frozenset({"C36"}))
    assert part.cut == FOUND
    assert not part.complete
    assert part.states < whole.states
    assert {example.clause for example in part.examples} >= {"C36"}
    other = search(bug, "fault-short", wanted=frozenset({"C99"}))
    assert other.complete, "what is never broken stops nothing"


@pytest.mark.slow
def test_clauses_appear_in_the_order_of_the_schedules_that_break_them():
    found = search(find_bug("pages_skipped"), "fault-short")
    assert found.appeared[0] == {"C08"}
    assert {clause for together in found.appeared for clause in together} == {example.clause for example in found.examples}


def test_scenarios_with_few_tasks_come_first_and_the_heavy_ones_last():
    names = [each.name for each in cheapest_first(SCENARIOS.values())]
    tasks = [len(SCENARIOS[name].actors) for name in names]
    assert tasks == sorted(tasks)
    assert names[-1] == "fault3"
    assert names.index("drain") == max(place for place, name in enumerate(names) if len(SCENARIOS[name].actors) == 2)


def test_a_drivers_fault_is_not_looked_for_where_another_driver_plays():
    ours = [search_units(bug, "drain") for bug in (find_bug("B20"), find_bug("B08"))]
    assert ours[0] == []
    assert [one.preemption.value for one in ours[1]] == ["full", "voluntary"]


def search_units(bug, scenario):
    return list(kill_matrix._Hunt(bug).units(SCENARIOS[scenario], CheckOptions(), {}))


def test_no_bug_has_settings_of_its_own():
    columns = [kill_matrix.column_of(bug) for bug in BUGS]
    assert all(not column.adapted for column in columns), "a bug of the adapted driver is in that driver"
    assert {one.seed for bug in BUGS for one in search_units(bug, "fault2")} == {0}
