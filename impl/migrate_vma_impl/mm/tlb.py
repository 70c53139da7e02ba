"""A CPU's own accesses: its TLB, and the page walk that fills it.

Rules:
- A translation is served until it is flushed, however stale: that is what a TLB is for. So a store through a stale writable
  translation reaches the page that the entry mapped before.
- The walk takes no lock. It sets young, and dirty for a store, in the page-table entry itself, in the step that reads it.
- A store needs a translation that is writable and dirty; without the dirty bit the walk is made again, which sets it.
- An entry has no bit for "may be read": the walk takes that from the VMA, so PROT_NONE counts from when the VMA has it.
- A leaf at the middle level is served page by page: a translation is of one page, and holds that page's own entry.
- A translation is never dropped without a flush or a fault on it. A real TLB may forget earlier, which only makes it fresher.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Effect, Key, Outcome, ThisCpu
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, MmState, PteSlot, Tlb, TlbEntry
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.pgtable import hpage_nr, leaf_page, pmd_slot, pte_present
from migrate_vma_spec.events import CpuAccessed, PageCleared, PageCopied, PmdRead, PteRead, TlbFilled
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class Access(enum.Enum):
    """What became of one try at an access."""

    DONE = "done"
    FILLED = "the TLB took the translation: try again"
    FAULT = "page fault"


def _without(tlb: tuple[TlbEntry, ...], mm: int, addr: int) -> tuple[TlbEntry, ...]:
    return tuple(entry for entry in tlb if (entry.mm, entry.addr) != (mm, addr))


def _with(tlb: tuple[TlbEntry, ...], new: TlbEntry) -> tuple[TlbEntry, ...]:
    rest = _without(tlb, new.mm, new.addr)
    return tuple(sorted((*rest, new), key=lambda entry: (entry.mm, entry.addr)))


def _readable(space: MmState, addr: int) -> bool:
    vma = find_vma(space.vmas, addr)
    return vma is not None and bool(vma.flags & (VmFlags.READ | VmFlags.WRITE))


def _served(tlb: tuple[TlbEntry, ...], mm: int, addr: int, write: bool) -> TlbEntry | None:
    """The translation that serves the access, if there is one."""
    found = next((entry for entry in tlb if (entry.mm, entry.addr) == (mm, addr)), None)
    return None if found is None or (write and not (found.pte.write and found.pte.dirty)) else found


def _allows(entry: Pte, space: MmState, addr: int, write: bool) -> bool:
    return pte_present(entry) and (entry.write or not write) and _readable(space, addr)


def _access(tlb: tuple[TlbEntry, ...], pte: Pte, space: MmState, mm: int, addr: int, write: bool) -> Outcome:
    entry = _served(tlb, mm, addr, write)
    if entry is not None:
        return (tlb, pte, space), Access.DONE, CpuAccessed(mm, addr, entry.pte.pfn, write)
    if not _allows(pte, space, addr, write):
        return (_without(tlb, mm, addr), pte, space), Access.FAULT, PteRead(mm, addr, pte)
    walked = evolve(pte, young=True, dirty=pte.dirty or write)
    return (_with(tlb, TlbEntry(mm, addr, walked)), walked, space), Access.FILLED, TlbFilled(mm, addr, walked)


def _access_through_pmd(
    tlb: tuple[TlbEntry, ...], pte: Pte, space: MmState, pmd: Pte, mm: int, addr: int, write: bool, pages: int
) -> Outcome:
    """The walk by way of the middle level: a leaf there is the translation, and takes young and dirty for its whole range."""
    if pmd.kind is PteKind.TABLE or _served(tlb, mm, addr, write) is not None:
        outcome = _access(tlb, pte, space, mm, addr, write)
        return None if outcome is None else ((*outcome[0], pmd), *outcome[1:])
    start = addr - addr % pages
    if not _allows(pmd, space, addr, write):
        return (_without(tlb, mm, addr), pte, space, pmd), Access.FAULT, PmdRead(mm, start, pages, pmd)
    walked = evolve(pmd, young=True, dirty=pmd.dirty or write)
    own = leaf_page(walked, addr - start)
    return (_with(tlb, TlbEntry(mm, addr, own)), pte, space, walked), Access.FILLED, TlbFilled(mm, addr, own)


def _access_effect(kernel: Kernel, mm: Mm, addr: int, write: bool) -> tuple[Effect, tuple[Key, ...], tuple[Any, ...]]:
    """What an access does, the slots that it touches, and its arguments."""
    keys, args = (ThisCpu(Tlb), PteSlot(mm.number, addr), mm), (mm.number, addr, write)
    if not kernel.config.pmd_order:
        return _access, keys, args
    return _access_through_pmd, (*keys, pmd_slot(kernel, mm, addr)), (*args, hpage_nr(kernel))


async def access_memory(kernel: Kernel, mm: Mm, addr: int, write: bool) -> Access:
    """One try at a load or a store on this CPU."""
    effect, keys, args = _access_effect(kernel, mm, addr, write)
    return await traps.step(effect, *keys, args=args)  # type: ignore[no-any-return]


def _copy(dst: FolioState, *rest: Any) -> Outcome:
    *access, effect = rest
    outcome: Outcome = effect(*access)
    if outcome is None:
        return None
    values, answer, event = outcome
    if isinstance(event, CpuAccessed):
        event = PageCleared(dst.pfn) if event.pfn is None else PageCopied(event.pfn, dst.pfn)
    return (dst, *values), answer, event


async def copy_from_user(kernel: Kernel, folio: Folio, mm: Mm, addr: int) -> Access:
    """One try of the kernel at loading a whole page of user memory into `folio`, with page faults disabled."""
    effect, keys, args = _access_effect(kernel, mm, addr, write=False)
    return await traps.step(_copy, folio, *keys, args=(*args, effect))  # type: ignore[no-any-return]
