"""The command line of real traces: `migrate-vma trace check` and `record`.

The commands' bodies are elsewhere: this module names them, takes their options, and gives exit codes as `cli.py` tells them.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from migrate_vma_conformance.catalogue import generation_records
from migrate_vma_conformance.cli_options import cache_option, format_option
from migrate_vma_conformance.errors import UsageError, listed
from migrate_vma_conformance.kernel.traces.probes import DRIVERS
from migrate_vma_conformance.kernel.traces.setups import Tool, script, wanted
from migrate_vma_conformance.report import json_report
from migrate_vma_conformance.terminal import show
from migrate_vma_conformance.verdict import exit_code

_DRIVER = f"A driver ({listed(DRIVERS)}), or the name of its migrate_to_ram."


@click.group()
def trace() -> None:
    """Judge traces of real kernels by the contract's clauses, and set up their recording."""


@trace.command()
@click.argument("file", metavar="FILE|-")
@click.option("--generation", metavar="NAME|VERSION|all", help="Whose fault path; that of the kernel FILE names, unless given.")
@click.option("--part", type=click.IntRange(min=1), help="Only this recording of those in FILE, counted from 1.")
@click.option("--driver", metavar="SYMBOL", help="The migrate_to_ram of a driver that is not known here.")
@click.option("--strict", is_flag=True, help="A violated SHOULD counts for the exit code.")
@format_option
@click.pass_context
def check(
    ctx: click.Context, *, file: str, generation: str | None, part: int | None, driver: str | None, strict: bool, form: str
) -> None:
    """Judge FILE: text of tracefs (trace, trace_pipe), of `trace-cmd report`, or of the bpftrace script of `trace record`.

    What the probes do not show is left open. Names the clauses that are broken, with the lines, and those that cannot be judged.
    """
    from migrate_vma_conformance.kernel.traces import report  # noqa: PLC0415  (nothing of it is needed elsewhere)
    from migrate_vma_conformance.kernel.traces.judging import generation_named, judge_file  # noqa: PLC0415

    given = {"--generation": generation, "--part": part, "--driver": driver}
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    command = shlex.join(["migrate-vma", "trace", "check", file, *words])
    records = generation_records() if generation == "all" else [] if generation is None else [generation_named(generation)]
    judged = judge_file(file, records, part=part, callback=driver, command=command)
    if form == "json":
        show([json_report.text(report.document(judged, strict=strict))])
    else:
        show(report.lines_for_people(judged, strict=strict))
    ctx.exit(exit_code(judged.report, strict=strict))


@trace.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE]")
@click.option("--with", "tool", type=click.Choice([tool.value for tool in Tool]), default=Tool.TRACEFS.value, show_default=True)
@click.option("--driver", metavar="NAME|SYMBOL", default="test_hmm", show_default=True, help=_DRIVER)
@click.option("--release", metavar="VERSION", default="7.3", show_default=True, help="The kernel to record on.")
@click.option("--guest", metavar="NAME", help="Record on this guest of ours, into FILE; the kernel and driver are the guest's.")
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Of the race on the guest.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=8, show_default=True, help="Of the race on the guest.")
@cache_option
def record(
    *,
    file: Path | None,
    tool: str,
    driver: str,
    release: str,
    guest: str | None,
    threads: int,
    rounds: int,
    cache: Path | None,
) -> None:
    """Print the script that records on your machine; with --guest, record a race on one of our guests into FILE."""
    if guest is None:
        if file is not None:
            raise UsageError(str(file), "argument FILE", "without --guest nothing is recorded", "no FILE: the script is printed")
        show(script(Tool(tool), wanted(driver, release)))
        return
    from migrate_vma_conformance.kernel.guests import find_guest  # noqa: PLC0415
    from migrate_vma_conformance.kernel.traces.on_guest import record_on  # noqa: PLC0415

    if file is None:
        raise UsageError(guest, "--guest", "there is no FILE to record into", "a FILE as argument")
    lines = record_on(find_guest(guest, cache), file, threads=threads, rounds=rounds)
    show([f"{file}: {lines} lines; `migrate-vma trace check {shlex.quote(str(file))}` judges them"])
