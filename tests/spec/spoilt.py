"""Every way to spoil a correct flow by one step, and how many of the traces that come of it break, or reach, which clause.

python -m tests.spec.spoilt  writes spoilt.json

The numbers say nothing by themselves: where one changes, a clause has come to see more, or less, than it did. The cases of the
clauses say what is right; this says that between them nothing has moved unnoticed.
"""

from __future__ import annotations

import copy
import enum
import json
import sys
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import evolve

from migrate_vma_spec.events import InvalidateBegan, SetupCalled, SplitCallback, Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_VALID, MIGRATE_PFN_WRITE, Pte
from tests.spec.large_traces import ALL_FLOWS

GOLDEN = Path(__file__).with_name("spoilt.json")
FLAGS = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, MIGRATE_PFN_COMPOUND
OTHER = {"gpu": "npu", "npu": "gpu", "ptl:0": "ptl:1", "mmap_lock:0": "mmap_lock:1"}

Steps = list[Step]
Instead = Iterator[tuple[int, Steps]]
"""What is to stand in the place of so many of the next steps."""


def left_out(step: Step, following: Steps) -> Instead:
    yield 1, []


def twice(step: Step, following: Steps) -> Instead:
    yield 1, [step, step]


def by_another(step: Step, following: Steps) -> Instead:
    yield 1, [evolve(step, task="else9", cpu=9)]


def after_the_next(step: Step, following: Steps) -> Instead:
    if following:
        yield 2, [following[0], step]


def changed(step: Step, following: Steps) -> Instead:
    """Each field has another value: one of several, by turns."""
    for field in attrs.fields(type(step.event)):
        values = list(others(getattr(step.event, field.name)))
        if values:
            value = values[len(following) % len(values)]
            yield 1, [evolve(step, event=evolve(step.event, **{field.name: value}))]


def unknown(step: Step, following: Steps) -> Instead:
    """A field is not shown, where a trace need not show it."""
    for name in optional(type(step.event)):
        if getattr(step.event, name) is not None and (type(step.event), name) not in NULLS:
            yield 1, [evolve(step, event=evolve(step.event, **{name: None}))]


def begun_here(step: Step, following: Steps) -> Instead:
    """All that came before is unknown: `verdicts` knows of this one."""
    yield 0, []


NULLS = {
    (SetupCalled, "mm"),
    (SetupCalled, "owner"),
    (SetupCalled, "fault_page"),
    (InvalidateBegan, "owner"),
    (SplitCallback, "tail"),
}
"""Fields whose None is a value, as NULL is."""

WAYS = {way.__name__: way for way in (left_out, twice, by_another, after_the_next, changed, unknown, begun_here)}


def optional(kind: type) -> list[str]:
    """The fields that a trace need not show."""
    hints = typing.get_type_hints(kind)
    unions = {name: hint for name, hint in hints.items() if isinstance(hint, types.UnionType)}
    return [field.name for field in attrs.fields(kind) if types.NoneType in typing.get_args(unions.get(field.name))]


def others(value: Any) -> Iterator[Any]:
    """Values that are nearly this one."""
    match value:
        case bool():
            yield not value
        case enum.Flag():
            yield from (value ^ each for each in type(value))
        case enum.Enum():
            yield from (each for each in type(value) if each is not value)
        case int():
            yield value + 1
        case str():
            yield from (OTHER[value],) if value in OTHER else ()
        case tuple():
            for index, part in enumerate(value):
                near = [part ^ flag for flag in FLAGS] if type(part) is int else others(part)
                yield from ((*value[:index], each, *value[index + 1 :]) for each in near)
        case Pte():
            for field in attrs.fields(Pte):
                yield from (evolve(value, **{field.name: each}) for each in others(getattr(value, field.name)))


def forked(judge: Judge) -> Judge:
    """One that goes on from the same point by itself."""
    other = copy.copy(judge)
    other._live, other._memories, other.reached = dict(judge._live), dict(judge._memories), set(judge.reached)
    other._index = {kind: list(clauses) for kind, clauses in judge._index.items()}
    return other


def verdicts(flow: str, way: str) -> dict[str, list[int]]:
    """How many of the traces that are spoilt in this way break which clause, and how many come to it."""
    trace, capabilities = ALL_FLOWS[flow]
    judge, broken, reached = Judge(capabilities), Counter[str](), Counter[str]()
    for place, step in enumerate(trace):
        for length, instead in WAYS[way](step, trace[place + 1 :]):
            other = Judge(capabilities) if way == begun_here.__name__ else forked(judge)
            findings = [*other.feed_all(instead), *other.feed_all(trace[place + length :]), *other.end()]
            broken.update(clause for clause, _ in findings)
            reached.update(other.reached)
        judge.feed(step)
    return {clause: [broken[clause], count] for clause, count in sorted(reached.items())}


def main() -> int:
    """A line for each flow, spoilt in each way."""
    rows = [f'"{way}: {flow}": {json.dumps(verdicts(flow, way))}' for way in WAYS for flow in ALL_FLOWS]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
