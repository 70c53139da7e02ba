"""The table of functions is current by name, and what it is made from sees what runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from migrate_vma_impl.generations import COMPOUND_GENERATIONS, UNREFERENCED
from migrate_vma_impl.mm import folio
from tests.impl.stage import Stage
from tests.meta import reach
from tests.meta.sources import ROOT

KNOWN = {"folio.py": ["folio_get", "folio_put"]}


def test_every_public_function_of_mm_has_a_row_that_says_it_is_reached():
    assert reach.complaints(reach.DOCUMENT.read_text(), reach.known_functions()) == []


def test_a_table_is_read_back_as_it_was_written():
    text = reach.document({"folio.py:folio_get": {"u", "c"}}, KNOWN)
    assert reach.rows(text) == {"folio.py:folio_get": {"u", "c"}, "folio.py:folio_put": set()}


def test_what_is_not_reached_not_listed_or_gone_is_complained_of():
    text = reach.document({"folio.py:folio_get": {"u"}}, KNOWN)
    assert reach.complaints(text, {"folio.py": ["folio_put", "folio_lock"]}) == [
        "folio.py:folio_lock has no row",
        "folio.py:folio_put is reached by no test",
        "folio.py:folio_get is gone",
    ]


def test_functions_with_an_underscore_are_no_rows():
    assert reach.public_functions("def _a(): ...\nasync def b(): ...\nclass C:\n def __init__(self): ...\n def d(self): ...") == [
        "b",
        "C.d",
    ]


def test_what_runs_counts_for_the_generation_of_its_kernel():
    watch = reach.Watch()
    for generation in (UNREFERENCED, COMPOUND_GENERATIONS["waiting+compound"]):
        kernel = Stage(generation).kernel
        watch.enter(_frame_with(kernel), "memory.py:f")
    assert watch.reached == {"memory.py:f": {"u", "c"}}
    assert reach.function_of(folio.folio_get.__code__) == "folio.py:folio_get"
    assert reach.function_of(_frame_with.__code__) == ""


def _frame_with(kernel):
    return sys._getframe()


@pytest.mark.slow
def test_workers_add_to_one_file(tmp_path):
    path = tmp_path / "reached.json"
    path.write_text(json.dumps({"mmap.py:gone_by_now": "u"}))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-p", "tests.meta.reach"]
    result = subprocess.run(
        [*command, "--reach", str(path), "tests/impl/test_mm_page_lock.py"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    reached = json.loads(path.read_text())
    assert reached["mmap.py:gone_by_now"] == "u"
    assert "w" in reached["folio.py:folio_lock"]
