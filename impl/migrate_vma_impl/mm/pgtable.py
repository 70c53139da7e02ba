"""Page-table entries: reading, setting and clearing them, and the flushes that go with it (mm/pgtable-generic.c).

Rules:
- One primitive is one step. Callers hold the page-table lock where the kernel wants it; the CPUs' page walkers (`tlb.py`) never
  do, so what a walker may change is answered by the clearing step itself, as the kernel's atomic exchange does.
- PageAnonExclusive of a mapped page is stable under the page-table lock of its mapping, so the step that clears an entry answers
  it too, instead of spending a step on the read.
- An address space has one page table, always present: an absent upper level and an empty entry are the same here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, PteSlot, Tlb
from migrate_vma_spec.events import CacheFlushed, PteChanged, PteRead, TlbFlushed
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
    """The migration entry that takes the place of a present or device-private entry.

    Writable if the entry was; else readable-exclusive if the page was exclusive. Young and dirty only from a present entry, for
    a device-private one has no such bits; soft-dirty and uffd-wp from either form.
    """
    present = pte.kind is PteKind.PRESENT
    return evolve(
        pte,
        kind=PteKind.MIGRATION,
        exclusive=exclusive and not pte.write,
        young=present and pte.young,
        dirty=present and pte.dirty,
    )


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


async def ptep_clear_flush(kernel: Kernel, mm: Mm, addr: int) -> None:
    """Clear a present entry whose old value nobody needs, and flush its translation."""
    await pte_clear(mm, addr)
    await flush_tlb_page(kernel, mm, addr)
