"""Reports as files: what a directory gets, what is left alone, and how a token is found again."""

from __future__ import annotations

import json

import pytest
from attrs import evolve

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.report.files import make_directory, token_of, write_report
from migrate_vma_conformance.report.schema import check_document
from migrate_vma_spec.schema import read_trace
from tests.conformance import reports
from tests.conformance.reports import CLAUSES, TOKEN, example, finding, verdict


def test_a_directory_gets_the_report_and_each_violation_as_splat_and_trace(tmp_path):
    write_report(reports.the_mail(), tmp_path / "new" / "out", CLAUSES)
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert {"report.json", "unreferenced-C41.txt", "unreferenced-C41.jsonl", "referenced-C84.txt", "entry-first-C94.txt"} <= names
    check_document(json.loads((tmp_path / "new" / "out" / "report.json").read_text()), "report.json")
    assert "CPU 1: cpu1" in (tmp_path / "new" / "out" / "unreferenced-C41.txt").read_text()
    assert tuple(read_trace(tmp_path / "new" / "out" / "unreferenced-C41.jsonl")) == reports.trace()[0]


def test_names_of_files_hold_no_surprises(tmp_path):
    odd = reports.generation("../mine: a+b", C41=verdict("C41", finding(example())))
    write_report(evolve(reports.holding(), generations=(odd,)), tmp_path / "out", CLAUSES)
    names = ["mine-a-b-C41.jsonl", "mine-a-b-C41.txt", "report.html", "report.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_generations_whose_names_are_alike_get_files_of_their_own(tmp_path):
    broken = {"C41": verdict("C41", finding(example()))}
    parts = tuple(reports.generation(name, **broken) for name in ("Mine*", "mine?", "mine"))
    write_report(evolve(reports.holding(), generations=parts), tmp_path, CLAUSES)
    names = {path.name for path in tmp_path.glob("*.txt")}
    assert names == {"Mine-C41.txt", "mine-C41-2.txt", "mine-C41-3.txt"}


def test_a_report_takes_the_place_of_the_one_that_was_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_report(reports.the_mail(), tmp_path, CLAUSES)
    write_report(reports.only_should(), tmp_path, CLAUSES)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "report.html", "report.json", "trylocked-C85.jsonl", "trylocked-C85.txt"]


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"generations": {"waiting": {"clauses": {"C41": 3}}}}'])
def test_somebody_elses_report_is_not_overwritten(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match=r"report\.json that is no report of a check"):
        make_directory(tmp_path)
    assert (tmp_path / "report.json").read_text() == content


def test_a_directory_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--output"):
        write_report(reports.holding(), tmp_path / "file", CLAUSES)


def test_the_token_of_a_verdict_is_found_whatever_its_scenarios_found(tmp_path):
    findings = finding(example()), finding(example(token="mv1.other.00000000", switches=3), name="fault-3")
    broken = reports.generation("waiting", C41=verdict("C41", *findings))
    write_report(evolve(reports.holding(), generations=(broken,)), tmp_path, CLAUSES)
    assert token_of(str(tmp_path / "report.json")) == TOKEN


@pytest.mark.parametrize("length", [10, 400])
def test_the_token_is_found_again_in_a_splat(tmp_path, length):
    token = f"mv1.{'a' * length}.0badcafe"
    broken = reports.generation("waiting", C41=verdict("C41", finding(example(token=token))))
    write_report(evolve(reports.holding(), generations=(broken,)), tmp_path, CLAUSES)
    assert token_of(str(tmp_path / "waiting-C41.txt")) == token
    assert token_of(str(tmp_path / "report.json")) == token


def test_a_file_that_holds_a_token_alone_is_read(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert token_of(str(tmp_path / "token")) == TOKEN


def test_what_is_no_file_is_taken_as_the_token():
    assert token_of(TOKEN) == TOKEN
    assert token_of("x" * 5000) == "x" * 5000


@pytest.mark.parametrize("content", ["", "nothing here", "{}", "[[[", '{"generations": 3}', f"{TOKEN} mv1.other.00000000"])
def test_a_file_with_no_token_or_several_is_refused_in_words(tmp_path, content):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UsageError, match=r"it holds (no|2) tokens"):
        token_of(str(tmp_path / "file"))


def test_a_file_that_is_no_text_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no text"):
        token_of(str(tmp_path / "file"))
