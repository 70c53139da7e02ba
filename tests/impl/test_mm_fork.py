"""fork: what parent and child hold afterwards, for each kind of entry; copies on write; pinned pages; VMAs."""

import pytest
from attrs import evolve

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import AnonVma, MigrateVma, Mm, PteSlot, Vma
from migrate_vma_spec.events import (
    CpuAccessed,
    InvalidateBegan,
    LockDropped,
    MmForked,
    OperationEnded,
    PageCopied,
    TlbFlushed,
    VmaMapped,
    VmaUnmapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, NotifyReason, Pte, PteKind, Select, VmFlags
from tests.impl.stage import READ_ONLY, A, B, Stage

RW = VmFlags.READ | VmFlags.WRITE


@pytest.fixture
def stage():
    return Stage(WAITING, system_frames=6)


def fork(stage, parent=A, child=B):
    return stage.run(syscalls.fork, stage.kernel, parent, child)


def test_an_empty_entry_stays_empty(stage):
    assert fork(stage) == 0
    assert stage.pte(0, B) == PTE_NONE


def test_the_zero_page_is_shared(stage):
    stage.touch(0, write=False)
    fork(stage)
    assert stage.pte(0, B) == Pte(PteKind.ZERO)


def test_a_present_page_becomes_read_only_in_both_and_nobodys_own(stage):
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    before = stage.pte(0)
    fork(stage)
    assert stage.pte(0) == evolve(before, write=False)
    assert stage.pte(0, B) == evolve(before, write=False, young=False)
    page = stage.folio(1)
    assert (page.refcount, page.mapcount, page.exclusive) == (2, 2, False)


def test_the_parents_writable_translations_are_flushed_before_mmap_lock_is_dropped(stage):
    stage.touch(0, write=True)
    since = len(stage.trace)
    fork(stage)
    order = stage.trace[since:]
    unlocked = next(i for i, event in enumerate(order) if isinstance(event, LockDropped) and event.lock == "mmap_lock:0")
    assert TlbFlushed(0, 0, 4) in order[:unlocked]
    assert InvalidateBegan(0, 0, 2, NotifyReason.PROTECTION, None) in order


def test_a_store_after_fork_copies_and_the_other_side_keeps_the_old_page(stage):
    stage.touch(0, write=True)
    fork(stage)
    assert stage.touch(0, write=True, mm=B) == 0
    assert stage.said(PageCopied) == [PageCopied(1, 2)]
    assert (stage.pte(0).pfn, stage.pte(0, B).pfn) == (1, 2)
    assert stage.said(CpuAccessed)[-1].pfn == 2


def test_a_device_page_is_mapped_twice_and_read_only_and_loses_soft_dirty(stage):
    stage.touch(0, write=True)
    stage.to_device()
    fork(stage)
    assert stage.pte(0) == stage.pte(0, B) == Pte(PteKind.DEVICE_PRIVATE, 100)
    page = stage.folio(100)
    assert (page.refcount, page.mapcount, page.exclusive) == (2, 2, False)


def test_a_read_only_device_entry_is_copied_without_what_userfaultfd_does_not_follow(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.DEVICE_PRIVATE, 100, soft_dirty=True, uffd_wp=True)
    fork(stage)
    assert stage.pte(0) == Pte(PteKind.DEVICE_PRIVATE, 100, soft_dirty=True, uffd_wp=True)
    assert stage.pte(0, B) == Pte(PteKind.DEVICE_PRIVATE, 100, soft_dirty=True)


@pytest.mark.parametrize("kept", [{"write": True}, {"exclusive": True}, {}])
def test_a_migration_entry_is_copied_readable_without_reference_or_mapping(stage, kept):
    stage.touch(0, write=True)
    args = MigrateVma(Vma(A, 0, 2, RW, 0), 0, 1, [0], [0], "dev0", Select.SYSTEM)
    stage.run(stage.kernel.migrate_vma_setup, args)
    bits = {"young": True, "dirty": True, "soft_dirty": True}
    stage.slots[PteSlot(0, 0)] = Pte(PteKind.MIGRATION, 1, **kept, **bits)
    before = stage.folio(1)
    fork(stage)
    assert stage.pte(0) == stage.pte(0, B) == Pte(PteKind.MIGRATION, 1, **bits)
    assert stage.folio(1) == before
    stage.run(stage.kernel.migrate_vma_finalize, args)
    assert {stage.pte(0, mm).kind for mm in (A, B)} == {PteKind.PRESENT}
    assert (stage.folio(1).mapcount, stage.folio(1).exclusive) == (2, False)


def test_a_fork_into_a_space_with_a_smaller_number_is_walked_parent_first(stage):
    stage.touch(0, write=True)
    fork(stage)
    stage.run(syscalls.exit, stage.kernel, A)
    fork(stage, B, A)
    assert [vma.mm for vma in stage.slots[AnonVma(0)]] == [B, A]


def test_a_pinned_page_is_copied_at_once_and_stays_the_parents(stage):
    stage.touch(0, write=True)
    page = stage.run(syscalls.pin, stage.kernel, A, 0)
    before = stage.pte(0)
    assert fork(stage) == 0
    assert stage.pte(0) == before
    assert stage.folio(1).exclusive
    assert stage.pte(0, B) == Pte(PteKind.PRESENT, 2, write=True, young=True, dirty=True, soft_dirty=True)
    assert stage.said(PageCopied) == [PageCopied(1, 2)]
    stage.run(syscalls.unpin, stage.kernel, page)
    assert stage.folio(1).pins == 0


def test_a_fork_that_finds_no_page_for_a_pinned_one_leaves_no_child(stage):
    stage.touch(0, write=True)
    stage.touch(1, write=True)
    stage.run(syscalls.pin, stage.kernel, A, 1)
    stage.answers["a page for fork's copy of a pinned page"] = [1]
    assert fork(stage) == -12
    assert stage.pte(0, B) == PTE_NONE
    assert stage.folio(1).mapcount == 1
    assert (stage.slots[B].users, stage.slots[B].vmas) == (0, ())
    assert fork(stage) == 0


@pytest.mark.parametrize(("parent", "child", "result"), [(A, A, -22), (B, A, -11)])
def test_fork_needs_a_living_parent_and_a_free_child(stage, parent, child, result):
    assert fork(stage, parent, child) == result
    assert not stage.said(MmForked)


def test_a_pin_that_is_not_allowed_answers_nothing(stage):
    stage.run(syscalls.mmap, stage.kernel, A, 2, 3, READ_ONLY)
    assert stage.run(syscalls.pin, stage.kernel, A, 2) is None
    assert stage.said(OperationEnded)[-1] == OperationEnded("pin", -14)


def test_a_pin_of_a_device_page_brings_it_back(stage):
    stage.touch(0, write=True)
    stage.to_device()
    assert stage.run(syscalls.pin, stage.kernel, A, 0).pfn == 1
    assert stage.run(syscalls.pin_and_unpin, stage.kernel, A, 0) == 0
    assert stage.folio(1).pins == 1


def test_a_pinned_page_may_be_unmapped_and_goes_with_its_pin(stage):
    page = stage.run(syscalls.pin, stage.kernel, A, 0)
    stage.run(stage.kernel.lru_add_drain)
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    assert stage.folio(1).refcount == 1
    stage.run(syscalls.unpin, stage.kernel, page)
    assert stage.folio(1).refcount == 0


# ---- VMAs ------------------------------------------------------------------------------------------------------------


def test_unmapping_the_middle_splits_the_vma_and_its_place_in_the_tree():
    stage = Stage(WAITING, pages=4)
    stage.touch(3, write=True)
    assert stage.run(syscalls.munmap, stage.kernel, A, 1, 3) == 0
    left = (Vma(A, 0, 1, RW, 0), Vma(A, 3, 4, RW, 0, pgoff=3))
    assert stage.slots[A].vmas == stage.slots[AnonVma(0)] == left
    assert stage.said(VmaUnmapped) == [VmaUnmapped(0, 1, 3)]
    assert stage.to_device(3, 4) == 1


def test_mapping_over_a_mapping_replaces_it(stage):
    stage.touch(0, write=True)
    assert stage.run(syscalls.mmap, stage.kernel, A, 0, 1, READ_ONLY) == 0
    assert stage.pte(0) == PTE_NONE
    assert stage.slots[A].vmas == (Vma(A, 0, 1, READ_ONLY, 0), Vma(A, 1, 2, RW, 0, pgoff=1))
    assert stage.said(VmaMapped)[-1] == VmaMapped(0, 0, 1, READ_ONLY, anonymous=True)


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (1, 1), (3, 5)])
@pytest.mark.parametrize("call", [syscalls.mmap, syscalls.munmap, syscalls.madvise_dontneed], ids=lambda each: each.__name__)
def test_a_range_outside_the_address_space_is_refused(stage, call, start, end):
    assert stage.run(call, stage.kernel, A, start, end) == -22


def test_discarding_a_range_with_a_gap_does_what_it_can(stage):
    stage.touch(1, write=True)
    assert stage.run(syscalls.madvise_dontneed, stage.kernel, A, 1, 4) == -12
    assert stage.pte(1) == PTE_NONE


def test_a_dead_space_maps_nothing(stage):
    assert stage.run(syscalls.mmap, stage.kernel, Mm(1), 0, 1) == -22
    assert stage.slots[B].vmas == ()
