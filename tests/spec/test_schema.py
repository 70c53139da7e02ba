"""Traces as JSON Lines: what is written is read back, what does not fit is named, and the schema says the same."""

from __future__ import annotations

import json
import types
import typing

import attrs
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_vma_spec import events
from migrate_vma_spec.events import VERSION, DeviceMapped, FolioGot, SetupCalled, Step
from migrate_vma_spec.schema import EVENTS, TraceError, from_json, json_schema, read_trace, to_json, write_trace
from migrate_vma_spec.vocabulary import Pte, Select
from tests.spec.traces import FLOWS

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def values(annotation):
    """Every value that a field of this annotation can have."""
    if isinstance(annotation, types.UnionType):
        return st.one_of([values(each) for each in typing.get_args(annotation)])
    if annotation is types.NoneType:
        return st.none()
    if typing.get_origin(annotation) is tuple:
        return st.lists(values(typing.get_args(annotation)[0]), max_size=3).map(tuple)
    if attrs.has(annotation):
        return records(annotation)
    return st.from_type(annotation)


def records(kind):
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: values(hints[field.name]) for field in attrs.fields(kind)})


STEPS = st.builds(Step, st.text(), st.integers(), st.one_of([records(kind) for kind in EVENTS.values()]))


@given(STEPS)
def test_a_step_is_read_back_as_it_was_written(step):
    assert from_json(json.loads(json.dumps(to_json(step)))) == step


VARIANTS = {variant["title"]: jsonschema.Draft202012Validator(variant) for variant in json_schema()["oneOf"]}


@pytest.mark.parametrize("kind", EVENTS.values(), ids=lambda kind: kind.__name__)
def test_the_schema_accepts_what_is_written(kind):
    @settings(max_examples=10)
    @given(records(kind))
    def check(event):
        assert list(VARIANTS[kind.__name__].iter_errors(to_json(Step("task", 0, event)))) == []

    check()


def test_every_event_class_has_a_place_in_the_schema():
    classes = {name for name, kind in vars(events).items() if isinstance(kind, type) and issubclass(kind, events.Event)}
    assert set(EVENTS) == classes - {"Event"}
    assert {variant["title"] for variant in json_schema()["oneOf"]} == set(EVENTS)
    assert str(VERSION) in json_schema()["title"]
    VALIDATOR.check_schema(json_schema())


@pytest.mark.parametrize("name", FLOWS)
def test_a_trace_survives_a_file(name, tmp_path):
    trace, _ = FLOWS[name]
    write_trace(tmp_path / "trace.jsonl", trace)
    assert list(read_trace(tmp_path / "trace.jsonl")) == trace


def line(step, **changes):
    return {**to_json(step), **changes}


HEADER = json.dumps({"migrate_vma_trace": VERSION})
GOT = Step("cpu1", 1, FolioGot(3, 2))
SETUP = Step("cpu1", 1, SetupCalled(0, 0, 2, 3, Select.SYSTEM, "gpu", None, 1, 1))
FILLED = Step("cpu1", 1, events.TlbFilled(0, 2, Pte()))
MAPPED = Step("gpu0", 1, DeviceMapped("gpu", 0, 2, None, write=True))
CALLED = Step("cpu1", 1, events.PagesCalled(0, (1, 2), None, vma=True))
RANGE = Step("cpu1", 1, events.RangeCalled(0, (7,)))

WRONG = [
    ([], "step: an object expected, found []"),
    ({"cpu": 1}, "step: task is missing"),
    (line(GOT, cpu="1"), 'step.cpu: an integer expected, found "1"'),
    (line(GOT, cpu=True), "step.cpu: an integer expected, found true"),
    (line(GOT, event="FolioGott"), f"step.event: no event 'FolioGott' in version {VERSION} of the vocabulary"),
    (line(GOT, event="Step"), f"step.event: no event 'Step' in version {VERSION} of the vocabulary"),
    ({"task": "a", "cpu": 0, "event": "FolioGot", "pfn": 3}, "step, FolioGot: refcount is missing"),
    (line(GOT, pfn=None), "step, FolioGot.pfn: an integer expected, found null"),
    (line(GOT, colour="red"), "step, FolioGot: no field 'colour', which is \"red\""),
    (line(MAPPED, write=1), "step, DeviceMapped.write: true or false expected, found 1"),
    (line(MAPPED, device=4), "step, DeviceMapped.device: a string expected, found 4"),
    (line(SETUP, select="SYSTEM"), 'step, SetupCalled.select: a list of flags expected, found "SYSTEM"'),
    (line(RANGE, pfns=7), "step, RangeCalled.pfns: a list expected, found 7"),
    (line(CALLED, src=[1, "2"]), 'step, PagesCalled.src[1]: an integer expected, found "2"'),
    (line(FILLED, pte=7), "step, TlbFilled.pte: an object expected, found 7"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_does_not_fit_is_named(value, message):
    with pytest.raises(TraceError) as caught:
        from_json(value)
    assert str(caught.value) == message
    assert not VALIDATOR.is_valid(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            line(SETUP, select=["SYSTEM", "DISK"]),
            'COMPOUND expected, found "DISK"',
        ),
        (line(FILLED, pte={**to_json(FILLED)["pte"], "kind": "present"}), "pte.kind: one of NONE, PRESENT"),
    ],
)
def test_an_unknown_name_is_shown_with_the_known_ones(value, message):
    with pytest.raises(TraceError) as caught:
        from_json(value)
    assert message in str(caught.value)
    assert not VALIDATOR.is_valid(value)


def test_a_field_with_a_default_may_be_left_out():
    isolated = Step("a", 0, events.LruIsolated(1, done=True))
    written = to_json(isolated)
    del written["refcount"]
    assert from_json(written) == isolated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"1: {HEADER} expected, found null"),
        ('{"migrate_vma_trace": 0}\n', f"1: {HEADER} expected, found"),
        (f'{HEADER}\n\n{{"task": \n', "3: not JSON"),
        (f'{HEADER}\n{{"task": "a"}}\n', "2: cpu is missing"),
    ],
)
def test_a_bad_line_is_found_by_its_number(text, message, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    assert f"{path}:{message}" in str(caught.value)
