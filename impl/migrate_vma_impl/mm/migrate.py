"""Moving a folio's identity to another folio, and waiting for those who do: mm/migrate.c.

Rules:
- A waiter holds no reference: it queues on the page lock under the page-table lock, which keeps the entry and so the page, then
  drops that lock and sleeps.
- A migration entry names a locked page. One that does not is a bug of whoever left it, and stops the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import SpinLock, spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.folio import folio_get, queue_on_page_lock, sleep_on_page_lock
from migrate_vma_impl.mm.mm_types import AnonVma, FaultContext, Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import make_device_private_entry, mk_pte, pte_mkdirty, ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_mapping_place, rmap_walk_begin, rmap_walk_end
from migrate_vma_spec.events import FlagsMoved, FolioMoved
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
    if not await kernel.generation.steps.wait_on_locked(Folio(pte.pfn), mm.ptl):
        await traps.oops("a migration entry names a page that is not locked", pte.pfn)


# ---- the folio's identity --------------------------------------------------------------------------------------------


def expected_references(f: FolioState, extra: int) -> int:
    """folio_expected_ref_count of an anonymous folio outside the swap cache, and the migration's own reference (7.x)."""
    return 1 + extra + f.mapcount


def _move(src: FolioState, dst: FolioState, expect: Callable[[FolioState, int], int], extra: int) -> Outcome:
    expected = expect(src, extra)
    moved = src.refcount == expected
    event = FolioMoved(src.pfn, dst.pfn, src.refcount, expected, moved)
    if moved:
        dst = evolve(dst, anon_vma=src.anon_vma, index=src.index)
    return (src, dst), moved, event


def _move_to_itself(f: FolioState, expect: Callable[[FolioState, int], int], extra: int) -> Outcome:
    expected = expect(f, extra)
    moved = f.refcount == expected
    return (f,), moved, FolioMoved(f.pfn, f.pfn, f.refcount, expected, moved)


async def folio_migrate_mapping(kernel: Kernel, dst: Folio, src: Folio, extra: int) -> bool:
    """Give `dst` the place of `src`, if nobody but those who are counted holds `src`; else the kernel's -EAGAIN, False here.

    `src` keeps its mapping until it is freed. A page given as its own destination has the driver's reference besides, and is
    refused by the same count (NVIDIA UVM counts on that).
    """
    expect = kernel.generation.steps.expected_references
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
    """Make every migration entry that names `src` map `dst`. The walk goes by the place that `dst` has in the reverse map."""
    _, place = await folio_mapping_place(dst)
    if place is None:
        return
    tree, index = AnonVma(place[0]), place[1]
    for vma in await rmap_walk_begin(tree, index):
        await remove_migration_pte(kernel, src, dst, vma, index)
    await rmap_walk_end(tree)


async def remove_migration_pte(kernel: Kernel, src: Folio, dst: Folio, vma: Vma, addr: int) -> None:
    """The entry of one VMA, if it still names `src`. No TLB holds anything for a migration entry, so nothing is flushed."""
    await spin_lock(vma.mm.ptl)
    old = await ptep_get(vma.mm, addr)
    if old.kind is PteKind.MIGRATION and old.pfn == src.pfn:
        await folio_get(dst)
        dirty = await folio_add_anon_rmap(dst, vma, addr, exclusive=old.write or old.exclusive)
        device = kernel.is_device_private(dst)
        await set_pte_at(vma.mm, addr, kernel.generation.steps.restored_entry(old, dst, device, dirty))
    await spin_unlock(vma.mm.ptl)


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
