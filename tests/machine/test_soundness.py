"""The ways in which a key of local states can go wrong, each explored with merging and by brute force: the ends must agree."""

from __future__ import annotations

import pytest

from migrate_vma_impl.machine.automaton import Automaton
from migrate_vma_impl.machine.system import Task
from tests.machine.soundness_cases import CASES, set_a
from tests.machine.toy import A, B, add, ends_of_brute_force, ends_of_space, read, system, write


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_merged_states_have_the_ends_of_brute_force(make):
    assert ends_of_space(make())[0] == ends_of_brute_force(make())


def test_a_set_has_no_canonical_form_and_is_never_merged():
    async def task():
        seen = {1, 2}
        for _ in range(3):
            await add(A, 1)
        await write(B, len(seen))

    toy = system(task, set_a)
    assert ends_of_space(toy)[0] == ends_of_brute_force(toy)
    automaton = Automaton(Task("t", 0, task))
    node = automaton.start
    for _ in range(3):
        node = automaton.next(node, None).target
    assert any("set" in reason for reason in automaton.not_mergeable)


def test_states_that_differ_in_history_alone_are_merged():
    async def task():
        await read(A)
        await read(A)

    automaton = Automaton(Task("t", 0, task))
    first = automaton.next(automaton.start, None).target
    assert automaton.next(first, 1).target is automaton.next(first, 2).target


def test_a_driver_object_that_counts_for_itself_is_not_merged_by_mistake():
    class Driver:
        calls = 0

        async def fault(self):
            self.calls += 1
            await add(A, 1)
            await write(B, 0)

    toy = system(Driver().fault)
    assert {end for end, _ in ends_of_space(toy)[0]} == {"ended"}


def test_a_forgotten_await_is_seen():
    async def task():
        add(A, 1)
        await add(B, 1)

    with pytest.warns(RuntimeWarning, match="never awaited"):
        ends_of_space(system(task))
