"""The first phase of migrate_vma_setup: walk the page table, and lock and unmap what can be taken (mm/migrate_device.c, 7.3).

Rules:
- The walk runs under the page-table lock from its first entry to its last; the page lock is only tried.
- What cannot be taken gets the entry 0, and nothing of it stays held.
- A page is taken by replacing its entry with a migration entry, whose bits are those of the entry replaced. The collect
  reference and the page lock stay with the entry in `src`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get, folio_unlock
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.pgtable import flush_tlb_range, pte_present, ptep_get, ptep_get_and_clear, set_pte_at
from migrate_vma_impl.mm.rmap import folio_mark_dirty, folio_remove_rmap
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    NotifyReason,
    Pte,
    PteKind,
    Select,
    migrate_pfn,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def locked_by_fault(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """Whether the page lock is the fault handler's: the library neither takes nor drops it."""
    return kernel.generation.fault_page_locked and folio == fault_page


async def migrate_vma_collect(kernel: Kernel, args: MigrateVma) -> None:
    """Collect inside a notifier bracket, event MIGRATE with the caller's owner."""
    vma = args.vma
    if vma is None:
        return
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, args.start, args.end, NotifyReason.MIGRATE, args.pgmap_owner)
    await migrate_vma_collect_pmd(kernel, args, vma)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, args.start, args.end)
    args.end = args.start + args.npages


async def migrate_vma_collect_pmd(kernel: Kernel, args: MigrateVma, vma: Vma) -> None:
    """The walk. An empty entry under an absent page table is an empty entry here, collected under the lock as the others."""
    if args.src is None or args.dst is None:
        return
    unmapped = 0
    await spin_lock(vma.mm.ptl)
    for addr in range(args.start, args.end):
        mpfn, flush = await _collect_entry(kernel, args, vma, addr)
        if mpfn:
            args.cpages += 1
        unmapped += flush
        args.dst[args.npages] = 0
        args.src[args.npages] = mpfn
        args.npages += 1
    await kernel.generation.steps.flush_and_unlock(kernel, vma.mm, args.start, args.end, unmapped)


async def flush_then_drop_ptl(kernel: Kernel, mm: Mm, start: int, end: int, unmapped: int) -> None:
    """The end of the walk: one flush for all present entries that were cleared, before the page-table lock is dropped."""
    if unmapped:
        await flush_tlb_range(kernel, mm, start, end)
    await spin_unlock(mm.ptl)


async def _collect_entry(kernel: Kernel, args: MigrateVma, vma: Vma, addr: int) -> tuple[int, int]:
    """One page-table entry: its src entry, and 1 if a present entry was cleared and has to be flushed."""
    pte = await ptep_get(vma.mm, addr)
    empty = kernel.generation.steps.empty_entry(args, vma, pte)
    if empty is not None:
        return empty, 0
    if pte.pfn is None or not kernel.generation.steps.selects(kernel, args, pte):
        return 0, 0
    folio = Folio(pte.pfn)
    if not await _replace(kernel, args, vma, addr, pte, folio):
        return 0, 0
    return migrate_pfn(folio.pfn) | MIGRATE_PFN_MIGRATE | (MIGRATE_PFN_WRITE if pte.write else 0), int(pte_present(pte))


def empty_entry(args: MigrateVma, vma: Vma, pte: Pte) -> int | None:
    """The src entry of what has no page: a hole of an anonymous VMA, or the zero page if system pages are selected. Else None."""
    if pte.kind is PteKind.NONE:
        return MIGRATE_PFN_MIGRATE if vma.anon_vma is not None else 0
    if pte.kind is PteKind.ZERO:
        return MIGRATE_PFN_MIGRATE if args.flags & Select.SYSTEM else 0
    return None


def selects(kernel: Kernel, args: MigrateVma, pte: Pte) -> bool:
    """Whether the caller asked for pages of this kind: a device's only if it is the caller's, system pages only by SYSTEM."""
    if pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None:
        return bool(args.flags & Select.DEVICE_PRIVATE) and kernel.owner_of(Folio(pte.pfn)) == args.pgmap_owner
    return pte.kind is PteKind.PRESENT and bool(args.flags & Select.SYSTEM)


async def _replace(kernel: Kernel, args: MigrateVma, vma: Vma, addr: int, pte: Pte, folio: Folio) -> bool:
    """Reference and lock the page and put a migration entry in its place; False with nothing held."""
    fault_locked = locked_by_fault(kernel, folio, args.fault_page)
    await folio_get(folio)
    if not fault_locked and not await kernel.generation.steps.lock_collected(folio):
        await swap.folio_put(kernel, folio)
        return False
    if await migration_entry_at(kernel, vma, addr, pte, folio):
        return True
    if not fault_locked:
        await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
    return False


async def migration_entry_at(kernel: Kernel, vma: Vma, addr: int, pte: Pte, folio: Folio) -> bool:
    """Replace the entry that maps a locked and referenced page. False: the page is pinned, and the entry is as it was.

    A present entry of an exclusive page is flushed at once, for exclusivity may be given up only when no CPU can write; the
    others are flushed at the end of the walk.
    """
    present = pte_present(pte)
    if present:
        await kernel.generation.steps.flush_cache(vma.mm, addr)
    pte, exclusive = await ptep_get_and_clear(vma.mm, addr, folio)
    if exclusive:
        if present:
            await kernel.generation.steps.flush_exclusive(kernel, vma.mm, addr)
        if not await kernel.generation.steps.share_exclusive(folio):
            await set_pte_at(vma.mm, addr, pte)
            return False
    await kernel.generation.steps.keep_dirty(folio, pte)
    await set_pte_at(vma.mm, addr, kernel.generation.steps.collect_entry(pte, exclusive))
    await folio_remove_rmap(folio, vma, addr)
    await swap.folio_put(kernel, folio)
    return True


async def dirty_present(folio: Folio, pte: Pte) -> None:
    """The folio takes over the dirty bit of the entry that is gone. A device-private entry has none."""
    if pte_present(pte) and pte.dirty:
        await folio_mark_dirty(folio)
