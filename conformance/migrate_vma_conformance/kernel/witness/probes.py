"""Counting probes: how often a function of the guest's kernel was entered, by tracefs.

Rules:
- Hits are counted by the kernel itself (kprobe_profile): none is lost to a full buffer. What a probe missed is counted, too.
- Probes of others are left alone: ours have their own group, are added and taken away by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from migrate_vma_conformance.kernel.commands import AppendFile, Command, ReadFile, WriteFile

TRACING = "/sys/kernel/tracing"
_GROUP = "migrate_vma"


@frozen
class Count:
    """Entries that a probe saw, and those that it missed."""

    hits: int
    missed: int


@frozen
class Probes:
    """Probes at the entries of functions, each by a name of ours: `functions` has the function of each name."""

    functions: Mapping[str, str]

    def set_up(self) -> list[Command]:
        """Commands that set the probes and let them count from 0."""
        defined = (f"p:{_GROUP}/{name} {function}\n" for name, function in self.functions.items())
        return [*(AppendFile(f"{TRACING}/kprobe_events", text) for text in defined), WriteFile(_enable(), "1")]

    def read(self) -> Command:
        """The command whose answer `counts` reads."""
        return ReadFile(f"{TRACING}/kprobe_profile")

    def take_away(self) -> list[Command]:
        names = (AppendFile(f"{TRACING}/kprobe_events", f"-:{_GROUP}/{name}\n") for name in self.functions)
        return [WriteFile(_enable(), "0"), *names]

    def counts(self, profile: str) -> dict[str, Count]:
        """What a kprobe_profile says of these probes: a name, hits and misses a line."""
        rows: list[Sequence[str]] = [words for line in profile.splitlines() if len(words := line.split()) == 3]
        return {name: Count(int(hits), int(missed)) for name, hits, missed in rows if name in self.functions}


def _enable() -> str:
    return f"{TRACING}/events/{_GROUP}/enable"
