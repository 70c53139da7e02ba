"""The edges of what a clause is about: traces that one clause, asked alone, keeps silent on, keeps, or breaks."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    FinalizeCalled,
    InvalidateBegan,
    OperationBegan,
    PagesCalled,
    PagesReturned,
    PmdChanged,
    PteChanged,
    PteRead,
    RangeCalled,
    RangeReturned,
    SetupCalled,
    SetupReturned,
)
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import REGISTRY
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, NotifyReason, Pte, PteKind, Select
from tests.spec.calling_cases import walked
from tests.spec.edits import after, before, change, put, the
from tests.spec.fault_traces import EVICT
from tests.spec.parts import BOOT, HOLE, MMAP, PTL, PTL_OFF, TRYLOCKED, by, device_page, migrating, migration, present, private
from tests.spec.traces import CLEARED, ENTRY, SETUP, TO_DEVICE

PAGES, FINALIZE = the(TO_DEVICE, PagesCalled)[0], the(TO_DEVICE, FinalizeCalled)[0]
SET_UP = the(TO_DEVICE, SetupReturned)[0]


def longer(trace):
    """Arrays that have room for more, and 0 there."""
    for kind in (SetupReturned, PagesCalled, PagesReturned, FinalizeCalled):
        arrays = {name: (*entries, 0) for name in ("src", "dst") if (entries := getattr(the(trace, kind)[0], name, None))}
        trace = change(trace, kind, **arrays)
    return trace


def collecting(*steps):
    """A setup of system memory, [2, 3), that is under way."""
    began = (OperationBegan("migrate"), MMAP, SETUP, InvalidateBegan(0, 2, 3, NotifyReason.MIGRATE, "gpu"), PTL)
    return BOOT + device_page() + by("mig0", *began, *steps)


OF_TWO = change(change(EVICT, RangeCalled, pfns=(10, 11)), RangeReturned, src=(migrating(10, write=False), 0))
REFUSED = SetupReturned(0, -int(Errno.EINVAL), 2, 3, 0, 1, (0,))
LEAF, TABLE = private(10), Pte(PteKind.TABLE)

SILENT = {
    "C01 a setup without a VMA": BOOT + by("mig0", SetupCalled(0, None, 2, 3, Select.SYSTEM, "gpu", None, 1, 1), REFUSED),
    "C04 no array is known": change(TO_DEVICE, SetupCalled, nsrc=None, ndst=None),
    "C04 no array is given": change(TO_DEVICE, SetupCalled, nsrc=0, ndst=0),
    "C08 dst is unknown": change(walked(PTE_NONE, HOLE), FinalizeCalled, dst=None),
    "C09 one of two was taken": OF_TWO,
    "C14 another address space's entry goes": collecting(PteChanged(1, 2, private(10), PTE_NONE)),
    "C14 the entry before the range goes": collecting(PteChanged(0, 1, private(10), PTE_NONE)),
    "C14 the entry behind the range goes": collecting(PteChanged(0, 3, private(10), PTE_NONE)),
    "C14 a migration entry goes": collecting(PteChanged(0, 2, migration(10), PTE_NONE)),
    "C14 an entry is protected": collecting(PteChanged(0, 2, private(10), private(10, write=False))),
    "C14 a leaf becomes a page table": collecting(PmdChanged(0, 2, 4, LEAF, TABLE)),
    "C14 an entry without a frame goes": collecting(PteChanged(0, 2, Pte(PteKind.PRESENT), PTE_NONE)),
    "C22 a mapping outside of the range is taken": collecting(
        PteChanged(0, 1, present(1), migration(1)), SetupReturned(0, 0, 2, 3, 1, 1, (ENTRY,))
    ),
}

KEPT = {
    "C03 longer arrays": longer(TO_DEVICE),
    "C05 longer arrays": longer(TO_DEVICE),
    "C12 longer arrays": longer(TO_DEVICE),
    "C13 longer arrays": longer(TO_DEVICE),
    "C10 longer arrays": longer(TO_DEVICE),
    "C16 the same address of another address space": before(
        walked(PTE_NONE, HOLE), PteRead(0, 2, PTE_NONE), PteRead(1, 2, Pte(PteKind.ZERO))
    ),
    "C16 what is read without the lock": put(walked(PTE_NONE, HOLE), PTL, PteRead(0, 2, present(1)), PTL),
}

BROKEN = {
    "C07 everything twice": before(TO_DEVICE, FINALIZE, PAGES, PagesReturned(0, (ENTRY,))),
    "C14 returned, though nobody saw it taken": collecting(PTL_OFF, SetupReturned(0, 0, 2, 3, 1, 1, (migrating(10),))),
    "C16 another task's setup comes in between": before(
        walked(PTE_NONE, 0), SetupReturned(0, 0, 2, 3, 0, 1, (0,)), MMAP, SETUP, SET_UP, task="mig1"
    ),
    "C16 seen first as nothing": before(after(TO_DEVICE, PTL, PteRead(0, 2, PTE_NONE)), CLEARED, PteRead(0, 2, present(1))),
}


def said(name, trace):
    """What the clause that a trace is named after says of it, asked alone."""
    clause = name.partition(" ")[0]
    judge = Judge(TRYLOCKED, [REGISTRY[clause]])
    broken = [*judge.feed_all(trace), *judge.end()]
    return "broken" if broken else "kept" if judge.reached else "nothing"


@pytest.mark.parametrize("name", SILENT)
def test_of_what_it_is_not_about_a_clause_says_nothing(name):
    assert said(name, SILENT[name]) == "nothing"


@pytest.mark.parametrize("name", KEPT)
def test_at_the_edge_a_clause_is_kept(name):
    assert said(name, KEPT[name]) == "kept"


@pytest.mark.parametrize("name", BROKEN)
def test_at_the_edge_a_clause_is_broken(name):
    assert said(name, BROKEN[name]) == "broken"
