"""Device-exclusive entries on the CPU's side: how a fault, or fork, makes them ordinary again (mm/memory.c, 7.3).

Rules:
- A device-exclusive entry maps its page, with a reference and a place in the reverse map, and keeps the CPUs out of it. It is
  clean and old: the folio took over the dirty bit when the entry was made.
- An entry is restored under the page lock. Whoever made it holds that lock until the device has the page in its page table, so
  the device gets at least one turn.
- A fault does not hold the page-table lock when it goes for the page, so the page may be free by then, or another one's: then all
  that it does is to lock and unlock it.
- The restored entry is writable if the VMA is and the page is exclusive still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.folio import (
    folio_lock,
    folio_try_get,
    folio_trylock,
    folio_unlock,
    page_folio,
    queue_on_page_lock,
    sleep_on_page_lock,
)
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Folio, PteSlot, Vma
from migrate_vma_impl.mm.mmap_lock import release_fault_lock
from migrate_vma_impl.mm.pgtable import pte_mkdirty, pte_offset_map_lock, ptep_get
from migrate_vma_spec.events import PteChanged
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import NotifyReason, Pte, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


MayWrite = Callable[[Vma, Pte, bool], bool]


def restored_from_exclusive(vma: Vma, old: Pte, dirty: bool, exclusive: bool, may_write: MayWrite) -> Pte:
    """The present entry that a device-exclusive one becomes: old, dirty only if it may be written and the folio is dirty."""
    pte = Pte(PteKind.PRESENT, old.pfn, soft_dirty=old.soft_dirty, uffd_wp=old.uffd_wp)
    if vma.flags & VmFlags.WRITE and may_write(vma, pte, exclusive):
        pte = evolve(pte_mkdirty(pte) if dirty else pte, write=True)
    return pte


def _restore(old: Pte, *rest: Any) -> Outcome:
    """`rest` is the folio's head, the page's own slot if it is a tail, the VMA, the address, and can_change_pte_writable."""
    *frames, vma, addr, may_write = rest
    new = restored_from_exclusive(vma, old, frames[0].dirty, frames[-1].exclusive, may_write)
    return (new, *frames), new, PteChanged(vma.mm.number, addr, old, new)


async def restore_exclusive_pte(kernel: Kernel, vma: Vma, addr: int, folio: Folio, page: Folio) -> Pte:
    """Make the entry an ordinary one, under the page-table lock and the page lock: what it is now."""
    keys = (folio,) if folio == page else (folio, page)
    args = (vma, addr, kernel.generation.steps.exclusive_writable)
    return await traps.step(_restore, PteSlot(vma.mm.number, addr), *keys, args=args)  # type: ignore[no-any-return]


async def try_restore_exclusive_pte(kernel: Kernel, vma: Vma, addr: int, pte: Pte) -> Pte | None:
    """For fork, which holds the page-table lock: the restored entry, or None where somebody has the page lock."""
    if pte.pfn is None:
        return None
    page = Folio(pte.pfn)
    folio = await page_folio(kernel, page)
    if not await folio_trylock(folio):
        return None
    restored = await restore_exclusive_pte(kernel, vma, addr, folio, page)
    await folio_unlock(folio)
    return restored


async def remove_device_exclusive_entry(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """do_swap_page's branch: tell the device to let go, then restore the entry if it is the same still."""
    if vmf.orig_pte.pfn is None:
        return VmFault.SIGBUS
    vma, addr, page = vmf.vma, vmf.address, Folio(vmf.orig_pte.pfn)
    folio = await page_folio(kernel, page)
    if not await folio_try_get(folio):
        return VmFault.NONE
    result = await folio_lock_or_retry(folio, vmf)
    if result:
        await swap.folio_put(kernel, folio)
        return result
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, addr, addr + 1, NotifyReason.CLEAR)
    if await pte_offset_map_lock(kernel, vma.mm, addr):
        if await ptep_get(vma.mm, addr) == vmf.orig_pte:
            await restore_exclusive_pte(kernel, vma, addr, folio, page)
        await spin_unlock(vma.mm.ptl)
    await kernel.generation.steps.release_exclusive(kernel, folio)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, addr, addr + 1)
    return VmFault.NONE


async def unlock_and_put(kernel: Kernel, folio: Folio) -> None:
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)


async def folio_lock_or_retry(folio: Folio, vmf: FaultContext) -> VmFault:
    """mm/filemap.c: sleep for the page lock; a fault that may drop the lock of the address space drops it before it sleeps."""
    if not vmf.flags & FaultFlag.ALLOW_RETRY:
        await folio_lock(folio)
        return VmFault.NONE
    if await folio_trylock(folio):
        return VmFault.NONE
    await release_fault_lock(vmf)
    if await queue_on_page_lock(folio):
        await sleep_on_page_lock(folio)
    return VmFault.RETRY
