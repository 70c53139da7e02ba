"""Device-exclusive entries made ordinary again: by a fault, by fork, by a migration; and what those races leave."""


from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.memory_exclusive import unlock_and_put
from migrate_vma_impl.mm.mm_types import FaultFlag, Folio, MigrateVma
from migrate_vma_spec.events import (
    DeviceUnmapped,
    FolioDirtied,
    FolioGetMissed,
    FolioLocked,
    FolioPut,
    FolioUnlocked,
    InvalidateBegan,
    InvalidateEnded,
    MmExited,
    PageCopied,
    PteChanged,
    PteRead,
    WaitBegan,
)
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind, Select, VmFault
from tests.impl.pages_stage import CoherentTaker, PagesStage, Taker
from tests.impl.stage import A, B

OLD = Pte(PteKind.PRESENT, 1, write=True, dirty=True, soft_dirty=True)


def made(driver=Taker):
    """A page that the device has for itself."""
    stage = PagesStage(driver)
    stage.touch(0, write=True)
    stage.settle()
    if driver is CoherentTaker:
        stage.to_device()
    assert stage.run(stage.driver.exclusive, A, 0, 1) == 1
    return stage


def fault(stage, write=True, **fields):
    return stage.start("cpu", fault_once, stage, write, *fields.values(), cpu=1)


async def fault_once(stage, write, flags=FaultFlag.NONE):
    vmas = await stage.kernel.mmap_read_lock(A)
    result = await stage.kernel.handle_mm_fault(vmas[0], 0, write, flags=flags)
    if not result & VmFault.RETRY:
        await stage.kernel.mmap_read_unlock(A)
    return result


# ---- the fault -------------------------------------------------------------------------------------------------------


def test_a_fault_restores_an_old_writable_entry_as_dirty_as_the_page():
    stage = made()
    assert fault(stage).finish() is VmFault.NONE
    assert stage.pte(0) == OLD
    page = stage.folio(1)
    assert (page.refcount, page.mapcount, page.locked) == (1, 1, False)


def test_its_steps_are_in_order():
    stage = made()
    since = len(stage.trace)
    fault(stage).finish()
    steps = (FolioLocked, InvalidateBegan, DeviceUnmapped, PteChanged, FolioUnlocked, FolioPut, InvalidateEnded)
    assert [type(event) for event in stage.trace[since:] if isinstance(event, steps)] == list(steps)
    assert stage.said(InvalidateBegan, since) == [InvalidateBegan(0, 0, 1, NotifyReason.CLEAR, None)]


def test_a_page_that_is_not_exclusive_to_its_process_any_more_comes_back_read_only():
    stage = made()
    stage.slots[Folio(1)] = type(stage.folio(1))(**{**fields_of(stage.folio(1)), "exclusive": False})
    fault(stage).finish()
    assert stage.pte(0) == Pte(PteKind.PRESENT, 1, soft_dirty=True)


def fields_of(state):
    return {each.name: getattr(state, each.name) for each in type(state).__attrs_attrs__}


def test_two_faults_restore_it_once():
    stage = made()
    first = fault(stage)
    first.until(FolioLocked)
    second = stage.start("second", fault_once, stage, False)
    second.until(WaitBegan)
    first.finish()
    since = len(stage.trace)
    second.finish()
    assert not stage.said(PteChanged, since)
    assert stage.folio(1).refcount == 1


def test_a_page_that_is_free_by_now_is_left_alone():
    stage = made()
    cpu = fault(stage)
    cpu.until(PteRead)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert cpu.finish() is VmFault.NONE
    assert stage.said(FolioGetMissed) == [FolioGetMissed(1)]


def test_a_page_that_is_another_ones_by_now_is_locked_and_unlocked():
    stage = made()
    cpu = fault(stage)
    cpu.until(PteRead)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    stage.touch(1, write=True)
    stage.settle()
    before = stage.folio(1)
    assert stage.pte(1).pfn == 1
    assert cpu.finish() is VmFault.NONE
    assert stage.folio(1) == before
    assert stage.pte(0).kind is PteKind.NONE


def test_a_fault_that_may_wait_without_mmap_lock_does():
    stage = made()
    stage.run(stage.kernel.folio_lock, Folio(1))
    cpu = fault(stage, flags=FaultFlag.ALLOW_RETRY)
    cpu.block()
    assert stage.slots[A.mmap_lock] == 0
    assert stage.folio(1).queue
    stage.run(stage.kernel.folio_unlock, Folio(1))
    assert cpu.finish() is VmFault.RETRY
    assert stage.pte(0).kind is PteKind.EXCLUSIVE
    assert stage.folio(1).refcount == 1


def test_who_forgets_to_unlock_and_put_leaks_both():
    """The step that b3fefbb30a16 mended in a driver; here it is left out of the fault."""

    async def forget(kernel, folio):
        pass

    stage = made()
    broken = WAITING.with_steps(release_exclusive=forget)
    assert broken.steps.release_exclusive is not unlock_and_put
    stage.kernel.generation = broken
    fault(stage).finish()
    assert (stage.folio(1).locked, stage.folio(1).refcount) == (True, 2)


# ---- fork ------------------------------------------------------------------------------------------------------------


def test_fork_restores_and_shares_the_page():
    stage = made()
    assert stage.fork(B) == 0
    shared = Pte(PteKind.PRESENT, 1, dirty=True, soft_dirty=True)
    assert (stage.pte(0), stage.pte(0, B)) == (shared, shared)
    page = stage.folio(1)
    assert (page.refcount, page.mapcount, page.exclusive, page.locked) == (2, 2, False, False)
    assert stage.run(stage.driver.check_exclusive, A, 0) == 0


def test_after_fork_each_side_writes_its_own_page():
    stage = made()
    stage.fork(B)
    stage.touch(0, write=True, mm=B)
    stage.touch(0, write=True)
    assert PageCopied(1, stage.pte(0, B).pfn) in stage.trace
    assert stage.pte(0).pfn != stage.pte(0, B).pfn


def test_a_fork_that_finds_the_page_locked_fails_for_want_of_memory_and_leaves_no_child():
    """copy_pte_range answers -EBUSY, of which copy_pmd_range makes -ENOMEM: nobody tries again."""
    stage = made()
    stage.run(stage.kernel.folio_lock, Folio(1))
    assert stage.fork(B) == -12
    assert stage.said(MmExited) == [MmExited(1)]
    assert stage.pte(0).kind is PteKind.EXCLUSIVE
    stage.run(stage.kernel.folio_unlock, Folio(1))
    assert stage.fork(B) == 0


# ---- migrations ------------------------------------------------------------------------------------------------------


def test_collect_takes_no_exclusive_page():
    stage = made()

    async def migrate():
        vmas = await stage.kernel.mmap_read_lock(A)
        args = MigrateVma(vmas[0], 0, 1, [0], [0], "dev0", Select.SYSTEM | Select.DEVICE_PRIVATE | Select.DEVICE_COHERENT)
        await stage.kernel.migrate_vma_setup(args)
        await stage.kernel.mmap_read_unlock(A)
        return args.cpages, args.src

    assert stage.run(migrate) == (0, [0])
    assert stage.pte(0).kind is PteKind.EXCLUSIVE


def test_an_eviction_takes_the_page_from_the_device_and_its_write_permission_with_it():
    """try_to_migrate knows a device-exclusive entry for a mapping, but not for a writable one."""
    stage = made(CoherentTaker)
    assert stage.run(stage.driver.evict) == 1
    pte = stage.pte(0)
    assert pte.kind is PteKind.PRESENT
    assert pte.pfn in stage.kernel.system_pfns
    assert not pte.write
    assert stage.folio(pte.pfn).exclusive
    assert stage.run(stage.driver.check_exclusive, A, 0) == 0
    since = len(stage.trace)
    assert stage.touch(0, write=True) == 0
    assert not stage.said(PageCopied, since)


def test_dirt_is_not_lost_on_the_way():
    stage = made()
    assert FolioDirtied(1) in stage.trace
    fault(stage, write=False).finish()
    assert stage.pte(0).dirty
