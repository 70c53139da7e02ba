"""The command `migrate-vma fuzz`: drawn workloads for a driver, as many as one has the time for."""

from __future__ import annotations

import click

from migrate_vma_conformance.catalogue import generation_records, newest_generation
from migrate_vma_conformance.cli_options import format_option, processors
from migrate_vma_conformance.report import fuzz_report, json_report
from migrate_vma_conformance.terminal import complain, counting_bar, show
from migrate_vma_conformance.verdict import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_VIOLATED

_ALL = "all"


@click.command()
@click.argument("driver", default="test_hmm", metavar="[DRIVER]")
@click.option("--generation", metavar="NAME|VERSION|all", multiple=True, help="The newest kernel's unless given; again for more.")
@click.option("--world", metavar="NAME", multiple=True, help="roomy (unless given), small, swap, alone or huge; again for more.")
@click.option("--examples", type=click.IntRange(min=1), default=1000, show_default=True, help="Workloads, in each of them.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Operations and races of a workload.")
@click.option("--shard", type=click.IntRange(min=1), default=500, show_default=True, help="Workloads of one process.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first shard; the next one has the next number.")
@click.option("--jobs", type=click.IntRange(min=1), default=processors, show_default="one for each processor")
@click.option("--allow", metavar="CLAUSE", multiple=True, help="What is known to be broken is not told; can be given again.")
@click.option("--ends", metavar="CLAUSE|WORDS", multiple=True, help="The same, or an oops, after which a workload is not judged.")
@click.option("--strict", is_flag=True, help="A broken SHOULD counts for the exit code.")
@format_option
@click.pass_context
def fuzz(
    ctx: click.Context,
    *,
    driver: str,
    generation: tuple[str, ...],
    world: tuple[str, ...],
    examples: int,
    steps: int,
    shard: int,
    seed: int,
    jobs: int,
    allow: tuple[str, ...],
    ends: tuple[str, ...],
    strict: bool,
    form: str,
) -> None:
    """Draw workloads for DRIVER: a built-in driver, or package.module:factory of your own.

    Long lives of one simulated kernel, with races under drawn schedules. Tells what they break, by the smallest workload found.
    Ctrl-C ends it, and what was found until then is told.
    """
    from migrate_vma_conformance import fuzz as long_run  # noqa: PLC0415  (imports Hypothesis: not for help and listings)

    names = dict.fromkeys(generation or [newest_generation().name])
    if _ALL in names:
        names = dict.fromkeys(record.name for record in generation_records())
    known = long_run.Known(frozenset(allow), frozenset(ends))
    units = [
        unit
        for name in names
        for place in dict.fromkeys(world or ["roomy"])
        for unit in long_run.shards(driver, name, place, examples=examples, shard=shard, steps=steps, seed=seed, known=known)
    ]
    with counting_bar() as watch:
        found = long_run.fuzz(driver, units, jobs=jobs, watch=watch)
    if found.interrupted:
        complain("interrupted: what follows was found until then, and says nothing of the rest.")
    if form == "json":
        show([json_report.text(fuzz_report.document(found))])
    else:
        show(fuzz_report.lines(found))
    ctx.exit(_exit_code(found, strict=strict))


def _exit_code(found: object, *, strict: bool) -> int:
    from migrate_vma_conformance.fuzz import Fuzzing  # noqa: PLC0415

    assert isinstance(found, Fuzzing)  # noqa: S101  (for the type checker)
    if found.interrupted:
        return EXIT_INTERRUPTED
    if any(finding.told.binding or strict for finding in found.findings):
        return EXIT_VIOLATED
    return EXIT_INCONCLUSIVE if found.lost else EXIT_FINE
