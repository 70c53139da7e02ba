"""A real kernel as a subject: sequences on a guest, as many in one round trip as are asked for.

Rules:
- Every sequence begins with a reset, so that none sees what another left behind.
- A guest that ends with an operation has told its answer: the console is the evidence. It is booted again for the sequences that
  are left; one that ends outside of any operation, or cannot be booted, is lost (`Lost`).
- A warning of the kernel ends the guest, and so is seen. It does not during a device's write: the module warns of a page that it
  is refused (WARN_ON in dmirror_do_fault), which is an answer.
- Faults on files map the one page alone (fault-around is off), and nothing collapses pages by itself: what is asked is all.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Several
from typing import Protocol

from attrs import define

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Command, Reset, WriteFile
from migrate_vma_conformance.kernel.comparing.operations import Observation, Sequence, of_access, of_device, padded
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate
from migrate_vma_conformance.kernel.witness.witness import Ended, Result

_FATAL_WARNINGS = "/proc/sys/kernel/panic_on_warn"
_THP = "/sys/kernel/mm/transparent_hugepage"

SETTINGS = (
    WriteFile("/sys/kernel/debug/fault_around_bytes", "4096"),
    WriteFile(f"{_THP}/enabled", "madvise"),
    WriteFile(f"{_THP}/khugepaged/scan_sleep_millisecs", "4000000000"),
)
"""What a guest is told when it has booted."""


class Lost(Exception):
    """The guest does not answer, and no operation is to blame."""


class Asked(Protocol):
    """What a guest subject needs of a `Witness`."""

    @property
    def name(self) -> str: ...

    def restart(self) -> None: ...

    def ask(self, commands: Several[Command]) -> list[Result]: ...


@define
class GuestSubject:
    """A guest that is up."""

    name: str
    witness: Asked
    _ready: bool = False
    _ended: bool = False

    def run(self, sequence: Sequence) -> tuple[Observation, ...]:
        return next(iter(self.run_all([sequence])))

    def run_all(self, sequences: Several[Sequence]) -> Iterator[tuple[Observation, ...]]:
        """What each of them comes to.

        Raises:
            Lost: the guest ends without an operation that ended it.
            NotBooted: it ended, and cannot be booted again.
        """
        done = 0
        while done < len(sequences):
            self._prepare()
            some = self._some(sequences[done:])
            yield from some
            done += len(some)

    def _prepare(self) -> None:
        """Boot the guest again if it has ended, and tell it its settings."""
        if self._ready:
            return
        if self._ended:
            self.witness.restart()
            self._ended = False
        answers = self.witness.ask(SETTINGS)
        failed = [answer for answer in answers if not isinstance(answer, Answer) or answer.result < 0]
        if failed:
            raise Lost(f"guest {self.name} does not take its settings: {failed[0]}")
        self._ready = True

    def _some(self, sequences: Several[Sequence]) -> list[tuple[Observation, ...]]:
        """What the first of these sequences come to, up to one that ends the guest."""
        lines = [line for sequence in sequences for line in _lines(sequence)]
        answers = self.witness.ask([command for command, _ in lines])
        told = iter([answer for (_, is_told), answer in zip(lines, answers, strict=True) if is_told])
        seen: list[tuple[Observation, ...]] = []
        for sequence in sequences:
            observed = self._observed(sequence, [next(told) for _ in range(1 + len(sequence))])
            seen.append(observed)
            if any(each.ended is not None for each in observed):
                self._ready, self._ended = False, True
                break
        return seen

    def _observed(self, sequence: Sequence, results: Several[Result]) -> tuple[Observation, ...]:
        reset, *answers = results
        if not isinstance(reset, Answer) or reset.result:
            raise Lost(f"guest {self.name} does not begin afresh: {reset if isinstance(reset, Answer) else reset.said}")
        seen: list[Observation] = []
        for operation, result in zip(sequence, answers, strict=True):
            seen.append(observation(operation, result))
            if seen[-1].ended is not None:
                break
        return padded(seen, sequence)


def _lines(sequence: Sequence) -> Iterator[tuple[Command, bool]]:
    """What a guest is told for a sequence, and of what the answer is wanted."""
    yield Reset(), True
    for operation in sequence:
        if isinstance(operation, ops.DeviceWrite):
            yield WriteFile(_FATAL_WARNINGS, "0"), False
        yield operation, True
        if isinstance(operation, ops.DeviceWrite):
            yield WriteFile(_FATAL_WARNINGS, "1"), False


def observation(operation: Command, result: Result) -> Observation:
    """What is observed of an operation, by the guest's answer to it."""
    if isinstance(result, Ended):
        return Observation(ended=f"{result.reason.value}: {result.said}", evidence=result.console)
    if result.fate is not Fate.DONE:
        signal = f" by signal {result.signal}" if result.signal else ""
        return Observation(ended=f"{result.fate.value}{signal}", evidence=result.text or "")
    if isinstance(operation, ops.Load | ops.Store):
        return of_access(operation, -result.signal if result.signal else 0, result.value)
    if isinstance(operation, ops.DeviceAccess):
        return of_device(result.result, result.cpages or 0, result.faults or 0, result.data)
    return Observation(result.result)
