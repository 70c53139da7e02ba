"""The command line: `migrate-vma check`, `replay`, `fuzz`, and the listings `clauses`, `generations`, `scenarios`, `schema`.

Rules:
- Standard output carries the report and nothing else; progress and complaints go to standard error.
- Exit codes: 0 nothing violated; 1 a MUST violated (under --strict a SHOULD too); 2 the command cannot be carried out as given;
  3 inconclusive, or a fault of the kit itself; 130 interrupted. A violation found outweighs something inconclusive beside it.
- The kit is imported when a command needs it, so that help and listings are quick.
"""

from __future__ import annotations

import enum
import shlex
import traceback
from pathlib import Path
from typing import Any

import click
from attrs import evolve
from click.core import ParameterSource

from migrate_vma_conformance import __version__
from migrate_vma_conformance.catalogue import clause_named, clauses_by_id, generation_records, judged_clauses, newest_generation
from migrate_vma_conformance.cli_fuzz import fuzz
from migrate_vma_conformance.cli_kernel import kernel
from migrate_vma_conformance.cli_options import format_option, processors
from migrate_vma_conformance.cli_trace import trace
from migrate_vma_conformance.errors import Interrupted, SubjectError, UsageError
from migrate_vma_conformance.options import CheckOptions, Fairness, Profile
from migrate_vma_conformance.report import json_report, listing, pretty
from migrate_vma_conformance.report.files import make_directory, token_of, write_report
from migrate_vma_conformance.report.schema import SCHEMA
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.terminal import complain, progress_bar, show
from migrate_vma_conformance.verdict import EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_USAGE, exit_code, exit_of
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.schema import json_schema

_BOTH = "both"


class _Commands(click.Group):
    """Turns what goes wrong into a paragraph and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            complain(str(error))
            ctx.exit(EXIT_USAGE)
        except SubjectError as error:
            complain(str(error))
            ctx.exit(EXIT_INCONCLUSIVE)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except SystemExit as error:
            complain(f"the code under test ended the program (SystemExit: {error}), so nothing is known.")
            ctx.exit(EXIT_INCONCLUSIVE)
        except KeyboardInterrupt:
            complain("interrupted, and nothing was found until then.")
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:  # noqa: BLE001  (the last line of defence: a fault of ours is told as one)
            if ctx.params.get("traceback"):
                traceback.print_exc()
            complain(_our_fault(error))
            ctx.exit(EXIT_INCONCLUSIVE)


def _our_fault(error: Exception) -> str:
    said = f"{type(error).__name__}: {error}".strip()
    known = "this is a fault of the kit, not of what it checked, so nothing is known"
    return f"{known}: {said}. `migrate-vma --traceback ...` shows where."


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="migrate-vma")
@click.option("--traceback", is_flag=True, help="Show where, if the kit itself fails.")
def cli(*, traceback: bool) -> None:
    """Judge fault protocols and device drivers against the migrate_vma contract, on every interleaving."""


def _values(kind: type[enum.Enum]) -> list[str]:
    return [member.value for member in kind]


# ---- check -----------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("driver", default="test_hmm", metavar="[DRIVER]")
@click.option("--generation", metavar="NAME|VERSION|all", help="Whose fault path; the newest kernel's unless given.")
@click.option(
    "--as-shipped", metavar="VERSION", multiple=True, help="A kernel with what it has wrong; can be given again."
)
@click.option("--preemption", type=click.Choice(["full", "voluntary", _BOTH]), default=_BOTH, show_default=True)
@click.option("--fairness", type=click.Choice(_values(Fairness)), default=Fairness.STRONG.value, show_default=True)
@click.option("--profile", type=click.Choice(_values(Profile)), default=Profile.DEFAULT.value, show_default=True)
@click.option("--scenario", metavar="NAME", multiple=True, help="Only this scenario; can be given again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is sampled.")
@click.option("--jobs", type=click.IntRange(min=1), default=processors, show_default="one for each processor")
@click.option("--patch", metavar="MODULE:RECORD", help="Check a generation record of your own.")
@click.option("--strict", is_flag=True, help="A violated SHOULD counts for the exit code.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Write report, page, splats and traces there.")
@click.option("-v", "--verbose", is_flag=True, help="A row for every clause, a drawing of every violation.")
@format_option
@click.pass_context
def check(
    ctx: click.Context,
    *,
    driver: str,
    generation: str | None,
    as_shipped: tuple[str, ...],
    preemption: str,
    fairness: str,
    profile: str,
    scenario: tuple[str, ...],
    seed: int,
    jobs: int,
    patch: str | None,
    strict: bool,
    output: Path | None,
    verbose: bool,
    form: str,
) -> None:
    """Check DRIVER: a built-in driver, or package.module:factory of your own.

    Prints which clauses hold and on what evidence, and for each that does not the shortest schedule found that breaks it.
    """
    from migrate_vma_conformance import kit  # noqa: PLC0415  (imports Hypothesis: not for help and listings)

    models = (Preemption.FULL, Preemption.VOLUNTARY) if preemption == _BOTH else (Preemption(preemption),)
    scenarios = tuple(dict.fromkeys(scenario)) or None
    options = CheckOptions(models, Fairness(fairness), Profile(profile), seed, jobs, patch, scenarios)
    if output is not None:
        make_directory(output)
    names = [*([generation] if generation is not None else []), *(kit.as_shipped(version).name for version in as_shipped)]
    if not names and patch is None:
        names = [newest_generation().name]
    interrupted = False
    try:
        with progress_bar() as progress:
            report = kit.check(driver, names, options, progress)
    except Interrupted as stop:
        complain("interrupted: what follows was found until then, and says nothing of the rest.")
        report, interrupted = stop.report, True
    report = evolve(report, command=_command(ctx))
    if form == "json":
        show([json_report.text(json_report.report_document(report, strict=strict))])
    else:
        show(pretty.render_report(report, judged_clauses(), strict=strict, verbose=verbose))
    if output is not None:
        write_report(report, output, judged_clauses(), strict=strict)
    ctx.exit(EXIT_INTERRUPTED if interrupted else exit_code(report, strict=strict))


def _command(ctx: click.Context) -> str:
    """The command that repeats this one: what the caller gave, but for where and how the report is written."""
    words = ["migrate-vma", "check"]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name in {"output", "form", "verbose"}:
            continue
        many = isinstance(parameter, click.Option) and parameter.multiple
        values: list[Any] = list(ctx.params[name]) if many else [ctx.params[name]]
        option = [parameter.opts[-1]] if isinstance(parameter, click.Option) else []
        for value in values:
            words += option if value is True else [*option, str(value)]
    return shlex.join(words)


# ---- replay ----------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("token", metavar="TOKEN|FILE")
@click.option("--until", metavar="CLAUSE", help="Stop at the step that breaks this clause.")
@click.option("--state", is_flag=True, help="Show the state at the end.")
@click.option("--all", "show_all", is_flag=True, help="Show every step, also those that tell little.")
@click.option("--strict", is_flag=True, help="A violated SHOULD counts for the exit code.")
@format_option
@click.pass_context
def replay(ctx: click.Context, *, token: str, until: str | None, state: bool, show_all: bool, strict: bool, form: str) -> None:
    """Run a schedule again: TOKEN, or a FILE that holds one (a splat, a report).

    Shows the same steps and gives the same verdict, byte for byte, in every process and on every version of Python.
    """
    from migrate_vma_conformance import kit  # noqa: PLC0415

    last = None if until is None else clause_named(until, "--until").id
    found = kit.replay(token_of(token), last, state=state)
    if form == "json":
        show([json_report.text(json_report.replay_document(found, strict=strict))])
    else:
        show(pretty.render_replay(found, judged_clauses(), show_all=show_all))
    ctx.exit(exit_of([found.verdict], strict=strict))


cli.add_command(fuzz)


# ---- listings --------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("clause", required=False, metavar="[ID]")
@format_option
def clauses(*, clause: str | None, form: str) -> None:
    """List the clauses of the contract, or show one whole."""
    chosen = list(clauses_by_id().values()) if clause is None else [clause_named(clause, "argument ID")]
    if form == "json":
        show([json_report.text([listing.clause_document(each) for each in chosen])])
    else:
        show(listing.clause_lines(chosen) if clause is None else listing.clause_page(chosen[0]))


@cli.command()
@format_option
def generations(*, form: str) -> None:
    """List the generations: names, kernel versions, what they are made of, what they can."""
    if form == "json":
        show([json_report.text([listing.generation_document(each) for each in generation_records()])])
    else:
        show(listing.generation_lines(generation_records()))


@cli.command()
@click.option("--run", is_flag=True, help="Put each back, and search for it.")
@click.option("--only", metavar="ID", multiple=True, help="Only this bug; can be given again.")
@click.option("--bugs", "path", metavar="MODULE:BUGS", help="A collection of your own instead.")
@click.option("--profile", type=click.Choice(_values(Profile)), default=Profile.DEFAULT.value, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is sampled.")
@click.option("--jobs", type=click.IntRange(min=1), default=processors, show_default="one for each processor")
@format_option
@click.pass_context
def bugs(
    ctx: click.Context,
    *,
    run: bool,
    only: tuple[str, ...],
    path: str | None,
    profile: str,
    seed: int,
    jobs: int,
    form: str,
) -> None:
    """List the known bugs; with --run, which clause catches which.

    Exits with 0 if each bug is caught by a clause that it names, with 1 if one is not.
    """
    from migrate_vma_conformance import kill_matrix  # noqa: PLC0415
    from migrate_vma_conformance.report import kills  # noqa: PLC0415

    chosen = kill_matrix.chosen_bugs(path, only)
    if not run:
        left_out = kill_matrix.NOT_SHOWN if path is None and not only else ()
        rows = kills.collection_document(chosen, left_out)
        show([json_report.text(rows)] if form == "json" else kills.bug_lines(chosen, left_out))
        return
    with progress_bar() as progress:
        matrix = kill_matrix.kill_matrix(chosen, CheckOptions(profile=Profile(profile), seed=seed, jobs=jobs), progress)
    judged = list(judged_clauses())
    if form == "json":
        show([json_report.text(kills.matrix_document(matrix, judged))])
    else:
        show(kills.matrix_lines(matrix, judged))
    caught = all(row.fate is kill_matrix.Fate.CAUGHT for row in matrix.rows)
    ctx.exit(EXIT_INTERRUPTED if matrix.interrupted else 0 if caught else 1)


@cli.command()
@format_option
def scenarios(*, form: str) -> None:
    """List the scenarios that a driver is judged in."""
    if form == "json":
        show([json_report.text([listing.scenario_document(each) for each in SCENARIOS.values()])])
    else:
        show(listing.scenario_lines(SCENARIOS.values()))


@cli.command()
@click.argument("of", type=click.Choice(["events", "report"]))
def schema(*, of: str) -> None:
    """Print the JSON Schema of a line of a trace (events), or of a report."""
    show([json_report.text(json_schema() if of == "events" else SCHEMA)])


# ---- the real kernel -------------------------------------------------------------------------------------------------

cli.add_command(kernel)
cli.add_command(trace)


def main() -> None:
    """Entry point of the script `migrate-vma`."""
    cli(prog_name="migrate-vma")
