"""Sequences of operations, what is observed of each, and the scripts that they are written as.

Rules:
- A sequence is the same for every subject: commands of the operation language, one after the other, from a fresh process 0 on.
- `run(sequence)` of a subject gives one observation for each operation. A kernel that ends with an operation (an oops, a hang) is
  observed as that; what would have followed is observed as not reached.
- An observation is what is compared, and no more: what two right kernels may tell differently (times, minor faults) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from attrs import frozen

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel.commands import Command, Load
from migrate_vma_conformance.kernel.witness.protocol import MalformedLine, decode_command, encode_command

Sequence = tuple[Command, ...]

NOT_OPEN = -9
"""-EBADF: what a device answers to a process that does not have it open."""


@frozen
class Observation:
    """What one operation came to. What it does not tell is None.

    Attributes:
        result: 0 or a negated errno.
        signal: that a load or store was answered with.
        value: the byte that a load found.
        cpages, faults: what a device counted: pages done, and its own faults.
        data: a byte for each page, of a device that read them, or took a snapshot.
        ended: in words, how the kernel ended with this operation. Then nothing else is told.
        evidence: what the kernel said of its end. It is shown, and never compared.
    """

    result: int | None = None
    signal: int | None = None
    value: int | None = None
    cpages: int | None = None
    faults: int | None = None
    data: bytes | None = None
    ended: str | None = None
    evidence: str = ""

    def __str__(self) -> str:
        if self.ended is not None:
            return f"ended: {self.ended}"
        words = [str(self.result)] if self.result is not None else []
        words += [f"signal {self.signal}"] if self.signal is not None else []
        words += [f"value {self.value:#04x}"] if self.value is not None else []
        words += [f"{name} {number}" for name, number in (("cpages", self.cpages), ("faults", self.faults)) if number is not None]
        words += [f"data {self.data.hex()}"] if self.data is not None else []
        return ", ".join(words) or "done"


NOT_REACHED = Observation(ended="not reached")


class Subject(Protocol):
    """Something that a sequence runs on."""

    @property
    def name(self) -> str: ...

    def run(self, sequence: Sequence) -> tuple[Observation, ...]: ...


def padded(observations: Iterable[Observation], sequence: Sequence) -> tuple[Observation, ...]:
    """The observations of a run that a kernel did not live through, one for each operation."""
    seen = tuple(observations)
    return (*seen, *(NOT_REACHED,) * (len(sequence) - len(seen)))


def of_access(operation: Command, result: int, value: int | None) -> Observation:
    """What a load or a store is observed as: a negative result is the signal."""
    if result < 0:
        return Observation(signal=-result)
    return Observation(result=0, value=value if isinstance(operation, Load) else None)


def of_device(result: int, cpages: int = 0, faults: int = 0, data: bytes | None = None) -> Observation:
    """What a device's operation is observed as: one that fails tells nothing but the errno, as its ioctl writes nothing back."""
    return Observation(result=result) if result < 0 else Observation(0, cpages=cpages, faults=faults, data=data)


# ---- scripts -----------------------------------------------------------------------------------------------------------


def write_script(sequence: Sequence, title: str = "") -> str:
    """The sequence as a text: an operation in each line, `#` begins a comment."""
    lines = [f"# {line}" for line in title.splitlines()]
    return "\n".join([*lines, *map(words_of, sequence)]) + "\n"


def words_of(operation: Command) -> str:
    """An operation as it stands in a script."""
    return encode_command(0, operation).partition(" ")[2]


def read_script(text: str, source: str = "--script") -> Sequence:
    """The sequence of a text.

    Raises:
        UsageError: a line is no operation.
    """
    return tuple(_operation(number, line, source) for number, line in _lines(text))


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            yield number, " ".join(words)


def _operation(number: int, line: str, source: str) -> Command:
    try:
        return decode_command(f"0 {line}")[1]
    except MalformedLine as error:
        expected = "an operation, as `store 0 3 17` or `to-device 0 0 2 4`"
        raise UsageError(line, f"{source}, line {number}:", error.problem, expected) from error
