"""Traces of the simulated kernel, seen through probes: nothing is found in them that the whole trace does not show, and the known
bugs of what probes show are found; however much of a trace is missing, where that is said or at its beginning.
"""

from __future__ import annotations

import random

import pytest

from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.kernel.traces.coverage import JUDGED, Reason, lacking, reason
from migrate_vma_conformance.kernel.traces.shown import Fact
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.subject import KNOWN_GENERATIONS
from migrate_vma_impl.bugs.collection import find_bug
from migrate_vma_spec.vocabulary import Capability
from tests.kernel.projection import Shape
from tests.kernel.simulated import HEADER, execution, judged_from, recorded

GENERATIONS = ("unreferenced", "referenced", "trylocked", "waiting", "waiting+compound", "entry-first")
LIVES = "life-"
PLAYED = [
    (scenario, generation)
    for generation in GENERATIONS
    for scenario, of in SCENARIOS.items()
    if of.requires <= KNOWN_GENERATIONS[generation].capabilities and not scenario.startswith(LIVES)
]


@pytest.mark.slow
@pytest.mark.parametrize("returns", [True, False], ids=["with arguments at return", "without"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_nothing_is_found_that_the_whole_trace_does_not_show(generation, returns):
    wrong = {}
    for scenario in (scenario for scenario, played in PLAYED if played == generation):
        seen = execution(scenario, KNOWN_GENERATIONS[generation], 1, returns=returns)
        if extra := judged_from(seen.lines, seen.generation) - seen.broken:
            wrong[scenario] = extra
    assert wrong == {}


def test_what_is_judged_is_reached():
    """Of executions that break nothing, some are a case of what each of these clauses says."""
    reached = set()
    for scenario in ("fault2", "migrate-holes", "refused", "migrate-device"):
        seen = execution(scenario, KNOWN_GENERATIONS["waiting"], 1)
        (jury,) = recorded(seen.lines, seen.generation).juries
        reached |= jury.reached
    assert reached >= {"C03", "C06", "C07", "C10", "C11", "C13", "C29", "C43", "C50"}


BUGS = {
    "B01": ("fault2", 2, "C50"),
    "B02": ("fault2", 0, "C29"),
    "compound_unasked": ("large-fault2", 0, "C24"),
    "destination_changed": ("fault2", 0, "C13"),
    "end_not_kept": ("fault2", 0, "C03"),
    "fault_page_as_destination": ("fault-borrow", 0, "C33"),
    "holes_not_counted": ("migrate-discard", 0, "C10"),
    "large_for_small": ("fault2", 0, "C26"),
    "last_page_not_walked": ("migrate-holes", 0, "C11"),
    "setup_out_of_memory": ("refused", 0, "C06"),
    "setup_takes_unlocked_fault_page": ("refused", 0, "C30"),
    "source_changed": ("migrate-discard", 0, "C12"),
}
"""Known bugs, and an execution each in which the whole trace shows them."""


@pytest.mark.parametrize("name", BUGS)
def test_a_known_bug_is_found_through_the_probes(name):
    bug, (scenario, seed, clause) = find_bug(name), BUGS[name]
    seen = execution(scenario, bug.record, seed, driver=bug.driver)
    assert clause in judged_from(seen.lines, bug.record) & seen.broken


@pytest.mark.parametrize("shape", Shape)
def test_the_shape_of_the_lines_changes_nothing(shape):
    bug = find_bug("destination_changed")
    seen = execution("fault2", bug.record, 0, driver=bug.driver, shape=shape)
    assert judged_from(seen.lines, bug.record) == {"C13"}


# ---- what is missing ---------------------------------------------------------------------------------------------------

CUT = [("fault2", "waiting"), ("fault3", "referenced"), ("migrate-device", "trylocked"), ("round-trip", "referenced")]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "generation"), CUT)
def test_a_trace_may_begin_anywhere(scenario, generation):
    for seed in range(3):
        seen = execution(scenario, KNOWN_GENERATIONS[generation], seed)
        wrong = {
            at: found for at in range(len(seen.lines)) if (found := judged_from(seen.lines[at:], seen.generation) - seen.broken)
        }
        assert wrong == {}


def cpu_of(text):
    return int(text.partition("[")[2].partition("]")[0])


def with_loss(lines, draw):
    """The lines without some of one CPU's, and the marker before its next one."""
    cpu = cpu_of(draw.choice(lines))
    own = [at for at, text in enumerate(lines) if cpu_of(text) == cpu]
    first = draw.randrange(len(own))
    gone = own[first : first + draw.randrange(1, 6)]
    after = next((at for at in own if at > gone[-1]), None)
    marker = [] if after is None else [f"CPU:{cpu} [LOST {len(gone)} EVENTS]"]
    end = len(lines) if after is None else after
    return [text for at, text in enumerate(lines[:end]) if at not in gone] + marker + list(lines[end:])


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "generation"), CUT)
def test_lost_events_break_no_clause(scenario, generation):
    draw = random.Random(scenario)
    seen = execution(scenario, KNOWN_GENERATIONS[generation], 4)
    thinned = [with_loss(seen.lines, draw) for _ in range(60)]
    assert [lines for lines in thinned if judged_from(lines, seen.generation) - seen.broken] == []


def test_events_that_are_missing_without_a_word_can_break_one():
    """What makes the tests above worth something."""
    seen = execution("fault2", KNOWN_GENERATIONS["waiting"], 1)
    without = [text for text in seen.lines if ": fin: " not in text]
    assert "C07" in judged_from(without, seen.generation)


# ---- what is judged, and what is not -----------------------------------------------------------------------------------


def test_every_clause_is_judged_or_has_a_reason():
    silent = [clause.id for clause in clauses_by_id().values() if clause.id not in JUDGED and reason(clause) is Reason.REFERENCE]
    assert silent == []


def test_what_is_judged_is_in_the_contract():
    assert set(JUDGED) <= set(clauses_by_id())


def test_a_clause_says_what_it_lacks():
    clause = clauses_by_id()["C33"]
    facts = JUDGED["C33"].facts
    assert lacking(clause, facts, frozenset()) == ""
    assert lacking(clause, facts - {Fact.STRUCT_PAGES}, frozenset()) == "no line shows where the array of struct page lies"


def test_what_a_refill_changes_is_not_judged():
    facts = frozenset(Fact)
    assert lacking(clauses_by_id()["C12"], facts, frozenset({Capability.REFILL})) == Reason.DEVICE.value


def test_a_trace_that_shows_too_little_is_judged_by_nothing():
    seen = execution("fault2", KNOWN_GENERATIONS["waiting"], 1)
    only_entries = [text for text in seen.lines if "_ret: " not in text and "freepg" not in text]
    found = recorded(only_entries, seen.generation, head=HEADER.partition(" probes=")[0])
    assert [jury.clauses for jury in found.juries] == [()]
