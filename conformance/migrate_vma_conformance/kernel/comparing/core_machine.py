"""The simulated core as a machine that one commands: an operation at a time, to its end, and what is in memory after it.

Rules:
- Operations run on CPU 0 alone, with the CPUs' workers where they wait for those; data choices get their defaults.
- Contents are followed through the trace: a store puts its byte into the frame that it reached, copies and clears carry bytes
  about, and a load finds what is in the frame that it reached. So a page with the wrong contents shows, whoever mixed it up.
- An operation that stops the kernel, or that never ends, is `Ended`, with the last events as evidence; so is one that raises.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from attrs import define, field

from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.automaton import ModelError
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.events import (
    CpuAccessed,
    DeviceAccessed,
    Event,
    FrameAdded,
    Oops,
    PageCleared,
    PageCopied,
    PageFilled,
    PageWritten,
    Step,
)

Work = Callable[..., Coroutine[Any, Any, Any]]

STEP_LIMIT = 200_000
"""Far more than an operation on a few hundred pages has."""

LAST_EVENTS = 12
"""So many events tell how it ended."""

UNTOLD = 0xDB
"""The byte of a page that nobody wrote or cleared: it is in no page that a process may see."""


class Ended(Exception):
    """The kernel came to an end. `words` say how, `evidence` are the last events."""

    def __init__(self, words: str, evidence: str) -> None:
        super().__init__(words, evidence)
        self.words = words
        self.evidence = evidence


@define
class Contents:
    """The byte in every page frame, file page and swap slot, by the trace."""

    frames: dict[int, int] = field(factory=dict[int, int])
    stored: dict[tuple[int | None, int], int] = field(factory=dict[tuple[int | None, int], int])

    def see(self, event: Event, writes: Mapping[int, int], reads: dict[int, int]) -> None:
        """`writes` are the bytes that the operation stores, by address; what it reads goes into `reads`."""
        match event:
            case FrameAdded(pfn=pfn):
                self.frames[pfn] = UNTOLD
            case PageCleared(pfn=pfn):
                self.frames[pfn] = 0
            case PageCopied(src=src, dst=dst):
                self.frames[dst] = self.frames[src]
            case PageFilled(pfn=pfn, file=file, index=index):
                self.frames[pfn] = self.stored.get((file, index), 0)
            case PageWritten(pfn=pfn, file=file, index=index):
                self.stored[file, index] = self.frames[pfn]
            case CpuAccessed(pfn=pfn, addr=addr) | DeviceAccessed(pfn=pfn, addr=addr):
                if event.write and pfn is not None:
                    self.frames[pfn] = writes[addr]
                reads[addr] = 0 if pfn is None else self.frames[pfn]
            case _:
                pass


class CoreMachine:
    """A kernel with its devices, booted. `watch` is told every step, as a judge is."""

    def __init__(self, kernel: Kernel, watch: Callable[[Step], object] | None = None) -> None:
        self.kernel = kernel
        self.contents = Contents()
        self.reads: dict[int, int] = {}
        self._watch = watch
        self._values: Mapping[Key, Any] = kernel.slots()
        cpus = range(kernel.config.cpus)
        self._workers = tuple(Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True) for cpu in cpus)
        self.run(kernel.boot)

    def value(self, key: Key) -> Any:
        return self._values[key]

    def run(self, function: Work, *values: Any, writes: Mapping[int, int] | None = None) -> Any:
        """What `function(*values)` returns. `reads` is what it found in memory, by address.

        Raises:
            Ended: the kernel did not live through it.
        """
        answers: list[Any] = []
        main = Task("main", 0, _keep, (answers, function, *values))
        system = System(self._values, Task("init", 0, _nothing), (*self._workers, main), self.kernel.config.cpus)
        run = Run(system, Preemption.NONE)
        try:
            self._drive(run)
        except ModelError as error:
            raise Ended(f"the core raised {error}", _evidence(run)) from error
        finally:
            run.close()
            self._see(run.trace, writes or {})
        self._values = run.values()
        return answers[0]

    def _drive(self, run: Run) -> None:
        main, steps = len(run.tasks) - 1, 0
        while (end := run.tasks[main].ended) is None:
            number = main if run.can_run(main) else next(iter(run.runnable()), None)
            if number is None or steps == STEP_LIMIT:
                raise Ended(_ending(run), _evidence(run))
            run.step(number)
            steps += 1
        if end.error is not None:
            raise Ended(f"the core raised {end.error}", _evidence(run))

    def _see(self, trace: list[Step], writes: Mapping[int, int]) -> None:
        self.reads = {}
        for step in trace:
            self.contents.see(step.event, writes, self.reads)
            if self._watch is not None:
                self._watch(step)


def _ending(run: Run) -> str:
    last = run.trace[-1].event if run.trace else None
    if run.stopped and isinstance(last, Oops):
        return f"oops: {last.what}"
    return "hung"


def _evidence(run: Run) -> str:
    return "\n".join(f"{step.task}: {step.event}" for step in run.trace[-LAST_EVENTS:])


async def _nothing() -> None:
    """The prologue of an operation."""


async def _keep(answers: list[Any], function: Work, *values: Any) -> None:
    answers.append(await function(*values))
