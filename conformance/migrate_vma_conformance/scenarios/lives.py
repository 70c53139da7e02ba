"""What one CPU and the device do to pages, one thing after the other: what no race is needed for, over all of mm.

Each life is short: its states are its steps.
"""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.scenarios.prologues import (
    CHILD,
    LARGE,
    ONE_LEAF_FORKED,
    ONE_PAGE,
    ONE_PAGE_FORKED,
    PARENT,
    READ_WRITE,
    nothing,
    one_device_page,
    one_system_page,
)
from migrate_vma_conformance.scenarios.scenario import Actor, Scenario
from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.mm import syscalls, syscalls_files, syscalls_pin
from migrate_vma_spec.vocabulary import VmFlags


async def forked_life(kernel: Kernel, driver: Driver) -> None:
    """A device page of two address spaces that the device serves: a fault, the device's access, and back to the device."""
    await syscalls.fork(kernel, PARENT, CHILD)
    await driver.open(CHILD)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await driver.device_read(CHILD, 0)
    await driver.to_device(CHILD, 0, 1)
    await driver.to_system(CHILD, 0, 1)
    await driver.to_device(CHILD, 0, 1)
    await driver.evict()
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def swapped_life(kernel: Kernel, driver: Driver) -> None:
    """Swapped out, read in again, so that the swap cache has it still; to the device, and back."""
    await driver.to_device(PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await syscalls_files.pageout(kernel, PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await driver.to_device(PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def exclusive_life(kernel: Kernel, driver: Driver) -> None:
    """The device has the page to itself, until a CPU touches it; and once more, until a fork."""
    await driver.exclusive(PARENT, 0, 1)
    await driver.check_exclusive(PARENT, 0)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await driver.exclusive(PARENT, 0, 1)
    await syscalls.fork(kernel, PARENT, CHILD)
    await syscalls.exit(kernel, CHILD)
    await syscalls.munmap(kernel, PARENT, 0, 1)


async def file_life(kernel: Kernel, driver: Driver) -> None:
    """A private mapping of a file: its page as the file has it stays, the page that was written goes to the device. Memory of a
    device, mapped over it, is refused.
    """
    await driver.open(PARENT)
    await syscalls_files.mmap_file(kernel, PARENT, 0, 2, 0)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await driver.to_device(PARENT, 0, 2)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await driver.to_device(PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await syscalls_pin.mmap_device(kernel, PARENT, 0, 1)
    await driver.to_device(PARENT, 0, 1)


async def guarded_life(kernel: Kernel, driver: Driver) -> None:
    """Soft-dirty and guarded against stores by a userfaultfd: to the device and back, while permissions change."""
    await syscalls.uffd_register(kernel, PARENT, 0, 1, VmFlags.UFFD_WP)
    await syscalls.uffd_writeprotect(kernel, PARENT, 0, 1, protect=True)
    await driver.to_device(PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await driver.to_device(PARENT, 0, 1)
    await syscalls.uffd_writeprotect(kernel, PARENT, 0, 1, protect=False)
    await syscalls.mprotect(kernel, PARENT, 0, 1, VmFlags.READ)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await syscalls.mprotect(kernel, PARENT, 0, 1, READ_WRITE)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await driver.to_device(PARENT, 0, 1)
    await syscalls.mremap(kernel, PARENT, 0, 1, 1)
    await syscalls.touch(kernel, PARENT, 1, write=True)


async def on_the_other_device(kernel: Kernel, driver: Driver) -> None:
    """A page that a second device has, whose driver is the wide one."""
    await one_system_page(kernel, driver)
    other = kernel.devices["another"]
    await other.open(PARENT)
    await other.to_device(PARENT, 0, 1)


async def life_between_devices(kernel: Kernel, driver: Driver) -> None:
    """What another device has is not to be had; the device's access brings it back, and then it goes to this device."""
    await driver.to_system(PARENT, 0, 1)
    await driver.device_read(PARENT, 0)
    await driver.to_device(PARENT, 0, 1)
    await kernel.devices["another"].to_device(PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def released_life(kernel: Kernel, driver: Driver) -> None:
    """The driver lets its device go, and is asked for its memory once more."""
    await driver.release()
    await driver.to_device(PARENT, 0, 1)


async def vma_locked_life(kernel: Kernel, driver: Driver) -> None:
    """A fault that begins under the VMA's lock alone."""
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def empty_leaves(kernel: Kernel, driver: Driver) -> None:
    """Two empty leaves; the first is only read, so that it is the huge zero page."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 4, READ_WRITE | VmFlags.HUGEPAGE)
    await syscalls.touch(kernel, PARENT, 0, write=False)


async def large_life(kernel: Kernel, driver: Driver) -> None:
    """Whole leaves and halves of them: zero pages, holes, and a large folio of which one page is left beside a small one."""
    await driver.to_device(PARENT, 0, 4)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await driver.to_device(PARENT, 1, 2)
    await syscalls.touch(kernel, PARENT, 1, write=True)
    await syscalls.touch(kernel, PARENT, 3, write=True)
    await syscalls.madvise_dontneed(kernel, PARENT, 2, 3)
    await syscalls.touch(kernel, PARENT, 2, write=True)
    await syscalls.fork(kernel, PARENT, CHILD)
    await syscalls.exit(kernel, CHILD)
    await syscalls.touch(kernel, PARENT, 2, write=False)
    await driver.to_device(PARENT, 0, 4)
    await syscalls.munmap(kernel, PARENT, 0, 4)


_SOLO = {Load.TO_DEVICE, Load.TO_SYSTEM}

SCENARIOS = (
    Scenario(
        "life-forked",
        "One CPU and the device use a device page that two address spaces map.",
        ONE_PAGE_FORKED,
        one_device_page,
        (Actor("t1", 0, forked_life),),
        workers=True,
        loads=frozenset({*_SOLO, Load.EVICT, Load.DEVICE_READ}),
    ),
    Scenario(
        "life-swapped",
        "A page that is in the swap cache goes to the device and back.",
        evolve(ONE_PAGE, swap_slots=1),
        one_system_page,
        (Actor("t1", 0, swapped_life),),
        workers=True,
    ),
    Scenario(
        "life-exclusive",
        "The device takes a page for itself, until a CPU touches it or a process is forked.",
        ONE_PAGE_FORKED,
        one_system_page,
        (Actor("t1", 0, exclusive_life),),
        workers=True,
        loads=frozenset({Load.EXCLUSIVE, Load.CHECK_EXCLUSIVE}),
    ),
    Scenario(
        "life-file",
        "Pages of a private mapping of a file, written and not, are asked to go to the device.",
        evolve(ONE_PAGE, addresses=2, system_frames=5, files=1, file_pages=2),
        nothing,
        (Actor("t1", 0, file_life),),
        workers=True,
    ),
    Scenario(
        "life-guarded",
        "A page that a userfaultfd guards goes to the device and back, is protected and moved.",
        evolve(ONE_PAGE, addresses=2),
        one_system_page,
        (Actor("t1", 0, guarded_life),),
        workers=True,
    ),
    Scenario(
        "life-two-devices",
        "A page that another device has is asked for by this one.",
        ONE_PAGE,
        on_the_other_device,
        (Actor("t1", 0, life_between_devices),),
        workers=True,
        loads=frozenset({*_SOLO, Load.DEVICE_READ}),
        another=True,
    ),
    Scenario(
        "life-released",
        "The driver is unbound, and asked for its device's memory again.",
        ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, released_life),),
        workers=True,
        loads=frozenset({Load.TO_DEVICE, Load.RELEASE}),
    ),
    Scenario(
        "life-vma-lock",
        "A fault on a device page begins under the VMA's lock.",
        evolve(ONE_PAGE, vma_locks=True),
        one_device_page,
        (Actor("t1", 0, vma_locked_life),),
    ),
    Scenario(
        "life-large",
        "One CPU and the device use large folios, whole and in parts.",
        evolve(ONE_LEAF_FORKED, addresses=4, system_frames=10),
        empty_leaves,
        (Actor("t1", 0, large_life),),
        workers=True,
        requires=LARGE,
    ),
)
