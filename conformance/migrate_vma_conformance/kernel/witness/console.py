"""What a guest's console says of its end, or of something that it ought not to say at all.

The texts that are looked for are those that Linux prints at the head of a report. What stands around them is evidence, never
parsed.
"""

from __future__ import annotations

import enum
import re

from attrs import frozen


class Reason(enum.Enum):
    """Why a guest ended. The first report on the console says it, else what the host saw."""

    OOPS = "oops"
    BUG = "bug"
    KASAN = "kasan"
    WARNING = "warning"
    STALL = "stall"
    PANIC = "panic"
    KILLED = "killed"
    """The machine ended and its console says nothing of it."""
    SILENT = "silent"
    """It ran, and did not answer within the limit."""
    GARBLED = "garbled"
    """Its line carried something that is no answer."""


@frozen
class Report:
    """One report of the kernel: its kind, its first line, and the text from there on."""

    reason: Reason
    headline: str
    text: str


_HEADS = (
    (Reason.KASAN, re.compile(r"BUG: KASAN: .*")),
    (Reason.BUG, re.compile(r"kernel BUG at .*|BUG: (?:Bad|sleeping function|scheduling while atomic|spinlock) .*")),
    (Reason.OOPS, re.compile(r"BUG: (?:unable to handle|kernel NULL) .*|Oops: .*|general protection fault.*|double fault: .*")),
    (Reason.STALL, re.compile(r"rcu: INFO: .*stall.*|watchdog: BUG: soft lockup.*|INFO: task .* blocked for more than .*")),
    (Reason.WARNING, re.compile(r"WARNING: .*")),
    (Reason.PANIC, re.compile(r"Kernel panic - not syncing: .*")),
)
_STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ")


def reports(console: str) -> tuple[Report, ...]:
    """Every report on the console, the first one first."""
    lines = console.splitlines()
    heads = [(number, found) for number, line in enumerate(lines) if (found := _head(line)) is not None]
    return tuple(Report(reason, headline, "\n".join(lines[number:])) for number, (reason, headline) in heads)


def _head(line: str) -> tuple[Reason, str] | None:
    said = _STAMP.sub("", line)
    for reason, head in _HEADS:
        if (found := head.match(said)) is not None:
            return reason, found[0]
    return None


def last_lines(console: str, count: int = 40) -> str:
    """The end of a console, for a message."""
    return "\n".join(console.splitlines()[-count:])
