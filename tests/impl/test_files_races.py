"""Every race with one preemption of faults, reclaim, write-back, holes, fork, zap and migration: what is left adds up."""

import pytest

from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files
from tests.impl.file_races import Actor, JudgedStage, ledger, races, settle
from tests.impl.stage import A, B


def touch(write, cpu, mm=A):
    return Actor(lambda stage: (syscalls.touch, stage.kernel, mm, 0, write), cpu)


def call(function, *values, cpu):
    return Actor(lambda stage: (function, stage.kernel, *values), cpu)


def device(name, *values, cpu):
    return Actor(lambda stage: (getattr(stage.driver, name), *values), cpu)


pytestmark = pytest.mark.slow

FAR = 1
OUT = call(syscalls_files.pageout, A, 0, 1, cpu=FAR)
ZAP = call(syscalls.madvise_dontneed, A, 0, 1, cpu=FAR)
UNMAP = call(syscalls.munmap, A, 0, 1, cpu=FAR)
FORK = call(syscalls.fork, A, B, cpu=FAR)
PUNCH = call(syscalls_files.punch_hole, 0, 0, cpu=FAR)
DROP = call(syscalls_files.drop_page, 0, 0, cpu=FAR)
WRITE_BACK = call(syscalls_files.write_back, 0, 0, cpu=FAR)
TO_DEVICE = device("to_device", A, 0, 1, cpu=FAR)
SPECULATE = call(syscalls.speculative_reference, 1, cpu=FAR)
READ, WRITE, READ_FAR, WRITE_FAR = touch(False, 0), touch(True, 0), touch(False, FAR), touch(True, FAR)


def written():
    """An anonymous page that was written, on the LRU."""
    stage = JudgedStage(WAITING, Dmirror, pages=1, swap_slots=1, system_frames=5)
    stage.run(stage.driver.open, A)
    stage.touch(0, write=True)
    settle(stage)
    return stage


def swapped_out():
    stage = written()
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, 1)
    return stage


def in_swap_cache():
    stage = swapped_out()
    stage.touch(0, write=False)
    settle(stage)
    return stage


def shared_swap():
    stage = swapped_out()
    stage.run(syscalls.fork, stage.kernel, A, B)
    return stage


def file(*, shared, read=False, write=False):
    def make():
        stage = JudgedStage(WAITING, Dmirror, pages=0, files=1, file_pages=1, system_frames=5)
        stage.run(stage.driver.open, A)
        stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0, 0, syscalls.READ_WRITE, shared)
        if read or write:
            stage.touch(0, write=write)
        settle(stage)
        return stage

    return make


def nameless():
    stage = JudgedStage(WAITING, Dmirror, pages=0, files=1, file_pages=1, system_frames=5)
    stage.run(stage.driver.open, A)
    stage.run(syscalls_files.mmap_shared, stage.kernel, A, 0, 1)
    return stage


def wrong(make, first, second):
    """What does not add up, or breaks a clause, after any race of the two; with the number of steps before the preemption."""
    return [
        (number, each)
        for one, two in ((first, second), (second, first))
        for number, stage in enumerate(races(make, one, two))
        for each in (*ledger(stage), *stage.broken)
    ]


@pytest.mark.parametrize("other", [WRITE_FAR, READ_FAR, ZAP, UNMAP, FORK, TO_DEVICE, SPECULATE], ids=range(7))
def test_reclaim_of_a_page_races_with(other):
    out = call(syscalls_files.pageout, A, 0, 1, cpu=0)
    assert wrong(written, out, other) == []


@pytest.mark.parametrize("other", [WRITE_FAR, READ_FAR, ZAP, UNMAP, FORK, TO_DEVICE, OUT], ids=range(7))
@pytest.mark.parametrize("mine", [READ, WRITE], ids=["read", "write"])
def test_swapping_in_races_with(mine, other):
    assert wrong(swapped_out, mine, other) == []


@pytest.mark.parametrize("other", [WRITE_FAR, ZAP, FORK, OUT, SPECULATE], ids=range(5))
def test_migrating_a_page_of_the_swap_cache_races_with(other):
    assert wrong(in_swap_cache, device("to_device", A, 0, 1, cpu=0), other) == []


@pytest.mark.parametrize("other", [touch(True, FAR, B), touch(False, FAR, B), call(syscalls.exit, B, cpu=FAR)], ids=range(3))
@pytest.mark.parametrize("mine", [READ, WRITE, call(syscalls.madvise_dontneed, A, 0, 1, cpu=0)], ids=["read", "write", "zap"])
def test_parent_and_child_race_for_a_shared_slot(mine, other):
    assert wrong(shared_swap, mine, other) == []


@pytest.mark.parametrize("other", [WRITE_FAR, READ_FAR, ZAP, UNMAP, FORK, PUNCH, DROP, WRITE_BACK, OUT, TO_DEVICE], ids=range(10))
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("mine", [READ, WRITE], ids=["read", "write"])
def test_a_first_fault_on_a_file_races_with(mine, shared, other):
    assert wrong(file(shared=shared), mine, other) == []


@pytest.mark.parametrize("other", [WRITE_FAR, ZAP, FORK, PUNCH, DROP, WRITE_BACK, OUT], ids=range(7))
def test_migrating_a_page_of_the_page_cache_races_with(other):
    assert wrong(file(shared=True, read=True), device("to_device", A, 0, 1, cpu=0), other) == []


@pytest.mark.parametrize("other", [WRITE_FAR, PUNCH, ZAP, OUT, device("device_write", A, 0, cpu=FAR)], ids=range(5))
def test_write_back_races_with(other):
    assert wrong(file(shared=True, write=True), call(syscalls_files.write_back, 0, 0, cpu=0), other) == []


@pytest.mark.parametrize("other", [WRITE_FAR, READ_FAR, ZAP, UNMAP, FORK, TO_DEVICE], ids=range(6))
def test_a_first_fault_on_shared_memory_races_with(other):
    assert wrong(nameless, WRITE, other) == []


def test_the_last_two_mappings_of_shared_memory_go_at_once():
    def make():
        stage = nameless()
        stage.touch(0, write=True)
        stage.run(syscalls.fork, stage.kernel, A, B)
        return stage

    assert wrong(make, call(syscalls.munmap, A, 0, 1, cpu=0), call(syscalls.exit, B, cpu=FAR)) == []
