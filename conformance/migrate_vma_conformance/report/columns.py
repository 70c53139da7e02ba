"""A schedule as people read races: one column per CPU, time going down, the function's name where it changes.

Rules:
- Steps that tell a reader nothing (a PTE was read, an uncontended lock was taken) are left out unless all are asked for; their
  numbers are kept, so that a gap shows. The last step, the ends of a cycle and an oops are always there.
- A line is never wider than the page. Where the columns would become too narrow there is one column that names the CPU.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from attrs import define, field, frozen

from migrate_vma_conformance.report.layout import WIDTH, paragraph
from migrate_vma_conformance.report.words import describe
from migrate_vma_impl.machine import containers, locks, traps
from migrate_vma_impl.mm import folio, highmem, memcontrol, mmap_lock, pgtable, rmap, swap
from migrate_vma_spec import events as e
from migrate_vma_spec.events import Event, Step

MOST_COLUMNS = 4

_PRIMITIVE = (traps, locks, containers, folio, pgtable, mmap_lock, memcontrol, highmem)
"""Modules of functions that make one step each: a column names their callers."""

_SMALL = (
    rmap.folio_add_anon_rmap,
    rmap.folio_add_new_anon_rmap,
    rmap.folio_remove_rmap,
    rmap.folio_try_dup_anon_rmap,
    rmap.folio_try_share_anon_rmap,
    swap.folio_put,
)
"""Such functions in modules that have others."""

_WRAPPER = "operation"
"""What migrate_vma_impl.driver calls the function around each of a driver's operations."""

_NOTES: tuple[type[Event], ...] = (
    e.OperationBegan,
    e.OperationEnded,
    e.FaultBegan,
    e.FaultEnded,
    e.CallbackEntered,
    e.CallbackReturned,
    e.RangeFaultBegan,
    e.RangeFaultEnded,
    e.SetupCalled,
    e.SetupReturned,
    e.EntryRefilled,
    e.RangeCalled,
    e.RangeReturned,
    e.PagesCalled,
    e.PagesReturned,
    e.FinalizeCalled,
    e.FinalizeReturned,
    e.InvalidateBegan,
    e.InvalidateEnded,
    e.DrainBegan,
    e.DrainEnded,
    e.PointPassed,
)
"""Events whose words name their function."""

_QUIET: tuple[type[Event], ...] = (
    e.PteRead,
    e.CacheFlushed,
    e.PointPassed,
    e.IntervalRead,
    e.FlagsMoved,
    e.MemcgCharged,
    e.MemcgUncharged,
    e.TlbFilled,
    e.LruDrained,
    e.FrameAdded,
    e.InvalidateEnded,
    e.FolioRead,
    e.FolioUptodate,
    e.LruBatchRead,
    e.MmGot,
    e.MmPut,
    e.PgmapPut,
    e.ZoneDeviceDataRead,
)


@frozen
class Execution:
    """What a column view shows. `first_step` and `cycle_start` are indices of steps, as in a counterexample."""

    steps: Sequence[Step]
    stacks: Sequence[tuple[str, ...]]
    first_step: int = 0
    cycle_start: int | None = None


def render(execution: Execution, *, width: int = WIDTH, show_all: bool = False) -> list[str]:
    """The execution in lines of at most `width`."""
    shown = [number for number in range(len(execution.steps)) if show_all or _tells(execution, number)]
    first = 0 if show_all else execution.first_step
    page = _Page(execution, width, sorted({step.cpu for step in execution.steps[first:]}))
    lines = page.heading()
    if first:
        lines += paragraph(f"(what comes before step {first + 1} builds the first state)", width, " " * page.gutter)
    for number in shown:
        if number == execution.cycle_start:
            lines.append(_rule("for ever, from here ", width, ".-"))
            page.forget()
        lines += page.step(number)
    if execution.cycle_start is not None:
        lines.append(_rule(f"back to step {execution.cycle_start + 1} ", width, "'-"))
    return [line.rstrip() for line in lines]


def _rule(text: str, width: int, corner: str) -> str:
    return f"{corner}> {text}".ljust(width, "-")


# ---- which steps tell something --------------------------------------------------------------------------------------


def _tells(execution: Execution, number: int) -> bool:
    if number < execution.first_step:
        return False
    if number in {len(execution.steps) - 1, execution.cycle_start}:
        return True
    event = execution.steps[number].event
    if isinstance(event, (e.LockTaken, e.LockDropped)):
        return event.lock in _contended(tuple(execution.steps))
    if isinstance(event, e.Chose):
        return event.answer != 0
    return not isinstance(event, _QUIET)


@functools.lru_cache(maxsize=8)
def _contended(steps: tuple[Step, ...]) -> frozenset[str]:
    """The locks that somebody missed, or still holds at the end."""
    missed = {step.event.lock for step in steps if isinstance(step.event, e.LockMissed)}
    held: Counter[str] = Counter()
    for step in steps:
        if isinstance(step.event, e.LockTaken):
            held[step.event.lock] += 1
        elif isinstance(step.event, e.LockDropped):
            held[step.event.lock] -= 1
    return frozenset(missed | {lock for lock, count in held.items() if count > 0})


def _name(function: str, width: int) -> list[str]:
    """The function's name with its brackets, broken at an underscore where it is too long."""
    lines: list[str] = []
    rest = f"{function}()"
    while len(rest) > width:
        end = rest.rfind("_", 0, width) + 1 or width
        lines.append(rest[:end])
        rest = " " + rest[end:]
    return [*lines, rest]


# ---- the page --------------------------------------------------------------------------------------------------------


@functools.cache
def _machinery() -> frozenset[str]:
    """Functions whose name says no more than the event that they make."""
    scopes = [*_PRIMITIVE, *(kind for _, kind in inspect.getmembers(containers, inspect.isclass))]
    names = {name for scope in scopes for name, _ in inspect.getmembers(scope, inspect.iscoroutinefunction)}
    return frozenset(names | {function.__name__ for function in _SMALL} | {_WRAPPER})


def told(stack: Sequence[str]) -> list[str]:
    """The functions of a stack that a reader wants to know of, innermost first."""
    return [name for name in reversed(stack) if name not in _machinery() and not name.startswith("_")]


def function_of(stack: Sequence[str]) -> str:
    """The innermost of them; empty where there is none."""
    return next(iter(told(stack)), "")


def names_itself(event: Event) -> bool:
    """Whether the words for the event say which function it belongs to."""
    return isinstance(event, _NOTES)


@define
class _Page:
    """Lays steps out in columns, and remembers what each column said last."""

    execution: Execution
    width: int
    cpus: list[int]
    said: dict[int, tuple[str, str]] = field(factory=dict[int, tuple[str, str]])

    @property
    def together(self) -> bool:
        """Too many CPUs for a column each."""
        return len(self.cpus) > MOST_COLUMNS

    @property
    def gutter(self) -> int:
        """Room for the numbers of the steps."""
        return max(6, len(str(len(self.execution.steps))) + 2)

    @property
    def column(self) -> int:
        count = 1 if self.together else max(len(self.cpus), 1)
        return (self.width - self.gutter - (count - 1)) // count

    def forget(self) -> None:
        """Name the functions again: a reader may begin here."""
        self.said.clear()

    def heading(self) -> list[str]:
        margin = " " * self.gutter
        rule = margin + "-" * (self.width - self.gutter)
        if self.together:
            return [f"{margin}CPUs {', '.join(map(str, self.cpus))}", rule]
        cells = [paragraph(f"CPU {cpu}: {', '.join(self._tasks(cpu))}", self.column) for cpu in self.cpus]
        rows = zip_longest(*cells, fillvalue="")
        return [margin + " ".join(cell.ljust(self.column) for cell in row) for row in rows] + [rule]

    def _tasks(self, cpu: int) -> list[str]:
        return sorted({step.task for step in self.execution.steps[self.execution.first_step :] if step.cpu == cpu})

    def step(self, number: int) -> list[str]:
        step = self.execution.steps[number]
        context = [self._place(line, step.cpu) for line in self._context(step, number)]
        said = paragraph(describe(step.event), self.column, "  ", "    ")
        return context + [self._place(line, step.cpu, "" if at else f"{number + 1}") for at, line in enumerate(said)]

    def _context(self, step: Step, number: int) -> list[str]:
        """The task, where the column has several, and the function, where either changed."""
        stack = self.execution.stacks[number] if number < len(self.execution.stacks) else ()
        task = f"CPU {step.cpu} {step.task}" if self.together else step.task
        column = 0 if self.together else step.cpu
        before = self.said.get(column)
        same = before is not None and before[0] == task
        function = (before[1] if before is not None and same else "") if names_itself(step.event) else function_of(stack)
        if before == (task, function):
            return []
        self.said[column] = (task, function)
        names_task = self.together or len(self._tasks(step.cpu)) > 1
        lines = paragraph(f"[{task}]", self.column) if names_task and not same else []
        return lines + (_name(function, self.column) if function else [])

    def _place(self, line: str, cpu: int, number: str = "") -> str:
        before = 0 if self.together else self.cpus.index(cpu) * (self.column + 1)
        return f"{number:>{self.gutter - 2}}  " + " " * before + line
