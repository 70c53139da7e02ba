"""The project's own files: what is said twice is said alike."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

import migrate_vma_conformance
from tests.meta.sources import ROOT, SOURCES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "conformance/migrate_vma_conformance/__init__.py"
    assert f"## {migrate_vma_conformance.__version__} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("source", SOURCES)
def test_every_package_is_in_the_wheel_and_says_that_it_is_typed(source):
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert f"{source}/migrate_vma_{source}" in packages
    assert (ROOT / source / f"migrate_vma_{source}" / "py.typed").is_file()


def test_every_tool_knows_the_three_source_roots():
    tool = PROJECT["tool"]
    paths = tool["pytest"]["ini_options"]["pythonpath"]
    for roots in (paths, tool["mypy"]["mypy_path"], tool["pyright"]["extraPaths"], tool["ruff"]["src"]):
        assert roots[:3] == list(SOURCES)


def test_floors_are_what_the_floor_environment_runs():
    tox = (ROOT / "tox.ini").read_text()
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in (*PROJECT["project"]["dependencies"], *extras["test"], *extras["report"]):
        name, floor = requirement.split(">=")
        assert re.search(rf"^ +{name}=={re.escape(floor)}(\.\d+)*$", tox, re.MULTILINE), requirement


def test_every_python_that_is_promised_is_tested():
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    environments = re.findall(r"^ +py3(\d+)$", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    assert classified == [f"3.{minor}" for minor in environments]
    assert PROJECT["project"]["requires-python"] == f">={classified[0]}"


def test_ci_runs_the_test_command_of_the_readme():
    marked = re.search(r"<!-- the test command -->\n```sh\n(.+)\n```", README)
    assert marked is not None
    assert "pytest" in marked[1]
    assert "<!-- the test command -->" in (ROOT / ".ci" / "run").read_text()


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_document_is_what_the_clauses_say():
    command = [sys.executable, "-m", "migrate_vma_spec.document", "--check"]
    environment = {"PYTHONPATH": str(ROOT / "spec")}
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
