"""The habits that no linter checks."""

from __future__ import annotations

import ast

from migrate_vma_impl.generations import GENERATIONS
from tests.meta.sources import ROOT, modules

LONG = {
    "conformance/migrate_vma_conformance/scenarios.py": "a list of scenarios, one after the other",
    "spec/migrate_vma_spec/clauses/calling.py": "a chapter of the contract, one clause after the other",
    "spec/migrate_vma_spec/clauses/page_tables.py": "a chapter of the contract, one clause after the other",
    "spec/migrate_vma_spec/events.py": "a list of event classes, one after the other",
    "spec/migrate_vma_spec/world.py": "one fold per kind of event",
}
"""Modules of more than 400 lines, and why they are."""


def test_every_module_says_what_it_is():
    silent = [path for path in modules() if len((ast.get_docstring(_tree(path)) or "").split()) < 2]
    assert silent == []


def test_a_module_stays_below_400_lines_or_has_a_reason():
    long = {str(path) for path in modules() if _text(path).count("\n") > 400}
    assert long <= set(LONG)


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
