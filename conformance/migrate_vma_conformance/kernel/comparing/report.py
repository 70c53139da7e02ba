"""What a comparison found: for people, and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Several
from typing import Any

from migrate_vma_conformance.kernel.comparing.compare import Difference
from migrate_vma_conformance.kernel.comparing.guests import Asked, Outcome, Played, exit_code
from migrate_vma_conformance.kernel.comparing.known import KNOWN
from migrate_vma_conformance.kernel.comparing.operations import Observation, words_of
from migrate_vma_conformance.report.layout import paragraph

LAST_LINES = 12
"""Of a console, that are shown."""


def lines(outcomes: Several[Outcome], asked: Asked) -> list[str]:
    """The report for people."""
    return [line for outcome in outcomes for line in _outcome(outcome, asked)]


def _outcome(outcome: Outcome, asked: Asked) -> Iterable[str]:
    tally = outcome.tally
    yield f"guest {outcome.guest}: Linux {outcome.release}, module {asked.module.value}, seed {asked.seed}"
    yield f"  {tally.sequences:,} sequences, {tally.operations:,} operations: {tally.agreed:,} agree, {len(tally.found):,} differ"
    for known in KNOWN:
        if tally.known[known.id]:
            yield from paragraph(f"known {known.id}, {tally.known[known.id]:,} times: {known.what}", indent="  ", hang="    ")
            yield from _difference(tally.examples[known.id])
    for difference, count in outcome.differences:
        yield f"  DIFFERS, {count:,} times: {difference.kind.partition(': ')[2]}"
        yield from _difference(difference)
    if outcome.lost is not None:
        first, *others = outcome.lost.splitlines()
        yield from paragraph(f"lost: {first}", indent="  ", hang="    ")
        yield from (f"    {line}" for line in others)
    if outcome.interrupted:
        yield "  interrupted: this is what was found until then"


def _difference(difference: Difference) -> Iterable[str]:
    """A script that can be run again, and the three answers to its last operation."""
    yield from (f"    {words_of(operation)}" for operation in difference.sequence)
    yield from _answers(difference)


def _answers(difference: Difference) -> Iterable[str]:
    case = difference.case
    if case.kernel is not None:
        yield f"      kernel: {case.kernel}"
    yield f"      core:   {case.core}"
    yield f"      model:  {difference.expected}"
    yield from paragraph(difference.why, indent="      ", hang="        ")
    for who, seen in (("the kernel", case.kernel), ("the core", case.core)):
        if seen is not None and seen.evidence:
            yield f"      {who} ended with:"
            yield from (f"        {line}" for line in seen.evidence.splitlines()[-LAST_LINES:])


def played_lines(played: Several[Played]) -> list[str]:
    """Every operation of a script with its answers, guest by guest."""
    return [line for each in played for line in _played(each)]


def _played(played: Played) -> Iterable[str]:
    yield f"guest {played.guest}: Linux {played.release}"
    width = max((len(words_of(operation)) for operation in played.sequence), default=0)
    for operation, kernel, core, model in zip(played.sequence, played.kernel, played.core, played.model, strict=True):
        yield f"  {words_of(operation):<{width}}  {kernel}"
        if str(kernel) != str(core):
            yield f"  {'':<{width}}  core: {core}"
        refusal = model.refusal(kernel)
        if refusal is not None:
            yield f"  {'':<{width}}  the model refuses {refusal}"
    if played.difference is None:
        yield "  kernel, core and model agree"
        return
    known = "" if played.difference.known is None else f" (known: {played.difference.known.id})"
    yield f"  DIFFERS at {words_of(played.difference.operation)}{known}"
    yield from _answers(played.difference)


# ---- for programs --------------------------------------------------------------------------------------------------------


def document(outcomes: Several[Outcome], asked: Asked) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "sequences": asked.sequences,
        "operations": asked.shape.operations,
        "seed": asked.seed,
        "module": asked.module.value,
        "guests": [_guest(outcome) for outcome in outcomes],
        "exit": exit_code(outcomes),
    }


def _guest(outcome: Outcome) -> dict[str, Any]:
    tally = outcome.tally
    return {
        "guest": outcome.guest,
        "release": outcome.release,
        "sequences": tally.sequences,
        "operations": tally.operations,
        "agreed": tally.agreed,
        "known": [{"id": name, "count": count, **_told(tally.examples[name])} for name, count in sorted(tally.known.items())],
        "differences": [{"kind": each.kind, "count": count, **_told(each)} for each, count in outcome.differences],
        "lost": outcome.lost,
        "interrupted": outcome.interrupted,
    }


def _told(difference: Difference) -> dict[str, Any]:
    case = difference.case
    return {
        "script": [words_of(operation) for operation in difference.sequence],
        "kernel": None if case.kernel is None else str(case.kernel),
        "core": str(case.core),
        "model": str(difference.expected),
        "why": difference.why,
        "evidence": _evidence(case.kernel, case.core),
    }


def _evidence(*seen: Observation | None) -> list[str]:
    return next((each.evidence for each in seen if each is not None and each.evidence), "").splitlines()


def played_document(played: Several[Played]) -> dict[str, Any]:
    """A script as JSON values."""
    return {
        "guests": [
            {
                "guest": each.guest,
                "release": each.release,
                "operations": [
                    {"operation": words_of(operation), "kernel": str(kernel), "core": str(core), "model": str(model)}
                    for operation, kernel, core, model in zip(each.sequence, each.kernel, each.core, each.model, strict=True)
                ],
                "known": None if each.difference is None or each.difference.known is None else each.difference.known.id,
                "difference": None if each.difference is None else _told(each.difference),
            }
            for each in played
        ]
    }
