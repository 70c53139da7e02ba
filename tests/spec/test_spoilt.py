"""Flows that are spoilt by one step break the clauses that they always broke, and come to those that they always came to."""

from __future__ import annotations

import json

import pytest

from tests.spec.large_traces import ALL_FLOWS
from tests.spec.spoilt import GOLDEN, WAYS, verdicts

TABLE = json.loads(GOLDEN.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("flow", ALL_FLOWS)
@pytest.mark.parametrize("way", WAYS)
def test_a_spoilt_flow_is_judged_as_it_always_was(way, flow):
    assert verdicts(flow, way) == TABLE[f"{way}: {flow}"]


@pytest.mark.parametrize("flow", ALL_FLOWS)
def test_what_a_trace_does_not_show_breaks_no_clause(flow):
    assert {clause: broken for clause, (broken, _) in TABLE[f"unknown: {flow}"].items() if broken} == {}
