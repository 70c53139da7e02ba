"""Child processes: what comes back of them, whatever they do, and that none is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from migrate_vma_conformance import pool
from migrate_vma_conformance.pool import Lost, run_all, run_one
from tests.processes import environment

pytestmark = pytest.mark.slow


def double(number):
    return 2 * number


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def fail(_):
    raise ValueError("no")


def give_what_cannot_be_sent(_):
    return threading.Lock()


class Poisoned:
    """Is sent, and cannot be read."""

    def __reduce__(self):
        return fail, (None,)


def give_what_cannot_be_read(_):
    return Poisoned()


def end(code):
    os._exit(code)


def kill(number):
    os.kill(os.getpid(), number)


def hoard(_):
    held = []
    while True:
        held.append(bytes(1 << 28))


def test_results_come_with_their_places():
    assert dict(run_all(double, [1, 2, 3, 4], jobs=2, seconds=20)) == {0: 2, 1: 4, 2: 6, 3: 8}


def test_nothing_to_do_is_done():
    assert list(run_all(double, [], jobs=2, seconds=20)) == []


@pytest.mark.parametrize(
    ("function", "value", "reason"),
    [
        (fail, None, "the child process failed with ValueError: no"),
        (end, 0, "the child process ended without a result (exit code 0)"),
        (end, 3, "the child process ended without a result (exit code 3)"),
        (kill, signal.SIGTERM, "the child process was killed by SIGTERM"),
        (kill, signal.SIGKILL, "the child process was killed by SIGKILL (out of memory?)"),
        (kill, signal.SIGRTMIN + 1, f"the child process was killed by signal {signal.SIGRTMIN + 1}"),
        (hoard, None, "the memory limit of "),
        (give_what_cannot_be_sent, None, "its result cannot be sent to another process: TypeError: cannot pickle"),
        (give_what_cannot_be_read, None, "its result cannot be read: ValueError: no"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_unit_without_a_result_says_why(function, value, reason):
    lost = run_one(function, value, seconds=20)
    assert isinstance(lost, Lost)
    assert lost.reason.startswith(reason)
    assert not lost.out_of_time


def test_a_unit_that_is_too_slow_is_lost_and_the_others_are_not():
    results = dict(run_all(sleep, [60, 0, 0.1], jobs=2, seconds=2))
    assert (results[1], results[2]) == (0, 0.1)
    assert results[0] == Lost("the time limit of 2 s was reached; the model loops or is too large", out_of_time=True)


def test_code_of_theirs_that_takes_long_in_one_step_is_named(monkeypatch):
    monkeypatch.setattr(pool, "STEP_SECONDS", 0.2)
    lost = run_one(sleep, 10, seconds=20)
    assert "one step did not end within 0.2 s: sleep (test_kit_children.py:" in lost.reason


def test_code_of_ours_may_take_as_long_as_it_needs(monkeypatch):
    monkeypatch.setattr(pool, "STEP_SECONDS", 0.2)
    assert run_one(time.sleep, 1, seconds=20) is None


def test_who_stops_listening_ends_the_children():
    results = run_all(sleep, [0, 60, 60], jobs=3, seconds=100)
    next(results)
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 10


def test_a_child_ends_when_its_parent_is_gone(tmp_path):
    told = tmp_path / "pid"
    code = (
        "from migrate_vma_conformance.kit import check_driver\n"
        "check_driver('tests.conformance.subjects.endless:takes_its_time', scenarios=['fault-short'], jobs=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment(SUBJECT_PID_FILE=str(told))) as parent:
        wait_until(lambda: parent.poll() is not None or (told.exists() and told.read_text()))
        child = int(told.read_text())
        assert alive(child)
        parent.kill()
    wait_until(lambda: not alive(child))


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    """Whether the process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
