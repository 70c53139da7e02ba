"""The parts by which generations differ: how the fault path claims a device-private page, and how it lets go of it.

Rules:
- A claim runs between do_swap_page's first look at the entry and the driver's callback. True: the callback may run, and what
  the claim took is let go of by the same generation's release. False: nothing is held, not even the page-table lock.
- A loser of the page lock is entered with the page-table lock held, and leaves without it.
- A claim is told the page that the entry names. Lock and reference are its folio's: of a large one, those of all its pages; and
  who lets go looks the folio up again, for it may have been split in between, with both handed to the folio of the page.
- The parts for a fault on a whole large folio (`pmd`) do the same one level up, under the same page-table lock.
- Sibling parts keep the order of their steps, so that two of them side by side show what changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get, folio_nr_pages, folio_trylock, folio_unlock, page_folio
from migrate_vma_impl.mm.huge_memory_device import lock_if_same_pmd
from migrate_vma_impl.mm.huge_memory_folio import split_huge_page
from migrate_vma_impl.mm.huge_memory_migrate import set_pmd_migration_entry
from migrate_vma_impl.mm.memory_lock import lock_if_same
from migrate_vma_impl.mm.migrate_device_collect import migration_entry_at
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, MigrateVma, Pgmap, PgmapState
from migrate_vma_impl.mm.pgtable import hpage_nr
from migrate_vma_spec.events import EntryRefilled, FolioRead, Oops
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Errno, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- the claim -------------------------------------------------------------------------------------------------------


def _use_pgmap(f: FolioState, pgmap: PgmapState) -> Outcome:
    if pgmap.dying and not pgmap.refs:
        return (f, pgmap), None, Oops("page->pgmap->ops is called, and the device is gone", f.pfn)
    return (f, pgmap), None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def claim_nothing(kernel: Kernel, vmf: FaultContext, page: Folio) -> bool:
    """v5.18: the page of the entry as it was read, without lock or reference.

    So page->pgmap, through which the driver is called, is read of a page that may be free by now, or of a device that is gone.
    The other claims hold a reference there, and need no step for it.
    """
    await traps.step(_use_pgmap, page, Pgmap(kernel.driver_of(page).name))
    return True


async def claim_reference(kernel: Kernel, vmf: FaultContext, page: Folio) -> bool:
    """v6.1: a reference, under the page-table lock, while the entry still maps the page."""
    if not await lock_if_same(vmf):
        return False
    await folio_get(page)
    await spin_unlock(vmf.vma.mm.ptl)
    return True


async def claim_lock_and_reference(kernel: Kernel, vmf: FaultContext, page: Folio) -> bool:
    """v6.15: the page lock first, tried under the page-table lock; only who has it takes a reference."""
    if not await lock_if_same(vmf):
        return False
    folio = await page_folio(kernel, page)
    if not await folio_trylock(folio):
        await kernel.generation.lose_page_lock(kernel, vmf, folio)
        return False
    await folio_get(folio)
    await spin_unlock(vmf.vma.mm.ptl)
    return True


async def claim_by_migration_entry(kernel: Kernel, vmf: FaultContext, page: Folio) -> bool:
    """Never merged: lock, reference, and a migration entry for the device-private one, as the collect walk would put it.

    A large folio is split first, for what is handed over is one page; the fault is then made again.
    """
    if not await lock_if_same(vmf):
        return False
    folio = await page_folio(kernel, page)
    if not await folio_trylock(folio):
        await kernel.generation.lose_page_lock(kernel, vmf, folio)
        return False
    await folio_get(folio)
    if await folio_nr_pages(kernel, folio) > 1:
        await spin_unlock(vmf.vma.mm.ptl)
        await split_huge_page(kernel, page)
        await release_lock_and_reference(kernel, page)
        return False
    # A device-private page cannot be pinned, so its exclusivity can always be shared and the entry always be replaced.
    replaced = await migration_entry_at(kernel, vmf.vma, vmf.address, vmf.orig_pte, folio)
    await spin_unlock(vmf.vma.mm.ptl)
    return replaced


async def claim_pmd_lock_and_reference(kernel: Kernel, vmf: FaultContext, folio: Folio) -> bool:
    """v6.19: as claim_lock_and_reference, for a leaf of the middle level."""
    if not await lock_if_same_pmd(kernel, vmf):
        return False
    if not await folio_trylock(folio):
        await kernel.generation.lose_page_lock_pmd(kernel, vmf, folio)
        return False
    await folio_get(folio)
    await spin_unlock(vmf.vma.mm.ptl)
    return True


async def claim_pmd_by_migration_entry(kernel: Kernel, vmf: FaultContext, folio: Folio) -> bool:
    """Never merged: the migration entry takes the place of the whole leaf."""
    if not await lock_if_same_pmd(kernel, vmf):
        return False
    if not await folio_trylock(folio):
        await kernel.generation.lose_page_lock_pmd(kernel, vmf, folio)
        return False
    await folio_get(folio)
    replaced = await set_pmd_migration_entry(kernel, vmf.vma, vmf.address, folio)
    await spin_unlock(vmf.vma.mm.ptl)
    return replaced


# ---- the loser of the page lock --------------------------------------------------------------------------------------


async def lose_never(kernel: Kernel, vmf: FaultContext, folio: Folio) -> None:
    """Before v6.15 the fault path takes no page lock, and so loses none."""
    await spin_unlock(vmf.vma.mm.ptl)


async def lose_by_retry(kernel: Kernel, vmf: FaultContext, folio: Folio) -> None:
    """v6.15: the fault returns, the access is made again, and the task spins so until the lock is free."""
    await spin_unlock(vmf.vma.mm.ptl)


async def lose_by_waiting(kernel: Kernel, vmf: FaultContext, folio: Folio) -> None:
    """v7.0: sleep until the page is unlocked, without a reference, then make the access again."""
    await kernel.generation.steps.wait_on_locked(folio, vmf.vma.mm.ptl)


async def lose_pmd_by_retry(kernel: Kernel, vmf: FaultContext, folio: Folio) -> None:
    """v6.19 to v7.3: at this level the loser still spins, also where the loser of a page sleeps (lose_by_waiting would do)."""
    await spin_unlock(vmf.vma.mm.ptl)


# ---- letting go ------------------------------------------------------------------------------------------------------


async def release_nothing(kernel: Kernel, page: Folio) -> None:
    """Nothing was claimed, or finalize has let go of it."""


async def release_reference(kernel: Kernel, page: Folio) -> None:
    await swap.folio_put(kernel, page)


async def release_lock_and_reference(kernel: Kernel, page: Folio) -> None:
    """Unlock first: the put may free the page."""
    folio = await page_folio(kernel, page)
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)


# ---- what migrate_vma_setup demands of args.fault_page ---------------------------------------------------------------


async def accept_any_fault_page(kernel: Kernel, args: MigrateVma) -> int:
    """The struct has no such field: whatever a driver puts there is not looked at."""
    return 0


async def demand_device_private(kernel: Kernel, args: MigrateVma) -> int:
    if args.fault_page is not None and not kernel.is_device_private(args.fault_page):
        return -Errno.EINVAL
    return 0


def _is_locked(f: FolioState) -> Outcome:
    return (f,), f.locked, FolioRead(f.pfn, f.refcount, f.mapcount)


async def demand_locked_device_private(kernel: Kernel, args: MigrateVma) -> int:
    if args.fault_page is not None and not kernel.is_device_private(args.fault_page):
        return -Errno.EINVAL
    if args.fault_page is not None and not await traps.step(_is_locked, await page_folio(kernel, args.fault_page)):
        return -Errno.EINVAL
    return 0


# ---- the entry that the driver puts back -----------------------------------------------------------------------------


async def refill_nothing(kernel: Kernel, args: MigrateVma, vmf: FaultContext) -> None:
    """The fault page is collected by setup like any other."""


async def refill_entry(kernel: Kernel, args: MigrateVma, vmf: FaultContext) -> None:
    """Setup saw a migration entry at the fault address: say that its page, which the fault handed over, migrates with the rest.

    Whether the mapping was writable is told by the entry that the fault began with. A whole large folio is handed over at the
    first page of its leaf, and is COMPOUND.
    """
    nr = hpage_nr(kernel) if vmf.pmd_fault else 1
    index = vmf.address - vmf.address % nr - args.start
    if vmf.page is None or args.src is None or not 0 <= index <= min(args.npages, len(args.src)) - nr:
        await traps.oops(f"the entry of address {vmf.address} is refilled, which the migration does not cover")
        return
    found = vmf.orig_pmd if vmf.pmd_fault else vmf.orig_pte
    entry = migrate_pfn(vmf.page.pfn) | MIGRATE_PFN_MIGRATE | (MIGRATE_PFN_WRITE if found.write else 0)
    entry |= MIGRATE_PFN_COMPOUND if vmf.pmd_fault else 0
    args.src[index] = entry
    args.cpages += 1
    await traps.note(EntryRefilled(args.call, index, entry))
