"""Moving a folio's identity to another folio, and waiting for those who do: mm/migrate.c.

Rules:
- A waiter holds no reference: it queues on the page lock under the page-table lock, which keeps the entry and so the page, then
  drops that lock and sleeps.
- A migration entry names a locked page. One that does not is a bug of whoever left it, and stops the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import SpinLock, spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.folio import folio_get, folio_nr_pages, page_folio, queue_on_page_lock, sleep_on_page_lock
from migrate_vma_impl.mm.huge_memory_migrate import remove_migration_pmd
from migrate_vma_impl.mm.migrate_mapping import Mapping, move_in_cache
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import (
    hpage_nr,
    make_device_private_entry,
    mk_pte,
    pmd_ranges,
    pmdp_get,
    pte_mkdirty,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_mapping_place, rmap_walk_begin, rmap_walk_end, shows
from migrate_vma_spec.events import Event, FlagsMoved, FolioMoved, Oops
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- waiting ---------------------------------------------------------------------------------------------------------


async def queue_then_drop_ptl(folio: Folio, ptl: SpinLock) -> bool:
    """softleaf_entry_wait_on_locked: queue, drop the page-table lock, sleep. False: the folio was not locked, nobody waited.

    (7.x; migration_entry_wait_on_locked before. The page is valid until the lock is dropped, and queueing comes first, so no
    wake-up is lost and no reference is needed.)
    """
    queued = await queue_on_page_lock(folio)
    await spin_unlock(ptl)
    if queued:
        await sleep_on_page_lock(folio)
    return queued


async def migration_entry_wait(kernel: Kernel, vmf: FaultContext) -> None:
    mm, addr = vmf.vma.mm, vmf.address
    await spin_lock(mm.ptl)
    pte = await ptep_get(mm, addr)
    if pte.kind is not PteKind.MIGRATION or pte.pfn is None:
        await spin_unlock(mm.ptl)
        return
    folio = await page_folio(kernel, Folio(pte.pfn))
    if not await kernel.generation.steps.wait_on_locked(folio, mm.ptl):
        await traps.oops("a migration entry names a page that is not locked", pte.pfn)


# ---- the folio's identity --------------------------------------------------------------------------------------------


def expected_references(f: FolioState, extra: int) -> int:
    """folio_expected_ref_count, which counts mappings and the cache that has it, and the migration's own reference (7.x)."""
    return 1 + extra + f.mapcount + (f.file is not None or f.swap is not None)


def _move(src: FolioState, dst: FolioState, expect: Callable[[FolioState, int], int], extra: int) -> Outcome:
    expected = expect(src, extra)
    moved = src.refcount == expected
    event: Event = FolioMoved(src.pfn, dst.pfn, src.refcount, expected, moved)
    if moved and src.order != dst.order:  # mem_cgroup_migrate: VM_BUG_ON_FOLIO
        event = Oops(f"a folio of order {src.order} is migrated to one of order {dst.order}", dst.pfn)
    if moved:
        dst = evolve(dst, anon_vma=src.anon_vma, index=src.index, lazyfree=src.lazyfree)
    return (src, dst), moved, event


def _move_to_itself(f: FolioState, expect: Callable[[FolioState, int], int], extra: int) -> Outcome:
    expected = expect(f, extra)
    moved = f.refcount == expected
    return (f,), moved, FolioMoved(f.pfn, f.pfn, f.refcount, expected, moved)


async def folio_migrate_mapping(kernel: Kernel, dst: Folio, src: Folio, extra: int, mapping: Mapping | None = None) -> bool:
    """Give `dst` the place of `src`, if nobody but those who are counted holds `src`; else the kernel's -EAGAIN, False here.

    `src` keeps its mapping until it is freed. A page given as its own destination has the driver's reference besides, and is
    refused by the same count (NVIDIA UVM counts on that). `mapping` is the cache that holds the page, if one does.
    """
    expect = kernel.generation.steps.expected_references
    if mapping is not None and dst != src:
        return await move_in_cache(dst, src, mapping, expect, extra)
    if dst != src:
        return bool(await traps.step(_move, src, dst, args=(expect, extra)))
    moved = bool(await traps.step(_move_to_itself, src, args=(expect, extra)))
    if moved:
        await traps.oops("a page is migrated onto itself", src.pfn)
    return moved


def _move_flags(src: FolioState, dst: FolioState) -> Outcome:
    charge = src.charged and not dst.charged
    after = evolve(
        dst,
        dirty=dst.dirty or src.dirty,
        young=dst.young or src.young,
        uptodate=dst.uptodate or src.uptodate,
        charged=dst.charged or src.charged,
    )
    return (evolve(src, charged=src.charged and not charge), after), None, FlagsMoved(src.pfn, dst.pfn)


async def folio_migrate_flags(dst: Folio, src: Folio) -> None:
    """Dirty, young and uptodate go along, and the memcg charge changes hands (mem_cgroup_migrate)."""
    if dst != src:
        await traps.step(_move_flags, src, dst)


# ---- migration entries back to mappings ------------------------------------------------------------------------------


async def remove_migration_ptes(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """Make every migration entry that names a page of `src` map that of `dst`, which has as many. The walk goes by the place that
    `dst` has in the reverse map.
    """
    _, place = await folio_mapping_place(dst)
    if place is None:
        return
    tree, index = place
    pages = await folio_nr_pages(kernel, dst)
    for vma, _ in await rmap_walk_begin(tree, index, pages):
        await remove_migration_pte(kernel, src, dst, vma, shows(vma, index, pages), pages)
    await rmap_walk_end(tree)


async def remove_migration_pte(kernel: Kernel, src: Folio, dst: Folio, vma: Vma, shown: range, pages: int) -> None:
    """The entries of one VMA, if they still name `src`. No TLB holds anything for a migration entry, so nothing is flushed."""
    for first, last in pmd_ranges(kernel, shown.start, shown.stop):
        await spin_lock(vma.mm.ptl)
        pmd = await pmdp_get(kernel, vma.mm, first)
        if pmd.kind is PteKind.MIGRATION:
            await _remove_leaf(kernel, src, dst, vma, first, pages, pmd)
        elif pmd.kind is PteKind.TABLE:
            for addr in range(first, last):
                await _remove_entry(kernel, src, dst, vma, addr, pages)
        await spin_unlock(vma.mm.ptl)


async def _remove_leaf(kernel: Kernel, src: Folio, dst: Folio, vma: Vma, addr: int, pages: int, pmd: Pte) -> None:
    """A leaf that names pages of `src` names all of them: one of a smaller folio was left behind by a split (VM_BUG_ON)."""
    nr = hpage_nr(kernel)
    if pmd.pfn is None or pmd.pfn + nr <= src.pfn or src.pfn + pages <= pmd.pfn:
        return
    if pages != nr:
        await traps.oops("a migration entry of the middle level names a folio that is smaller than a leaf", src.pfn)
    await remove_migration_pmd(kernel, src, dst, vma, addr)


async def _remove_entry(kernel: Kernel, src: Folio, dst: Folio, vma: Vma, addr: int, pages: int) -> None:
    old = await ptep_get(vma.mm, addr)
    if old.kind is not PteKind.MIGRATION or old.pfn is None or not 0 <= old.pfn - src.pfn < pages:
        return
    page = Folio(dst.pfn + old.pfn - src.pfn)
    await folio_get(dst)
    dirty = await folio_add_anon_rmap(dst, vma, addr, exclusive=old.write or old.exclusive, page=page)
    device = kernel.is_device_private(dst)
    await set_pte_at(vma.mm, addr, kernel.generation.steps.restored_entry(old, page, device, dirty))


def entry_after_migration(old: Pte, dst: Folio, device: bool, dirty: bool) -> Pte:
    """The entry that a migration entry becomes: old unless it was young, dirty only if the folio is too, and never more writable.

    A device-private entry carries the write permission, soft-dirty and uffd-wp, and has no young and dirty bits.
    """
    if device:
        new = make_device_private_entry(dst, write=old.write)
    else:
        new = evolve(mk_pte(dst), young=old.young, write=old.write)
        if dirty and old.dirty:
            new = pte_mkdirty(new)
    return evolve(new, soft_dirty=old.soft_dirty, uffd_wp=old.uffd_wp and (device or not old.write))
