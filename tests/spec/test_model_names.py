"""Every operation that a workload can begin is one that the reference model knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import migrate_vma_conformance
import migrate_vma_impl
from migrate_vma_impl.driver import Load
from migrate_vma_spec.model import is_known

SAYS = frozenset({"OperationBegan", "_operation", "system_call"})
"""The calls whose first argument is the name of an operation."""


def _calls(package):
    (root,) = package.__path__
    for path in sorted(Path(root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAYS and node.args:
                yield path.name, node.args[0]


def _names(expression):
    """The names that this expression can give."""
    if isinstance(expression, ast.Constant):
        return [expression.value]
    if isinstance(expression, ast.IfExp):
        return [*_names(expression.body), *_names(expression.orelse)]
    return []


SAID = [
    (file, name)
    for package in (migrate_vma_impl, migrate_vma_conformance)
    for file, expression in _calls(package)
    for name in _names(expression)
]


def test_the_names_of_the_workload_were_found():
    assert {"write", "mmap", "fork", "speculative_reference", "pin", "refused setups"} <= {name for _, name in SAID}


@pytest.mark.parametrize(("file", "name"), SAID)
def test_every_system_call_is_known(file, name):
    assert is_known(name), f"{file} begins {name}"


@pytest.mark.parametrize("load", Load)
def test_every_operation_of_a_driver_is_known(load):
    assert is_known(f"gpu.{load.value}")


@pytest.mark.parametrize("verb", ["get", "pin"])
@pytest.mark.parametrize("fast", ["", "_fast"])
def test_every_way_to_take_pages_is_known(verb, fast):
    assert is_known(f"{verb}_user_pages{fast}")
    assert is_known("put_user_pages" if verb == "get" else "unpin_user_pages")
