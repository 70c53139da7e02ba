"""Work units in child processes, each with a time limit of its own: a model that hangs or eats memory ends alone.

Children come from a fork server, so they start clean and fast; what a unit returns is pickled back. A unit that dies or runs out of
time yields a `Lost` with the reason, in place of its result.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from attrs import define, frozen

U = TypeVar("U")
R = TypeVar("R")

MEMORY_BYTES = 6 << 30
"""The address space of a child."""

_PRELOAD = ["migrate_vma_conformance.unit"]


@frozen
class Lost:
    """A unit without a result: why."""

    reason: str


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
    context.set_forkserver_preload(_PRELOAD)
    waiting = list(enumerate(units))[::-1]
    running: list[_Child[U]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, unit = waiting.pop()
                running.append(_start(context, function, unit, place, seconds))
            for child, result in _collect(running, seconds):
                running.remove(child)
                yield child.place, result
    finally:
        for child in running:
            _stop(child.process)


def _start(context: ForkServerContext, function: Callable[[U], R], unit: U, place: int, seconds: float) -> _Child[U]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, unit, sender), daemon=True)
    process.start()
    sender.close()
    return _Child(unit, place, process, receiver, time.monotonic() + seconds)


def _work(function: Callable[[Any], Any], unit: Any, sender: Connection) -> None:
    """What a child does."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        result = function(unit)
    except KeyboardInterrupt:
        return
    except MemoryError:
        result = Lost(f"the memory limit of {MEMORY_BYTES >> 30} GiB was reached")
    except BaseException as error:
        result = Lost(f"the child process failed with {type(error).__name__}: {error}")
    sender.send(result)
    sender.close()


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
            yield child, Lost(f"the time limit of {seconds:g} s was reached; the model loops or is too large")


def _receive(child: _Child[U]) -> Any:
    try:
        result = child.receiver.recv()
    except EOFError:
        child.process.join()
        return Lost(f"the child process died with exit code {child.process.exitcode}")
    child.process.join()
    return result


def _stop(process: BaseProcess) -> None:
    process.kill()
    process.join()
