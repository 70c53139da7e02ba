"""Sequences as scripts, and what an observation says."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Advice, Kind, Protection
from migrate_vma_conformance.kernel.comparing.operations import (
    NOT_REACHED,
    Observation,
    of_access,
    of_device,
    padded,
    read_script,
    write_script,
)

SEQUENCE = (
    ops.Open(0, 1),
    ops.Map(0, 2, 3, Protection.READ, Kind.FILE_PRIVATE),
    ops.Store(0, 2, 255),
    ops.DeviceWrite(1, 0, 2, 3, 7),
    ops.Advise(0, 2, 1, Advice.DONTNEED),
    ops.Fork(0, 1),
)


def test_a_script_says_the_sequence_that_it_was_written_of():
    assert read_script(write_script(SEQUENCE, "found on a guest\nof two lines")) == SEQUENCE


def test_blank_lines_and_comments_are_no_operations():
    assert read_script("\n# nothing\n  load 0 3   # page 3\n") == (ops.Load(0, 3),)


@pytest.mark.parametrize("line", ["lode 0 3", "load 0", "load 0 x", "load 0 99999999", "map 0 0 1 write paper"])
def test_a_line_that_is_no_operation_is_told_with_its_number(line):
    with pytest.raises(UsageError, match="line 2"):
        read_script(f"open 0 0\n{line}\n", "file")


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Observation(0, value=16), "0, value 0x10"),
        (Observation(signal=11), "signal 11"),
        (of_device(0, 2, 1, b"\x01\xa0"), "0, cpages 2, faults 1, data 01a0"),
        (Observation(ended="oops: BUG", evidence="[ 1.0] BUG"), "ended: oops: BUG"),
    ],
)
def test_an_observation_says_what_was_observed(seen, words):
    assert str(seen) == words


def test_a_device_that_fails_tells_the_errno_alone():
    assert of_device(-14, 3, 2, b"\x00") == Observation(-14)


def test_a_store_tells_no_value_and_a_killed_load_tells_its_signal():
    assert of_access(ops.Store(0, 0, 1), 0, 1) == Observation(0)
    assert of_access(ops.Load(0, 0), -11, None) == Observation(signal=11)


def test_what_an_ended_kernel_was_not_asked_is_not_reached():
    seen = padded([Observation(0), Observation(ended="hung")], SEQUENCE)
    assert seen[2:] == (NOT_REACHED,) * 4
