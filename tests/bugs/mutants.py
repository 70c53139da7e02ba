"""One-step mutations of the core and of a driver, each with the clause that must catch it.

A mutation replaces one step or one line of what is right; where it is historical, its row of the bug collection is named.
"""

from __future__ import annotations

from attrs import evolve, frozen

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.generations import ENTRY_FIRST, TRYLOCKED, WAITING, Generation
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_unlock
from migrate_vma_impl.mm.mm_types import MigrateVma
from migrate_vma_impl.mm.pgtable import flush_tlb_range, migration_entry_for
from migrate_vma_spec.events import EntryRefilled
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Select, VmFault, migrate_pfn


@frozen
class Mutant:
    """`clauses`: any of them may be the one that fires; the first is the one that the mutation was made for."""

    name: str
    clauses: tuple[str, ...]
    scenarios: tuple[str, ...]
    generation: Generation = WAITING
    driver: type[Driver] = Dmirror


# ---- steps of the core -----------------------------------------------------------------------------------------------


async def put_then_unlock(kernel, folio):
    await swap.folio_put(kernel, folio)
    await folio_unlock(folio)


async def unlock_even_the_fault_page(kernel, folio, fault_page):
    await folio_unlock(folio)


async def forget_the_lock(kernel, folio, fault_page):
    pass


async def accept_unlocked(kernel, args):
    return 0


def lose_young(pte, exclusive):
    return evolve(migration_entry_for(pte, exclusive), young=False)


async def unlock_then_flush(kernel, mm, start, end, unmapped):
    await spin_unlock(mm.ptl)
    if unmapped:
        await flush_tlb_range(kernel, mm, start, end)


async def flush_nothing(kernel, mm, addr):
    pass


async def keep_exclusive(folio):
    return True


async def keep_clean(folio, pte):
    pass


def ignore_result(result):
    return VmFault.NONE


def any_count(state, extra):
    return state.refcount


def always_good(state, extra):
    return True


async def map_nothing(kernel, folio, newfolio):
    pass


def insert_anywhere(vma, pte):
    return True


async def source_to_lru(kernel, src, dst):
    if not kernel.is_zone_device(src):
        await swap.folio_add_lru(kernel, src)


def anybodys(kernel, args, pte):
    return True


def count_nothing(entry):
    return 0


async def unlock_then_queue(folio, ptl):
    """B06's relative: the loser queues after it dropped the page-table lock, and sleeps whatever it finds."""
    from migrate_vma_impl.mm.folio import sleep_on_page_lock
    from migrate_vma_impl.mm.mm_types import FolioState, Waiter, WaitMode
    from migrate_vma_spec.events import WaitBegan

    def queue_blindly(f: FolioState, task: str):
        return (evolve(f, queue=(*f.queue, Waiter(task, WaitMode.TOLD))),), None, WaitBegan("PG_locked", f.pfn)

    await spin_unlock(ptl)
    await traps.step(queue_blindly, folio, args=(traps.ME,))
    await sleep_on_page_lock(folio)
    return True


# ---- lines of a driver -----------------------------------------------------------------------------------------------


class ForgetsFinalize(Dmirror):
    async def _window_to_device(self, vma, start, end):
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        await self.kernel.migrate_vma_setup(args)
        await self._device_alloc_and_copy(src, dst, vma.mm)
        await self.kernel.migrate_vma_pages(args)
        return 0


class FreesPublished(Dmirror):
    """Puts its destination page after it was given to the library."""

    async def _finalize_and_map(self, src, dst, mm, start):
        for entry in dst:
            page = self.kernel.migrate_pfn_to_folio(entry)
            if page is not None:
                await self.kernel.folio_unlock(page)
                await self.kernel.folio_put(page)


class MapsWhatDidNotMigrate(Dmirror):
    async def _finalize_and_map(self, src, dst, mm, start):
        await super()._finalize_and_map([entry | MIGRATE_PFN_MIGRATE for entry in src], dst, mm, start)


class SkipsCopy(Dmirror):
    """B20: the destination is published with whatever it held."""

    async def _device_alloc_and_copy(self, src, dst, mm):
        for place, entry in enumerate(src):
            page = await self.state.free.pop() if entry & MIGRATE_PFN_MIGRATE else None
            if page is not None:
                await self.kernel.zone_device_page_init(page, mm)
                dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class ForgetsFaultPage(Dmirror):
    """B02."""

    async def migrate_to_ram(self, vmf):
        mirrored = await self.kernel.zone_device_data(vmf.page)
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, Select.DEVICE_PRIVATE, None)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        await self._system_alloc_and_copy(src, dst, mirrored, vmf.address, "alloc_page in migrate_to_ram")
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE


class ForgetsToLockDestination(Dmirror):
    async def _system_alloc_and_copy(self, src, dst, mm, start, what):
        for place, entry in enumerate(src):
            old = self.kernel.migrate_pfn_to_folio(entry)
            page = await self.kernel.alloc_page(what) if old is not None and entry & MIGRATE_PFN_MIGRATE else None
            if page is not None:
                await self.kernel.copy_highpage(page, old)
                dst[place] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE


class Refills(Dmirror):
    """A fault path that refills by hand, in the place that `when` and `index` say."""

    index = 0
    times = 1
    after_pages = False

    async def migrate_to_ram(self, vmf):
        mirrored = await self.kernel.zone_device_data(vmf.page)
        start = vmf.vma.start
        count = min(2, vmf.vma.end - start)
        src, dst = [0] * count, [0] * count
        args = MigrateVma(vmf.vma, start, start + count, src, dst, self.owner, Select.DEVICE_PRIVATE)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        if not self.after_pages:
            await self.refill(args, vmf)
        await self._system_alloc_and_copy(src, dst, mirrored, start, "alloc_page in migrate_to_ram")
        await self.kernel.migrate_vma_pages(args)
        if self.after_pages:
            await self.refill(args, vmf)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE

    async def refill(self, args, vmf):
        write = MIGRATE_PFN_WRITE if vmf.orig_pte.write else 0
        for _ in range(self.times):
            entry = migrate_pfn(vmf.page.pfn) | MIGRATE_PFN_MIGRATE | write
            args.src[self.index] = entry
            args.cpages += 1
            await traps.note(EntryRefilled(args.call, self.index, entry))


class RefillsWrongIndex(Refills):
    index = 1


class RefillsTwice(Refills):
    times = 2


class RefillsAfterPages(Refills):
    after_pages = True


class RefillsWithoutBeingAsked(Refills):
    pass


FAULTS = ("fault2", "fault-munmap")
CORE = (
    Mutant("put before unlock in the fault path", ("C36",), FAULTS, evolve(WAITING, release_fault_page=put_then_unlock)),
    Mutant("finalize unlocks the fault folio", ("C31",), FAULTS, WAITING.with_steps(unlock_migrated=unlock_even_the_fault_page)),
    Mutant("restore forgets the lock", ("C21", "C44"), ("migrate-pin",), WAITING.with_steps(unlock_restored=forget_the_lock)),
    Mutant(
        "restore unlocks the fault folio",
        ("C31",),
        ("fault-borrow",),
        WAITING.with_steps(unlock_restored=unlock_even_the_fault_page),
    ),
    Mutant("setup without the lock check", ("C30",), ("refused",), evolve(WAITING, check_fault_page=accept_unlocked)),
    Mutant("young bit lost", ("C64",), ("migrate-store", "round-trip"), WAITING.with_steps(collect_entry=lose_young)),
    Mutant(
        "TLB flushed after the PTL is dropped",
        ("C59",),
        ("migrate-store",),
        WAITING.with_steps(flush_and_unlock=unlock_then_flush, flush_exclusive=flush_nothing),
    ),
    Mutant(
        "exclusivity is not given up",
        ("C66",),
        ("migrate-store", "round-trip"),
        WAITING.with_steps(share_exclusive=keep_exclusive),
    ),
    Mutant("dirty bit lost", ("C61",), ("migrate-store", "round-trip"), WAITING.with_steps(keep_dirty=keep_clean)),
    Mutant(
        "any count will do",
        ("C46",),
        ("fault-borrow", "migrate-pin"),
        WAITING.with_steps(expected_references=any_count, check_page=always_good),
    ),
    Mutant("finalize maps nothing", ("C57", "C58"), ("fault2", "migrate-store"), WAITING.with_steps(map_destination=map_nothing)),
    Mutant("inserts over what is there", ("C69",), ("migrate-holes",), WAITING.with_steps(may_insert=insert_anywhere)),
    Mutant("the freed source goes on the LRU", ("C73",), ("migrate-store",), WAITING.with_steps(add_to_lru=source_to_lru)),
    Mutant("cpages forgets the holes", ("C10",), ("migrate-holes", "round-trip"), WAITING.with_steps(count_empty=count_nothing)),
    Mutant("a wake-up is lost", ("C82",), ("fault2",), WAITING.with_steps(wait_on_locked=unlock_then_queue)),
)
DRIVERS = (
    Mutant("the driver forgets finalize", ("C07",), ("migrate-store", "round-trip"), driver=ForgetsFinalize),
    Mutant("the driver frees a published destination", ("C45",), ("migrate-store",), driver=FreesPublished),
    Mutant("the driver ignores src after pages", ("C49",), ("migrate-pin", "migrate-holes"), driver=MapsWhatDidNotMigrate),
    Mutant("the driver skips the copy", ("C71",), ("migrate-store", "round-trip"), driver=SkipsCopy),
    Mutant("the driver forgets fault_page", ("C29",), FAULTS, driver=ForgetsFaultPage),
    Mutant("the driver forgets to lock its destination", ("C28",), FAULTS, driver=ForgetsToLockDestination),
    Mutant("the driver refills the wrong index", ("C92",), ("round-trip",), ENTRY_FIRST, RefillsWrongIndex),
    Mutant("the driver refills twice", ("C92",), FAULTS, ENTRY_FIRST, RefillsTwice),
    Mutant("the driver refills after pages", ("C92",), FAULTS, ENTRY_FIRST, RefillsAfterPages),
    Mutant("the driver refills without the capability", ("C92",), FAULTS, TRYLOCKED, RefillsWithoutBeingAsked),
)
