"""Moving a mapping to another address: mm/mremap.c (7.3), MREMAP_MAYMOVE with MREMAP_FIXED and the length kept.

Rules:
- mmap_lock is held for writing throughout, so no fault sees the mapping at both places or at none.
- The new VMA joins the reverse map before any entry moves, and behind the old one: a walk looks at the old place first, and an
  entry that has left it by then is at the new one. So no walk misses an entry, and the move needs none of the walk's locks.
- An entry of any kind moves as it is, but for soft-dirty, which is set, and userfaultfd's bit, which is lost with the flag.
- Translations of the old place are flushed before the page-table lock is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.huge_memory_leaf import spans_leaf, split_huge_pmd
from migrate_vma_impl.mm.huge_memory_walk import move_huge_pmd
from migrate_vma_impl.mm.mm_types import Mm, PteSlot, Vma
from migrate_vma_impl.mm.mmap import VM_UFFD, in_range, unmap_vmas, vma_link_moved
from migrate_vma_impl.mm.mmap_lock import find_vma, mmap_write_lock, mmap_write_unlock, vma_start_write
from migrate_vma_impl.mm.pgtable import (
    flush_tlb_range,
    hpage_nr,
    pmd_is_huge,
    pmdp_get,
    pte_alloc,
    pte_offset_map_lock,
    pte_present,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.tlb_batch import flush_tlb_batched_pending
from migrate_vma_spec.events import CacheFlushed, LazyMmuEntered, LazyMmuLeft, PteChanged
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def do_mremap(kernel: Kernel, mm: Mm, start: int, end: int, to: int) -> int:
    """What is mapped in [start, end), part of one VMA, moves to `to`, over what is there."""
    length = end - start
    if not in_range(kernel, start, end) or not in_range(kernel, to, to + length) or -length < to - start < length:
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    vma = find_vma(vmas, start)
    if vma is not None and end <= vma.end:
        await unmap_vmas(kernel, mm, vmas, to, to + length)
        # What was unmapped may have been a part of the same VMA.
        left = vma.part(max(vma.start, to + length) if to < start else vma.start, min(vma.end, to) if to > start else vma.end)
        await move_vma(kernel, left, start, end, to)
    await mmap_write_unlock(mm)
    return 0 if vma is not None and end <= vma.end else -Errno.EFAULT


async def move_vma(kernel: Kernel, vma: Vma, start: int, end: int, to: int) -> None:
    """copy_vma, move_page_tables, and the old place is unmapped."""
    await vma_start_write(kernel, vma)
    new = evolve(vma.part(start, end), start=to, end=to + end - start, flags=vma.flags & ~VM_UFFD)
    await vma_link_moved(kernel, new, start)
    await move_page_tables(kernel, vma, start, end, to)
    await unmap_vmas(kernel, vma.mm, (vma,), start, end)


async def move_page_tables(kernel: Kernel, vma: Vma, start: int, end: int, to: int) -> None:
    await traps.note(CacheFlushed(vma.mm.number, start, end - start))
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, start, end, NotifyReason.UNMAP)
    addr = start
    while addr < end:
        await traps.cond_resched()
        extent = _extent(kernel, addr, end, to + addr - start)
        if not await move_leaf(kernel, vma, addr, addr + extent, to + addr - start):
            await pte_alloc(kernel, vma.mm, to + addr - start)
            await move_ptes(kernel, vma, addr, addr + extent, to + addr - start)
        addr += extent
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, start, end)


def _extent(kernel: Kernel, addr: int, end: int, to: int) -> int:
    """How many pages lie below one entry of the middle level at both places."""
    nr = hpage_nr(kernel)
    if nr == 1:
        return end - addr
    return min(end - addr, nr - addr % nr, nr - to % nr)


async def move_leaf(kernel: Kernel, vma: Vma, start: int, end: int, to: int) -> bool:
    """A leaf moves whole, if the range has all of it and the new place is aligned for it; else it is split. Whether it moved."""
    if not pmd_is_huge(await pmdp_get(kernel, vma.mm, start)):
        return False
    if spans_leaf(kernel, start, end) and await move_huge_pmd(kernel, vma, start, to):
        return True
    await split_huge_pmd(kernel, vma, start)
    return False


async def move_ptes(kernel: Kernel, vma: Vma, start: int, end: int, to: int) -> None:
    """One page table's part. Both places are below the address space's one page-table lock."""
    if not await pte_offset_map_lock(kernel, vma.mm, start):
        return
    await flush_tlb_batched_pending(kernel, vma.mm)
    await traps.note(LazyMmuEntered(vma.mm.number))
    present = 0
    for addr in range(start, end):
        present += await _move_pte(kernel, vma, addr, to + addr - start)
    await traps.note(LazyMmuLeft(vma.mm.number))
    await kernel.generation.steps.flush_moved(kernel, vma.mm, start, end, present)


async def flush_moved_then_drop_ptl(kernel: Kernel, mm: Mm, start: int, end: int, present: int) -> None:
    if present:
        await flush_tlb_range(kernel, mm, start, end)
    await spin_unlock(mm.ptl)


def _take(old: Pte, mm: int, addr: int) -> Outcome:
    return (PTE_NONE,), old, PteChanged(mm, addr, old, PTE_NONE)


async def _move_pte(kernel: Kernel, vma: Vma, addr: int, to: int) -> bool:
    """One entry; whether it was present."""
    if (await ptep_get(vma.mm, addr)).kind is PteKind.NONE:
        return False
    pte: Pte = await traps.step(_take, PteSlot(vma.mm.number, addr), args=(vma.mm.number, addr))
    new = kernel.generation.steps.moved_entry(vma, pte)
    if new.kind is not PteKind.NONE:
        await set_pte_at(vma.mm, to, new)
    return pte_present(pte)


def moved_entry(vma: Vma, pte: Pte) -> Pte:
    """The entry at the new place. A marker is nothing but userfaultfd's bit, and goes with it."""
    if vma.flags & VM_UFFD and pte.kind is PteKind.MARKER:
        return PTE_NONE
    watched = VmFlags.UFFD_WP in vma.flags
    return evolve(pte, soft_dirty=True, uffd_wp=pte.uffd_wp and not watched)
