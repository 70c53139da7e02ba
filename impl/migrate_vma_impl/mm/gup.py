"""Pins: mm/gup.c:pin_user_pages for one anonymous page, as DMA to user memory takes them.

A pin is a reference that `folio_maybe_dma_pinned` can tell from others. It is taken only on a page that is mapped writable, and
so exclusive: what DMA writes is what the process reads. The kernel counts it as 1024 references; here `pins` counts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.memory import handle_mm_fault
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma, mmap_read_lock, mmap_read_unlock
from migrate_vma_impl.mm.pgtable import ptep_get
from migrate_vma_spec.events import FolioGot, FolioRead, Oops
from migrate_vma_spec.vocabulary import Errno, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def _grab(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), None, Oops("a free page is pinned", f.pfn)
    return (evolve(f, refcount=f.refcount + 1, pins=f.pins + 1),), None, FolioGot(f.pfn, f.refcount + 1)


def _unpin(f: FolioState) -> Outcome:
    if f.pins <= 0:
        return (f,), None, Oops("a page is unpinned that is not pinned", f.pfn)
    return (evolve(f, pins=f.pins - 1),), None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def follow_page_pte(mm: Mm, addr: int) -> Folio | None:
    """Pin the page if the entry maps it writable."""
    await spin_lock(mm.ptl)
    pte = await ptep_get(mm, addr)
    folio = Folio(pte.pfn) if pte.kind is PteKind.PRESENT and pte.write and pte.pfn is not None else None
    if folio is not None:
        await traps.step(_grab, folio)
    await spin_unlock(mm.ptl)
    return folio


async def pin_user_page(kernel: Kernel, mm: Mm, addr: int) -> Folio | Errno:
    """Fault the page in for writing until it can be pinned, or say why not (vm_fault_to_errno, mm.h)."""
    vma = find_vma(await mmap_read_lock(mm), addr)
    found: Folio | Errno = Errno.EFAULT
    if vma is not None and vma.flags & VmFlags.WRITE:
        found = await _faultin_page(kernel, vma, addr)
    await mmap_read_unlock(mm)
    return found


async def _faultin_page(kernel: Kernel, vma: Vma, addr: int) -> Folio | Errno:
    while True:
        folio = await follow_page_pte(vma.mm, addr)
        if folio is not None:
            return folio
        result = await handle_mm_fault(kernel, vma, addr, write=True)
        if result is not VmFault.NONE:
            return Errno.ENOMEM if result & VmFault.OOM else Errno.EFAULT
        await traps.cond_resched()


async def unpin_user_page(kernel: Kernel, folio: Folio) -> None:
    """Drop the pin and its reference. The page may have been unmapped since, and then goes with it."""
    await traps.step(_unpin, folio)
    await swap.folio_put(kernel, folio)
