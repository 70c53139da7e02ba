"""Faults of drivers in what they hold and for how long: locks, address spaces, pages of a device that goes, exclusive access."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.bugs.bug import driver_bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.events import FolioGot
from migrate_vma_spec.vocabulary import Errno, VmFault, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- locks -----------------------------------------------------------------------------------------------------------


class FaultsUnderItsLock(Dmirror):
    """Takes its mutex in the callback, and holds it over hmm_range_fault, which may call that."""

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        await self.state.mutex.lock()
        await self.state.mutex.unlock()
        return await super().migrate_to_ram(vmf)

    async def _range_fault(self, mm: Mm, start: int, end: int, *, write: bool) -> int:
        vmas = await self.kernel.mmap_read_lock(mm)
        await self.state.mutex.lock()
        result = await self.kernel.hmm_range_fault(
            HmmRange(self.name, mm, vmas, start, end, write=write, dev_private_owner=self.owner)
        )
        await self.state.mutex.unlock()
        await self.kernel.mmap_read_unlock(mm)
        return result or -Errno.EFAULT


class MigratesUnderItsLock(Dmirror):
    """Holds the mutex over setup, which its own invalidate callback takes for the mappings of others."""

    async def _window_to_system(self, vma: Vma, start: int, end: int) -> int:
        await self.state.mutex.lock()
        result = await super()._window_to_system(vma, start, end)
        await self.state.mutex.unlock()
        return result


# ---- address spaces --------------------------------------------------------------------------------------------------


class PutsInNotifier(Dmirror):
    """Makes sure that the address space lives, in its invalidate callback."""

    async def invalidate(self, range_: NotifierRange) -> None:
        alive = await self.kernel.mmget_not_zero(range_.mm)
        await super().invalidate(range_)
        if alive:
            await self.kernel.mmput(range_.mm)


# ---- the end of the device -------------------------------------------------------------------------------------------


class KeepsPages(Dmirror):
    """Lets the device go with pages on it."""

    async def release(self) -> int:
        await self.state.free.close()
        await self.kernel.memunmap_pages(self.name)
        return 0


class GivesAfterTheEnd(Dmirror):
    """Evicts, and goes on giving its memory away."""

    async def release(self) -> int:
        evicted = await self._evict_chunk()
        await self.kernel.memunmap_pages(self.name)
        return evicted


class EvictsRetired(Dmirror):
    """Keeps a reference to what it brought back, and evicts it as if it were in use."""

    async def _window_to_system(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, self.select_device)
        await self.kernel.migrate_vma_setup(args)
        await self._system_alloc_and_copy(src, dst, vma.mm, start, "alloc_page in migrate_to_system")
        await self.kernel.migrate_vma_pages(args)
        page = self.kernel.migrate_pfn_to_folio(src[0])
        if page is not None:
            await self.kernel.folio_get(page)
        await self.kernel.migrate_vma_finalize(args)
        if page is not None:
            await self._evict_retired(page)
        return end - start

    async def _evict_retired(self, page: Folio) -> None:
        src, dst = [0], [0]
        await self.kernel.migrate_device_range(src, page.pfn, 1)
        await self.kernel.folio_put(page)
        if src[0]:
            new = await self.kernel.alloc_page_nofail()
            await self.kernel.folio_lock(new)
            await self.kernel.copy_highpage(new, page)
            dst[0] = migrate_pfn(new.pfn)
        await self.kernel.migrate_device_pages(src, dst, 1)
        await self.kernel.migrate_device_finalize(src, dst, 1)


def _keep_one(f: FolioState) -> Outcome:
    return (evolve(f, refcount=1),), None, FolioGot(f.pfn, 1)


class FreesWithReference(Dmirror):
    """A free page keeps the one reference that free device pages had."""

    async def folio_free(self, folio: Folio) -> None:
        await traps.step(_keep_one, folio)
        await super().folio_free(folio)


# ---- exclusive access ------------------------------------------------------------------------------------------------


class KeepsExclusive(Dmirror):
    """Goes without unlocking and putting what make_device_exclusive gave it."""

    async def _take_exclusive(self, mm: Mm, vmas: tuple[Vma, ...], addr: int) -> int:
        made = await self.kernel.make_device_exclusive(mm, vmas, addr)
        if isinstance(made, Errno):
            return -made
        page, _ = made
        await self.state.mutex.lock()
        await self.state.mirror.map(mm, addr, page, write=False, atomic=True)
        await self.state.mutex.unlock()
        return 0


# ---- two migrators ---------------------------------------------------------------------------------------------------


class NeverGivesIn(Dmirror):
    """Migrates until the page is on the device, and evicts until nothing is."""

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        while True:
            reply = await self._migrate_to_device(mm, start, end)
            if reply.number != -Errno.ENOENT:
                return reply.number

    async def evict(self) -> int:
        evicted = 0
        while True:
            now = await self._evict_chunk()
            evicted += now
            if not now:
                return evicted


def faults_under_its_lock(kernel: Kernel) -> Driver:
    return FaultsUnderItsLock(kernel, "test_hmm")


def migrates_under_its_lock(kernel: Kernel) -> Driver:
    return MigratesUnderItsLock(kernel, "test_hmm")


def puts_in_notifier(kernel: Kernel) -> Driver:
    return PutsInNotifier(kernel, "test_hmm")


def keeps_pages(kernel: Kernel) -> Driver:
    return KeepsPages(kernel, "test_hmm")


def gives_after_the_end(kernel: Kernel) -> Driver:
    return GivesAfterTheEnd(kernel, "test_hmm")


def evicts_retired(kernel: Kernel) -> Driver:
    return EvictsRetired(kernel, "test_hmm")


def frees_with_reference(kernel: Kernel) -> Driver:
    return FreesWithReference(kernel, "test_hmm")


def keeps_exclusive(kernel: Kernel) -> Driver:
    return KeepsExclusive(kernel, "test_hmm")


def never_gives_in(kernel: Kernel) -> Driver:
    return NeverGivesIn(kernel, "test_hmm")


BUGS = (
    driver_bug(
        "B11",
        "free device pages keep a reference",
        "Whoever looks for pages by frame number gets one that is free.",
        ("C43",),
        frees_with_reference,
        commit="ef233450898f",
        year="2022",
        kernels="before v6.2",
    ),
    driver_bug(
        "B21",
        "exclusive pages are not let go of",
        "The page that make_device_exclusive gave stays locked, with a reference, for ever.",
        ("C91",),
        keeps_exclusive,
        commit="b3fefbb30a16",
        year="2025",
        kernels="before v6.14",
    ),
    driver_bug(
        "B42",
        "the last mmput in a notifier callback",
        "The exit of the last user calls the notifiers, in whose callback it is.",
        ("C89",),
        puts_in_notifier,
        commit="a29e067bd389",
        year="2021",
        kernels="v5.x",
    ),
    driver_bug(
        "faults_under_its_lock",
        "the driver faults with the lock of its callback held",
        "Its own page is faulted in, and the callback waits for the lock.",
        ("C38",),
        faults_under_its_lock,
        commit="a6283010e290",
        year="2021",
        kernels="before v5.14",
    ),
    driver_bug(
        "migrates_under_its_lock",
        "the driver migrates with the lock of its notifier held",
        "try_to_migrate tells the driver of another address space's mapping, and the driver waits for itself.",
        ("C39",),
        migrates_under_its_lock,
    ),
    driver_bug(
        "pages_kept", "the driver lets its device go with pages on it", "memunmap_pages waits for ever.", ("C88",), keeps_pages
    ),
    driver_bug(
        "given_after_the_end",
        "the driver gives pages of a device that is gone",
        "The pgmap is used after it was freed.",
        ("C42",),
        gives_after_the_end,
    ),
    driver_bug(
        "retired_evicted",
        "a page that has migrated is evicted once more",
        "Its old contents go somewhere, and nobody is charged for them.",
        ("C54",),
        evicts_retired,
    ),
    driver_bug(
        "never_gives_in",
        "two migrations undo each other",
        "One brings the page to the device, the other evicts it, and neither stops.",
        ("C86",),
        never_gives_in,
    ),
)
