"""Watches code that is not ours, from within its own process: a step that never comes back, an await that was forgotten.

Rules:
- Nothing here changes what the code does. A step that lasts too long ends the process, for nothing else ends it surely.
- One step is one call of a task's coroutine, or of a factory: it computes between two awaits, and has no reason to take long.
- An import may take long, and is left to the time limit of the whole process.
- A coroutine that is thrown away unstarted is a forgotten `await` only if the task threw it away itself; one that was going to be
  awaited when the machine abandoned its task is none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Generator, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from attrs import define, field

import migrate_vma_impl
import migrate_vma_spec
from migrate_vma_impl.machine import automaton

STEP_SECONDS = 5.0
"""What one step may take, wall clock: some ten thousand times what one takes that computes a little."""

TICK_SECONDS = 0.25

_OURS = tuple(str(Path(file).parent) for file in (__file__, str(migrate_vma_impl.__file__), str(migrate_vma_spec.__file__)))
_HYPOTHESIS = tuple(importlib.util.find_spec("hypothesis").submodule_search_locations or ())  # type: ignore[union-attr]
_DRIVE = automaton.drive.__code__
_ABANDON = automaton.abandon.__code__


def is_ours(file: str) -> bool:
    """Whether a source file is of this project."""
    return file.startswith(_OURS)


def place_of(file: str, line: int) -> str:
    """`mydriver.py:12`: the file without its directory, for a message is the same wherever the project lies."""
    return f"{Path(file).name}:{line}"


def raised_at(error: BaseException) -> str:
    """` (mydriver.py:12)`: where it was raised in code that is not ours; empty if it was raised in ours alone."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [place_of(frame.filename, frame.lineno or 0) for frame in frames if not is_ours(frame.filename)]
    return f" ({places[-1]})" if places else ""


# ---- steps that do not come back -------------------------------------------------------------------------------------


@define(eq=False)
class StepWatch:
    """Looks at the main thread now and then, and calls `give_up` with a sentence when one step has lasted `seconds`.

    Also ends the process when its parent is gone. `exempt` is the function that imports.
    """

    seconds: float
    give_up: Callable[[str], None]
    exempt: Callable[..., object]
    parent: BaseProcess | None = None
    _over: threading.Event = field(factory=threading.Event)
    _step: types.FrameType | None = None
    _seen: int = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="step watch", daemon=True).start()

    @property
    def _tick(self) -> float:
        return min(TICK_SECONDS, self.seconds / 4)

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        main = threading.main_thread().ident
        while not self._over.wait(self._tick):
            if self.parent is not None and not self.parent.is_alive():
                os._exit(1)
            # The documented way to see another thread's stack.
            frame = sys._current_frames().get(main or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            if frame is not None:
                self._look(frame)

    def _look(self, frame: types.FrameType) -> None:
        stack = list(_outwards(frame))
        step = _step_of(stack, self.exempt.__code__)
        # Looks are counted, not seconds: while the whole process is stopped, neither goes on.
        self._seen = self._seen + 1 if step is not None and step is self._step else 0
        self._step = step
        if self._seen * self._tick > self.seconds and not self._over.is_set():
            self.give_up(f"one step did not end within {self.seconds:g} s: {_where(stack)} loops without awaiting anything")


def _outwards(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _step_of(stack: list[types.FrameType], exempt: types.CodeType) -> types.FrameType | None:
    """The frame that stands for the step under way: that of `drive`, or the first one inside ours that is not ours.

    Hypothesis is not ours either, but calls ours back: what it does is no step, and what is below it is looked at anew.
    """
    inside = False
    for frame in reversed(stack):
        code = frame.f_code
        if code is exempt:
            return None
        if code.co_filename.startswith(_HYPOTHESIS):
            inside = False
            continue
        if code is _DRIVE or (inside and not is_ours(code.co_filename)):
            return frame
        inside = inside or is_ours(code.co_filename)
    return None


def _where(stack: list[types.FrameType]) -> str:
    """The innermost function of the code under test."""
    frame = next((frame for frame in stack if not is_ours(frame.f_code.co_filename)), stack[0])
    return f"{frame.f_code.co_qualname} ({place_of(frame.f_code.co_filename, frame.f_lineno)})"


# ---- awaits that were forgotten --------------------------------------------------------------------------------------


@contextlib.contextmanager
def forgotten_awaits(factory: Callable[..., object]) -> Generator[list[str]]:
    """While the context lasts, sentences on the coroutines that tasks make and never await are added to the list.

    `factory` is the function of ours that calls a driver's factory, where the same counts.
    """
    found: list[str] = []
    codes = {_DRIVE, factory.__code__}
    with warnings.catch_warnings():
        warnings.filterwarnings("always", "coroutine .* was never awaited", RuntimeWarning)
        show = warnings.showwarning

        def listen(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = str(message)
            if not text.endswith("was never awaited"):
                show(message, category, filename, lineno, file, line)
            elif _thrown_away(codes):
                where = "where it is called" if is_ours(filename) else f"at {place_of(filename, lineno)}"
                said = f"{text}: an `await` is missing {where}"
                found.extend([said] if said not in found else [])

        warnings.showwarning = listen
        yield found


def _thrown_away(codes: set[types.CodeType]) -> bool:
    """Whether the task itself is running, not the machine that clears up after it."""
    for frame in _outwards(inspect.currentframe()):
        if frame.f_code is _ABANDON:
            return False
        if frame.f_code in codes:
            return True
    return False
