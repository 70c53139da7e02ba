"""Leaves of the middle level, and their split into page tables: mm/huge_memory.c, mm/pgtable-generic.c (7.3).

Rules:
- A leaf maps the whole of one folio, from its head on, or the huge zero page. It stands for one mapping and one reference; the
  page tables that follow a split stand for one of each per page. Exclusivity of a folio under a leaf is its head's.
- One primitive is one step. What a page walker may set in a leaf is answered by the step that clears or splits it.
- Behind each leaf a page table lies deposited, so that a split never has to allocate. It becomes the page table of the split,
  or goes with the leaf.
- The kernel makes a leaf invalid and flushes it before it fills the page table. Here the step that splits it fills the table as
  well, and the flush follows under the same lock: no walker can set a bit in between, and no access is served that the leaf did
  not allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, PageTables, PteSlot, Vma
from migrate_vma_impl.mm.pgtable import (
    TABLE,
    flush_tlb_range,
    hpage_nr,
    leaf_page,
    migration_entry_for,
    pmd_is_huge,
    pmd_slot,
    pmd_trans_huge,
    pmdp_get,
    pte_wrprotect,
)
from migrate_vma_spec.events import (
    Event,
    ExclusiveShared,
    FolioDirtied,
    FolioGot,
    FolioPut,
    Oops,
    PageTableAllocated,
    PageTableFreed,
    PmdChanged,
    PmdSplit,
    RmapAdded,
    RmapRemoved,
)
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, NotifyReason, Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def hpage_start(kernel: Kernel, addr: int) -> int:
    """Where the leaf above `addr` begins: HPAGE_PMD_MASK."""
    return addr - addr % hpage_nr(kernel)


def spans_leaf(kernel: Kernel, start: int, end: int) -> bool:
    """Whether [start, end) is all that one leaf maps."""
    return end - start == hpage_nr(kernel) and not start % hpage_nr(kernel)


# ---- page tables allocated beforehand --------------------------------------------------------------------------------


def _alloc_table(tables: int, mm: int) -> Outcome:
    return (tables + 1,), None, PageTableAllocated(mm, tables + 1)


async def pte_alloc_one(kernel: Kernel, mm: Mm) -> None:
    """pte_alloc_one: a page table to deposit. Memory for one never runs out."""
    await traps.step(_alloc_table, PageTables(mm.number), args=(mm.number,))


def _free_table(tables: int, mm: int) -> Outcome:
    if tables <= 0:
        return (tables,), None, Oops(f"a page table of mm {mm} is freed, which has none")
    return (tables - 1,), None, PageTableFreed(mm, tables - 1)


async def pte_free(kernel: Kernel, mm: Mm) -> None:
    """pte_free of a table that was not needed, or zap_deposited_table of one whose leaf is gone."""
    await traps.step(_free_table, PageTables(mm.number), args=(mm.number,))


# ---- the leaf --------------------------------------------------------------------------------------------------------


def _set(old: Pte, mm: int, addr: int, pages: int, new: Pte) -> Outcome:
    return (new,), None, PmdChanged(mm, addr, pages, old, new)


async def set_pmd_at(kernel: Kernel, mm: Mm, addr: int, pmd: Pte) -> None:
    """set_pmd_at. A page table that the caller has allocated is deposited behind a new leaf by it."""
    slot = pmd_slot(kernel, mm, addr)
    await traps.step(_set, slot, args=(mm.number, slot.addr, hpage_nr(kernel), pmd))


def _clear(old: Pte, *rest: Any) -> Outcome:
    *head, mm, addr, pages = rest
    exclusive = bool(head) and head[0].exclusive
    return (PTE_NONE, *head), (old, exclusive), PmdChanged(mm, addr, pages, old, PTE_NONE)


async def pmdp_huge_get_and_clear(kernel: Kernel, mm: Mm, addr: int, folio: Folio | None) -> tuple[Pte, bool]:
    """Clear the leaf that maps `folio`: the leaf as it was at that instant, and whether the folio is anon-exclusive."""
    slot = pmd_slot(kernel, mm, addr)
    keys = (slot,) if folio is None else (slot, folio)
    return await traps.step(_clear, *keys, args=(mm.number, slot.addr, hpage_nr(kernel)))  # type: ignore[no-any-return]


async def flush_pmd_tlb_range(kernel: Kernel, mm: Mm, addr: int) -> None:
    start = hpage_start(kernel, addr)
    await flush_tlb_range(kernel, mm, start, start + hpage_nr(kernel))


async def pmdp_huge_clear_flush(kernel: Kernel, mm: Mm, addr: int, folio: Folio | None) -> tuple[Pte, bool]:
    """As pmdp_huge_get_and_clear, and flush the translations of a present leaf."""
    found = await pmdp_huge_get_and_clear(kernel, mm, addr, folio)
    await flush_pmd_tlb_range(kernel, mm, addr)
    return found


def _wrprotect(old: Pte, mm: int, addr: int, pages: int) -> Outcome:
    new = pte_wrprotect(old)
    return (new,), None, PmdChanged(mm, addr, pages, old, new)


async def pmdp_set_wrprotect(kernel: Kernel, mm: Mm, addr: int) -> None:
    """Take the write permission, and keep what page walkers set in the meantime."""
    slot = pmd_slot(kernel, mm, addr)
    await traps.step(_wrprotect, slot, args=(mm.number, slot.addr, hpage_nr(kernel)))


# ---- the split -------------------------------------------------------------------------------------------------------


def split_entry(pmd: Pte, i: int, freeze: bool, exclusive: bool) -> Pte:
    """The entry of page `i` when a leaf is split: all bits of the leaf, as a migration entry if it is to be frozen.

    The zero page's keep nothing but userfaultfd's bit, and are young as all fresh ones are.
    """
    if pmd.kind is PteKind.ZERO:
        return Pte(PteKind.ZERO, young=True, uffd_wp=pmd.uffd_wp)
    entry = leaf_page(pmd, i)
    return migration_entry_for(entry, exclusive) if freeze and pmd.kind is not PteKind.MIGRATION else entry


def _split_bare(pmd: Pte, *rest: Any) -> Outcome:
    """A leaf that is no mapping of a folio: of the huge zero page, or a migration entry. `rest`: its entries, and arguments."""
    *_, mm, addr, nr = rest
    entries = tuple(split_entry(pmd, i, False, False) for i in range(nr))
    return (TABLE, *entries), (), PmdSplit(mm, addr, pmd, entries)


def _split_mapping(pmd: Pte, *rest: Any) -> Outcome:
    """A leaf that maps a folio. `rest`: its page-table slots, the folio's frames, and the arguments.

    Whether the folio is pinned (folio_try_share_anon_rmap_pmd) and the end of the leaf are one instant here: in the kernel the
    leaf is invalid by then, so that no lockless walk can pin what it maps.
    """
    *slots, mm, addr, nr, freeze = rest
    frames: tuple[FolioState, ...] = tuple(slots[nr:])
    head = frames[0]
    exclusive = head.exclusive
    shares = freeze and exclusive
    if shares and head.maybe_dma_pinned:
        freeze = False
    entries = tuple(split_entry(pmd, i, freeze, exclusive) for i in range(nr))
    after, said = _frozen(head, frames, mm, addr) if freeze else _page_mapped(head, frames, mm, addr)
    if pmd.dirty and not head.dirty:
        after = (evolve(after[0], dirty=True), *after[1:])
        said = (FolioDirtied(head.pfn), *said)
    split = PmdSplit(mm, addr, pmd, entries)
    if shares:
        return (TABLE, *entries, *after), (split, *said), ExclusiveShared(head.pfn, done=freeze)
    return (TABLE, *entries, *after), said, split


def _page_mapped(
    head: FolioState, frames: tuple[FolioState, ...], mm: int, addr: int
) -> tuple[tuple[FolioState, ...], tuple[Event, ...]]:
    """One mapping and one reference for each page in the place of the leaf's; each is as exclusive as the folio was."""
    nr = len(frames)
    left = evolve(head, refcount=head.refcount + nr - 1, mapcount=head.mapcount + nr - 1)
    after = (left, *(evolve(f, exclusive=head.exclusive) for f in frames[1:]))
    added = (RmapAdded(f.pfn, mm, addr + i, head.mapcount + i + 1, head.exclusive) for i, f in enumerate(frames))
    return after, (FolioGot(head.pfn, left.refcount), *added, RmapRemoved(head.pfn, mm, addr, left.mapcount, nr))


def _frozen(
    head: FolioState, frames: tuple[FolioState, ...], mm: int, addr: int
) -> tuple[tuple[FolioState, ...], tuple[Event, ...]]:
    """The leaf's mapping and reference are gone; its page table holds migration entries. The caller has one of its own."""
    left = evolve(head, refcount=head.refcount - 1, mapcount=head.mapcount - 1, exclusive=False)
    removed = RmapRemoved(head.pfn, mm, addr, left.mapcount, len(frames))
    return (left, *frames[1:]), (removed, FolioPut(head.pfn, left.refcount))


def _drop_reference(f: FolioState) -> Outcome:
    return (evolve(f, refcount=f.refcount - 1),), None, FolioPut(f.pfn, f.refcount - 1)


async def split_huge_pmd_locked(kernel: Kernel, vma: Vma, addr: int, freeze: bool) -> None:
    """__split_huge_pmd_locked, for whatever hangs at `addr`: only a leaf is split. With the page-table lock held.

    `freeze`: into migration entries, which costs the reference of the leaf, or, where it is a migration entry already, one that
    the caller has taken for this. A pinned exclusive folio is not frozen: its pages stay mapped.
    """
    mm, start, nr = vma.mm, hpage_start(kernel, addr), hpage_nr(kernel)
    pmd = await pmdp_get(kernel, mm, addr)
    if not pmd_is_huge(pmd):
        return
    slots = (pmd_slot(kernel, mm, addr), *(PteSlot(mm.number, start + i) for i in range(nr)))
    if pmd.kind in (PteKind.ZERO, PteKind.MIGRATION) or pmd.pfn is None:
        await traps.step(_split_bare, *slots, args=(mm.number, start, nr))
        if freeze and pmd.pfn is not None:
            await traps.step(_drop_reference, Folio(pmd.pfn))
    else:
        frames = (Folio(pmd.pfn + i) for i in range(nr))
        said: tuple[Event, ...] = await traps.step(_split_mapping, *slots, *frames, args=(mm.number, start, nr, freeze))
        for event in said:
            await traps.note(event)
    if pmd_trans_huge(pmd):
        await flush_pmd_tlb_range(kernel, mm, addr)


async def split_huge_pmd(kernel: Kernel, vma: Vma, addr: int, freeze: bool = False) -> None:
    """__split_huge_pmd: in a notifier bracket of the leaf's whole range, event CLEAR. What hangs there is looked at in it."""
    start = hpage_start(kernel, addr)
    end = start + hpage_nr(kernel)
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, start, end, NotifyReason.CLEAR)
    await spin_lock(vma.mm.ptl)
    await split_huge_pmd_locked(kernel, vma, addr, freeze)
    await spin_unlock(vma.mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, start, end)


async def split_huge_pmd_address(kernel: Kernel, vma: Vma, addr: int, freeze: bool = False) -> None:
    """split_huge_pmd_address: where a look without the lock finds a leaf."""
    if kernel.config.pmd_order and pmd_is_huge(await pmdp_get(kernel, vma.mm, addr)):
        await split_huge_pmd(kernel, vma, addr, freeze)


async def vma_adjust_trans_huge(kernel: Kernel, vma: Vma, *borders: int) -> None:
    """A VMA is about to be split at these addresses: leaves that reach across them are split first."""
    for addr in borders:
        if addr % hpage_nr(kernel) and vma.start < addr < vma.end:
            await split_huge_pmd_address(kernel, vma, addr)
