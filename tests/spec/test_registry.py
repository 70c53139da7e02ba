"""The registry: what every clause must have, and that the predicates are what the explorer needs them to be."""

from __future__ import annotations

import re

import pytest

from migrate_vma_spec import registry
from migrate_vma_spec.clauses import CHAPTERS
from migrate_vma_spec.events import Event, FolioGot, SetupCalled, Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.objects import World
from migrate_vma_spec.registry import KEPT, REGISTRY, Level, Party, Progress
from migrate_vma_spec.vocabulary import Capability, Select
from tests.spec.large_traces import ALL_FLOWS
from tests.spec.parts import by, fold_all
from tests.spec.traces import FLOWS

CLAUSES = list(REGISTRY.values())


def test_every_clause_of_the_contract_is_there():
    assert set(REGISTRY) == {f"C{number:02}" for number in range(1, 95)}


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)
def test_a_clause_is_complete(clause):
    assert REGISTRY[clause.id] is clause
    assert re.search(r"\b(MUST|SHOULD|MAY)\b", clause.sentence)
    assert "SHOULD" in clause.sentence if clause.level is Level.SHOULD else re.search(r"\b(MUST|MAY)\b", clause.sentence)
    assert clause.name
    assert clause.symptom
    assert re.search(r"[./:]|mail|proposal", clause.source)
    assert clause.chapter in {module.__name__ for module in CHAPTERS}


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)
def test_a_clause_is_of_one_kind(clause):
    kinds = [clause.step is not None, clause.monitor is not None, clause.progress is not None]
    assert kinds.count(True) == 1
    assert bool(clause.on) == (clause.progress is None)
    assert all(issubclass(kind, Event) for kind in clause.on)
    assert len(set(clause.on)) == len(clause.on)
    hash(clause.start)


def test_the_clauses_of_level_should():
    assert {clause.id for clause in CLAUSES if clause.level is Level.SHOULD} == {"C15", "C85", "C86", "C87"}


def test_what_requires_a_capability():
    requires = {clause.id: clause.requires for clause in CLAUSES if clause.requires}
    page, lock, refill = (frozenset({each}) for each in (Capability.FAULT_PAGE, Capability.FAULT_LOCK, Capability.REFILL))
    large = frozenset({Capability.COMPOUND})
    compound = dict.fromkeys(("C24", "C25", "C26", "C27", "C52", "C53"), large)
    early = {"C29": page, "C30": page, "C31": lock, "C36": lock, "C93": refill, "C94": refill}
    assert requires == early | compound | {"C32": lock | large}


def test_the_progress_clauses_and_what_breaks_them():
    progress = {clause.id: clause.progress for clause in CLAUSES if clause.progress is not None}
    assert progress == {
        "C79": Progress.ENDLESS_RETRY,
        "C82": Progress.DEADLOCK,
        "C84": Progress.LIVELOCK,
        "C85": Progress.STARVATION,
        "C86": Progress.LIVELOCK,
    }


def setups(*tasks):
    return [Step(task, 0, SetupCalled(0, 0, 2, 3, Select.SYSTEM, None, None, 1, 1)) for task in tasks]


@pytest.mark.parametrize("start", range(4))
def test_a_livelock_of_faulters_is_told_from_one_of_migrators(start):
    from migrate_vma_spec.events import CallbackEntered, CallbackReturned, FaultBegan
    from migrate_vma_spec.vocabulary import VmFault

    callback = by("cpu1", FaultBegan(0, 2, write=True), CallbackEntered(10, 0, 2)) + setups("cpu1")
    callback += by("cpu1", CallbackReturned(10, 0, 2, VmFault.NONE))
    faulters = tuple(callback[start:] + callback[:start])
    migrators = (*faulters, *setups("gpu0"))
    assert (REGISTRY["C84"].cycle(faulters), REGISTRY["C86"].cycle(faulters)) == (True, False)
    assert (REGISTRY["C84"].cycle(migrators), REGISTRY["C86"].cycle(migrators)) == (False, True)


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_a_predicate_gives_the_same_for_the_same_and_leaves_its_memory_alone(name):
    trace, capabilities = ALL_FLOWS[name]
    worlds = fold_all(trace, capabilities)
    for clause in CLAUSES:
        memory = clause.start
        for before, step, after in zip(worlds, trace, worlds[1:], strict=False):
            if type(step.event) not in clause.on:
                continue
            if clause.step is not None:
                assert clause.step(before, step, after) == clause.step(before, step, after)
                continue
            digest = hash(memory)
            first = clause.monitor(memory, before, step)
            assert first == clause.monitor(memory, before, step)
            assert hash(memory) == digest
            memory, judgement = first
            assert judgement is None or judgement is KEPT or isinstance(judgement, str)


MEMORY_OF_LIVING_PAGES = {"C71"}


@pytest.mark.parametrize("name", ALL_FLOWS)
def test_a_monitor_remembers_nothing_of_what_ended(name):
    trace, capabilities = ALL_FLOWS[name]
    worlds = fold_all(trace, capabilities)
    for clause in CLAUSES:
        memory = clause.start
        for before, step in zip(worlds, trace, strict=False):
            if clause.monitor is not None and type(step.event) in clause.on:
                memory, _ = clause.monitor(memory, before, step)
        assert memory == clause.start or clause.id in MEMORY_OF_LIVING_PAGES


def test_an_id_is_never_used_twice():
    clause = REGISTRY["C01"]
    with pytest.raises(ValueError, match="C01 is in the registry already: 'mmap_lock held', 'another'"):
        registry.step_clause("C01", name="another", party=Party.CORE, source="-", symptom="-", on=(FolioGot,))(lambda *_: None)
    assert REGISTRY["C01"] is clause


def test_a_judge_leaves_out_what_does_not_apply():
    judge = Judge(frozenset(), [REGISTRY["C31"], REGISTRY["C44"]])
    judge.feed_all(FLOWS["fault, trylocked"][0])
    assert judge.reached == {"C44"}
    assert judge.world.capabilities == frozenset()
    assert isinstance(judge.world, World)
