"""One violation as text that can be mailed: what the clause says, what broke it, the schedule in columns, how to replay it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.report.callers import function_of, names_itself, told
from migrate_vma_conformance.report.cases import Case, execution_of, played_by, preemption_of
from migrate_vma_conformance.report.columns import render
from migrate_vma_conformance.report.layout import WIDTH, labelled, paragraph, shell_command
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.verdict import Counterexample
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.registry import Clause, Progress

RULE = "=" * WIDTH
"""Before and after a splat."""


def replay_command(token: str) -> str:
    """The command that runs a schedule again."""
    return f"migrate-vma replay {token}"


def splat(case: Case, clause: Clause | None, *, also: Sequence[Case] = (), drawn: Case | None = None) -> list[str]:
    """The violation in lines of at most 80 columns.

    Args:
        case: the violation.
        clause: what the registry says of its clause.
        also: the same clause in other columns, of which nothing but the way to replay them is told.
        drawn: another violation, in whose drawing the steps of this one are.
    """
    example = case.example
    lines = [RULE, *paragraph(f"BUG: migrate_vma: {title(case, clause)}"), "-" * WIDTH]
    told_there = {"schedule", "where"} if drawn is not None else set[str]()
    lines += [line for label, text in facts(case, clause) if label not in told_there for line in labelled(label, text)]
    if drawn is not None:
        lines += [*labelled("steps", elsewhere(case, drawn)), ""]
    else:
        lines += ["", *render(execution_of(example, clause), ever=why_for_ever(example, clause)), ""]
    lines += shell_command(replay_command(example.token))
    for other in also:
        lines += shell_command(f"also on {other.generation}: {replay_command(other.example.token)}")
    return [*lines, RULE]


def title(case: Case, clause: Clause | None) -> str:
    """`C41 reference before callback in do_swap_page`, as a kernel report begins."""
    example = case.example
    named = f"{case.clause} {clause.name}" if clause is not None else case.clause
    if not example.stacks or example.cycle_start is not None or names_itself(example.steps[-1].event):
        return named
    function = function_of(example.stacks[-1])
    return f"{named} in {function}" if function else named


def facts(case: Case, clause: Clause | None) -> Iterator[tuple[str, str]]:
    """What is to be said of a violation before its steps: a label and a text each."""
    yield "what", case.example.sentence
    if clause is not None:
        yield "clause", clause.sentence
        yield "binds", f"{clause.party.value} ({case.verdict.level.name})"
        yield "source", clause.source
        if clause.symptom:
            yield "symptom", clause.symptom
    driver = played_by(case.example.scenario, case.subject)
    yield "subject", f"{driver} on {case.generation}"
    yield "schedule", _schedule(case, driver)
    where = _where(case.example)
    if where:
        yield "where", where


def _schedule(case: Case, driver: str) -> str:
    example = case.example
    scenario = SCENARIOS.get(example.scenario)
    words = [f"scenario {example.scenario}"] if scenario is None else [f"{example.scenario}: {scenario.sentence.rstrip('.')}"]
    if driver != case.subject:
        words.append(f"always with the driver {driver}")
    model = preemption_of(case)
    if model is not None and model is not Preemption.FULL:
        words.append(f"{model.value} preemption")
    if example.switches:
        words.append(f"{example.switches} forced switch{'' if example.switches == 1 else 'es'}")
    return ", ".join(words)


def why_for_ever(example: Counterexample, clause: Clause | None) -> str:
    """Which fairness allows the cycle; empty where there is none."""
    if example.cycle_start is None or example.fairness is None:
        return ""
    short = ", while memory is short" if clause is not None and clause.progress is Progress.ENDLESS_RETRY else ""
    if example.fairness is Fairness.STRONG:
        return f"fair even under strong fairness{short}"
    return f"fair under weak fairness{short}; strong fairness may exclude it"


def elsewhere(case: Case, drawn: Case) -> str:
    """Where the steps of a violation are drawn, if not for itself."""
    count = len(case.example.steps)
    whole = count == len(drawn.example.steps)
    return f"those drawn for {drawn.clause} on {drawn.generation}{'' if whole else f', up to step {count}'}"


def _where(example: Counterexample) -> str:
    """Where the last step was made, innermost function first, as a kernel prints it, as far as a line holds it."""
    names = told(example.stacks[-1]) if example.stacks and example.cycle_start is None else []
    room = WIDTH - 14
    for count in range(len(names), 0, -1):
        found = " < ".join([*names[:count], *(["..."] if count < len(names) else [])])
        if len(found) <= room:
            return found
    return ""
