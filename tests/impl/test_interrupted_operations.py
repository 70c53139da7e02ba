"""One operation is preempted after each of its steps, and another one runs meanwhile: what was looked at has changed by then.

The contract judges every run, and after both processes have ended no page, page table, pin or lock may be left over.
"""

from __future__ import annotations

import pytest

from migrate_vma_impl.drivers.test_hmm import CompoundDmirror
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files, syscalls_pin
from migrate_vma_impl.mm.gup_grab import Foll
from migrate_vma_impl.mm.mm_types import Folio, MmState, PageTables
from migrate_vma_spec.vocabulary import PteKind, VmFlags
from tests.impl.compound_stage import COMPOUND, NR, CompoundStage
from tests.impl.file_races import Actor, JudgedStage, races, settle
from tests.impl.pages_stage import PIN, READ, WRITE, Taker
from tests.impl.stage import A, B

NEAR, FAR = 0, 1
RW = syscalls.READ_WRITE


def call(function, *values, cpu=FAR):
    return Actor(lambda stage: (function, stage.kernel, *values), cpu)


def device(name, *values, cpu=FAR):
    return Actor(lambda stage: (getattr(stage.driver, name), *values), cpu)


def near(actor):
    return Actor(actor.work, NEAR)


def wrong(make, first, second, broken=None):
    """The clauses that a race of the two breaks, and what it leaves behind but for a frame that is `broken`; after which step."""
    return [
        (number, each)
        for number, stage in enumerate(races(make, near(first), second))
        for each in (*stage.broken, *(left for left in left_over(stage) if left != Folio(broken)))
    ]


def left_over(stage):
    """What is in use when all processes have ended."""
    for key in [key for key, value in stage.slots.items() if isinstance(value, MmState) and value.users]:
        stage.run(syscalls.exit, stage.kernel, key)
    settle(stage)
    used = [key for key, value in stage.slots.items() if isinstance(key, Folio) and in_use(value)]
    return used + [key for key, value in stage.slots.items() if isinstance(key, PageTables) and value]


def in_use(f):
    cached = f.file is not None or f.swap is not None
    return f.refcount != cached or f.mapcount or f.pins or f.locked or f.queue


TOUCH, READ_IT = call(syscalls.touch, A, 0, True), call(syscalls.touch, A, 0, False)
FORK = call(syscalls.fork, A, B)
ZAP = call(syscalls.madvise_dontneed, A, 0, 1)
SPECULATE = call(syscalls.speculative_reference, 1)
EVICT = device("evict")


# ---- small pages -----------------------------------------------------------------------------------------------------


def small(driver=None, **config):
    def make():
        stage = JudgedStage(WAITING, driver, pages=1, **{"system_frames": 6, **config})
        if driver is not None:
            stage.run(stage.driver.open, A)
        stage.touch(0, write=True)
        settle(stage)
        return stage

    return make


def swapped_out():
    stage = small(swap_slots=1)()
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    assert stage.pte(0).kind is PteKind.SWAP
    return stage


@pytest.mark.parametrize("other", [TOUCH, READ_IT, FORK], ids=["store", "load", "fork"])
def test_advice_on_a_page_that_is_swapped_out(other):
    assert wrong(swapped_out, call(syscalls.madvise_free, A, 0, 1), other) == []


@pytest.mark.parametrize("other", [ZAP, TOUCH, FORK], ids=["zap", "store", "fork"])
def test_a_page_of_the_swap_cache_that_may_be_dropped(other):
    def make():
        stage = swapped_out()
        stage.touch(0, write=False)
        settle(stage)
        return stage

    assert wrong(make, call(syscalls.madvise_free, A, 0, 1), other) == []


def test_two_monitors_of_a_copy_in_memory_that_is_shared_between_processes():
    def make():
        stage = watched(VmFlags.UFFD_MISSING)()
        stage.run(syscalls.fork, stage.kernel, A, B)
        return stage

    assert wrong(make, FILLS["copy"], call(syscalls.madvise_dontneed, B, 1, 2)) == []


def watched(mode):
    def make():
        stage = JudgedStage(WAITING, pages=3, system_frames=6)
        stage.touch(1, write=True)
        stage.run(syscalls.uffd_register, stage.kernel, A, 0, 1, mode)
        settle(stage)
        return stage

    return make


@pytest.mark.parametrize("other", [ZAP, FORK, TOUCH, SPECULATE], ids=["zap", "fork", "store", "reference"])
def test_taking_a_page_for_the_device(other):
    assert wrong(small(Taker), device("exclusive", A, 0, 1), other) == []


def test_two_devices_calls_take_one_page():
    assert wrong(small(Taker), device("exclusive", A, 0, 1), device("exclusive", A, 0, 1)) == []


@pytest.mark.parametrize("flags", [READ | PIN, WRITE | PIN, WRITE], ids=["pin", "pin to write", "write"])
@pytest.mark.parametrize("other", [ZAP, FORK], ids=["zap", "fork"])
def test_taking_a_page_without_locks(flags, other):
    assert wrong(small(gup_fast=True), Actor(lambda stage: (gup_test, stage.kernel, A, 0, 1, flags), NEAR), other) == []


async def gup_test(kernel, mm, start, end, flags):
    return await syscalls_pin.gup_test(kernel, mm, start, end, flags, fast=True)


@pytest.mark.parametrize("other", [ZAP, FORK, TOUCH, SPECULATE], ids=["zap", "fork", "store", "reference"])
def test_a_page_is_found_broken(other):
    assert wrong(small(), call(syscalls.poison, 1), other, broken=1) == []


@pytest.mark.parametrize("name", ["madvise_free", "madvise_cold"])
@pytest.mark.parametrize("other", [ZAP, FORK, TOUCH, SPECULATE], ids=["zap", "fork", "store", "reference"])
def test_advice_on_a_page(name, other):
    assert wrong(small(), call(getattr(syscalls, name), A, 0, 1), other) == []


FILLS = {
    "copy": call(syscalls.uffd_copy, A, 0, 1),
    "zero": call(syscalls.uffd_zeropage, A, 0),
}


@pytest.mark.parametrize("second", FILLS)
@pytest.mark.parametrize("first", FILLS)
def test_two_monitors_fill_one_page(first, second):
    assert wrong(watched(VmFlags.UFFD_MISSING), FILLS[first], FILLS[second]) == []


def test_the_source_of_a_copy_goes_while_it_is_copied():
    assert wrong(watched(VmFlags.UFFD_MISSING), FILLS["copy"], call(syscalls.madvise_dontneed, A, 1, 2)) == []


def test_the_registration_goes_while_a_copy_takes_the_faults_of_its_source():
    def make():
        stage = watched(VmFlags.UFFD_MISSING)()
        stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 2)
        return stage

    assert wrong(make, FILLS["copy"], call(syscalls.uffd_unregister, A, 0, 1)) == []


# ---- files -----------------------------------------------------------------------------------------------------------


def shared(named):
    def make():
        stage = JudgedStage(WAITING, pages=0, files=1, file_pages=1, system_frames=5)
        if named:
            stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0, 0, RW, True)
        else:
            stage.run(syscalls_files.mmap_shared, stage.kernel, A, 0, 1)
        settle(stage)
        return stage

    return make


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("other", [TOUCH, READ_IT, ZAP, FORK], ids=["store", "load", "zap", "fork"])
def test_the_first_store_to_a_shared_page(named, other):
    assert wrong(shared(named), TOUCH, other) == []


@pytest.mark.parametrize("other", ["punch_hole", "drop_page", "write_back"])
@pytest.mark.parametrize("read", [True, False], ids=["mapped", "not mapped"])
def test_a_store_to_a_page_that_its_file_loses(other, read):
    def make():
        stage = shared(named=True)()
        if read:
            stage.touch(0, write=False)
            settle(stage)
        return stage

    assert wrong(make, TOUCH, call(getattr(syscalls_files, other), 0, 0)) == []


# ---- large folios ----------------------------------------------------------------------------------------------------


class JudgedCompound(CompoundStage, JudgedStage):
    """A large folio, judged."""


class Large(CompoundDmirror):
    """With memory for one large folio, and for as many small pages."""

    frames = 2 * NR


def large(*, where="system", forked=False, **config):
    def make():
        stage = JudgedCompound(COMPOUND, Large, **config)
        if where == "device":
            stage.to_huge_device()
            assert stage.pmd().kind is PteKind.DEVICE_PRIVATE
        if forked:
            stage.run(syscalls.fork, stage.kernel, A, B)
        settle(stage)
        return stage

    return make


WALKS = {
    "mprotect": call(syscalls.mprotect, A, 0, NR, VmFlags.READ),
    "mprotect a part": call(syscalls.mprotect, A, 0, 1, VmFlags.READ),
    "mremap": call(syscalls.mremap, A, 0, NR, NR),
    "munmap": call(syscalls.munmap, A, 0, NR),
    "madvise_free": call(syscalls.madvise_free, A, 0, NR),
    "madvise_dontneed": call(syscalls.madvise_dontneed, A, 0, NR),
    "clear_refs": call(syscalls.clear_refs, A),
    "pageout": call(syscalls_files.pageout, A, 0, NR),
    "fork": FORK,
    "store": TOUCH,
}


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_over_a_large_folio_that_leaves_the_device(walk):
    assert wrong(large(where="device"), WALKS[walk], EVICT) == []


@pytest.mark.slow
@pytest.mark.parametrize("walk", ["madvise_free", "madvise_dontneed", "pageout", "store"])
@pytest.mark.parametrize("other", ["madvise_dontneed", "madvise_free"])
def test_a_walk_over_a_large_folio_that_is_zapped(walk, other):
    assert wrong(large(), WALKS[walk], WALKS[other]) == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [READ | PIN, WRITE | PIN, READ], ids=["pin", "pin to write", "read"])
@pytest.mark.parametrize("other", ["madvise_dontneed", "fork"])
def test_taking_pages_of_a_large_folio_without_locks(flags, other):
    act = Actor(lambda stage: (gup_test, stage.kernel, A, 1, 3, flags), NEAR)
    assert wrong(large(gup_fast=True), act, WALKS[other]) == []


@pytest.mark.slow
@pytest.mark.parametrize("other", ["madvise_dontneed", "store", "fork"])
def test_a_large_folio_on_its_way_to_the_device(other):
    assert wrong(large(), device("to_device", A, 0, NR), WALKS[other]) == []


def hugetlb(*, forked):
    def make():
        stage = JudgedStage(WAITING, pages=0, pmd_order=2, addresses=NR, system_frames=11)
        stage.run(syscalls_pin.mmap_huge_pages, stage.kernel, A, 0, NR)
        if forked:
            stage.touch(0, write=True)
            stage.run(syscalls.fork, stage.kernel, A, B)
        return stage

    return make


@pytest.mark.slow
@pytest.mark.parametrize("forked", [True, False], ids=["a copy", "the first"])
@pytest.mark.parametrize("other", ["store", "madvise_dontneed"])
def test_a_store_to_a_hugetlb_page(forked, other):
    assert wrong(hugetlb(forked=forked), TOUCH, WALKS[other]) == []


@pytest.mark.slow
def test_pins_that_wait_for_a_copy_of_a_hugetlb_page():
    act = Actor(lambda stage: (gup_test, stage.kernel, A, 0, 1, READ | PIN | Foll.LONGTERM), NEAR)
    assert wrong(hugetlb(forked=True), act, TOUCH) == []
