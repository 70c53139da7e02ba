"""Faults of drivers: lines of the kernel's test driver that are left out or done wrong, as real drivers had it or might."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.generations import ENTRY_FIRST, TRYLOCKED, WAITING, Generation
from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.events import EntryRefilled
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Select, VmFault, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class ForgetsFinalize(Dmirror):
    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        await self.kernel.migrate_vma_setup(args)
        await self._device_alloc_and_copy(src, dst, vma.mm)
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


class MapsAfterFinalize(Dmirror):
    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        """Not yet."""

    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        await self._device_alloc_and_copy(src, dst, vma.mm)
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        await super()._finalize_and_map(src, dst, vma.mm, start)
        return 0


class MapsWritable(Dmirror):
    """Whatever WRITE says."""

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await super()._finalize_and_map(src, [entry | MIGRATE_PFN_WRITE if entry else 0 for entry in dst], mm, start)


class SkipsCopy(Dmirror):
    """Publishes the destination with whatever it held."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm) -> None:
        for place, entry in enumerate(src):
            page = await self.state.free.pop() if entry & MIGRATE_PFN_MIGRATE else None
            if page is not None:
                await self.kernel.zone_device_page_init(page, mm)
                dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class SkipsClear(Dmirror):
    """Copies what there is, and gives a hole whatever the device page held."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm) -> None:
        for place, entry in enumerate(src):
            page = await self.state.free.pop() if entry & MIGRATE_PFN_MIGRATE else None
            if page is None:
                continue
            await self.kernel.zone_device_page_init(page, mm)
            old = self.kernel.migrate_pfn_to_folio(entry)
            if old is not None:
                await self.kernel.copy_highpage(page, old)
            dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


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


class MovesNothing(Dmirror):
    """Says that the fault is done, and has done nothing."""

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        return VmFault.NONE


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

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm) -> None:
        await self.kernel.mmap_read_unlock(mm)
        await super()._device_alloc_and_copy(src, dst, mm)
        await self.kernel.mmap_read_lock(mm)


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


def _make(kind: type[Driver], kernel: Kernel) -> Driver:
    return kind(kernel, "test_hmm")


def forgets_finalize(kernel: Kernel) -> Driver:
    return _make(ForgetsFinalize, kernel)


def pages_twice(kernel: Kernel) -> Driver:
    return _make(PagesTwice, kernel)


def changes_destination(kernel: Kernel) -> Driver:
    return _make(ChangesDestination, kernel)


def frees_published(kernel: Kernel) -> Driver:
    return _make(FreesPublished, kernel)


def maps_what_did_not_migrate(kernel: Kernel) -> Driver:
    return _make(MapsWhatDidNotMigrate, kernel)


def maps_after_finalize(kernel: Kernel) -> Driver:
    return _make(MapsAfterFinalize, kernel)


def maps_writable(kernel: Kernel) -> Driver:
    return _make(MapsWritable, kernel)


def skips_copy(kernel: Kernel) -> Driver:
    return _make(SkipsCopy, kernel)


def skips_clear(kernel: Kernel) -> Driver:
    return _make(SkipsClear, kernel)


def forgets_fault_page(kernel: Kernel) -> Driver:
    return _make(ForgetsFaultPage, kernel)


def forgets_to_lock(kernel: Kernel) -> Driver:
    return _make(ForgetsToLockDestination, kernel)


def moves_nothing(kernel: Kernel) -> Driver:
    return _make(MovesNothing, kernel)


def ignores_invalidation(kernel: Kernel) -> Driver:
    return _make(IgnoresInvalidation, kernel)


def frees_late(kernel: Kernel) -> Driver:
    return _make(FreesLate, kernel)


def migrates_unlocked(kernel: Kernel) -> Driver:
    return _make(MigratesUnlocked, kernel)


def refills(kernel: Kernel) -> Driver:
    return _make(Refills, kernel)


def refills_wrong_index(kernel: Kernel) -> Driver:
    return _make(RefillsWrongIndex, kernel)


def refills_twice(kernel: Kernel) -> Driver:
    return _make(RefillsTwice, kernel)


def refills_after_pages(kernel: Kernel) -> Driver:
    return _make(RefillsAfterPages, kernel)


def _bug(
    id_: str, title: str, sentence: str, clauses: tuple[str, ...], driver: str, record: Generation = WAITING, **known: str
) -> Bug:
    path = f"{__name__}:{driver}"
    year = known.get("year")
    return Bug(
        id_,
        title,
        sentence,
        clauses,
        record,
        path,
        known.get("commit", ""),
        int(year) if year else None,
        known.get("kernels", ""),
        adapted=record is ENTRY_FIRST,
    )


BUGS = (
    _bug(
        "B02",
        "the driver forgets fault_page",
        "The exact count is off by one, so the page that is faulted never migrates.",
        ("C29",),
        "forgets_fault_page",
        commit="nouveau: Fix migrate_to_ram() for faulting page",
        year="2022",
        kernels="v6.1-rc",
    ),
    _bug(
        "B20",
        "a copy that failed is published",
        "User space reads what the page held before.",
        ("C71",),
        "skips_copy",
        commit="835745a377a4",
        year="2024",
        kernels="before v6.12",
    ),
    _bug(
        "hole_not_cleared",
        "a hole gets a page that was not cleared",
        "Stale device memory can be read.",
        ("C17",),
        "skips_clear",
    ),
    _bug(
        "finalize_forgotten",
        "the driver forgets finalize",
        "Pages stay locked, entries stay migration entries.",
        ("C07",),
        "forgets_finalize",
    ),
    _bug("pages_twice", "the driver calls pages twice", "What was moved is moved again.", ("C07",), "pages_twice"),
    _bug(
        "destination_changed",
        "the driver changes dst after pages",
        "finalize restores a source whose identity is gone.",
        ("C13",),
        "changes_destination",
    ),
    _bug(
        "published_freed",
        "the driver frees a published destination",
        "finalize unlocks and puts it again.",
        ("C45",),
        "frees_published",
    ),
    _bug(
        "src_not_read_again",
        "the driver ignores src after pages",
        "It maps a page that finalize frees.",
        ("C49",),
        "maps_what_did_not_migrate",
    ),
    _bug(
        "mapped_late",
        "the driver maps after finalize",
        "The pages are not locked any more: they may have gone already.",
        ("C78",),
        "maps_after_finalize",
    ),
    _bug(
        "write_assumed",
        "the driver maps for writing without WRITE",
        "The device writes a page that is shared copy on write.",
        ("C22",),
        "maps_writable",
    ),
    _bug(
        "destination_not_locked",
        "the driver forgets to lock its destination",
        "The library unlocks what nobody locked.",
        ("C28",),
        "forgets_to_lock",
    ),
    _bug(
        "nothing_moved",
        "the callback does nothing and says that it is done",
        "The CPU faults for ever.",
        ("C79", "C84"),
        "moves_nothing",
    ),
    _bug(
        "invalidation_ignored",
        "the driver keeps its mappings",
        "The device reads and writes pages that the CPU's page table gave up.",
        ("C71", "C77", "REF"),
        "ignores_invalidation",
    ),
    _bug("free_sleeps", "the free callback sleeps", "It runs under a page-table lock.", ("C51",), "frees_late"),
    _bug(
        "mmap_lock_dropped",
        "mmap_lock is dropped in the middle",
        "The VMA may go between setup and finalize.",
        ("C01",),
        "migrates_unlocked",
    ),
    _bug(
        "refilled_at_wrong_index",
        "the driver refills the wrong entry",
        "Another page is taken for the fault page.",
        ("C92",),
        "refills_wrong_index",
        ENTRY_FIRST,
    ),
    _bug("refilled_twice", "the driver refills twice", "cpages counts it twice.", ("C92",), "refills_twice", ENTRY_FIRST),
    _bug(
        "refilled_late", "the driver refills after pages", "The page is not moved.", ("C92",), "refills_after_pages", ENTRY_FIRST
    ),
    _bug(
        "refilled_unasked",
        "the driver refills without the capability",
        "It writes into src, which is the library's.",
        ("C92", "C12"),
        "refills",
        TRYLOCKED,
    ),
)
