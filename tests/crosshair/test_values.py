"""Leaves, ranges, ledgers and maps: what the contract computes with, for every value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from migrate_vma_spec.axioms.history import Count, Hold, Life, page_of
from migrate_vma_spec.clauses.common import addresses_of, pages_of
from migrate_vma_spec.events import PmdChanged, PteChanged
from migrate_vma_spec.extras import piece
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind

PFN = st.integers(0, (1 << 52) - 1)
PLACE = st.integers(0, 1 << 20)
KEY = st.integers(0, 3)


@given(PFN, st.integers(0, 511), st.booleans())
def test_the_clauses_and_the_axioms_take_a_leaf_apart_alike(pfn, offset, write):
    leaf = Pte(PteKind.DEVICE_PRIVATE, pfn, write=write)
    parts = (piece(leaf, offset), page_of(leaf, offset))
    assert [(part.kind, part.pfn, part.write) for part in parts] == [(leaf.kind, pfn + offset, write)] * 2


@given(st.integers(0, 511))
def test_a_leaf_without_a_frame_says_the_same_of_each_page(offset):
    zero = Pte(PteKind.ZERO)
    assert piece(zero, offset) == page_of(zero, offset) == zero
    assert piece(Pte(PteKind.TABLE), offset) == PTE_NONE


@given(PLACE, st.integers(1, 512))
def test_a_change_is_of_as_many_addresses_as_its_entry_maps(addr, pages):
    leaf, entry = PmdChanged(0, addr, pages, PTE_NONE, PTE_NONE), PteChanged(0, addr, PTE_NONE, PTE_NONE)
    assert (len(addresses_of(leaf)), addresses_of(leaf)[0], addresses_of(leaf)[-1]) == (pages_of(leaf), addr, addr + pages - 1)
    assert list(addresses_of(entry)) == [addr]


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(-2, 2), st.none() | st.integers(0, 9)), max_size=4))
def test_a_ledger_sums_to_what_was_said_last(first, steps):
    life = Life(1, 0, 0, first, counts=[Count(at, delta, said) for at, (delta, said) in enumerate(steps, 1)])
    due = first
    for delta, said in steps:
        due = due + delta if said is None else said
    assert sum(change for _, change in life.ledger) == due
    assert all(change for _, change in life.ledger[1:])


@given(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=4))
def test_a_folio_is_gone_where_its_count_is_first_0(first, said):
    life = Life(1, 0, 0, first, counts=[Count(at, 0, count) for at, count in enumerate(said, 1)])
    assert life.gone == (said.index(0) + 1 if 0 in said else None)


@given(PLACE, PLACE, PLACE)
def test_a_hold_is_open_from_where_it_begins_to_where_it_ends(start, length, at):
    assert Hold("t1", start, end=start + length).open_at(at) == (start <= at < start + length)
    assert Hold("t1", start).open_at(at) == (start <= at)


@given(st.lists(st.tuples(KEY, st.none() | KEY), max_size=4))
def test_a_frozen_map_is_a_dict_that_stays(changes):
    plain, frozen = {}, FrozenMap()
    for key, value in changes:
        before, was = dict(plain), frozen
        if value is None:
            plain.pop(key, None)
            frozen = frozen.drop(key)
        else:
            plain[key] = value
            frozen = frozen.set(key, value)
        assert dict(was) == before
    assert dict(frozen) == plain
    assert (frozen, hash(frozen)) == (FrozenMap(plain), hash(FrozenMap(plain)))


@given(st.dictionaries(KEY, KEY, max_size=3), st.frozensets(KEY, max_size=3))
def test_dropping_several_keys_is_dropping_each(items, dead):
    one_by_one = FrozenMap(items)
    for key in dead:
        one_by_one = one_by_one.drop(key)
    assert FrozenMap(items).drop_all(dead) == one_by_one
