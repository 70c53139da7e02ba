"""Distrust of the kit's own contract: one trace, judged by its clauses and by its axioms, which know nothing of each other.

Rules:
- Where an axiom is broken, one of the clauses that it names is; where a clause is broken that an axiom covers, so is the axiom.
- Either may see a fault first, and a clause looks at some steps only: whole executions are compared, never the beginning of one.
- A disagreement blames nobody's driver or core. It is an error of the kit: one of the two formulations is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from attrs import frozen

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.errors import KitError, listed
from migrate_vma_spec.axioms import AXIOMS, Axiom, Violation, judge_trace
from migrate_vma_spec.events import Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import Capability


@frozen
class Disagreement:
    """An axiom without a clause, or a clause without the axiom that covers it (`steps` are empty then)."""

    axiom: str
    sentence: str
    steps: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = f" (steps {listed(map(str, self.steps))})" if self.steps else ""
        return f"{self.axiom}: {self.sentence}{where}"


class Distrust(KitError):
    """The two formulations of the contract disagree over a trace."""

    def __init__(self, disagreements: tuple[Disagreement, ...]) -> None:
        super().__init__(disagreements)
        self.disagreements = disagreements

    def __str__(self) -> str:
        said = "; ".join(map(str, self.disagreements))
        return f"The clauses and the axioms disagree over one trace, so one of them is wrong. {said}."


def compare(violations: Sequence[Violation], broken: Collection[str]) -> tuple[Disagreement, ...]:
    """Where the axioms that a whole trace breaks and the clauses that it breaks do not go together; one word for each axiom."""
    first = {violation.axiom: violation for violation in reversed(violations)}
    found: list[Disagreement] = []
    for axiom in AXIOMS:
        violation = first.get(axiom.id)
        if violation is not None and not set(axiom.clauses) & set(broken):
            found.append(Disagreement(axiom.id, f"{violation.sentence}, and {_silent(axiom)}", violation.steps))
        if violation is None:
            alone = [clause for clause in axiom.covers if clause in broken]
            found.extend(Disagreement(axiom.id, f"it holds, and {clause}, all of which it says, is broken") for clause in alone)
    return tuple(found)


def _silent(axiom: Axiom) -> str:
    return f"none of {listed(axiom.clauses)} is broken" if axiom.clauses else "so the trace contradicts itself"


def judge_twice(
    trace: Sequence[Step], capabilities: Iterable[Capability] = (), *, ended: bool = True
) -> tuple[dict[str, str], tuple[Violation, ...]]:
    """The clauses that a trace breaks, with what is said of each, and what breaks the axioms.

    Args:
        trace: from the first step on.
        capabilities: what the subject offers.
        ended: no task takes a step any more.
    """
    judge = Judge(capabilities, judged_clauses().values())
    broken = dict(judge.feed_all(trace))
    if ended:
        broken.update(judge.end())
    return broken, judge_trace(trace, ended=ended)


def check_unbroken(trace: Sequence[Step]) -> None:
    """That a whole execution in which no clause is broken breaks no axiom.

    Raises:
        Distrust: it does.
    """
    found = compare(judge_trace(trace, ended=True), ())
    if found:
        raise Distrust(found)
