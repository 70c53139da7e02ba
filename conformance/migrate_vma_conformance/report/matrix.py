"""A table of short cells, as wide as its words and never wider than the page: it is cut into blocks of columns that fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from migrate_vma_conformance.report.layout import WIDTH

_GAPS = ("  ", " ")
"""Between columns; the narrow one where only it lets the table stay in one piece."""


@frozen
class Row:
    """A line of a table: its label, and one cell per column."""

    label: str
    cells: tuple[str, ...]


@frozen
class Column:
    """A column's heading, in the lines that it is broken into, and how wide its cells are."""

    heading: tuple[str, ...]
    width: int


def render(headings: Sequence[str], rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """The table in lines of at most `width`."""
    label = max((len(row.label) for row in rows), default=0)
    columns = [_column(heading, [row.cells[at] for row in rows], width - label - 2) for at, heading in enumerate(headings)]
    gap = next((gap for gap in _GAPS if len(_blocks(columns, width - label, len(gap))) == 1), _GAPS[0])
    lines: list[str] = []
    for block in _blocks(columns, width - label, len(gap)):
        lines += ([""] if lines else []) + _Block(label, columns[block], block, gap).lines(rows)
    return [line.rstrip() for line in lines]


def _column(heading: str, cells: Sequence[str], most: int) -> Column:
    """A heading breaks at blanks and after - and + down to the width of the cells, and no further than its longest part."""
    pieces = re.findall(r"[^\s+-]+[+-]?|[+-]", heading)
    width = min(max((len(word) for word in (*cells, *pieces)), default=1), most)
    lines: list[str] = []
    for piece in pieces:
        joint = "" if lines and lines[-1].endswith(("-", "+")) else " "
        if lines and len(lines[-1]) + len(joint) + len(piece) <= width:
            lines[-1] += joint + piece
        else:
            lines += [piece[start : start + width] for start in range(0, len(piece), width)]
    return Column(tuple(lines), width)


def _blocks(columns: Sequence[Column], room: int, gap: int) -> list[slice]:
    """Runs of columns that fit beside the label."""
    blocks: list[slice] = []
    start, used = 0, 0
    for at, column in enumerate(columns):
        need = gap + column.width
        if at > start and used + need > room:
            blocks.append(slice(start, at))
            start, used = at, 0
        used += need
    return [*blocks, slice(start, len(columns))] if columns else []


@frozen
class _Block:
    label: int
    columns: Sequence[Column]
    span: slice
    gap: str

    def lines(self, rows: Sequence[Row]) -> list[str]:
        height = max(len(column.heading) for column in self.columns)
        heads = [(*("",) * (height - len(column.heading)), *column.heading) for column in self.columns]
        top = [self._line("", cells) for cells in zip(*heads, strict=True)]
        rule = self._line("-" * self.label, ["-" * column.width for column in self.columns])
        return [*top, rule, *(self._line(row.label, row.cells[self.span]) for row in rows)]

    def _line(self, label: str, cells: Sequence[str]) -> str:
        words = (cell[: column.width].ljust(column.width) for cell, column in zip(cells, self.columns, strict=True))
        return self.gap.join((label.ljust(self.label), *words))
