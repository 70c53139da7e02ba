"""What races on a guest came to, beside what the explorer proves of the same races: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from attrs import asdict, frozen

from migrate_vma_conformance.kernel.guests import Guest
from migrate_vma_conformance.kernel.racing.proved import Proved, prove, sentence
from migrate_vma_conformance.kernel.racing.races import Run, run
from migrate_vma_conformance.kernel.racing.rounds import RaceKind
from migrate_vma_conformance.kernel.witness.console import last_lines
from migrate_vma_conformance.kernel.witness.witness import Witness
from migrate_vma_conformance.report import matrix
from migrate_vma_conformance.report.layout import paragraph

Told = Callable[[str, int], None]
"""Hears of which run how many rounds are done."""


@frozen
class RaceReport:
    """The races on one guest. `proved` is by the explorer, for each of the races, of the guest's generation."""

    guest: str
    release: str
    generation: str
    runs: tuple[Run, ...]
    proved: tuple[Proved, ...]

    @property
    def holds(self) -> bool:
        return all(each.holds for each in self.runs)

    @property
    def outlived(self) -> bool:
        """The guest did not end."""
        return all(each.ended is None for each in self.runs)


@frozen
class Asked:
    """Which races, with how many threads each, and how many rounds of each."""

    kinds: Sequence[RaceKind]
    threads: Sequence[int]
    rounds: int


def race(guest: Guest, witness: Witness, asked: Asked, told: Told) -> RaceReport:
    """Run each race with each number of threads, and have each explored. A guest that ended is booted again for the next."""
    runs: list[Run] = []
    for kind in asked.kinds:
        for threads in asked.threads:
            if witness.ended is not None:
                witness.restart()
            runs.append(run(witness, kind, threads, asked.rounds, partial(told, f"{kind.name}, {threads} threads")))
    proved = tuple(prove(guest.generation, kind.scenario) for kind in asked.kinds)
    return RaceReport(guest.name, guest.release, guest.generation, tuple(runs), proved)


# ---- for programs ------------------------------------------------------------------------------------------------------


def document(report: RaceReport) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "guest": report.guest,
        "release": report.release,
        "generation": report.generation,
        "holds": report.holds,
        "runs": [_run_document(each) for each in report.runs],
        "explored": [asdict(each) for each in report.proved],
    }


def _run_document(run: Run) -> dict[str, Any]:
    ended = run.ended
    return {
        **asdict(run, filter=lambda attribute, _: attribute.name != "ended"),
        "entries_per_migration": run.entries_per_migration,
        "minor_per_read": run.minor_per_read,
        "ended": None if ended is None else {"reason": ended.reason.value, "said": ended.said, "console": ended.console},
    }


# ---- for people --------------------------------------------------------------------------------------------------------

_HEADINGS = ("rounds", "contended", "entries", "per migration", "freed", "minor faults per read", "longest read (ms)", "held")


def lines(report: RaceReport) -> list[str]:
    """The report as text."""
    title = f"Races on guest {report.guest} (Linux {report.release}): threads on one device page, a new one each round."
    table = matrix.render(_HEADINGS, [_row(each) for each in report.runs])
    parts = [
        paragraph(title),
        table,
        [line for each in report.runs for line in _complaints(each)] or ["Every invariant held in every round."],
        paragraph(_KEY),
        [f"Explored, of generation {report.generation}:", *(line for each in report.proved for line in _proof(each))],
    ]
    return [line for part in parts for line in ("", *part)][1:]


_KEY = (
    "contended: rounds in which more than one reader faulted. entries: into the driver's fault callback, which is to bring the"
    " page back. per migration: such entries for each page that came back. freed: device pages given back. How often threads meet"
    " differs from run to run, and on a busy machine."
)


def _row(run: Run) -> matrix.Row:
    ratio, minor = run.entries_per_migration, run.minor_per_read
    cells = (
        f"{run.rounds}",
        f"{run.contended}",
        f"{run.entries}",
        "" if ratio is None else f"{ratio:.3f}",
        f"{run.frees}",
        "" if minor is None else f"{minor:.2f}",
        f"{run.longest / 1000:.1f}",
        "ENDED" if run.ended is not None else "yes" if run.holds else "NO",
    )
    return matrix.Row(f"{run.race}, {run.threads} threads", cells)


def _complaints(run: Run) -> Iterable[str]:
    who = f"{run.race}, {run.threads} threads"
    for each in run.broken:
        yield from paragraph(f"{who}: {each}", hang="  ")
    if run.ended is not None:
        yield from paragraph(f"{who}: the guest ended ({run.ended.reason.value}): {run.ended.said}", hang="  ")
        yield from (f"  | {line}" for line in last_lines(run.ended.console).splitlines())


def _proof(proved: Proved) -> list[str]:
    return paragraph(sentence(proved), indent="  ", hang="    ")
