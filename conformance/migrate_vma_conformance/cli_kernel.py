"""The command line of the kernel witness: `migrate-vma kernel build` and `status`, and what the built guests are asked.

The commands' bodies are elsewhere: this module names them, takes their options, and gives exit codes as `cli.py` tells them.
"""

from __future__ import annotations

from pathlib import Path

import click

from migrate_vma_conformance.cli_compare import compare
from migrate_vma_conformance.cli_options import cache_option, format_option, processors
from migrate_vma_conformance.cli_race import race
from migrate_vma_conformance.kernel.guests import DEFAULT, cache_directory, find_guest, kind_named
from migrate_vma_conformance.report import json_report
from migrate_vma_conformance.terminal import complain, show
from migrate_vma_conformance.verdict import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_VIOLATED


@click.group()
def kernel() -> None:
    """Build real kernels, run them under QEMU, and ask them what the simulated one is asked."""


@kernel.command()
@click.argument("guests", nargs=-1, metavar="[GUEST]...")
@click.option("--jobs", type=click.IntRange(min=1), default=processors, show_default="one for each processor")
@click.option("--again", is_flag=True, help="Build from nothing what is built, too.")
@cache_option
@click.pass_context
def build(ctx: click.Context, *, guests: tuple[str, ...], jobs: int, again: bool, cache: Path | None) -> None:
    """Build each GUEST: a kernel, its test_hmm module, the agent; 6.1 and 7.3 unless named.

    What is built already is left alone, what was interrupted goes on. Sources come from Debian's archive; nothing is installed.
    """
    from migrate_vma_conformance.kernel.building.build import builder  # noqa: PLC0415  (nothing of it is needed elsewhere)
    from migrate_vma_conformance.kernel.building.failures import BuildFailed  # noqa: PLC0415
    from migrate_vma_conformance.kernel.building.progress import told_on_terminal  # noqa: PLC0415

    kinds = [kind_named(name) for name in dict.fromkeys(guests or DEFAULT)]
    place = cache_directory(cache)
    try:
        with told_on_terminal() as tell, builder(place, jobs, again=again, tell=tell) as with_it:
            for kind in kinds:
                outcome = with_it.build(kind)
                seconds = f" in {outcome.seconds:.1f} s"
                show([f"guest {kind.name}: {outcome.done.value}{seconds}, Linux {outcome.guest.release}, {place / kind.name}"])
    except BuildFailed as failure:
        complain(str(failure))
        for line in failure.tail:
            click.echo(f"    {line}", err=True)
        ctx.exit(EXIT_INCONCLUSIVE)
    except KeyboardInterrupt:
        complain("interrupted; what is done is kept, and the same command goes on from there.")
        ctx.exit(EXIT_INTERRUPTED)


@kernel.command()
@cache_option
@format_option
@click.pass_context
def status(ctx: click.Context, *, cache: Path | None, form: str) -> None:
    """Say which guests there are, and what is missing to build or run them.

    Exits with 0 if 6.1 and 7.3 are built of the present sources and can be run, with 3 if not.
    """
    from migrate_vma_conformance.kernel.building import status as kernel_status  # noqa: PLC0415

    seen = kernel_status.look(cache_directory(cache))
    show([json_report.text(kernel_status.document(seen))] if form == "json" else kernel_status.lines(seen))
    ctx.exit(EXIT_INCONCLUSIVE if seen.lacking else EXIT_FINE)


@kernel.command("hmm-tests")
@click.argument("guest", default=DEFAULT[-1], metavar="[GUEST]")
@click.option("--module", type=click.Choice(["stock", "mended"]), default="stock", show_default=True, help="Which test_hmm.")
@click.option("--large-folios", "large", type=click.Choice(["always", "madvise"]), default="always", show_default=True)
@click.option("--coherent", is_flag=True, help="With two devices of coherent memory besides.")
@cache_option
@format_option
@click.pass_context
def hmm_tests(
    ctx: click.Context, *, guest: str, module: str, large: str, coherent: bool, cache: Path | None, form: str
) -> None:
    """Run the kernel's own selftest of test_hmm on a GUEST, as it stands beside its source.

    Exits with 0 if no test failed, with 1 if one did, with 3 if the guest did not outlive them.
    """
    from migrate_vma_conformance.kernel import hmm_tests as selftest  # noqa: PLC0415
    from migrate_vma_conformance.kernel.commands import Module  # noqa: PLC0415

    folios = selftest.LargeFolios(large)
    found = selftest.run(find_guest(guest, cache), Module(module), folios, coherent=coherent)
    show([json_report.text(selftest.document(found))] if form == "json" else selftest.lines(found))
    failed = found.those(selftest.Fared.FAILED)
    ctx.exit(EXIT_INCONCLUSIVE if not found.complete else EXIT_VIOLATED if failed else EXIT_FINE)


kernel.add_command(compare)
kernel.add_command(race)
