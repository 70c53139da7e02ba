"""Flushes that reclaim owes: the batch of mm/rmap.c under CONFIG_ARCH_WANT_BATCHED_UNMAP_TLB_FLUSH (7.3; 6.1 has the same).

Rules:
- Reclaim clears entries and puts off their flush, so that one shootdown serves many pages (Config.tlb_batch; without it every
  entry is flushed when it is cleared). Until then other CPUs reach the pages through stale translations.
- What was put off is made up for before a page is written that such a translation may still change, and before one is freed.
- The address space remembers that a flush may be outstanding (mm->tlb_flush_batched). Who changes its entries under the
  page-table lock flushes first, for a swap entry there does not tell that a CPU still uses the page. The kernel's two generation
  counters are one bit here: nothing comes between the look and the flush.
- A CPU of the address space is any CPU: the mask of those that run it (mm_cpumask) is not modelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Mm, MmState, Tlb
from migrate_vma_impl.mm.pgtable import flush_tlb_range
from migrate_vma_spec.events import FlushDeferred, TlbFlushed
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


@define
class UnmapBatch:
    """struct tlbflush_unmap_batch, current->tlb_ubc: the address spaces whose translations this task has yet to flush.

    `writable`: one of them may let a CPU store without a look at the entry.
    """

    mms: tuple[int, ...] = ()
    writable: bool = False


def _pending(space: MmState, addr: int) -> Outcome:
    return (evolve(space, flush_batched=True),), None, FlushDeferred(space.number, addr, addr + 1)


async def set_tlb_ubc_flush_pending(batch: UnmapBatch, mm: Mm, addr: int, writable: bool) -> None:
    """The entry of `addr` was cleared, and its flush is put off. The page-table lock is held."""
    await traps.step(_pending, mm, args=(addr,))
    batch.mms = tuple(sorted({*batch.mms, mm.number}))
    batch.writable = batch.writable or writable


async def try_to_unmap_flush(kernel: Kernel, batch: UnmapBatch) -> None:
    """Flush what this task put off."""
    for number in batch.mms:
        await flush_tlb_range(kernel, Mm(number), 0, kernel.config.addresses)
    batch.mms, batch.writable = (), False


async def try_to_unmap_flush_dirty(kernel: Kernel, batch: UnmapBatch) -> None:
    """Flush it only if a CPU may still store through a translation: the page is about to be written out."""
    if batch.writable:
        await try_to_unmap_flush(kernel, batch)


def _flush_batched(space: MmState, *values: Any) -> Outcome:
    *tlbs, end = values
    if not space.flush_batched:
        return (space, *tlbs), None, TlbFlushed(space.number, 0, 0)
    left = tuple(tuple(entry for entry in tlb if entry.mm != space.number) for tlb in tlbs)
    return (evolve(space, flush_batched=False), *left), None, TlbFlushed(space.number, 0, end)


async def flush_tlb_batched_pending(kernel: Kernel, mm: Mm) -> None:
    """Before entries are changed: flush what reclaim may owe to this address space. The page-table lock is held."""
    if kernel.config.tlb_batch:
        await kernel.generation.steps.flush_batched(kernel, mm)


async def flush_tlb_mm_batched(kernel: Kernel, mm: Mm) -> None:
    """Flush the whole address space if its mark says so, and take the mark away."""
    tlbs = (Tlb(cpu) for cpu in range(kernel.config.cpus))
    await traps.step(_flush_batched, mm, *tlbs, args=(kernel.config.addresses,))
