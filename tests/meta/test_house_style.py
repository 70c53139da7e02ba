"""The habits that no linter checks."""

from __future__ import annotations

import ast

from migrate_vma_impl.generations import GENERATIONS
from tests.meta.sources import ROOT, SOURCES, modules

EVERYWHERE = (*SOURCES, "tests")
LONG = "Long because "
"""How the header of a module of more than 400 lines begins to say why it is."""


def test_every_module_says_what_it_is():
    silent = [path for path in modules() if len((ast.get_docstring(_tree(path)) or "").split()) < 2]
    assert silent == []


def test_a_module_stays_below_400_lines_or_its_header_says_why():
    long = [path for path in modules(*EVERYWHERE) if _text(path).count("\n") > 400]
    assert [path for path in long if LONG not in (ast.get_docstring(_tree(path)) or "")] == []


def test_a_test_shows_what_it_asserts():
    """In its own body: a helper answers what was found, and the test says what that has to be."""
    tests = [
        (path, node)
        for path in modules("tests")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(tests) > 1000
    assert [f"{path}:{node.lineno}: {node.name}" for path, node in tests if not _asserts(node)] == []


def _asserts(test):
    """An `assert` or a `raise`, or a block that has to raise or to warn."""
    return any(
        isinstance(node, (ast.Assert, ast.Raise))
        or (isinstance(node, ast.withitem) and ast.unparse(node.context_expr).startswith(("pytest.raises(", "pytest.warns(")))
        for node in ast.walk(test)
    )


def test_every_function_is_written_out():
    reminders = ("NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME", "XX" + "X")
    assert [(path, mark) for path in modules() for mark in reminders if mark in _text(path)] == []


def test_the_simulated_kernel_suspends_in_traps_alone():
    """A generator-based coroutine elsewhere would be a step that no event shows; the canary of the local states runs no task."""
    makers = {path.name for path in modules("impl") if "types.coroutine" in _text(path)}
    assert makers <= {"traps.py", "local_state.py"}


def test_nothing_asks_for_a_generation_by_its_name():
    """It asks for a part or a capability: a comparison with a name would be `if generation == ...`."""
    asked = [
        (path, part.value)
        for path in modules()
        for node in ast.walk(_tree(path))
        if isinstance(node, (ast.Compare, ast.match_case))
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in GENERATIONS
    ]
    assert asked == []


def _text(path):
    return (ROOT / path).read_text()


def _tree(path):
    return ast.parse(_text(path))
