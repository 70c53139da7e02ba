"""Verdicts: what may be concluded from what was seen, and the exit code that says the same."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.verdict import EvidenceKind, GenerationReport, Verdict, conclude, exit_code, exit_of
from migrate_vma_spec.registry import Level
from migrate_vma_spec.vocabulary import Capability
from tests.conformance import reports
from tests.conformance.reports import example, finding, verdict


def test_exhausted_scenarios_that_reach_the_clause_show_that_it_holds():
    found = verdict("C41", finding(), finding(name="fault-3"))
    assert (found.verdict, found.evidence, found.executions) == (Verdict.HOLDS, EvidenceKind.EXHAUSTIVE, 10_000_000_000)


def test_a_scenario_that_was_cut_short_forbids_holds():
    found = verdict("C41", finding(), finding(name="fault-3", complete=False))
    assert (found.verdict, found.evidence) == (Verdict.NO_VIOLATION, EvidenceKind.SAMPLED)
    assert "fault-3" in found.reason


def test_a_scenario_that_was_cut_short_before_it_reached_the_clause_forbids_holds_too():
    assert verdict("C41", finding(), finding(complete=False, reached=False)).verdict is Verdict.NO_VIOLATION


def test_what_no_scenario_reaches_is_never_said_to_hold():
    assert verdict("C41", finding(reached=False)).verdict is Verdict.NEVER_REACHED
    assert conclude("C41", Level.MUST, ()).verdict is Verdict.NEVER_REACHED


def test_what_needs_a_capability_that_is_missing_is_not_applicable_and_names_it():
    found = verdict("C92", finding(), missing={Capability.REFILL})
    assert found.verdict is Verdict.NOT_APPLICABLE
    assert Capability.REFILL.value in found.reason
    assert found.scenarios == ()


def test_a_violation_outweighs_a_scenario_that_failed():
    found = verdict("C41", finding(failure="10 s are over", complete=False), finding(example()))
    assert (found.verdict, found.evidence) == (Verdict.VIOLATED, EvidenceKind.COUNTEREXAMPLE)


def test_a_scenario_that_failed_leaves_the_clause_unknown_and_says_why():
    found = verdict("C41", finding(), finding(name="drain", failure="10 s are over", complete=False))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "drain: 10 s are over" in found.reason


def test_scenarios_that_failed_for_one_reason_are_named_together():
    late = [finding(name=name, failure="10 s are over", complete=False) for name in ("a", "b", "c", "d", "d")]
    assert verdict("C41", *late).reason == "a, b, c and 1 more: 10 s are over"


def test_progress_is_unknown_where_the_search_was_cut_short():
    assert verdict("C84", finding(complete=False), progress=True).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (Fairness.WEAK, Fairness.WEAK, Fairness.WEAK),
        (Fairness.WEAK, Fairness.STRONG, Fairness.STRONG),
        (Fairness.WEAK, None, Fairness.WEAK),
        (None, None, None),
    ],
)
def test_progress_holds_under_the_fairness_that_every_scenario_needs(first, second, together):
    found = verdict("C84", finding(holds_under=first), finding(holds_under=second), progress=True)
    assert (found.verdict, found.holds_under) == (Verdict.HOLDS, together)


def test_the_counterexample_that_is_easiest_to_follow_is_shown():
    found = verdict("C41", finding(example(switches=3, token="mv1.a.b")), finding(example(switches=1, token="mv1.c.d")))
    assert found.counterexample is not None
    assert found.counterexample.token == "mv1.c.d"


def test_nobody_else_can_say_that_a_clause_holds():
    sampled = verdict("C41", finding(complete=False))
    with pytest.raises(ValueError, match="without exhausted scenarios"):
        evolve(sampled, verdict=Verdict.HOLDS)


def test_a_violation_without_a_counterexample_cannot_be_made():
    with pytest.raises(ValueError, match="contradict"):
        evolve(verdict("C41"), verdict=Verdict.VIOLATED)


_FINDINGS = st.lists(
    st.builds(
        lambda complete, reached, failure, broken: finding(
            example() if broken else None, failure=failure, complete=complete and not failure, reached=reached
        ),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["", "limit"]),
        st.booleans(),
    ),
    max_size=5,
)


@given(_FINDINGS, st.booleans())
def test_holds_is_said_of_exhausted_scenarios_only(findings, progress):
    found = conclude("C41", Level.MUST, findings, progress=progress)
    exhausted = all(each.evidence.complete for each in findings) and any(each.evidence.reached for each in findings)
    assert (found.verdict is Verdict.HOLDS) == (exhausted and all(each.counterexample is None for each in findings))


@given(_FINDINGS)
def test_a_counterexample_is_never_lost(findings):
    found = conclude("C41", Level.MUST, findings)
    assert (found.counterexample is not None) == any(each.counterexample is not None for each in findings)


# ---- the exit code ---------------------------------------------------------------------------------------------------


def test_exit_code_of_each_kind_of_report():
    assert exit_code(reports.holding()) == 0
    assert exit_code(reports.the_mail()) == 1
    assert exit_code(reports.unknown()) == 3


def test_a_should_counts_under_strict_alone():
    assert exit_code(reports.only_should()) == 0
    assert exit_code(reports.only_should(), strict=True) == 1


def test_a_violation_outweighs_an_unknown_in_the_exit_code():
    mixed = evolve(reports.unknown(), generations=(*reports.unknown().generations, *reports.the_mail().generations))
    assert exit_code(mixed) == 1


def test_a_violated_should_does_not_hide_an_unknown():
    verdicts = [*reports.only_should().verdicts, *reports.unknown().verdicts]
    assert exit_of(verdicts) == 3
    assert exit_of(verdicts, strict=True) == 1


def test_never_reached_and_not_applicable_are_no_violations():
    verdicts = {"C41": verdict("C41", finding(reached=False)), "C31": verdict("C31", missing={Capability.FAULT_LOCK})}
    assert exit_code(evolve(reports.holding(), generations=(GenerationReport("waiting", verdicts),))) == 0
