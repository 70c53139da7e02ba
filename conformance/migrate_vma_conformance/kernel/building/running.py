"""Programs that a build runs: without a shell, with their output in the log, and none left behind.

Rules:
- A program has its own process group, which ends with the build, however that ends.
- It keeps the lock of the cache open: while something of a killed build still runs, the next one waits its turn in words.
- What it may see of the environment is named here. What a user has set for other builds does not change this one.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import IO

from attrs import frozen

from migrate_vma_conformance.kernel.building.failures import CommandFailed, DiskFull, is_full, says_full

_PASSED = ("PATH", "HOME", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_TAIL = 30
_GRACE = 5.0
"""Seconds that a program has to end when it is told to."""


def no_line(line: str) -> None:
    """Of a program whose lines nobody follows."""


@frozen
class Runner:
    """Runs programs, one after the other. `scratch` is where they put temporary files, `kept` the lock that they keep open."""

    log: Path
    scratch: Path
    kept: int

    def run(self, words: Sequence[str], directory: Path, follow: Callable[[str], None] = no_line, **variables: str) -> list[str]:
        """Run a program to its end; gives the last lines of its output.

        Raises:
            CommandFailed: it ends with another status than 0, or cannot be started.
            DiskFull: for want of room.
        """
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        environment |= {"LC_ALL": "C", "TMPDIR": str(self.scratch), **variables}
        lines: collections.deque[str] = collections.deque(maxlen=_TAIL)
        try:
            status = self._followed(words, directory, environment, lines, follow)
        except OSError as error:
            if is_full(error):
                raise DiskFull(str(error)) from error
            raise CommandFailed(words, 127, [f"{words[0]}: {error.strerror}"]) from error
        if status and says_full(lines):
            raise DiskFull(f"{words[0]} found no room")
        if status:
            raise CommandFailed(words, status, lines)
        return list(lines)

    def _followed(
        self,
        words: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        lines: collections.deque[str],
        follow: Callable[[str], None],
    ) -> int:
        with self.log.open("a", buffering=1, encoding="utf-8") as log:
            log.write(f"+ {' '.join(words)}\n")
            process = subprocess.Popen(  # noqa: S603  (words of ours, no shell)
                words,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=(self.kept,),
            )
            with _ended_in_any_case(process) as output:
                for line in output:
                    lines.append(line.rstrip("\n"))
                    log.write(f"{lines[-1]}\n")
                    follow(line)
                return process.wait()


@contextlib.contextmanager
def _ended_in_any_case(process: subprocess.Popen[str]) -> Generator[IO[str]]:
    if process.stdout is None:
        raise ValueError("the program was started without a pipe")
    try:
        with process.stdout as output:
            yield output
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the program and all that it has started, and wait until they are gone."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(process.pid, number)
        end = time.monotonic() + _GRACE
        while time.monotonic() < end:
            process.poll()
            if not _signal(process.pid, 0):
                return
            time.sleep(0.01)


def _signal(group: int, number: int) -> bool:
    """Send a signal to the processes of a group, or none (0); is there any?"""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
