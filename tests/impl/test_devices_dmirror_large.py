"""The model of lib/test_hmm.c where device-private folios may be large, against what that driver does."""

from __future__ import annotations

import pytest

from migrate_vma_impl.drivers.test_hmm import CompoundDmirror, Dmirror, make_test_hmm
from migrate_vma_impl.drivers.test_hmm_compound import FAIL_ALLOC
from migrate_vma_impl.generations import COMPOUND_GENERATIONS, WAITING
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.containers import DriverSlot
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import PmdSlot
from migrate_vma_spec.events import CallbackEntered, CallbackReturned, DeviceMapped, FolioAllocated, FolioFreed, SplitCallback
from migrate_vma_spec.vocabulary import Errno, PteKind
from tests.impl.hmm_stage import A, Buffer, Command, HmmStage, Subject, Variant
from tests.impl.stage import Stopped

LARGE = COMPOUND_GENERATIONS["waiting+compound"]
OUT_OF_MEMORY = 12


@pytest.fixture
def hmm():
    return HmmStage(Subject(LARGE), pmd_order=2)


def large(hmm: HmmStage) -> tuple[Buffer, list[int]]:
    """A large folio on the device."""
    buffer = hmm.mmap()
    buffer.madvise_huge(True)
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    return buffer, stored


def kept(hmm: HmmStage, field: str):
    return hmm.slots[DriverSlot("dev0", field)]


def test_a_large_folio_goes_to_a_large_one_and_is_mirrored_page_by_page(hmm):
    large(hmm)
    assert FolioAllocated(108, 1, locked=True, order=2) in hmm.trace
    assert hmm.said(DeviceMapped) == [DeviceMapped("dev0", 0, addr, 108 + addr, write=True) for addr in range(4)]
    assert (kept(hmm, "in_use"), kept(hmm, "backing")) == (4, ((108, 2),))
    assert hmm.slots[PmdSlot(0, 0)].kind is PteKind.DEVICE_PRIVATE


def test_one_fault_brings_all_of_it_back(hmm):
    buffer, stored = large(hmm)
    assert buffer.load() == stored
    assert len(hmm.said(CallbackEntered)) == 1
    assert hmm.slots[PmdSlot(0, 0)].kind is PteKind.PRESENT
    assert (kept(hmm, "in_use"), kept(hmm, "backing"), kept(hmm, "folios")) == (0, (), (108, 112))


def test_eviction_brings_it_back_whole(hmm):
    buffer, stored = large(hmm)
    assert hmm.run(hmm.driver.evict) == 4
    assert hmm.slots[PmdSlot(0, 0)].kind is PteKind.PRESENT
    assert buffer.load() == stored


def test_a_split_is_followed_so_that_each_page_is_counted_and_freed_by_itself(hmm):
    buffer, stored = large(hmm)
    buffer.at(2, 2).munmap()
    assert buffer.at(0, 2).load() == stored[:2]
    assert [(split.pfn, split.tail) for split in hmm.said(SplitCallback)] == [(108, 109), (108, 110), (108, 111), (108, None)]
    assert (kept(hmm, "in_use"), kept(hmm, "backing")) == (0, ())
    assert kept(hmm, "free") == (*range(100, 112),)
    assert [freed.order for freed in hmm.said(FolioFreed) if freed.pfn >= 100] == [0] * 4


def test_a_driver_that_does_not_hear_of_splits_brings_nothing_back(hmm, monkeypatch):
    async def deaf(driver, folio, tail):
        """It never hears of anything."""

    monkeypatch.setattr(CompoundDmirror, "folio_split", deaf)
    buffer, _ = large(hmm)
    buffer.at(2, 2).munmap()
    reader = hmm.start("reader", syscalls.touch, hmm.kernel, A, 0, False)
    for _ in range(2):
        reader.until(CallbackReturned, pfn=108)
        assert (kept(hmm, "in_use"), kept(hmm, "backing")) == (2, ((108, 2),))
    reader.coroutine.close()


def test_without_a_large_page_on_the_device_small_ones_do(hmm):
    hmm.answers[FAIL_ALLOC] = [1]
    buffer, stored = large(hmm)
    assert buffer.mirror == stored
    assert hmm.slots[PmdSlot(0, 0)].kind is PteKind.TABLE
    assert kept(hmm, "free") == (104, 105, 106, 107)


def test_without_small_ones_either_the_kernel_oopses(hmm):
    hmm.answers[FAIL_ALLOC] = [1]
    hmm.slots[DriverSlot("dev0", "free")] = (100, 101)
    with pytest.raises(Stopped, match="a page that it did not get"):
        large(hmm)


def test_a_fault_without_a_large_folio_takes_small_pages(hmm):
    buffer, stored = large(hmm)
    hmm.answers["a large folio in migrate_to_ram"] = [1]
    assert buffer.load() == stored
    assert hmm.slots[PmdSlot(0, 0)].kind is PteKind.TABLE


@pytest.mark.parametrize("failing", range(4))
def test_a_fault_without_memory_gives_up_what_it_got_and_kills(hmm, failing):
    buffer, stored = large(hmm)
    hmm.answers["a large folio in migrate_to_ram"] = [1]
    hmm.answers["alloc_page in migrate_to_ram"] = [0] * failing + [1]
    assert hmm.touch(0, write=False) == -OUT_OF_MEMORY
    assert hmm.slots[PmdSlot(0, 0)].kind is PteKind.DEVICE_PRIVATE
    assert buffer.load() == stored
    hmm.close()
    assert hmm.broken == {}


def test_memory_that_ends_in_the_middle_of_a_window_leaves_a_page_behind_that_is_gone(hmm):
    """The destinations before it are set, and finalize is called without migrate_vma_pages."""
    buffer = hmm.mmap()
    buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    hmm.answers["alloc_page in migrate_to_system"] = [0, 1]
    assert buffer.cmd(Command.MIGRATE_TO_SYS) == -Errno.ENOMEM
    assert "C08" in hmm.broken


def test_a_page_by_itself_comes_back_by_itself(hmm):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert buffer.at(1).load() == stored[1:2]
    assert [hmm.pte(addr).kind is PteKind.PRESENT for addr in range(4)] == [False, True, False, False]


def test_coherent_memory_is_reached_where_it_is():
    hmm = HmmStage(Subject(LARGE, Variant.COHERENT), pmd_order=2)
    buffer, stored = large(hmm)
    assert buffer.load() == stored
    assert hmm.said(CallbackEntered) == []
    assert buffer.cmd(Command.MIGRATE_TO_SYS) == 0
    assert buffer.load() == stored


@pytest.mark.parametrize(
    ("generation", "order", "made"), [(LARGE, 2, CompoundDmirror), (LARGE, 0, Dmirror), (WAITING, 2, Dmirror)]
)
def test_only_a_kernel_with_large_device_folios_has_the_driver_for_them(generation, order, made):
    assert type(make_test_hmm(Kernel(generation, Config(pmd_order=order)))) is made


def test_release_gives_out_no_large_page_any_more(hmm):
    buffer, stored = large(hmm)
    assert hmm.run(hmm.driver.release) == 4
    assert buffer.load() == stored
    assert (kept(hmm, "free"), kept(hmm, "folios")) == (None, None)
