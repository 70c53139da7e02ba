"""The reference model: an abstract address space, and for every call the set of results that it may have.

Written from the contract and from no implementation. It knows of a virtual page only what the contract says of it: by the VMAs,
which accesses are allowed; by the stores, copies and discards, which frames hold its contents; by its entry, where it is.
It judges results and reachable contents; how a core comes to them is what the clauses judge.

Rules:
- `allowed(state, world, step)` gives the judged quantities of one step, each with the set of its allowed values; `world` is the
  world before the step. With nothing else running between the beginning and the end of a call, each set has one member, given the
  data choices that the trace shows. In a race there are more, each for a reason that the trace shows.
- `REFERENCE` is the model as a monitor, in the form of a clause: id `REF`, outside the registry, because it is no sentence of the
  contract. A refusal that no clause explains is a missing clause.
- An address space is judged if the trace shows its life from the beginning (`MmCreated`, or the fork of one that it shows), a
  frame if the trace announces it (`FrameAdded`). What depends on something that the trace does not tell is not judged.

- Every operation of a workload is one that it knows (`is_known`): what it does not know it does not judge.

| module | what it says |
|---|---|
| `state.py` | what is remembered |
| `contents.py` | where contents are, and how they move |
| `reach.py` | what an access may find, and what is reachable when nothing runs |
| `collecting.py`, `moving.py`, `calls.py` | what setup and device_range, and pages(), may leave in src, alone and in a race |
| `operations.py`, `devices.py`, `faults.py` | results of system calls, of drivers' calls, of faults and of hmm_range_fault |
| `steps.py`, `steps_memory.py`, `table.py` | which event is whose |
"""

from __future__ import annotations

from migrate_vma_spec.events import Step
from migrate_vma_spec.model.operations import is_known
from migrate_vma_spec.model.outcome import Outcome
from migrate_vma_spec.model.state import START, ModelState
from migrate_vma_spec.model.steps import allowed, kinds, next_state
from migrate_vma_spec.objects import World
from migrate_vma_spec.registry import KEPT, Clause, Judgement, Level, Party

__all__ = ["REFERENCE", "START", "ModelState", "Outcome", "allowed", "is_known", "judge", "next_state"]


def judge(state: ModelState, world: World, step: Step) -> tuple[ModelState, Judgement]:
    """The model as a monitor: the first quantity that is not among the allowed ones, in words."""
    outcomes = allowed(state, world, step)
    after = next_state(state, world, step)
    for one in outcomes:
        refusal = one.refusal
        if refusal is not None:
            return after, refusal
    return after, KEPT if outcomes else None


REFERENCE = Clause(
    id="REF",
    name="the reference model",
    sentence=(
        "Every result, and everything that a CPU or a device can read, is one that the reference model allows: exactly one where "
        "nothing else runs, and in a race one for which the trace shows a reason."
    ),
    party=Party.BOTH,
    level=Level.MUST,
    source="the whole contract; migrate_vma_spec.model",
    symptom="a wrong count, errno or entry; contents that are lost, stale or somebody else's",
    chapter="model",
    on=kinds(),
    requires=frozenset(),
    monitor=judge,
    start=START,
)
"""Appended by the kit to the clauses that it judges by; not in the registry."""
