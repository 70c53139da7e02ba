"""The generations as records, the steps that a bug can replace, and the kernel's own bookkeeping of frames and slots."""

import attrs
import pytest
from attrs import evolve

from migrate_vma_impl.generations import (
    ENTRY_FIRST,
    GENERATIONS,
    REFERENCED,
    TRYLOCKED,
    UNREFERENCED,
    WAITING,
    find_generation,
)
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import folio_get, folio_unlock
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import Folio, FolioState
from migrate_vma_impl.mm.pgtable import flush_tlb_range
from migrate_vma_impl.mm.swap import folio_put
from migrate_vma_impl.steps import Steps
from migrate_vma_spec.events import (
    CallbackEntered,
    CpuAccessed,
    FolioAllocated,
    FolioLockMissed,
    FolioMoved,
    FrameAdded,
    LockDropped,
    MmCreated,
    PageCopied,
    SetupReturned,
)
from migrate_vma_spec.vocabulary import Capability, Memory, PteKind, VmFault, VmFlags
from tests.impl.compound_stage import COMPOUND_STEPS
from tests.impl.file_races import BATCH_STEPS, SWAP_STEPS
from tests.impl.pages_stage import PagesStage, Taker
from tests.impl.stage import DEVICE_PAGE, A, B, FakeDriver, Stage, Stopped

# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("unreferenced", UNREFERENCED),
        ("v5.18", UNREFERENCED),
        ("v6.0", UNREFERENCED),
        ("v6.1", REFERENCED),
        ("v6.1.192", REFERENCED),
        ("v6.14", REFERENCED),
        ("v6.15", TRYLOCKED),
        ("v6.18", TRYLOCKED),
        ("v7.0", WAITING),
        ("v7.3", WAITING),
        ("entry-first", ENTRY_FIRST),
    ],
)
def test_a_generation_is_found_by_its_name_and_by_its_kernels(name, generation):
    assert find_generation(name) is generation


@pytest.mark.parametrize("name", ["", "v4.14", "Waiting", "6.1"])
def test_a_generation_that_does_not_exist_is_answered_with_those_that_do(name):
    with pytest.raises(ValueError, match=r"unreferenced \(v5.18, v5.19, v6.0\); referenced .*; entry-first \(no kernel\)"):
        find_generation(name)


def test_no_two_generations_share_a_name_or_a_kernel():
    names = [name for each in GENERATIONS.values() for name in (each.name, *each.aliases, *each.patch_levels)]
    assert len(names) == len(set(names))


def test_a_generation_names_its_capabilities():
    assert [each.capabilities for each in GENERATIONS.values()] == [
        frozenset(),
        {Capability.FAULT_PAGE},
        {Capability.FAULT_PAGE, Capability.FAULT_LOCK},
        {Capability.FAULT_PAGE, Capability.FAULT_LOCK},
        {Capability.REFILL},
    ]


def test_waiting_differs_from_trylocked_by_what_the_loser_does_alone():
    told = {"name", "aliases", "patch_levels", "compound_aliases", "sentence"}
    differing = {
        field.name for field in attrs.fields(type(WAITING)) if getattr(WAITING, field.name) != getattr(TRYLOCKED, field.name)
    }
    assert differing - told == {"lose_page_lock"}


# ---- every replaceable step is one that the kernel takes -------------------------------------------------------------


def recording(used):
    """Steps that write down which of them were called."""

    def watch(name, step):
        def called(*values):
            used.add(name)
            return step(*values)

        return called

    return {field.name: watch(field.name, getattr(Steps(), field.name)) for field in attrs.fields(Steps)}


def test_the_kernel_takes_every_step_that_can_be_replaced():
    used = set()
    stage = Stage(WAITING.with_steps(**recording(used)), system_frames=6)
    stage.touch(0, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(folio_get, Folio(1))
    assert stage.to_device(0, 1) == 0
    stage.run(folio_put, stage.kernel, Folio(1))
    losing = stage.start("losing", stage.driver.to_device, A, 0, 2)
    losing.until(FolioAllocated, pfn=101)
    stage.touch(1, write=True, cpu=1)
    assert losing.finish() == 1
    stage.run(stage.driver.evict)
    assert stage.to_device(0, 2) == 2
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert stage.to_device(0, 1) == 1
    first, second = (stage.start(name, syscalls.touch, stage.kernel, A, 1, True) for name in ("first", "second"))
    first.until(CallbackEntered)
    second.block()
    first.finish()
    second.finish()
    stage.run(syscalls.exit, stage.kernel, B)
    assert stage.to_device(0, 1) == 0
    stage.run(syscalls.fork, stage.kernel, A, B)
    stage.run(syscalls.uffd_register, stage.kernel, A, 0, 2, VmFlags.UFFD_WP)
    stage.touch(1, write=True)
    stage.run(syscalls.mprotect, stage.kernel, A, 0, 2, VmFlags.READ)
    stage.run(syscalls.mremap, stage.kernel, A, 0, 1, 3)
    take_pages_away_and_look_at_them(used)
    assert {field.name for field in attrs.fields(Steps)} - used - COMPOUND_STEPS - SWAP_STEPS - BATCH_STEPS == set()


def take_pages_away_and_look_at_them(used):
    """A page that its device had for itself, and one of this device's memory that another device asks for."""
    stage = PagesStage(Taker, devices=2)
    stage.kernel.generation = WAITING.with_steps(**recording(used))
    stage.touch(0, write=True)
    stage.settle()
    assert stage.run(stage.driver.exclusive, A, 0, 1) == 1
    stage.touch(0, write=True)
    assert stage.to_device() == 1
    assert stage.run(stage.kernel.hmm_range_fault_unlocked, HmmRange("dev1", A, (), 0, 1, "dev1", write=True)) == 0


# ---- a replaced step does what its bug did ---------------------------------------------------------------------------


async def drop_ptl_then_flush(kernel, mm, start, end, unmapped):
    await spin_unlock(mm.ptl)
    if unmapped:
        await flush_tlb_range(kernel, mm, start, end)


async def flush_nothing_yet(kernel, mm, addr):
    """As before v5.19, when exclusive pages were not flushed one by one."""


def test_a_late_flush_lets_a_store_through_after_the_entry_is_gone():
    late = WAITING.with_steps(flush_and_unlock=drop_ptl_then_flush, flush_exclusive=flush_nothing_yet)
    stage = Stage(late)
    stage.touch(0, write=True, cpu=1)
    migrator = stage.start("migrator", stage.driver.to_device, A, 0, 1)
    migrator.until(LockDropped, lock="ptl:0")
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    since = len(stage.trace)
    assert stage.touch(0, write=True, cpu=1) == 0
    assert stage.said(CpuAccessed, since) == [CpuAccessed(0, 0, 1, write=True)]
    assert stage.pte(0).kind is PteKind.NONE


def test_a_forgotten_result_makes_the_access_try_again():
    class Failing(FakeDriver):
        result = VmFault.SIGBUS

        async def migrate_to_ram(self, vmf):
            return self.result

    stage = Stage(WAITING.with_steps(fault_result=lambda _: VmFault.NONE), Failing)
    stage.touch(0, write=True)
    stage.to_device()
    player = stage.start("player", syscalls.touch, stage.kernel, A, 0, True)
    while not player.ended and len(stage.said(CallbackEntered)) < 3:
        player.step()
    player.coroutine.close()
    assert len(stage.said(CallbackEntered)) == 3


async def put_then_unlock(kernel, folio):
    await folio_put(kernel, folio)
    await folio_unlock(folio)


def test_put_before_unlock_frees_a_locked_page():
    stage = Stage(evolve(WAITING, release_fault_page=put_then_unlock))
    stage.touch(0, write=True)
    stage.to_device()
    toucher = stage.start("toucher", syscalls.touch, stage.kernel, A, 0, True)
    toucher.until(PageCopied)
    while stage.folio(100).refcount:
        toucher.step()
    assert stage.folio(100).locked


async def wait_with_a_reference(folio, ptl):
    await folio_get(folio)
    await spin_unlock(ptl)
    return True


def test_a_waiters_reference_makes_the_migration_fail():
    stage = Stage(WAITING.with_steps(wait_on_locked=wait_with_a_reference))
    stage.touch(0, write=True)
    stage.to_device()
    first, second = (stage.start(name, syscalls.touch, stage.kernel, A, 0, True) for name in ("first", "second"))
    first.until(CallbackEntered)
    second.until(FolioLockMissed)
    second.until(LockDropped, lock="ptl:0")
    assert first.until(FolioMoved).moved is False


def test_without_the_slack_the_check_sees_one_reference():
    strict = WAITING.with_steps(check_page=lambda f, extra: f.refcount - extra <= f.mapcount)
    stage = Stage(strict)
    stage.touch(0, write=True)
    stage.to_device()
    stage.run(folio_get, DEVICE_PAGE)
    args = [0]
    stage.run(stage.kernel.migrate_device_range, args, 100, 1)
    assert args == [0]


def test_uncounted_holes_leave_cpages_short():
    stage = Stage(WAITING.with_steps(count_empty=lambda _: 0))
    stage.touch(0, write=True)
    stage.to_device(0, 2)
    assert stage.said(SetupReturned)[0].cpages == 1


# ---- the kernel's own bookkeeping ------------------------------------------------------------------------------------


def test_frames_are_numbered_by_device():
    stage = Stage(WAITING, pages=0, devices=2)
    kernel = stage.kernel
    assert [folio.pfn for folio in kernel.device_folios("dev1")] == [200, 201, 202]
    assert kernel.driver_of(Folio(202)) is stage.drivers[1]
    assert (kernel.owner_of(Folio(1)), kernel.owner_of(Folio(100))) == (None, "dev0")
    assert [kernel.has_frame(pfn) for pfn in (0, 1, 4, 5, 102, 103)] == [False, True, True, False, True, False]
    with pytest.raises(ValueError, match="no device page"):
        kernel.driver_of(Folio(1))


def test_boot_says_what_exists():
    stage = Stage(WAITING, pages=0, system_frames=2, mms=3, processes=2)
    assert stage.trace[:2] == [FrameAdded(1, Memory.SYSTEM), FrameAdded(2, Memory.SYSTEM)]
    assert stage.said(FrameAdded)[-1] == FrameAdded(102, Memory.DEVICE_PRIVATE, "dev0")
    assert stage.said(MmCreated) == [MmCreated(0), MmCreated(1)]


def test_every_slot_has_a_first_value_that_can_be_hashed():
    slots = Stage(WAITING, pages=0).kernel.slots()
    assert all(hash(key) is not None and hash(value) is not None for key, value in slots.items())
    assert slots[DEVICE_PAGE] == FolioState(100, Memory.DEVICE_PRIVATE, "dev0")


@pytest.mark.parametrize("frames", [0, 101])
def test_a_device_with_too_few_or_too_many_frames_is_refused(frames):
    kernel = Kernel(WAITING)
    with pytest.raises(ValueError, match=f"{frames} page frames"):
        kernel.attach(type("Odd", (FakeDriver,), {"frames": frames})(kernel, "odd"))


def test_two_devices_cannot_share_a_name():
    kernel = Kernel(WAITING, Config())
    kernel.attach(FakeDriver(kernel, "gpu"))
    with pytest.raises(ValueError, match="'gpu' is attached already"):
        kernel.attach(FakeDriver(kernel, "gpu"))


def test_a_page_that_is_freed_while_locked_stops_the_machine():
    stage = Stage(WAITING)
    page = stage.run(stage.kernel.alloc_page, "a page")
    stage.run(stage.kernel.folio_lock, page)
    with pytest.raises(Stopped, match="freed while locked"):
        stage.run(folio_put, stage.kernel, page)


def test_an_allocation_that_may_not_fail_waits_for_a_frame():
    stage = Stage(WAITING, pages=0, system_frames=1)
    page = stage.run(stage.kernel.alloc_page, "a page")
    waiter = stage.start("waiter", stage.kernel.alloc_page_nofail)
    assert not waiter.step()
    stage.run(folio_put, stage.kernel, page)
    assert waiter.finish() == Folio(1)
