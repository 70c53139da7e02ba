"""The conformance suite as tests, for a driver that is not ours.

    pytest --pyargs migrate_vma_conformance.suite --migrate-vma-driver package.module:factory

Rules:
- One test for each clause, all from one check of the driver in the session, and one test that lives through drawn workloads.
- A test passes only where the check says `holds` or `no-violation`. What is unknown fails and says so; what does not apply, or
  was never reached, is skipped with the reason; a broken SHOULD is an expected failure, as it is for the exit code of
  `migrate-vma check`.
- The driver runs in child processes with limits: one that never awaits ends a test, not the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.machine import Examination, Told, examine
from migrate_vma_conformance.options import CheckOptions, Profile
from migrate_vma_conformance.pool import Lost, run_one
from migrate_vma_conformance.report.cases import cases
from migrate_vma_conformance.report.splat import splat
from migrate_vma_conformance.verdict import ClauseVerdict, Report, Verdict
from migrate_vma_spec.registry import Level

EXAMPLES: Mapping[Profile, int] = {Profile.QUICK: 50, Profile.DEFAULT: 500, Profile.DEEP: 20_000}
"""Drawn workloads; twenty milliseconds each or so."""
SECONDS: Mapping[Profile, float] = {Profile.QUICK: 120.0, Profile.DEFAULT: 600.0, Profile.DEEP: 7200.0}
"""What they may take, wall clock, with what is found made smaller."""


@pytest.mark.parametrize("clause", judged_clauses())
def test_clause(clause: str, migrate_vma_report: Report) -> None:
    verdicts = [generation.clauses[clause] for generation in migrate_vma_report.generations if clause in generation.clauses]
    broken = [verdict for verdict in verdicts if verdict.verdict is Verdict.VIOLATED]
    if broken:
        _say_broken(clause, migrate_vma_report, broken)
    unknown = _reasons(verdicts, Verdict.INCONCLUSIVE)
    if unknown:
        pytest.fail(f"{clause}: {unknown}", pytrace=False)
    if not any(verdict.verdict in {Verdict.HOLDS, Verdict.NO_VIOLATION} for verdict in verdicts):
        pytest.skip(_reasons(verdicts) or f"{clause} was not judged")


def _say_broken(clause: str, report: Report, broken: Sequence[ClauseVerdict]) -> None:
    about = judged_clauses()[clause]
    lines = [line for case in cases(report) if case.clause == clause for line in splat(case, about)]
    _tell([Told("\n".join([f"{clause} {about.name}", *lines]), binding=any(verdict.level is Level.MUST for verdict in broken))])


def _reasons(verdicts: Sequence[ClauseVerdict], outcome: Verdict | None = None) -> str:
    """Why the verdicts are what they are, each reason once."""
    found = [f"{verdict.verdict.value}: {verdict.reason}" for verdict in verdicts if outcome in {None, verdict.verdict}]
    return "; ".join(dict.fromkeys(found))


def test_drawn_workloads(
    migrate_vma_driver: str, migrate_vma_generation: str, migrate_vma_options: CheckOptions, migrate_vma_report: Report
) -> None:
    """What the check has found broken is not looked for again."""
    profile = migrate_vma_options.profile
    found: list[Told] = []
    for generation in migrate_vma_report.generations:
        name, adapted, _ = generation.name.partition("+adapted")
        known = frozenset(clause for clause, verdict in generation.clauses.items() if verdict.verdict is Verdict.VIOLATED)
        asked = Examination(
            migrate_vma_driver, name, EXAMPLES[profile], seed=migrate_vma_options.seed, allow=known, adapted=bool(adapted)
        )
        result = run_one(examine, asked, seconds=SECONDS[profile])
        found += [Told(f"on {generation.name}: {result.reason}", binding=True)] if isinstance(result, Lost) else result
    _tell(found)


def _tell(found: Sequence[Told]) -> None:
    text = "\n\n".join(told.text for told in found)
    if any(told.binding for told in found):
        pytest.fail(text, pytrace=False)
    if found:
        pytest.xfail(text)
