"""Reclaim that puts off its TLB flushes: one flush for many pages, made before a page is written out or freed, and by whoever
changes the entries of an address space in the meantime.
"""

import pytest
from attrs import evolve

from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.tlb_batch import UnmapBatch, flush_tlb_mm_batched
from migrate_vma_spec.events import CpuAccessed, FlushDeferred, FolioFreed, LockDropped, PageWritten, TlbFlushed
from migrate_vma_spec.vocabulary import VmFlags
from tests.impl.file_races import Actor, JudgedStage, ledger, races, settle
from tests.impl.stage import A, B

NEAR, FAR = 0, 1


async def nothing(*_values):
    """The flush that is forgotten."""


def written(*, pages=1, write=True, **steps):
    """Pages on the LRU that a far CPU reaches through its TLB."""
    generation = evolve(WAITING, steps=evolve(WAITING.steps, **steps))
    stage = JudgedStage(generation, Dmirror, pages=pages, swap_slots=pages, system_frames=6, tlb_batch=True)
    for addr in range(pages):
        stage.touch(addr, write=True)
        stage.run(syscalls.touch, stage.kernel, A, addr, write, cpu=FAR)
    settle(stage)
    return stage


def pageout(stage, pages=1):
    """What reclaim of these pages says: flushes put off and made, pages written and freed."""
    since = len(stage.trace)
    stage.run(syscalls_files.pageout, stage.kernel, A, 0, pages)
    told = (FlushDeferred, TlbFlushed, PageWritten, FolioFreed)
    return [type(event).__name__ for event in stage.trace[since:] if isinstance(event, told) and event != TlbFlushed(0, 0, 0)]


def clean(**steps):
    """A page that was written out and read again since: its entry is clean, and the swap cache still has it."""
    stage = written(**steps)
    pageout(stage)
    stage.run(flush_tlb_mm_batched, stage.kernel, A)
    stage.touch(0, write=False)
    stage.run(syscalls.touch, stage.kernel, A, 0, False, cpu=FAR)
    settle(stage)
    return stage


def test_a_dirty_page_is_flushed_before_it_is_written_out():
    assert pageout(written()) == ["FlushDeferred", "TlbFlushed", "PageWritten", "FolioFreed"]


def test_each_dirty_page_is_flushed_before_its_own_write_and_all_are_freed_at_the_end():
    first = ["FlushDeferred", "TlbFlushed", "PageWritten"]
    assert pageout(written(pages=2), 2) == [*first, *first, "FolioFreed", "FolioFreed"]


def test_clean_pages_wait_for_one_flush_before_they_are_freed():
    stage = clean()
    assert pageout(stage) == ["FlushDeferred", "TlbFlushed", "FolioFreed"]
    assert stage.broken == []


def test_until_the_flush_another_cpu_reads_the_page_through_its_tlb():
    stage = clean()
    reclaimer = stage.start("reclaimer", syscalls_files.pageout, stage.kernel, A, 0, 1)
    reclaimer.until(FlushDeferred)
    since = len(stage.trace)
    assert stage.run(syscalls.touch, stage.kernel, A, 0, False, cpu=FAR) == 0
    assert [event.pfn for event in stage.said(CpuAccessed, since)] == [1]
    assert reclaimer.finish() == 0
    assert stage.broken == []


def test_the_address_space_remembers_the_flush_until_somebody_makes_it():
    stage = clean()
    pageout(stage)
    assert stage.slots[A].flush_batched
    since = len(stage.trace)
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 1, VmFlags.READ)
    assert stage.said(TlbFlushed, since)[0] == TlbFlushed(0, 0, 4)
    assert not stage.slots[A].flush_batched


def test_without_the_configuration_every_entry_is_flushed_at_once():
    stage = JudgedStage(WAITING, Dmirror, pages=1, swap_slots=1)
    stage.touch(0, write=True)
    settle(stage)
    assert pageout(stage) == ["TlbFlushed", "PageWritten", "FolioFreed"]


def test_an_empty_batch_needs_no_flush():
    stage, batch = written(), UnmapBatch()
    since = len(stage.trace)
    stage.run(stage.kernel.generation.steps.flush_before_free, stage.kernel, batch)
    stage.run(stage.kernel.generation.steps.flush_before_pageout, stage.kernel, batch)
    assert stage.trace[since:] == []


# ---- races -----------------------------------------------------------------------------------------------------------


def call(function, *values, cpu=FAR):
    return Actor(lambda stage: (function, stage.kernel, *values), cpu)


OTHERS = {
    "read": call(syscalls.touch, A, 0, False),
    "write": call(syscalls.touch, A, 0, True),
    "munmap": call(syscalls.munmap, A, 0, 1),
    "dontneed": call(syscalls.madvise_dontneed, A, 0, 1),
    "mprotect": call(syscalls.mprotect, A, 0, 1, VmFlags.READ),
    "free": call(syscalls.madvise_free, A, 0, 1),
    "cold": call(syscalls.madvise_cold, A, 0, 1),
    "pageout": call(syscalls_files.pageout, A, 0, 1),
    "fork": call(syscalls.fork, A, B),
}


def found(make, first, second):
    return [
        each
        for one, two in ((first, second), (second, first))
        for stage in races(make, one, two)
        for each in (*ledger(stage), *stage.broken)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("make", [written, clean], ids=["dirty", "clean"])
@pytest.mark.parametrize("other", OTHERS)
def test_reclaim_that_owes_a_flush_races_with(other, make):
    assert found(make, call(syscalls_files.pageout, A, 0, 1, cpu=NEAR), OTHERS[other]) == []


@pytest.mark.parametrize(
    ("step", "make", "clause"),
    [("flush_before_pageout", written, "C59"), ("flush_before_free", clean, "C59")],
)
def test_a_flush_that_is_never_made_breaks(step, make, clause):
    stage = make(**{step: nothing})
    pageout(stage)
    assert {broken[0] for broken in stage.broken} == {clause}


def read_after_dontneed(stage):
    """A far CPU discards the page between reclaim's clearing of its entry and its flush, and then reads: what it reaches."""
    reclaimer = stage.start("reclaimer", syscalls_files.pageout, stage.kernel, A, 0, 1)
    reclaimer.until(FlushDeferred)
    reclaimer.until(LockDropped, lock="ptl:0")
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1, cpu=FAR)
    since = len(stage.trace)
    stage.run(syscalls.touch, stage.kernel, A, 0, False, cpu=FAR)
    return [event.pfn for event in stage.said(CpuAccessed, since)]


def test_who_discards_pages_flushes_what_reclaim_owes():
    assert read_after_dontneed(clean()) == [None]
    assert read_after_dontneed(clean(flush_batched=nothing)) == [1]
