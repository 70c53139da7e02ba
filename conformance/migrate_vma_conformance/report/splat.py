"""One violation as text that can be mailed: what the clause says, what broke it, the schedule in columns, how to replay it."""

from __future__ import annotations

from collections.abc import Sequence

from migrate_vma_conformance.report.columns import Execution, function_of, names_itself, render, told
from migrate_vma_conformance.report.layout import WIDTH, labelled, paragraph, shell_command
from migrate_vma_conformance.scenarios import SCENARIOS
from migrate_vma_conformance.verdict import ClauseVerdict, Counterexample
from migrate_vma_spec.registry import Clause


def replay_command(token: str) -> str:
    """The command that runs a schedule again."""
    return f"migrate-vma replay {token}"


def splat(verdict: ClauseVerdict, subject: str, generation: str, clause: Clause | None, shown: str | None = None) -> list[str]:
    """The violation of a verdict in lines of at most 80 columns. `shown` is a clause that the same execution was shown for."""
    example = verdict.counterexample
    if example is None:
        return []
    lines = ["=" * WIDTH, *paragraph(f"BUG: migrate_vma: {title(verdict, clause, example)}"), "-" * WIDTH]
    lines += [line for label, text in _facts(verdict, subject, generation, clause, example) for line in labelled(label, text)]
    if shown is not None:
        lines += [*labelled("steps", f"the same as those of {shown} above"), ""]
    else:
        lines += ["", *render(Execution(example.steps, example.stacks, example.first_step, example.cycle_start)), ""]
        lines += _stack(example)
    return [*lines, *shell_command(replay_command(example.token)), "=" * WIDTH]


def title(verdict: ClauseVerdict, clause: Clause | None, example: Counterexample) -> str:
    """`C41 reference before callback in do_swap_page`, as a kernel report begins."""
    named = f"{verdict.clause} {clause.name}" if clause is not None else verdict.clause
    if not example.stacks or example.cycle_start is not None or names_itself(example.steps[-1].event):
        return named
    function = function_of(example.stacks[-1])
    return f"{named} in {function}" if function else named


def _facts(
    verdict: ClauseVerdict, subject: str, generation: str, clause: Clause | None, example: Counterexample
) -> Sequence[tuple[str, str]]:
    facts = [("what", example.sentence)]
    if clause is not None:
        facts += [
            ("clause", clause.sentence),
            ("binds", f"{clause.party.value} ({verdict.level.name})"),
            ("source", clause.source),
        ]
        if clause.symptom:
            facts.append(("symptom", clause.symptom))
    facts.append(("subject", f"{subject} on {generation}"))
    return [*facts, ("schedule", _schedule(example))]


def _schedule(example: Counterexample) -> str:
    scenario = SCENARIOS.get(example.scenario)
    words = [f"scenario {example.scenario}"] if scenario is None else [f"{example.scenario}: {scenario.sentence.rstrip('.')}"]
    if example.preemption is not None:
        words.append(f"{example.preemption.value} preemption")
    words.append(f"{example.switches} forced switch{'' if example.switches == 1 else 'es'}")
    if example.cycle_start is not None:
        assumed = f", {example.fairness.value}ly fair" if example.fairness is not None else ""
        words.append(f"a cycle of {len(example.steps) - example.cycle_start} steps{assumed}")
    return ", ".join(words)


def _stack(example: Counterexample) -> list[str]:
    """Where the last step was made, innermost function first, as a kernel prints it."""
    if not example.stacks or example.cycle_start is not None:
        return []
    step, stack = example.steps[-1], told(example.stacks[-1])
    return [*labelled("last step", f"{' < '.join(stack)} on CPU {step.cpu}, task {step.task}"), ""]
