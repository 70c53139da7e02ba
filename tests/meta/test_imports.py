"""The import rule: the contract and the simulated kernel are written twice, so neither may lean on the other."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.sources import ROOT, SOURCES, modules


@pytest.mark.slow
def test_the_import_rule_holds():
    tool = shutil.which("lint-imports", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert tool is not None, "import-linter is part of the extra `test`"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / source) for source in SOURCES)}
    result = subprocess.run([tool, "--no-cache"], cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_simulated_kernel_takes_words_from_the_contract_and_nothing_else():
    """The same in other words, for imports that a linter might be told to ignore."""
    taken = {
        node.module
        for path in modules("impl")
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("migrate_vma_")
    }
    assert {name for name in taken if not name.startswith("migrate_vma_impl")} == {
        "migrate_vma_spec.events",
        "migrate_vma_spec.records",
        "migrate_vma_spec.vocabulary",
    }


def test_only_the_verdict_module_makes_verdicts():
    """`holds` is said in one place: nobody else calls ClauseVerdict."""
    makers = {
        path.name
        for path in modules()
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ClauseVerdict")
    }
    assert makers == {"verdict.py"}
