"""The same token gives the same trace, byte for byte, and the same search the same numbers: in every process, on every Python.

The golden traces are the same file for all interpreters that the tests run under, in an xdist worker or not.
"""

from __future__ import annotations

import pytest

from migrate_vma_conformance import kit
from migrate_vma_conformance.verdict import Verdict
from migrate_vma_spec.schema import write_trace
from tests.conformance.make_golden import FOUND, GOLDEN
from tests.processes import python

NAMES = [f"{generation}-{clause}" for clause, generation in FOUND.items()]

SEARCH = """
from migrate_vma_conformance import unit
from migrate_vma_impl.machine.system import Preemption

for scenario in ("fault-short", "fault2"):
    found = unit.run(unit.Unit("test_hmm", "referenced", scenario, Preemption.FULL))
    examples = [(example.clause, example.token) for example in found.examples]
    print(scenario, found.states, found.executions, found.complete, sorted(found.reached), examples)
"""

REPLAY = """
import sys
from pathlib import Path
from migrate_vma_conformance import kit
from migrate_vma_spec.schema import write_trace

for name in sys.argv[2:]:
    write_trace(Path(sys.argv[1], name).with_suffix(".jsonl"), kit.replay(str(Path(name).with_suffix(".token"))).steps)
"""


def token(name):
    return (GOLDEN / f"{name}.token").read_text().strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_token_replays_to_its_golden_trace_byte_for_byte(name, tmp_path):
    write_trace(tmp_path / "trace.jsonl", kit.replay(token(name)).steps)
    assert (tmp_path / "trace.jsonl").read_bytes() == (GOLDEN / f"{name}.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_and_so_it_does_under_other_hash_seeds(seed, tmp_path):
    python(REPLAY, tmp_path, *NAMES, cwd=GOLDEN, PYTHONHASHSEED=seed)
    for name in NAMES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (GOLDEN / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_counterexamples_break_their_clauses_still(name):
    replayed = kit.replay(token(name))
    assert replayed.verdict.clause == name.partition("-")[2]
    assert replayed.verdict.verdict is Verdict.VIOLATED


@pytest.mark.slow
def test_a_search_finds_the_same_states_executions_and_counterexamples_under_any_hash_seed():
    first, second = python(SEARCH), python(SEARCH, cwd=GOLDEN, PYTHONHASHSEED="1")
    assert first == second
    assert first.count("\n") == 2
