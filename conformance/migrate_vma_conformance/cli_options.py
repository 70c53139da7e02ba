"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a result is printed: for people, or for programs."""
    return click.option("--format", "form", type=click.Choice(["pretty", "json"]), default="pretty", show_default=True)(command)


def cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the guests of the kernel witness are."""
    option = click.option(
        "--cache",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where guests are kept; $MIGRATE_VMA_CACHE or ~/.cache/migrate-vma/kernel unless given.",
    )
    return option(command)


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
