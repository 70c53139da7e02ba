"""Long runs of the state machine: what is run, what is told of it, and what is kept when somebody stops it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from migrate_vma_conformance import fuzz as long_run
from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.errors import SubjectError, UsageError
from migrate_vma_conformance.fuzz import WORLDS, Result, Shard, fuzz, rows, shards
from migrate_vma_conformance.machine import Examination, Told
from migrate_vma_conformance.report import fuzz_report
from tests.long.machine import PLACES, all_shards


def quiet(*_):
    return None


def test_shards_share_the_examples_and_each_has_a_seed_of_its_own():
    units = shards("test_hmm", "waiting", "huge", examples=1050, shard=500, seed=7)
    assert [(unit.asked.examples, unit.asked.seed) for unit in units] == [(500, 7), (500, 8), (50, 9)]
    assert {unit.asked.config for unit in units} == {WORLDS["huge"]}


def test_a_driver_is_adapted_where_the_generation_asks_for_it():
    (unit,) = shards("test_hmm", "entry-first", "alone", examples=1)
    assert unit.asked.adapted
    with pytest.raises(SubjectError, match="it has no variant"):
        shards("migrate_vma_impl.drivers.wide:make_wide", "entry-first", "alone", examples=1)


def test_an_unknown_world_is_refused():
    with pytest.raises(UsageError, match=r"--world `flat`: no such world\. Expected: one of roomy, small"):
        shards("test_hmm", "waiting", "flat", examples=1)


def result(seed, *what, lost=None, generation="waiting"):
    asked = Examination("test_hmm", generation, 10, seed=seed)
    return Result(Shard("small", asked), tuple(Told(f"{each} of {seed}", binding=True, what=each) for each in what), lost)


def test_what_several_shards_find_is_told_once_with_the_first_of_them():
    (row,) = rows([result(3, "C10"), result(1, "C10", "C20"), result(2)])
    assert [(finding.told.text, finding.shards) for finding in row.findings] == [("C10 of 1", 2), ("C20 of 1", 1)]
    assert (row.shards, row.examples) == (3, 30)


def test_a_shard_without_a_result_has_run_no_examples():
    (row,) = rows([result(1), result(2, lost="it hung")])
    assert row.examples == 10
    (reason,) = row.lost
    assert reason.endswith("it hung")
    assert "--seed 2" in reason


def test_an_interrupted_run_keeps_what_was_found(monkeypatch):
    def stopped(units, jobs):
        yield result(0, "C10")
        raise KeyboardInterrupt

    monkeypatch.setattr(long_run, "results", stopped)
    found = fuzz("test_hmm", [result(0).shard, result(1).shard], jobs=1, watch=quiet)
    assert found.interrupted
    assert [finding.told.what for finding in found.findings] == ["C10"]
    assert fuzz_report.document(found)["shards"] == {"asked": 2, "done": 1}


@pytest.mark.slow
def test_a_generation_that_breaks_a_clause_is_found_out_in_child_processes():
    known = long_run.Known(allow=frozenset({"C62", "C71", "C77", "C79", "REF"}))
    units = shards("test_hmm", "unreferenced", "small", examples=60, shard=30, known=known)
    found = fuzz("test_hmm", units, jobs=2, watch=quiet)
    assert "C41" in {finding.told.what for finding in found.findings}
    said = "\n".join(fuzz_report.lines(found))
    assert "On unreferenced, in the world small, by the shard of seed" in said
    assert "migrate-vma fuzz test_hmm --generation unreferenced --world small" in said


def run(monkeypatch, *given, done=()):
    monkeypatch.setattr(long_run, "results", lambda units, jobs: (each for each in done))
    return CliRunner().invoke(cli, ["fuzz", "test_hmm", "--generation", "waiting", "--world", "small", *given])


@pytest.mark.parametrize(
    ("done", "given", "code"),
    [
        ([result(0)], [], 0),
        ([result(0, "C10")], [], 1),
        ([result(0, lost="it hung")], [], 3),
        ([result(0, "C10"), result(1, lost="it hung")], [], 1),
    ],
)
def test_exit_codes_are_those_of_a_check(monkeypatch, done, given, code):
    assert run(monkeypatch, *given, done=done).exit_code == code


def test_a_broken_should_counts_if_asked_for(monkeypatch):
    done = [Result(result(0).shard, (Told("C10 softly", binding=False, what="C10"),))]
    assert run(monkeypatch, done=done).exit_code == 0
    assert run(monkeypatch, "--strict", done=done).exit_code == 1


def test_the_document_has_each_finding_with_its_command(monkeypatch):
    said = run(monkeypatch, "--format", "json", done=[result(0, "C10")])
    (row,) = json.loads(said.stdout)["rows"]
    (finding,) = row["findings"]
    assert (finding["what"], finding["seed"], finding["binding"]) == ("C10", 0, True)
    assert finding["command"].startswith("migrate-vma fuzz test_hmm --generation waiting --world small --examples 10 --shard 10")


def test_a_world_that_is_not_there_is_a_usage_error():
    said = CliRunner().invoke(cli, ["fuzz", "--world", "flat"])
    assert said.exit_code == 2
    assert "no such world" in said.stderr


def test_the_projects_own_run_sees_every_place_before_any_place_twice():
    units = all_shards(examples=20, shard=10, seed=0)
    assert [(unit.asked.generation, unit.world) for unit in units[: len(PLACES)]] == list(PLACES)
    assert len(units) == 2 * len(PLACES)
