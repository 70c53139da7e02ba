"""What /proc tells and does about an address space: fs/proc/task_mmu.c (7.3), clear_refs for soft-dirty, and pagemap.

Rules:
- Tracking begins with clear_refs: every entry loses soft-dirty, and its write permission so that the next store is noticed.
- The walk holds mmap_lock for writing, so no fault runs beside it. What page walkers still store through old translations until
  the one flush at the end is not noticed: it is as if it came before.
- An entry that is not present is reported by its own bits, whatever it stands for: swap, migration, device memory.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.mm_types import Mm, PteSlot, Vma
from migrate_vma_impl.mm.mmap import alter_vma
from migrate_vma_impl.mm.mmap_lock import (
    find_vma,
    mmap_read_lock,
    mmap_read_unlock,
    mmap_write_lock,
    mmap_write_unlock,
    vma_start_write,
)
from migrate_vma_impl.mm.pgtable import flush_tlb_range, pmd_ranges, pte_offset_map_lock, pte_present, ptep_get
from migrate_vma_spec.events import LazyMmuEntered, LazyMmuLeft, PteChanged
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Errno, NotifyReason, Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


# ---- /proc/pid/clear_refs --------------------------------------------------------------------------------------------


async def clear_refs_soft_dirty(kernel: Kernel, mm: Mm) -> int:
    """Write 4 to /proc/pid/clear_refs: forget which pages were written, and watch from now on."""
    _, vmas = await mmap_write_lock(mm)
    whole = kernel.config.addresses
    tracked = [await _track(kernel, vma) for vma in vmas]
    await mmu_notifier.invalidate_range_start(kernel, mm, 0, whole, NotifyReason.SOFT_DIRTY)
    for vma in tracked:
        for first, last in pmd_ranges(kernel, vma.start, vma.end):
            await clear_refs_pte_range(kernel, vma, first, last)
    await mmu_notifier.invalidate_range_end(kernel, mm, 0, whole)
    await flush_tlb_range(kernel, mm, 0, whole)
    await mmap_write_unlock(mm)
    return 0


async def _track(kernel: Kernel, vma: Vma) -> Vma:
    """VM_SOFTDIRTY goes from the VMA."""
    new = evolve(vma, soft_dirty_tracked=True)
    if new != vma:
        await vma_start_write(kernel, vma)
        await alter_vma(vma, new)
    return new


async def clear_refs_pte_range(kernel: Kernel, vma: Vma, start: int, end: int) -> None:
    if not await pte_offset_map_lock(kernel, vma.mm, start):
        return
    await traps.note(LazyMmuEntered(vma.mm.number))
    for addr in range(start, end):
        if (await ptep_get(vma.mm, addr)).kind not in (PteKind.NONE, PteKind.MARKER):
            await traps.step(_clear_soft_dirty, PteSlot(vma.mm.number, addr), args=(vma.mm.number, addr))
    await traps.note(LazyMmuLeft(vma.mm.number))
    await spin_unlock(vma.mm.ptl)


def _clear_soft_dirty(old: Pte, mm: int, addr: int) -> Outcome:
    """clear_soft_dirty. An entry that is not present keeps its write permission: what becomes of it is present and soft-clean."""
    new = evolve(old, soft_dirty=False, write=old.write and not pte_present(old))
    return (new,), None, PteChanged(mm, addr, old, new)


# ---- /proc/pid/pagemap -----------------------------------------------------------------------------------------------


class Pagemap(enum.IntFlag):
    """The flags of a pagemap entry, bits 55 to 63 of it (Documentation/admin-guide/mm/pagemap.rst)."""

    NONE = 0
    SOFT_DIRTY = 1 << 0
    UFFD_WP = 1 << 2
    SWAP = 1 << 7
    PRESENT = 1 << 8


async def pagemap_read(kernel: Kernel, mm: Mm, addr: int) -> int:
    """The flags of one page's entry; -EINVAL outside the address space."""
    if not 0 <= addr < kernel.config.addresses:
        return -Errno.EINVAL
    vma = find_vma(await mmap_read_lock(mm), addr)
    flags = Pagemap.NONE
    if vma is not None and await pte_offset_map_lock(kernel, mm, addr):
        flags = pte_to_pagemap_entry(vma, await ptep_get(mm, addr))
        await spin_unlock(mm.ptl)
    await mmap_read_unlock(mm)
    return int(flags)


def pte_to_pagemap_entry(vma: Vma, pte: Pte) -> Pagemap:
    flags = Pagemap.NONE
    if pte_present(pte):
        flags |= Pagemap.PRESENT
    elif pte.kind is not PteKind.NONE:
        flags |= Pagemap.SWAP
    if pte.soft_dirty or not vma.soft_dirty_tracked:
        flags |= Pagemap.SOFT_DIRTY
    return flags | Pagemap.UFFD_WP if pte.uffd_wp else flags
