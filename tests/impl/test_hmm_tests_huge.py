"""hmm-tests.c of the kernel: large folios, which migrate as a whole where the generation has them, and are split where not."""

from __future__ import annotations

from itertools import product

import pytest

from migrate_vma_impl.drivers.test_hmm_compound import FAIL_ALLOC
from migrate_vma_impl.mm import syscalls, syscalls_pin
from migrate_vma_impl.mm.task_mmu import Pagemap
from migrate_vma_spec.vocabulary import Errno, VmFlags
from tests.impl.hmm_stage import (
    HUGE,
    UNDER_THE_OTHER,
    ZERO,
    A,
    Buffer,
    Command,
    HmmStage,
    Prot,
    Variant,
    case,
    write_in_the_child,
)

READ_ONLY = VmFlags.READ
PAGEMAP = "MADV_HUGEPAGE before the first store, for MADV_COLLAPSE after it; pagemap is read of pages mapped singly only"
REMAPPED = "without MREMAP_DONTUNMAP; a large folio that is mapped page by page cannot migrate before compound (6.1): -ENOENT"
EITHER = (False, True)
OFFSETS = (0, HUGE // 4, HUGE // 2)


def huge(hmm: HmmStage, prot: VmFlags = syscalls.READ_WRITE, *, thp: bool = True) -> Buffer:
    """Twice the size of a large folio, and the advice to use one, or not, for the first half, which is the buffer."""
    whole = hmm.mmap(2 * HUGE, prot)
    buffer = whole.at(0, HUGE)
    buffer.madvise_huge(thp)
    return buffer


def to_device(buffer: Buffer) -> tuple[int, int, list[int]]:
    """What the driver answers when all of it is to migrate, how many pages did, and what the device reads there."""
    answer = buffer.cmd(Command.MIGRATE_TO_DEV)
    return answer, buffer.cpages, buffer.mirror


@case("anon_write_huge", pmd_order=2)
def test_anon_write_huge(hmm: HmmStage):
    buffer = huge(hmm)
    assert buffer.cmd(Command.WRITE) == 0
    assert (buffer.cpages, buffer.faults) == (HUGE, 1)
    assert buffer.load() == buffer.mirror != [ZERO] * HUGE


def hugetlb(hmm: HmmStage) -> Buffer:
    """MAP_HUGETLB."""
    assert hmm.call(syscalls_pin.mmap_huge_pages, A, 0, HUGE) == 0
    return Buffer(hmm, 0, HUGE)


@case("anon_write_hugetlbfs", pmd_order=2)
def test_anon_write_hugetlbfs(hmm: HmmStage):
    buffer = hugetlb(hmm)
    assert buffer.cmd(Command.WRITE) == 0
    assert (buffer.cpages, buffer.faults) == (HUGE, 1)
    assert buffer.load() == buffer.mirror != [ZERO] * HUGE


@case("compound", pmd_order=2)
def test_compound(hmm: HmmStage):
    buffer = hugetlb(hmm)
    stored = buffer.store()
    assert buffer.cmd(Command.SNAPSHOT) == 0
    assert (buffer.cpages, buffer.mirror) == (HUGE, [Prot.WRITE | Prot.PMD] * HUGE)
    buffer.mprotect(READ_ONLY)
    assert buffer.cmd(Command.SNAPSHOT) == 0
    assert (buffer.cpages, buffer.mirror) == (HUGE, [Prot.READ | Prot.PMD] * HUGE)
    assert buffer.load() == stored


@case("migrate_anon_huge_empty", pmd_order=2)
def test_migrate_anon_huge_empty(hmm: HmmStage):
    assert to_device(huge(hmm, READ_ONLY)) == (0, HUGE, [ZERO] * HUGE)


@case("migrate_anon_huge_zero", pmd_order=2)
def test_migrate_anon_huge_zero(hmm: HmmStage):
    buffer = huge(hmm, READ_ONLY)
    assert buffer.at(0).load() == [ZERO]
    assert to_device(buffer) == (0, HUGE, [ZERO] * HUGE)
    assert buffer.load() == [ZERO] * HUGE


@case("migrate_anon_huge_free", pmd_order=2)
def test_migrate_anon_huge_free(hmm: HmmStage):
    buffer = huge(hmm)
    stored = buffer.store()
    assert to_device(buffer) == (0, HUGE, stored)
    buffer.madvise_free()


@case("migrate_anon_huge_fault", note=PAGEMAP, pmd_order=2)
def test_migrate_anon_huge_fault(hmm: HmmStage):
    buffer = huge(hmm)
    stored = buffer.store()
    assert to_device(buffer) == (0, HUGE, stored)
    if hmm.subject.variant is Variant.PRIVATE:
        size = Prot.PMD if hmm.compound else Prot.NONE
        assert buffer.cmd(Command.SNAPSHOT) == 0
        assert buffer.mirror == [Prot.DEV_PRIVATE_LOCAL | Prot.WRITE | size] * HUGE
    if hmm.subject.variant is Variant.PRIVATE and not hmm.compound:
        entries = [Pagemap(hmm.call(syscalls.pagemap, A, addr)) for addr in range(HUGE)]
        assert [entry & (Pagemap.SWAP | Pagemap.PRESENT) for entry in entries] == [Pagemap.SWAP] * HUGE
    assert buffer.load() == stored


@case("migrate_partial_unmap_fault", parts=product(EITHER, OFFSETS), pmd_order=2)
def test_migrate_partial_unmap_fault(hmm: HmmStage, thp: bool, offset: int):
    buffer = huge(hmm, thp=thp)
    stored = buffer.store()
    assert to_device(buffer) == (0, HUGE, stored)
    buffer.at(offset, HUGE // 2).munmap()
    left = [page for page in range(HUGE) if not offset <= page < offset + HUGE // 2]
    assert [buffer.at(page).load() for page in left] == [[stored[page]] for page in left]


@pytest.mark.slow
@case("migrate_remap_fault", parts=product(EITHER, EITHER, OFFSETS), note=REMAPPED, pmd_order=2, addresses=12)
def test_migrate_remap_fault(hmm: HmmStage, before: bool, thp: bool, offset: int):
    buffer = huge(hmm, thp=thp)
    buffer.at(HUGE, HUGE).munmap()
    stored = buffer.store()
    if before:
        buffer = buffer.mremap(HUGE + offset)
    if before and thp and offset and not hmm.compound:
        assert buffer.cmd(Command.MIGRATE_TO_DEV) == -Errno.ENOENT
    else:
        assert to_device(buffer) == (0, HUGE, stored)
    if not before:
        buffer = buffer.mremap(HUGE + offset)
    assert buffer.load() == stored


@case("anon_write_child", parts=product(EITHER, EITHER), shared_by_fork=True, note=UNDER_THE_OTHER, pmd_order=2)
def test_anon_write_child_of_large_folios(hmm: HmmStage, thp: bool, migrate: bool):
    buffer = huge(hmm, thp=thp)
    stored = buffer.store()
    if migrate:
        assert to_device(buffer) == (0, HUGE, stored)
    before, child, after = write_in_the_child(buffer)
    assert (before, child.cpages, child.faults, after) == (stored, HUGE, 1, child.mirror)
    assert buffer.load() == stored


# ---- without memory --------------------------------------------------------------------------------------------------


@case("migrate_anon_huge_err", note="what fails is a data choice of the driver, or of the allocator", pmd_order=2)
def test_migrate_anon_huge_err(hmm: HmmStage):
    buffer = huge(hmm)
    stored = buffer.store()
    hmm.fail(FAIL_ALLOC)
    assert to_device(buffer) == (0, HUGE, stored)
    assert buffer.at(HUGE // 2).load() == [stored[HUGE // 2]]


@case("migrate_anon_huge_err", pmd_order=2)
def test_migrate_anon_huge_err_on_the_way_back(hmm: HmmStage):
    buffer = huge(hmm)
    stored = buffer.store()
    assert to_device(buffer) == (0, HUGE, stored)
    hmm.fail("a large folio in migrate_to_system")
    assert buffer.cmd(Command.MIGRATE_TO_SYS) == 0
    assert buffer.cpages == HUGE
    assert buffer.load() == stored


@case("migrate_anon_huge_zero_err", parts=((False,), (True,)), pmd_order=2)
def test_migrate_anon_huge_zero_err(hmm: HmmStage, touched: bool):
    buffer = huge(hmm, READ_ONLY)
    if touched:
        assert buffer.at(0).load() == [ZERO]
    hmm.fail(FAIL_ALLOC)
    assert to_device(buffer) == (0, HUGE, [ZERO] * HUGE)
    assert buffer.at(HUGE // 2).load() == [ZERO]
    assert buffer.load() == [ZERO] * HUGE
