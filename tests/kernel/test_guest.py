"""A booted guest: the agent does what the operation language says, and every way in which it can end is a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import attrs
import pytest

from migrate_vma_conformance.kernel.commands import (
    Advice,
    Advise,
    AppendFile,
    Close,
    DeviceRead,
    Execute,
    Exit,
    Fork,
    Kind,
    Limit,
    Load,
    Map,
    Module,
    Open,
    Pin,
    Protect,
    Protection,
    Race,
    ReadFile,
    Remap,
    Reset,
    Snapshot,
    Store,
    ToDevice,
    Unmap,
    Unpin,
    UseModule,
    WriteFile,
)
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate, decode_answer, decode_command
from migrate_vma_conformance.kernel.witness.qemu import Machine, Transport
from migrate_vma_conformance.kernel.witness.witness import Way, Witness, ways

DATA = Path(__file__).with_name("data")
TRACING = "/sys/kernel/tracing"
SEGV = signal.SIGSEGV


def _recorded(name):
    """What another program asked of this kernel, and was answered."""
    lines = [line for line in (DATA / name).read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split(" => ") for line in lines]
    return [decode_command(f"0 {asked}")[1] for asked, _ in pairs], [decode_answer(f"0 {told}")[1] for _, told in pairs]


def _as_far_as(told, answer):
    """The answer, without what the record does not tell."""
    named = {each.name for each in attrs.fields(Answer) if getattr(told, each.name) is not None}
    return Answer(**{name: getattr(answer, name) for name in named})


def _values(results):
    return [each.value for each in results]


def _done(results):
    return [each.result for each in results]


@pytest.mark.slow
def test_it_answers_as_another_program_was_answered(guest, witness):
    asked, told = _recorded(f"operations-{guest.name}.txt")
    answers = witness.ask(asked)
    assert [_as_far_as(*pair) for pair in zip(told, answers, strict=True)] == told


def test_it_names_its_kernel(guest, witness):
    assert (witness.greeting.release, witness.greeting.cpus) == (guest.release, 2)
    assert dict(witness.greeting.facts) == {"module": "mended", "swap": "/dev/ram0", "transport": "virtio"}


@pytest.mark.slow
def test_it_answers_thousands_of_commands(witness):
    witness.ask([Map(0, 0, 4), Store(0, 1, 42)])
    results = witness.ask([Load(0, 1)] * 5000)
    assert _values(results) == [42] * 5000


# ---- processes and mappings --------------------------------------------------------------------------------------------


def test_processes_share_what_a_fork_shares(witness):
    private, shared, file = 0, 8, 16
    witness.ask([Map(0, private, 1), Map(0, shared, 1, kind=Kind.SHARED), Map(0, file, 1, kind=Kind.FILE)])
    witness.ask([Store(0, private, 1), Store(0, shared, 1), Store(0, file, 1), Fork(0, 1)])
    witness.ask([Store(1, private, 2), Store(1, shared, 2), Store(1, file, 2)])
    assert _values(witness.ask([Load(0, private), Load(0, shared), Load(0, file)])) == [1, 2, 2]


def test_a_file_is_at_the_same_offset_wherever_it_is_mapped_and_empty_after_a_reset(witness):
    seen = [Map(0, 3, 4, kind=Kind.FILE), Store(0, 5, 9), Fork(0, 1), Map(1, 5, 1, kind=Kind.FILE_PRIVATE), Load(1, 5)]
    again = [Reset(), Map(0, 5, 1, kind=Kind.FILE), Load(0, 5)]
    results = witness.ask([*seen, *again])
    assert (results[4].value, results[7].value) == (9, 0)


def test_an_access_gets_its_signal(witness):
    unmapped, *_ = witness.ask([Load(0, 0), Map(0, 0, 1, Protection.READ)])
    read, written, _, again = witness.ask([Load(0, 0), Store(0, 0, 1), Unmap(0, 0, 1), Load(0, 0)])
    assert read.value == 0
    assert [(each.signal, each.code) for each in (unmapped, written, again)] == [(SEGV, 1), (SEGV, 2), (SEGV, 1)]


def test_mappings_are_moved_protected_and_advised(witness):
    witness.ask([Map(0, 0, 2), Store(0, 1, 5), Remap(0, 0, 2, 100), Protect(0, 100, 2, Protection.READ)])
    read, written = witness.ask([Load(0, 101), Store(0, 101, 6)])
    assert (read.value, written.signal) == (5, SEGV)
    *done, emptied = witness.ask([Protect(0, 100, 2, Protection.WRITE), Advise(0, 100, 2, Advice.DONTNEED), Load(0, 101)])
    assert (_done(done), emptied.value) == ([0, 0], 0)


def test_a_page_that_is_written_out_is_read_in_again(witness):
    witness.ask([Map(0, 0, 8), *(Store(0, page, page + 1) for page in range(8)), Advise(0, 0, 8, Advice.PAGEOUT)])
    used, *loads = witness.ask([ReadFile("/proc/swaps"), *(Load(0, page) for page in range(8))])
    assert used.text.splitlines()[1].split()[3] != "0"
    assert _values(loads) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_pin_keeps_the_page_that_was_there(witness):
    witness.ask([Map(0, 0, 1), Store(0, 0, 7), Pin(0, 0)])
    second, _, there, kept = witness.ask([Pin(0, 0), Advise(0, 0, 1, Advice.DONTNEED), Load(0, 0), Unpin(0, 0)])
    assert (second.result, there.value, kept.value) == (-17, 0, 7)


def test_a_pinned_page_does_not_migrate(witness):
    witness.ask([Open(0, 0), Map(0, 0, 1), Store(0, 0, 7), Pin(0, 0), ToDevice(0, 0, 0, 1)])
    pinned, _, _, free = witness.ask([Snapshot(0, 0, 0, 1), Unpin(0, 0), ToDevice(0, 0, 0, 1), Snapshot(0, 0, 0, 1)])
    assert (pinned.data, free.data) == (b"\x02", b"\x22")


def test_a_process_that_is_not_there_is_told_so(witness):
    results = witness.ask([Load(3, 0), Fork(0, 3), Fork(0, 3), Exit(3), Load(3, 0)])
    assert [each.fate for each in results] == [Fate.REFUSED, Fate.DONE, Fate.REFUSED, Fate.DONE, Fate.REFUSED]


def test_a_forked_process_has_no_device_open(witness):
    witness.ask([Open(0, 0), Map(0, 0, 1), Fork(0, 1)])
    results = witness.ask([DeviceRead(1, 0, 0, 1), Open(1, 0), DeviceRead(1, 0, 0, 1), Close(1, 0), DeviceRead(1, 0, 0, 1)])
    assert _done(results) == [-9, 0, 0, 0, -9]


def test_processes_fork_while_they_race(witness):
    witness.ask([Map(0, 0, 1), Store(0, 0, 3)])
    (race,) = witness.ask([Race((Fork(0, 1), Load(0, 0), Load(0, 0), Fork(0, 2)))])
    assert [part.result for part in race.parts] == [0, 0, 0, 0]
    assert _values(witness.ask([Load(1, 0), Load(2, 0)])) == [3, 3]
    (race,) = witness.ask([Race((Load(0, 0), Load(1, 0), Load(2, 0)))])
    assert _values(race.parts) == [3, 3, 3]


# ---- the guest ---------------------------------------------------------------------------------------------------------


def test_probes_are_set_and_count(witness):
    probe = "p:mv/entered dmirror_fops_open\n"
    events, enable = f"{TRACING}/kprobe_events", f"{TRACING}/events/mv/enable"
    witness.ask([WriteFile(events, ""), AppendFile(events, probe), WriteFile(enable, "1"), Open(0, 0), Open(0, 1)])
    profile, *_ = witness.ask([ReadFile(f"{TRACING}/kprobe_profile"), WriteFile(enable, "0"), WriteFile(events, "")])
    assert profile.text.split() == ["entered", "2", "0"]


@pytest.mark.slow
def test_programs_are_run_and_their_output_is_told(witness):
    listed, missing = witness.ask([Execute(120, ("/bin/hmm-tests", "-l")), Execute(5, ("/no/such/program",))])
    assert (listed.fate, "anon_read" in listed.text) == (Fate.DONE, True)
    assert (missing.result, missing.text) == (127, "/no/such/program: No such file or directory\n")


def test_a_file_that_is_not_there_is_told_so(witness):
    assert _done(witness.ask([ReadFile("/no/file"), WriteFile("/no/file", "x")])) == [-2, -2]


@pytest.mark.slow
def test_the_module_is_exchanged(witness):
    mixed = [Open(0, 0), Map(0, 0, 2), Store(0, 0, 1), Store(0, 1, 2), ToDevice(0, 0, 0, 2), Close(0, 0)]
    results = witness.ask([UseModule(Module.STOCK), *mixed, UseModule(Module.MENDED), Open(0, 0), UseModule(Module.STOCK)])
    assert _done(results) == [0] * 9 + [-11]


# ---- ends --------------------------------------------------------------------------------------------------------------

MIXED = [
    *(UseModule(Module.STOCK), Open(0, 0), Map(0, 0, 4)),
    *(Store(0, page, 16 + page) for page in range(4)),
    *(ToDevice(0, 0, 0, 4), Load(0, 0), DeviceRead(0, 0, 0, 4), Load(0, 1)),
]
"""The device reads a range of which one page came back: what the stock module has wrong."""


@pytest.mark.slow
def test_an_oops_is_the_answer_to_the_command_that_made_it(witness):
    *before, ended, after = witness.ask(MIXED)
    assert _done(before) == [0] * 9
    assert (ended.reason, ended.here, after.here) == (Reason.OOPS, True, False)
    assert "dmirror_do_read" in ended.console
    witness.restart()
    assert _done(witness.ask([Reset()])) == [0]


@pytest.mark.slow
def test_a_machine_killed_in_mid_command_is_told(witness):
    child = witness._process.child
    threading.Timer(0.5, os.kill, (child.pid, signal.SIGKILL)).start()
    results = witness.ask([Map(0, 0, 1), Execute(60, ("/bin/hmm-tests",)), Load(0, 0)])
    assert results[0].result == 0
    assert [(each.reason, each.here) for each in results[1:]] == [(Reason.KILLED, True), (Reason.KILLED, False)]
    assert results[1].said == "the line is closed; QEMU ended with status -9"


@pytest.mark.slow
def test_a_machine_killed_under_load_loses_no_answer_that_came(witness):
    child = witness._process.child
    witness.ask([Map(0, 0, 1), Store(0, 0, 42)])
    threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL)).start()
    results = witness.ask([Load(0, 0)] * 100_000)
    answered = [each for each in results if isinstance(each, Answer)]
    ended = results[len(answered) :]
    assert {each.value for each in answered} == {42}
    assert [each.here for each in ended[:2]] == [True, False]
    assert len(results) == 100_000


@pytest.mark.slow
def test_a_guest_can_be_asked_over_a_serial_line(guest):
    machine = Machine(guest.kernel, guest.initrd, transport=Transport.SERIAL)
    with Witness(guest.name, [Way(machine, 60)]) as witness:
        results = witness.ask([Map(0, 0, 4), Store(0, 1, 42), *[Load(0, 1)] * 200])
        assert dict(witness.greeting.facts)["transport"] == "serial"
        assert _values(results[2:]) == [42] * 200


_LEFT_ALONE = """
import os, signal, sys
from pathlib import Path
from migrate_vma_conformance.kernel.guests import find_guest
from migrate_vma_conformance.kernel.witness.witness import Witness, ways
guest = find_guest(sys.argv[1])
with Witness(guest.name, ways(guest)) as witness:
    print(witness._process.child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_machine_whose_host_was_killed_ends_by_itself(guest):
    script, paths = [sys.executable, "-c", _LEFT_ALONE, guest.name], {"PYTHONPATH": ":".join(sys.path)}
    told = subprocess.run(script, check=False, capture_output=True, text=True, env={**os.environ, **paths})
    process = Path("/proc", told.stdout.strip() or "none", "comm")
    assert "qemu" in process.read_text()
    end = time.monotonic() + 60
    while process.exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not process.exists()


@pytest.mark.slow
def test_a_stopped_machine_is_given_up(guest):
    with Witness(guest.name, ways(guest), patience=2) as witness:
        os.kill(witness._process.child.pid, signal.SIGSTOP)
        begun = time.monotonic()
        (ended,) = witness.ask([Load(0, 0)])
        assert (ended.reason, time.monotonic() - begun < 20) == (Reason.SILENT, True)


@pytest.mark.slow
def test_a_program_that_takes_too_long_is_told(witness):
    hung, after = witness.ask([Execute(1, ("/bin/hmm-tests",)), Load(0, 0)])
    assert (hung.fate, after.signal) == (Fate.HUNG, SEGV)


@pytest.mark.slow
def test_a_command_past_its_limit_hangs(witness):
    huge = [Limit(1), Open(0, 0), Map(0, 0, 1024), Advise(0, 0, 1024, Advice.POPULATE_WRITE), ToDevice(0, 0, 0, 1024)]
    results = witness.ask([*huge, Limit(10_000), Reset(), Map(0, 0, 1), Load(0, 0)])
    assert Fate.HUNG in {each.fate for each in results[1:5]}
    assert (results[6].result, results[8].value) == (0, 0)
