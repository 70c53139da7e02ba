"""The command line of races on a real kernel: `migrate-vma kernel race`."""

from __future__ import annotations

from pathlib import Path

import click

from migrate_vma_conformance.cli_options import cache_option, format_option
from migrate_vma_conformance.kernel.guests import DEFAULT, find_guest
from migrate_vma_conformance.kernel.racing.rounds import KINDS
from migrate_vma_conformance.options import Advance
from migrate_vma_conformance.report import json_report
from migrate_vma_conformance.terminal import progress_bar, show
from migrate_vma_conformance.verdict import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_VIOLATED

_THREADS = (2, 4, 8)
_MOST_THREADS = 32
"""As many commands as the agent carries out at once."""


@click.command()
@click.argument("guest", default=DEFAULT[-1], metavar="[GUEST]")
@click.option("--race", "races", type=click.Choice(list(KINDS)), multiple=True, help="Only this race; can be given again.")
@click.option("--threads", type=click.IntRange(2, _MOST_THREADS), multiple=True, help="How many; can be given again.  [2, 4, 8]")
@click.option("--rounds", type=click.IntRange(min=1), default=100, show_default=True, help="Of each race.")
@cache_option
@format_option
@click.pass_context
def race(
    ctx: click.Context,
    *,
    guest: str,
    races: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    cache: Path | None,
    form: str,
) -> None:
    """Race threads for one device page on a GUEST, and say beside it what the explorer proves of the same races.

    Exits with 0 if all held that must hold in every interleaving, with 1 if something did not, with 3 if the guest ended.
    """
    from migrate_vma_conformance.kernel.racing import report as race_report  # noqa: PLC0415  (imports the kit: not for help)
    from migrate_vma_conformance.kernel.witness.witness import Witness, ways  # noqa: PLC0415

    found = find_guest(guest, cache)
    kinds = [KINDS[name] for name in dict.fromkeys(races or KINDS)]
    counts = sorted(set(threads or _THREADS))
    with Witness(found.name, ways(found)) as witness, progress_bar() as progress:
        asked = race_report.Asked(kinds, counts, rounds)
        report = race_report.race(found, witness, asked, lambda run, done: progress(Advance(found.name, run, done, rounds)))
    show([json_report.text(race_report.document(report))] if form == "json" else race_report.lines(report))
    broken = any(run.broken for run in report.runs)
    ctx.exit(EXIT_VIOLATED if broken else EXIT_FINE if report.outlived else EXIT_INCONCLUSIVE)
