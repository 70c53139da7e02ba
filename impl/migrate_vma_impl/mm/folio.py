"""References, the page lock and its wait queue: include/linux/mm.h, include/linux/page_ref.h, mm/filemap.c.

The page lock is no FIFO: an unlock wakes the wait-only sleepers and the first locker, and anybody may barge in; a locker that
lost five times is handed the lock (mm/filemap.c: folio_wait_bit_common, sysctl_page_lock_unfairness = 5).
A step on a frame that has no reference where the kernel needs one is use after free: VM_BUG_ON in the kernel, Oops here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import ME, Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Waiter, WaitMode
from migrate_vma_spec.events import (
    FolioGetMissed,
    FolioGot,
    FolioLocked,
    FolioLockMissed,
    FolioPut,
    FolioRead,
    FolioUnlocked,
    Oops,
    WaitBegan,
    WaitEnded,
)
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

UNFAIRNESS = 5


# ---- pages and their folios ------------------------------------------------------------------------------------------


def _head(page: FolioState, *ancestors: FolioState) -> Outcome:
    head = next((f for f in ancestors if f.pfn == page.head), page)
    return (page, *ancestors), Folio(head.pfn), FolioRead(head.pfn, head.refcount, head.mapcount)


async def page_folio(kernel: Kernel, page: Folio) -> Folio:
    """page_folio: the head of the folio that a page belongs to. It stays so while the caller has the folio, or an entry of it
    under its page-table lock.

    Folios are naturally aligned, so only the frames that this one rounds down to can be its head, and one that is aligned for
    the largest order is its own: no step is needed to know that.
    """
    if not page.pfn % (1 << kernel.config.pmd_order):
        return page
    return await traps.step(_head, page, *_possible_heads(kernel, page))  # type: ignore[no-any-return]


def _possible_heads(kernel: Kernel, page: Folio) -> tuple[Folio, ...]:
    heads = {page.pfn & ~((1 << order) - 1) for order in range(1, kernel.config.pmd_order + 1)} - {page.pfn}
    return tuple(Folio(pfn) for pfn in sorted(heads) if kernel.has_frame(pfn))


def _order(f: FolioState) -> Outcome:
    return (f,), f.order, FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_nr_pages(kernel: Kernel, folio: Folio) -> int:
    """folio_nr_pages of a head. The caller has the folio, so that it stays as large as it is, or the page lock besides."""
    if not kernel.config.pmd_order or folio.pfn % 2:
        return 1
    return 1 << int(await traps.step(_order, folio))


# ---- references and the lock -----------------------------------------------------------------------------------------


def _get(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), None, Oops("folio_get of a free folio", f.pfn)
    return (evolve(f, refcount=f.refcount + 1),), None, FolioGot(f.pfn, f.refcount + 1)


async def folio_get(folio: Folio) -> None:
    """folio_get / get_page: the caller knows that the folio has a reference."""
    await traps.step(_get, folio)


def _try_get(f: FolioState) -> Outcome:
    if f.refcount == 0:
        return (f,), False, FolioGetMissed(f.pfn)
    return (evolve(f, refcount=f.refcount + 1),), True, FolioGot(f.pfn, f.refcount + 1)


async def folio_try_get(folio: Folio) -> bool:
    """folio_try_get / get_page_unless_zero."""
    return bool(await traps.step(_try_get, folio))


def _put(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), False, Oops("folio_put of a free folio", f.pfn)
    return (evolve(f, refcount=f.refcount - 1),), f.refcount == 1, FolioPut(f.pfn, f.refcount - 1)


async def folio_put_testzero(folio: Folio) -> bool:
    """Drop a reference; True for the last one, whose holder must then free the folio. Most callers want `swap.folio_put`."""
    return bool(await traps.step(_put, folio))


def _trylock(f: FolioState) -> Outcome:
    if f.locked:
        return (f,), False, FolioLockMissed(f.pfn)
    return (evolve(f, locked=True),), True, FolioLocked(f.pfn, blocking=False)


async def folio_trylock(folio: Folio) -> bool:
    return bool(await traps.step(_trylock, folio))


def woken(queue: tuple[Waiter, ...]) -> tuple[tuple[Waiter, ...], str | None]:
    """What an unlock leaves of the queue, and the task that it hands the lock to: the wait-only go, up to the first locker."""
    left: list[Waiter] = []
    for place, waiter in enumerate(queue):
        if waiter.mode is WaitMode.TOLD:
            continue
        rest = queue[place + 1 :]
        return (*left, *rest), waiter.task if waiter.mode is WaitMode.HANDOFF else None
    return tuple(left), None


def _unlock(f: FolioState) -> Outcome:
    if not f.locked:
        return (f,), None, Oops("folio_unlock of a folio that is not locked", f.pfn)
    queue, heir = woken(f.queue)
    return (evolve(f, locked=heir is not None, handed=heir, queue=queue),), None, FolioUnlocked(f.pfn)


async def folio_unlock(folio: Folio) -> None:
    await traps.step(_unlock, folio)


def _queue(f: FolioState, task: str, mode: WaitMode) -> Outcome:
    if not f.locked:
        return (f,), False, FolioRead(f.pfn, f.refcount, f.mapcount)
    return (evolve(f, queue=(*f.queue, Waiter(task, mode))),), True, WaitBegan("PG_locked", f.pfn)


def _sleep(f: FolioState, task: str) -> Outcome:
    if any(waiter.task == task for waiter in f.queue):
        return None
    return (f,), f.handed == task, WaitEnded("PG_locked", f.pfn)


async def queue_on_page_lock(folio: Folio, mode: WaitMode = WaitMode.TOLD) -> bool:
    """Join the wait queue, unless the folio is not locked any more (False)."""
    return bool(await traps.step(_queue, folio, args=(ME, mode)))


async def sleep_on_page_lock(folio: Folio) -> bool:
    """Sleep until an unlock takes this task from the queue. True: the lock came with it."""
    return bool(await traps.sleep_until(_sleep, folio, args=(ME,)))


def _accept(f: FolioState) -> Outcome:
    return (evolve(f, handed=None),), None, FolioLocked(f.pfn, blocking=True)


async def folio_lock(folio: Folio) -> None:
    """folio_lock: may sleep, and may lose to barging lockers five times before it is handed the lock."""
    losses = 0
    while not await folio_trylock(folio):
        mode = WaitMode.LOCK if losses < UNFAIRNESS else WaitMode.HANDOFF
        if await queue_on_page_lock(folio, mode) and await sleep_on_page_lock(folio):
            await traps.step(_accept, folio)
            return
        losses += 1
