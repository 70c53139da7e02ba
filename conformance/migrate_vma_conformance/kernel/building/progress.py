"""What a build tells while it goes on: a line that changes on a terminal, nothing in a pipe."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Generator

from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@frozen
class Step:
    """Where a build stands: in stage `number` of `total`. `detail` is what it works on, `done` how many things are done."""

    guest: str
    stage: str
    number: int
    total: int
    done: int = 0
    detail: str = ""


Told = Callable[[Step], None]

_OBJECT = re.compile(r" {2}(?:CC|AS|LD|AR|HOSTCC|GEN|OBJCOPY|UPD|HDRINST)(?: \[M\])? +(\S+)")


def silent(step: Step) -> None:
    """Nobody watches."""


def compiled(line: str) -> str | None:
    """The file that a line of kbuild says it makes; None: it says something else."""
    found = _OBJECT.match(line)
    return found[1] if found else None


@contextlib.contextmanager
def told_on_terminal() -> Generator[Told]:
    """A bar on standard error while the context lasts, where that is a terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("building", total=None, detail="")

        def tell(step: Step) -> None:
            detail = f"{step.done} files, {step.detail}"[:40] if step.done else step.detail[:40]
            stage = f"guest {step.guest}: {step.stage}"
            progress.update(task, description=f"{stage:<28}", completed=step.number, total=step.total, detail=detail)

        yield tell
