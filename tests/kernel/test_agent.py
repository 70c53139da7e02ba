"""The agent as a program of this machine: what needs neither QEMU nor a guest of the operation language."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from migrate_vma_conformance.kernel.building.recipe import SOURCES
from migrate_vma_conformance.kernel.commands import (
    DeviceRead,
    Execute,
    Exit,
    Fork,
    Kind,
    Limit,
    Load,
    Map,
    Open,
    Pin,
    Protect,
    Protection,
    Race,
    ReadFile,
    Remap,
    Reset,
    Store,
    Unmap,
    Unpin,
    WriteFile,
)
from migrate_vma_conformance.kernel.witness.line import Closed, Line
from migrate_vma_conformance.kernel.witness.protocol import Fate, greeting

SEGV = signal.SIGSEGV
WORDS = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    compiler = shutil.which("gcc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("the agent is compiled by gcc, for x86-64")
    made = tmp_path_factory.mktemp("agent") / "agent"
    words = [compiler, *WORDS, "-o", made, *sorted(SOURCES.glob("*.c"))]
    built = subprocess.run(words, check=False, capture_output=True, text=True)
    if "cannot find -lc" in built.stderr:
        pytest.skip("there is no static C library (Debian: libc6-dev)")
    return made, built


@pytest.fixture
def line(program):
    made, built = program
    assert built.stderr == ""
    ours, theirs = socket.socketpair()
    with subprocess.Popen([made], stdin=theirs) as running, ours:
        theirs.close()
        yield Line(ours, patience=20)
        ours.close()
        running.wait(20)


def test_its_processes_end_when_the_agent_is_killed(program):
    made, _ = program
    ours, theirs = socket.socketpair()
    with subprocess.Popen([made], stdin=theirs) as running, ours:
        theirs.close()
        line = Line(ours, patience=20)
        assert [answer.fate for answer in _ask(line, Fork(0, 1))] == [Fate.DONE]
        processes = _children(str(running.pid))
        running.kill()
        running.wait(20)
    end = time.monotonic() + 20
    while time.monotonic() < end and any(map(_runs, processes)):
        time.sleep(0.02)
    assert len(processes) == 2
    assert not any(map(_runs, processes))


def _runs(pid):
    """Whether it is there and no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _ask(line, *commands):
    return list(line.ask(commands))


def _says(line, text):
    """What comes back for a line that no host of ours writes."""
    line.wire.setblocking(True)
    line.wire.settimeout(20)
    line.wire.sendall(f"noise\n\n1\n{text}\n".encode())
    with line.wire.makefile("r") as answers:
        return answers.readline().rstrip("\n")


def _children(parent):
    """By /proc: process numbers of those whose parent this is."""
    stats = ([*path.read_text().rpartition(")")[2].split(), path.parent.name] for path in Path("/proc").glob("[0-9]*/stat"))
    return [int(stat[-1]) for stat in stats if stat[1] == parent]


@pytest.mark.slow
def test_it_greets_and_ends_with_its_line(line):
    assert dict(greeting(line.greet(10)).facts)["transport"] == "stdin"
    line.wire.shutdown(socket.SHUT_WR)
    with pytest.raises(Closed):
        _ask(line, Load(0, 0))


def test_it_loads_and_stores(line):
    results = _ask(line, Map(0, 0, 2), Store(0, 1, 42), Load(0, 1), Load(0, 0), Load(0, 2))
    assert [(each.value, each.signal) for each in results[1:]] == [(42, None), (42, None), (0, None), (None, SEGV)]
    assert [each.minor for each in results[1:4]] == [1, 0, 1]


def test_it_protects_and_moves(line):
    _ask(line, Map(0, 0, 1), Store(0, 0, 5), Protect(0, 0, 1, Protection.READ))
    stored, _, loaded = _ask(line, Store(0, 0, 6), Remap(0, 0, 1, 9), Load(0, 9))
    assert (stored.signal, loaded.value) == (SEGV, 5)


def test_a_fork_copies_what_is_private_and_shares_the_rest(line):
    _ask(line, Map(0, 0, 1), Map(0, 8, 1, kind=Kind.SHARED), Map(0, 16, 1, kind=Kind.FILE), Fork(0, 1))
    _ask(line, *(Store(1, page, 3) for page in (0, 8, 16)))
    assert [each.value for each in _ask(line, *(Load(0, page) for page in (0, 8, 16)))] == [0, 3, 3]


def test_a_reset_leaves_one_empty_process(line):
    file = Map(0, 0, 1, kind=Kind.FILE)
    _ask(line, file, Store(0, 0, 3), Fork(0, 4), Reset())
    child, unmapped, _, emptied = _ask(line, Load(4, 0), Load(0, 0), file, Load(0, 0))
    assert (child.fate, unmapped.signal, emptied.value) == (Fate.REFUSED, SEGV, 0)


def test_processes_race_together(line):
    _ask(line, Map(0, 0, 4), Fork(0, 1))
    (race,) = _ask(line, Race((Store(0, 0, 1), Load(1, 0), Fork(0, 2), Unmap(1, 1, 1), Load(0, 3))))
    assert [part.fate for part in race.parts] == [Fate.DONE] * 5
    assert [each.value for each in _ask(line, Load(0, 0), Load(2, 3))] == [1, 0]
    assert _ask(line, Load(1, 1))[0].signal == SEGV


def test_a_pin_holds_what_was_there(line):
    results = _ask(line, Map(0, 0, 1), Store(0, 0, 7), Pin(0, 0), Map(0, 0, 1), Unpin(0, 0), Unpin(0, 0))
    assert (results[4].value, results[5].result) == (7, -2)


def test_a_process_that_is_killed_is_gone(line):
    (told,) = _ask(line, ReadFile("/proc/self/stat"))
    for child in _children(told.text.split()[0]):
        os.kill(child, signal.SIGKILL)
    killed, reset, again = _ask(line, Load(0, 0), Reset(), Load(0, 0))
    assert killed.fate in {Fate.GONE, Fate.REFUSED}
    assert (reset.result, again.signal) == (0, SEGV)


def test_files_are_read_and_written_and_programs_run(line, tmp_path):
    path = tmp_path / "a file"
    path.write_text("before")
    written, read, run, slow = _ask(
        line,
        WriteFile(str(path), "a; b%\n"),
        ReadFile(str(path)),
        Execute(10, ("/bin/echo", "two words", "")),
        Execute(1, ("/bin/sleep", "60")),
    )
    assert (written.result, read.text, run.text, slow.fate) == (0, "a; b%\n", "two words \n", Fate.HUNG)


def test_what_makes_no_sense_is_refused(line):
    twins = Race((Fork(0, 1), Fork(0, 1)))
    results = _ask(line, Load(5, 0), twins, Race((Exit(0), Load(0, 0))), Race((Load(0, 0),) * 33))
    assert [each.text for each in results] == [
        "no such process",
        "two commands make the same process",
        "exit cannot be raced",
        "too many commands for one race",
    ]


def test_a_device_that_is_not_there_is_told(line):
    assert [each.result for each in _ask(line, Open(0, 0), Map(0, 0, 1), DeviceRead(0, 0, 0, 1))] in ([-2, 0, -9], [0, 0, 0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2 lead 0 1", "no such command"),
        ("2 load 0", "too few arguments"),
        ("2 load 0 1 2", "too many arguments"),
        ("2 load 0 16384", "an argument that makes no sense"),
        ("2 load 16 0", "an argument that makes no sense"),
        ("2 load 0 x", "an argument that makes no sense"),
        ("2 map 0 0 1 execute private", "an argument that makes no sense"),
        ("2 race", "no such command"),
        ("2 limit 0", "a limit is a number of milliseconds"),
        ("2 write-file /a%2", "no path, or no text"),
    ],
)
def test_a_line_that_is_no_command_is_refused_and_noise_passed_over(line, text, why):
    assert _says(line, text) == f"2 0 refused text={why.replace(' ', '%20')}"


@pytest.mark.slow
def test_processes_that_die_in_a_race_are_gone_and_one_that_waits_for_them_hangs(line):
    _ask(line, Map(0, 0, 1), Limit(1500))
    (told,) = _ask(line, ReadFile("/proc/self/stat"))
    first = set(_children(told.text.split()[0]))
    _ask(line, Fork(0, 1), Fork(0, 2))
    forked = set(_children(told.text.split()[0])) - first
    for child in forked:
        os.kill(child, signal.SIGSTOP)
    for child in forked:
        threading.Timer(0.3, os.kill, (child, signal.SIGKILL)).start()
    race, reset, after = _ask(line, Race((Load(0, 0), Load(1, 0), Load(2, 0))), Reset(), Load(0, 0))
    assert [(part.fate, part.signal) for part in race.parts] == [(Fate.HUNG, None), (Fate.GONE, 9), (Fate.GONE, 9)]
    assert (reset.result, after.signal) == (0, SEGV)
