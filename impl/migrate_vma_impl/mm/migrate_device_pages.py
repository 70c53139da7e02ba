"""The second phase: the identity of source pages goes to the destinations, and holes are filled (mm/migrate_device.c, 7.3).

Rules:
- An entry whose MIGRATE flag is cleared here did not migrate; finalize restores its source and frees its destination.
- A hole is filled only if it is still one under the page-table lock. The mapping takes a reference of its own; the driver's is
  put by finalize.
- A COMPOUND entry whose destination is not COMPOUND is made small first, page by page: a source is split, a hole is many holes.
  What its driver has no destination for does not migrate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import memcontrol, migrate_device_huge, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get, page_folio
from migrate_vma_impl.mm.huge_memory_leaf import split_huge_pmd
from migrate_vma_impl.mm.migrate import folio_migrate_mapping
from migrate_vma_impl.mm.migrate_device_collect import may_populate
from migrate_vma_impl.mm.migrate_mapping import Mapping, folio_mapping
from migrate_vma_impl.mm.mm_types import Folio, FolioState, MigrateVma, Mm, SwapSlot, Vma
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    hpage_nr,
    make_device_private_entry,
    mk_pte,
    pmd_trans_huge,
    pmdp_get,
    pte_alloc,
    pte_mkdirty,
    pte_offset_map_lock,
    ptep_clear_flush,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap
from migrate_vma_spec.events import FolioUptodate
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    NotifyReason,
    Pte,
    PteKind,
    VmFlags,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def device_pages(kernel: Kernel, src: list[int], dst: list[int], npages: int, migrate: MigrateVma | None) -> None:
    """__migrate_device_pages; `migrate` is None for pages that were taken by frame number."""
    notified = None
    i = 0
    while i < npages:
        nr = 1
        page, newpage = kernel.migrate_pfn_to_folio(src[i]), kernel.migrate_pfn_to_folio(dst[i])
        if newpage is None:
            src[i] = kernel.generation.steps.skipped_entry(src[i])
        elif page is not None:
            await _move_entry(kernel, src, dst, i, page, newpage, migrate)
        elif src[i] & MIGRATE_PFN_MIGRATE:
            if migrate is None or migrate.vma is None:
                await traps.oops("a page is inserted at a hole without a VMA", newpage.pfn)
                return
            if notified is None:
                notified = await _begin_inserts(kernel, migrate, migrate.vma.mm, migrate.start + i)
            nr = await _fill_holes(kernel, migrate.vma, migrate.start + i, src, dst, i, npages)
        i += nr
    if notified is not None and migrate is not None and migrate.vma is not None:
        await mmu_notifier.invalidate_range_end(kernel, migrate.vma.mm, notified, migrate.end)


async def _begin_inserts(kernel: Kernel, migrate: MigrateVma, mm: Mm, addr: int) -> int:
    """The first hole opens a notifier bracket over the rest of the range."""
    await mmu_notifier.invalidate_range_start(kernel, mm, addr, migrate.end, NotifyReason.MIGRATE, migrate.pgmap_owner)
    return addr


def skipped_entry(entry: int) -> int:
    """A source without a destination stays where it is."""
    return entry & ~MIGRATE_PFN_MIGRATE


def is_swap_cache(mapping: Mapping) -> bool:
    """Whether a page may leave the cache that it is in for device memory: the swap cache only, for it is anonymous then."""
    return isinstance(mapping, SwapSlot)


# ---- sources that are pages ------------------------------------------------------------------------------------------


async def _move_entry(
    kernel: Kernel, src: list[int], dst: list[int], i: int, page: Folio, newpage: Folio, migrate: MigrateVma | None
) -> None:
    """Give the destination the place of the source; MIGRATE of a source that has a page is not asked again (as in the kernel).

    Only an anonymous folio goes to device memory, and leaves the swap cache for it, if no page-table entry holds its slot.
    """
    folio, newfolio = await page_folio(kernel, page), await page_folio(kernel, newpage)
    if kernel.thp_migration_supported and src[i] & MIGRATE_PFN_MIGRATE:
        large = src[i] & MIGRATE_PFN_COMPOUND
        if large and not dst[i] & MIGRATE_PFN_COMPOUND:
            if migrate is None or not await migrate_device_huge.migrate_vma_split_unmapped_folio(kernel, migrate, src, i, folio):
                src[i] &= ~(MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND)
                return
        elif dst[i] & MIGRATE_PFN_COMPOUND and not large:
            src[i] &= ~MIGRATE_PFN_MIGRATE
            if kernel.generation.steps.refuse_large_destination(src[i]):
                return
    mapping = await folio_mapping(kernel, folio)
    if mapping is not None and kernel.is_zone_device(newfolio):
        may_leave = kernel.generation.steps.may_leave_cache(mapping)
        if not may_leave or not await kernel.generation.steps.free_swap(kernel, folio):
            src[i] &= ~MIGRATE_PFN_MIGRATE
            return
        mapping = await kernel.generation.steps.mapping_by_now(kernel, folio, mapping)
    extra = kernel.generation.fault_page_references if migrate is not None and page == migrate.fault_page else 0
    if await folio_migrate_mapping(kernel, newfolio, folio, extra, mapping):
        await kernel.generation.steps.move_flags(newfolio, folio)
    else:
        src[i] &= ~MIGRATE_PFN_MIGRATE


# ---- holes -----------------------------------------------------------------------------------------------------------


async def _fill_holes(kernel: Kernel, vma: Vma, addr: int, src: list[int], dst: list[int], i: int, npages: int) -> int:
    """A hole; or all pages of a large one, if the driver has no large folio for it. How many entries that were."""
    nr = 1
    if src[i] & MIGRATE_PFN_COMPOUND and not dst[i] & MIGRATE_PFN_COMPOUND:
        nr = hpage_nr(kernel)
        src[i] &= ~MIGRATE_PFN_COMPOUND
    for j in range(i, min(i + nr, npages)):
        src[j] |= MIGRATE_PFN_MIGRATE
        if kernel.generation.steps.no_destination(dst[j]):
            src[j] &= ~MIGRATE_PFN_MIGRATE
        else:
            await migrate_vma_insert_page(kernel, vma, addr + j - i, src, dst, j)
    return nr


def no_destination(entry: int) -> bool:
    return not entry & MIGRATE_PFN_VALID


def refuse_large_destination(entry: int) -> bool:
    """A large destination for a small source: the entry does not migrate, and nothing more is done with it."""
    return True


def _uptodate(f: FolioState) -> Outcome:
    return (evolve(f, uptodate=True),), None, FolioUptodate(f.pfn)


async def folio_mark_uptodate(folio: Folio) -> None:
    await traps.step(_uptodate, folio)


def inserted_entry(vma: Vma, folio: Folio, device: bool) -> Pte:
    """Writable as the VMA says, whatever the driver put into dst. At either level."""
    write = bool(vma.flags & VmFlags.WRITE)
    if device:
        return make_device_private_entry(folio, write=write)
    return pte_mkdirty(evolve(mk_pte(folio), write=True)) if write else mk_pte(folio)


def still_a_hole(vma: Vma, pte: Pte) -> bool:
    """What an insert finds under the lock: nothing or the zero page, and nobody who wants to hear of missing pages."""
    return pte.kind in (PteKind.NONE, PteKind.ZERO) and not vma.flags & VmFlags.UFFD_MISSING


async def migrate_vma_insert_page(kernel: Kernel, vma: Vma, addr: int, src: list[int], dst: list[int], i: int) -> None:
    """Map the driver's page at a hole. MIGRATE is cleared when it is none any more; the charge stays on the page either way."""
    page = kernel.migrate_pfn_to_folio(dst[i])
    if page is None:
        await traps.oops(f"page_folio of the page that destination entry {i} does not have")
        return
    folio = await page_folio(kernel, page)
    if kernel.thp_migration_supported and dst[i] & MIGRATE_PFN_COMPOUND:
        await migrate_device_huge.insert_large_folio(kernel, vma, addr, src, i, folio)
    elif await _insert_small(kernel, vma, addr, page, folio):
        src[i] = MIGRATE_PFN_MIGRATE
    else:
        src[i] &= ~MIGRATE_PFN_MIGRATE


async def _insert_small(kernel: Kernel, vma: Vma, addr: int, page: Folio, folio: Folio) -> bool:
    if not may_populate(vma):
        return False
    pmd = await pmdp_get(kernel, vma.mm, addr)
    if pmd_trans_huge(pmd):
        if pmd.kind is not PteKind.ZERO:
            return False
        await split_huge_pmd(kernel, vma, addr)
    await pte_alloc(kernel, vma.mm, addr)
    await memcontrol.mem_cgroup_charge(kernel, folio)
    await kernel.generation.steps.mark_uptodate(folio)
    if not await pte_offset_map_lock(kernel, vma.mm, addr):
        return False
    pte = await ptep_get(vma.mm, addr)
    if not kernel.generation.steps.may_insert(vma, pte):
        await kernel.generation.steps.abort_insert(vma.mm)
        return False
    await folio_add_new_anon_rmap(folio, vma, addr)
    if not kernel.is_zone_device(folio):
        await swap.folio_add_lru(kernel, folio)
    await folio_get(folio)
    if pte.kind is PteKind.ZERO:
        await flush_cache_page(vma.mm, addr)
        await ptep_clear_flush(kernel, vma.mm, addr)
    await set_pte_at(vma.mm, addr, kernel.generation.steps.inserted_entry(vma, page, kernel.is_device_private(page)))
    await spin_unlock(vma.mm.ptl)
    return True
