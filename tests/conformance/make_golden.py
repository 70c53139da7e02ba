"""Writes the golden traces again: `python -m tests.conformance.make_golden`, from the root, with the packages on the path.

Each is a token and the trace that its replay gives, as JSON Lines. Run it when the simulated kernel or the vocabulary of traces
changed on purpose; what changed in a trace is then seen in review.
"""

from __future__ import annotations

from pathlib import Path

from migrate_vma_conformance import kit, unit
from migrate_vma_conformance.unit import Unit
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.schema import write_trace

GOLDEN = Path(__file__).parent / "golden"
FOUND = {"C41": "unreferenced", "C84": "referenced"}
"""A safety clause and a progress clause, each with the generation that breaks it where two CPUs fault one page."""


def write() -> None:
    for clause, generation in FOUND.items():
        outcome = unit.run(Unit("test_hmm", generation, "fault2", Preemption.FULL))
        (token,) = [example.token for example in outcome.examples if example.clause == clause]
        stem = GOLDEN / f"{generation}-{clause}"
        stem.with_suffix(".token").write_text(f"{token}\n", encoding="utf-8")
        write_trace(stem.with_suffix(".jsonl"), kit.replay(token).steps)


if __name__ == "__main__":
    write()
