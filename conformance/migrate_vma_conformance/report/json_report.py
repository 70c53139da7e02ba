"""The reports for programs: the same records as JSON, by the schema of `schema.py`. Key order and formatting never vary."""

from __future__ import annotations

import json
from typing import Any

from migrate_vma_conformance.report.pretty import ordered
from migrate_vma_conformance.verdict import ClauseVerdict, Replay, Report, ScenarioEvidence, exit_code, exit_of
from migrate_vma_spec.schema import to_json


def report_document(report: Report, *, strict: bool = False) -> dict[str, Any]:
    """A check as JSON values. What a run takes in seconds is left out: two runs of one check give one document."""
    return {
        "subject": report.subject,
        "generations": {
            generation.name: {"clauses": {verdict.clause: clause_document(verdict) for verdict in ordered(generation)}}
            for generation in report.generations
        },
        "exit": exit_code(report, strict=strict),
        "seed": report.seed,
        "command": report.command,
        "not_covered": list(report.not_covered),
    }


def clause_document(verdict: ClauseVerdict) -> dict[str, Any]:
    """One verdict. `counterexample` is the token that replays it."""
    return {
        "verdict": verdict.verdict.value,
        "level": verdict.level.value,
        "evidence": {
            "kind": verdict.evidence.value,
            "executions": verdict.executions,
            "scenarios": [_scenario(scenario) for scenario in verdict.scenarios],
        },
        "counterexample": None if verdict.counterexample is None else verdict.counterexample.token,
        "holds_under": None if verdict.holds_under is None else verdict.holds_under.value,
        "reason": verdict.reason,
    }


def replay_document(replay: Replay, *, strict: bool = False) -> dict[str, Any]:
    """A replay as JSON values: the verdict, and the trace by the schema of events, with the function that made each step."""
    return {
        "token": replay.token,
        "subject": replay.subject,
        "generation": replay.generation,
        "clause": replay.verdict.clause,
        **clause_document(replay.verdict),
        "sentence": replay.verdict.counterexample.sentence if replay.verdict.counterexample is not None else "",
        "first_step": replay.first_step,
        "cycle_start": replay.cycle_start,
        "trace": [to_json(step) for step in replay.steps],
        "stacks": [list(stack) for stack in replay.stacks],
        "state": list(replay.state),
        "exit": exit_of([replay.verdict], strict=strict),
    }


def _scenario(scenario: ScenarioEvidence) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "tasks": list(scenario.tasks),
        "preemption": scenario.preemption.value,
        "fairness": scenario.fairness.value,
        "states": scenario.states,
        "executions": scenario.executions,
        "complete": scenario.complete,
        "reached": scenario.reached,
        "counterexample": scenario.counterexample or None,
    }


def text(document: Any) -> str:
    """A document as it is printed and written to files."""
    return json.dumps(document, indent=2, ensure_ascii=True)
