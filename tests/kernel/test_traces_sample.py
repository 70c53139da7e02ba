"""Traces of real kernels: four threads on one page before and after the fixes, and a recording of our own guest."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.kernel.traces.judging import judge_file
from migrate_vma_conformance.report.schema import SCHEMA
from migrate_vma_conformance.subject import find_generation
from migrate_vma_conformance.verdict import EvidenceKind, Verdict

DATA = Path(__file__).with_name("data")
TWO_KERNELS = str(DATA / "race-two-kernels.trace")
BEFORE, AFTER = 1, 2


def check(*arguments):
    return CliRunner().invoke(cli, ["trace", "check", *map(str, arguments)])


def judged(part, generation, path=TWO_KERNELS):
    return judge_file(path, [find_generation(generation)], part=part)


def broken(result):
    return {verdict.clause for verdict in result.report.verdicts if verdict.verdict is Verdict.VIOLATED}


def number_of(text, path=TWO_KERNELS, after=0):
    """The number of the first line after another that holds a text."""
    lines = Path(path).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line and number > after)


# ---- before the fixes: Linux 6.1 ---------------------------------------------------------------------------------------


def test_the_kernel_before_the_fixes_breaks_nothing_of_its_generation():
    assert broken(judged(BEFORE, "referenced")) == set()


def test_its_storm_is_told_in_numbers():
    storms = judged(BEFORE, "referenced").parts[0].storms
    assert (storms.entries, storms.migrations, storms.fruitless, storms.setups, storms.empty) == (5, 1, 4, 5, 4)
    assert (storms.worst.entries, storms.worst.fruitless, len(storms.worst.threads), storms.worst.refs) == (5, 4, 4, 5)
    words = " ".join(check(TWO_KERNELS, "--part", BEFORE, "--generation", "referenced").output.split())
    assert "5 entries into migrate_to_ram, 1 migration, 5.00 for each; 4 entries migrated nothing" in words
    assert "was entered for 5 times by 4 threads" in words


def test_judged_as_a_kernel_that_locks_it_is_told_that_the_fault_page_was_not_locked():
    result = check(TWO_KERNELS, "--part", BEFORE, "--generation", "trylocked")
    words = " ".join(result.output.split())
    setup = number_of("setup: (migrate_vma_setup", after=number_of("init-35"))
    assert result.exit_code == 1
    assert "VIOLATED C30" in result.output
    assert f"{setup}: init-35 [000] ..... 2.504448: setup:" in words
    assert broken(judged(BEFORE, "trylocked")) == {"C30"}


# ---- after the fixes: Linux 7.3 ----------------------------------------------------------------------------------------


def test_the_kernel_after_the_fixes_breaks_nothing():
    result = check(TWO_KERNELS, "--part", AFTER, "--generation", "waiting")
    assert (result.exit_code, broken(judged(AFTER, "waiting"))) == (0, set())


def test_there_each_entry_migrates():
    storms = judged(AFTER, "waiting").parts[0].storms
    assert (storms.entries, storms.migrations, storms.fruitless) == (1, 1, 0)
    assert "1.00 for each; no storm." in " ".join(check(TWO_KERNELS, "--part", AFTER).output.split())


def test_two_probes_at_one_place_are_one_call_and_show_more():
    """The setup's return shows src there, so what cpages counts and what the driver does to src are judged."""
    verdicts = {verdict.clause: verdict.verdict for verdict in judged(AFTER, "waiting").report.verdicts}
    assert [verdicts[clause] for clause in ("C07", "C10", "C11", "C13")] == [Verdict.NO_VIOLATION] * 4
    before = {verdict.clause: verdict.executions for verdict in judged(BEFORE, "waiting").report.verdicts}
    assert (before["C10"], before["C11"]) == (0, 1)


# ---- the file as a whole -----------------------------------------------------------------------------------------------


def test_each_recording_in_a_file_is_judged_by_itself():
    result = judged(None, "trylocked")
    assert [(part.number, part.events, bool(part.juries[0].broken)) for part in result.parts] == [(1, 44, True), (2, 23, False)]
    assert [(part.first, part.last) for part in result.parts] == [(1, 46), (48, 71)]


@pytest.mark.parametrize(("given", "generation"), [("referenced", "referenced"), ("v6.1", "referenced"), ("7.3.4", "waiting")])
def test_a_generation_is_named_by_itself_or_by_a_kernel(given, generation):
    assert f"As {generation}:" in check(TWO_KERNELS, "--part", AFTER, "--generation", given).output


def test_a_generation_that_is_not_there_is_refused():
    result = check(TWO_KERNELS, "--generation", "9.9")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no such generation" in " ".join(result.stderr.split())


def test_a_part_that_is_not_there_is_refused():
    result = check(TWO_KERNELS, "--part", 3)
    assert result.exit_code == 2
    assert "--part `3`: the file has 2." in " ".join(result.stderr.split())


@pytest.mark.parametrize("generation", ["referenced", "trylocked", "v7.3", "all"])
def test_the_document_follows_the_schema_of_a_check(generation):
    result = check(TWO_KERNELS, "--generation", generation, "--format", "json")
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["exit"] == result.exit_code
    assert all({"C01", "C30", "REF"} <= set(found["clauses"]) for found in document["generations"].values())
    assert [part["storms"]["entries"] for part in document["trace"]["parts"]] == [5, 1]


def test_the_document_has_the_lines_of_a_violation():
    document = json.loads(check(TWO_KERNELS, "--part", BEFORE, "--generation", "trylocked", "--format", "json").stdout)
    (violation,) = document["trace"]["parts"][0]["violations"]
    lines = Path(TWO_KERNELS).read_text().splitlines()
    assert violation["clause"] == "C30"
    assert all(lines[line["number"] - 1] == line["text"] for line in violation["lines"])
    assert document["generations"]["trylocked"]["clauses"]["C30"]["counterexample"] == f"{TWO_KERNELS}:{violation['line']}"


def test_a_trace_never_shows_that_a_clause_holds():
    verdicts = [verdict for generation in ("referenced", "waiting") for verdict in judged(None, generation).report.verdicts]
    assert Verdict.HOLDS not in {verdict.verdict for verdict in verdicts}
    assert EvidenceKind.EXHAUSTIVE not in {verdict.evidence for verdict in verdicts}


def test_every_clause_that_is_not_judged_says_why():
    verdicts = judged(BEFORE, "referenced").report.verdicts
    assert [verdict.clause for verdict in verdicts if not verdict.executions and not verdict.reason] == []
    words = " ".join(check(TWO_KERNELS, "--part", BEFORE).output.split())
    assert "Not judged, because which locks a thread holds" in words
    assert "progress is judged on the cycles of a whole state graph" in words


# ---- recorded by us ----------------------------------------------------------------------------------------------------

OURS = {"6.1": "referenced", "7.3": "waiting"}
"""Our guests, and what they are judged as by themselves."""


def ours(guest):
    return str(DATA / f"race-{guest}.trace")


@pytest.mark.parametrize("guest", OURS)
def test_our_own_recordings_name_their_kernels_and_are_judged_as_those(guest):
    result = check(ours(guest))
    assert (result.exit_code, f"Part 1 of Linux {guest}." in result.output) == (0, True)
    assert f"As {OURS[guest]}:" in result.output


SHOWN = {"C03", "C07", "C11", "C13", "C29", "C33", "C43", "C50"}


@pytest.mark.parametrize(("guest", "also"), [("6.1", set()), ("7.3", {"C10", "C12"})])
def test_our_probes_show_the_fault_and_new_kernels_the_return_of_setup(guest, also):
    verdicts = judged(1, OURS[guest], ours(guest)).report.verdicts
    assert {verdict.clause for verdict in verdicts if verdict.verdict is Verdict.NO_VIOLATION} == SHOWN | also


def test_threads_storm_on_the_old_guest_and_wait_on_the_new_one():
    old, new = (judged(1, OURS[guest], ours(guest)).parts[0].storms for guest in OURS)
    assert (old.entries, old.migrations, old.fruitless) == (5, 3, 2)
    assert (new.entries, new.migrations, new.fruitless) == (3, 3, 0)
