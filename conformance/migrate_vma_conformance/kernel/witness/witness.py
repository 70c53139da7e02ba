"""A real kernel that answers: `Witness` boots a guest, asks it, and says how it ended, with its console as evidence.

Rules:
- A guest that oopses, hangs, dies or talks nonsense is a result: each command that it owes an answer gets an `Ended`. One that
  cannot be booted is an exception.
- No answer is lost: those that came before the end are given as they are.
- An ended guest stays ended until `restart`. Nothing is asked twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from attrs import define, evolve, field, frozen

from migrate_vma_conformance.kernel.commands import Command, Module
from migrate_vma_conformance.kernel.guests import Guest
from migrate_vma_conformance.kernel.witness import qemu
from migrate_vma_conformance.kernel.witness.console import Reason, reports
from migrate_vma_conformance.kernel.witness.line import Closed, Ending, Garbled, Line, Silence
from migrate_vma_conformance.kernel.witness.protocol import Answer, Greeting, MalformedLine, WrongVersion, greeting
from migrate_vma_conformance.kernel.witness.qemu import Accelerator, Machine, MakeCommand, NotBooted, Process

BOOT_LIMIT = 90.0
"""Seconds until the guest must have greeted: emulated boots take two to six, on a busy machine several times that."""
VIRTUAL_BOOT_LIMIT = 12.0
"""The same where hardware virtualisation should help; it may hang instead."""
PATIENCE = 60.0
"""Seconds from one answer to the next; the agent itself gives a process up long before."""
_LAST_WORDS = 10.0
"""Seconds for a machine whose line is closed to print the rest of its panic and to end."""


@frozen
class Ended:
    """The guest ended, and this is what a command gets that it owed an answer.

    `here`: it is the command that was being carried out. `said`: one line for people. `console`: all that the guest printed.
    """

    reason: Reason
    said: str
    console: str
    here: bool = True


Result = Answer | Ended


@define
class Statistics:
    """What a witness has done. Seconds are those of the host."""

    boots: int = 0
    boot_seconds: float = 0.0
    commands: int = 0
    asking_seconds: float = 0.0
    ends: Counter[Reason] = field(factory=Counter[Reason])

    @property
    def rate(self) -> float:
        """Commands a second."""
        return self.commands / self.asking_seconds if self.asking_seconds else 0.0


@frozen
class Way:
    """One way to boot a guest, and how long that may take."""

    command: MakeCommand
    limit: float


def ways(
    guest: Guest,
    module: Module = Module.MENDED,
    memory: int = 768,
    accelerators: Sequence[Accelerator] = (),
    parameters: tuple[str, ...] = (),
) -> list[Way]:
    """How a built guest can be booted here, the fastest first."""
    limits = {Accelerator.KVM: VIRTUAL_BOOT_LIMIT, Accelerator.TCG: BOOT_LIMIT}
    return [
        Way(Machine(guest.kernel, guest.initrd, each, memory, module=module, parameters=parameters), limits[each])
        for each in accelerators or qemu.accelerators()
    ]


@define
class Witness:
    """A guest that is up, or has ended. As a context manager it boots on entry and leaves nothing behind.

    Attributes:
        name: for messages.
        ways: tried in order; the first one that boots is kept for restarts.
    """

    name: str
    ways: list[Way]
    patience: float = PATIENCE
    statistics: Statistics = field(factory=Statistics, init=False)
    greeting: Greeting | None = field(default=None, init=False)
    ended: Ended | None = field(default=None, init=False)
    _process: Process | None = field(default=None, init=False)
    _line: Line | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- boots -------------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Boots a fresh guest in the place of the one there was.

        Raises:
            NotBooted: no way leads to a guest that greets.
        """
        self.close()
        failures: list[NotBooted] = []
        for way in self.ways:
            try:
                self._boot(way)
            except NotBooted as failure:
                failures.append(failure)
                continue
            self.ways = [way]
            return
        raise failures[-1]

    def _boot(self, way: Way) -> None:
        begun = time.monotonic()
        process = qemu.start(self.name, way.command, way.limit)
        line = Line(process.wire, self.patience)
        try:
            self.greeting = greeting(line.greet(way.limit))
        except (Ending, WrongVersion, MalformedLine) as error:
            process.ended(1.0 if isinstance(error, Closed) else 0.0)
            console = process.console()
            process.close()
            raise NotBooted(self.name, f"it does not greet: {error}", console) from error
        except BaseException:
            process.close()
            raise
        self._process, self._line, self.ended = process, line, None
        self.statistics.boots += 1
        self.statistics.boot_seconds += time.monotonic() - begun

    def close(self) -> None:
        """Ends the guest."""
        if self._process is not None:
            self._process.close()
        self._process = self._line = None

    # ---- asking ------------------------------------------------------------------------------------------------------

    def ask(self, commands: Sequence[Command]) -> list[Result]:
        """What came of each command, in order; `Ended` for those that the guest did not live to answer."""
        line = self._line
        if line is None:
            before = self.ended or Ended(Reason.KILLED, f"guest {self.name} was not booted", "")
            return [_not_here(before)] * len(commands)
        results: list[Result] = []
        begun = time.monotonic()
        try:
            results.extend(line.ask(commands))
        except Ending as ending:
            self.ended = self._end(ending)
            results += [self.ended, *[_not_here(self.ended)] * (len(commands) - len(results) - 1)]
        except BaseException:
            self.close()
            raise
        self.statistics.commands += len(commands)
        self.statistics.asking_seconds += time.monotonic() - begun
        return results

    def _end(self, ending: Ending) -> Ended:
        process = self._process
        if process is None:
            return Ended(Reason.KILLED, str(ending), "")
        status = ""
        if isinstance(ending, Closed):
            status = f"; QEMU ended with status {process.child.returncode}" if process.ended(_LAST_WORDS) else "; QEMU goes on"
        ended = _judged(ending, status, process.console())
        self.statistics.ends[ended.reason] += 1
        self.close()
        return ended


def _judged(ending: Ending, status: str, console: str) -> Ended:
    """The first report of the console says why; without one, what the host saw."""
    found = reports(console)
    if isinstance(ending, Garbled):
        return Ended(Reason.GARBLED, str(ending), console)
    if found:
        return Ended(found[0].reason, found[0].headline, console)
    return Ended(Reason.SILENT if isinstance(ending, Silence) else Reason.KILLED, f"{ending}{status}", console)


def _not_here(ended: Ended) -> Ended:
    return evolve(ended, here=False)
