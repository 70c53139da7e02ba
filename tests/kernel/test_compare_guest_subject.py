"""Sequences on a guest: batches, guests that end, guests that are lost."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.commands import DeviceWrite, Load, Module
from migrate_vma_conformance.kernel.comparing.guest_subject import GuestSubject, Lost, observation
from migrate_vma_conformance.kernel.comparing.operations import NOT_REACHED, Observation, of_device, read_script
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate
from migrate_vma_conformance.kernel.witness.witness import Ended
from tests.kernel.other_kernels import CoreWitness, answered

START = "open 0 0\nmap 0 0 4 write private\n"
FIRST = read_script(START + "store 0 0 5\nwrite 0 0 0 2 9\nload 0 1\nread 0 0 0 4")
SECOND = read_script(START + "store 0 0 77\nload 0 0")
THIRD = read_script(START + "load 0 9")


def right(*sequences):
    return [answered("7.3", Module.MENDED, sequence) for sequence in sequences]


def test_sequences_go_in_one_round_trip_behind_the_settings():
    witness = CoreWitness()
    assert list(GuestSubject("7.3", witness).run_all([FIRST, SECOND, THIRD])) == right(FIRST, SECOND, THIRD)
    assert witness.batches == [0, 3]


def test_a_guest_that_ends_is_an_answer_and_is_booted_again_for_the_rest():
    witness = CoreWitness(dies_of=77)
    subject = GuestSubject("7.3", witness)
    seen = list(subject.run_all([FIRST, SECOND, THIRD]))
    assert [seen[0], seen[2]] == right(FIRST, THIRD)
    assert seen[1][2].ended == "oops: died"
    assert seen[1][2].evidence == "[ 1.0] BUG: so it ended"
    assert seen[1][3] == NOT_REACHED
    assert (witness.restarts, witness.batches) == (1, [0, 3, 0, 1])


def test_a_guest_that_ended_with_the_last_sequence_is_not_booted_for_nothing():
    witness = CoreWitness(dies_of=77)
    list(GuestSubject("7.3", witness).run_all([SECOND]))
    assert witness.restarts == 0


@pytest.mark.parametrize("fails", [Ended(Reason.SILENT, "nobody answers", ""), Answer(-110)])
def test_a_guest_that_does_not_begin_is_lost(fails):
    with pytest.raises(Lost, match=r"guest 7\.3"):
        list(GuestSubject("7.3", CoreWitness(fails=fails)).run_all([FIRST]))


@pytest.mark.parametrize(
    ("operation", "answer", "seen"),
    [
        (Load(0, 0), Answer(value=7), Observation(0, value=7)),
        (Load(0, 0), Answer(signal=11, code=2), Observation(signal=11)),
        (DeviceWrite(0, 0, 0, 1, 1), Answer(-14, cpages=0, faults=0), Observation(-14)),
        (DeviceWrite(0, 0, 0, 1, 1), Answer(cpages=1, faults=2, minor=3), of_device(0, 1, 2)),
        (Load(0, 0), Answer(fate=Fate.HUNG, text="wchan: here"), Observation(ended="hung", evidence="wchan: here")),
        (Load(0, 0), Answer(fate=Fate.GONE, signal=9), Observation(ended="gone by signal 9")),
    ],
)
def test_an_answer_is_observed_as_what_it_says(operation, answer, seen):
    assert observation(operation, answer) == seen
