"""Every way in which a task can suspend. Nothing else in the simulated kernel yields.

Rules:
- `def` is atomic; `async def` may be preempted, and only at a trap of this file.
- A trap names the slots of shared state that it touches. Its effect is a pure function of their values: it returns the new
  values, the answer for the task, and exactly one event; or None, when it cannot complete yet. An effect sees nothing else, so
  what is independent of what is known, and one evaluation serves every state in which those slots hold those values.
- A trap never raises into the task.
- A task keeps nothing but its locals: it learns of shared state by answers alone.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Generator, Hashable
from typing import Any

from attrs import define, field, frozen

from migrate_vma_spec.events import Chose, Event, Oops, PointPassed
from migrate_vma_spec.vocabulary import Point

Key = Hashable
"""Names a slot of shared state: a handle such as Folio(3) or Ptl(0)."""

Outcome = tuple[tuple[Any, ...], Any, Event] | None
"""What an effect returns: the slots' new values in the order of the keys, the answer, the event; None while it must wait."""

Effect = Callable[..., Outcome]


class Kind(enum.Enum):
    """What a trap is to the scheduler."""

    STEP = "step"
    SLEEP = "sleep"
    SPIN = "spin"
    SPIN_LOCK = "spin lock"
    SPIN_UNLOCK = "spin unlock"
    POINT = "point"
    CHOICE = "choice"
    NOTE = "note"


@frozen
class ThisCpu:
    """A key that means, in each task, the slot `make(cpu)` of the CPU that the task is pinned to."""

    make: Callable[[int], Key]


class _Me(enum.Enum):
    ME = "this task"


ME = _Me.ME
"""As an argument of an effect: the name of the task that traps."""


@define(eq=False)
class Trap:
    """One suspension. `point` is set for scheduling points, `answers` for data choices.

    Nobody changes one. It is not frozen because one is made for every step, and frozen ones take three times as long to make.
    """

    kind: Kind
    effect: Effect
    keys: tuple[Key, ...] = ()
    args: tuple[Any, ...] = ()
    point: Point | None = None
    answers: int = field(default=1)


class Abandoned(BaseException):
    """Thrown by the machine into a coroutine that it no longer needs; kernel and driver code must let it pass."""


Suspension = Generator[Trap, Any, Any]
"""What is awaited: a generator that hands one trap to the machine, and returns the answer. The `yield`s of this file are the only
ones of the simulated kernel."""

_STEP, _SLEEP, _NOTE = Kind.STEP, Kind.SLEEP, Kind.NOTE
_SPIN_LOCK, _SPIN_UNLOCK = Kind.SPIN_LOCK, Kind.SPIN_UNLOCK


@types.coroutine
def step(effect: Effect, *keys: Key, args: tuple[Any, ...] = ()) -> Suspension:
    """One visible step on the slots `keys`. While its effect gives None the task spins on its CPU."""
    return (yield Trap(_STEP, effect, keys, args))


@types.coroutine
def sleep_until(effect: Effect, *keys: Key, args: tuple[Any, ...] = ()) -> Suspension:
    """As `step`, but while its effect gives None the task sleeps and another may have the CPU.

    Functions that may sleep begin with might_sleep() in the kernel, so such a step is also a scheduling point of that kind.
    """
    return (yield Trap(_SLEEP, effect, keys, args))


@types.coroutine
def spin_lock_step(effect: Effect, key: Key, args: tuple[Any, ...] = ()) -> Suspension:
    """As `step`; a true answer disables preemption on this CPU (spin_lock and spin_trylock)."""
    return (yield Trap(_SPIN_LOCK, effect, (key,), args))


@types.coroutine
def spin_unlock_step(effect: Effect, key: Key, args: tuple[Any, ...] = ()) -> Generator[Trap, Any, None]:
    """As `step`; enables preemption again."""
    yield Trap(_SPIN_UNLOCK, effect, (key,), args)


def _note(event: Event) -> Outcome:
    return (), None, event


@types.coroutine
def note(event: Event) -> Generator[Trap, Any, None]:
    """Say in the trace what the task does (a call begins, an operation ends). Part of the step before it: nobody runs in
    between.
    """
    yield Trap(_NOTE, _note, (), (event,))


@types.coroutine
def oops(what: str, pfn: int | None = None) -> Generator[Trap, Any, None]:
    """Stop the machine: the kernel's own check failed, and what follows is undefined."""
    yield Trap(_STEP, _note, (), (Oops(what, pfn),))


def _pass(point: Point) -> Outcome:
    return (), None, PointPassed(point)


def _point(point: Point) -> Trap:
    return Trap(Kind.POINT, _pass, (), (point,), point)


_COND_RESCHED, _MIGHT_SLEEP, _USER = _point(Point.COND_RESCHED), _point(Point.MIGHT_SLEEP), _point(Point.USER)


@types.coroutine
def cond_resched() -> Generator[Trap, Any, None]:
    """A point at which voluntary preemption may take the CPU away."""
    yield _COND_RESCHED


@types.coroutine
def might_sleep() -> Generator[Trap, Any, None]:
    """A point as cond_resched is, except under `none`."""
    yield _MIGHT_SLEEP


@types.coroutine
def return_to_user() -> Generator[Trap, Any, None]:
    """The way back to user space: a scheduling point under every model."""
    yield _USER


def _choose(what: str, answer: int) -> Outcome:
    return (), answer, Chose(what, answer)


@types.coroutine
def choose(what: str, answers: int = 2) -> Generator[Trap, Any, int]:
    """Ask for data that the code does not decide: 0 is the default (it succeeds), 1.. the others (it fails, in way 1, 2, ...)."""
    return int((yield Trap(Kind.CHOICE, _choose, (), (what,), answers=answers)))
