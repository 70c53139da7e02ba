"""Faults of drivers in how they call the library: arguments, order, arrays, and what they believe of the entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.bugs.bug import driver_bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.mm.migrate import remove_migration_ptes
from migrate_vma_impl.mm.mm_types import FaultContext, MigrateVma, Mm, Vma
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Select, VmFault, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class ShortArrays(Dmirror):
    """One entry less than the range has pages."""

    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        short = max(1, end - start - 1)
        src, dst = [0] * short, [0] * short
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        result = await self.kernel.migrate_vma_setup(args)
        await self.kernel.migrate_vma_finalize(args)
        return result


class NoOwner(Dmirror):
    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, None, Select.SYSTEM)
        await self.kernel.migrate_vma_setup(args)
        await self._device_alloc_and_copy(src, dst, vma)
        await self.kernel.migrate_vma_pages(args)
        await self._finalize_and_map(src, dst, vma.mm, start)
        await self.kernel.migrate_vma_finalize(args)
        return 0


class SkipsPages(Dmirror):
    """From setup straight to finalize, as where a copy failed, with destinations set."""

    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        await self.kernel.migrate_vma_setup(args)
        await self._device_alloc_and_copy(src, dst, vma)
        await self.kernel.migrate_vma_finalize(args)
        return 0


class ChangesSource(Dmirror):
    """Writes into src what it wishes."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        await super()._device_alloc_and_copy(src, dst, vma)
        src[:] = [entry | MIGRATE_PFN_WRITE if entry else 0 for entry in src]


class MapsSourceAgain(Dmirror):
    """Gives the CPUs the source back once it is copied, and moves it all the same."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        await super()._device_alloc_and_copy(src, dst, vma)
        for entry in src:
            page = self.kernel.migrate_pfn_to_folio(entry)
            if page is not None:
                await remove_migration_ptes(self.kernel, page, page)


class BelievesSetup(Dmirror):
    """Gives finalize what setup said, and not what pages left of it."""

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await super()._finalize_and_map(src, dst, mm, start)
        src[:] = [entry | MIGRATE_PFN_MIGRATE if entry else 0 for entry in src]


class FaultPageAsDestination(Dmirror):
    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, self.select_device, vmf.page)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        if vmf.page is not None and src[0] & MIGRATE_PFN_MIGRATE:
            dst[0] = migrate_pfn(vmf.page.pfn)
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE


def short_arrays(kernel: Kernel) -> Driver:
    return ShortArrays(kernel, "test_hmm")


def no_owner(kernel: Kernel) -> Driver:
    return NoOwner(kernel, "test_hmm")


def skips_pages(kernel: Kernel) -> Driver:
    return SkipsPages(kernel, "test_hmm")


def changes_source(kernel: Kernel) -> Driver:
    return ChangesSource(kernel, "test_hmm")


def maps_source_again(kernel: Kernel) -> Driver:
    return MapsSourceAgain(kernel, "test_hmm")


def believes_setup(kernel: Kernel) -> Driver:
    return BelievesSetup(kernel, "test_hmm")


def fault_page_as_destination(kernel: Kernel) -> Driver:
    return FaultPageAsDestination(kernel, "test_hmm")


BUGS = (
    driver_bug("short_arrays", "the driver's arrays are too short", "Setup writes behind them.", ("C04",), short_arrays),
    driver_bug(
        "no_owner",
        "the driver forgets pgmap_owner",
        "It is told of its own migrations as of anybody's.",
        ("C15",),
        no_owner,
    ),
    driver_bug(
        "pages_skipped",
        "the driver skips pages with destinations set",
        "finalize frees the source, and its entries name it still.",
        ("C08",),
        skips_pages,
    ),
    driver_bug(
        "source_changed",
        "the driver changes src",
        "It gives itself a permission that no mapping had.",
        ("C12",),
        changes_source,
    ),
    driver_bug(
        "mapped_before_pages",
        "the driver maps the source again before pages",
        "The page is moved while a CPU writes to it.",
        ("C56",),
        maps_source_again,
    ),
    driver_bug(
        "setup_believed",
        "the driver believes setup",
        "A page that pages() did not move is taken for one that it did.",
        ("C48",),
        believes_setup,
    ),
    driver_bug(
        "fault_page_as_destination",
        "the driver gives the fault page as destination",
        "It is unlocked twice.",
        ("C33",),
        fault_page_as_destination,
    ),
)
