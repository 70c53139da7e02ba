"""Migration entries at the middle level: mm/huge_memory.c:set_pmd_migration_entry and remove_migration_pmd (7.3).

Rules:
- One such entry stands for a whole folio, whose lock and reference the migrator holds. The deposited page table stays behind it.
- Bits go to and fro as with the entries of a page table (`pgtable.migration_entry_for`, `migrate.entry_after_migration`).
- No TLB holds anything for a migration entry, so the way back flushes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.huge_memory_leaf import flush_pmd_tlb_range, hpage_start, pmdp_huge_get_and_clear, set_pmd_at
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, Vma
from migrate_vma_impl.mm.pgtable import hpage_nr, pmdp_get, pte_present
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_mark_dirty, folio_remove_rmap, folio_try_share_anon_rmap
from migrate_vma_spec.events import CacheFlushed
from migrate_vma_spec.vocabulary import PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def set_pmd_migration_entry(kernel: Kernel, vma: Vma, addr: int, folio: Folio) -> bool:
    """Replace the leaf that maps a locked folio. With the page-table lock; False for a pinned folio, whose leaf is as it was."""
    start, nr = hpage_start(kernel, addr), hpage_nr(kernel)
    present = pte_present(await pmdp_get(kernel, vma.mm, addr))
    if present:
        await traps.note(CacheFlushed(vma.mm.number, start, nr))
    pmd, exclusive = await pmdp_huge_get_and_clear(kernel, vma.mm, addr, folio)
    if present:
        await flush_pmd_tlb_range(kernel, vma.mm, addr)
    if exclusive and not await folio_try_share_anon_rmap(folio):
        await set_pmd_at(kernel, vma.mm, addr, pmd)
        return False
    if pmd.dirty:
        await folio_mark_dirty(folio)
    await set_pmd_at(kernel, vma.mm, addr, kernel.generation.steps.unmap_entry(pmd, exclusive))
    await folio_remove_rmap(folio, vma, start, pages=nr)
    await swap.folio_put(kernel, folio)
    return True


async def remove_migration_pmd(kernel: Kernel, src: Folio, dst: Folio, vma: Vma, addr: int) -> bool:
    """Make the leaf at `addr` map `dst` if it is a migration entry that names `src`; whether it was. With the page-table lock."""
    old = await pmdp_get(kernel, vma.mm, addr)
    if old.kind is not PteKind.MIGRATION or old.pfn != src.pfn:
        return False
    start, nr = hpage_start(kernel, addr), hpage_nr(kernel)
    await folio_get(dst)
    dirty = await folio_add_anon_rmap(dst, vma, start, exclusive=old.write or old.exclusive, pages=nr)
    device = kernel.is_device_private(dst)
    await set_pmd_at(kernel, vma.mm, addr, kernel.generation.steps.restored_entry(old, dst, device, dirty))
    return True


async def pmd_migration_entry_wait(kernel: Kernel, vmf: FaultContext) -> None:
    """Sleep until the folio of the migration entry at the middle level is unlocked; without a reference, as for a page."""
    mm = vmf.vma.mm
    await spin_lock(mm.ptl)
    pmd = await pmdp_get(kernel, mm, vmf.address)
    if pmd.kind is not PteKind.MIGRATION or pmd.pfn is None:
        await spin_unlock(mm.ptl)
        return
    if not await kernel.generation.steps.wait_on_locked(Folio(pmd.pfn), mm.ptl):
        await traps.oops("a migration entry names a folio that is not locked", pmd.pfn)
