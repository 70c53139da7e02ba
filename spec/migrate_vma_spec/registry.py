"""Clauses: one normative sentence each, with the predicate that judges it. One registry, many readers.

Kinds:
- a step clause, `judge(before, step, after)`, sees the folded world before and after one step of a trace;
- a monitor, `judge(memory, world, step)`, has a small, frozen, hashable memory of its own, and returns the next one with its
  judgement; what it remembers of an object it drops when the object dies, so a trace of any length needs constant space;
- a progress clause has no predicate here: it is judged on the cycles and dead ends of an exhausted state graph, and `progress`
  says which kind of cycle breaks it.

A judgement is None (the clause says nothing of this step), KEPT (it applied and holds: the guard against vacuous verdicts), or a
sentence that says what broke it, with the values.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from typing import Any

from attrs import frozen

from migrate_vma_spec.events import Event
from migrate_vma_spec.vocabulary import Capability


class _Kept(enum.Enum):
    KEPT = "kept"


KEPT = _Kept.KEPT

Judgement = _Kept | str | None


class Party(enum.Enum):
    """Who is bound by a clause."""

    CORE = "core"
    DRIVER = "driver"
    FAULT = "fault path"
    BOTH = "core and driver"


class Level(enum.Enum):
    MUST = "must"
    SHOULD = "should"


class Progress(enum.Enum):
    """Which cycle or dead end of a state graph breaks a progress clause (definitions: docs/design.md, liveness)."""

    LIVELOCK = "livelock"
    STARVATION = "starvation"
    DEADLOCK = "deadlock"
    ENDLESS_RETRY = "endless retry"


@frozen
class Clause:
    """One clause. `on` are the kinds of event that can concern it; `start` is a monitor's first memory."""

    id: str
    name: str
    sentence: str
    party: Party
    level: Level
    source: str
    symptom: str
    chapter: str
    on: tuple[type[Event], ...]
    requires: frozenset[Capability]
    step: Callable[[Any, Any, Any], Judgement] | None = None
    monitor: Callable[[Any, Any, Any], tuple[Hashable, Judgement]] | None = None
    start: Hashable = None
    progress: Progress | None = None


REGISTRY: dict[str, Clause] = {}
