"""The collection as a list, and the matrix as it is told."""

from __future__ import annotations

import json

from attrs import evolve
from click.testing import CliRunner

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.kill_matrix import Kill, Matrix, Row
from migrate_vma_conformance.report import kills
from migrate_vma_impl.bugs.collection import BUGS, NOT_SHOWN, find_bug

CAUGHT = Row(
    find_bug("B07"),
    (Kill("C36", "fault2", 56, 1, "mv1.x", early=True), Kill("C44", "fault2", 60, 2, "mv1.y", early=False)),
    50,
    7,
    0.5,
    0.6,
)
SEEN = Row(find_bug("B13"), (Kill("C71", "round-trip", 90, 0, "mv1.z", early=True),), 500, 1, 1.5, 9.0)
ESCAPED = Row(find_bug("B05"), (), 12_345_678, 10**30, 60.0, 60.0, ("fault2: it raised ValueError",))
MATRIX = Matrix((CAUGHT, SEEN, ESCAPED), 71.2)


def listed(*arguments):
    result = CliRunner().invoke(cli, ["bugs", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_collection_as_json_is_a_list_of_rows():
    rows = json.loads(listed("--format", "json"))
    assert [row["id"] for row in rows] == [row.id for row in (*BUGS, *NOT_SHOWN)]
    assert {frozenset(row) for row in rows} == {frozenset(rows[0])}, "all rows have the same fields"
    row = next(row for row in rows if row["id"] == "B13")
    wanted = {"commit": "60bae7370896", "year": 2022, "clauses": ["C59"], "generations": ["waiting"], "kernels": "before v6.1"}
    assert {key: row[key] for key in wanted} == wanted
    assert row["how"] == "flush_exclusive: flush_nothing, flush_and_unlock: unlock_then_flush"


def test_a_bug_that_is_not_shown_is_listed_with_its_reason():
    rows = {row["id"]: row for row in json.loads(listed("--format", "json"))}
    assert (rows["B40"]["shown"], rows["B40"]["how"]) == (False, "waits for the xe driver")
    assert "B40  two devices pull one range: waits for the xe driver" in listed()


def test_what_was_asked_for_is_listed_alone():
    text = listed("--only", "B07")
    assert text.startswith("B07  put before unlock")
    assert "not shown" not in text


def test_every_bug_says_how_it_is_put_back():
    said = [kills.how(bug) for bug in BUGS]
    assert all(said)
    assert len(set(said)) == len(said), "two bugs are put back in the same way"


def test_the_matrix_tells_fates_and_times_and_what_nobody_guards():
    text = "\n".join(kills.matrix_lines(MATRIX, ["C36", "C44", "C71", "C99"]))
    assert "put before unlock; wanted C36, fired C36 C44" in text
    assert "1 caught, 1 seen, 1 escaped" in text
    assert "71 s in all; the median first failure within 1.00 s" in text
    assert "Broken by none of these bugs alone or first: C44 C99" in text
    assert "fault2: it raised ValueError" in text
    assert max(map(len, text.splitlines())) <= 80


def test_why_a_clause_is_not_guarded_is_told_with_it(monkeypatch):
    monkeypatch.setattr(kills, "NOT_ALONE", {"C99": "it goes with C36"})
    text = "\n".join(kills.matrix_lines(evolve(MATRIX, interrupted=True), ["C36", "C99"]))
    assert "Broken by none of these bugs alone or first: no clause" in text
    assert "Nor C99: it goes with C36" in text
    assert "Interrupted" in text
    told = kills.matrix_document(MATRIX, ["C99"])
    assert told["reasons"] == {"C99": "it goes with C36"}


def test_the_matrix_as_json_has_the_kills_in_the_order_of_their_appearance():
    told = kills.matrix_document(MATRIX, judged_clauses())
    assert [row["fate"] for row in told["bugs"]] == ["caught", "seen", "escaped"]
    assert list(told["bugs"][0]["kills"]) == ["C36", "C44"]
    assert told["bugs"][0]["kills"]["C44"] == {"scenario": "fault2", "steps": 60, "switches": 2, "early": False, "token": "mv1.y"}
    assert (told["seconds"], told["median_seconds"], told["complete"]) == (71.2, 1.0, True)


def test_a_matrix_in_which_nothing_failed_has_no_median():
    assert kills.matrix_document(Matrix((ESCAPED,)), [])["median_seconds"] is None
    assert "median" not in "\n".join(kills.matrix_lines(Matrix((ESCAPED,)), []))
