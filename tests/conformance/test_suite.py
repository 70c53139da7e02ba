"""The suite that a third party runs: one test for each clause, and the drawn workloads."""

from __future__ import annotations

import os
import sys

import pytest

from migrate_vma_conformance import pool, suite
from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.machine import Examination, Told, examine
from migrate_vma_conformance.pool import Lost, run_one

pytest_plugins = ["pytester"]

CONFTEST = """
    import pytest
    from migrate_vma_conformance import kit, suite
    from migrate_vma_conformance.machine import Told
    from migrate_vma_conformance.verdict import GenerationReport, Report, conclude
    from migrate_vma_spec.registry import Level
    from migrate_vma_spec.vocabulary import Capability
    from tests.conformance.reports import example, finding

    VERDICTS = {
        "C01": conclude("C01", Level.MUST, [finding()]),
        "C02": conclude("C02", Level.MUST, [finding(complete=False)]),
        "C03": conclude("C03", Level.MUST, [finding(failure="the driver raised ValueError: 3", complete=False)]),
        "C05": conclude("C05", Level.MUST, [finding(reached=False)]),
        "C31": conclude("C31", Level.MUST, [finding()], missing={Capability.FAULT_LOCK}),
        "C41": conclude("C41", Level.MUST, [finding(example())]),
        "C85": conclude("C85", Level.SHOULD, [finding(example("C85", cycle=3))]),
    }
    REPORT = Report("wide", (GenerationReport("waiting", VERDICTS),), 1.0, 0, "migrate-vma check wide", ())

    def drawn(function, asked, *, seconds):
        assert asked.allow == {"C41", "C85"}
        return (Told("C77 " + asked.driver, binding=False),)

    @pytest.fixture(scope="session", autouse=True)
    def kit_that_answers_at_once():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kit, "check", lambda subject, generations, options: REPORT)
            patch.setattr(suite, "run_one", drawn)
            yield
"""


@pytest.fixture(scope="module")
def clauses():
    return set(judged_clauses())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "under xdist"])
def test_each_clause_is_a_test_with_the_outcome_of_its_verdict(pytester, monkeypatch, clauses, workers):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makeconftest(CONFTEST)
    plugins = ("-p", "migrate_vma_conformance.plugin", "-p", "xdist.plugin")
    words = ("--pyargs", "migrate_vma_conformance.suite", "--migrate-vma-driver", "wide", "-rA", "-W", "error", *workers)
    result = pytester.runpytest_subprocess(*plugins, *words)
    assert result.parseoutcomes() == {"passed": 2, "failed": 2, "xfailed": 2, "skipped": len(clauses) - 5}
    result.stdout.fnmatch_lines_random(
        [
            "PASSED *test_clause?C01?",
            "PASSED *test_clause?C02?",
            "FAILED *test_clause?C03? - Failed: C03: inconclusive: *the driver raised ValueError: 3*",
            "FAILED *test_clause?C41? - Failed: C41 reference before callback*",
            "BUG: migrate_vma: C41 *",
            "migrate-vma replay mv1.*",
            "XFAIL *test_clause?C85? - *C85 *",
            "XFAIL *test_drawn_workloads - *C77 wide",
            "*never-reached: no scenario that was run concerns it*",
            "*not-applicable: the subject does not have*",
        ]
    )


@pytest.mark.slow
def test_without_a_driver_everything_is_skipped(pytester, monkeypatch, clauses):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    words = ("-p", "migrate_vma_conformance.plugin", "--pyargs", "migrate_vma_conformance.suite")
    assert pytester.runpytest_subprocess(*words).parseoutcomes() == {"skipped": len(clauses) + 1}


def test_what_binds_fails_and_what_does_not_is_expected_to():
    suite._tell([])
    with pytest.raises(pytest.fail.Exception, match="one\n\nother"):
        suite._tell([Told("one", binding=False), Told("other", binding=True)])
    with pytest.raises(pytest.xfail.Exception, match="one"):
        suite._tell([Told("one", binding=False)])


@pytest.mark.slow
def test_a_driver_that_never_awaits_ends_its_test_and_not_the_session(monkeypatch):
    monkeypatch.setattr(pool, "STEP_SECONDS", 0.5)
    found = run_one(examine, Examination("tests.conformance.subjects.endless:spins_in_to_device", "waiting", 20), seconds=30)
    assert isinstance(found, Lost)
    assert "loops without awaiting anything" in found.reason
