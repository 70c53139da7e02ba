"""What a sequence keeps of processes and mappings while it is made."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.commands import Protection
from migrate_vma_conformance.kernel.comparing.population import Population

READ, WRITE, NONE = Protection.READ, Protection.WRITE, Protection.NONE


@pytest.fixture
def who():
    made = Population(pages=8, processes=3)
    made.mapped(0, range(6), WRITE)
    return made


def test_what_was_mapped_at_once_is_one_vma(who):
    assert who.is_one_vma(0, range(1, 5))
    assert not who.is_one_vma(0, range(5, 7))


def test_a_change_of_permissions_parts_a_vma_for_good(who):
    who.protected(0, range(2, 3), READ)
    who.protected(0, range(2, 3), WRITE)
    assert not who.is_one_vma(0, range(1, 4))
    assert who.is_one_vma(0, range(3, 6))


def test_what_was_moved_beside_the_rest_of_its_vma_is_another_vma(who):
    who.moved(0, 0, 1, 7)
    who.moved(0, 1, 1, 0)
    assert not who.is_one_vma(0, range(3))
    who.moved(0, 2, 1, 1)
    assert not who.is_one_vma(0, range(1, 4))


def test_an_access_goes_to_pages_that_are_mapped_for_it(who):
    who.protected(0, range(1, 2), READ)
    who.unmapped(0, range(4, 5))
    assert who.allowed(0, 1, 8, write=True) == (2, 2)
    assert who.allowed(0, 0, 8, write=False) == (0, 4)
    who.protected(0, range(8), NONE)
    assert who.allowed(0, 0, 1, write=False) is None


def test_a_child_begins_with_its_parents_mappings(who):
    who.forked(0, 1)
    who.unmapped(0, range(6))
    assert who.allowed(1, 0, 2, write=True) == (0, 2)
    assert who.free() == 2


def test_who_has_ended_has_nothing_open_and_its_number_is_free(who):
    who.forked(0, 1)
    who.ended(0)
    assert who.opened == set()
    assert (who.alive, who.free()) == ([1], 0)
