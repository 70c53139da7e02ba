"""The second phase: the identity of source pages goes to the destinations, and holes are filled (mm/migrate_device.c, 7.3).

Rules:
- An entry whose MIGRATE flag is cleared here did not migrate; finalize restores its source and frees its destination.
- A hole is filled only if it is still one under the page-table lock. The mapping takes a reference of its own; the driver's is
  put by finalize.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import memcontrol, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.migrate import folio_migrate_mapping
from migrate_vma_impl.mm.mm_types import Folio, FolioState, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    make_device_private_entry,
    mk_pte,
    pte_mkdirty,
    ptep_clear_flush,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap
from migrate_vma_spec.events import FolioUptodate
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def device_pages(kernel: Kernel, src: list[int], dst: list[int], npages: int, migrate: MigrateVma | None) -> None:
    """__migrate_device_pages; `migrate` is None for pages that were taken by frame number."""
    notified = None
    for i in range(npages):
        folio, newfolio = kernel.migrate_pfn_to_folio(src[i]), kernel.migrate_pfn_to_folio(dst[i])
        if newfolio is None:
            src[i] &= ~MIGRATE_PFN_MIGRATE
        elif folio is not None:
            await _move_page(kernel, src, i, folio, newfolio, migrate.fault_page if migrate else None)
        elif src[i] & MIGRATE_PFN_MIGRATE:
            if migrate is None or migrate.vma is None:
                await traps.oops("a page is inserted at a hole without a VMA", newfolio.pfn)
                return
            if notified is None:
                notified = await _begin_inserts(kernel, migrate, migrate.vma.mm, migrate.start + i)
            await _fill_hole(kernel, migrate.vma, migrate.start + i, src, i, newfolio)
    if notified is not None and migrate is not None and migrate.vma is not None:
        await mmu_notifier.invalidate_range_end(kernel, migrate.vma.mm, notified, migrate.end)


async def _begin_inserts(kernel: Kernel, migrate: MigrateVma, mm: Mm, addr: int) -> int:
    """The first hole opens a notifier bracket over the rest of the range."""
    await mmu_notifier.invalidate_range_start(kernel, mm, addr, migrate.end, NotifyReason.MIGRATE, migrate.pgmap_owner)
    return addr


async def _move_page(kernel: Kernel, src: list[int], i: int, folio: Folio, newfolio: Folio, fault_page: Folio | None) -> None:
    """An anonymous folio outside the swap cache may go anywhere; MIGRATE of the entry is not asked again (as in the kernel)."""
    extra = kernel.generation.fault_page_references if folio == fault_page else 0
    if await folio_migrate_mapping(kernel, newfolio, folio, extra):
        await kernel.generation.steps.move_flags(newfolio, folio)
    else:
        src[i] &= ~MIGRATE_PFN_MIGRATE


async def _fill_hole(kernel: Kernel, vma: Vma, addr: int, src: list[int], i: int, folio: Folio) -> None:
    if await migrate_vma_insert_page(kernel, vma, addr, folio):
        src[i] = MIGRATE_PFN_MIGRATE
    else:
        src[i] &= ~MIGRATE_PFN_MIGRATE


def _uptodate(f: FolioState) -> Outcome:
    return (evolve(f, uptodate=True),), None, FolioUptodate(f.pfn)


async def folio_mark_uptodate(folio: Folio) -> None:
    await traps.step(_uptodate, folio)


def inserted_entry(vma: Vma, folio: Folio, device: bool) -> Pte:
    """Writable as the VMA says, whatever the driver put into dst."""
    write = bool(vma.flags & VmFlags.WRITE)
    if device:
        return make_device_private_entry(folio, write=write)
    return pte_mkdirty(evolve(mk_pte(folio), write=True)) if write else mk_pte(folio)


def still_a_hole(vma: Vma, pte: Pte) -> bool:
    """What an insert finds under the lock: nothing or the zero page, and nobody who wants to hear of missing pages."""
    return pte.kind in (PteKind.NONE, PteKind.ZERO) and not vma.flags & VmFlags.UFFD_MISSING


async def migrate_vma_insert_page(kernel: Kernel, vma: Vma, addr: int, folio: Folio) -> bool:
    """Map the driver's page at a hole; False when the hole is none any more. The charge stays on the page either way."""
    if vma.anon_vma is None:
        return False
    await memcontrol.mem_cgroup_charge(kernel, folio)
    await kernel.generation.steps.mark_uptodate(folio)
    await spin_lock(vma.mm.ptl)
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
    await set_pte_at(vma.mm, addr, kernel.generation.steps.inserted_entry(vma, folio, kernel.is_device_private(folio)))
    await spin_unlock(vma.mm.ptl)
    return True
