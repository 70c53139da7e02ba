"""Every bug of the collection is caught by a clause that it names, and that clause says nothing of what it is a bug of."""

from __future__ import annotations

import functools

import pytest

from migrate_vma_conformance import kill_matrix, kit, unit
from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.kill_matrix import Fate
from migrate_vma_conformance.options import CheckOptions, Profile
from migrate_vma_conformance.report.kills import matrix_document, matrix_lines
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_impl.bugs.collection import BUGS, NOT_SHOWN, find_bug

SHOWN_IN = {
    "unmaps_nothing": "fault2-forked",
    "write_assumed": "migrate-forked",
    "B03": "fault-refused",
    "B08": "drain",
    "B17": "fault-evict",
    "B55": "migrate-store",
    "any_count": "migrate-store",
    "collects_anything": "round-trip",
    "fork_keeps_write": "round-trip",
    "hole_not_cleared": "round-trip",
    "holes_left_out": "round-trip",
    "holes_not_counted": "round-trip",
    "insert_keeps_ptl": "migrate-watched",
    "inserts_anywhere": "migrate-holes",
    "invalidation_ignored": "fault-discard",
    "not_uptodate": "round-trip",
    "published_freed": "round-trip",
    "refilled_at_wrong_index": "round-trip",
    "restore_forgets_lock": "migrate-pin",
    "restore_gains_write": "round-trip",
    "restore_maps_nothing": "migrate-pin",
    "restore_unlocks_fault_page": "fault-borrow",
    "setup_takes_unlocked_fault_page": "refused",
    "sleeps_under_ptl": "migrate-store",
    "src_not_read_again": "migrate-watched",
}
"""The first scenario that shows a bug, where that is not the race of two faults."""


def fired(driver, column, scenario):
    work = kit.units_of(driver, column, [SCENARIOS[scenario]], CheckOptions(), None)
    outcomes = [unit.run(one) for one in work]
    assert not any("kit" in outcome.failure for outcome in outcomes), outcomes
    return {example.clause: example for outcome in outcomes for example in outcome.examples}


@functools.cache
def without_it(title, scenario):
    bug = next(bug for bug in BUGS if kill_matrix.title_beside(bug) == title)
    ((driver, column),) = kill_matrix.baselines([bug])
    return frozenset(fired(driver, column, scenario))


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_bug_is_caught_by_its_clause(bug):
    scenario = SHOWN_IN.get(bug.id, "fault2")
    found = fired(bug.driver, kill_matrix.column_of(bug), scenario)
    own = set(bug.clauses) & set(found) - without_it(kill_matrix.title_beside(bug), scenario)
    assert own, sorted(found)


def test_ids_are_told_apart_and_clauses_exist():
    names = [row.id for row in (*BUGS, *NOT_SHOWN)]
    assert len(set(names)) == len(names)
    assert all(bug.id.isidentifier() for bug in BUGS)
    named = {clause for row in (*BUGS, *NOT_SHOWN) for clause in row.clauses}
    assert named <= judged_clauses().keys()


def test_what_cannot_be_shown_says_why():
    with pytest.raises(ValueError, match=r"B42 .* cannot be shown: waits for the amdkfd driver"):
        find_bug("B42")
    with pytest.raises(ValueError, match="there is no bug 'B99'"):
        find_bug("B99")


@pytest.mark.slow
def test_the_matrix_says_what_caught_a_bug_and_how():
    options = CheckOptions(profile=Profile.QUICK, jobs=2)
    matrix = kill_matrix.kill_matrix([find_bug("B07"), find_bug("inserts_anywhere")], options)
    caught, other = matrix.rows
    assert caught.fate is Fate.CAUGHT
    (kill,) = [kill for kill in caught.kills if kill.clause == "C36"]
    assert kill.scenario == "fault2"
    assert kit.replay(kill.token).verdict.verdict.value == "violated"
    assert other.fate is Fate.ESCAPED, "the quick profile has no scenario for it"
    told = matrix_document(matrix, ["C36", "C37"])
    assert told["unguarded"] == ["C37"]
    assert [row["fate"] for row in told["bugs"]] == ["caught", "escaped"]
    text = "\n".join(matrix_lines(matrix, ["C36", "C37"]))
    assert "put before unlock; wanted C36, fired C36" in text
    assert "1 caught, 0 seen, 1 escaped" in text
