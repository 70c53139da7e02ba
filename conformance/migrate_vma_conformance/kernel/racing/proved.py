"""What the explorer proves of a race that is run on a real kernel: the kit's own check of the same race in the simulated one.

Rules:
- Nothing is said here that a check did not find: a generation's name decides nothing.
- The explorer has as many CPUs as its scenario has (two): what it says of more threads is what two of them can do already.
"""

from __future__ import annotations

from attrs import frozen

from migrate_vma_conformance import kit
from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.options import CheckOptions
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.verdict import ClauseVerdict, Verdict
from migrate_vma_impl.machine.system import Preemption


@frozen
class Proved:
    """The check of one scenario in one generation.

    Attributes:
        complete: every interleaving was visited.
        holds: clauses that hold.
        violated: what is broken, each in words.
    """

    generation: str
    scenario: str
    states: int
    complete: bool
    holds: tuple[str, ...]
    violated: tuple[str, ...]


def prove(generation: str, scenario: str) -> Proved:
    """Check one scenario of `test_hmm` in one generation, in this process's own time (a few seconds)."""
    options = CheckOptions(preemption=(Preemption.FULL,), scenarios=(scenario,))
    verdicts = kit.check("test_hmm", [generation], options).verdicts
    searched = [evidence for verdict in verdicts for evidence in verdict.scenarios]
    return Proved(
        generation=generation,
        scenario=scenario,
        states=max((evidence.states for evidence in searched), default=0),
        complete=bool(searched) and all(evidence.complete for evidence in searched),
        holds=tuple(verdict.clause for verdict in verdicts if verdict.verdict is Verdict.HOLDS),
        violated=tuple(_told(verdict) for verdict in verdicts if verdict.verdict is Verdict.VIOLATED),
    )


def _told(verdict: ClauseVerdict) -> str:
    clause = judged_clauses()[verdict.clause]
    cycle = verdict.counterexample is not None and verdict.counterexample.cycle_start is not None
    return f"{clause.id} ({clause.name}){': it can go round for ever' if cycle else ''}"


def sentence(proved: Proved) -> str:
    """In words."""
    about = SCENARIOS[proved.scenario].sentence.rstrip(".")
    how = "every interleaving" if proved.complete else "a part of the interleavings"
    found = f"violated: {'; '.join(proved.violated)}; {len(proved.holds)} clauses hold" if proved.violated else _all_hold(proved)
    return f"{proved.scenario} ({about}), {how}, {proved.states:,} states: {found}."


def _all_hold(proved: Proved) -> str:
    progress = [clause for clause in proved.holds if judged_clauses()[clause].progress is not None] if proved.holds else []
    among = f", progress ({', '.join(progress)}) among them" if progress else ""
    return f"{len(proved.holds)} clauses hold{among}" if proved.holds else "nothing is known"
