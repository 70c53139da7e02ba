"""The terminal: progress while a check runs, and colour. In a pipe there is neither, and the text is the same."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Sequence

import click
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.theme import Theme

from migrate_vma_conformance.options import Advance, silent
from migrate_vma_conformance.options import Progress as ProgressCallback
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
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[place]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=None, place="")

        def advance(now: Advance) -> None:
            where = f"{now.generation}: {now.scenario}"[:40]
            place = f"{now.done}/{now.total}"
            progress.update(task, description=f"{where:<40}", completed=now.done, total=now.total, place=place)

        yield advance
