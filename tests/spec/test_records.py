"""Records are made and changed as attrs would, and nobody can tell but by the clock."""

from __future__ import annotations

import copy
import pickle

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError

from migrate_vma_spec.events import FolioGot, Step
from migrate_vma_spec.objects import Frame, World
from migrate_vma_spec.records import evolve, frozen
from migrate_vma_spec.vocabulary import Pte, PteKind

RECORDS = [
    (Step("t1", 0, FolioGot(3, 2)), {"cpu": 1}),
    (FolioGot(3, 2), {"pfn": 4, "refcount": 9}),
    (Pte(PteKind.PRESENT, 3), {"young": True, "kind": PteKind.SWAP}),
    (Frame(refcount=1), {"refcount": None}),
    (World(), {}),
]


@pytest.mark.parametrize(("record", "changes"), RECORDS)
def test_a_changed_copy_is_what_attrs_makes(record, changes):
    before = repr(record)
    hash(record)
    changed, expected = evolve(record, **changes), attrs.evolve(record, **changes)
    assert (changed, hash(changed), repr(changed)) == (expected, hash(expected), repr(expected))
    assert type(changed) is type(record)
    assert repr(record) == before


@pytest.mark.parametrize("make", [lambda: FolioGot(3, 2), lambda: evolve(FolioGot(3, 2), pfn=4)])
def test_a_record_cannot_be_changed(make):
    record = make()
    with pytest.raises(FrozenInstanceError):
        record.pfn = 5
    with pytest.raises(FrozenInstanceError):
        del record.pfn


def test_what_is_no_field_is_refused():
    with pytest.raises(TypeError, match="FolioGot is no record with the fields page: it has pfn, refcount"):
        evolve(FolioGot(3, 2), page=4)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        FolioGot(page=4)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])  # noqa: S301
def test_a_copy_is_equal_and_of_its_class(again):
    record = evolve(Frame(refcount=1), mapcount=2)
    assert again(record) == record
    assert type(again(record)) is Frame


@frozen
class Plain:
    number: int
    words: tuple[str, ...] = ()


class Loud(Plain):
    """A subclass that is not decorated."""

    __slots__ = ()


@frozen
class Converted:
    number: int = attrs.field(converter=int)
    many: list[int] = attrs.field(factory=list)


def test_a_subclass_keeps_its_class():
    assert type(Loud(1, ("a",))) is Loud
    assert (Loud(2).number, Loud(2).words) == (2, ())


def test_what_is_more_than_its_fields_is_left_to_attrs():
    assert Converted("7") == Converted(7)
    assert Converted(1).many is not Converted(1).many
    with pytest.raises(TypeError, match="Converted is no record"):
        evolve(Converted(1), number="8")
