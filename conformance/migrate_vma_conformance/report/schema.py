"""The published schema of a JSON report, and the check of a report that somebody else made.

`migrate-vma check --format json` prints a document of this schema, and `--output` writes the same as report.json. Readers ignore
keys that they do not know: a key may be added, none is renamed or removed.
"""

from __future__ import annotations

import enum
from typing import Any

from migrate_vma_conformance.errors import KitError, UsageError
from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.verdict import EvidenceKind, Verdict
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.registry import Level

_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}


def _words(kind: type[enum.Enum]) -> dict[str, Any]:
    return {"enum": [member.value for member in kind]}


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_SCENARIO = _record(
    name=_TEXT,
    tasks={"type": "array", "items": _TEXT},
    preemption=_words(Preemption),
    fairness=_words(Fairness),
    states=_COUNT,
    executions=_COUNT,
    complete={"type": "boolean"},
    reached={"type": "boolean"},
    counterexample=_or_null(_TEXT),
)

_EVIDENCE = _record(
    kind=_words(EvidenceKind),
    executions=_COUNT,
    scenarios={"type": "array", "items": _SCENARIO},
)

_HOLDS = {
    "if": {"properties": {"verdict": {"const": Verdict.HOLDS.value}}},
    "then": {"properties": {"evidence": {"properties": {
        "kind": {"const": EvidenceKind.EXHAUSTIVE.value},
        "scenarios": {"items": {"properties": {"complete": {"const": True}}}},
    }}}},
}  # fmt: skip

_VIOLATED = {
    "if": {"properties": {"verdict": {"const": Verdict.VIOLATED.value}}},
    "then": {"properties": {"counterexample": _TEXT}},
    "else": {"properties": {"counterexample": {"type": "null"}}},
}

_CLAUSE = _record(
    verdict=_words(Verdict),
    level=_words(Level),
    evidence=_EVIDENCE,
    counterexample=_or_null(_TEXT),
    holds_under=_or_null(_words(Fairness)),
    reason=_TEXT,
) | {"allOf": [_HOLDS, _VIOLATED]}

_GENERATION = _record(clauses={"type": "object", "additionalProperties": _CLAUSE})

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of migrate-vma check",
    **_record(
        subject=_TEXT,
        generations={"type": "object", "additionalProperties": _GENERATION},
        exit={"enum": [0, 1, 3]},
        seed={"type": "integer"},
        command=_TEXT,
        not_covered={"type": "array", "items": _TEXT},
    ),
}


def check_document(document: Any, source: str) -> None:
    """Refuse a document that is not a report.

    Args:
        document: what JSON gave.
        source: where it came from, for the message.

    Raises:
        UsageError: it does not follow the schema; says where.
        KitError: the package `jsonschema` (extra `report`) is not installed.
    """
    try:
        from jsonschema import Draft202012Validator  # noqa: PLC0415  (an extra: only readers of foreign reports need it)
    except ImportError as missing:
        raise KitError("reading a report needs the extra `report`: pip install 'migrate-vma-conformance[report]'") from missing
    validator: Any = Draft202012Validator(SCHEMA)
    error = next(iter(validator.iter_errors(document)), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "its top level"
        raise UsageError(source, "report", f"at {where}: {error.message[:200]}", "a report of `migrate-vma check --format json`")
