"""The command `migrate-vma kernel compare`: real kernels, the simulated core and the reference model do the same operations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from migrate_vma_conformance.cli_options import cache_option, format_option
from migrate_vma_conformance.errors import SubjectError, UsageError
from migrate_vma_conformance.kernel.guests import DEFAULT, Guest, find_guest
from migrate_vma_conformance.report import json_report
from migrate_vma_conformance.terminal import counting_bar, show
from migrate_vma_conformance.verdict import EXIT_FINE, EXIT_VIOLATED

if TYPE_CHECKING:
    from migrate_vma_conformance.kernel.commands import Module
    from migrate_vma_conformance.kernel.comparing.guests import Asked


@click.command()
@click.argument("guests", nargs=-1, metavar="[GUEST]...")
@click.option("--sequences", type=click.IntRange(min=1), default=200, show_default=True, help="How many, for each guest.")
@click.option("--operations", type=click.IntRange(3, 300), default=30, show_default=True, help="In one sequence, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same sequences.")
@click.option("--module", type=click.Choice(["stock", "mended"]), default="mended", show_default=True, help="Which test_hmm.")
@click.option("--large", is_flag=True, help="On large folios: a page stands for 128, and four for a huge page.")
@click.option("--script", type=click.Path(path_type=Path), metavar="FILE", help="Run this sequence, and show every answer.")
@cache_option
@format_option
@click.pass_context
def compare(
    ctx: click.Context,
    *,
    guests: tuple[str, ...],
    sequences: int,
    operations: int,
    seed: int,
    module: str,
    large: bool,
    script: Path | None,
    cache: Path | None,
    form: str,
) -> None:
    """Do the same operations on each GUEST, on the simulated core and on the model, and say where their answers differ.

    6.1 and 7.3 unless named. Exits with 0 where all agree but for known differences, with 1 where something differs, with 3 where
    a guest was lost.
    """
    from migrate_vma_conformance.kernel.commands import Module  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.guests import Asked  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.strategies import Shape  # noqa: PLC0415  (imports Hypothesis)

    found = [find_guest(name, cache) for name in dict.fromkeys(guests or DEFAULT)]
    if script is not None:
        ctx.exit(_play(found, script, Module(module), form, large=large))
    ctx.exit(_compare(found, Asked(sequences, Shape(operations, large=large), seed, Module(module)), form))


def _compare(guests: list[Guest], asked: Asked, form: str) -> int:
    from migrate_vma_conformance.kernel.comparing import report as compare_report  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.guests import compare_guests, exit_code  # noqa: PLC0415

    with counting_bar() as count:
        told = compare_guests(guests, asked, lambda tally: count(tally.guest, tally.sequences, asked.sequences))
        outcomes = list(told)
    document = compare_report.document(outcomes, asked)
    show([json_report.text(document)] if form == "json" else compare_report.lines(outcomes, asked))
    return exit_code(outcomes)


def _play(guests: list[Guest], script: Path, module: Module, form: str, *, large: bool) -> int:
    from migrate_vma_conformance.kernel.comparing import report as compare_report  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.core_subject import Unsupported  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.guest_subject import Lost  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.guests import play  # noqa: PLC0415
    from migrate_vma_conformance.kernel.comparing.operations import read_script  # noqa: PLC0415

    try:
        sequence = read_script(script.read_text(), str(script))
    except (OSError, UnicodeDecodeError) as error:
        expected = "a file with an operation in each line"
        raise UsageError(str(script), "--script", f"it cannot be read: {error}", expected) from error
    try:
        played = [play(guest, sequence, module, large=large) for guest in guests]
    except Unsupported as error:
        raise UsageError(str(script), "--script", str(error), "operations that the core has, too") from error
    except Lost as error:
        raise SubjectError("the comparison", str(error)) from error
    as_json = form == "json"
    show([json_report.text(compare_report.played_document(played))] if as_json else compare_report.played_lines(played))
    differs = any(each.difference is not None and each.difference.known is None for each in played)
    return EXIT_VIOLATED if differs else EXIT_FINE
