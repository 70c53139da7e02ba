"""Device-coherent memory: mapped and used as system memory is, but selected, owned and freed as a device's."""

import pytest

from migrate_vma_impl.mm import syscalls
from migrate_vma_spec.events import (
    CallbackEntered,
    CpuAccessed,
    FaultBegan,
    FolioFreed,
    FreeCallback,
    LruAdded,
    LruIsolated,
    PageCopied,
    PgmapPut,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import Lru, Pte, PteKind, Select
from tests.impl.pages_stage import PIN, WRITE, Coherent, PagesStage, on_coherent_device
from tests.impl.stage import A, B

PRESENT = Pte(PteKind.PRESENT, 100, write=True, young=True, dirty=True, soft_dirty=True)


@pytest.fixture
def stage():
    return on_coherent_device()


def back(stage, select, owner):
    return stage.run(stage.driver.bring_back, A, 0, 1, select, owner)


def test_a_migrated_page_stays_present(stage):
    assert stage.pte(0) == PRESENT
    page = stage.folio(100)
    assert (page.refcount, page.mapcount, page.exclusive, page.lru) == (1, 1, True, Lru.OFF)


def test_a_cpu_uses_it_without_a_fault(stage):
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert stage.said(CpuAccessed, since) == [CpuAccessed(0, 0, 100, write=True)]
    assert not stage.said(FaultBegan, since)


def test_holes_are_filled_with_present_pages():
    stage = PagesStage(Coherent)
    assert stage.to_device(0, 2) == 2
    assert [stage.pte(addr) for addr in (0, 1)] == [
        Pte(PteKind.PRESENT, pfn, write=True, young=True, dirty=True, soft_dirty=True) for pfn in (100, 101)
    ]
    assert not stage.said(LruAdded)


def test_its_owner_brings_it_back(stage):
    assert back(stage, Select.DEVICE_COHERENT, "dev0") == 1
    assert stage.pte(0).pfn in stage.kernel.system_pfns
    assert (stage.pte(0).write, stage.folio(100).refcount) == (True, 0)
    assert [event for event in stage.trace if isinstance(event, (FreeCallback, FolioFreed, PgmapPut))][-3:] == [
        FreeCallback(100),
        FolioFreed(100),
        PgmapPut("dev0", 0),
    ]


@pytest.mark.parametrize(
    ("select", "owner"),
    [
        (Select.SYSTEM, "dev0"),
        (Select.DEVICE_PRIVATE, "dev0"),
        (Select.DEVICE_COHERENT, "dev1"),
        (Select.DEVICE_COHERENT, None),
        (Select.SYSTEM | Select.DEVICE_PRIVATE, "dev0"),
    ],
)
def test_nobody_else_and_no_other_request_takes_it(stage, select, owner):
    assert back(stage, select, owner) == 0
    assert stage.pte(0) == PRESENT
    assert stage.folio(100).refcount == 1


def test_what_is_asked_besides_does_not_matter(stage):
    assert back(stage, Select.SYSTEM | Select.DEVICE_COHERENT, "dev0") == 1


def test_its_translations_are_flushed_when_it_leaves(stage):
    stage.touch(0, write=True)
    since = len(stage.trace)
    back(stage, Select.DEVICE_COHERENT, "dev0")
    assert TlbFlushed(0, 0, 1) in stage.trace[since:]


def test_it_is_never_isolated_nor_put_on_the_lru(stage):
    since = len(stage.trace)
    back(stage, Select.DEVICE_COHERENT, "dev0")
    assert all(event.pfn != 100 for event in stage.said(LruIsolated, since) + stage.said(LruAdded, since))


def test_the_device_can_be_emptied(stage):
    assert stage.run(stage.driver.evict) == 1
    assert stage.pte(0).pfn in stage.kernel.system_pfns
    assert stage.pte(0).write
    assert not stage.said(CallbackEntered)


def test_unmapping_gives_it_back_to_the_driver(stage):
    stage.run(syscalls.munmap, stage.kernel, A, 0, 1)
    assert stage.said(FreeCallback) == [FreeCallback(100)]
    assert stage.folio(100).refcount == 0


def test_after_fork_a_store_copies_it_to_system_memory(stage):
    stage.fork(B)
    assert (stage.folio(100).mapcount, stage.folio(100).exclusive) == (2, False)
    assert stage.touch(0, write=True, mm=B) == 0
    copy = stage.pte(0, B).pfn
    assert PageCopied(100, copy) in stage.trace
    assert copy in stage.kernel.system_pfns
    assert stage.pte(0).pfn == 100


def test_the_last_user_writes_it_where_it_is(stage):
    stage.fork(B)
    stage.run(syscalls.exit, stage.kernel, B)
    assert stage.touch(0, write=True) == 0
    assert (stage.pte(0).pfn, stage.pte(0).write, stage.folio(100).exclusive) == (100, True, True)


def test_fork_copies_it_at_once_where_it_is_pinned(stage):
    assert stage.take(0, 1, PIN | WRITE) == (100,)
    assert stage.fork(B) == 0
    assert stage.pte(0) == PRESENT
    assert stage.pte(0, B).pfn != 100
    assert stage.folio(100).exclusive


def test_a_pinned_page_does_not_leave(stage):
    stage.take(0, 1, PIN | WRITE)
    assert back(stage, Select.DEVICE_COHERENT, "dev0") == 0
    assert stage.run(stage.driver.evict) == 0
    assert stage.pte(0) == PRESENT
    stage.drop(PIN)
    assert stage.run(stage.driver.evict) == 1


def test_a_private_device_takes_no_coherent_page_of_another():
    stage = PagesStage(Coherent, devices=2)
    stage.touch(0, write=True)
    stage.settle()
    stage.to_device()
    other = stage.drivers[1]
    assert stage.run(other.bring_back, A, 0, 1, Select.SYSTEM | Select.DEVICE_COHERENT, other.owner) == 0
