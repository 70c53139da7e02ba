"""What is recorded of real kernels' own hmm-tests, and the table that it stands in."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.guests import DEFAULT
from migrate_vma_conformance.kernel.hmm_tests import CaseResult, Fared, Run
from tests.impl import parity
from tests.kernel.answers import cases, cell, recorded, remarks


def run(*tests, **changes):
    told = {
        "guest": "6.1",
        "release": "6.1.0",
        "source": "linux-source-6.1 6.1.0-1",
        "module": "stock",
        "large_folios": "always",
        "coherent": False,
        "date": "2026-01-02",
        "seconds": 12.3,
        "planned": len(tests),
        "tests": tests,
    }
    return Run(**{**told, **changes})


def result(memory, fared, told=""):
    return CaseResult(f"hmm.hmm_device_{memory}.exclusive", fared, told)


def test_a_case_that_went_alike_for_all_memory_is_told_once():
    assert cell(run(result("private", Fared.PASSED), result("coherent", Fared.PASSED)), "exclusive") == "passed"


def test_a_case_that_went_otherwise_for_other_memory_says_so():
    found = run(result("private", Fared.FAILED), result("coherent", Fared.PASSED))
    assert cell(found, "exclusive") == "private: failed, coherent: passed"


def test_of_memory_that_was_not_there_nothing_is_told():
    found = run(result("private", Fared.PASSED), result("coherent", Fared.SKIPPED, "not available"))
    assert cell(found, "exclusive") == "passed (private)"
    assert cell(run(result("coherent", Fared.SKIPPED, "not available")), "exclusive") == "skipped"


def test_a_case_that_a_kernel_does_not_have_is_empty():
    assert cell(run(result("private", Fared.PASSED)), "compound") == ""


def test_failures_and_reports_are_told_below_the_table():
    found = run(result("private", Fared.FAILED, "Expected ret (-16) == 0 (0)"), reported=("WARNING: CPU: 0",))
    assert remarks([found]) == (
        "- Linux 6.1.0 (guest 6.1, 2026-01-02; stock test_hmm, large folios always): 0 passed, 1 failed, 0 skipped.\n"
        "  - `hmm.hmm_device_private.exclusive` failed: Expected ret (-16) == 0 (0)\n"
        "  - the kernel reported `WARNING: CPU: 0`\n"
    )


def test_each_plain_guest_has_a_record():
    assert [found.guest for found in recorded()] == list(DEFAULT)


@pytest.mark.parametrize("found", recorded(), ids=lambda found: found.guest)
def test_every_case_that_a_kernel_has_stands_in_the_table(found):
    assert cases(found) <= set(parity.KERNEL)
    assert found.complete
