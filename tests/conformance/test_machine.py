"""The state machine: what it finds, how small it makes it, and that it is the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from migrate_vma_conformance import kit
from migrate_vma_conformance.errors import SubjectError
from migrate_vma_conformance.life import Broken, Raised, Stopped, broken_class
from migrate_vma_conformance.machine import UNFIT_HEALTH_CHECKS, Examination, examine, make_machine, run_state_machine
from migrate_vma_conformance.pool import Lost, run_one
from migrate_vma_conformance.subject import find_driver
from migrate_vma_conformance.workload import Act
from migrate_vma_impl.bugs.collection import find_bug
from migrate_vma_impl.drivers.test_hmm import Dmirror, make_test_hmm, make_test_hmm_adapted
from migrate_vma_impl.drivers.wide import make_wide
from migrate_vma_impl.generations import REFERENCED, WAITING
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.system import Preemption
from tests.processes import printed_under_any_order_of_hashes

KNOWN = frozenset({"C62", "C71", "C77", "C79", "REF"})
"""What the kernel's test driver breaks (docs/findings/README.md), and what the reference model says of the same."""


OF_THE_TEST_DRIVER = frozenset({"C62", "C71", "C77", "C79", "C87", "C88", "C49: which is free", "REF: device test_hmm"})
"""The same, by the words that are said of it: whatever else the reference model says is not known."""

SMALL, SWAP = Config(system_frames=5), Config(system_frames=6, mms=3, swap_slots=2, files=2, file_pages=2, tlb_batch=True)
WORLDS = [
    (SMALL, "trylocked", make_test_hmm, frozenset[str]()),
    (SWAP, "waiting", make_test_hmm, frozenset[str]()),
    (SWAP, "referenced", make_test_hmm, frozenset[str]()),
    (SWAP, "unreferenced", make_test_hmm, frozenset({"C41", "C50"})),
    (evolve(SWAP, mms=1), "entry-first", make_test_hmm_adapted, frozenset[str]()),
]
"""A system, a generation, a driver, and what that generation itself breaks. (entry-first: with one mapping of each page.)"""


def with_bug(name):
    bug = find_bug(name)
    return find_driver(bug.driver).make, bug.record


def found(*subject, **how):
    """What drawn workloads come to, an exception for each broken clause: none where the driver lives through them."""
    try:
        run_state_machine(*subject, **how)
    except ExceptionGroup as several:
        return list(several.exceptions)
    except (Broken, Stopped, Raised) as one:
        return [one]
    return []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "clause", "most"),
    [
        ("B07", "C36", 2),
        ("B15", "C73", 2),
        ("holes_not_counted", "C10", 1),
        ("finalize_forgotten", "C07", 1),
    ],
)
def test_a_mutation_is_found_and_made_small(name, clause, most):
    make, generation = with_bug(name)
    with pytest.raises(broken_class(clause)) as caught:
        run_state_machine(make, generation, examples=200, seed=0, allow=KNOWN, findings=1)
    operations = [operation for moment in caught.value.program for operation in moment.operations]
    assert len(operations) <= most
    assert not any(moment.drawn.switches or moment.drawn.refusals for moment in caught.value.program)


@pytest.mark.slow
def test_each_broken_clause_is_told_with_an_execution_that_breaks_it_first():
    make, generation = with_bug("B20")
    kinds = [type(each) for each in found(make, generation, examples=60, seed=0, allow=KNOWN)]
    assert broken_class("C17") in kinds
    assert len(set(kinds)) == len(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("preemption", [Preemption.FULL, Preemption.VOLUNTARY])
def test_the_test_driver_lives_through_drawn_workloads(preemption):
    assert found(make_test_hmm, "waiting", examples=40, seed=1, preemption=preemption, allow=KNOWN) == []


@pytest.mark.slow
@pytest.mark.parametrize(("config", "generation", "make", "broken"), WORLDS)
def test_a_whole_world_lives_through_drawn_workloads(config, generation, make, broken):
    assert found(make, generation, config=config, examples=25, seed=1, allow=OF_THE_TEST_DRIVER | broken) == []


@pytest.mark.slow
def test_a_driver_without_a_mirror_lives_through_drawn_workloads():
    assert found(make_wide, WAITING, examples=30, seed=1, allow=frozenset({"C87", "REF"})) == []


HUGE = Config(system_frames=20, mms=3, addresses=8, pmd_order=2)
KNOWN_HUGE = frozenset({"C49", "C62", "C71", "C77", "C79", "C87", "C88"})
"""As KNOWN, of drivers whose folios may be large, and in whose races several pages meet."""
ENDS_HUGE = frozenset(
    {
        "C08",
        "dmirror_device_evict_chunk locks a folio that it did not get",
        "dmirror_migrate_alloc_and_copy writes to a page that it did not get",
    }
)
"""What the test driver, or the kernel itself, comes to with large folios (docs/findings/README.md): nothing holds after it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "generation"),
    [
        (make_test_hmm, "referenced"),
        (make_test_hmm, "waiting"),
        (make_test_hmm, "trylocked+compound"),
        (make_wide, "waiting+compound"),
    ],
)
def test_drivers_live_through_drawn_workloads_of_large_folios(make, generation):
    assert found(make, generation, config=HUGE, examples=30, seed=1, allow=KNOWN_HUGE, ends=ENDS_HUGE) == []


def test_rules_are_those_that_the_driver_can_serve():
    rules = {rule.function.__name__ for rule in make_machine(make_wide, WAITING).setup_state().rules}
    of_the_kernel = {"touch", "change", "protect", "advise", "process", "hold", "watch", "race"}
    assert rules == of_the_kernel | {"migrate", "race_on_the_device"}
    assert "access" in {rule.function.__name__ for rule in make_machine(make_test_hmm, WAITING).setup_state().rules}


def test_each_subject_has_a_class_of_its_own():
    """Hypothesis keeps its examples under the name."""
    machines = [make_machine(make, generation) for make in (make_test_hmm, make_wide) for generation in (WAITING, REFERENCED)]
    assert len({machine.__qualname__ for machine in machines}) == 4
    assert {machine.__name__ == machine.__qualname__ for machine in machines} == {True}
    assert make_machine(make_wide, WAITING, title="mine:make").__name__ == "Contract_mine_make_on_waiting_full"


def test_each_clause_has_one_class():
    assert broken_class("C31") is broken_class("C31")
    assert broken_class("C31") is not broken_class("C33")
    assert issubclass(broken_class("C31"), Broken)


class Raises(Dmirror):
    async def to_device(self, mm, start, end):
        raise ZeroDivisionError("in the driver")


class Shouts(Dmirror):
    async def to_device(self, mm, start, end):
        await traps.oops("shouted")
        return 0


@pytest.mark.parametrize(("driver", "trouble", "word"), [(Raises, Raised, "in the driver"), (Shouts, Stopped, "shouted")])
def test_what_is_no_broken_clause_has_an_exception_of_its_own(driver, trouble, word):
    with pytest.raises(trouble, match=word) as caught:
        run_state_machine(lambda kernel: driver(kernel, "mine"), WAITING, examples=30, seed=0, allow=KNOWN)
    ((operation,),) = [moment.operations for moment in caught.value.program]
    assert operation.act is Act.TO_DEVICE


def test_a_factory_that_fails_is_told_as_the_drivers():
    def fails(kernel):
        raise OSError("no such card")

    with pytest.raises(SubjectError, match=r"fails: its factory raised OSError: no such card"):
        run_state_machine(fails, WAITING)
    with pytest.raises(SubjectError, match="its factory returned"):
        run_state_machine(lambda kernel: 3, WAITING)  # type: ignore[arg-type,return-value]


@pytest.mark.slow
def test_hypothesis_can_run_the_machine_by_itself():
    make, generation = with_bug("finalize_forgotten")
    how = settings(max_examples=20, phases=(Phase.generate,), suppress_health_check=UNFIT_HEALTH_CHECKS)
    with pytest.raises(broken_class("C07")):
        run_state_machine_as_test(make_machine(make, generation, allow=KNOWN), settings=how)


PRINT = """
from migrate_vma_conformance.life import Broken
from migrate_vma_conformance.machine import run_state_machine
from tests.conformance.test_machine import KNOWN, with_bug
make, generation = with_bug("B15")
try:
    run_state_machine(make, generation, examples=40, seed=7, allow=KNOWN, findings=1)
except Broken as broken:
    print(broken)
"""


@pytest.mark.slow
def test_the_same_seed_finds_the_same_in_every_process(tmp_path):
    (said,) = printed_under_any_order_of_hashes(PRINT, cwd=tmp_path)
    assert said.startswith("C73 ")


@pytest.mark.slow
def test_an_examination_runs_in_another_process_and_its_findings_come_back_as_text():
    told = run_one(examine, Examination("test_hmm", "waiting", 200, allow=KNOWN - {"C77"}), seconds=60)
    assert not isinstance(told, Lost)
    assert any(one.binding and one.text.startswith("C77 ") for one in told)


def test_hypothesis_is_imported_where_something_is_drawn_alone():
    package = Path(kit.__file__).parent
    users = {
        path.name for path in package.rglob("*.py") if re.search(r"^(from|import) hypothesis", path.read_text(), re.MULTILINE)
    }
    assert users == {"machine.py", "shrinking.py", "strategies.py"}
