"""The contract's table of known bugs and the collection of bugs that can be put back say the same: neither imports the other."""

from __future__ import annotations

import pytest

from migrate_vma_impl.bugs.collection import BUGS, NOT_SHOWN
from migrate_vma_spec.known_bugs import KNOWN_BUGS

KNOWN = {bug.id: bug for bug in KNOWN_BUGS}
HISTORICAL = [bug for bug in BUGS if bug.commit and not bug.commit.startswith("as ")]
FAULTS = [row for row in NOT_SHOWN if row.clauses and not row.reason.startswith("no fault")]


def clauses_of(row):
    """The reference model is no clause."""
    return set(row.clauses) - {"REF"}


@pytest.mark.parametrize("bug", HISTORICAL, ids=lambda bug: bug.id)
def test_a_bug_that_a_kernel_had_is_known_by_its_commit_year_and_clauses(bug):
    row = KNOWN[bug.id]
    assert (row.commit, row.year) == (bug.commit, bug.year)
    assert clauses_of(row) == clauses_of(bug)


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.id)
def test_a_bug_that_cannot_be_shown_is_known_with_the_clauses_that_it_broke(row):
    assert clauses_of(KNOWN[row.id]) == clauses_of(row)


def test_every_known_bug_is_in_the_collection_or_cannot_be_shown():
    assert KNOWN.keys() == {bug.id for bug in HISTORICAL} | {row.id for row in FAULTS}
    assert len(KNOWN) == len(KNOWN_BUGS)
