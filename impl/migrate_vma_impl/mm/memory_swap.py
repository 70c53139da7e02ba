"""Faults on swap entries: mm/memory.c:do_swap_page, the part for genuine swap (7.3).

Rules:
- The page is found in the swap cache or read into it, and locked before the page-table lock is taken, under which the entry must
  still be the one of the fault. The slot is not freed meanwhile, because the entry holds it.
- The fault's reference becomes the mapping's.
- A page whose entry carries the exclusive marker is exclusive again, and writable where the VMA allows it. No other entry holds
  its slot then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_lock, folio_unlock
from migrate_vma_impl.mm.memory_lock import lock_if_same
from migrate_vma_impl.mm.memory_wp import do_wp_page
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import mk_pte, pte_mkdirty, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_add_new_anon_rmap
from migrate_vma_impl.mm.swap_state import swapin
from migrate_vma_impl.mm.swapfile import folio_free_swap, folio_put_swap
from migrate_vma_spec.events import FolioRead, Oops
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Pte, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def do_swap_entry(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """Bring back the page of a swap entry."""
    number = vmf.orig_pte.swap
    if number is None:
        return VmFault.SIGBUS
    folio = await swapin(kernel, number)
    if folio is None:
        return await _no_page(vmf)
    await folio_lock(folio)
    if not await _matches(folio, number) or not await lock_if_same(vmf):
        await folio_free_swap(kernel, folio)
        await folio_unlock(folio)
        await swap.folio_put(kernel, folio)
        return VmFault.NONE
    pte = await _map_swapped(kernel, vmf, folio, number)
    if vmf.write and vmf.orig_pte.exclusive:
        await folio_free_swap(kernel, folio)
    await folio_unlock(folio)
    if vmf.write and not pte.write:
        vmf.orig_pte = pte
        return await do_wp_page(kernel, vmf)
    await spin_unlock(vmf.vma.mm.ptl)
    return VmFault.NONE


async def _no_page(vmf: FaultContext) -> VmFault:
    """There was no memory; no error where somebody else has dealt with the entry in the meantime."""
    if not await lock_if_same(vmf):
        return VmFault.NONE
    await spin_unlock(vmf.vma.mm.ptl)
    return VmFault.OOM


def _match(f: FolioState, number: int) -> Outcome:
    return (f,), f.swap == number, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _matches(folio: Folio, number: int) -> bool:
    """folio_matches_swap_entry: it may have left the swap cache, or got another slot, before it could be locked."""
    return bool(await traps.step(_match, folio, args=(number,)))


def _is_anon(f: FolioState) -> Outcome:
    """Under the page-table lock, so that no other fault has mapped it since the entry was looked at again."""
    if f.exclusive:
        return (f,), False, Oops("a page in the swap cache is exclusive, and a swap entry names its slot", f.pfn)
    return (f,), f.anon_vma is not None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def _map_swapped(kernel: Kernel, vmf: FaultContext, folio: Folio, number: int) -> Pte:
    """Map the locked page in place of the swap entry, which gives its hold on the slot back."""
    vma, addr, exclusive = vmf.vma, vmf.address, vmf.orig_pte.exclusive
    pte = kernel.generation.steps.swapped_in_entry(vma, vmf.orig_pte, folio, vmf.write)
    if await traps.step(_is_anon, folio):
        await folio_add_anon_rmap(folio, vma, addr, exclusive=exclusive)
    else:
        await folio_add_new_anon_rmap(folio, vma, addr, exclusive=exclusive)
    await folio_put_swap(number)
    await set_pte_at(vma.mm, addr, pte)
    return pte


def swapped_in_entry(vma: Vma, old: Pte, folio: Folio, write: bool) -> Pte:
    """The present entry of a page that comes back: soft-dirty and uffd-wp as the swap entry had them.

    Writable only where the page is exclusive, the VMA allows it, and nobody wants to hear of the next write.
    """
    pte = evolve(mk_pte(folio), soft_dirty=old.soft_dirty, uffd_wp=old.uffd_wp)
    guarded = old.uffd_wp or (vma.soft_dirty_tracked and not old.soft_dirty)
    if not old.exclusive or not vma.flags & VmFlags.WRITE or guarded:
        return pte
    pte = evolve(pte, write=True)
    return pte_mkdirty(pte) if write else pte
