"""Changing what accesses are allowed: mm/mprotect.c (7.3).

Rules:
- mprotect holds mmap_lock for writing; userfaultfd's write protection walks by the same functions and holds it for reading.
- A present entry of a private mapping loses its write permission whatever is asked for. It gets it back in the same step if the
  VMA may be written, the page is exclusive, and neither userfaultfd nor soft-dirty tracking wants to hear of the first store.
- An entry that is not present only ever loses: a writable migration entry becomes readable-exclusive, a writable device-private
  one readable, which costs it soft-dirty too; what wants to write faults.
- Entries change inside a notifier bracket, under the page-table lock. The TLB is flushed when all of it is done, behind the
  bracket and without the page-table lock, but before mmap_lock is dropped. Who may not rely on that asks mm_tlb_flush_pending.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.huge_memory_leaf import spans_leaf, split_huge_pmd
from migrate_vma_impl.mm.huge_memory_walk import change_huge_pmd
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, PteSlot, Vma
from migrate_vma_impl.mm.mmap import in_range, inside, overlap, vma_modify_flags
from migrate_vma_impl.mm.mmap_lock import mmap_write_lock, mmap_write_unlock
from migrate_vma_impl.mm.pgtable import (
    flush_tlb_range,
    pmd_is_huge,
    pmd_ranges,
    pmdp_get,
    pte_offset_map_lock,
    pte_present,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.tlb_batch import flush_tlb_batched_pending
from migrate_vma_spec.events import LazyMmuEntered, LazyMmuLeft, PteChanged
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

ACCESS = VmFlags.READ | VmFlags.WRITE


class Change(enum.Flag):
    """cp_flags of change_protection. UFFD_WP and RESOLVE set and clear userfaultfd's write protection."""

    NONE = 0
    TRY_WRITABLE = enum.auto()
    UFFD_WP = enum.auto()
    RESOLVE = enum.auto()


# ---- the system call -------------------------------------------------------------------------------------------------


async def do_mprotect(kernel: Kernel, mm: Mm, start: int, end: int, prot: VmFlags) -> int:
    """do_mprotect_pkey: VMA after VMA, up to the first gap, which is -ENOMEM."""
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    _, vmas = await mmap_write_lock(mm)
    done, flush = start, False
    for vma in overlap(vmas, start, end):
        if vma.start > done:
            break
        flush |= await mprotect_fixup(kernel, vma, start, end, vma.flags & ~ACCESS | prot)
        done = min(vma.end, end)
    if flush:
        await flush_tlb_range(kernel, mm, start, end)
    await mmap_write_unlock(mm)
    return 0 if done == end else -Errno.ENOMEM


async def mprotect_fixup(kernel: Kernel, vma: Vma, start: int, end: int, flags: VmFlags) -> bool:
    """The part of one VMA: its flags, then its entries. Whether a flush is owed."""
    if flags == vma.flags:
        return False
    part = inside(vma, start, end)
    new = await vma_modify_flags(kernel, vma, part.start, part.end, flags)
    return await change_protection(kernel, new, part.start, part.end, manual_write_upgrade(new))


def manual_write_upgrade(vma: Vma) -> Change:
    """vma_wants_manual_pte_write_upgrade: all that may be written."""
    return Change.TRY_WRITABLE if vma.flags & VmFlags.WRITE else Change.NONE


# ---- the walk --------------------------------------------------------------------------------------------------------


async def change_protection(kernel: Kernel, vma: Vma, start: int, end: int, change: Change) -> bool:
    """Make the entries of [start, end) fit their VMA. Whether the caller must flush them."""
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, start, end, NotifyReason.PROTECTION)
    flush = False
    for first, last in pmd_ranges(kernel, start, end):
        flush |= await change_pmd_range(kernel, vma, first, last, change)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, start, end)
    return flush


async def change_pmd_range(kernel: Kernel, vma: Vma, start: int, end: int, change: Change) -> bool:
    """What one entry of the middle level maps: a leaf as a whole if the range has all of it, else it is split first."""
    if pmd_is_huge(await pmdp_get(kernel, vma.mm, start)):
        if spans_leaf(kernel, start, end):
            changed = await change_huge_pmd(kernel, vma, start, change, changed_pte)
            if changed is not None:
                return pte_present(changed[0]) and pte_needs_flush(vma, *changed)
        else:
            await split_huge_pmd(kernel, vma, start)
    return await change_pte_range(kernel, vma, start, end, change)


async def change_pte_range(kernel: Kernel, vma: Vma, start: int, end: int, change: Change) -> bool:
    if not await pte_offset_map_lock(kernel, vma.mm, start):
        return False
    await flush_tlb_batched_pending(kernel, vma.mm)
    await traps.note(LazyMmuEntered(vma.mm.number))
    flush = False
    for addr in range(start, end):
        flush |= await _change_pte(kernel, vma, addr, change)
    await traps.note(LazyMmuLeft(vma.mm.number))
    await spin_unlock(vma.mm.ptl)
    return flush


async def _change_pte(kernel: Kernel, vma: Vma, addr: int, change: Change) -> bool:
    """One entry, under the lock. Whether a translation of it may allow more than it does now."""
    pte = await ptep_get(vma.mm, addr)
    if pte_present(pte):
        old, new = await _change_present_pte(vma, addr, pte, change)
        return pte_needs_flush(vma, old, new)
    new = marker_for(vma, change) if pte.kind is PteKind.NONE else kernel.generation.steps.protected_entry(pte, change)
    if new != pte:
        await set_pte_at(vma.mm, addr, new)
    return False


def marker_for(vma: Vma, change: Change) -> Pte:
    """An empty entry of a file's mapping remembers by a marker that it is write-protected: its page is elsewhere."""
    return Pte(PteKind.MARKER, uffd_wp=True) if Change.UFFD_WP in change and not vma.anonymous else PTE_NONE


def protected_entry(pte: Pte, change: Change) -> Pte:
    """change_softleaf_pte: what becomes of an entry that is not present, whatever was asked for."""
    if pte.kind is PteKind.MARKER:
        return PTE_NONE if Change.RESOLVE in change else pte
    if pte.kind is PteKind.MIGRATION and pte.write:
        pte = evolve(pte, write=False, exclusive=True)
    if pte.kind is PteKind.DEVICE_PRIVATE and pte.write:
        pte = evolve(pte, write=False, soft_dirty=False)
    return with_uffd_wp(pte, change)


def with_uffd_wp(pte: Pte, change: Change) -> Pte:
    if Change.UFFD_WP in change:
        return evolve(pte, uffd_wp=True)
    return evolve(pte, uffd_wp=False) if Change.RESOLVE in change else pte


# ---- present entries -------------------------------------------------------------------------------------------------


def can_change_pte_writable(vma: Vma, pte: Pte, exclusive: bool) -> bool:
    """can_change_pte_writable: no store needs to be noticed, and a private page is nobody else's."""
    if vma.soft_dirty_tracked and not pte.soft_dirty:
        return False
    if vma.flags & VmFlags.UFFD_WP and pte.uffd_wp:
        return False
    return pte.dirty if vma.flags & VmFlags.SHARED else exclusive


def changed_pte(vma: Vma, pte: Pte, exclusive: bool, change: Change) -> Pte:
    """The present entry afterwards: pte_modify with the VMA's page protection, which never allows writing, and perhaps more."""
    new = with_uffd_wp(evolve(pte, write=False), change)
    if Change.TRY_WRITABLE in change and can_change_pte_writable(vma, new, exclusive):
        return evolve(new, write=True)
    return new


def _change_zero(old: Pte, vma: Vma, addr: int, change: Change) -> Outcome:
    new = changed_pte(vma, old, False, change)
    return (new,), (old, new), PteChanged(vma.mm.number, addr, old, new)


def _change_page(old: Pte, f: FolioState, vma: Vma, addr: int, change: Change) -> Outcome:
    new = changed_pte(vma, old, f.exclusive, change)
    return (new, f), (old, new), PteChanged(vma.mm.number, addr, old, new)


async def _change_present_pte(vma: Vma, addr: int, pte: Pte, change: Change) -> tuple[Pte, Pte]:
    """ptep_modify_prot_start and _commit in one step, for page walkers go on meanwhile: the entry before and after it."""
    slot = PteSlot(vma.mm.number, addr)
    if pte.pfn is None:
        return await traps.step(_change_zero, slot, args=(vma, addr, change))  # type: ignore[no-any-return]
    return await traps.step(_change_page, slot, Folio(pte.pfn), args=(vma, addr, change))  # type: ignore[no-any-return]


def pte_needs_flush(vma: Vma, old: Pte, new: Pte) -> bool:
    """pte_needs_flush: permissions that a TLB may still hold are gone. Without read permission nothing may stay in it."""
    return (old.write and not new.write) or not vma.flags & ACCESS
