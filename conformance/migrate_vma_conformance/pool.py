"""Work units in child processes, each with a time limit of its own: a model that hangs or eats memory ends alone.

Rules:
- Children come from a fork server, so they start clean and fast; what a unit returns is pickled back.
- A unit that dies or runs out of time yields a `Lost` with the reason, in place of its result.
- What a child prints goes to standard error: standard output is the report's.
- A child outlives neither its result nor its parent.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from attrs import define, frozen

from migrate_vma_conformance.subject import load
from migrate_vma_conformance.watch import STEP_SECONDS, StepWatch
from migrate_vma_impl.machine.automaton import told

U = TypeVar("U")
R = TypeVar("R")

MOST_MEMORY = 6 << 30
LEAST_MEMORY = 2 << 30
"""The address space of a child, in bytes: its share of three quarters of the machine's memory, within these."""

_PRELOAD = ["migrate_vma_conformance.unit"]
_PATIENCE = 2.0
"""Seconds that a child may take to end once its result is here. A thread that it started might not let it."""


@frozen
class Lost:
    """A unit without a result: why. `out_of_time`: it was ended at its limit."""

    reason: str
    out_of_time: bool = False


@define(eq=False)
class _Child(Generic[U]):
    unit: U
    place: int
    process: BaseProcess
    receiver: Connection
    deadline: float


def run_all(
    function: Callable[[U], R], units: Sequence[U], *, jobs: int, seconds: float
) -> Iterator[tuple[int, R | Lost]]:
    """Yield (place in `units`, result) as the units end. Closing the iterator, or an exception in its user, ends the children.

    Args:
        function: importable, so that a child can find it.
        units: picklable.
        jobs: how many run at once.
        seconds: what one unit may take, wall clock.
    """
    context = multiprocessing.get_context("forkserver")
    limits = _Limits(min(seconds, STEP_SECONDS), _memory(jobs))
    waiting = list(enumerate(units))[::-1]
    running: list[_Child[U]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, unit = waiting.pop()
                process, receiver = _start(context, function, unit, limits)
                running.append(_Child(unit, place, process, receiver, time.monotonic() + seconds))
            for child, result in _collect(running, seconds):
                running.remove(child)
                yield child.place, result
    finally:
        for child in running:
            _stop(child.process)


def run_one(function: Callable[[U], R], unit: U, *, seconds: float) -> R | Lost:
    """One unit in a child process of its own."""
    ((_, result),) = run_all(function, [unit], jobs=1, seconds=seconds)
    return result


@frozen
class _Limits:
    """What a child is held to from within: seconds for one step, bytes of address space."""

    step_seconds: float
    memory: int


def _memory(jobs: int) -> int:
    """What each of so many children may have, so that all of them together leave the machine alive."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MOST_MEMORY, max(LEAST_MEMORY, there * 3 // 4 // jobs))


def _start(
    context: ForkServerContext, function: Callable[[U], R], unit: U, limits: _Limits
) -> tuple[BaseProcess, Connection]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, unit, sender, limits), daemon=True)
    with _main_hidden():
        _start_server(context)
        process.start()
    sender.close()
    return process, receiver


@contextlib.contextmanager
def _main_hidden() -> Generator[None]:
    """A child needs nothing of the program that started us, and would run it once more where that has no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_server(context: ForkServerContext) -> None:
    """Start the fork server, if need be, deaf to Ctrl-C: its children inherit that, and the parent ends them."""
    context.set_forkserver_preload(_PRELOAD)
    try:
        hearing = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread, which alone is interrupted
        forkserver.ensure_running()
        return
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if hearing is None else hearing)


# ---- in the child ----------------------------------------------------------------------------------------------------


def _work(function: Callable[[Any], Any], unit: Any, sender: Connection, limits: _Limits) -> None:
    """What a child does."""
    gc.disable()  # a search keeps millions of tuples and drops few, and the child ends with it
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    sys.unraisablehook = lambda _: None  # a task that will not end is told as a ModelError, not by Python on standard error
    one = _Once(sender)
    watch = StepWatch(limits.step_seconds, lambda reason: one.give_up(Lost(reason)), load, multiprocessing.parent_process())
    watch.start()
    try:
        result = function(unit)
    except MemoryError:
        result = Lost(f"the memory limit of {limits.memory / (1 << 30):.3g} GiB was reached")
    except BaseException as error:  # noqa: BLE001  (whatever it is, the parent is to know)
        result = Lost(f"the child process failed with {told(error)}")
    watch.stop()
    one.send(result)


class _Once:
    """Sends one result: the first, whichever thread has it. A second thread waits until the process ends."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender
        self._turn = threading.Lock()

    def send(self, result: Any) -> None:
        self._turn.acquire()
        with contextlib.suppress(OSError):  # nobody is left who would read it
            try:
                self._sender.send(result)
            except Exception as error:  # noqa: BLE001  (what a result of the caller's code raises when it is pickled)
                self._sender.send(Lost(f"its result cannot be sent to another process: {told(error)}"))
        self._sender.close()

    def give_up(self, result: Any) -> None:
        """Send it, and end the process whatever its other threads do."""
        self.send(result)
        os._exit(1)


# ---- in the parent ---------------------------------------------------------------------------------------------------


def _collect(running: Sequence[_Child[U]], seconds: float) -> Iterator[tuple[_Child[U], Any]]:
    """Wait for the next result, death or time-out."""
    now = time.monotonic()
    nearest = min(child.deadline for child in running)
    ready = wait([child.receiver for child in running], timeout=max(0.0, nearest - now))
    for child in list(running):
        if child.receiver in ready:
            yield child, _receive(child)
        elif time.monotonic() > child.deadline:
            _stop(child.process)
            yield child, Lost(f"the time limit of {seconds:g} s was reached; the model loops or is too large", out_of_time=True)


def _receive(child: _Child[Any]) -> Any:
    dead = False
    result: Any = None
    try:
        result = child.receiver.recv()
    except EOFError:
        dead = True
    except Exception as error:  # noqa: BLE001  (and when it is unpickled)
        result = Lost(f"its result cannot be read: {told(error)}")
    child.process.join(_PATIENCE)
    if child.process.is_alive():
        _stop(child.process)
    return Lost(_death(child.process.exitcode)) if dead else result


def _death(code: int | None) -> str:
    """How a child ended that sent nothing."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"the child process was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return f"the child process ended without a result (exit code {code})"


def _stop(process: BaseProcess) -> None:
    process.kill()
    process.join()
