"""Large folios in migrate_vma_*: taken whole or split first, inserted whole, and split when their driver declines them (7.3).

Rules:
- A leaf of the middle level is taken whole only where the caller asks for it and the range has all of it. Else its folio is
  split, with the page lock held and one reference counted: who splits holds that one and no other.
- The fault page's folio is locked by the fault handler, whose reference counts as the one. When it is split, lock and reference
  stay with the folio that contains the fault page.
- Nothing waits for a page lock here: a migration may hold the locks of other folios, and is best effort.
- A split under way is seen by nobody: the entries of a folio's pages are migration entries meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import memcontrol, swap
from migrate_vma_impl.mm.folio import folio_get, folio_nr_pages, folio_trylock, folio_unlock, page_folio
from migrate_vma_impl.mm.huge_memory_folio import folio_split_unmapped, split_folio, split_huge_page
from migrate_vma_impl.mm.huge_memory_leaf import pmdp_huge_clear_flush, pte_alloc_one, pte_free, set_pmd_at, split_huge_pmd
from migrate_vma_impl.mm.huge_memory_migrate import set_pmd_migration_entry
from migrate_vma_impl.mm.migrate_device_collect import (
    Collected,
    Walk,
    collect_entry,
    flush_then_drop_ptl,
    folio_of_fault,
    locked_by_fault,
    may_populate,
    migrate_vma_collect_hole,
    migrate_vma_collect_skip,
    takes_whole,
)
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.pgtable import flush_tlb_range, hpage_nr, pmd_trans_huge, pmdp_get
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap, folio_mapping_place, rmap_walk_begin, rmap_walk_end
from migrate_vma_spec.events import CacheFlushed
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_WRITE,
    PteKind,
    Select,
    migrate_pfn,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

CollectHugePmd = Callable[["Kernel", Walk], Coroutine[Any, Any, Collected]]
CollectLargeFolio = Callable[["Kernel", Walk, Folio], Coroutine[Any, Any, Collected]]

# ---- collect: a leaf, before there were large device-private folios --------------------------------------------------


async def split_huge_pmd_first(kernel: Kernel, walk: Walk) -> Collected:
    """v6.1 to v6.18, in migrate_vma_collect_pmd: a present leaf is split, if its folio can be locked at once."""
    mm = walk.vma.mm
    await spin_lock(mm.ptl)
    pmd = await pmdp_get(kernel, mm, walk.addr)
    if not pmd_trans_huge(pmd):
        await spin_unlock(mm.ptl)
        return Collected.AGAIN
    if pmd.pfn is None:
        await spin_unlock(mm.ptl)
        await split_huge_pmd(kernel, walk.vma, walk.addr)
        return Collected.AGAIN
    folio = Folio(pmd.pfn)
    await folio_get(folio)
    await spin_unlock(mm.ptl)
    if not await folio_trylock(folio):
        await kernel.generation.steps.put_not_split(kernel, folio)
    else:
        split = await split_folio(kernel, folio)
        await folio_unlock(folio)
        await swap.folio_put(kernel, folio)
        if split:
            return Collected.AGAIN
    await migrate_vma_collect_skip(walk.args, walk.addr, walk.end)
    return Collected.THE_REST


async def leave_large_folio(kernel: Kernel, walk: Walk, folio: Folio) -> Collected:
    """v6.1 to v6.18: a large folio under a page table is not migrated."""
    return Collected.NOTHING


# ---- collect: a leaf, since ------------------------------------------------------------------------------------------


async def migrate_vma_collect_huge_pmd(kernel: Kernel, walk: Walk) -> Collected:
    """A leaf as one entry, if it is asked for; else its folio is split, and its pages are looked at one by one."""
    args, vma, mm = walk.args, walk.vma, walk.vma.mm
    await spin_lock(mm.ptl)
    pmd = await pmdp_get(kernel, mm, walk.addr)
    if pmd.kind is PteKind.TABLE:
        await spin_unlock(mm.ptl)
        return Collected.AGAIN
    if pmd.kind is PteKind.NONE or (pmd.kind is PteKind.ZERO and args.flags & Select.SYSTEM):
        await spin_unlock(mm.ptl)
        await migrate_vma_collect_hole(kernel, args, vma, walk.addr, walk.end)
        return Collected.THE_REST
    if pmd.pfn is None or not kernel.generation.steps.selects(kernel, args, pmd):
        await spin_unlock(mm.ptl)
        await migrate_vma_collect_skip(args, walk.addr, walk.end)
        return Collected.THE_REST
    return await _collect_leaf(kernel, walk, Folio(pmd.pfn), write=pmd.write)


async def _collect_leaf(kernel: Kernel, walk: Walk, folio: Folio, *, write: bool) -> Collected:
    """The leaf's folio is one that was asked for, and the page-table lock is held, which is dropped here."""
    args, vma = walk.args, walk.vma
    fault_locked = locked_by_fault(folio, walk.fault_folio)
    await folio_get(folio)
    if not fault_locked and not await kernel.generation.steps.lock_collected(folio):
        await spin_unlock(vma.mm.ptl)
        await swap.folio_put(kernel, folio)
        await migrate_vma_collect_skip(args, walk.addr, walk.end)
        return Collected.THE_REST
    if takes_whole(kernel, args, walk.addr, walk.end) and await set_pmd_migration_entry(kernel, vma, walk.addr, folio):
        flags = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND | (MIGRATE_PFN_WRITE if write else 0)
        await collect_entry(args, migrate_pfn(folio.pfn) | flags)
        await migrate_vma_collect_skip(args, walk.addr + 1, walk.end)
        await spin_unlock(vma.mm.ptl)
        return Collected.THE_REST
    await spin_unlock(vma.mm.ptl)
    if await kernel.generation.steps.split_leaf(kernel, folio, fault_locked):
        return Collected.AGAIN
    await migrate_vma_collect_skip(args, walk.addr, walk.end)
    return Collected.THE_REST


async def split_leaf(kernel: Kernel, folio: Folio, fault_locked: bool) -> bool:
    """Split the folio of a leaf that is not taken whole, and let go of it.

    The fault handler's folio has the handler's reference, which is the one that a split counts: the walk's goes first.
    """
    if fault_locked:
        await swap.folio_put(kernel, folio)
        return await split_folio(kernel, folio)
    split = await split_folio(kernel, folio)
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
    return split


# ---- collect: a large folio under a page table -----------------------------------------------------------------------


async def split_large_folio(kernel: Kernel, walk: Walk, folio: Folio) -> Collected:
    """v6.19: split it, with the page-table lock dropped, and look again; what cannot be split ends the walk of this table."""
    args = walk.args
    await kernel.generation.steps.pin_and_leave(kernel, walk, folio)
    if await kernel.generation.steps.split_large(kernel, folio, args.fault_page):
        walk.fault_folio = await kernel.generation.steps.fault_folio_again(kernel, args.fault_page, walk.fault_folio)
        return Collected.AGAIN
    if walk.unmapped:
        await flush_tlb_range(kernel, walk.vma.mm, walk.start, walk.end)
    await migrate_vma_collect_skip(args, walk.addr, walk.end)
    return Collected.THE_REST


async def pin_flush_and_leave(kernel: Kernel, walk: Walk, folio: Folio) -> None:
    """A reference while the entry still maps the folio, and the flush that is owed so far, before the page-table lock goes."""
    if not locked_by_fault(folio, walk.fault_folio):
        await folio_get(folio)
    await flush_then_drop_ptl(kernel, walk.vma.mm, walk.start, walk.end, walk.unmapped)
    walk.unmapped = 0


async def migrate_vma_split_folio(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """Split a folio that the caller has a reference to, which goes. That of the fault handler stays, and follows its page."""
    if fault_page is not None and folio == await folio_of_fault(kernel, fault_page):
        return await split_huge_page(kernel, fault_page)
    if not await folio_trylock(folio):
        await swap.folio_put(kernel, folio)
        return False
    split = await folio_nr_pages(kernel, folio) == 1 or await split_folio(kernel, folio)
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
    return split


async def fault_folio_again(kernel: Kernel, fault_page: Folio | None, before: Folio | None) -> Folio | None:
    """Whose lock is the fault handler's now: after a split, the folio of the fault page, which may not be the one it was."""
    return await folio_of_fault(kernel, fault_page)


# ---- pages: a large destination at a hole ----------------------------------------------------------------------------


async def insert_large_folio(kernel: Kernel, vma: Vma, addr: int, src: list[int], i: int, folio: Folio) -> None:
    """The COMPOUND half of migrate_vma_insert_page. An entry that it gives up keeps COMPOUND.

    A large destination for a small hole is refused, as it is for a small source.
    """
    nr = hpage_nr(kernel)
    refused = not src[i] & MIGRATE_PFN_COMPOUND and kernel.generation.steps.refuse_large_destination(src[i])
    if refused or not thp_vma_suitable_order(kernel, vma, addr) or not may_populate(vma):
        src[i] &= ~MIGRATE_PFN_MIGRATE
    elif await _as_large(kernel, folio) and not await migrate_vma_insert_huge_pmd_page(kernel, vma, addr, folio):
        if len(src) < i + nr:
            await traps.oops(f"the entries of a leaf are cleared from source entry {i} on, past the end of the array", folio.pfn)
            return
        src[i : i + nr] = (entry & ~MIGRATE_PFN_MIGRATE for entry in src[i : i + nr])


async def _as_large(kernel: Kernel, folio: Folio) -> bool:
    """folio_set_order would make a leaf's size of any page; one that is smaller has its neighbours taken with it."""
    if await folio_nr_pages(kernel, folio) == hpage_nr(kernel):
        return True
    await traps.oops("a page is given as COMPOUND, and its folio is not as large as a leaf", folio.pfn)
    return False


def thp_vma_suitable_order(kernel: Kernel, vma: Vma, addr: int) -> bool:
    """Whether the VMA shows all that a leaf at `addr` would map."""
    nr = hpage_nr(kernel)
    return not addr % nr and vma.start <= addr and addr + nr <= vma.end


async def migrate_vma_insert_huge_pmd_page(kernel: Kernel, vma: Vma, addr: int, folio: Folio) -> bool:
    """Map the driver's large folio by a leaf, where nothing is or the huge zero page. A page table is deposited behind it."""
    await memcontrol.mem_cgroup_charge(kernel, folio)
    await kernel.generation.steps.mark_uptodate(folio)
    await pte_alloc_one(kernel, vma.mm)
    await spin_lock(vma.mm.ptl)
    pmd = await pmdp_get(kernel, vma.mm, addr)
    if not kernel.generation.steps.may_insert(vma, pmd):
        await kernel.generation.steps.abort_huge_insert(kernel, vma.mm)
        return False
    await folio_add_new_anon_rmap(folio, vma, addr, pages=hpage_nr(kernel))
    if not kernel.is_zone_device(folio):
        await swap.folio_add_lru(kernel, folio)
    await folio_get(folio)
    if pmd.kind is PteKind.ZERO:
        await pte_free(kernel, vma.mm)
        await kernel.generation.steps.flush_cache_huge(kernel, vma.mm, addr)
        await pmdp_huge_clear_flush(kernel, vma.mm, addr, None)
    entry = kernel.generation.steps.inserted_entry(vma, folio, kernel.is_device_private(folio))
    await set_pmd_at(kernel, vma.mm, addr, entry)
    await spin_unlock(vma.mm.ptl)
    return True


async def flush_cache_range(kernel: Kernel, mm: Mm, addr: int) -> None:
    """flush_cache_range of what the leaf maps; for the trace alone, as flush_cache_page."""
    await traps.note(CacheFlushed(mm.number, addr, hpage_nr(kernel)))


async def drop_ptl_and_table(kernel: Kernel, mm: Mm) -> None:
    """The hole is none any more: unlock, and free the page table that was to be deposited."""
    await spin_unlock(mm.ptl)
    await pte_free(kernel, mm)


# ---- pages: a large source that its driver declines ------------------------------------------------------------------


async def migrate_vma_split_unmapped_folio(kernel: Kernel, migrate: MigrateVma, src: list[int], i: int, folio: Folio) -> bool:
    """Split a locked and unmapped folio; the entries of its pages follow that of the first, with the same flags. False: it is
    held, and mapped by page tables now.

    Every page is locked and has one reference afterwards, as if it had been collected by itself.
    """
    if migrate.vma is None or len(src) < i + hpage_nr(kernel):
        await traps.oops(f"a large folio at source entry {i} is split, for whose pages the array has no room", folio.pfn)
        return False
    await kernel.generation.steps.split_migration_pmds(kernel, migrate.vma, migrate.start + i, folio)
    if not await kernel.generation.steps.split_unmapped(kernel, folio, migrate.fault_page):
        return False
    src[i] &= ~MIGRATE_PFN_COMPOUND
    flags = src[i] & ((1 << MIGRATE_PFN_SHIFT) - 1)
    for k in range(1, hpage_nr(kernel)):
        src[i + k] = kernel.generation.steps.part_entry(folio.pfn, k, flags)
    return True


def part_entry(pfn: int, number: int, flags: int) -> int:
    """The entry of one page of a folio that was split."""
    return migrate_pfn(pfn + number) | flags


async def split_migration_pmds(kernel: Kernel, vma: Vma, addr: int, folio: Folio) -> None:
    """Make page tables of all leaves that hold a migration entry of the folio: the caller's, and those of forked address spaces.

    The kernel splits the caller's alone, so that a leaf elsewhere goes on naming what is a small folio then.
    """
    _, place = await folio_mapping_place(folio)
    if place is None:
        return
    tree, index = place
    for each, at in await rmap_walk_begin(tree, index):
        pmd = await pmdp_get(kernel, each.mm, at)
        if pmd.kind is PteKind.MIGRATION and pmd.pfn == folio.pfn:
            await split_huge_pmd(kernel, each, at)
    await rmap_walk_end(tree)


async def split_unmapped(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """folio_split_unmapped, which counts one reference. The fault handler's is set aside meanwhile, and goes to its page."""
    if fault_page is None or folio != await folio_of_fault(kernel, fault_page):
        return await folio_split_unmapped(kernel, folio)
    await swap.folio_put(kernel, folio)
    split = await folio_split_unmapped(kernel, folio)
    await folio_get(await page_folio(kernel, fault_page))
    return split
