"""Traces as JSON Lines: one step per line, with a versioned JSON Schema that is made from the event classes.

Rules:
- The classes are the only source: a field's annotation says how it is written, and there is no second list of fields.
- Enums are written by name (`DEVICE_PRIVATE`), flags as a list of names, entries of src and dst as the integers that they are, an
  absent value as null. A field that has its default may be left out when read, and is always written.
- Nothing in a line is run or imported: an event is looked up by name in a fixed table.
- What does not fit is a `TraceError` that names the place and shows the value.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import NOTHING, Attribute, fields, frozen, has

from migrate_vma_spec import events
from migrate_vma_spec.events import VERSION, Event, Step

EVENTS: dict[str, type[Event]] = {
    name: kind
    for name, kind in vars(events).items()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event and kind.__module__ == events.__name__
}
"""Every kind of event by the name that a trace gives it."""

HEADER = "migrate_vma_trace"
"""The key of a trace file's first line; its value is the version of the vocabulary."""


class TraceError(ValueError):
    """A trace is not what the schema says. The message names the place and shows the value."""


@frozen
class _Field:
    name: str
    annotation: Any
    default: Any


_FIELDS: dict[type[Any], tuple[_Field, ...]] = {}


def _fields(kind: type[Any]) -> tuple[_Field, ...]:
    if kind not in _FIELDS:
        hints = typing.get_type_hints(kind)
        attributes: tuple[Attribute[Any], ...] = fields(kind)
        _FIELDS[kind] = tuple(_Field(each.name, hints[each.name], each.default) for each in attributes)
    return _FIELDS[kind]


def _flags(value: enum.Flag) -> list[str]:
    return [str(flag.name) for flag in type(value) if flag in value and flag.value]


def _write(value: Any) -> Any:
    """A value of an event as JSON."""
    if isinstance(value, enum.Flag):
        return _flags(value)
    if isinstance(value, enum.Enum):
        return value.name
    if value.__class__ is tuple:
        return [_write(item) for item in value]
    return _write_record(value) if has(value.__class__) else value


def _write_record(record: Any) -> dict[str, Any]:
    return {field.name: _write(getattr(record, field.name)) for field in _fields(record.__class__)}


def to_json(step: Step) -> dict[str, Any]:
    """One step as a JSON object: its task and CPU, the event's name, and the event's fields."""
    return {"task": step.task, "cpu": step.cpu, "event": type(step.event).__name__, **_write_record(step.event)}


def _mismatch(where: str, wanted: str, value: object) -> TraceError:
    return TraceError(f"{where}: {wanted} expected, found {json.dumps(value, default=repr)}")


def _read_enum(kind: type[enum.Enum], value: object, where: str) -> enum.Enum:
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    raise _mismatch(where, f"one of {', '.join(kind.__members__)}", value)


def _read_flags(kind: type[enum.Flag], value: object, where: str) -> enum.Flag:
    if not isinstance(value, list):
        raise _mismatch(where, "a list of flags", value)
    result = kind(0)
    for place, name in enumerate(typing.cast("list[object]", value)):
        flag = _read_enum(kind, name, f"{where}[{place}]")
        result |= typing.cast("enum.Flag", flag)
    return result


def _read_record(kind: type[Any], value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    given = typing.cast("dict[str, object]", value)
    arguments: dict[str, Any] = {}
    for field in _fields(kind):
        if field.name in given:
            arguments[field.name] = _read(field.annotation, given[field.name], f"{where}.{field.name}")
        elif field.default is NOTHING:
            raise TraceError(f"{where}: {field.name} is missing")
    unknown = sorted(given.keys() - {field.name for field in _fields(kind)})
    if unknown:
        raise TraceError(f"{where}: no field {unknown[0]!r}, which is {json.dumps(given[unknown[0]], default=repr)}")
    return kind(**arguments)


def _read_plain(kind: type[Any], value: object, where: str) -> Any:
    if (kind is int and isinstance(value, bool)) or not isinstance(value, kind):
        raise _mismatch(where, {int: "an integer", str: "a string", bool: "true or false"}[kind], value)
    return value


def _read_tuple(annotation: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _mismatch(where, "a list", value)
    item = typing.get_args(annotation)[0]
    items = typing.cast("list[object]", value)
    return tuple(_read(item, each, f"{where}[{place}]") for place, each in enumerate(items))


def _optional(annotation: Any) -> Any | None:
    """X of `X | None`, or None for another annotation."""
    if isinstance(annotation, types.UnionType):
        return next(each for each in typing.get_args(annotation) if each is not types.NoneType)
    return None


def _read(annotation: Any, value: object, where: str) -> Any:
    inner = _optional(annotation)
    if inner is not None:
        return None if value is None else _read(inner, value, where)
    if typing.get_origin(annotation) is tuple:
        return _read_tuple(annotation, value, where)
    if issubclass(annotation, enum.Flag):
        return _read_flags(annotation, value, where)
    if issubclass(annotation, enum.Enum):
        return _read_enum(annotation, value, where)
    return _read_record(annotation, value, where) if has(annotation) else _read_plain(annotation, value, where)


def from_json(value: object, where: str = "step") -> Step:
    """The step that a JSON object stands for.

    Args:
        value: what a JSON reader made of one line.
        where: how errors name the place.

    Raises:
        TraceError: a field is missing, unknown, or of another type; the message names it and shows the value.
    """
    if not isinstance(value, dict):
        raise _mismatch(where, "an object", value)
    given = dict(typing.cast("dict[str, object]", value))
    head: dict[str, Any] = {}
    for name, kind in (("task", str), ("cpu", int), ("event", str)):
        if name not in given:
            raise TraceError(f"{where}: {name} is missing")
        head[name] = _read_plain(kind, given.pop(name), f"{where}.{name}")
    if head["event"] not in EVENTS:
        raise TraceError(f"{where}.event: no event {head['event']!r} in version {VERSION} of the vocabulary")
    event = _read_record(EVENTS[head["event"]], given, f"{where}, {head['event']}")
    return Step(head["task"], head["cpu"], event)


def write_trace(path: Path, steps: Iterable[Step]) -> None:
    """Write a trace as JSON Lines: a first line with the version, then one line per step."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({HEADER: VERSION}) + "\n")
        for step in steps:
            file.write(json.dumps(to_json(step), separators=(",", ":")) + "\n")


def _load(line: str, where: str) -> object:
    try:
        return typing.cast("object", json.loads(line))
    except json.JSONDecodeError as error:
        raise TraceError(f"{where}: not JSON: {error.msg} in {line[:80]!r}") from error


def read_trace(path: Path) -> Iterator[Step]:
    """Read a trace line by line, in constant space. Empty lines are skipped.

    Raises:
        TraceError: the first line names no version, or another one; or a line is no step. The message names the line.
    """
    with path.open(encoding="utf-8") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        number, first = next(lines, (1, "null"))
        header = _load(first, f"{path}:{number}")
        if header != {HEADER: VERSION}:
            raise _mismatch(f"{path}:{number}", json.dumps({HEADER: VERSION}), header)
        for number, line in lines:
            where = f"{path}:{number}"
            yield from_json(_load(line, where), where)


# ---- the schema --------------------------------------------------------------------------------------------------------


def _enum_schema(kind: type[enum.Enum]) -> dict[str, Any]:
    names = [name for name, member in kind.__members__.items() if not isinstance(member, enum.Flag) or member.value]
    if issubclass(kind, enum.Flag):
        return {"type": "array", "items": {"enum": names}, "uniqueItems": True}
    return {"enum": names}


def _field_schema(annotation: Any) -> dict[str, Any]:
    inner = _optional(annotation)
    if inner is not None:
        return {"anyOf": [_field_schema(inner), {"type": "null"}]}
    if typing.get_origin(annotation) is tuple:
        return {"type": "array", "items": _field_schema(typing.get_args(annotation)[0])}
    if issubclass(annotation, enum.Enum):
        return _enum_schema(annotation)
    if has(annotation):
        return _object_schema(annotation, {})
    return {"type": {int: "integer", str: "string", bool: "boolean"}[annotation]}


def _object_schema(kind: type[Any], first: dict[str, Any]) -> dict[str, Any]:
    own = _fields(kind)
    required = [*first, *(field.name for field in own if field.default is NOTHING)]
    properties = {**first, **{field.name: _field_schema(field.annotation) for field in own}}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of one line of a trace after the first."""
    variants: list[dict[str, Any]] = []
    for name, kind in sorted(EVENTS.items()):
        head = {"task": {"type": "string"}, "cpu": {"type": "integer"}, "event": {"const": name}}
        described = {"description": " ".join((kind.__doc__ or "").split())} if kind.__doc__ else {}
        variants.append({"title": name, **described, **_object_schema(kind, head)})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A step of a migrate_vma trace, version {VERSION}",
        "oneOf": variants,
    }
