"""What runs on the machine: the slots of shared state with their first values, and the tasks.

A task is named, pinned to a CPU, and given as a function with its values, never as a coroutine: so it can be run again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from attrs import field, frozen

from migrate_vma_impl.machine.traps import Key


class Preemption(enum.Enum):
    """Where a task can lose its CPU to another task of that CPU.

    FULL: at every step, unless it holds a spinlock. VOLUNTARY: where it sleeps or might sleep, at cond_resched, and on the way to
    user space. NONE: as VOLUNTARY without the places where it might sleep and does not.
    """

    FULL = "full"
    VOLUNTARY = "voluntary"
    NONE = "none"


@frozen
class Task:
    """`function(*values)` on CPU `cpu`. A daemon (a CPU's worker) waits for work for ever, and need not end."""

    name: str
    cpu: int
    function: Callable[..., Coroutine[Any, Any, None]]
    values: tuple[Any, ...] = ()
    daemon: bool = False


@frozen
class System:
    """The machine's whole content. `prologue` runs alone, with the daemons, before the tasks start: it builds the first state.

    `fallible` says whether data choices have other answers than their default; without it every allocation succeeds.
    """

    slots: Mapping[Key, Any] = field(hash=False)
    prologue: Task
    tasks: tuple[Task, ...]
    cpus: int
    fallible: bool = False
