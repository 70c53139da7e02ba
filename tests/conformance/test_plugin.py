"""The pytest plugin, in sessions of its own: it is quiet where it is not used, and works under xdist."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import environment

pytest_plugins = ["pytester"]

KIT = """
    import pytest
    from migrate_vma_conformance import kit
    from tests.conformance import reports

    @pytest.fixture(scope="session", autouse=True)
    def kit_that_answers_at_once():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kit, "check", lambda subject, generations, options: reports.the_mail())
            yield
"""

TESTS = """
    from migrate_vma_conformance.verdict import exit_code

    def test_broken(migrate_vma_report):
        assert exit_code(migrate_vma_report) == 1

    def test_subject(migrate_vma_driver, migrate_vma_generation, migrate_vma_options):
        assert (migrate_vma_driver, migrate_vma_generation) == ("wide", "v6.1")
        assert migrate_vma_options.profile.value == "quick"
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A third party's project. Plugins are named, so it does not matter whether ours is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makeconftest(KIT)
    pytester.makepyfile(TESTS)
    return pytester


def run(project, *words):
    return project.runpytest_subprocess("-p", "migrate_vma_conformance.plugin", "-p", "xdist.plugin", *words)


@pytest.mark.slow
def test_the_report_is_a_fixture_and_its_table_is_printed(project):
    result = run(project, "--migrate-vma-driver", "wide", "--migrate-vma-generation", "v6.1")
    assert result.parseoutcomes() == {"passed": 2}
    head = "migrate-vma: driver wide, generation v6.1, profile quick"
    result.stdout.fnmatch_lines([head, "*migrate-vma: wide on v6.1*", "C41*VIOLATED*"])


@pytest.mark.slow
def test_under_xdist_the_table_is_printed_once(project):
    result = run(project, "--migrate-vma-driver", "wide", "--migrate-vma-generation", "v6.1", "-n2")
    assert result.parseoutcomes() == {"passed": 2}
    assert sum("= migrate-vma: wide on v6.1 =" in line for line in result.outlines) == 1


@pytest.mark.slow
def test_without_a_driver_the_fixtures_skip_and_nothing_is_printed(project):
    result = run(project)
    assert result.parseoutcomes() == {"skipped": 2}
    assert "migrate-vma:" not in result.stdout.str()


@pytest.mark.slow
def test_a_project_can_name_its_driver_in_a_conftest(project):
    project.makeconftest(KIT + "\n    @pytest.fixture(scope='session')\n    def migrate_vma_driver():\n        return 'wide'\n")
    assert run(project, "--migrate-vma-generation", "v6.1").parseoutcomes() == {"passed": 2}


@pytest.mark.slow
def test_a_driver_that_cannot_be_found_fails_in_one_sentence(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makepyfile("def test_it(migrate_vma_report):\n    assert migrate_vma_report")
    result = run(pytester, "--migrate-vma-driver", "nosuch")
    assert result.parseoutcomes() == {"errors": 1}
    result.stdout.fnmatch_lines(["*`nosuch`*"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.slow
def test_loading_the_plugin_imports_neither_the_kit_nor_hypothesis():
    code = (
        "import sys, migrate_vma_conformance.plugin\n"
        "heavy = {'hypothesis', 'click', 'rich', 'migrate_vma_impl', 'migrate_vma_spec', 'migrate_vma_conformance.kit'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment(), check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
