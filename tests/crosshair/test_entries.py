"""Entries of src and dst, and the arrays of them: the arithmetic of their bits holds for every value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from migrate_vma_spec.clauses import common
from migrate_vma_spec.extras import NO_EXTRAS
from migrate_vma_spec.model.collecting import taken
from migrate_vma_spec.objects import World
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    migrate_pfn,
    migrate_pfn_to_pfn,
)

PFN = st.integers(0, (1 << 52) - 1)
FLAGS = st.integers(0, (1 << MIGRATE_PFN_SHIFT) - 1)
ENTRY = st.integers(0, (1 << 58) - 1)
LEAF = 4
WORLD = World(extras=evolve(NO_EXTRAS, leaf_pages=LEAF))


@given(PFN, FLAGS)
def test_flags_never_change_the_frame_that_an_entry_names(pfn, flags):
    entry = migrate_pfn(pfn) | flags
    assert migrate_pfn_to_pfn(entry) == pfn
    assert entry & ~((1 << MIGRATE_PFN_SHIFT) - 1) == pfn << MIGRATE_PFN_SHIFT


@given(ENTRY)
def test_an_entry_names_a_frame_where_it_is_valid_and_only_there(entry):
    pfn = common.pfn_of(entry)
    assert (pfn is None) == (not entry & MIGRATE_PFN_VALID)
    assert pfn is None or migrate_pfn(pfn) | entry == entry
    assert common.pfns_of((entry,)) == ([] if pfn is None else [pfn])


@given(ENTRY)
def test_a_hole_migrates_and_names_nothing(entry):
    assert common.is_hole(entry) == (common.is_migrating(entry) and common.pfn_of(entry) is None)


@given(ENTRY, ENTRY)
def test_two_entries_read_alike_only_if_they_mean_the_same(one, other):
    known = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE | MIGRATE_PFN_COMPOUND
    meaning = [(entry & known, entry >> MIGRATE_PFN_SHIFT) for entry in (one, other)]
    assert (common.show(one) == common.show(other)) == (meaning[0] == meaning[1])


@given(st.lists(ENTRY, max_size=3), st.lists(ENTRY, max_size=3))
def test_pairs_are_as_many_as_the_longer_array_and_lose_nothing(src, dst):
    found = list(common.pairs(tuple(src), tuple(dst)))
    assert [index for index, _, _ in found] == list(range(max(len(src), len(dst))))
    assert [entry for _, entry, _ in found][: len(src)] == src
    assert [entry for _, _, entry in found][: len(dst)] == dst
    assert not any(entry for _, entry, _ in found[len(src) :])


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.booleans())
def test_a_compound_entry_is_its_pages_one_by_one(pfn, dst, valid):
    large = (migrate_pfn(pfn) if valid else 0) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
    rest = (0,) * (LEAF - 1)
    found = list(common.page_pairs(WORLD, (large, *rest), (migrate_pfn(dst) | MIGRATE_PFN_COMPOUND, *rest)))
    assert [common.pfn_of(entry) for _, entry, _ in found] == [pfn + at if valid else None for at in range(LEAF)]
    assert [common.pfn_of(given) for _, _, given in found] == [dst + at for at in range(LEAF)]
    assert all(common.is_migrating(entry) for _, entry, _ in found)


@given(st.lists(ENTRY.map(lambda entry: entry & ~MIGRATE_PFN_COMPOUND), max_size=3))
def test_small_entries_are_pairs_page_by_page(src):
    assert list(common.page_pairs(WORLD, tuple(src), None)) == list(common.pairs(tuple(src), None))


@given(ENTRY, st.sampled_from([None, False, True]))
def test_what_may_be_taken_is_the_entry_or_nothing(entry, stuck):
    allowed = taken(entry, stuck)
    assert allowed <= {entry, 0}
    assert (entry in allowed) == (not stuck or entry == 0)
    assert (0 in allowed) == (stuck is not False or entry == 0)
