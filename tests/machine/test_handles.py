"""Of equal handles there is one."""

from __future__ import annotations

import copy
import pickle

import pytest
from attrs import evolve

from migrate_vma_impl.machine.container_values import DriverSlot
from migrate_vma_impl.machine.locks import Mutex, SpinLock
from migrate_vma_impl.mm.mm_types import Folio, FreePages, Mm, PteSlot, Tlb


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Folio(3), Folio(pfn=3)),
        (PteSlot(0, 2), PteSlot(0, addr=2)),
        (SpinLock("lock"), SpinLock("lock", 0)),
        (SpinLock("ptl", 1), Mm(1).ptl),
        (FreePages(), FreePages()),
        (DriverSlot("d", "x"), DriverSlot(device="d", field="x")),
        (Folio(4), evolve(Folio(3), pfn=4)),
    ],
)
def test_equal_handles_are_one(one, other):
    assert one is other


def test_handles_of_two_kinds_or_numbers_differ():
    assert len({Folio(1), Folio(2), Mm(1), Tlb(1), SpinLock("a", 1), Mutex("a", 1), SpinLock("a", 2)}) == 7


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda handle: pickle.loads(pickle.dumps(handle))])  # noqa: S301
def test_a_copy_is_the_handle_itself(again):
    assert again(SpinLock("ptl", 1)) is SpinLock("ptl", 1)
    assert again(Folio(3)) is Folio(3)


def test_a_lock_is_named_by_its_kind_and_number():
    assert (SpinLock("ptl", 3).name, repr(SpinLock("ptl", 3))) == ("ptl:3", "SpinLock(kind='ptl', number=3)")
