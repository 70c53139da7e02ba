"""Bugs of third parties: by path, by entry point, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest
from attrs import evolve
from click.testing import CliRunner

from migrate_vma_conformance import bug_collections, kill_matrix
from migrate_vma_conformance.bug_collections import GROUP, chosen_bugs, third_party_bugs
from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kill_matrix import Fate
from migrate_vma_conformance.options import CheckOptions, Profile
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.bugs.collection import BUGS, find_bug
from migrate_vma_impl.generations import WAITING

MODULE = """
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.bugs.collection import find_bug
from migrate_vma_impl.generations import WAITING

def keep_clean(folio, pte):
    return nothing()

async def nothing():
    pass

OURS = (
    Bug("their_own", "dirtiness is lost", "A store is lost when the page is swapped.", ("C61",),
        WAITING.with_steps(keep_dirty=keep_clean), kernels="their own"),
)
EMPTY = ()
NUMBER = 7
MIXED = [*OURS, 7]
TWICE = OURS + OURS
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of somebody else's, that this process and its children find."""
    (tmp_path / "their_bugs.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "their_bugs"


def refusal(path):
    with pytest.raises(UsageError) as refused:
        third_party_bugs(path)
    return str(refused.value)


@pytest.mark.slow
def test_bugs_of_a_third_party_are_held_to_the_same_matrix(module):
    matrix = kill_matrix.kill_matrix(third_party_bugs(f"{module}:OURS"), CheckOptions(profile=Profile.QUICK, jobs=2))
    (row,) = matrix.rows
    assert (row.bug.id, row.fate) == ("their_own", Fate.CAUGHT)
    assert matrix.unguarded(["C61", "C62"]) == ["C62"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NUMBER", "it names a int, not a sequence of bugs"),
        ("EMPTY", "it names a tuple, not a sequence of bugs"),
        ("MIXED", "it names a list, not a sequence of bugs"),
        ("TWICE", "two bugs are called so"),
        ("NOBODY", "their_bugs has no NOBODY"),
    ],
)
def test_what_is_no_collection_is_refused_in_words(module, name, said):
    assert said in refusal(f"{module}:{name}")


def test_a_module_that_is_not_there_is_refused_in_words(module):
    assert "importing nowhere_at_all failed" in refusal("nowhere_at_all:BUGS")


SOUND = Bug("mine", "a title", "A sentence.", ("C61",), WAITING)


@pytest.mark.parametrize(
    ("bug", "said"),
    [
        (evolve(SOUND, clauses=("C99",)), "it is to be caught by 'C99'"),
        (evolve(SOUND, clauses=()), "it is to be caught by no clause"),
        (evolve(SOUND, record=evolve(WAITING, name="mine")), "its record is called 'mine', which is no generation"),
    ],
)
def test_a_bug_that_cannot_be_compared_is_refused_in_words(monkeypatch, bug, said):
    monkeypatch.setattr(bug_collections, "load", lambda *_: (bug,))
    assert said in refusal("their_bugs:BUGS")


def installed(monkeypatch, *values):
    points = [EntryPoint(f"theirs{number}", value, GROUP) for number, value in enumerate(values)]
    monkeypatch.setattr(bug_collections, "entry_points", lambda group: [point for point in points if point.group == group])


def test_bugs_of_installed_packages_stand_beside_ours(monkeypatch, module):
    installed(monkeypatch, f"{module}:OURS")
    known = chosen_bugs(None, [])
    assert [bug.id for bug in known[len(BUGS) :]] == ["their_own"]
    assert [bug.id for bug in chosen_bugs(None, ["their_own", "B07"])] == ["their_own", "B07"]


def test_an_entry_point_that_cannot_be_used_is_named(monkeypatch, module):
    installed(monkeypatch, f"{module}:NUMBER")
    with pytest.raises(UsageError, match=r"entry point theirs0 of migrate_vma.bugs `their_bugs:NUMBER`: it names a int"):
        chosen_bugs(None, [])


def test_two_packages_cannot_have_bugs_of_one_id(monkeypatch, module):
    installed(monkeypatch, f"{module}:OURS", f"{module}:OURS")
    with pytest.raises(UsageError, match="two bugs are called so"):
        chosen_bugs(None, [])


def test_the_command_lists_a_collection_of_somebody_else(module):
    result = CliRunner().invoke(cli, ["bugs", "--bugs", f"{module}:OURS", "--format", "json"])
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)
    assert (row["id"], row["kernels"], row["how"]) == ("their_own", "their own", "keep_dirty: keep_clean")


def test_the_command_refuses_what_it_does_not_know():
    result = CliRunner().invoke(cli, ["bugs", "--only", "B99"])
    assert result.exit_code == 2
    assert "there is no such bug" in result.stderr
    known = CliRunner().invoke(cli, ["bugs", "--only", "B40"])
    assert known.exit_code == 2
    assert "it cannot be shown: waits for the xe driver" in known.stderr


def test_a_bug_of_ours_is_compared_with_the_driver_that_plays():
    assert find_bug("B07").beside == "test_hmm"
    assert find_bug("B21").beside == "test_hmm", "its own driver is the one at fault"
    assert Bug("mine", "", "", ("C61",), WAITING, "wide").beside == "wide"
