"""Records a trace on a guest of our own: probes, a race of threads on one device-private page, and what the probes saw.

Rules:
- A guest that ends meanwhile is a result: what it printed is in the message.
- Threads race over and over, each round on a page that was brought to the device again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from migrate_vma_conformance.errors import SubjectError, UsageError
from migrate_vma_conformance.kernel.commands import (
    AppendFile,
    Command,
    Limit,
    Load,
    Map,
    Open,
    Race,
    ReadFile,
    Store,
    ToDevice,
    WriteFile,
)
from migrate_vma_conformance.kernel.guests import Guest
from migrate_vma_conformance.kernel.traces.setups import GROUP, header, probes, wanted
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate
from migrate_vma_conformance.kernel.witness.witness import Ended, Result, Witness, ways

TRACING = "/sys/kernel/tracing"
PAGE_SIZE = "4096"


def record_on(guest: Guest, path: Path, *, threads: int = 4, rounds: int = 8) -> int:
    """Record a race on a guest into a file; the number of its lines.

    Args:
        guest: a built guest.
        path: where the trace is written.
        threads: how many threads fault on the page at once.
        rounds: how often.

    Raises:
        SubjectError: the guest did not carry it out.
        UsageError: the file cannot be written.
    """
    with Witness(guest.name, ways(guest)) as witness:
        installed = _probes(guest)
        _done(guest, witness, [Limit(20_000), *_set_up(installed)])
        _done(guest, witness, list(_race(threads, rounds)))
        *_, answer = _done(guest, witness, [WriteFile(f"{TRACING}/tracing_on", "0"), ReadFile(f"{TRACING}/trace")])
    text = f"{header(guest.release, PAGE_SIZE, installed)}\n{answer.text or ''}"
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(
            str(path), "FILE", f"it cannot be written ({error.strerror})", "a file in a directory that exists"
        ) from error
    return text.count("\n")


def _probes(guest: Guest) -> list[str]:
    what = wanted("test_hmm", guest.release)
    return probes(what.release, what.driver.callbacks[0], what.driver.frees[0])


def _set_up(installed: Sequence[str]) -> Iterator[Command]:
    settings = {"tracing_on": "0", "trace_clock": "mono", "buffer_size_kb": "4096"}
    for name, value in settings.items():
        yield WriteFile(f"{TRACING}/{name}", value)
    for line in installed:
        yield AppendFile(f"{TRACING}/kprobe_events", f"{line}\n")
    yield WriteFile(f"{TRACING}/events/{GROUP}/enable", "1")
    yield WriteFile(f"{TRACING}/tracing_on", "1")


def _race(threads: int, rounds: int) -> Iterator[Command]:
    yield Open(0, 0)
    yield Map(0, 0, 1)
    for number in range(rounds):
        yield Store(0, 0, number % 256)
        yield ToDevice(0, 0, 0, 1)
        yield Race((Load(0, 0),) * threads)


def _done(guest: Guest, witness: Witness, commands: Sequence[Command]) -> list[Answer]:
    """The answers to commands that must succeed."""
    return [_checked(guest, command, result) for command, result in zip(commands, witness.ask(commands), strict=True)]


def _checked(guest: Guest, command: Command, result: Result) -> Answer:
    name = f"guest {guest.name}"
    if isinstance(result, Ended):
        raise SubjectError(name, f"{result.said}; its console ends with: {result.console[-500:]}")
    if result.fate is not Fate.DONE or result.result < 0:
        raise SubjectError(name, f"`{command.verb}` gave {result.result} ({result.fate.value}) {result.text or ''}: {command}")
    return result
