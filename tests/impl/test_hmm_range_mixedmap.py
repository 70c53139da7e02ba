"""A driver's own pages in an address space (VM_MIXEDMAP): what devices see of them, and what becomes of them."""

import pytest

from migrate_vma_impl.mm import syscalls, syscalls_pin
from migrate_vma_impl.mm.hmm import HmmPfn, HmmRange
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma
from migrate_vma_spec.events import FolioFreed, OperationEnded, PageCleared, PageCopied
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, Pte, PteKind, Select
from tests.impl.pages_stage import LONGTERM, PIN, READ, PagesStage, Taker
from tests.impl.stage import A, B
from tests.impl.test_hmm_range_requests import look, look_again


@pytest.fixture
def stage():
    stage = PagesStage(Taker, pages=0)
    assert stage.run(syscalls_pin.mmap_device, stage.kernel, A, 0, 2) == 0
    return stage


def asked(**fields):
    return HmmRange("dev0", A, (), 0, 1, **fields)


def test_its_pages_are_there_at_once_cleared_and_read_only(stage):
    assert [stage.pte(addr) for addr in (0, 1)] == [Pte(PteKind.PRESENT, pfn, young=True) for pfn in (1, 2)]
    assert stage.said(PageCleared) == [PageCleared(1), PageCleared(2)]
    assert [(stage.folio(pfn).refcount, stage.folio(pfn).mapcount) for pfn in (1, 2)] == [(1, 1), (1, 1)]


def test_a_snapshot_shows_them_readable(stage):
    range_ = asked(fault=False)
    assert look(stage, range_) == 0
    assert range_.hmm_pfns == [HmmPfn(valid=True, folio=Folio(1))]


def test_a_write_goes_to_a_copy_of_the_processs_own(stage):
    range_ = asked(write=True)
    assert look_again(stage, range_) == 0
    assert stage.said(PageCopied) == [PageCopied(1, range_.hmm_pfns[0].folio.pfn)]
    assert stage.folio(range_.hmm_pfns[0].folio.pfn).exclusive
    assert stage.said(FolioFreed) == [FolioFreed(1)]


def test_none_of_it_migrates(stage):
    async def setup():
        vmas = await stage.kernel.mmap_read_lock(A)
        result = await stage.kernel.migrate_vma_setup(MigrateVma(vmas[0], 0, 1, [0], [0], "dev0", Select.SYSTEM))
        await stage.kernel.mmap_read_unlock(A)
        return result

    assert stage.run(setup) == -Errno.EINVAL


def test_a_short_pin_for_reading_takes_the_drivers_page_and_a_long_one_a_copy(stage):
    assert stage.take(0, 1, PIN) == (1,)
    stage.drop(PIN)
    (pfn,) = stage.take(0, 1, PIN | LONGTERM)
    assert pfn != 1
    assert stage.folio(pfn).exclusive


def test_what_was_discarded_does_not_come_back(stage):
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert stage.folio(1).refcount == 0
    assert stage.touch(0, write=False) == -7
    assert look(stage, asked()) == -Errno.EFAULT


def test_fork_shows_them_to_the_child_too_and_they_go_with_the_last_mapping(stage):
    assert stage.fork(B) == 0
    assert stage.folio(1).mapcount == 2
    stage.run(syscalls.munmap, stage.kernel, A, 0, 2)
    assert stage.take(0, 1, READ, mm=B) == (1,)
    stage.drop(READ)
    stage.run(syscalls.exit, stage.kernel, B)
    assert stage.folio(1).refcount == 0


def test_without_memory_nothing_is_mapped():
    stage = PagesStage(Taker, pages=0)
    stage.answers["a page of a device file"] = [0, 1]
    assert stage.run(syscalls_pin.mmap_device, stage.kernel, A, 0, 2) == -Errno.ENOMEM
    assert stage.said(OperationEnded)[-1] == OperationEnded("mmap_device", -12)
    assert (stage.slots[A].vmas, stage.pte(0), stage.folio(1).refcount) == ((), PTE_NONE, 0)


def test_a_range_outside_the_address_space_is_refused(stage):
    assert stage.run(syscalls_pin.mmap_device, stage.kernel, A, 3, 9) == -Errno.EINVAL
