"""Page-table entries: reading, setting and clearing them, and the flushes that go with it (mm/pgtable-generic.c).

Rules:
- One primitive is one step. Callers hold the page-table lock where the kernel wants it; the CPUs' page walkers (`tlb.py`) never
  do, so what a walker may change is answered by the clearing step itself, as the kernel's atomic exchange does.
- PageAnonExclusive of a mapped page is stable under the page-table lock of its mapping, so the step that clears an entry answers
  it too, instead of spending a step on the read.
- An address space has one page-table lock, for both levels. Upper levels are always present.
- Where Config.pmd_order is 0 a page table hangs everywhere, and an absent one and an empty entry are the same. Else each entry of
  the middle level is empty, a leaf, or a page table (`PteKind.TABLE`), and whoever is about to look at an entry below it goes
  through `pte_offset_map_lock`, which fails where no page table hangs. Below a leaf all entries are empty.
- How many page tables an address space has is counted, so that a deposited one that is forgotten shows when it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, MmState, PageTables, PmdSlot, PteSlot, Tlb
from migrate_vma_spec.events import CacheFlushed, PmdChanged, PmdRead, PteChanged, PteRead, TlbFlushed
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

PRESENT = frozenset({PteKind.PRESENT, PteKind.ZERO})


def pte_present(pte: Pte) -> bool:
    return pte.kind in PRESENT


def pte_wrprotect(pte: Pte) -> Pte:
    return evolve(pte, write=False)


def pte_mkdirty(pte: Pte) -> Pte:
    """Dirty, and soft-dirty with it, as the architectures that have the bit do."""
    return evolve(pte, dirty=True, soft_dirty=True)


def mk_pte(folio: Folio) -> Pte:
    """A present, young, clean, read-only entry (mk_pte with vma->vm_page_prot of a private mapping)."""
    return Pte(PteKind.PRESENT, folio.pfn, young=True)


def make_device_private_entry(folio: Folio, *, write: bool) -> Pte:
    return Pte(PteKind.DEVICE_PRIVATE, folio.pfn, write=write)


def migration_entry_for(pte: Pte, exclusive: bool) -> Pte:
    """The migration entry that takes the place of a present, device-private or device-exclusive entry.

    Writable if the entry was, and no device had it for itself; else readable-exclusive if the page was exclusive. Young and dirty
    only from a present entry, for the others have no such bits; soft-dirty and uffd-wp from any form.
    """
    present = pte.kind is PteKind.PRESENT
    write = pte.write and pte.kind is not PteKind.EXCLUSIVE
    return evolve(
        pte,
        kind=PteKind.MIGRATION,
        write=write,
        exclusive=exclusive and not write,
        young=present and pte.young,
        dirty=present and pte.dirty,
    )


# ---- the middle level ------------------------------------------------------------------------------------------------

TABLE = Pte(PteKind.TABLE)


def hpage_nr(kernel: Kernel) -> int:
    """HPAGE_PMD_NR: how many pages a leaf maps; 1 where there is no middle level."""
    return 1 << kernel.config.pmd_order


def pmd_slot(kernel: Kernel, mm: Mm, addr: int) -> PmdSlot:
    return PmdSlot(mm.number, addr - addr % hpage_nr(kernel))


def pmd_ranges(kernel: Kernel, start: int, end: int) -> tuple[tuple[int, int], ...]:
    """[start, end) in parts, one for each entry of the middle level; the whole of it where there is no such level."""
    nr = hpage_nr(kernel)
    if nr == 1:
        return ((start, end),) if start < end else ()
    return tuple((max(start, at), min(end, at + nr)) for at in range(start - start % nr, end, nr))


def leaf_page(pmd: Pte, i: int) -> Pte:
    """The entry of the page table that would map page `i` of a leaf's range as the leaf does."""
    return pmd if pmd.pfn is None else evolve(pmd, pfn=pmd.pfn + i)


def pmd_trans_huge(pmd: Pte) -> bool:
    """A present leaf: of a folio, or of the huge zero page."""
    return pmd.kind in PRESENT


def pmd_is_huge(pmd: Pte) -> bool:
    """A leaf of any kind, present or not."""
    return pmd.kind not in (PteKind.NONE, PteKind.TABLE)


def _read_pmd(pmd: Pte, mm: int, addr: int, pages: int) -> Outcome:
    return (pmd,), pmd, PmdRead(mm, addr, pages, pmd)


async def pmdp_get(kernel: Kernel, mm: Mm, addr: int) -> Pte:
    """The entry of the middle level above `addr`. Where there is no such level a page table hangs, which takes no look."""
    if not kernel.config.pmd_order:
        return TABLE
    slot = pmd_slot(kernel, mm, addr)
    return await traps.step(_read_pmd, slot, args=(mm.number, slot.addr, hpage_nr(kernel)))  # type: ignore[no-any-return]


async def pte_offset_map_lock(kernel: Kernel, mm: Mm, addr: int) -> bool:
    """Take the page-table lock to look at the entry of `addr`. False, without the lock, where no page table hangs above it.

    The kernel looks at the middle level before it takes the lock, to find it, and again behind it (mm/pgtable-generic.c).
    """
    await spin_lock(mm.ptl)
    if (await pmdp_get(kernel, mm, addr)).kind is PteKind.TABLE:
        return True
    await spin_unlock(mm.ptl)
    return False


def _populate(pmd: Pte, tables: int, mm: int, addr: int, pages: int) -> Outcome:
    if pmd.kind is not PteKind.NONE:
        return (pmd, tables), None, PmdRead(mm, addr, pages, pmd)
    return (TABLE, tables + 1), None, PmdChanged(mm, addr, pages, pmd, TABLE)


async def pte_alloc(kernel: Kernel, mm: Mm, addr: int) -> None:
    """pte_alloc: see to it that a page table hangs above `addr`, unless a leaf does. Memory for one never runs out."""
    if (await pmdp_get(kernel, mm, addr)).kind is PteKind.NONE:
        slot = pmd_slot(kernel, mm, addr)
        await spin_lock(mm.ptl)
        await traps.step(_populate, slot, PageTables(mm.number), args=(mm.number, slot.addr, hpage_nr(kernel)))
        await spin_unlock(mm.ptl)


def _unhang(pmd: Pte, tables: int, mm: MmState, addr: int, pages: int) -> Outcome:
    needed = any(vma.start < addr + pages and addr < vma.end for vma in mm.vmas)
    if needed or pmd.kind is not PteKind.TABLE:
        return (pmd, tables, mm), None, PmdRead(mm.number, addr, pages, pmd)
    return (PTE_NONE, tables - 1, mm), None, PmdChanged(mm.number, addr, pages, pmd, PTE_NONE)


async def free_pgtables(kernel: Kernel, mm: Mm, start: int, end: int) -> None:
    """free_pgtables: the page tables above [start, end), where nothing is mapped now, go; what another VMA needs stays."""
    if kernel.config.pmd_order:
        for first, _ in pmd_ranges(kernel, start, end):
            slot = pmd_slot(kernel, mm, first)
            await traps.step(_unhang, slot, PageTables(mm.number), mm, args=(slot.addr, hpage_nr(kernel)))


# ---- the entries below it --------------------------------------------------------------------------------------------


def _read(pte: Pte, mm: int, addr: int) -> Outcome:
    return (pte,), pte, PteRead(mm, addr, pte)


async def ptep_get(mm: Mm, addr: int) -> Pte:
    return await traps.step(_read, PteSlot(mm.number, addr), args=(mm.number, addr))  # type: ignore[no-any-return]


def _set(old: Pte, mm: int, addr: int, new: Pte) -> Outcome:
    return (new,), None, PteChanged(mm, addr, old, new)


async def set_pte_at(mm: Mm, addr: int, pte: Pte) -> None:
    await traps.step(_set, PteSlot(mm.number, addr), args=(mm.number, addr, pte))


async def pte_clear(mm: Mm, addr: int) -> None:
    await set_pte_at(mm, addr, PTE_NONE)


def _get_and_clear(old: Pte, f: FolioState, mm: int, addr: int) -> Outcome:
    return (PTE_NONE, f), (old, f.exclusive), PteChanged(mm, addr, old, PTE_NONE)


async def ptep_get_and_clear(mm: Mm, addr: int, folio: Folio) -> tuple[Pte, bool]:
    """Clear the entry that maps `folio`: the entry as it was at that instant, and whether the page is anon-exclusive."""
    slot = PteSlot(mm.number, addr)
    return await traps.step(_get_and_clear, slot, folio, args=(mm.number, addr))  # type: ignore[no-any-return]


def _wrprotect(old: Pte, mm: int, addr: int) -> Outcome:
    new = pte_wrprotect(old)
    return (new,), None, PteChanged(mm, addr, old, new)


async def ptep_set_wrprotect(mm: Mm, addr: int) -> None:
    """Take the write permission, and keep what page walkers set in the meantime."""
    await traps.step(_wrprotect, PteSlot(mm.number, addr), args=(mm.number, addr))


async def flush_cache_page(mm: Mm, addr: int) -> None:
    """For the trace alone: the simulated caches are coherent, as x86's are."""
    await traps.note(CacheFlushed(mm.number, addr))


def _flush(*values: Any) -> Outcome:
    *tlbs, mm, start, end = values
    left = tuple(tuple(entry for entry in tlb if entry.mm != mm or not start <= entry.addr < end) for tlb in tlbs)
    return left, None, TlbFlushed(mm, start, end)


async def flush_tlb_range(kernel: Kernel, mm: Mm, start: int, end: int) -> None:
    """Drop every CPU's translations of the range, in one step: the interrupts of a shootdown are not modelled."""
    await traps.step(_flush, *(Tlb(cpu) for cpu in range(kernel.config.cpus)), args=(mm.number, start, end))


async def flush_tlb_page(kernel: Kernel, mm: Mm, addr: int) -> None:
    await flush_tlb_range(kernel, mm, addr, addr + 1)


def _flush_if_pending(space: MmState, *values: Any) -> Outcome:
    *tlbs, mm, addr = values
    outcome = _flush(*tlbs, mm, addr, addr + bool(space.flush_pending))
    return None if outcome is None else ((space, *outcome[0]), *outcome[1:])


async def flush_tlb_page_if_pending(kernel: Kernel, mm: Mm, addr: int) -> None:
    """Flush where mm_tlb_flush_pending says that another changes entries and has yet to; else flush the empty range."""
    await traps.step(_flush_if_pending, mm, *(Tlb(cpu) for cpu in range(kernel.config.cpus)), args=(mm.number, addr))


async def ptep_clear_flush(kernel: Kernel, mm: Mm, addr: int) -> None:
    """Clear a present entry whose old value nobody needs, and flush its translation."""
    await pte_clear(mm, addr)
    await flush_tlb_page(kernel, mm, addr)
