"""The command line with the real kit behind it: a check, the replay of what it found, and input that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.report.files import token_of
from migrate_vma_conformance.report.schema import check_document
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import GENERATIONS
from tests.processes import environment

pytestmark = pytest.mark.slow

MODELS = """
def returns_none(kernel):
    return None

def raises(kernel):
    raise ValueError("no such device")

NUMBER = 3
"""


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def complaint(result):
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What a quick check of the oldest generation printed, and the directory that it wrote."""
    directory = tmp_path_factory.mktemp("checked")
    result = run("check", "--generation", "v6.0", "--profile", "quick", "--format", "json", "--output", directory)
    return result, directory


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A directory of a third party's modules, which is the current one."""
    (tmp_path / "third_party_models.py").write_text(MODELS)
    (tmp_path / "third_party_raises.py").write_text("raise RuntimeError('not\\ntoday')\n")
    (tmp_path / "third_party_exits.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "third_party_broken.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_check_by_kernel_version_finds_the_use_after_free(checked):
    result, _ = checked
    document = json.loads(result.stdout)
    check_document(document, "test")
    assert (result.exit_code, document["exit"]) == (1, 1)
    found = document["generations"]["unreferenced"]["clauses"]
    assert {clause for clause in ("C41", "C50") if found[clause]["verdict"] == "violated"} == {"C41", "C50"}


def test_what_a_check_found_is_replayed_from_token_and_file_with_the_same_verdict(checked):
    _, directory = checked
    token = token_of(str(directory / "unreferenced-C41.txt"))
    by_token, by_file = run("replay", token), run("replay", directory / "unreferenced-C41.txt")
    assert (by_token.exit_code, by_token.stdout) == (1, by_file.stdout)
    assert "violated, a MUST" in by_token.stdout


def test_a_replay_is_the_same_byte_for_byte_in_other_processes(checked):
    _, directory = checked
    token = token_of(str(directory / "unreferenced-C50.txt"))
    here = run("replay", token, "--state", "--all").stdout
    code = "from migrate_vma_conformance.cli import main; main()"
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, "replay", token, "--state", "--all"]
        there = subprocess.run(command, env=environment(PYTHONHASHSEED=seed), check=False, capture_output=True, text=True)
        assert (there.returncode, there.stdout) == (1, here)


def test_a_token_that_was_cut_or_changed_is_refused_in_words(checked):
    _, directory = checked
    token = token_of(str(directory / "unreferenced-C41.txt"))
    for broken in (token[:-1], token[:20], token[:30] + "A" + token[31:], token.replace("mv1", "mv9"), "mv1", "nonsense", ""):
        result = run("replay", broken)
        assert (result.exit_code, result.stdout) == (2, ""), broken
        assert "Expected: " in complaint(result)


def test_an_unknown_driver_is_told_what_there_is():
    result = run("check", "nosuch")
    assert result.exit_code == 2
    assert "`nosuch`" in complaint(result)
    assert "package.module:factory" in complaint(result)
    assert all(name in complaint(result) for name in DRIVERS)


def test_an_unknown_scenario_is_told_what_there_is():
    result = run("check", "--scenario", "drain", "--scenario", "nosuch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--scenario `nosuch`: there is no such scenario." in complaint(result)
    assert all(name in complaint(result) for name in SCENARIOS)


def test_scenarios_that_are_named_are_the_only_ones_that_run():
    result = run("check", "--scenario", "fault-short", "--scenario", "refused", "--format", "json")
    clauses = json.loads(result.stdout)["generations"]["waiting"]["clauses"]
    assert {each["name"] for said in clauses.values() for each in said["evidence"]["scenarios"]} == {"fault-short", "refused"}
    [evidence] = clauses["C79"]["evidence"]["scenarios"]
    assert evidence["counterexample"] == clauses["C79"]["counterexample"] is not None


def test_an_unknown_generation_is_told_names_and_aliases():
    result = run("check", "--generation", "v5.4")
    assert result.exit_code == 2
    assert all(name in result.stderr.replace("\n  ", "") for name in (*GENERATIONS, "v6.15"))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("third_party_nosuch:make", "third_party_nosuch"),
        ("third_party_raises:make", "RuntimeError: not today"),
        ("third_party_exits:make", "SystemExit: bye"),
        ("third_party_broken:make", "SyntaxError"),
        ("third_party_models:nosuch", "nosuch"),
        ("third_party_models:NUMBER", "3"),
        ("third_party_models:", "third_party_models:"),
    ],
)
def test_a_driver_that_cannot_be_loaded_is_one_paragraph_and_no_traceback(driver, words):
    result = run("check", driver, "--profile", "quick")
    assert result.exit_code in {2, 3}
    assert result.stdout == ""
    assert words in complaint(result)
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("driver", "words"), [("returns_none", "returned None"), ("raises", "ValueError: no such device")])
def test_a_driver_that_breaks_the_rules_is_inconclusive_with_the_reason(driver, words):
    result = run("check", f"third_party_models:{driver}", "--profile", "quick")
    assert result.exit_code == 3
    assert words in " ".join(result.stdout.split())
    assert "VIOLATED" not in result.stdout
