"""Reading what hmm-tests print, of both versions of their harness."""

from __future__ import annotations

import json

import pytest

from migrate_vma_conformance.kernel.hmm_tests import CaseResult, Fared, Run, document, lines, read_run, results_of

OUTPUT = """TAP version 13
1..5
# Starting 5 tests from 2 test cases.
#  RUN           hmm.hmm_device_private.open_close ...
#            OK  hmm.hmm_device_private.open_close
ok 1 hmm.hmm_device_private.open_close
#  RUN           hmm.hmm_device_private.exclusive ...
# hmm-tests.c:1773:exclusive:Expected ret (-16) == 0 (0)
# exclusive: Test terminated by assertion
#          FAIL  hmm.hmm_device_private.exclusive
not ok 2 hmm.hmm_device_private.exclusive
#  RUN           hmm.hmm_device_coherent.open_close ...
could not open hmm dmirror driver (/dev/hmm_dmirror2)
#      SKIP      DEVICE_COHERENT not available
#            OK  hmm.hmm_device_coherent.open_close
ok 3 # SKIP DEVICE_COHERENT not available
#  RUN           hmm.hmm_device_coherent.anon_read ...
#      SKIP      DEVICE_COHERENT not available
#            OK  hmm.hmm_device_coherent.anon_read
ok 4 hmm.hmm_device_coherent.anon_read
#  RUN           hmm2.hmm2_device_private.snapshot ...
#            OK  hmm2.hmm2_device_private.snapshot
ok 5 hmm2.hmm2_device_private.snapshot # SKIP no memory
# PASSED: 3 / 5 tests passed.
# Totals: pass:3 fail:1 xfail:0 xpass:0 skip:1 error:0
"""
TOLD = "hmm-tests.c:1773:exclusive:Expected ret (-16) == 0 (0); exclusive: Test terminated by assertion"
RESULTS = (
    CaseResult("hmm.hmm_device_private.open_close", Fared.PASSED),
    CaseResult("hmm.hmm_device_private.exclusive", Fared.FAILED, TOLD),
    CaseResult("hmm.hmm_device_coherent.open_close", Fared.SKIPPED, "DEVICE_COHERENT not available"),
    CaseResult("hmm.hmm_device_coherent.anon_read", Fared.SKIPPED, "DEVICE_COHERENT not available"),
    CaseResult("hmm2.hmm2_device_private.snapshot", Fared.SKIPPED, "no memory"),
)


def run(**changes):
    told = {
        "guest": "6.1",
        "release": "6.1.0-fake",
        "source": "linux-source-6.1 6.1.0-1",
        "module": "stock",
        "large_folios": "always",
        "coherent": False,
        "date": "2026-01-02",
        "seconds": 12.3,
        "planned": 5,
        "tests": RESULTS,
        "reported": ("WARNING: CPU: 0 PID: 1",),
    }
    return Run(**{**told, **changes})


def test_each_result_has_its_name_and_what_it_said():
    assert tuple(results_of(OUTPUT.splitlines())) == RESULTS


def test_what_a_test_that_passes_prints_is_no_failure_of_the_next():
    text = OUTPUT.replace("#            OK  hmm.hmm_device_private.open_close", "# a remark")
    assert tuple(results_of(text.splitlines())) == RESULTS


@pytest.mark.parametrize("end", range(0, len(OUTPUT), 97))
def test_of_an_output_that_is_cut_short_the_results_until_there_are_known(end):
    found = tuple(results_of(OUTPUT[:end].splitlines()[:-1]))
    assert found == RESULTS[: len(found)]


def test_a_run_is_complete_if_every_test_said_how_it_went():
    assert run().complete
    assert not run(tests=RESULTS[:-1]).complete
    assert not run(ended="the machine ended").complete
    assert not run(planned=0, tests=()).complete


def test_a_run_reads_as_it_was_written():
    assert read_run(json.loads(json.dumps(document(run())))) == run()


def test_a_run_in_words_names_failures_skips_and_reports():
    said = " ".join(" ".join(lines(run(ended="BUG: Bad page state"))).split())
    assert "(Linux 6.1.0-fake, stock test_hmm, large folios always): of 5 tests 1 passed, 1 failed, 3 skipped, in 12.3 s." in said
    assert f"failed hmm.hmm_device_private.exclusive: {TOLD}" in said
    assert "skipped 2: DEVICE_COHERENT not available skipped 1: no memory" in said
    assert "console WARNING: CPU: 0 PID: 1" in said
    assert "The guest ended, and with it what it had told: BUG: Bad page state." in said
