"""A CPU's own accesses: its TLB, and the page walk that fills it.

Rules:
- A translation is served until it is flushed, however stale: that is what a TLB is for. So a store through a stale writable
  translation reaches the page that the entry mapped before.
- The walk takes no lock. It sets young, and dirty for a store, in the page-table entry itself, in the step that reads it.
- A store needs a translation that is writable and dirty; without the dirty bit the walk is made again, which sets it.
- A translation is never dropped without a flush or a fault on it. A real TLB may forget earlier, which only makes it fresher.
"""

from __future__ import annotations

import enum

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome, ThisCpu
from migrate_vma_impl.mm.mm_types import Mm, PteSlot, Tlb, TlbEntry
from migrate_vma_impl.mm.pgtable import pte_present
from migrate_vma_spec.events import CpuAccessed, PteRead, TlbFilled
from migrate_vma_spec.vocabulary import Pte


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


def _access(tlb: tuple[TlbEntry, ...], pte: Pte, mm: int, addr: int, write: bool) -> Outcome:
    for entry in tlb:
        if (entry.mm, entry.addr) == (mm, addr) and (not write or (entry.pte.write and entry.pte.dirty)):
            return (tlb, pte), Access.DONE, CpuAccessed(mm, addr, entry.pte.pfn, write)
    if not pte_present(pte) or (write and not pte.write):
        return (_without(tlb, mm, addr), pte), Access.FAULT, PteRead(mm, addr, pte)
    walked = evolve(pte, young=True, dirty=pte.dirty or write)
    return (_with(tlb, TlbEntry(mm, addr, walked)), walked), Access.FILLED, TlbFilled(mm, addr, walked)


async def access_memory(mm: Mm, addr: int, write: bool) -> Access:
    """One try at a load or a store on this CPU."""
    return await traps.step(_access, ThisCpu(Tlb), PteSlot(mm.number, addr), args=(mm.number, addr, write))  # type: ignore[no-any-return]
