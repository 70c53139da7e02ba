"""What can go wrong while a guest is built, each in a paragraph for the person who waits for it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

from migrate_vma_conformance.errors import SubjectError


class CacheBusy(SubjectError):
    """Another build has the cache (exit code 3)."""


class BuildFailed(SubjectError):
    """A guest could not be built (exit code 3). `tail` are the last lines of what failed, `log` the file that has them all."""

    def __init__(self, subject: str, problem: str, log: Path | None = None, tail: Sequence[str] = ()) -> None:
        super().__init__(subject, problem)
        self.args = (subject, problem, log, tuple(tail))
        self.log = log
        self.tail = tuple(tail)


class CommandFailed(Exception):
    """A program ended with another status than 0. `lines` are the last ones that it said."""

    def __init__(self, words: Sequence[str], status: int, lines: Sequence[str]) -> None:
        super().__init__(tuple(words), status, tuple(lines))
        self.words = tuple(words)
        self.status = status
        self.lines = tuple(lines)


class DiskFull(Exception):
    """There is no room left where the guest is built."""


FULL = "No space left on device"
"""What every program says of it (ENOSPC)."""


def is_full(error: OSError) -> bool:
    """Is this a full disk, or a quota that is used up?"""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def says_full(lines: Iterable[str]) -> bool:
    """Did a program end for want of room?"""
    return any(FULL in line or "Disk quota exceeded" in line for line in lines)
