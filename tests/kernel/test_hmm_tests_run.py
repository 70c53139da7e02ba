"""The kernel's own selftest on real guests. It takes a minute or two on each."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.hmm_tests import Fared, LargeFolios, run
from tests.kernel.answers import recorded

BENCHMARK = ".benchmark_thp_migration"
"""It has a limit of its own, which an emulated machine does not keep."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_case_fails_where_memory_gets_large_folios_when_it_asks(guest):
    found = run(guest, Module.STOCK, LargeFolios.MADVISE)
    assert found.complete, found
    assert [test for test in found.those(Fared.FAILED) if not test.name.endswith(BENCHMARK)] == []
    known = {test.name for each in recorded() if each.guest == guest.name for test in each.tests}
    assert {test.name for test in found.tests} == known
