"""What of an execution is told, and in which words: the lines that the column view and the page lay out.

Rules:
- Which steps are told is for `noise.py` to say, unless all are asked for; their numbers are kept, so that a gap shows.
- What is done to one entry in several steps is told as one change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import evolve, frozen

from migrate_vma_conformance.report.callers import function_of, names_itself
from migrate_vma_conformance.report.execution import Execution
from migrate_vma_conformance.report.noise import telling
from migrate_vma_conformance.report.words import describe
from migrate_vma_spec import events as e
from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.vocabulary import PteKind


@frozen
class Line:
    """A step as it is told. `number` is its index; `function` is empty where the words name it, or nothing is known."""

    number: int
    step: Step
    function: str
    words: str


def tell(execution: Execution, *, show_all: bool = False) -> list[Line]:
    """The lines of an execution, in its order."""
    steps = execution.steps
    if show_all:
        return [_line(execution, number, steps[number].event) for number in range(len(steps))]
    return list(_merged([_line(execution, at, steps[at].event) for at in telling(execution)], execution))


def _line(execution: Execution, number: int, event: Event) -> Line:
    stack = execution.stacks[number] if number < len(execution.stacks) else ()
    function = "" if names_itself(event) else function_of(stack)
    return Line(number, execution.steps[number], function, describe(event))


def _merged(lines: Iterable[Line], execution: Execution) -> Iterator[Line]:
    """What is done to an entry in several steps, with nothing told in between, is told as one change."""
    before: Line | None = None
    for line in lines:
        joint = None if before is None else _joint(before, line, execution)
        if joint is not None:
            line = joint  # noqa: PLW2901  (it stands for both)
        elif before is not None:
            yield before
        before = line
    if before is not None:
        yield before


def _joint(one: Line, two: Line, execution: Execution) -> Line | None:
    """One line for both: an entry is cleared and then set; an entry and the count of its page's mappings change."""
    start = execution.cycle_start
    apart = start is not None and one.number < start <= two.number
    if apart or (one.step.task, one.step.cpu) != (two.step.task, two.step.cpu):
        return None
    match one.step.event, two.step.event:
        case e.PteChanged() as cleared, e.PteChanged() as put:
            if (cleared.mm, cleared.addr, cleared.new.kind) != (put.mm, put.addr, PteKind.NONE):
                return None
            whole = evolve(put, old=cleared.old)
            return evolve(two, step=evolve(two.step, event=whole), words=describe(whole))
        case e.PteChanged() as change, (e.RmapAdded() | e.RmapRemoved()) as count:
            return _counted(two, change, count)
        case e.RmapAdded() as count, e.PteChanged() as change:
            return _counted(two, change, count)
        case _:
            return None


def _counted(line: Line, change: e.PteChanged, count: e.RmapAdded | e.RmapRemoved) -> Line | None:
    same = (change.mm, change.addr) == (count.mm, count.addr)
    return evolve(line, words=f"{describe(change)}, maps {count.mapcount}") if same else None
