"""Mutation testing of the contract's predicates by tests/spec.

    python -m tests.mutation --sample 200   as many mutants, the same for the same --seed
    python -m tests.mutation --all          every one
    python -m tests.mutation --clause C14   those of a clause

The exit code is 1 where fewer than --at-least percent of the mutants are killed, or the list of equivalent ones is not right.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutation.mutants import Mutant, all_mutants
from tests.mutation.report import document, equivalents, tabulate, text, unknown
from tests.mutation.trials import End, Trial, Trials

SPEC = Path(__file__).parents[1] / "spec"
JUDGING = ("test_clauses.py", "test_edges.py", "test_no_false_alarms.py", "test_registry.py", "test_spoilt.py")
"""The tests that judge traces by the clauses; the others do not come to a predicate."""
PYTEST = ["-q", "--no-header", "-p", "no:cacheprovider", "-o", "timeout=0", "--hypothesis-seed=0"]


def chosen(mutants: Sequence[Mutant], given: argparse.Namespace) -> list[Mutant]:
    """What the arguments ask for, in the order of the contract."""
    of = [mutant for mutant in mutants if not given.clause or set(given.clause) & set(mutant.clauses)]
    of = [mutant for mutant in of if given.key in mutant.key]
    if given.all or given.clause or given.key or given.sample >= len(of):
        return of
    places = sorted(random.Random(given.seed).sample(range(len(of)), given.sample))
    return [of[place] for place in places]


def tell(trial: Trial) -> None:
    """A sign of life."""
    sys.stderr.write({End.KILLED: ".", End.TIME: "t", End.SURVIVED: "S"}[trial.end])
    sys.stderr.flush()


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Do the tests notice a change of a predicate?")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="so many (200)")
    parser.add_argument("--seed", type=int, default=0, help="which ones are drawn (0)")
    parser.add_argument("--clause", action="append", default=[], metavar="C14", help="all of a clause; may be repeated")
    parser.add_argument("--key", default="", metavar="TEXT", help="all whose key has this in it")
    parser.add_argument("--tests", nargs="+", default=[str(SPEC / name) for name in JUDGING], metavar="PATH", help="other tests")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time (2)")
    parser.add_argument("--at-least", type=float, default=80.0, metavar="PERCENT", help="of those that can be told (80)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON, too")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    given, mutants, reasons = arguments(words), all_mutants(), equivalents()
    gone = unknown(reasons, mutants)
    if gone:
        sys.stderr.write("".join(f"equivalent.json: no mutant is called so: {key}\n" for key in gone))
        return 1
    trials = Trials(chosen(mutants, given), given.jobs, tell)
    begin = time.monotonic()
    pytest.main([*PYTEST, *given.tests], plugins=[trials])
    if trials.broken or not trials.trials:
        sys.stderr.write("".join(f"fails without a mutant: {test}\n" for test in trials.broken) or "nothing was run\n")
        return 1
    table, seconds = tabulate(trials.trials, reasons), time.monotonic() - begin
    sys.stdout.write(f"\n{text(table, seconds, len(mutants))}\n")
    if given.json is not None:
        given.json.write_text(json.dumps(document(table, seconds, len(mutants)), indent=2) + "\n")
    return int(bool(table.stale) or table.whole.percent < given.at_least)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
