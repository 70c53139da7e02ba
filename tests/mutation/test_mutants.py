"""Mutation testing itself: what is changed, that it is changed where it stands, and that a change that is missed is told."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from migrate_vma_spec.registry import REGISTRY
from tests.meta.sources import ROOT
from tests.mutation.mutants import _replace, all_mutants
from tests.mutation.operators import apply, changes
from tests.mutation.report import equivalents, tabulate, unknown
from tests.mutation.trials import End, Trial
from tests.processes import environment

MUTANTS = all_mutants()


def changed(source):
    """Every change of a function's one statement, as it is written afterwards."""
    (function,) = ast.parse(f"def judge(memory, old):\n    {source}").body
    return [ast.unparse(apply(function, path, instead).body[0]) for path, _, instead in changes(function)]


@pytest.mark.parametrize(
    ("source", "after"),
    [
        ("x = a < b", ["x = a <= b", "x = a >= b"]),
        ("x = a is None", ["x = a is not None"]),
        ("x = a and b", ["x = a or b", "x = b", "x = a"]),
        ("x = not a", ["x = a"]),
        ("x = 2", ["x = 3", "x = 1"]),
        ("x = True", ["x = False"]),
        ("x = a + b", ["x = a - b"]),
        ("x = a <= b < c", ["x = a < b < c", "x = a > b < c", "x = a <= b <= c", "x = a <= b >= c", "x = a <= b", "x = b < c"]),
        ("return f'{a + 1} is wrong'", ["return None"]),
        ("return KEPT", ["return None"]),
        ("return (later, KEPT)", ["return (memory, KEPT)", "return (later, None)"]),
        ("return f'{a}' if b else None", ["return None", "return f'{a}'", "return None"]),
        ("x = {A, B}", ["x = {B}", "x = {A}"]),
        ("x = [a for a in y if a]", ["x = [a for a in y]"]),
        ("x = event.src", ["x = event.dst"]),
        ("x = old", []),
        ("x = f'{a}' if 1 < 2 else 'words'", []),
        ("x = cast('ev.Event', step.event)", []),
    ],
)
def test_what_is_changed(source, after):
    assert changed(source) == after


def test_a_statement_is_made_to_choose_one_way():
    assert [each.partition("\n")[0] for each in changed("if a:\n        return None")] == ["if True:", "if False:"]


def original(x):
    return x + 1


def test_a_function_is_changed_where_it_stands():
    (function,) = ast.parse("def original(x):\n    return x + 1").body
    ((path, _, instead),) = [each for each in changes(function) if isinstance(each[2], ast.BinOp)]
    _replace(original, function, path, instead)
    assert original(5) == 4


def test_every_mutant_has_a_name_of_its_own_and_belongs_to_a_clause():
    assert len({mutant.key for mutant in MUTANTS}) == len(MUTANTS)
    assert [mutant.key for mutant in MUTANTS if not mutant.clauses] == []
    judged = {clause.id for clause in REGISTRY.values() if clause.progress is None}
    assert judged <= {clause for mutant in MUTANTS for clause in mutant.clauses}


def test_what_is_listed_as_equivalent_is_there_with_a_reason():
    assert unknown(equivalents(), MUTANTS) == []
    assert [key for key, reason in equivalents().items() if len(reason.split()) < 3] == []


def test_a_survivor_counts_unless_it_is_equivalent_which_a_killed_one_may_not_be():
    first, second, third = MUTANTS[:3]
    ends = [Trial(first, End.SURVIVED), Trial(second, End.SURVIVED), Trial(third, End.TIME)]
    table = tabulate(ends, {second.key: "as it is", third.key: "as it is not"})
    assert (table.whole.killed, table.whole.survivors, table.whole.equivalent) == (1, [first.key], 1)
    assert table.stale == [third.key]
    assert table.whole.percent == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "least", "code"),
    [
        ("calling.arrays_are_large_enough: length < pages -> length >= pages", 100, 0),
        ("calling.arrays_are_large_enough: no such change", 0, 1),
        ("tokens._is_guarded: ", 101, 1),
    ],
)
def test_the_command_tries_mutants_against_the_tests(key, least, code):
    command = [sys.executable, "-m", "tests.mutation", "--tests", "tests/spec/test_clauses.py", "--key", key]
    command += ["--at-least", str(least)]
    result = subprocess.run(command, cwd=ROOT, env=environment(), check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout.count("mutants in")) == (code, int("no such" not in key))
