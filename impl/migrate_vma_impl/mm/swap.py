"""The last reference, and the LRU's per-CPU batches: mm/swap.c, mm/vmscan.c (folio_isolate_lru, folio_putback_lru).

Rules:
- A new system folio waits in its CPU's batch, which holds a reference, until that CPU drains it. Only a folio on the LRU proper
  can be isolated, so a migrator that meets one in another CPU's batch has to make that CPU drain (lru_add_drain_all).
- The step that puts the last reference uncharges the folio, and for device memory clears its mapping and exclusivity too:
  nobody can look at a folio between those steps. Then the folio goes back to who gave it out.
- The LRU lists themselves are not modelled: a folio is on one, or it is not.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import Mutex, mutex_lock, mutex_unlock
from migrate_vma_impl.machine.traps import Key, Outcome, ThisCpu
from migrate_vma_impl.mm import memremap, page_alloc
from migrate_vma_impl.mm.mm_types import Folio, FolioState, LruBatch, WorkList
from migrate_vma_impl.workqueue import WorkItem, with_work
from migrate_vma_spec.events import (
    DrainBegan,
    DrainEnded,
    FolioPut,
    LruAdded,
    LruBatchRead,
    LruDrained,
    LruIsolated,
    LruPutBack,
    MemcgUncharged,
    Oops,
)
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Lru

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

PAGEVEC_SIZE = 15
"""Folios in a full batch (include/linux/pagevec.h in 6.1)."""

LRU_ADD_DRAIN_ALL = Mutex("lru_add_drain_all")


def slots(cpus: int) -> dict[Key, Any]:
    """The slots of this file with their first values."""
    slots: dict[Key, Any] = {LRU_ADD_DRAIN_ALL: Mutex.free}
    for cpu in range(cpus):
        slots[LruBatch(cpu)] = ()
        slots[WorkList(cpu)] = ()
    return slots


# ---- the last reference ----------------------------------------------------------------------------------------------


class _Left(enum.Enum):
    """What a put leaves behind."""

    REFERENCES = "references"
    NOTHING = "nothing"
    A_CHARGE = "nothing but a charge, which went with it"


def _put_one(f: FolioState) -> tuple[FolioState, _Left]:
    left = evolve(f, refcount=f.refcount - 1)
    if left.refcount:
        return left, _Left.REFERENCES
    gone = evolve(left, charged=False)
    if f.is_zone_device:
        # The flags go too, which the kernel leaves until the page is initialised again: nobody looks, and states meet.
        gone = evolve(gone, exclusive=False, anon_vma=None, index=None, dirty=False, young=False, uptodate=False, lazyfree=False)
    return gone, _Left.A_CHARGE if f.charged else _Left.NOTHING


def _put(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), _Left.REFERENCES, Oops("folio_put of a free folio", f.pfn)
    after, left = _put_one(f)
    return (after,), left, FolioPut(f.pfn, after.refcount)


async def folio_put(kernel: Kernel, folio: Folio) -> None:
    """folio_put / put_page: the last one frees the folio."""
    left: _Left = await traps.step(_put, folio)
    if left is not _Left.REFERENCES:
        await _free(kernel, folio, left)


async def _free(kernel: Kernel, folio: Folio, left: _Left) -> None:
    """__folio_put: the folio has no reference any more."""
    if left is _Left.A_CHARGE:
        await traps.note(MemcgUncharged(folio.pfn))
    if kernel.is_zone_device(folio):
        await memremap.free_zone_device_folio(kernel, folio)
    else:
        await page_alloc.free_pages(kernel, folio)


# ---- the batches -----------------------------------------------------------------------------------------------------


def _add(f: FolioState, batch: tuple[int, ...]) -> Outcome:
    if f.lru in (Lru.BATCHED, Lru.ON):
        return (f, batch), False, Oops("folio_add_lru of a folio that is on the LRU or in a batch", f.pfn)
    if f.refcount <= 0:
        return (f, batch), False, Oops("folio_add_lru of a free folio", f.pfn)
    after = tuple(sorted((*batch, f.pfn)))
    event = LruAdded(f.pfn, f.refcount + 1)
    full = len(after) >= PAGEVEC_SIZE or f.order > 0
    return (evolve(f, lru=Lru.BATCHED, refcount=f.refcount + 1), after), full, event


async def folio_add_lru(kernel: Kernel, folio: Folio) -> None:
    """folio_add_lru: into this CPU's batch, which takes a reference, and is drained when it is full, or by a large folio."""
    if await traps.step(_add, folio, ThisCpu(LruBatch)):
        await lru_add_drain(kernel)


def _read_batch(batch: tuple[int, ...]) -> Outcome:
    return (batch,), batch, LruBatchRead(batch) if batch else LruDrained(())


def _drain(batch: tuple[int, ...], *frames: FolioState) -> Outcome:
    after: list[FolioState] = []
    freed: list[tuple[int, _Left]] = []
    for f in frames:
        if f.pfn not in batch:
            after.append(f)
            continue
        drained, left = _put_one(evolve(f, lru=Lru.ON))
        after.append(drained)
        if left is not _Left.REFERENCES:
            freed.append((f.pfn, left))
    drained_pfns = tuple(f.pfn for f in frames if f.pfn in batch)
    rest = tuple(pfn for pfn in batch if pfn not in drained_pfns)
    return (rest, *after), tuple(freed), LruDrained(drained_pfns)


async def lru_add_drain(kernel: Kernel) -> None:
    """lru_add_drain: this CPU's batch goes to the LRU. What another task of this CPU adds meanwhile waits for the next drain."""
    batch: tuple[int, ...] = await traps.step(_read_batch, ThisCpu(LruBatch))
    if not batch:
        return
    freed: tuple[tuple[int, _Left], ...] = await traps.step(_drain, ThisCpu(LruBatch), *(Folio(pfn) for pfn in batch))
    for pfn, left in freed:
        await _free(kernel, Folio(pfn), left)


LRU_ADD_DRAIN = WorkItem("lru_add_drain", lru_add_drain)


def _queue(*values: Any) -> Outcome:
    """`values` are the batches of all CPUs, then their work lists."""
    batches, lists = values[: len(values) // 2], values[len(values) // 2 :]
    queued = tuple(with_work(pending, LRU_ADD_DRAIN) if batch else pending for batch, pending in zip(batches, lists, strict=True))
    busy = tuple(cpu for cpu, batch in enumerate(batches) if batch)
    return (*batches, *queued), busy, DrainBegan()


def _flush(*lists: tuple[WorkItem, ...]) -> Outcome:
    return None if any(LRU_ADD_DRAIN in pending for pending in lists) else (lists, None, DrainEnded())


async def lru_add_drain_all(kernel: Kernel) -> None:
    """lru_add_drain_all: every CPU whose batch is not empty drains it in its own worker; wait for all of them.

    A mutex admits one drain at a time. Nothing here can hurry a CPU that does not let its worker run.
    """
    cpus = range(kernel.config.cpus)
    await mutex_lock(LRU_ADD_DRAIN_ALL)
    busy: tuple[int, ...] = await traps.step(_queue, *map(LruBatch, cpus), *map(WorkList, cpus))
    await traps.sleep_until(_flush, *map(WorkList, busy))
    await mutex_unlock(LRU_ADD_DRAIN_ALL)


# ---- on and off the LRU ----------------------------------------------------------------------------------------------


def _isolate(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), False, Oops("folio_isolate_lru of a free folio", f.pfn)
    if f.lru is not Lru.ON:
        return (f,), False, LruIsolated(f.pfn, done=False, refcount=f.refcount)
    return (evolve(f, lru=Lru.ISOLATED, refcount=f.refcount + 1),), True, LruIsolated(f.pfn, done=True, refcount=f.refcount + 1)


async def folio_isolate_lru(kernel: Kernel, folio: Folio) -> bool:
    """folio_isolate_lru: off the LRU, with a reference for the isolation; False where the folio is not on it."""
    return bool(await traps.step(_isolate, folio))


def _put_back(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), _Left.REFERENCES, Oops("folio_putback_lru of a free folio", f.pfn)
    after, left = _put_one(evolve(f, lru=Lru.ON))
    return (after,), left, LruPutBack(f.pfn, after.refcount)


async def folio_putback_lru(kernel: Kernel, folio: Folio) -> None:
    """folio_putback_lru: back on the LRU, and the isolation's reference put. The kernel goes through the batch; one step here."""
    left: _Left = await traps.step(_put_back, folio)
    if left is not _Left.REFERENCES:
        await _free(kernel, folio, left)
