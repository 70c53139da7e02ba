"""The reference model as a subject: what it allows, and what it refuses."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.comparing.model_subject import ModelSubject
from migrate_vma_conformance.kernel.comparing.operations import Observation, read_script

MAPPED = "open 0 0\nmap 0 0 4 write private\n"
FINE = Observation(0)


def last(script, *answers):
    """What the model expects of the last line of a script. Lines before it were answered 0, the last of them with `answers`."""
    sequence = read_script(MAPPED + script)
    seen = [FINE] * (len(sequence) - 1 - len(answers)) + [*answers, FINE]
    return ModelSubject().follow(sequence, seen)[-1]


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("load 0 0", {0}),
        ("store 0 0 7\nload 0 0", {7}),
        ("store 0 0 7\nstore 0 0 8\nload 0 0", {8}),
        ("store 0 0 7\nto-device 0 0 0 4\nload 0 0", {7}),
        ("store 0 0 7\nadvise 0 0 1 dontneed\nload 0 0", {0}),
        ("store 0 0 7\nadvise 0 0 1 free\nload 0 0", {0, 7}),
        ("store 0 0 7\nadvise 0 0 1 free\nstore 0 0 8\nload 0 0", {8}),
        ("store 0 0 7\nadvise 0 0 1 cold\nload 0 0", {7}),
        ("store 0 0 7\nmap 0 0 1 write private\nload 0 0", {0}),
        ("store 0 0 7\nremap 0 0 1 6\nload 0 6", {7}),
        ("store 0 0 7\nfork 0 1\nload 1 0", {7}),
        ("store 0 0 7\nfork 0 1\nstore 0 0 8\nload 1 0", {7}),
        ("store 0 0 7\nfork 0 1\nstore 1 0 8\nload 0 0", {7}),
        ("map 0 0 1 write shared\nfork 0 1\nstore 1 0 8\nload 0 0", {8}),
        ("map 0 0 1 write file\nfork 0 1\nstore 0 0 8\nmap 1 0 1 write file-private\nload 1 0", {8}),
        ("map 0 0 1 write file\nstore 0 0 8\nadvise 0 0 1 dontneed\nload 0 0", {8}),
        ("map 0 0 1 write file-private\nstore 0 0 8\nadvise 0 0 1 dontneed\nload 0 0", {0}),
        ("write 0 0 0 2 9\nload 0 1", {10}),
    ],
)
def test_a_load_finds_what_was_stored_last(script, wanted):
    assert last(script).value == wanted


def test_a_write_of_the_device_that_fails_may_have_reached_its_pages():
    assert last("store 0 1 7\nwrite 0 0 0 2 9\nload 0 1", Observation(-14)).value == {7, 10}


def test_a_device_reads_each_page_as_the_cpu_does():
    assert last("store 0 1 7\nread 0 0 0 3").data == ({0}, {7}, {0})


@pytest.mark.parametrize(
    "script", ["load 0 5", "protect 0 0 1 none\nload 0 0", "protect 0 0 1 read\nstore 0 0 1", "unmap 0 0 1\nload 0 0"]
)
def test_what_a_mapping_forbids_gets_a_signal(script):
    expected = last(script)
    assert expected.refusal(Observation(signal=11)) is None
    assert "allowed: signal 11" in expected.refusal(FINE)


@pytest.mark.parametrize(
    ("script", "seen", "why"),
    [
        ("store 0 0 7\nload 0 0", Observation(0, value=8), "0x08"),
        ("load 0 0", Observation(signal=11), "signal 11"),
        ("store 0 0 7\nread 0 0 0 1", Observation(0, data=b"\x00"), "0x00 in its page 0"),
        ("read 0 0 0 1", Observation(-14), "result -14"),
        ("read 0 0 3 2", Observation(0, data=b"\x00\x00"), "result 0"),
        ("to-system 0 0 0 1", Observation(-22), "result -22"),
        ("write 0 0 3 2 1", Observation(0), "result 0"),
        ("protect 0 3 2 read", FINE, "allowed: -12"),
        ("advise 0 3 2 cold", FINE, "allowed: -12"),
        ("map 0 0 1 write shared\nadvise 0 0 1 free", FINE, "allowed: -22"),
        ("protect 0 0 2 read\nsnapshot 0 0 0 3", Observation(0, data=b"\x02\x01\x02"), "0x02 for its page 0"),
        ("check-exclusive 0 0 0 1", Observation(-22), "result -22"),
        ("read 0 1 0 1", FINE, "allowed: -9"),
        ("read 0 0 0 0", FINE, "allowed: -22"),
        ("load 0 0", Observation(ended="oops"), "may end the kernel"),
    ],
)
def test_the_model_refuses(script, seen, why):
    assert why in last(script).refusal(seen)


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("to-device 0 0 0 1", Observation(-2)),
        ("exclusive 0 0 0 1", Observation(-16)),
        ("fork 0 1\nwrite 0 0 0 1 1", Observation(-14)),
        ("snapshot 0 0 3 2", Observation(0, data=b"\x02\xff")),
        ("check-exclusive 0 0 0 1", Observation(-1)),
        ("protect 0 3 2 read", Observation(-12)),
        ("release 0 0 0 1", FINE),
    ],
)
def test_the_model_leaves_to_a_driver_what_is_its_own_affair(script, seen):
    assert last(script).refusal(seen) is None


def test_up_to_a_gap_permissions_change_though_the_call_fails():
    assert last("protect 0 3 2 read\nstore 0 3 1", Observation(-12)).signals == {11}
