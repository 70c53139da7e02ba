"""The clauses and the axioms agree: over what is written by hand, over executions of the simulated core, and over known bugs."""

from __future__ import annotations

import pickle

import pytest

from migrate_vma_conformance import kill_matrix, kit
from migrate_vma_conformance.distrust import Disagreement, Distrust, check_unbroken, compare, judge_twice
from migrate_vma_conformance.life import Living, Moment, live
from migrate_vma_conformance.options import CheckOptions
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.subject import find_generation
from migrate_vma_conformance.unit import Unit
from migrate_vma_conformance.workload import Act, Operation
from migrate_vma_impl.bugs.collection import BUGS
from migrate_vma_impl.drivers.wide import make_wide
from migrate_vma_spec.axioms import AXIOMS, Axiom, Violation
from migrate_vma_spec.events import FolioFreed, FolioPut, FolioUnlocked
from tests.axioms.runs import executions
from tests.bugs.test_collection import SHOWN_IN
from tests.spec.edits import without
from tests.spec.fault_traces import EVICT
from tests.spec.large_traces import ALL_FLOWS
from tests.spec.parts import by
from tests.spec.test_clauses import CASES, capabilities_of
from tests.spec.test_no_false_alarms import TRACES
from tests.spec.traces import TO_DEVICE

ABOUT_THE_TRACE = {axiom.id for axiom in AXIOMS if not axiom.clauses}

WITHOUT_A_PAST = {"C20-a_tail_is_mapped_elsewhere", "C35-kept", "C35-it_locks_in_setup"}
"""Edits that put an entry or a page into a trace of which nothing else is there."""


# ---- traces written by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_neither_finds_anything_in_what_is_right(name):
    trace, capabilities = ALL_FLOWS[name]
    assert judge_twice(trace, capabilities) == ({}, ())


@pytest.mark.parametrize("name", TRACES)
def test_what_no_clause_objects_to_no_axiom_does(name):
    trace, capabilities = TRACES[name]()
    broken, violations = judge_twice(trace, capabilities, ended=False)
    assert compare(violations, broken) == ()


WRONG = [
    pytest.param(wrong.trace, capabilities_of(case, wrong), id=f"{case.clause}-{name}")
    for case in CASES
    for name, wrong in case.broken.items()
    if f"{case.clause}-{name}" not in WITHOUT_A_PAST
]


@pytest.mark.parametrize(("trace", "capabilities"), WRONG)
def test_they_agree_over_what_breaks_a_clause(trace, capabilities):
    """An edit that changes what an event says and not what it does makes a trace contradict itself, and is not compared."""
    broken, violations = judge_twice(trace, capabilities)
    consistent = not ABOUT_THE_TRACE & {violation.axiom for violation in violations}
    assert not consistent or compare(violations, broken) == ()


# ---- the simulated core ----------------------------------------------------------------------------------------------

GENERATIONS = ("unreferenced", "referenced", "trylocked", "waiting", "entry-first", "waiting+compound")
RUNS = [
    pytest.param(scenario, generation, id=f"{name}-{generation}")
    for name, scenario in SCENARIOS.items()
    for generation in GENERATIONS
    if scenario.requires <= find_generation(generation).capabilities
]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "generation"), RUNS)
def test_they_agree_over_a_scenario_under_drawn_schedules(scenario, generation):
    one = Unit("test_hmm", generation, scenario.name, scenario.preemption[0], adapted=generation == "entry-first", seed=1)
    runs = list(executions(one, 5))
    assert runs
    for trace, capabilities, ended in runs:
        broken, violations = judge_twice(trace, capabilities, ended=ended)
        assert compare(violations, broken) == ()


# ---- the bugs ----------------------------------------------------------------------------------------------------------

CAUGHT_BY = {
    "B07": "A-REF-FREED",
    "B20": "A-DATA-READ",
    "B25": "A-LOCK-TURNS",
    "destination_changed": "A-MAP-FOLLOWS",
    "finalize_forgotten": "A-LOCK-KEPT",
    "finalize_maps_nothing": "A-MAP-LOCKED",
    "fork_keeps_write": "A-MAP-WRITER",
    "hole_not_cleared": "A-DATA-READ",
    "insert_keeps_ptl": "A-LOCK-SLEEP",
    "inserts_anywhere": "A-DATA-READ",
    "published_freed": "A-MAP-LOCKED",
    "refilled_at_wrong_index": "A-MAP-MOVES",
    "restore_gains_write": "A-MAP-WRITER",
    "sleeps_under_ptl": "A-LOCK-SLEEP",
    "source_not_put": "A-REF-LEFT",
}
"""Bugs of references, locks, mappings and contents, and an axiom that sees each of them."""


MORE_THAN_CLAUSES = {"loser_puts": {"A-REF-HOLDERS", "A-REF-FREED", "A-LOCK-TURNS"}}
"""A put of somebody else's reference, under schedules in which no callback runs: C44 and C50 do not say it, the axioms do."""


def judged_runs(bug):
    scenario = SCENARIOS[SHOWN_IN.get(bug.id, "fault2")]
    one = next(kit.units_of(bug.driver, kill_matrix.column_of(bug), [scenario], CheckOptions(), None))
    return [judge_twice(trace, capabilities, ended=ended) for trace, capabilities, ended in executions(one, 12)]


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_they_agree_over_a_bug(bug):
    runs = judged_runs(bug)
    assert runs
    alone = {found.axiom for broken, violations in runs for found in compare(violations, broken)}
    assert alone == MORE_THAN_CLAUSES.get(bug.id, set())
    seen = {violation.axiom for broken, violations in runs for violation in violations if broken}
    assert bug.id not in CAUGHT_BY or CAUGHT_BY[bug.id] in seen


def test_the_bugs_with_an_axiom_are_in_the_collection():
    assert CAUGHT_BY.keys() <= {bug.id for bug in BUGS}


# ---- what is said of a disagreement ----------------------------------------------------------------------------------


def test_an_axiom_without_its_clause_is_a_disagreement():
    violation = Violation("A-MAP-MOVES", "page 1 moves, and (0, 2) maps it", (3,))
    assert compare([violation], {"C56", "C07"}) == ()
    (found,) = compare([violation, violation], {"C07"})
    assert str(found) == "A-MAP-MOVES: page 1 moves, and (0, 2) maps it, and none of C56 is broken (steps 3)"


def test_a_clause_without_the_axiom_that_covers_it_is_a_disagreement():
    (found,) = compare([], {"C56"})
    assert found == Disagreement("A-MAP-MOVES", "it holds, and C56, all of which it says, is broken")


def test_a_trace_that_contradicts_itself_is_told_as_such():
    (found,) = compare([Violation("A-REF-SUM", "folio 1 has count 1 by what it was given, and 2 is said", (4,))], {"C44"})
    assert str(found).endswith("and 2 is said, and so the trace contradicts itself (steps 4)")


def test_an_execution_that_breaks_axioms_alone_is_an_error_of_the_kit():
    check_unbroken(EVICT)
    with pytest.raises(Distrust, match=r"The clauses and the axioms disagree .* A-LOCK-TURNS: FolioUnlocked") as caught:
        check_unbroken([*TO_DEVICE, *by("mig0", FolioUnlocked(1))])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  (our own)


def test_both_find_a_page_that_is_never_freed():
    broken, violations = judge_twice(without(TO_DEVICE, FolioPut(1, 0), FolioFreed(1)))
    assert ("C44" in broken, [violation.axiom for violation in violations]) == (True, ["A-REF-LEFT"])
    assert compare(violations, broken) == ()


LIFE = (Moment((Operation(Act.WRITE),)), Moment((Operation(Act.TO_DEVICE),)))


def test_a_whole_life_is_judged_twice(monkeypatch):
    seen = []
    monkeypatch.setattr("migrate_vma_conformance.life.check_unbroken", lambda trace: seen.append(len(trace)))
    assert live(Living(make_wide, find_generation("waiting")), LIFE) is None
    (length,) = seen
    assert length > 50


def test_a_disagreement_over_a_life_is_no_trouble_of_the_subject(monkeypatch):
    wrong = Axiom("A-NOTHING", "Nothing happens.", lambda relations: iter([("something happened", (0,))]), ("C01",))
    for place in ("migrate_vma_spec.axioms.AXIOMS", "migrate_vma_conformance.distrust.AXIOMS"):
        monkeypatch.setattr(place, (wrong,))
    with pytest.raises(Distrust, match="A-NOTHING: something happened, and none of C01 is broken"):
        live(Living(make_wide, find_generation("waiting")), LIFE)
