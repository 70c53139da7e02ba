"""The reports: the table and splats within 80 columns, the JSON by its schema, the files."""

from __future__ import annotations

import json

import jsonschema
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.report import matrix
from migrate_vma_conformance.report.json_report import report_document, text
from migrate_vma_conformance.report.layout import labelled, paragraph, shell_command, short
from migrate_vma_conformance.report.pretty import render_replay, render_report
from migrate_vma_conformance.report.schema import SCHEMA, check_document
from migrate_vma_conformance.report.table import cell, clause_key, evidence_table, runs, verdict_table
from tests.conformance import reports
from tests.conformance.reports import CLAUSES, TOKEN, example, finding, verdict

REPORTS = [reports.the_mail(), reports.holding(), reports.unknown(), reports.only_should()]


def pretty(report, **about):
    return "\n".join(render_report(report, CLAUSES, **about))


# ---- for people ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("report", REPORTS)
def test_no_line_of_a_report_is_wider_than_80_columns(report, verbose):
    assert max(map(len, render_report(report, CLAUSES, verbose=verbose))) <= 80


def test_a_report_is_plain_text_without_colour():
    assert pretty(reports.the_mail()).isascii()
    assert "\x1b" not in pretty(reports.the_mail())


def test_the_table_has_a_column_per_generation_and_a_row_per_clause_that_differs():
    lines = verdict_table(reports.the_mail(), CLAUSES)
    row = next(line for line in lines if line.startswith("C84")).split("  ")
    assert [word.strip() for word in row if word] == ["C84", "holds", "VIOLATED", "holds strong", "holds weak", "holds", "holds"]


def test_clauses_with_one_verdict_everywhere_are_folded_unless_all_rows_are_asked_for():
    folded, whole = verdict_table(reports.the_mail(), CLAUSES), verdict_table(reports.the_mail(), CLAUSES, verbose=True)
    assert "holds (in every column): C01 C02" in folded
    assert not any(line.startswith("C01") for line in folded)
    assert any(line.startswith("C01  holds") for line in whole)


def test_every_word_of_the_table_is_explained_and_no_other():
    lines = verdict_table(reports.the_mail(), CLAUSES)
    words = ("holds", "sampled", "VIOLATED", "violated", "n/a", "unknown")
    explained = [word for word in words if f"\n  {word} " in "\n".join(lines)]
    assert explained == ["holds", "sampled", "VIOLATED", "violated", "n/a"]


def test_a_clause_that_a_generation_does_not_know_has_an_empty_cell():
    assert cell(None) == ""


def test_neighbouring_ids_are_written_as_runs():
    assert runs(["C10", "C01", "C02", "C03", "REF", "C09", "C12"]) == ["C01-C03", "C09", "C10", "C12", "REF"]


def test_ids_sort_by_their_numbers_and_words_come_last():
    assert sorted(["REF", "C100", "C9", "C10"], key=clause_key) == ["C9", "C10", "C100", "REF"]


def test_the_evidence_names_states_executions_and_what_was_cut_short():
    lines = "\n".join(evidence_table(reports.the_mail()))
    assert "1,234+" in lines
    assert "(+: cut short)" in lines
    assert "5.0e9" in lines


def test_verbose_evidence_names_the_tasks():
    assert "cpu0, cpu1" in "\n".join(evidence_table(reports.holding(), verbose=True))


def test_a_violation_shows_sentence_source_schedule_and_the_command_that_replays_it():
    shown = pretty(reports.the_mail())
    for words in (
        "BUG: migrate_vma: C41 reference before callback in folio_migrate_mapping",
        "page 8 has refcount 0 at the callback",
        "Rule C41: vmf->page MUST be referenced",
        "Linux 6.1, mm/memory.c:do_swap_page",
        "test_hmm on unreferenced",
        "CPU 0: cpu0",
        f"\nmigrate-vma replay {TOKEN}\n",
        "folio_migrate_mapping < migrate_vma_pages < migrate_to_ram",
        ": fair even under strong fairness ---",
    ):
        assert words in shown


def test_a_clause_that_several_columns_break_is_drawn_once_and_replayed_in_each():
    shown = pretty(reports.broken_twice()).replace("\\\n", "")
    assert shown.count("BUG: migrate_vma: C41") == 1
    assert "test_hmm on referenced" in shown, "the one with fewer forced switches"
    assert f"also on unreferenced: migrate-vma replay {TOKEN}" in shown
    assert "test_hmm on unreferenced" not in shown


def test_what_a_released_kernel_does_is_drawn_before_what_a_proposal_does():
    shown = pretty(reports.broken_twice(simpler="entry-first"))
    assert "test_hmm on unreferenced" in shown
    assert "also on entry-first: migrate-vma replay" in shown


def test_verbose_draws_every_violation():
    shown = pretty(reports.broken_twice(), verbose=True)
    assert shown.count("BUG: migrate_vma: C41") == 2
    assert "also on" not in shown
    assert "test_hmm on unreferenced" in shown


def test_steps_that_are_drawn_for_another_clause_are_not_drawn_again():
    shown = pretty(reports.the_mail())
    assert "those drawn for C41 on unreferenced\n" in shown
    assert shown.count("CPU 0: cpu0") == 4, "C41, C84, C85 and C94"


def test_columns_that_are_as_simple_do_not_keep_each_other_from_being_drawn_once():
    shown = pretty(reports.broken_alike())
    assert shown.count("CPU 0: cpu0") == 1
    assert shown.count("also on ") == 2


def test_steps_with_which_another_drawing_begins_are_not_drawn_again():
    shown = pretty(reports.broken_on_the_way())
    assert "those drawn for C50 on waiting, up to step 5" in shown
    assert shown.count("CPU 0: cpu0") == 1


def test_the_driver_that_a_scenario_brings_along_is_named():
    shown = " ".join(pretty(reports.with_a_driver_of_its_own()).split())
    assert "subject wide on waiting" in shown
    assert "always with the driver wide" in shown


def test_a_replay_names_the_driver_that_a_scenario_brings_along():
    found = reports.replayed()
    scenarios = (evolve(found.verdict.scenarios[0], name="drain"),)
    shown = "\n".join(render_replay(evolve(found, verdict=evolve(found.verdict, scenarios=scenarios)), CLAUSES))
    assert "driver      wide, which scenario drain is always played with" in shown


def test_preemption_is_told_where_it_is_not_full():
    assert "voluntary preemption" in pretty(reports.the_mail())
    assert "full preemption" not in pretty(reports.the_mail())


@pytest.mark.parametrize(
    ("fairness", "words"),
    [
        (Fairness.STRONG, "'-> back to step 5: fair even under strong fairness ---"),
        (Fairness.WEAK, "'-> back to step 5: fair under weak fairness; strong fairness may exclude it -"),
    ],
)
def test_a_cycle_says_which_fairness_allows_it(fairness, words):
    broken = verdict("C84", finding(evolve(example("C84", cycle=3), fairness=fairness)))
    assert words in pretty(evolve(reports.holding(), generations=(reports.generation("waiting", C84=broken),)))


def test_each_column_is_told_in_a_sentence():
    shown = " ".join(pretty(reports.the_mail()).split())
    assert "referenced Every faulter holds a reference while its driver tries to migrate the page." in shown
    assert "entry-first+adapted As entry-first, with the driver's variant that calls refill_fault_entry." in shown


def test_a_generation_of_the_callers_own_needs_no_sentence():
    report = evolve(reports.holding(), generations=(reports.generation("mine*"),))
    assert pretty(report).index("generation  mine*") < pretty(report).index("Evidence")


def test_what_is_unknown_is_said_with_its_reason():
    assert "Unknown in waiting: C31: fault-2: the driver raised ValueError: 3" in pretty(reports.unknown())


def test_what_the_verdicts_do_not_cover_and_the_result_come_last():
    shown = pretty(reports.the_mail())
    assert shown.index("No verdict here covers") > shown.rindex("migrate-vma replay")
    result = " ".join(shown[shown.index("Result:") :].split())
    assert result == (
        "Result: a MUST is violated: unreferenced C41 C50, referenced C84, entry-first C94; "
        "a SHOULD is violated: trylocked C85. Exit code 1."
    )


def test_the_result_says_nothing_violated_with_exit_code_0():
    assert "Result: nothing violated. Exit code 0." in pretty(reports.holding())


def test_a_replay_shows_the_verdict_the_columns_and_the_state():
    lines = render_replay(reports.replayed(), CLAUSES)
    assert max(map(len, lines)) <= 80
    assert any("violated, a MUST" in line for line in lines)
    assert "  folio 8: refcount 0, free" in lines
    assert lines[-1] == f"migrate-vma replay {TOKEN}"


def test_a_replay_can_show_every_step():
    some, every = render_replay(reports.replayed(), CLAUSES), render_replay(reports.replayed(), CLAUSES, show_all=True)
    assert len(every) > len(some)
    assert any("unlock ptl:0" in line for line in every)


def test_what_a_subject_says_cannot_reach_the_terminal_as_control_characters():
    broken = verdict("C41", finding(example(sentence="\x1b[2J\x07gone")))
    report = evolve(reports.holding(), generations=(reports.generation("waiting", C41=broken),))
    assert "\x1b" not in pretty(report)


# ---- layout ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abc-+ ", min_size=1, max_size=40), min_size=1, max_size=9), st.integers(0, 3), st.data())
def test_a_table_never_grows_wider_than_the_page(headings, count, data):
    cells = st.tuples(*(st.text("xyz", max_size=30) for _ in headings))
    rows = [matrix.Row(f"row {number}", data.draw(cells)) for number in range(count)]
    assert all(len(line) <= 80 for line in matrix.render(headings, rows))


def test_a_table_that_does_not_fit_is_cut_into_blocks_with_all_rows():
    lines = matrix.render(["a" * 30, "b" * 30, "c" * 30], [matrix.Row("C01", ("one", "two", "three"))])
    assert sum(line.startswith("C01") for line in lines) == 2
    assert any("three" in line for line in lines)


@given(st.text(max_size=300))
def test_a_paragraph_never_grows_wider_than_the_page(words):
    assert all(len(line) <= 80 for line in paragraph(words) + labelled("label", words))


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (999_999, "999,999"), (1_000_000, "1.0e6"), (12_345_678, "1.2e7"), (10**400, "1.0e400")]
)
def test_large_counts_are_short(number, words):
    assert short(number) == words


@given(st.text("abcdef0123456789._-", min_size=1, max_size=400))
def test_a_long_command_is_continued_as_a_shell_continues_it(token):
    lines = shell_command(f"migrate-vma replay {token}")
    assert all(len(line) <= 80 for line in lines)
    assert "\n".join(lines).replace("\\\n", "") == f"migrate-vma replay {token}"


# ---- for programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", REPORTS)
def test_json_reports_follow_the_published_schema(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(json.loads(text(report_document(report))))) == []


def test_the_json_of_a_clause_has_the_promised_keys():
    document = report_document(reports.the_mail())
    assert list(document)[:3] == ["subject", "generations", "exit"]
    found = document["generations"]["unreferenced"]["clauses"]["C41"]
    assert (found["verdict"], found["level"], found["counterexample"]) == ("violated", "must", TOKEN)
    assert found["evidence"] == {
        "kind": "counterexample",
        "executions": 5_000_000_000,
        "scenarios": [
            {
                "name": "fault-2",
                "tasks": ["cpu0", "cpu1"],
                "preemption": "full",
                "fairness": "strong",
                "states": 1234,
                "executions": 5_000_000_000,
                "complete": True,
                "reached": True,
                "counterexample": TOKEN,
            }
        ],
    }


def test_the_json_names_the_weakest_fairness_and_the_reasons():
    clauses = report_document(reports.the_mail())["generations"]
    assert clauses["trylocked"]["clauses"]["C84"]["holds_under"] == "strong"
    assert clauses["waiting"]["clauses"]["C84"]["holds_under"] == "weak"
    assert "ValueError" in report_document(reports.unknown())["generations"]["waiting"]["clauses"]["C31"]["reason"]


def test_the_json_carries_the_exit_code_of_the_command():
    assert report_document(reports.only_should())["exit"] == 0
    assert report_document(reports.only_should(), strict=True)["exit"] == 1


def test_two_runs_of_one_check_give_one_document():
    slow = evolve(reports.the_mail(), seconds=99.0)
    assert text(report_document(slow)) == text(report_document(reports.the_mail()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("exit"),
        lambda document: document["generations"]["waiting"]["clauses"]["C01"].update(verdict="fine"),
        lambda document: document["generations"]["waiting"]["clauses"]["C01"]["evidence"].update(kind="sampled"),
        lambda document: document["generations"]["waiting"]["clauses"]["C01"].update(verdict="violated"),
    ],
)
def test_a_document_that_is_no_report_is_refused_with_the_place(spoil):
    document = json.loads(text(report_document(reports.holding())))
    spoil(document)
    with pytest.raises(UsageError, match=r"`theirs\.json`: at "):
        check_document(document, "theirs.json")
