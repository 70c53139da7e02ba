"""The first phase of migrate_vma_setup: walk the page table, and lock and unmap what can be taken (mm/migrate_device.c, 7.3).

Rules:
- The walk runs under the page-table lock from its first entry to its last, for each page table anew; the page lock is only tried.
- What cannot be taken gets the entry 0, and nothing of it stays held.
- A page is taken by replacing its entry with a migration entry, whose bits are those of the entry replaced. The collect
  reference and the page lock stay with the entry in `src`.
- A leaf of the middle level, and a large folio met page by page, are the generation's to decide on. Where that drops the lock,
  the walk goes on at the same address and believes nothing that it saw before.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from attrs import define

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get, folio_nr_pages, folio_unlock, page_folio
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.pgtable import (
    flush_tlb_range,
    hpage_nr,
    pmd_ranges,
    pmdp_get,
    pte_offset_map_lock,
    pte_present,
    ptep_get,
    ptep_get_and_clear,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_mark_dirty, folio_remove_rmap
from migrate_vma_spec.events import LazyMmuEntered, LazyMmuLeft
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
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


class Collected(enum.Enum):
    """What the generation did about a leaf, or about a large folio under a page table."""

    NOTHING = "the entry is 0, and the walk goes on"
    AGAIN = "it looks different now: look again"
    THE_REST = "everything up to the end of the leaf's range has its src entry"


@define
class Walk:
    """One call of migrate_vma_collect_pmd: [start, end) is what one entry of the middle level maps, `addr` how far it has come.

    `unmapped` counts the cleared entries whose flush is still owed, `fault_folio` is the folio of the fault page.
    """

    args: MigrateVma
    vma: Vma
    start: int
    end: int
    addr: int
    fault_folio: Folio | None
    unmapped: int = 0


def locked_by_fault(folio: Folio, fault_folio: Folio | None) -> bool:
    """Whether the page lock is the fault handler's: the library neither takes nor drops it."""
    return folio == fault_folio


async def folio_of_fault(kernel: Kernel, fault_page: Folio | None) -> Folio | None:
    """The folio of the fault page, where its lock is the fault handler's at all; stable as long as the handler has it."""
    return None if fault_page is None or not kernel.generation.fault_page_locked else await page_folio(kernel, fault_page)


# ---- the arrays ------------------------------------------------------------------------------------------------------


async def collect_entry(args: MigrateVma, mpfn: int) -> None:
    """The next src entry. The walk never comes to more pages than the range has (C05)."""
    if args.src is None or args.dst is None or args.npages >= min(len(args.src), len(args.dst)):
        await traps.oops(f"migrate_vma_collect stores entry {args.npages} past the end of an array")
        return
    args.dst[args.npages] = 0
    args.src[args.npages] = mpfn
    args.npages += 1
    args.cpages += bool(mpfn)


async def migrate_vma_collect_skip(args: MigrateVma, start: int, end: int) -> None:
    for _ in range(start, end):
        await collect_entry(args, 0)


async def migrate_vma_collect_hole(kernel: Kernel, args: MigrateVma, vma: Vma, start: int, end: int) -> None:
    """Where no page table hangs: holes of anonymous memory, or one for all that a leaf maps if large folios are asked for."""
    if not may_populate(vma):
        await migrate_vma_collect_skip(args, start, end)
    elif takes_whole(kernel, args, start, end):
        await collect_entry(args, MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND)
        await migrate_vma_collect_skip(args, start + 1, end)
    else:
        for _ in range(start, end):
            await collect_entry(args, MIGRATE_PFN_MIGRATE)


def may_populate(vma: Vma) -> bool:
    """Whether holes of the VMA may be filled: it is anonymous and private."""
    return vma.anonymous and vma.anon_vma is not None


def takes_whole(kernel: Kernel, args: MigrateVma, start: int, end: int) -> bool:
    """Whether what one leaf maps is taken as one: the kernel can, the caller asks, and the range has all of it."""
    nr = hpage_nr(kernel)
    return kernel.thp_migration_supported and bool(args.flags & Select.COMPOUND) and not start % nr and not end % nr


# ---- the walk --------------------------------------------------------------------------------------------------------


async def migrate_vma_collect(kernel: Kernel, args: MigrateVma) -> None:
    """Collect inside a notifier bracket, event MIGRATE with the caller's owner."""
    vma = args.vma
    if vma is None:
        return
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, args.start, args.end, NotifyReason.MIGRATE, args.pgmap_owner)
    for start, end in pmd_ranges(kernel, args.start, args.end):
        await migrate_vma_collect_pmd(kernel, args, vma, start, end)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, args.start, args.end)
    args.end = args.start + args.npages


async def migrate_vma_collect_pmd(kernel: Kernel, args: MigrateVma, vma: Vma, start: int, end: int) -> None:
    """One entry of the middle level: empty, a leaf, or a page table, which is looked at under its lock."""
    walk = Walk(args, vma, start, end, start, await folio_of_fault(kernel, args.fault_page))
    while walk.addr < end:
        pmd = await pmdp_get(kernel, vma.mm, walk.addr)
        if pmd.kind is PteKind.NONE:
            await migrate_vma_collect_hole(kernel, args, vma, walk.addr, end)
            return
        if pmd.kind is not PteKind.TABLE:
            found = await kernel.generation.collect_huge_pmd(kernel, walk)
            if found is Collected.THE_REST:
                return
            if found is Collected.AGAIN:
                continue
        if await pte_offset_map_lock(kernel, vma.mm, walk.addr):
            await _collect_ptes(kernel, walk)


async def _collect_ptes(kernel: Kernel, walk: Walk) -> None:
    """The entries of one page table from walk.addr on, up to a large folio for which its lock was dropped."""
    mm = walk.vma.mm
    await enter_lazy_mmu(kernel, mm)
    while walk.addr < walk.end:
        found = await _collect_pte(kernel, walk)
        if found is Collected.AGAIN:
            return
        if found is Collected.THE_REST:
            walk.addr = walk.end
            return
        walk.addr += 1
    await kernel.generation.steps.flush_and_unlock(kernel, mm, walk.start, walk.end, walk.unmapped)


async def enter_lazy_mmu(kernel: Kernel, mm: Mm) -> None:
    """lazy_mmu_mode_enable. It is told of only where the walk can be interrupted in it."""
    if kernel.config.pmd_order:
        await traps.note(LazyMmuEntered(mm.number))


async def leave_lazy_mmu(kernel: Kernel, mm: Mm) -> None:
    if kernel.config.pmd_order:
        await traps.note(LazyMmuLeft(mm.number))


async def flush_then_drop_ptl(kernel: Kernel, mm: Mm, start: int, end: int, unmapped: int) -> None:
    """The end of the walk: one flush for all present entries that were cleared, before the page-table lock is dropped."""
    if unmapped:
        await flush_tlb_range(kernel, mm, start, end)
    await leave_lazy_mmu(kernel, mm)
    await spin_unlock(mm.ptl)


async def _collect_pte(kernel: Kernel, walk: Walk) -> Collected:
    """One page-table entry, with its src entry unless it has to be looked at again."""
    args, vma = walk.args, walk.vma
    pte = await ptep_get(vma.mm, walk.addr)
    mpfn = kernel.generation.steps.empty_entry(args, vma, pte)
    if mpfn is None and pte.pfn is not None and kernel.generation.steps.selects(kernel, args, pte):
        folio = await page_folio(kernel, Folio(pte.pfn))
        if await folio_nr_pages(kernel, folio) > 1:
            found = await kernel.generation.collect_large_folio(kernel, walk, folio)
            if found is not Collected.NOTHING:
                return found
        elif await _replace(kernel, walk, pte, folio):
            mpfn = migrate_pfn(folio.pfn) | MIGRATE_PFN_MIGRATE | (MIGRATE_PFN_WRITE if pte.write else 0)
            walk.unmapped += pte_present(pte)
    await collect_entry(args, mpfn or 0)
    return Collected.NOTHING


def empty_entry(args: MigrateVma, vma: Vma, pte: Pte) -> int | None:
    """The src entry of what has no page: a hole of an anonymous VMA, or the zero page if system pages are selected. Else None."""
    if pte.kind is PteKind.NONE:
        return MIGRATE_PFN_MIGRATE if may_populate(vma) else 0
    if pte.kind is PteKind.ZERO:
        return MIGRATE_PFN_MIGRATE if args.flags & Select.SYSTEM else 0
    return None


def selects(kernel: Kernel, args: MigrateVma, pte: Pte) -> bool:
    """Whether the caller asked for pages of this kind: a device's only if it is the caller's, system pages only by SYSTEM."""
    if pte.pfn is None or pte.kind not in (PteKind.DEVICE_PRIVATE, PteKind.PRESENT):
        return False
    folio = Folio(pte.pfn)
    if not kernel.is_zone_device(folio):
        return bool(args.flags & Select.SYSTEM)
    kind = Select.DEVICE_PRIVATE if pte.kind is PteKind.DEVICE_PRIVATE else Select.DEVICE_COHERENT
    return bool(args.flags & kind) and kernel.owner_of(folio) == args.pgmap_owner


async def _replace(kernel: Kernel, walk: Walk, pte: Pte, folio: Folio) -> bool:
    """Reference and lock the page and put a migration entry in its place; False with nothing held."""
    fault_locked = locked_by_fault(folio, walk.fault_folio)
    await folio_get(folio)
    if not fault_locked and not await kernel.generation.steps.lock_collected(folio):
        await swap.folio_put(kernel, folio)
        return False
    if await migration_entry_at(kernel, walk.vma, walk.addr, pte, folio):
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
