"""Faults of drivers on the way to the device and in their mirror: lines of the kernel's test driver left out or done wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.bugs.bug import driver_bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Select, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class ForgetsFinalize(Dmirror):
    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        await self.kernel.migrate_vma_setup(args)
        await self._device_alloc_and_copy(src, dst, vma)
        await self.kernel.migrate_vma_pages(args)
        return 0


class PagesTwice(Dmirror):
    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await self.kernel.migrate_device_pages(src, dst, len(src))
        await super()._finalize_and_map(src, dst, mm, start)


class ChangesDestination(Dmirror):
    """Clears what did not work out, after the library has seen it."""

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await super()._finalize_and_map(src, dst, mm, start)
        dst[:] = [0] * len(dst)


class FreesPublished(Dmirror):
    """Unlocks and puts its destinations after they were given to the library."""

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        for entry in dst:
            page = self.kernel.migrate_pfn_to_folio(entry)
            if page is not None:
                await self.kernel.folio_unlock(page)
                await self.kernel.folio_put(page)


class MapsWhatDidNotMigrate(Dmirror):
    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await super()._finalize_and_map([entry | MIGRATE_PFN_MIGRATE for entry in src], dst, mm, start)


class MapsEarly(Dmirror):
    """Between setup and pages."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        await super()._device_alloc_and_copy(src, dst, vma)
        await super()._finalize_and_map(src, dst, vma.mm, 0)

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        """It is done."""


class MapsWritable(Dmirror):
    """Whatever WRITE says."""

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await super()._finalize_and_map(src, [entry | MIGRATE_PFN_WRITE if entry else 0 for entry in dst], mm, start)


class SkipsCopy(Dmirror):
    """Publishes the destination with whatever it held."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        for place, entry in enumerate(src):
            page = await self.state.free.pop() if entry & MIGRATE_PFN_MIGRATE else None
            if page is not None:
                await self.kernel.zone_device_page_init(page, vma.mm)
                dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class SkipsClear(Dmirror):
    """Copies what there is, and gives a hole whatever the device page held."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        for place, entry in enumerate(src):
            page = await self.state.free.pop() if entry & MIGRATE_PFN_MIGRATE else None
            if page is None:
                continue
            await self.kernel.zone_device_page_init(page, vma.mm)
            old = self.kernel.migrate_pfn_to_folio(entry)
            if old is not None:
                await self.kernel.copy_highpage(page, old)
            dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class IgnoresInvalidation(Dmirror):
    """Keeps its mappings whatever the CPU's page table says."""

    async def invalidate(self, range_: NotifierRange) -> None:
        await self.kernel.mmu_interval_set_seq(self.name, range_.mm)


class FreesLate(Dmirror):
    """Sleeps in its free callback."""

    async def folio_free(self, folio: Folio) -> None:
        await self.state.mutex.lock()
        await super().folio_free(folio)
        await self.state.mutex.unlock()


class MigratesUnlocked(Dmirror):
    """Drops mmap_lock between setup and pages."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        await self.kernel.mmap_read_unlock(vma.mm)
        await super()._device_alloc_and_copy(src, dst, vma)
        await self.kernel.mmap_read_lock(vma.mm)


def forgets_finalize(kernel: Kernel) -> Driver:
    return ForgetsFinalize(kernel, "test_hmm")


def pages_twice(kernel: Kernel) -> Driver:
    return PagesTwice(kernel, "test_hmm")


def changes_destination(kernel: Kernel) -> Driver:
    return ChangesDestination(kernel, "test_hmm")


def frees_published(kernel: Kernel) -> Driver:
    return FreesPublished(kernel, "test_hmm")


def maps_what_did_not_migrate(kernel: Kernel) -> Driver:
    return MapsWhatDidNotMigrate(kernel, "test_hmm")


def maps_early(kernel: Kernel) -> Driver:
    return MapsEarly(kernel, "test_hmm")


def maps_writable(kernel: Kernel) -> Driver:
    return MapsWritable(kernel, "test_hmm")


def skips_copy(kernel: Kernel) -> Driver:
    return SkipsCopy(kernel, "test_hmm")


def skips_clear(kernel: Kernel) -> Driver:
    return SkipsClear(kernel, "test_hmm")


def ignores_invalidation(kernel: Kernel) -> Driver:
    return IgnoresInvalidation(kernel, "test_hmm")


def frees_late(kernel: Kernel) -> Driver:
    return FreesLate(kernel, "test_hmm")


def migrates_unlocked(kernel: Kernel) -> Driver:
    return MigratesUnlocked(kernel, "test_hmm")


BUGS = (
    driver_bug(
        "B20",
        "a copy that failed is published",
        "User space reads what the page held before.",
        ("C71",),
        skips_copy,
        commit="835745a377a4",
        year="2024",
        kernels="before v6.12",
    ),
    driver_bug(
        "hole_not_cleared",
        "a hole gets a page that was not cleared",
        "Stale device memory can be read.",
        ("C17",),
        skips_clear,
    ),
    driver_bug(
        "finalize_forgotten",
        "the driver forgets finalize",
        "Pages stay locked, entries stay migration entries.",
        ("C07",),
        forgets_finalize,
    ),
    driver_bug("pages_twice", "the driver calls pages twice", "What was moved is moved again.", ("C07",), pages_twice),
    driver_bug(
        "destination_changed",
        "the driver changes dst after pages",
        "finalize restores a source whose identity is gone.",
        ("C13",),
        changes_destination,
    ),
    driver_bug(
        "published_freed",
        "the driver frees a published destination",
        "finalize unlocks and puts it again.",
        ("C45",),
        frees_published,
    ),
    driver_bug(
        "src_not_read_again",
        "the driver ignores src after pages",
        "It maps a page that finalize frees.",
        ("C49",),
        maps_what_did_not_migrate,
    ),
    driver_bug(
        "mapped_early",
        "the driver maps before pages",
        "The device uses pages that are not the addresses' pages yet, and may never be.",
        ("C78",),
        maps_early,
    ),
    driver_bug(
        "write_assumed",
        "the driver maps for writing without WRITE",
        "The device writes a page that is shared copy on write.",
        ("C22",),
        maps_writable,
    ),
    driver_bug(
        "invalidation_ignored",
        "the driver keeps its mappings",
        "The device reads and writes pages that the CPU's page table gave up.",
        ("C71", "C77", "REF"),
        ignores_invalidation,
    ),
    driver_bug("free_sleeps", "the free callback sleeps", "It runs under a page-table lock.", ("C51",), frees_late),
    driver_bug(
        "mmap_lock_dropped",
        "mmap_lock is dropped in the middle",
        "The VMA may go between setup and finalize.",
        ("C01",),
        migrates_unlocked,
    ),
)
