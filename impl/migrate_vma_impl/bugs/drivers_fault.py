"""Faults of drivers in the fault path: the fault page, destinations in system memory, the refill of the fault entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from migrate_vma_impl.bugs.bug import driver_bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.generations import ENTRY_FIRST, TRYLOCKED
from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm
from migrate_vma_spec.events import EntryRefilled
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Select, VmFault, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class ForgetsFaultPage(Dmirror):
    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        return await super().migrate_to_ram(vmf) if vmf.page is None else await self._without_fault_page(vmf, vmf.page)

    async def _without_fault_page(self, vmf: FaultContext, page: Folio) -> VmFault:
        mirrored: Mm = await self.kernel.zone_device_data(page)
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, Select.DEVICE_PRIVATE)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        await self._system_alloc_and_copy(src, dst, mirrored, vmf.address, "alloc_page in migrate_to_ram")
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE


class ForgetsToLockDestination(Dmirror):
    async def _system_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm, start: int, what: str) -> None:
        for place, entry in enumerate(src):
            old = self.kernel.migrate_pfn_to_folio(entry)
            if old is None or not entry & MIGRATE_PFN_MIGRATE:
                continue
            page = await self.kernel.alloc_page(what)
            if page is not None:
                await self.kernel.copy_highpage(page, old)
                dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class CopiesWhatItMaps(Dmirror):
    """Leaves the page in the device's page table until it has come back."""

    async def _system_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm, start: int, what: str) -> None:
        for place, entry in enumerate(src):
            old = self.kernel.migrate_pfn_to_folio(entry)
            page = await self.kernel.alloc_page(what) if old is not None and entry & MIGRATE_PFN_MIGRATE else None
            if page is not None and old is not None:
                await self.kernel.folio_lock(page)
                await self.kernel.copy_highpage(page, old)
                await self.state.mirror.unmap(mm, start + place)
                dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class MovesNothing(Dmirror):
    """Says that the fault is done, and has done nothing."""

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        return VmFault.NONE


class TriesAgain(Wide):
    """Has no memory for the fault page, and says that the fault is done."""

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        result = await super().migrate_to_ram(vmf)
        return VmFault.NONE if result is VmFault.OOM else result


class Refills(Dmirror):
    """A fault path that refills by hand, where and as often as the class says."""

    index: ClassVar[int] = 0
    times: ClassVar[int] = 1
    after_pages: ClassVar[bool] = False

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        return VmFault.SIGBUS if vmf.page is None else await self._refilling(vmf, vmf.page)

    async def _refilling(self, vmf: FaultContext, page: Folio) -> VmFault:
        mirrored: Mm = await self.kernel.zone_device_data(page)
        start = vmf.vma.start
        count = min(2, vmf.vma.end - start)
        src, dst = [0] * count, [0] * count
        args = MigrateVma(vmf.vma, start, start + count, src, dst, self.owner, Select.DEVICE_PRIVATE)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        if not self.after_pages:
            await self._refill(src, args, vmf, page)
        await self._system_alloc_and_copy(src, dst, mirrored, start, "alloc_page in migrate_to_ram")
        await self.kernel.migrate_vma_pages(args)
        if self.after_pages:
            await self._refill(src, args, vmf, page)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE

    async def _refill(self, src: list[int], args: MigrateVma, vmf: FaultContext, page: Folio) -> None:
        write = MIGRATE_PFN_WRITE if vmf.orig_pte.write else 0
        for _ in range(self.times):
            src[self.index] = migrate_pfn(page.pfn) | MIGRATE_PFN_MIGRATE | write
            args.cpages += 1
            await traps.note(EntryRefilled(args.call, self.index, src[self.index]))


class RefillsWrongIndex(Refills):
    index: ClassVar[int] = 1


class RefillsTwice(Refills):
    times: ClassVar[int] = 2


class RefillsAfterPages(Refills):
    after_pages: ClassVar[bool] = True


def forgets_fault_page(kernel: Kernel) -> Driver:
    return ForgetsFaultPage(kernel, "test_hmm")


def forgets_to_lock(kernel: Kernel) -> Driver:
    return ForgetsToLockDestination(kernel, "test_hmm")


def copies_what_it_maps(kernel: Kernel) -> Driver:
    return CopiesWhatItMaps(kernel, "test_hmm")


def moves_nothing(kernel: Kernel) -> Driver:
    return MovesNothing(kernel, "test_hmm")


def tries_again(kernel: Kernel) -> Driver:
    return TriesAgain(kernel, "wide")


def refills(kernel: Kernel) -> Driver:
    return Refills(kernel, "test_hmm")


def refills_wrong_index(kernel: Kernel) -> Driver:
    return RefillsWrongIndex(kernel, "test_hmm")


def refills_twice(kernel: Kernel) -> Driver:
    return RefillsTwice(kernel, "test_hmm")


def refills_after_pages(kernel: Kernel) -> Driver:
    return RefillsAfterPages(kernel, "test_hmm")


BUGS = (
    driver_bug(
        "B02",
        "the driver forgets fault_page",
        "The exact count is off by one, so the page that is faulted never migrates.",
        ("C29",),
        forgets_fault_page,
        commit="nouveau: Fix migrate_to_ram() for faulting page",
        year="2022",
        kernels="v6.1-rc",
    ),
    driver_bug(
        "destination_not_locked",
        "the driver forgets to lock its destination",
        "The library unlocks what nobody locked.",
        ("C28",),
        forgets_to_lock,
    ),
    driver_bug(
        "copied_while_mapped",
        "the driver copies what its device maps still",
        "What the device writes after the copy is lost.",
        ("C77",),
        copies_what_it_maps,
    ),
    driver_bug(
        "nothing_moved",
        "the callback does nothing and says that it is done",
        "The CPU faults for ever.",
        ("C79", "C84"),
        moves_nothing,
    ),
    driver_bug(
        "short_memory_retried",
        "the callback is out of memory and says that it is done",
        "The CPU faults again while memory stays short, and is not told.",
        ("C79",),
        tries_again,
        base="wide",
    ),
    driver_bug(
        "refilled_at_wrong_index",
        "the driver refills the wrong entry",
        "Another page is taken for the fault page.",
        ("C92",),
        refills_wrong_index,
        ENTRY_FIRST,
    ),
    driver_bug("refilled_twice", "the driver refills twice", "cpages counts it twice.", ("C92",), refills_twice, ENTRY_FIRST),
    driver_bug(
        "refilled_late", "the driver refills after pages", "The page is not moved.", ("C92",), refills_after_pages, ENTRY_FIRST
    ),
    driver_bug(
        "refilled_unasked",
        "the driver refills without the capability",
        "It writes into src, which is the library's.",
        ("C92", "C12"),
        refills,
        TRYLOCKED,
    ),
)
