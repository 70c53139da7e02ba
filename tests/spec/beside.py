"""The same trace once more, elsewhere (address space, frames, devices and tasks are others), and two traces at once."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

import attrs
from attrs import evolve

from migrate_vma_spec.events import FolioMoved, PageCopied, Step
from migrate_vma_spec.vocabulary import MIGRATE_PFN_SHIFT, MIGRATE_PFN_VALID, Pte

FURTHER = 100
"""How far away the other frames, files and swap slots are."""
FRAMES = {"pfn", "fault_page", "tail", "pfns", "swap"}
ENTRIES = {"src", "dst", "entry"}
BY_FRAMES = (FolioMoved, PageCopied)
"""Events whose `src` and `dst` are frames, where others have entries."""


def elsewhere(trace: list[Step]) -> list[Step]:
    """The trace of address space n as one of n + 10, with frames of its own."""
    return [Step(f"{step.task}, elsewhere", step.cpu + 10, _moved(step.event)) for step in trace]


def at_once(one: list[Step], other: list[Step]) -> list[Step]:
    """A step of each in turn, to the end of both."""
    return [step for step in chain.from_iterable(zip_longest(one, other)) if step is not None]


def _moved(value: Any) -> Any:
    fields = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    if "index" in fields and fields.get("file", 0) is None:
        fields["index"] += FURTHER  # of a swap slot
    return evolve(value, **{name: _field(type(value), name, each) for name, each in fields.items()})


def _field(kind: type, name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, tuple):
        return tuple(_field(kind, name, each) for each in value)
    if isinstance(value, Pte):
        return _moved(value)
    if name in {"mm", "parent", "child"}:
        return value + 10
    if name in {"device", "owner"}:
        return f"{value}, elsewhere"
    if name == "lock":
        place, _, number = value.partition(":")
        return f"{place}:{int(number) + 10}"
    if name in FRAMES or name == "file" or (name in ENTRIES and kind in BY_FRAMES):
        return value + FURTHER
    if name in ENTRIES and value & MIGRATE_PFN_VALID:
        return value + (FURTHER << MIGRATE_PFN_SHIFT)
    return value
