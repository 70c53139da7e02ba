"""Errors: what they say, and that they cross process borders."""

from __future__ import annotations

import pickle

import pytest

from migrate_vma_conformance.errors import Interrupted, SubjectError, UsageError
from tests.conformance import reports


def test_a_usage_error_names_the_value_where_it_came_from_and_what_was_expected():
    error = UsageError("v5", "--generation", "there is no such generation", "one of: waiting")
    assert str(error) == "--generation `v5`: there is no such generation. Expected: one of: waiting."


def test_a_long_or_odd_value_is_cut_and_escaped():
    said = str(UsageError("\x1b" * 3 + "x" * 500, "argument", "is odd", "less"))
    assert "\x1b" not in said
    assert len(said) < 200


@pytest.mark.parametrize(
    "error", [UsageError("a", "b", "c", "d"), SubjectError("mine:make", "it raised"), Interrupted(reports.holding())]
)
def test_errors_pickle(error):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_an_interrupt_is_one_that_ends_programs():
    assert isinstance(Interrupted(reports.holding()), KeyboardInterrupt)
