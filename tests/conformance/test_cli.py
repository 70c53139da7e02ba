"""The command line against a kit that answers what a test wants: options, exit codes, output, and how it refuses."""

from __future__ import annotations

import json

import jsonschema
import pytest
from attrs import define, field
from click.testing import CliRunner

from migrate_vma_conformance import __version__, kit
from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.errors import Interrupted, SubjectError, UsageError
from migrate_vma_conformance.options import CheckOptions, Fairness, Profile
from migrate_vma_conformance.report.schema import SCHEMA, check_document
from migrate_vma_impl.generations import GENERATIONS
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.schema import from_json, json_schema
from tests.conformance import reports
from tests.conformance.reports import TOKEN


@define
class FakeKit:
    """Answers with `answer`, or raises it, and keeps what it was asked."""

    answer: object = field(factory=reports.holding)
    asked: list[tuple[object, ...]] = field(factory=list)

    def check(self, subject, generations, options, progress):
        self.asked.append((subject, list(generations), options))
        return self._reply()

    def replay(self, token, until=None, *, state=False):
        self.asked.append((token, until, state))
        return self._reply()

    def _reply(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def fake(monkeypatch):
    made = FakeKit()
    monkeypatch.setattr(kit, "check", made.check)
    monkeypatch.setattr(kit, "replay", made.replay)
    return made


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def complaint(result):
    """What standard error says, as one line."""
    return " ".join(result.stderr.split())


# ---- check -----------------------------------------------------------------------------------------------------------


def test_the_built_in_driver_on_the_newest_kernel_is_checked_unless_told_otherwise(fake):
    assert run("check").exit_code == 0
    subject, generations, options = fake.asked[0]
    assert (subject, generations) == ("test_hmm", ["waiting"])
    assert options == CheckOptions(jobs=options.jobs)
    assert options.jobs >= 1


def test_every_option_reaches_the_kit(fake):
    run(
        *("check", "mine.model:make", "--generation", "v6.1", "--preemption", "voluntary", "--fairness", "weak"),
        *("--profile", "deep", "--seed", "7", "--jobs", "3", "--patch", "mine.patch:RECORD"),
    )
    options = CheckOptions((Preemption.VOLUNTARY,), Fairness.WEAK, Profile.DEEP, 7, 3, "mine.patch:RECORD")
    assert fake.asked == [("mine.model:make", ["v6.1"], options)]


def test_scenarios_that_are_named_are_the_only_ones(fake):
    run("check", "--scenario", "drain", "--scenario", "fault2", "--scenario", "drain")
    assert fake.asked[0][2].scenarios == ("drain", "fault2")


def test_a_patch_alone_is_checked_alone(fake):
    run("check", "--patch", "mine.patch:RECORD")
    assert fake.asked[0][1] == []


@pytest.mark.parametrize(
    ("report", "options", "code"),
    [
        (reports.holding(), [], 0),
        (reports.the_mail(), [], 1),
        (reports.unknown(), [], 3),
        (reports.only_should(), [], 0),
        (reports.only_should(), ["--strict"], 1),
    ],
)
def test_the_exit_code_and_the_json_say_the_same(fake, report, options, code):
    fake.answer = report
    result = run("check", "--format", "json", *options)
    document = json.loads(result.stdout)
    check_document(document, "test")
    assert (result.exit_code, document["exit"]) == (code, code)


def test_standard_output_carries_the_report_alone_and_a_pipe_is_quiet(fake):
    fake.answer = reports.the_mail()
    result = run("check")
    assert result.stdout.startswith("  driver")
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_the_report_names_the_command_that_repeats_it(fake):
    words = "--generation all --scenario drain --scenario fault2 --seed 3 --strict"
    result = run("check", *words.split(), "--format", "json")
    assert json.loads(result.stdout)["command"] == f"migrate-vma check {words}"


def test_a_verbose_table_has_a_row_for_every_clause(fake):
    assert "C01  holds" in run("check", "-v").stdout
    assert "C01  holds" not in run("check").stdout


def test_output_writes_the_report_beside_printing_it(fake, tmp_path):
    fake.answer = reports.the_mail()
    result = run("check", "--output", tmp_path / "out", "--format", "json")
    assert (tmp_path / "out" / "report.json").read_text() == result.stdout
    assert (tmp_path / "out" / "unreferenced-C41.txt").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_output_that_is_a_file_is_refused_with_exit_code_2(fake, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("check", "--output", tmp_path / "file")
    assert (result.exit_code, fake.asked) == (2, []), "before anything is checked"
    assert "--output" in complaint(result)


def test_an_output_with_somebody_elses_report_is_refused_with_exit_code_2(fake, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    result = run("check", "--output", tmp_path)
    assert (result.exit_code, fake.asked) == (2, []), "before anything is checked"
    assert "a directory of its own" in complaint(result)


def test_an_interrupted_check_prints_what_was_found_and_exits_with_130(fake):
    fake.answer = Interrupted(reports.the_mail())
    result = run("check")
    assert result.exit_code == 130
    assert "VIOLATED" in result.stdout
    assert "interrupted" in complaint(result)


def test_an_interrupt_before_anything_was_found_exits_with_130(fake):
    fake.answer = KeyboardInterrupt()
    result = run("check")
    assert (result.exit_code, result.stdout) == (130, "")


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_usage_error_of_the_kit_is_one_paragraph_with_exit_code_2(fake):
    fake.answer = UsageError("v5.4", "--generation", "there is no such generation", "all, or one of: waiting")
    result = run("check", "--generation", "v5.4")
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint(result).endswith("--generation `v5.4`: there is no such generation. Expected: all, or one of: waiting.")


def test_a_subject_that_breaks_the_rules_is_inconclusive(fake):
    fake.answer = SubjectError("mine:make", "its factory returned None")
    result = run("check", "mine:make")
    assert result.exit_code == 3
    assert "its factory returned None" in complaint(result)


def test_a_fault_of_the_kit_is_told_as_one_and_shows_no_traceback_unless_asked(fake):
    fake.answer = ZeroDivisionError("division by zero")
    result = run("check")
    assert result.exit_code == 3
    assert "fault of the kit" in complaint(result)
    assert "Traceback" not in result.stderr
    assert "Traceback" in run("--traceback", "check").stderr


def test_a_subject_that_ends_the_program_is_told_of(fake):
    fake.answer = SystemExit("bye")
    result = run("check")
    assert result.exit_code == 3
    assert "SystemExit: bye" in complaint(result)


def test_a_complaint_is_one_paragraph_whatever_it_quotes(fake):
    fake.answer = SubjectError("mine:make", "it raised ValueError: one\n\n\x1b[2Jtwo " + "x" * 100)
    result = run("check")
    assert "\n\n" not in result.stderr
    assert "\x1b" not in result.stderr
    assert max(map(len, result.stderr.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--preemption", "some"],
        ["check", "--fairness", "fair"],
        ["check", "--profile", "fast"],
        ["check", "--jobs", "0"],
        ["check", "--seed", "x"],
        ["check", "--format", "xml"],
        ["check", "one", "two"],
        ["replay"],
        ["nonsense"],
    ],
)
def test_options_that_cannot_be_are_refused_with_exit_code_2(fake, words):
    result = run(*words)
    assert (result.exit_code, result.stdout, fake.asked) == (2, "", [])
    assert "Error:" in result.stderr


# ---- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_exits_as_the_check_did(fake):
    fake.answer = reports.replayed()
    result = run("replay", TOKEN)
    assert result.exit_code == 1
    assert "CPU 1: cpu1" in result.stdout
    assert fake.asked == [(TOKEN, None, False)]


def test_a_replay_takes_a_file_a_clause_and_the_state(fake, tmp_path):
    fake.answer = reports.replayed()
    (tmp_path / "splat.txt").write_text(f"migrate-vma replay {TOKEN}\n")
    result = run("replay", tmp_path / "splat.txt", "--until", "c41", "--state")
    assert fake.asked == [(TOKEN, "C41", True)]
    assert "folio 8: refcount 0, free" in result.stdout


def test_a_replay_as_json_carries_the_trace(fake):
    fake.answer = reports.replayed()
    document = json.loads(run("replay", TOKEN, "--format", "json").stdout)
    assert (document["verdict"], document["clause"], document["exit"]) == ("violated", "C41", 1)
    assert len(document["trace"]) == len(document["stacks"]) == len(reports.trace()[0])
    assert [from_json(line) for line in document["trace"]] == list(reports.trace()[0])


def test_an_unknown_clause_to_stop_at_is_refused_before_anything_runs(fake):
    result = run("replay", TOKEN, "--until", "C999")
    assert (result.exit_code, fake.asked) == (2, [])
    assert "`C999`: there is no such clause" in complaint(result)


# ---- listings --------------------------------------------------------------------------------------------------------


def test_clauses_are_listed_under_their_chapters():
    result = run("clauses")
    assert result.exit_code == 0
    assert "  C41  MUST   fault path" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_clause_is_shown_whole():
    result = run("clauses", "c41")
    for label in ("clause", "binds", "source", "requires"):
        assert f"\n  {label}" in result.stdout
    assert result.stdout.startswith("C41 ")


def test_clauses_as_json_hold_what_the_registry_holds():
    document = json.loads(run("clauses", "--format", "json").stdout)
    one = json.loads(run("clauses", "C84", "--format", "json").stdout)
    assert {"C01", "C41", "C84", "C94"} <= {clause["id"] for clause in document}
    assert one == [clause for clause in document if clause["id"] == "C84"]
    assert one[0]["progress"] == "livelock"


def test_an_unknown_clause_is_refused_with_exit_code_2():
    assert run("clauses", "C999").exit_code == 2


def test_generations_are_listed_with_kernels_parts_and_capabilities():
    result = run("generations")
    assert result.exit_code == 0
    for name in GENERATIONS:
        assert f"{name}\n" in result.stdout
    assert "v6.1 (as of v6.1.192)" in result.stdout
    assert "lose_by_waiting *" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_generations_as_json():
    document = json.loads(run("generations", "--format", "json").stdout)
    assert [each["name"] for each in document] == list(GENERATIONS)
    assert document[1]["parts"]["claim_fault_page"] == "claim_reference"


def test_bugs_are_listed_and_as_json_a_row_each():
    rows = json.loads(run("bugs", "--format", "json").stdout)
    assert len({row["id"] for row in rows}) == len(rows) > 50
    (put,) = [row for row in rows if row["id"] == "B07"]
    assert put["clauses"] == ["C36"]
    text = run("bugs").stdout
    assert "B07  put before unlock\n" in text
    assert "B40  two devices pull one range: waits for the xe driver" in " ".join(text.split("\n"))
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("bugs", "--only", "B99"), "there is no such bug"),
        (("bugs", "--only", "B40"), "waits for the xe driver"),
        (("bugs", "--bugs", "nowhere:BUGS"), "importing nowhere failed"),
        (("bugs", "--bugs", "json:dumps"), "not a sequence of bugs"),
        (("check", "--as-shipped", "v9.9"), "v7.3"),
        (("check", "--generation", "waiting+larger"), "there is no such generation"),
    ],
)
def test_what_cannot_be_found_is_said_with_exit_code_2(words, told):
    result = run(*words)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


def test_scenarios_are_listed_with_their_sentences():
    result = run("scenarios")
    document = json.loads(run("scenarios", "--format", "json").stdout)
    assert "\ndrain\n" in result.stdout
    assert "drain" in {each["name"] for each in document}
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("of", ["events", "report"])
def test_the_schemas_are_printed(of):
    schema = json.loads(run("schema", of).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == {"events": json_schema(), "report": SCHEMA}[of]


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout == f"migrate-vma, version {__version__}\n"
