"""Operations that are refused, or run out of memory: what they answer, and that they change nothing."""

from __future__ import annotations

import pytest

from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.driver import FrozenDriverError, ResultError, UnsupportedLoadError
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls, syscalls_files, syscalls_pin
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import Folio, PteSlot
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, Pte, PteKind, VmFlags
from tests.impl.file_races import ledger, settle
from tests.impl.pages_stage import PagesStage, Taker
from tests.impl.stage import A, B, Stage

RW = syscalls.READ_WRITE


def run(stage, name, *values, mm=A):
    module = next(each for each in (syscalls, syscalls_files, syscalls_pin) if hasattr(each, name))
    return stage.run(getattr(module, name), stage.kernel, mm, *values)


@pytest.fixture
def stage():
    return Stage(WAITING, system_frames=6)


def with_file(driver=None, *, shared=True, **config):
    """[0, 2) maps a file, and its first page was read."""
    stage = (PagesStage(driver, pages=0, files=1, **config)) if driver else Stage(WAITING, pages=0, files=1, **config)
    run(stage, "mmap_file", 0, 2, 0, 0, RW, shared)
    stage.touch(0, write=False)
    settle(stage)
    return stage


# ---- arguments that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("madvise_hugepage", ()),
        ("uffd_unregister", ()),
        ("uffd_writeprotect", (True,)),
        ("madvise_free", ()),
        ("mmap_device", ()),
        ("pageout", ()),
    ],
)
def test_a_range_that_is_empty_is_refused(stage, name, values):
    assert run(stage, name, 1, 1, *values) == -Errno.EINVAL


@pytest.mark.parametrize(("name", "values"), [("mmap_device", ()), ("mmap_shared", ())])
def test_nothing_is_mapped_in_a_process_that_has_ended(name, values):
    stage = Stage(WAITING, files=1)
    run(stage, "exit")
    assert run(stage, name, 0, 1, *values) == -Errno.EINVAL
    assert stage.slots[A].vmas == ()


def test_a_file_without_a_name_is_as_large_as_files_are():
    stage = Stage(WAITING, pages=0, files=1, file_pages=1)
    assert run(stage, "mmap_shared", 0, 2) == -Errno.ENOMEM


def test_advice_to_free_is_refused_for_a_file():
    stage = with_file()
    before = stage.pte(0)
    assert run(stage, "madvise_free", 0, 1) == -Errno.EINVAL
    assert stage.pte(0) == before


def test_reclaim_of_locked_pages_is_refused():
    stage = Stage(WAITING, pages=0, pmd_order=2, addresses=4, system_frames=11)
    run(stage, "mmap_huge_pages", 0, 4)
    assert run(stage, "pageout", 0, 4) == -Errno.EINVAL


def test_a_process_does_not_go_on_where_another_one_lives(stage):
    run(stage, "fork", B)
    assert run(stage, "execve", B) == -Errno.EAGAIN
    assert run(stage, "execve", A) == -Errno.EAGAIN
    assert stage.slots[A].users == stage.slots[B].users == 1


def test_a_page_of_a_file_is_not_taken_for_a_device():
    stage = with_file(Taker)
    before = stage.folio(1)
    assert stage.run(stage.driver.exclusive, A, 0, 1) == -Errno.EOPNOTSUPP
    assert (stage.folio(1).refcount, stage.folio(1).locked) == (before.refcount, False)
    assert stage.pte(0).kind is PteKind.PRESENT


def test_a_hugetlb_page_is_not_taken_for_a_device():
    stage = PagesStage(Taker, pages=0, pmd_order=2, addresses=4, system_frames=11)
    run(stage, "mmap_huge_pages", 0, 4)
    assert stage.run(stage.driver.exclusive, A, 0, 1) == -Errno.EOPNOTSUPP
    run(stage, "exit")
    assert all(not stage.folio(pfn).refcount for pfn in stage.kernel.system_pfns)


@pytest.mark.parametrize("pfn", [1, 4], ids=["of a file", "free"])
def test_a_broken_page_that_is_no_anonymous_one_is_left_alone(pfn):
    stage = with_file()
    before = stage.folio(pfn)
    assert stage.run(syscalls.poison, stage.kernel, pfn) == -Errno.EBUSY
    assert stage.folio(pfn) == before


def test_a_frame_that_is_free_has_no_reference_to_give(stage):
    assert stage.run(syscalls.speculative_reference, stage.kernel, 6) == -Errno.EAGAIN
    assert stage.folio(6).refcount == 0


def test_an_operation_that_a_driver_does_not_have_is_named(stage):
    with pytest.raises(UnsupportedLoadError, match="dev0 is asked for device_read"):
        stage.run(stage.driver.device_read, A, 0)


def test_a_driver_cannot_lose_what_it_was_made_with(stage):
    with pytest.raises(FrozenDriverError, match=r"deletes self\.name"):
        del stage.driver.name


@pytest.mark.parametrize("result", [None, True, 3])
def test_a_result_that_no_fault_has_is_named(stage, result):
    with pytest.raises(ResultError, match="expected one of"):
        stage.driver.fault_result(result)


# ---- no memory -------------------------------------------------------------------------------------------------------


def failing(stage, what):
    """The next time that this is asked for, there is none."""
    stage.answers[what] = [1]


def test_a_private_write_to_a_file_without_memory_kills():
    stage = with_file(shared=False)
    failing(stage, "a page for a private write to a file")
    assert stage.touch(1, write=True) < 0
    assert (stage.pte(1), ledger(stage)) == (PTE_NONE, [])


@pytest.mark.parametrize("write", [True, False])
def test_shared_memory_that_cannot_be_had_kills(write):
    stage = Stage(WAITING, pages=0, files=1)
    run(stage, "mmap_shared", 0, 1)
    failing(stage, "a page for shared memory")
    assert stage.touch(0, write=write) < 0
    assert (stage.pte(0), ledger(stage)) == (PTE_NONE, [])


def test_a_monitor_without_memory_fills_nothing(stage):
    stage.touch(1, write=True)
    run(stage, "uffd_register", 0, 1, VmFlags.UFFD_MISSING)
    failing(stage, "a page for UFFDIO_COPY")
    assert run(stage, "uffd_copy", 0, 1) == -Errno.ENOMEM
    assert stage.pte(0) == PTE_NONE


def test_a_device_that_asks_for_a_page_hears_that_there_is_no_memory():
    stage = PagesStage(Taker)
    failing(stage, "a page for a fault")
    range_ = HmmRange("dev0", A, (), 0, 1, write=True)
    assert stage.run(stage.kernel.hmm_range_fault_unlocked, range_) < 0
    assert stage.pte(0) == PTE_NONE


def test_a_device_file_that_finds_too_little_memory_is_not_mapped():
    stage = Stage(WAITING, pages=0, system_frames=2)
    assert run(stage, "mmap_device", 0, 3) == -Errno.ENOMEM
    assert ([stage.pte(addr) for addr in range(3)], ledger(stage)) == ([PTE_NONE] * 3, [])


@pytest.mark.parametrize("forked", [False, True], ids=["the first", "a copy"])
def test_a_hugetlb_page_that_cannot_be_had_is_a_bus_error(forked):
    stage = Stage(WAITING, pages=0, pmd_order=2, addresses=4, system_frames=7 if forked else 3)
    run(stage, "mmap_huge_pages", 0, 4)
    if forked:
        assert stage.touch(0, write=True) == 0
        run(stage, "fork", B)
    before = stage.slots.copy()
    assert stage.touch(0, write=True) < 0
    assert {key for key, value in stage.slots.items() if isinstance(key, Folio) and value != before[key]} == set()


# ---- nothing to be done ----------------------------------------------------------------------------------------------


def test_the_marker_of_memory_that_nobody_watches_is_dropped():
    stage = Stage(WAITING, pages=0, files=1)
    run(stage, "mmap_file", 0, 1, 0, 0, RW, False)
    stage.slots[PteSlot(A.number, 0)] = Pte(PteKind.MARKER, uffd_wp=True)
    assert stage.touch(0, write=True) == 0
    assert (stage.pte(0).kind, stage.pte(0).uffd_wp) == (PteKind.PRESENT, False)


def test_a_marker_that_asks_for_nothing_is_a_bus_error():
    stage = Stage(WAITING, pages=1)
    stage.slots[PteSlot(A.number, 0)] = Pte(PteKind.MARKER)
    assert stage.touch(0, write=False) < 0


# ---- kernels as shipped ----------------------------------------------------------------------------------------------


def test_v6_1_leaves_a_page_of_the_swap_cache_where_it_is():
    for generation, moved in ((WAITING, 1), (AS_SHIPPED["v6.1"], 0)):
        stage = Stage(generation, pages=1, swap_slots=1, system_frames=5)
        stage.touch(0, write=True)
        settle(stage)
        run(stage, "pageout", 0, 1)
        stage.touch(0, write=False)
        settle(stage)
        assert stage.to_device() == moved
