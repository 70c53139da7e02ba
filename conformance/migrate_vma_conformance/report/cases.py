"""The violations of a report: each in its column, and which of them are worth a drawing.

A clause that is broken in several columns is drawn once, where a reader follows it most easily. An execution that is the
beginning of another one that is drawn, or is the same, is not drawn again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from migrate_vma_conformance.report.execution import Execution, rolled
from migrate_vma_conformance.report.table import clause_key
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.verdict import ClauseVerdict, Counterexample, Report, simplicity
from migrate_vma_impl.generations import GENERATIONS
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.registry import Clause


@frozen
class Case:
    """One clause that is broken in one column: by whom, in which generation, and how."""

    subject: str
    generation: str
    verdict: ClauseVerdict
    example: Counterexample

    @property
    def clause(self) -> str:
        return self.verdict.clause


def cases(report: Report) -> list[Case]:
    """Every violation, generation by generation, in the order of the clauses."""
    return [
        Case(report.subject, generation.name, verdict, verdict.counterexample)
        for generation in report.generations
        for verdict in sorted(generation.clauses.values(), key=lambda verdict: clause_key(verdict.clause))
        if verdict.counterexample is not None
    ]


def by_clause(found: Iterable[Case]) -> list[list[Case]]:
    """The cases of each clause, in the order of the clauses: the one to draw first, the others in the report's order.

    Drawn is what a released kernel does, where one breaks the clause; of those the execution that is simplest to follow, or
    the one that is drawn for another clause anyway.
    """
    groups: dict[str, list[Case]] = {}
    for case in found:
        groups.setdefault(case.clause, []).append(case)
    ids = sorted(groups, key=clause_key)
    first = {clause: min(groups[clause], key=_cost) for clause in ids}

    def cost(case: Case) -> tuple[object, ...]:
        others = [first[clause] for clause in ids if clause != case.clause]
        return drawn_with(case, others) is None, *_cost(case)

    for clause in ids:
        first[clause] = min(groups[clause], key=cost)
    return [_with_first(groups[clause], first[clause]) for clause in ids]


def _with_first(group: Sequence[Case], first: Case) -> list[Case]:
    return [first, *(case for case in group if case is not first)]


def _cost(case: Case) -> tuple[object, ...]:
    generation = GENERATIONS.get(case.generation)
    return generation is None or not generation.aliases, *simplicity(case.example)


def drawn_with(case: Case, drawn: Sequence[Case]) -> Case | None:
    """Of the cases that are drawn, the one whose steps begin with those of this case; None: it needs its own drawing."""
    first = next((at for at, other in enumerate(drawn) if other is case), len(drawn))
    longer = [other for at, other in enumerate(drawn) if other is not case and _contains(other, case, earlier=at < first)]
    return max(longer, key=lambda other: len(other.example.steps), default=None)


def _contains(whole: Case, part: Case, *, earlier: bool) -> bool:
    one, other = whole.example, part.example
    if one.first_step != other.first_step or whole.generation != part.generation:
        return False
    if len(one.steps) == len(other.steps):
        return earlier and (one.steps, one.cycle_start) == (other.steps, other.cycle_start)
    reach = len(rolled(execution_of(one, None)).steps)
    return other.cycle_start is None and len(other.steps) <= reach and one.steps[: len(other.steps)] == other.steps


def played_by(scenario: str, subject: str) -> str:
    """The driver that played in a scenario: its own, or the one under test."""
    known = SCENARIOS.get(scenario)
    return known.driver if known is not None and known.driver is not None else subject


def preemption_of(case: Case) -> Preemption | None:
    """The model of preemption in which the clause was broken; None: the records do not say."""
    tokens = {evidence.counterexample: evidence.preemption for evidence in case.verdict.scenarios}
    return case.example.preemption or tokens.get(case.example.token)


def execution_of(example: Counterexample, clause: Clause | None) -> Execution:
    """What a drawing of a counterexample tells."""
    waiting = clause is not None and clause.progress is not None
    return Execution(example.steps, example.stacks, example.first_step, example.cycle_start, waiting)
