"""What a scenario begins with: the sizes of its system, and the prologue that builds its first state alone."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_spec.vocabulary import Capability, VmFlags

READ_WRITE = VmFlags.READ | VmFlags.WRITE
PARENT, CHILD = Mm(0), Mm(1)

ONE_PAGE = Config(cpus=2, system_frames=3, addresses=1, mms=1)
ONE_PAGE_FORKED = Config(cpus=2, system_frames=4, addresses=1, mms=2)
TWO_PAGES_FORKED = Config(cpus=2, system_frames=5, addresses=2, mms=2)
THREE_PAGES = Config(cpus=2, system_frames=6, addresses=3, mms=2)
ONE_LEAF = Config(cpus=2, system_frames=6, addresses=2, mms=1, pmd_order=1)
ONE_LEAF_FORKED = evolve(ONE_LEAF, system_frames=8, mms=2)
LARGE = frozenset({Capability.COMPOUND})


async def _empty(kernel: Kernel, driver: Driver, pages: int = 1) -> None:
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, pages, READ_WRITE)


async def nothing(kernel: Kernel, driver: Driver) -> None:
    """The task builds what it needs itself."""


async def one_system_page(kernel: Kernel, driver: Driver) -> None:
    """One anonymous page, written by the CPU."""
    await _empty(kernel, driver)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_device_page(kernel: Kernel, driver: Driver) -> None:
    """The same page, on the device."""
    await one_system_page(kernel, driver)
    await driver.to_device(PARENT, 0, 1)


async def one_forked_device_page(kernel: Kernel, driver: Driver) -> None:
    """The same, then forked: two address spaces map the device page."""
    await one_device_page(kernel, driver)
    await syscalls.fork(kernel, PARENT, CHILD)


async def one_forked_system_page(kernel: Kernel, driver: Driver) -> None:
    """The same page in system memory, then forked: two address spaces map it, and neither may write it."""
    await one_system_page(kernel, driver)
    await syscalls.fork(kernel, PARENT, CHILD)


async def one_mirrored_page(kernel: Kernel, driver: Driver) -> None:
    """The same page, which the device has written, so that its page table maps it."""
    await one_system_page(kernel, driver)
    await driver.device_write(PARENT, 0)


async def three_kinds(kernel: Kernel, driver: Driver) -> None:
    """A written page, a page that was only read (the zero page), and a hole."""
    await _empty(kernel, driver, 3)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await syscalls.touch(kernel, PARENT, 1, write=False)


async def batched_beside_forked(kernel: Kernel, driver: Driver) -> None:
    """A device page that a child maps too, and before it a system page in the LRU batch of CPU 0.

    In this order the migration drains while the device page is locked and the child's entry still names it.
    """
    await _empty(kernel, driver, 2)
    await syscalls.touch(kernel, PARENT, 1, write=True)
    await driver.to_device(PARENT, 1, 2)
    await syscalls.fork(kernel, PARENT, CHILD)
    await driver.open(CHILD)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_large_system_folio(kernel: Kernel, driver: Driver) -> None:
    """A folio of two pages, mapped by one leaf and written by the CPU."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 2, READ_WRITE | VmFlags.HUGEPAGE)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_page_beside_large(kernel: Kernel, driver: Driver) -> None:
    """Of a large folio the second page, and before it a page of its own: the first was discarded, and written again."""
    await one_large_system_folio(kernel, driver)
    await syscalls.madvise_dontneed(kernel, PARENT, 0, 1)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_large_device_folio(kernel: Kernel, driver: Driver) -> None:
    """The same folio, on the device."""
    await one_large_system_folio(kernel, driver)
    await driver.to_device(PARENT, 0, 2)


async def one_split_device_leaf(kernel: Kernel, driver: Driver) -> None:
    """The same folio, mapped page by page: the protection of one page was changed, and changed back."""
    await one_large_device_folio(kernel, driver)
    await syscalls.mprotect(kernel, PARENT, 0, 1, VmFlags.READ)
    await syscalls.mprotect(kernel, PARENT, 0, 1, READ_WRITE)


async def one_large_hole(kernel: Kernel, driver: Driver) -> None:
    """What a leaf would map, and nothing there."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 2, READ_WRITE | VmFlags.HUGEPAGE)


async def watched_leaf(kernel: Kernel, driver: Driver) -> None:
    """The same, in a VMA of which a userfaultfd is told."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 2, READ_WRITE | VmFlags.HUGEPAGE | VmFlags.UFFD_MISSING)


async def watched_hole(kernel: Kernel, driver: Driver) -> None:
    """A hole in a VMA of which a userfaultfd is told."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 1, READ_WRITE | VmFlags.UFFD_MISSING)
