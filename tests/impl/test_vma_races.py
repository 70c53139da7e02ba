"""Operations on VMAs against migrations and faults, all interleavings: no kernel check fails, no clause breaks, nobody hangs."""

import pytest

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio, PteSlot
from migrate_vma_impl.mm.pgtable import flush_tlb_range
from migrate_vma_spec.events import CpuAccessed, LockDropped, PteChanged
from migrate_vma_spec.vocabulary import Lru, PteKind
from tests.impl.stage import READ_ONLY, A, B
from tests.impl.vma_stage import MISSING, VmaStage, ends, load, oopses, op, search


async def on_device(kernel, driver):
    """One page, written, and on the device, which mirrors the address space."""
    await driver.open(A)
    await syscalls.mmap(kernel, A, 0, 1)
    await syscalls.touch(kernel, A, 0, write=True)
    await driver.to_device(A, 0, 1)


async def in_memory(kernel, driver):
    await driver.open(A)
    await syscalls.mmap(kernel, A, 0, 1)
    await syscalls.touch(kernel, A, 0, write=True)


async def watched(kernel, driver):
    """Page 0 is written; page 1 is missing, and watched."""
    await driver.open(A)
    await syscalls.mmap(kernel, A, 0, 2)
    await syscalls.touch(kernel, A, 0, write=True)
    await kernel.lru_add_drain()
    await syscalls.uffd_register(kernel, A, 1, 2, MISSING)


GONE = {"C89"}
"""An access by a thread of a process that has ended: in the kernel that thread is killed first."""

ZAPPING = {"C20", "C56"}
"""A zap counts the mapping down before it clears the entry, as the kernel does; an eviction asks for the count alone."""

PROTECTING = {"C65"}
"""The VMA has lost its permission, its entry has yet to: a migration may restore it writable, until mprotect comes by."""


def wrong(graph, *, known=()):
    """What may come of no race, in words; clauses that it is known to break are left out."""
    return [
        *([] if graph.complete else [f"not all states were visited: {graph.cut}"]),
        *sorted(oopses(graph)),
        *(f"{clause}: {each.broken.sentence}" for clause, each in graph.breaks.items() if clause not in known),
        *(f"state {number} is a deadlock" for number in graph.deadlocks),
        *map(str, graph.errors),
    ]


CHANGES = {
    "mprotect": op("mprotect", 0, 1, READ_ONLY),
    "mremap": op("mremap", 0, 1, 2),
    "clear_refs": op("clear_refs"),
    "execve": op("execve", B),
    "madvise_free": op("madvise_free", 0, 1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("vma_locks", [False, True])
def test_a_fault_on_a_device_page_against_a_change(change, vma_locks):
    graph = search(on_device, op("touch", 0, True), CHANGES[change], vma_locks=vma_locks)
    assert wrong(graph, known=GONE if change == "execve" else ()) == []
    assert not any(page.locked or page.queue for page in ends(graph, Folio(100)))
    assert change != "execve" or {page.refcount for page in ends(graph, Folio(100))} == {0}


@pytest.mark.parametrize("change", CHANGES)
def test_an_eviction_against_a_change(change):
    graph = search(on_device, load("evict"), CHANGES[change])
    assert wrong(graph, known={"execve": ZAPPING, "mprotect": PROTECTING}.get(change, ())) == []
    assert change != "mprotect" or not any(pte.write for pte in ends(graph, PteSlot(0, 0)))
    assert not any(each.locked for each in ends(graph, Folio(1)) | ends(graph, Folio(100)))
    assert {pte.kind for pte in ends(graph, PteSlot(0, 0))} <= {PteKind.PRESENT, PteKind.NONE, PteKind.DEVICE_PRIVATE}


@pytest.mark.parametrize("change", ["mprotect", "clear_refs"])
def test_an_access_through_the_tlb_against_a_change(change):
    assert wrong(search(in_memory, op("touch", 0, True), CHANGES[change])) == []


def test_an_eviction_against_unmapping_leaves_nothing_in_use():
    graph = search(on_device, load("evict"), op("munmap", 0, 1))
    assert wrong(graph, known=ZAPPING) == []
    pages = ends(graph, Folio(1)) | ends(graph, Folio(100))
    assert {page.refcount - (page.lru is Lru.BATCHED) for page in pages} == {0}


def test_a_walk_of_the_reverse_map_misses_no_entry_that_moves():
    graph = search(on_device, load("evict"), op("mremap", 0, 1, 2))
    assert wrong(graph) == []
    assert {pte.kind for pte in ends(graph, PteSlot(0, 2))} == {PteKind.PRESENT}


async def drop_ptl_then_flush(kernel, mm, start, end, present):
    await spin_unlock(mm.ptl)
    if present:
        await flush_tlb_range(kernel, mm, start, end)


@pytest.mark.parametrize("late", [False, True])
def test_a_move_flushes_before_the_page_table_lock_is_dropped_or_a_store_reaches_the_page_behind_it(late):
    stage = VmaStage(WAITING.with_steps(flush_moved=drop_ptl_then_flush) if late else WAITING, pages=1)
    stage.touch(0, write=True, cpu=1)
    mover = stage.begin("mover", "mremap", 0, 1, 2)
    mover.until(PteChanged, addr=2)
    mover.until(LockDropped, lock="ptl:0")
    store = stage.begin("store", "touch", 0, True, cpu=1)
    if late:
        assert store.finish() == 0
        assert stage.said(CpuAccessed)[-1].pfn == stage.pte(2).pfn
    else:
        store.block()
        mover.finish()
        assert store.finish() == -11


def test_a_callback_under_the_lock_of_a_vma_is_noticed():
    careless = WAITING.with_steps(refuses_vma_lock=lambda vmf: False)
    graph = search(on_device, op("touch", 0, True), generation=careless, vma_locks=True)
    assert "C40" in graph.breaks
    assert "C40" not in search(on_device, op("touch", 0, True), vma_locks=True).breaks


@pytest.mark.parametrize("vma_locks", [False, True])
def test_a_userfault_is_answered_whenever_the_monitor_comes(vma_locks):
    graph = search(watched, op("touch", 1, True), op("uffd_zeropage", 1), vma_locks=vma_locks, system_frames=3)
    assert wrong(graph) == []
    assert {pte.kind for pte in ends(graph, PteSlot(0, 1))} == {PteKind.PRESENT}


def test_a_monitor_that_wakes_nobody_leaves_the_waiter_asleep(monkeypatch):
    """The search can tell: without its wake-up some schedules end with a task that sleeps for ever."""

    async def silent(mm, start, end):
        return None

    monkeypatch.setattr("migrate_vma_impl.mm.userfaultfd_ioctl.wake_userfault", silent)
    graph = search(watched, op("touch", 1, True), op("uffd_zeropage", 1), system_frames=3)
    assert graph.deadlocks


def test_two_answers_to_one_userfault_map_one_page():
    graph = search(watched, op("uffd_copy", 1, 0), op("uffd_copy", 1, 0), system_frames=3)
    assert wrong(graph) == []
    assert {pte.kind for pte in ends(graph, PteSlot(0, 1))} == {PteKind.PRESENT}


@pytest.mark.slow
def test_a_monitor_against_a_migration_of_its_source():
    assert wrong(search(watched, op("uffd_copy", 1, 0), load("to_device", A, 0, 1), system_frames=3)) == []
