"""Races on a real kernel: what is asked, what must hold of the answers, and what the two guests come to."""

from __future__ import annotations

import json

import attrs
import pytest
from click.testing import CliRunner

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.errors import SubjectError
from migrate_vma_conformance.kernel.commands import Race, ReadFile
from migrate_vma_conformance.kernel.racing import proved
from migrate_vma_conformance.kernel.racing import report as race_report
from migrate_vma_conformance.kernel.racing.races import PROBES, Run, run
from migrate_vma_conformance.kernel.racing.report import RaceReport
from migrate_vma_conformance.kernel.racing.rounds import KINDS, Round
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.probes import Count, Probes
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate
from migrate_vma_conformance.kernel.witness.witness import Ended

VALUE = 7
SEGV = Answer(signal=11, code=1, minor=0)
READ = Answer(value=VALUE, minor=1, took=900)
ON_DEVICE, IN_SYSTEM, NOT_MAPPED = Answer(data=b"\x22"), Answer(data=b"\x02"), Answer(data=b"\xff")
DONE = Answer()


def _round(name, threads=3):
    return Round(KINDS[name], threads, VALUE)


def _answers(name, parts, after=IN_SYSTEM, last=READ, moved=DONE, before=ON_DEVICE, others=()):
    return [DONE, DONE, moved, before, Answer(parts=tuple(parts)), after, last, *others, DONE]


GOOD = {
    "read": _answers("read", [READ, READ, READ]),
    "evict": _answers("evict", [READ, READ, DONE]),
    "unmap": _answers("unmap", [READ, SEGV, DONE], after=NOT_MAPPED, last=SEGV),
    "discard": _answers("discard", [READ, Answer(value=0), DONE], last=Answer(value=0)),
    "fork": _answers("fork", [READ, READ, DONE], others=(READ, DONE)),
    "to-device": _answers("to-device", [READ, READ, Answer(-2)], after=ON_DEVICE),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_round_that_keeps_the_rules_breaks_nothing(name):
    assert list(_round(name).broken(GOOD[name])) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_round_asks_as_many_commands_as_it_reads_answers(name):
    commands = _round(name).commands
    assert len(commands) == len(GOOD[name])
    assert isinstance(commands[Round.RACE], Race)
    assert len(commands[Round.RACE].commands) == 3


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("read", {"parts": [READ, Answer(value=0), READ]}, "a reader got another value"),
        ("read", {"parts": [READ, SEGV, READ]}, "a reader got signal 11"),
        ("read", {"parts": [READ, READ, Answer(fate=Fate.HUNG)]}, "a thread is hung"),
        ("read", {"parts": [READ, READ, READ], "after": ON_DEVICE}, "afterwards the page is on the device still"),
        ("read", {"parts": [READ, READ, READ], "last": Answer(value=8)}, "afterwards a load gives another value"),
        ("read", {"parts": [READ] * 3, "before": IN_SYSTEM}, "the page did not migrate to the device (0)"),
        ("read", {"parts": [READ] * 3, "moved": Answer(-2)}, "the page did not migrate to the device (-2)"),
        ("evict", {"parts": [READ, READ, Answer(-16)]}, "the evict came to -16"),
        ("evict", {"parts": [READ, SEGV, DONE]}, "a reader got signal 11"),
        ("unmap", {"parts": [READ, SEGV, DONE], "after": NOT_MAPPED}, "afterwards a load gives its contents"),
        ("discard", {"parts": [READ, READ, DONE]}, "afterwards a load gives its contents"),
        ("fork", {"parts": [READ, READ, DONE], "others": (Answer(value=0), DONE)}, "the child reads another value"),
        ("fork", {"parts": [READ, READ, DONE], "others": (Answer(fate=Fate.GONE, signal=9), DONE)}, "a thread is gone"),
        ("to-device", {"parts": [READ, READ, Answer(-12)]}, "the to-device came to -12"),
    ],
)
def test_what_must_hold_in_every_interleaving_is_judged(name, changed, said):
    assert said in list(_round(name).broken(_answers(name, **changed)))


# ---- probes ------------------------------------------------------------------------------------------------------------

PROFILE = "  entered                                                  31               0\n  others  5 5\n  freed  20  2\n"


def test_a_profile_is_read_for_our_own_probes():
    assert PROBES.counts(PROFILE) == {"entered": Count(31, 0), "freed": Count(20, 2)}


def test_probes_are_set_and_taken_away_by_name():
    probes = Probes({"entered": "do_swap_page"})
    assert [getattr(each, "text", "") for each in probes.set_up()] == ["p:migrate_vma/entered do_swap_page\n", "1"]
    assert [getattr(each, "text", "") for each in probes.take_away()] == ["0", "-:migrate_vma/entered\n"]


# ---- runs, on a witness of recorded answers ----------------------------------------------------------------------------


@attrs.define
class Recorded:
    """Answers as a guest would that keeps the rules, but for what it is told."""

    profile: str = PROFILE
    name: str = "recorded"
    ends_after: int = 1000
    begin: Answer = DONE
    asked: int = 0

    def ask(self, commands):
        if not any(isinstance(each, Race) for each in commands):
            return [Answer(text=self.profile) if isinstance(each, ReadFile) else self.begin for each in commands]
        return [answer for each in self._rounds(commands) for answer in each][: len(commands)]

    def _rounds(self, commands):
        ended = Ended(Reason.OOPS, "BUG: unable to handle page fault", "the console")
        for command in commands:
            if isinstance(command, Race):
                self.asked += 1
                value = (self.asked - 1) % 255 + 1
                read = Answer(value=value, minor=1, took=500 * self.asked)
                good = [DONE, DONE, DONE, ON_DEVICE, Answer(parts=(read, read)), IN_SYSTEM, read, DONE]
                yield [ended] * 8 if self.asked > self.ends_after else good


def _run(rounds=20, **changed):
    return run(Recorded(**changed), KINDS["read"], 2, rounds)


def test_a_run_counts():
    seen = _run()
    assert (seen.rounds, seen.entries, seen.frees, seen.missed, seen.migrations) == (20, 31, 20, 2, 20)
    assert (seen.contended, seen.reads, seen.minor, seen.longest, seen.holds) == (20, 40, 40, 10_000, True)
    assert (seen.entries_per_migration, seen.minor_per_read) == (1.55, 1.0)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("entered 31 0\nfreed 19 0\n", "19 device pages were freed, of 20 to 20 (20 of 20 rounds)"),
        ("entered 31 0\nfreed 21 0\n", "21 device pages were freed, of 20 to 20 (20 of 20 rounds)"),
        ("entered 19 0\nfreed 20 0\n", "19 entries into the callback brought 20 pages back (20 of 20 rounds)"),
        ("", "0 device pages were freed, of 20 to 20 (20 of 20 rounds)"),
    ],
)
def test_counts_that_do_not_fit_break_a_run(profile, said):
    seen = _run(profile=profile)
    assert said in seen.broken
    assert not seen.holds


def test_a_guest_that_ends_is_a_result_of_the_run():
    seen = _run(rounds=60, ends_after=30)
    assert (seen.rounds, seen.ended.reason, seen.broken, seen.holds) == (30, Reason.OOPS, (), False)


def test_a_guest_that_cannot_count_is_told():
    with pytest.raises(SubjectError, match=r"guest recorded: it has no test_hmm, or no tracefs, to race with \(errno 2\)"):
        _run(begin=Answer(-2))


# ---- reports -----------------------------------------------------------------------------------------------------------

GOOD_RUN = Run("read", 2, 20, contended=9, entries=31, frees=20, migrations=20, reads=40, minor=60, longest=2500, total=9000)
BAD_RUN = attrs.evolve(GOOD_RUN, threads=8, broken=("a reader got another value (3 of 20 rounds)",))
ENDED_RUN = Run("evict", 2, 5, ended=Ended(Reason.OOPS, "BUG: unable to handle page fault", "[ 1.0] first\n[ 1.1] last\n"))


def _report(*runs):
    explored = proved.Proved("referenced", "fault2", 9852, complete=True, holds=("C01", "C82"), violated=("C84 (no livelock)",))
    return RaceReport("6.1", "6.1.192", "referenced", runs, (explored,))


def test_a_report_for_people_shows_the_counts_beside_what_is_proved():
    text = "\n".join(race_report.lines(_report(GOOD_RUN)))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "read, 2 threads 20 9 31 1.550 20 1.50 2.5 yes" in rows
    assert "Every invariant held in every round." in text
    assert "fault2 (Two CPUs fault one device page), every interleaving, 9,852 states:" in text
    assert "violated: C84 (no livelock)" in text


def test_a_report_names_what_broke_and_how_a_guest_ended():
    text = "\n".join(race_report.lines(_report(BAD_RUN, ENDED_RUN)))
    assert "read, 8 threads: a reader got another value (3 of 20 rounds)" in text
    assert "evict, 2 threads: the guest ended (oops): BUG: unable to handle page fault\n  | [ 1.0] first\n  | [ 1.1] last" in text


def test_a_report_for_programs_is_json():
    told = json.loads(json.dumps(race_report.document(_report(GOOD_RUN, ENDED_RUN))))
    assert (told["generation"], told["holds"]) == ("referenced", False)
    assert [each["entries_per_migration"] for each in told["runs"]] == [1.55, None]
    assert told["runs"][1]["ended"]["reason"] == "oops"
    assert told["explored"][0]["violated"] == ["C84 (no livelock)"]


# ---- what the explorer proves ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_faulters_may_go_round_for_ever_without_the_lock():
    found = proved.prove("referenced", "fault2")
    assert (found.complete, found.violated) == (True, ("C84 (no livelock of N faulters): it can go round for ever",))


@pytest.mark.slow
def test_two_faulters_make_progress_where_the_second_waits():
    found = proved.prove("waiting", "fault2")
    assert (found.complete, found.violated, "C84" in found.holds) == (True, (), True)
    assert "clauses hold, progress (C79, C82, C84) among them" in proved.sentence(found)


# ---- on the guests -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [2, 5])
def test_every_invariant_holds_on_a_real_kernel(witness, name, threads):
    seen = run(witness, KINDS[name], threads, 25)
    assert (seen.rounds, seen.broken, seen.ended) == (25, (), None)


@pytest.mark.slow
def test_the_callback_is_entered_once_a_migration_where_the_second_fault_waits(guest, witness):
    """How often threads meet differs from run to run: rounds in which they do are waited for, and nothing is said of others."""
    once, runs = guest.generation != "referenced", []
    for threads in (2, 8, 4) * 5:
        runs.append(run(witness, KINDS["read"], threads, 60))
        if runs[-1].entries > runs[-1].migrations or (once and sum(each.contended for each in runs) > 20):
            break
    ratios = [each.entries_per_migration for each in runs]
    assert [each.broken for each in runs] == [()] * len(runs)
    assert any(each.contended for each in runs)
    assert ratios == [1.0] * len(runs) if once else max(ratios) > 1


@pytest.mark.slow
def test_the_command_races_on_a_guest(guest):
    words = ["kernel", "race", guest.name, "--race", "read", "--threads", "2", "--rounds", "10", "--format", "json"]
    result = CliRunner().invoke(cli, words)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["holds"], told["release"]) == (0, True, guest.release)
    assert [(each["race"], each["rounds"]) for each in told["runs"]] == [("read", 10)]
