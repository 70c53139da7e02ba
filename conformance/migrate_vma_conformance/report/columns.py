"""A schedule as people read races: one column per CPU, time going down, the function's name where it changes.

Rules:
- What is told of the steps, and in which words, is for `story.py` to say; here it is laid out.
- A function with one line stands before it; one with several stands above them.
- A cycle has a bar on its left, and says where it begins and that it goes on for ever.
- A line is never wider than the page. Where the columns would become too narrow there is one column that names the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from attrs import define, field

from migrate_vma_conformance.report.execution import Execution, rolled
from migrate_vma_conformance.report.layout import WIDTH, paragraph
from migrate_vma_conformance.report.story import Line, tell

__all__ = ["MOST_COLUMNS", "Execution", "render"]

MOST_COLUMNS = 4


def render(execution: Execution, *, width: int = WIDTH, show_all: bool = False, ever: str = "") -> list[str]:
    """The execution in lines of at most `width`. `ever` says, at the end of a cycle, why it is one that may go on."""
    short = execution if show_all else rolled(execution)
    lines = tell(short, show_all=show_all)
    return _Page(short, width, lines, ever=ever).render(show_all=show_all)


@define
class _Page:
    """Lays lines out in columns, and remembers what each column said last."""

    execution: Execution
    width: int
    lines: Sequence[Line]
    ever: str = ""
    cpus: list[int] = field(init=False)
    said: dict[int, tuple[str, str]] = field(init=False, factory=dict[int, tuple[str, str]])

    def __attrs_post_init__(self) -> None:
        self.cpus = sorted({line.step.cpu for line in self.lines})

    @property
    def together(self) -> bool:
        """Too many CPUs for a column each."""
        return len(self.cpus) > MOST_COLUMNS

    @property
    def gutter(self) -> int:
        """Room for the bar of a cycle and the numbers of the steps."""
        return max(6, len(str(len(self.execution.steps))) + 3)

    @property
    def column(self) -> int:
        count = 1 if self.together else max(len(self.cpus), 1)
        return (self.width - self.gutter - (count - 1)) // count

    def render(self, *, show_all: bool) -> list[str]:
        found = self._heading(0 if show_all else self.execution.first_step)
        start = self.execution.cycle_start
        way = [at for at, line in enumerate(self.lines) if start is None or line.number < start]
        turn = range(len(way), len(self.lines))
        for at in way:
            found += self._step(at)
        if start is not None:
            self.said.clear()
            found.append(_rule("for ever, from here ", self.width, ".-"))
            found += [f"|{line[1:]}" for at in turn for line in self._step(at)]
            back = self.lines[turn.start].number if turn else start
            head, *rest = paragraph(f"back to step {back + 1}{': ' if self.ever else ''}{self.ever}", self.width - 5)
            found.append(_rule(f"{head} ", self.width, "'-"))
            found += [f"    {line}" for line in rest]
        return [line.rstrip() for line in found]

    def _heading(self, first: int) -> list[str]:
        margin = " " * self.gutter
        before = f"-- steps 1-{first} build the first state " if first else ""
        rule = margin + before.ljust(self.width - self.gutter, "-")
        if self.together:
            return [f"{margin}CPUs {', '.join(map(str, self.cpus))}", rule]
        cells = [paragraph(f"CPU {cpu}: {', '.join(self._tasks(cpu))}", self.column) for cpu in self.cpus]
        rows = zip_longest(*cells, fillvalue="")
        return [margin + " ".join(cell.ljust(self.column) for cell in row) for row in rows] + [rule]

    def _tasks(self, cpu: int) -> list[str]:
        return sorted({line.step.task for line in self.lines if line.step.cpu == cpu})

    def _step(self, at: int) -> list[str]:
        line = self.lines[at]
        above, before = self._context(at)
        words = paragraph(before + line.words, self.column, "  ", "    ")
        numbered = [self._place(text, line, "" if row else f"{line.number + 1}") for row, text in enumerate(words)]
        return [self._place(text, line) for text in above] + numbered

    def _context(self, at: int) -> tuple[list[str], str]:
        """What stands above a line, and what before its words: the task, where a column has several, and the function."""
        line = self.lines[at]
        task = f"CPU {line.step.cpu} {line.step.task}" if self.together else line.step.task
        column = 0 if self.together else line.step.cpu
        said = self.said.get(column)
        self.said[column] = task, line.function
        same = said is not None and said[0] == task
        several = self.together or len(self._tasks(line.step.cpu)) > 1
        above = paragraph(f"[{task}]", self.column) if several and not same else []
        if not line.function or said == (task, line.function):
            return above, ""
        before = f"{line.function}: "
        if not self._goes_on(at) and len(before) + len(line.words) + 2 <= self.column:
            return above, before
        return above + _name(line.function, self.column), ""

    def _goes_on(self, at: int) -> bool:
        """Whether the next line of the same column is of the same function."""
        here = self.lines[at]
        start = self.execution.cycle_start
        for line in self.lines[at + 1 :]:
            if start is not None and here.number < start <= line.number:
                return False
            if self.together or line.step.cpu == here.step.cpu:
                return (line.step.task, line.function) == (here.step.task, here.function)
        return False

    def _place(self, text: str, line: Line, number: str = "") -> str:
        before = 0 if self.together else self.cpus.index(line.step.cpu) * (self.column + 1)
        return f"{number:>{self.gutter - 2}}  " + " " * before + text


def _rule(text: str, width: int, corner: str) -> str:
    return f"{corner}> {text}".ljust(width, "-")


def _name(function: str, width: int) -> list[str]:
    """The function's name with its brackets, broken at an underscore where it is too long."""
    lines: list[str] = []
    rest = f"{function}()"
    while len(rest) > width:
        end = rest.rfind("_", 0, width) + 1 or width
        lines.append(rest[:end])
        rest = " " + rest[end:]
    return [*lines, rest]
