"""The table that the `steps` modules fill: per kind of event, how the state moves on, and what is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.model.outcome import Outcome
from migrate_vma_spec.model.state import ModelState
from migrate_vma_spec.objects import World

Next = Callable[[ModelState, World, Step, Any], ModelState]
Allowed = Callable[[ModelState, World, Step, Any], tuple[Outcome, ...]]

NEXT: dict[type[Event], Next] = {}
ALLOWED: dict[type[Event], Allowed] = {}


def on(*kinds: type[Event]) -> Callable[[Next], Next]:
    """Enter what an event of these kinds does to the state."""

    def register(move: Next) -> Next:
        for kind in kinds:
            NEXT[kind] = move
        return move

    return register
