"""What came of the mutants: a table of clauses, or the same as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.mutation.mutants import Mutant
from tests.mutation.trials import End, Trial

EQUIVALENT = Path(__file__).with_name("equivalent.json")


def equivalents() -> dict[str, str]:
    """The mutants that no trace tells from the original, each with the reason."""
    found: dict[str, str] = json.loads(EQUIVALENT.read_text())
    return found


def unknown(reasons: Mapping[str, str], mutants: Sequence[Mutant]) -> list[str]:
    """The keys that name no mutant any more."""
    return sorted(set(reasons) - {mutant.key for mutant in mutants})


@define
class Row:
    """One clause, or all of them."""

    killed: int = 0
    equivalent: int = 0
    survivors: list[str] = field(factory=list)

    def add(self, trial: Trial, reasons: Mapping[str, str]) -> None:
        if trial.end is not End.SURVIVED:
            self.killed += 1
        elif trial.mutant.key in reasons:
            self.equivalent += 1
        else:
            self.survivors.append(trial.mutant.key)

    @property
    def percent(self) -> float:
        """Of those that a trace can tell from the original."""
        return 100 * self.killed / max(self.killed + len(self.survivors), 1)


@define
class Table:
    """Each mutant counts for every clause that it belongs to, and once in the whole."""

    whole: Row = field(factory=Row)
    clauses: dict[str, Row] = field(factory=lambda: defaultdict(Row))
    stale: list[str] = field(factory=list)
    """Mutants that are listed as equivalent, and were killed."""


def tabulate(trials: Sequence[Trial], reasons: Mapping[str, str]) -> Table:
    table = Table()
    for trial in trials:
        for row in (table.whole, *(table.clauses[clause] for clause in trial.mutant.clauses)):
            row.add(trial, reasons)
        if trial.end is not End.SURVIVED and trial.mutant.key in reasons:
            table.stale.append(trial.mutant.key)
    return table


def text(table: Table, seconds: float, of: int) -> str:
    """For people."""
    tried = table.whole.killed + table.whole.equivalent + len(table.whole.survivors)
    lines = [f"{'clause':8}{'killed':>8}{'survived':>10}{'equivalent':>12}{'percent':>9}"]
    lines += [_line(clause, row) for clause, row in sorted(table.clauses.items())]
    lines += [_line("all", table.whole), "", f"{tried} of {of} mutants in {seconds:.0f} s"]
    lines += [f"survived: {key}" for key in table.whole.survivors]
    lines += [f"equivalent, and yet killed: {key}" for key in table.stale]
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    return f"{name:8}{row.killed:8}{len(row.survivors):10}{row.equivalent:12}{row.percent:9.1f}"


def document(table: Table, seconds: float, of: int) -> dict[str, Any]:
    """For programs."""
    rows = {"all": table.whole, **dict(sorted(table.clauses.items()))}
    return {
        "mutants": of,
        "seconds": round(seconds, 1),
        "clauses": {name: _counts(row) for name, row in rows.items()},
        "survivors": table.whole.survivors,
        "stale": table.stale,
    }


def _counts(row: Row) -> dict[str, Any]:
    return {
        "killed": row.killed,
        "survived": len(row.survivors),
        "equivalent": row.equivalent,
        "percent": round(row.percent, 1),
    }
