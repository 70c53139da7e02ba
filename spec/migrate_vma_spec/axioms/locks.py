"""A-LOCK: who holds a lock, from when to when; and what must not be done meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from migrate_vma_spec import events as ev
from migrate_vma_spec.axioms.axiom import Broken
from migrate_vma_spec.axioms.history import History, Hold
from migrate_vma_spec.vocabulary import LockMode

REFUSED = ("folio_unlock", "unlock of ptl:")
"""How an oops begins that stands in the place of letting go what is not locked."""


def alternate(h: History) -> Iterator[Broken]:
    """A page-table lock or a page lock is let go once each time it is taken, by the task that took it."""
    for at in h.unlocked:
        yield f"{h.steps[at].event} of a page that is not locked", (at,)
    for at in h.dropped:
        yield f"{h.steps[at].event} of a lock that nobody holds", (at,)
    for at in h.places(ev.Oops):
        event = h.steps[at].event
        if isinstance(event, ev.Oops) and event.what.startswith(REFUSED):
            yield f"the kernel stopped: {event.what}", (at,)
    for what, hold in _all_holds(h):
        if hold.end is not None and hold.dropper not in ("", hold.task):
            yield f"{what} was taken by {hold.task} and let go by {hold.dropper}", (hold.start, hold.end)


def let_go(h: History) -> Iterator[Broken]:
    """A task that ends an operation holds no page-table lock and no page lock."""
    for what, hold in _all_holds(h):
        operation = h.operation(hold.task, hold.start)
        if operation is not None and operation.end is not None and (hold.end is None or hold.end > operation.end):
            yield f"{hold.task} ended its operation with {what}", (hold.start, operation.end)


def no_sleep(h: History) -> Iterator[Broken]:
    """No task waits for anything while it holds a page-table lock."""
    kinds = (ev.WaitBegan, ev.WaitEnded, ev.FolioLocked, ev.LockTaken, ev.DrainBegan)
    sleeps = [at for at in h.places(*kinds) if _sleeps(h.steps[at].event)]
    for name, holds in h.locks.items():
        for hold in holds if name.startswith("ptl:") else ():
            at = next((at for at in sleeps if hold.start < at and hold.open_at(at) and h.steps[at].task == hold.task), None)
            if at is not None:
                yield f"{hold.task} may sleep under {name}: {h.steps[at].event}", (hold.start, at)


def apart(h: History) -> Iterator[Broken]:
    """Two tasks never have one lock at once, but for readers; nor one task twice."""
    for what, holds in [*_named(h), *_pages(h)]:
        for first, second in itertools.pairwise(holds):
            shared = first.mode is second.mode is LockMode.READ
            if not shared and first.open_at(second.start):
                yield f"{second.task} got {what} while {first.task} had it", (first.start, second.start)


def _sleeps(event: ev.Event) -> bool:
    """Queueing on a page's lock under the page-table lock is no sleep yet."""
    match event:
        case ev.WaitBegan(pfn=pfn):
            return pfn is None
        case ev.FolioLocked(blocking=blocking):
            return blocking
        case ev.LockTaken(mode=mode):
            return mode is not LockMode.SPIN
        case _:
            return True


def _all_holds(h: History) -> Iterator[tuple[str, Hold]]:
    for name, holds in [*_pages(h), *((name, holds) for name, holds in _named(h) if name.startswith("ptl:"))]:
        for hold in holds:
            yield name, hold


def _named(h: History) -> Iterator[tuple[str, list[Hold]]]:
    yield from h.locks.items()


def _pages(h: History) -> Iterator[tuple[str, list[Hold]]]:
    """Of a folio of several pages its first frame speaks."""
    for pfn, holds in h.page_locks.items():
        heads = [hold for hold in holds if (life := h.life(pfn, hold.start)) is None or life.pfn == pfn]
        yield f"the lock of page {pfn}", heads
