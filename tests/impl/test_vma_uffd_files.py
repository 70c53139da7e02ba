"""userfaultfd on files and on memory that processes share: markers, waiters, and whose page it is to fill."""

import pytest

from migrate_vma_impl.mm import syscalls_files
from migrate_vma_impl.mm.mm_types import PageCache
from migrate_vma_spec.events import UserfaultRaised, VmaChanged
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind
from tests.impl.stage import A, B
from tests.impl.vma_stage import MISSING, WP, judged


@pytest.fixture
def shared():
    """Page 0 shows shared memory, was written, and is guarded."""
    for stage in judged(pages=0, files=1, file_pages=2):
        stage.run(syscalls_files.mmap_shared, stage.kernel, A, 0, 2)
        stage.touch(0, write=True)
        stage.call("uffd_register", 0, 2, WP)
        stage.call("uffd_writeprotect", 0, 1, True)
        yield stage


def test_a_guarded_page_of_a_file_leaves_a_marker_where_its_entry_goes(shared):
    assert shared.pte(0).uffd_wp
    shared.call("madvise_dontneed", 0, 1)
    assert shared.pte(0) == Pte(PteKind.MARKER, uffd_wp=True)
    shared.call("madvise_dontneed", 0, 1)
    assert shared.pte(0) == Pte(PteKind.MARKER, uffd_wp=True)


def test_a_marker_goes_with_the_mapping_or_with_the_guard(shared):
    shared.call("madvise_dontneed", 0, 1)
    shared.call("uffd_writeprotect", 0, 1, False)
    assert shared.pte(0) == PTE_NONE
    shared.call("uffd_writeprotect", 1, 2, True)
    assert shared.pte(1) == Pte(PteKind.MARKER, uffd_wp=True)
    shared.call("munmap", 1, 2)
    assert shared.pte(1) == PTE_NONE


def test_a_store_behind_a_marker_is_told_to_the_monitor(shared):
    shared.call("madvise_dontneed", 0, 1)
    waiter = shared.begin("waiter", "touch", 0, True, cpu=1)
    waiter.block()
    assert shared.said(UserfaultRaised)[-1] == UserfaultRaised(0, 0, write_protected=True)
    shared.call("uffd_serve")
    assert waiter.finish() == 0


@pytest.fixture
def missing():
    """Pages 0 and 1 are shared memory, and watched."""
    for stage in judged(pages=0, files=1, file_pages=2):
        stage.run(syscalls_files.mmap_shared, stage.kernel, A, 0, 2)
        stage.call("uffd_register", 0, 2, MISSING)
        yield stage


@pytest.mark.parametrize("write", [False, True])
def test_a_page_that_shared_memory_does_not_have_is_the_monitors_to_fill(missing, write):
    waiter = missing.begin("waiter", "touch", 0, write, cpu=1)
    waiter.block()
    assert missing.said(UserfaultRaised) == [UserfaultRaised(0, 0, write_protected=False)]
    assert missing.call("uffd_serve") == 0
    assert waiter.finish() == 0
    assert missing.slots[PageCache(1)][0] == missing.pte(0).pfn


def test_a_page_that_shared_memory_has_is_mapped_without_the_monitor(missing):
    assert missing.call("uffd_zeropage", 0) == 0
    missing.call("madvise_dontneed", 0, 1)
    assert missing.call("uffd_zeropage", 0) == -17
    assert missing.touch(0, write=False) == 0
    assert not missing.said(UserfaultRaised)


def test_a_waiter_is_woken_though_another_process_brought_the_page(missing):
    missing.call("fork", B)
    waiter = missing.begin("waiter", "touch", 0, True, cpu=1)
    waiter.block()
    assert missing.touch(0, write=True, mm=B) == 0
    assert missing.call("uffd_serve") == -17
    assert waiter.finish() == 0
    assert missing.pte(0).pfn == missing.pte(0, B).pfn


def test_a_fill_of_shared_memory_goes_into_the_file(missing):
    missing.call("uffd_zeropage", 1)
    assert missing.call("uffd_copy", 0, 1) == 0
    assert missing.folio(missing.pte(0).pfn).file == 1


def test_a_file_with_a_name_cannot_be_watched():
    for stage in judged(pages=0, files=1, file_pages=2):
        stage.run(syscalls_files.mmap_file, stage.kernel, A, 0, 1, 0, 0)
        assert stage.call("uffd_register", 0, 1, MISSING) == -22
        assert stage.call("uffd_unregister", 0, 1) == -22
        assert not stage.said(VmaChanged)
