"""What the tasks of a scenario do: system calls of the simulated kernel, and operations of the driver."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.scenarios.prologues import CHILD, PARENT
from migrate_vma_conformance.scenarios.scenario import Act
from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm
from migrate_vma_spec.events import OperationBegan, OperationEnded
from migrate_vma_spec.vocabulary import Capability, Select, VmFlags


def touch(mm: Mm, addr: int, *, write: bool) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await syscalls.touch(kernel, mm, addr, write=write)

    return act


def to_device(mm: Mm, start: int, end: int) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await driver.to_device(mm, start, end)

    return act


def to_system(mm: Mm, start: int, end: int) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await driver.to_system(mm, start, end)

    return act


def device_access(mm: Mm, addr: int, *, write: bool) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await (driver.device_write if write else driver.device_read)(mm, addr)

    return act


async def evict(kernel: Kernel, driver: Driver) -> None:
    await driver.evict()


async def take_exclusive(kernel: Kernel, driver: Driver) -> None:
    await driver.exclusive(PARENT, 0, 1)


async def reclaim(kernel: Kernel, driver: Driver) -> None:
    await syscalls_files.pageout(kernel, PARENT, 0, 1)


async def release(kernel: Kernel, driver: Driver) -> None:
    await driver.release()


async def unmap(kernel: Kernel, driver: Driver) -> None:
    await syscalls.munmap(kernel, PARENT, 0, 1)


async def discard(kernel: Kernel, driver: Driver) -> None:
    await syscalls.madvise_dontneed(kernel, PARENT, 0, 1)


async def fork(kernel: Kernel, driver: Driver) -> None:
    await syscalls.fork(kernel, PARENT, CHILD)


async def borrow_device_page(kernel: Kernel, driver: Driver) -> None:
    """A transient reference to the device page, as compaction takes one."""
    await syscalls.speculative_reference(kernel, driver.folios[0].pfn)


async def pin_and_unpin(kernel: Kernel, driver: Driver) -> None:
    await syscalls.pin_and_unpin(kernel, PARENT, 0)


async def round_trip(kernel: Kernel, driver: Driver) -> None:
    """Alone: to the device, the device's access, back by a fault, to the device, a fork, stores on both sides, the end."""
    await driver.to_device(PARENT, 0, 3)
    if Load.DEVICE_WRITE in driver.loads:
        await driver.device_write(PARENT, 0)
        await driver.device_read(PARENT, 1)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await driver.to_device(PARENT, 0, 3)
    await syscalls.fork(kernel, PARENT, CHILD)
    if Load.DEVICE_READ in driver.loads:
        await driver.device_read(PARENT, 0)
    await syscalls.touch(kernel, CHILD, 0, write=True)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await driver.to_system(PARENT, 0, 3)
    await syscalls.exit(kernel, CHILD)
    await syscalls.munmap(kernel, PARENT, 0, 3)


async def refused_setups(kernel: Kernel, driver: Driver) -> None:
    """Every argument that migrate_vma_setup refuses, in the order of its checks, with a device page mapped."""
    await traps.note(OperationBegan("refused setups"))
    vmas = await kernel.mmap_read_lock(PARENT)
    vma, fault_page = vmas[0], driver.folios[0]
    wrong = (
        MigrateVma(None, 0, 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(evolve(vma, flags=vma.flags | VmFlags.PFNMAP), 0, 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(evolve(vma, flags=vma.flags | VmFlags.HUGETLB), 0, 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, 0, [], [], driver.owner, Select.SYSTEM),
        MigrateVma(vma, vma.end, vma.end + 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, vma.end + 1, [0] * (vma.end + 1), [0] * (vma.end + 1), driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, 1, None, [0], driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, 1, [0], None, driver.owner, Select.SYSTEM),
    )
    for args in wrong:
        await kernel.migrate_vma_setup(args)
    capabilities = kernel.generation.capabilities
    pages = [Folio(1)] * (Capability.FAULT_PAGE in capabilities) + [fault_page] * (Capability.FAULT_LOCK in capabilities)
    for page in pages:
        await kernel.migrate_vma_setup(MigrateVma(vma, 0, 1, [0], [0], driver.owner, Select.DEVICE_PRIVATE, page))
    await kernel.mmap_read_unlock(PARENT)
    await traps.note(OperationEnded("refused setups", 0))
