"""What a witness makes of a guest that answers, and of one that ends: with a fake guest, so that it can end in every way."""

from __future__ import annotations

import os
import signal
import time

import attrs
import pytest

from migrate_vma_conformance.kernel.commands import Load, Race, Store
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.protocol import Answer
from migrate_vma_conformance.kernel.witness.qemu import NotBooted
from migrate_vma_conformance.kernel.witness.witness import Ended
from tests.kernel.fakes import DIE, FLOOD, GARBLE, HANG, LARGE, OOPS, SKIP, fake_witness, way

STORES = [Store(0, page, page % 256) for page in range(20)]
LOADS = [Load(0, page) for page in range(20)]


@pytest.fixture
def witness():
    with fake_witness() as up:
        yield up


@pytest.fixture
def impatient():
    with fake_witness(patience=0.5) as up:
        yield up


def _told(results):
    """What came of each command, briefly: a value, or why there is none and whether it was here that the guest ended."""
    return [each.value if isinstance(each, Answer) else (each.reason, each.here) for each in results]


def test_a_guest_greets(witness):
    assert (witness.greeting.release, witness.greeting.cpus) == ("6.0-fake", 2)


def test_answers_come_in_the_order_of_the_commands(witness):
    results = witness.ask([*STORES, *LOADS])
    assert _told(results) == [*range(20), *range(20)]


def test_what_is_asked_later_is_answered_of_the_same_guest(witness):
    witness.ask(STORES)
    assert _told(witness.ask(LOADS)) == list(range(20))


@pytest.mark.slow
def test_thousands_of_commands_are_asked_at_once(witness):
    results = witness.ask(LOADS * 500)
    assert _told(results) == [0] * 10_000
    assert witness.statistics.commands == 10_000


def test_a_command_longer_than_what_may_be_on_its_way_is_asked(witness):
    (result,) = witness.ask([Race((Load(0, 1),) * 4000)])
    assert len(result.parts) == 4000


def test_a_large_answer_comes_whole(witness):
    large, after = witness.ask([LARGE, Load(0, 1)])
    assert (len(large.text), after.value) == (300_000, 0)


def test_nothing_asked_is_nothing_answered(witness):
    assert witness.ask([]) == []


@pytest.mark.parametrize(
    ("ends", "reason", "said"),
    [
        (DIE, Reason.KILLED, "the line is closed; QEMU ended with status 0"),
        (OOPS, Reason.OOPS, "BUG: unable to handle page fault for address: ff1100fcffffe000"),
        (GARBLE, Reason.GARBLED, "what is this"),
        (SKIP, Reason.GARBLED, "command 20 was next, the answer is to 21"),
        (FLOOD, Reason.GARBLED, "a line of more than 16777216 bytes"),
    ],
)
def test_an_end_is_told_to_the_command_that_met_it_and_to_the_rest(witness, ends, reason, said):
    results = witness.ask([*STORES[:19], ends, *LOADS])
    assert _told(results) == [*range(19), (reason, True), *[(reason, False)] * 20]
    assert said in results[19].said


def test_the_console_is_the_evidence(witness):
    (ended,) = witness.ask([OOPS])
    assert "RIP: 0010:dmirror_do_read+0x8d/0x100 [test_hmm]" in ended.console


@pytest.mark.slow
def test_a_guest_that_does_not_answer_is_given_up(impatient):
    begun = time.monotonic()
    results = impatient.ask([STORES[7], HANG, LOADS[7]])
    assert _told(results) == [7, (Reason.SILENT, True), (Reason.SILENT, False)]
    assert results[1].said == "no answer for 0.5 s"
    assert time.monotonic() - begun < 10


@pytest.mark.slow
def test_a_long_batch_is_no_silence(impatient):
    results = impatient.ask(LOADS * 1000)
    assert _told(results) == [0] * 20_000


@pytest.mark.slow
def test_a_stopped_guest_is_given_up_and_ended(impatient):
    child = impatient._process.child
    os.kill(child.pid, signal.SIGSTOP)
    results = impatient.ask([LOADS[0]])
    assert (_told(results), child.returncode) == ([(Reason.SILENT, True)], -signal.SIGKILL)


def test_a_guest_that_was_killed_before_it_was_asked_is_told(witness):
    witness._process.child.kill()
    results = witness.ask(LOADS[:3])
    assert _told(results) == [(Reason.KILLED, True), (Reason.KILLED, False), (Reason.KILLED, False)]


def test_an_ended_guest_stays_ended_until_it_is_booted_again(witness):
    witness.ask([OOPS])
    again = witness.ask([LOADS[3]])
    assert _told(again) == [(Reason.OOPS, False)]
    witness.restart()
    assert (witness.ended, _told(witness.ask([LOADS[3]]))) == (None, [0])


def test_a_restart_begins_afresh(witness):
    witness.ask(STORES)
    witness.restart()
    assert _told(witness.ask(LOADS)) == [0] * 20


def test_a_witness_that_was_not_booted_answers_so():
    (result,) = fake_witness().ask([LOADS[0]])
    assert (result.reason, result.said) == (Reason.KILLED, "guest fake was not booted")


def test_an_interrupted_question_ends_the_guest(witness, monkeypatch):
    def interrupted(self, commands):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(witness._line), "ask", interrupted)
    child = witness._process.child
    with pytest.raises(KeyboardInterrupt):
        witness.ask(LOADS)
    assert child.returncode == -signal.SIGKILL


def test_the_statistics_count_what_was_done(witness):
    witness.ask([*STORES, OOPS])
    witness.restart()
    witness.ask(LOADS)
    seen = attrs.asdict(witness.statistics)
    assert (seen["boots"], seen["commands"], dict(seen["ends"])) == (2, 41, {Reason.OOPS: 1})
    assert witness.statistics.rate > 0


# ---- boots -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_way_that_does_not_greet_is_left_for_the_next():
    with fake_witness(way("mute", limit=4), way()) as witness:
        assert _told(witness.ask([STORES[5], LOADS[5]])) == [5, 5]
        witness.restart()
        assert witness.statistics.boots == 2
        assert len(witness.ways) == 1


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("absent", "ended with status 1"),
        ("other-version", "does not greet: the guest speaks version 2 of the protocol, this release speaks 1"),
    ],
)
def test_a_guest_that_cannot_be_booted_says_why(mood, said):
    with pytest.raises(NotBooted, match=said), fake_witness(way(mood)):
        pytest.fail("it was booted")


@pytest.mark.slow
def test_a_guest_that_does_not_greet_shows_its_console():
    with pytest.raises(NotBooted, match="does not greet: no answer for 4 s") as raised, fake_witness(way("mute", limit=4)):
        pytest.fail("it was booted")
    assert str(raised.value).endswith("Its console ends with:\n[    0.000000] a fake kernel")


@pytest.mark.slow
def test_a_guest_whose_line_lost_the_first_hello_is_greeted_again():
    with fake_witness(way("deaf")) as witness:
        assert _told(witness.ask([STORES[5], LOADS[5]])) == [5, 5]


def test_noise_before_the_greeting_is_no_answer():
    with fake_witness(way("noisy")) as witness:
        assert witness.greeting.release == "6.0-fake"


def test_an_end_can_be_kept_and_compared(witness):
    (ended,) = witness.ask([OOPS])
    assert ended == Ended(ended.reason, ended.said, ended.console)
