"""A life on the workbench: what operations come to, what is judged at the end, and how programs are made smaller."""

from __future__ import annotations

import pytest
from attrs import evolve

from migrate_vma_conformance.explore.sampling import End
from migrate_vma_conformance.life import CONFIG, NO_DRAWN, Living, Moment, Stopped, broken_class, live, smallest
from migrate_vma_conformance.workbench import PATIENCE, Drawn, Workbench, schedule_to
from migrate_vma_conformance.workload import Act, Operation
from migrate_vma_impl.bugs.collection import find_bug
from migrate_vma_impl.drivers.test_hmm import Dmirror, make_test_hmm, make_test_hmm_coherent
from migrate_vma_impl.drivers.wide import make_wide
from migrate_vma_impl.generations import TRYLOCKED, UNREFERENCED, WAITING, with_compound
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_spec.events import Chose, MmExited, OperationBegan, OperationEnded

KNOWN = frozenset({"C62", "C71", "C77", "C79", "REF"})


def bench(make=make_test_hmm, generation=WAITING):
    return Workbench(make, generation, CONFIG, Preemption.FULL)


def do(on, *operations, drawn=NO_DRAWN):
    return on.burst(on.plan(operations), drawn)


def names(on, *operations):
    return [task.name for task in on.plan(operations)]


def began(burst):
    return [(step.event.name, step.event.arguments) for step in burst.steps if isinstance(step.event, OperationBegan)]


def ended(burst):
    return {step.event.name: step.event.result for step in burst.steps if isinstance(step.event, OperationEnded)}


# ---- the workbench ---------------------------------------------------------------------------------------------------


def test_a_burst_begins_with_what_the_last_one_left():
    on = bench()
    assert ended(do(on, Operation(Act.WRITE))) == {"write": 0}
    assert ended(do(on, Operation(Act.TO_DEVICE))) == {"test_hmm.to_device": 1}
    assert ended(do(on, Operation(Act.EVICT))) == {"test_hmm.evict": 1}


def test_numbers_count_round_what_there_is():
    on = bench()
    assert began(do(on, Operation(Act.READ, 7, 9, 5))) == [("read", (0, 1))]
    assert began(do(on, Operation(Act.MUNMAP, addr=1, more=4))) == [("munmap", (0, 1, 2))]


@pytest.mark.parametrize("act", [Act.EXIT, Act.UNPIN, Act.OPEN])
def test_what_nobody_could_do_now_is_not_done(act):
    """The last address space stays; there is no pin; the first address space is mirrored from the beginning."""
    assert names(bench(), Operation(act)) == []


def test_operations_of_one_race_are_planned_together():
    on = bench()
    assert names(on, Operation(Act.FORK), Operation(Act.FORK)) == ["t1"], "there is one free address space"
    do(on, Operation(Act.FORK))
    assert names(on, Operation(Act.READ, mm=1), Operation(Act.EXIT, mm=1)) == ["t1"], "it is used"
    assert names(on, Operation(Act.EXIT, mm=1), Operation(Act.EXIT)) == ["t1"], "the last one stays"
    do(on, Operation(Act.PIN))
    assert names(on, Operation(Act.UNPIN), Operation(Act.UNPIN)) == ["t1"], "there is one pin"
    do(on, Operation(Act.PIN))
    assert names(on, Operation(Act.PIN)) == [], "two are enough"


def test_an_address_space_is_mirrored_once_it_is_opened_and_until_it_ends():
    on = bench()
    do(on, Operation(Act.FORK))
    assert names(on, Operation(Act.DEVICE_READ, mm=1)) == []
    assert names(on, Operation(Act.OPEN, mm=1), Operation(Act.OPEN, mm=1)) == ["t1"]
    do(on, Operation(Act.OPEN, mm=1))
    assert names(on, Operation(Act.DEVICE_READ, mm=1)) == ["t1"]
    gone = do(on, Operation(Act.EXIT, mm=1))
    assert any(step.event == MmExited(1) for step in gone.steps)
    do(on, Operation(Act.FORK))
    assert names(on, Operation(Act.DEVICE_READ, mm=1)) == []


def test_a_driver_is_asked_to_migrate_what_one_vma_covers():
    on = bench(make_wide)
    do(on, Operation(Act.MUNMAP, addr=1))
    assert began(do(on, Operation(Act.TO_DEVICE, more=1))) == [("wide.to_device", (0, 0, 1))]
    assert names(on, Operation(Act.TO_DEVICE, addr=1)) == []


def test_a_switch_counts_tasks_and_a_hop_never_leads_back():
    def order(*switches):
        burst = do(bench(), Operation(Act.READ), Operation(Act.READ, 1), drawn=Drawn(switches))
        return [step.task for step in burst.steps if isinstance(step.event, (OperationBegan, OperationEnded))]

    assert order() == ["t1", "t1", "t2", "t2"]
    assert order((1, 0, 0)) == ["t2", "t2", "t1", "t1"]
    assert order((0, 3, 0)) == order((2, 3, 5)) == ["t1", "t2", "t2", "t1"]


def test_a_refused_choice_is_the_nth_of_its_task_whatever_it_asks():
    burst = do(bench(), Operation(Act.WRITE), drawn=Drawn(refusals=((0, 0),)))
    assert [step.event.answer for step in burst.steps if isinstance(step.event, Chose)] == [1]
    assert ended(burst) == {"write": -12}


def test_a_loser_that_retries_does_not_keep_the_winner_from_running():
    """By itself the schedule would let t2 try for ever: t1 has the page lock and would never have its turn again."""
    on = bench(generation=TRYLOCKED)
    do(on, Operation(Act.TO_DEVICE))
    burst = do(on, Operation(Act.READ), Operation(Act.READ, 1), drawn=Drawn(((0, 12, 0),)))
    assert set(ended(burst)) == {"read"}
    assert PATIENCE < len(burst.path) < 3 * PATIENCE


def test_a_burst_can_be_run_again_by_its_schedule():
    on = bench()
    do(on, Operation(Act.TO_DEVICE))
    burst = do(on, Operation(Act.READ), Operation(Act.EVICT, 1), drawn=Drawn(((0, 9, 0), (1, 20, 0))))
    schedule = schedule_to(burst, Preemption.FULL, len(burst.steps))
    assert schedule.steps == len(burst.path)
    assert len(schedule.switches) >= 1


def test_every_address_space_that_ends_can_be_forked_into_again():
    on = bench()
    for _ in range(3):
        assert ended(do(on, Operation(Act.FORK))) == {"fork": 0}
        assert ended(do(on, Operation(Act.EXIT, mm=1))) == {"exit": 0}
    assert on.plan([Operation(Act.READ, mm=1)])[0].values[2] == Mm(0)


# ---- living ----------------------------------------------------------------------------------------------------------


def living(make=make_test_hmm, generation=WAITING, **more):
    return Living(make, generation, **{"allow": KNOWN, **more})


def program(*operations):
    return tuple(Moment((operation,)) for operation in operations)


def test_references_balance_at_the_end_with_pins_that_were_left():
    assert live(living(), program(Operation(Act.PIN), Operation(Act.DISCARD))) is None


def test_references_balance_at_the_end_with_pins_of_device_memory_that_were_left():
    subject = living(make_test_hmm_coherent)
    assert live(subject, program(Operation(Act.TO_DEVICE), Operation(Act.PIN), Operation(Act.MUNMAP))) is None


def test_a_pin_may_keep_a_page_of_the_device_where_it_is():
    subject = living(make_test_hmm_coherent, allow=KNOWN - {"REF"})
    assert live(subject, program(Operation(Act.TO_DEVICE), Operation(Act.PIN), Operation(Act.TO_SYSTEM))) is None


def test_an_oops_is_known_by_its_words():
    """A large folio is evicted, and there is none in system memory."""
    steps = (Moment((Operation(Act.TO_DEVICE, more=3),)), Moment((Operation(Act.EVICT),), Drawn(refusals=((0, 0),))))
    subject = living(generation=with_compound(WAITING), config=Config(addresses=4, pmd_order=2))
    trouble = live(subject, steps)
    assert isinstance(trouble, Stopped)
    words = trouble.sentence.removeprefix("oops: ")
    assert live(evolve(subject, found={words}), steps) is None


def test_a_reference_that_is_kept_is_found_at_the_end():
    async def keeps(kernel, folio):
        return None

    generation = WAITING.with_steps(put_migrated=keeps)
    trouble = live(living(generation=generation), program(Operation(Act.WRITE), Operation(Act.TO_DEVICE)))
    assert isinstance(trouble, broken_class("C44"))


def test_a_clause_that_is_allowed_says_nothing_and_one_that_was_found_ends_the_life():
    steps = program(Operation(Act.TO_DEVICE), Operation(Act.READ))
    bare = {"generation": UNREFERENCED, "allow": frozenset[str]()}
    assert isinstance(live(living(**bare), steps), broken_class("C41"))
    assert live(living(**bare | {"allow": frozenset({"C41"})}), steps) is None
    assert live(living(**bare, found={"C41"}), steps) is None


class Deadlocks(Dmirror):
    async def to_device(self, mm, start, end):
        await self.state.mutex.lock()
        await self.state.mutex.lock()
        return 0


def test_tasks_that_sleep_for_ever_break_the_clause_of_deadlocks():
    trouble = live(living(lambda kernel: Deadlocks(kernel, "mine")), program(Operation(Act.TO_DEVICE)))
    assert isinstance(trouble, broken_class("C82"))
    assert "t1 sleep for ever" in str(trouble)


def test_where_memory_ran_out_nobody_is_blamed():
    """Every frame is a page of user space, and eviction waits for one."""
    config = Config(cpus=1, system_frames=2, addresses=3, mms=1)
    steps = [Operation(Act.TO_DEVICE), Operation(Act.WRITE, addr=1), Operation(Act.WRITE, addr=2), Operation(Act.EVICT)]
    on = Workbench(make_test_hmm, WAITING, config, Preemption.FULL)
    assert [do(on, step).end for step in steps][-1] is End.STUCK
    assert on.exhausted
    assert live(living(config=config), program(*steps, Operation(Act.READ))) is None


def race_of_the_hole(noise):
    """A hole goes to the device while a CPU stores to it, under a core that inserts over what is there."""
    broken = living(generation=find_bug("inserts_anywhere").record)
    before = program(Operation(Act.READ, addr=1), Operation(Act.DEVICE_READ, addr=1), Operation(Act.BORROW)) if noise else ()
    both = (Operation(Act.TO_DEVICE), Operation(Act.WRITE, 1), Operation(Act.READ, addr=1))
    spoilers = ((2, 3, 0), (2, 40, 1)) if noise else ()
    found = [
        trouble for step in range(8, 30) if (trouble := live(broken, (*before, Moment(both, Drawn(((0, step, 0), *spoilers))))))
    ]
    return living(generation=find_bug("inserts_anywhere").record), found


def test_a_race_is_made_smaller_to_two_operations_and_one_switch():
    subject, found = race_of_the_hole(noise=True)
    assert found
    small = smallest(subject, found[0])
    assert isinstance(small, broken_class("C69"))
    ((moment,),) = [small.program]
    assert [operation.act for operation in moment.operations] == [Act.TO_DEVICE, Act.WRITE]
    assert len(moment.drawn.switches) == 1


def test_the_message_has_the_clause_the_workload_and_the_columns():
    _, found = race_of_the_hole(noise=False)
    text = str(found[0])
    assert text.startswith("C69 ")
    assert "The workload, from boot:\n  1. Operation(Act.TO_DEVICE) beside Operation(Act.WRITE, cpu=1)" in text
    assert "CPU 0: t1" in text
    assert "Schedule(switches=(" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_not_the_same_trouble_again_is_left_as_it_is():
    trouble = live(living(generation=UNREFERENCED, allow=frozenset()), program(Operation(Act.TO_DEVICE), Operation(Act.READ)))
    assert trouble is not None
    assert smallest(living(), trouble) is trouble
