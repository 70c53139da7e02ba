"""The terminal: progress while a check runs, and colour. In a pipe there is neither, and the text is the same."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Sequence

import click
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.theme import Theme

from migrate_vma_conformance.options import Progress as ProgressCallback
from migrate_vma_conformance.options import silent
from migrate_vma_conformance.report.layout import paragraph

_THEME = Theme(
    {
        "verdict.bad": "bold red",
        "verdict.should": "yellow",
        "verdict.good": "green",
        "verdict.open": "magenta",
        "verdict.command": "bold",
        "verdict.loop": "cyan",
    }
)


class _Verdicts(RegexHighlighter):
    """The words of a verdict table."""

    base_style = "verdict."
    highlights = (
        r"(?m)(?P<bad>\bVIOLATED\b|^BUG: .*|\bOOPS\b.*)",
        r"(?P<should>\bviolated\b)",
        r"(?P<good>\bholds( weak| strong)?\b)",
        r"(?P<open>\bunknown\b)",
        r"(?m)^(?:also on [^:]*: )?(?P<command>migrate-vma replay .*)",
        r"(?m)(?P<loop>^[.']-> .*|^\|)",
    )


def show(lines: Sequence[str]) -> None:
    """Print the lines on standard output; a reader who closed the pipe is no error."""
    try:
        if sys.stdout.isatty():
            console = Console(theme=_THEME, highlighter=_Verdicts(), soft_wrap=True, emoji=False)
            console.print("\n".join(lines), markup=False)
        else:
            click.echo("\n".join(lines))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Print a paragraph on standard error."""
    click.echo("\n".join(paragraph(f"migrate-vma: {text}", hang="  ")), err=True)


@contextlib.contextmanager
def progress_bar() -> Generator[ProgressCallback]:
    """A bar on standard error while the context lasts, where that is a terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    with counting_bar() as count:
        yield lambda now: count(f"{now.generation}: {now.scenario}", now.done, now.total)


Count = Callable[[str, int, int], None]
"""Says what is being done, how much of it is, and of how much."""


def _uncounted(_what: str, _done: int, _total: int) -> None:
    """Nobody looks."""


@contextlib.contextmanager
def counting_bar() -> Generator[Count]:
    """The same for whatever can be counted."""
    if not sys.stderr.isatty():
        yield _uncounted
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[place]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=None, place="")

        def count(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{what[:40]:<40}", completed=done, total=total, place=f"{done}/{total}")

        yield count
