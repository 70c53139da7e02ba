"""Every clause with a predicate keeps what is right and catches what is wrong: the tables of cases, run."""

from __future__ import annotations

import pytest

from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import REGISTRY
from tests.spec import (
    alternative_cases,
    calling_cases,
    contents_cases,
    entries_cases,
    large_cases,
    lifetimes_cases,
    locks_cases,
    notifiers_cases,
    page_tables_cases,
    references_cases,
)
from tests.spec.beside import at_once, elsewhere
from tests.spec.large_traces import ALL_FLOWS
from tests.spec.parts import judged
from tests.spec.traces import ABORTED

TABLES = (
    calling_cases,
    entries_cases,
    large_cases,
    lifetimes_cases,
    locks_cases,
    references_cases,
    page_tables_cases,
    contents_cases,
    notifiers_cases,
    alternative_cases,
)
CASES = [case for table in TABLES for case in table.CASES]
BROKEN = [pytest.param(case, wrong, id=f"{case.clause}-{name}") for case in CASES for name, wrong in case.broken.items()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clause)
def test_a_clause_is_kept(case):
    broken, reached = judged(case.kept, case.capabilities)
    assert broken == []
    assert case.clause in reached


def capabilities_of(case, wrong):
    return case.capabilities if wrong.capabilities is None else wrong.capabilities


@pytest.mark.parametrize(("case", "wrong"), BROKEN)
def test_a_clause_is_broken_and_no_neighbour_is_blamed(case, wrong):
    broken, _ = judged(wrong.trace, capabilities_of(case, wrong))
    assert set(broken) == {case.clause} | wrong.also


@pytest.mark.parametrize(("case", "wrong"), BROKEN)
def test_a_clause_is_broken_whatever_else_goes_on(case, wrong):
    beside = case.kept if wrong.capabilities is None else []
    broken, _ = judged(at_once(wrong.trace, elsewhere(beside)), capabilities_of(case, wrong))
    assert set(broken) == {case.clause} | wrong.also


@pytest.mark.parametrize(("case", "wrong"), BROKEN)
def test_a_clause_is_broken_though_another_migration_comes_in_between(case, wrong):
    """Just before the step that breaks it, and of all that it has to remember until then nothing is the other one's."""
    judge = Judge(capabilities_of(case, wrong))
    place = next((place for place, step in enumerate(wrong.trace) if judge.feed(step)), len(wrong.trace))
    broken, _ = judged(wrong.trace[:place] + elsewhere(ABORTED) + wrong.trace[place:], capabilities_of(case, wrong))
    assert set(broken) == {case.clause} | wrong.also


def test_every_clause_with_a_predicate_has_a_case():
    judged_here = {clause.id for clause in REGISTRY.values() if clause.progress is None}
    assert {case.clause for case in CASES} == judged_here
    assert all(case.broken for case in CASES)


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_a_correct_flow_breaks_nothing(name):
    trace, capabilities = ALL_FLOWS[name]
    assert judged(trace, capabilities)[0] == []


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_a_correct_flow_breaks_nothing_beside_another(name):
    trace, capabilities = ALL_FLOWS[name]
    broken, reached = judged(at_once(trace, elsewhere(trace)), capabilities)
    assert (broken, reached) == ([], judged(trace, capabilities)[1])


@pytest.mark.parametrize("case", [case for case in CASES if case.elsewhere], ids=lambda case: case.clause)
def test_a_clause_says_nothing_of_what_does_not_concern_it(case):
    broken, reached = judged(case.elsewhere, case.capabilities)
    assert broken == []
    assert case.clause not in reached


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clause)
def test_a_clause_that_fired_is_silent_afterwards(case):
    wrong = next(iter(case.broken.values()))
    judge = Judge(capabilities_of(case, wrong), [REGISTRY[case.clause]])
    assert len([*judge.feed_all([*wrong.trace, *wrong.trace]), *judge.end()]) == 1
