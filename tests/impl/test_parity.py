"""The table of the kernel's hmm-tests, made from the tests that play them."""

from __future__ import annotations

from tests.impl import parity
from tests.impl.hmm_stage import CASES


def test_the_table_is_current():
    assert parity.DOCUMENT.read_text() == parity.document()


def test_every_case_of_the_kernels_is_played_or_says_why_not():
    parity.load()
    assert set(parity.KERNEL) == set(CASES) | set(parity.NOT_PLAYED)
    assert not set(CASES) & set(parity.NOT_PLAYED)


def test_the_kernel_has_39_cases():
    assert len(set(parity.KERNEL)) == len(parity.KERNEL) == 39
