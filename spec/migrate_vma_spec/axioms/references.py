"""A-REF: the count of a folio is the sum of what was taken and given, covers all that holds it, and frees it once.

The ledger of a folio is one sum over its life. What must be in it at any time: one reference for each entry that maps it (or
leaf, of the middle level), one for its place in the page cache and one for the swap cache, one for a batch of the LRU. While a
page-table lock is held the sum may be short of that, for entry and reference cannot change in one step.
"""

from __future__ import annotations

from collections.abc import Iterator

from migrate_vma_spec import events as ev
from migrate_vma_spec.axioms.axiom import Broken
from migrate_vma_spec.axioms.history import HOLDING, Entry, History, Life

USES = (
    *(ev.FolioGot, ev.FolioPut, ev.FolioLocked, ev.FolioUnlocked, ev.FolioDirtied, ev.RmapAdded, ev.RmapRemoved),
    *(ev.LruAdded, ev.LruPutBack, ev.SwapCacheAdded, ev.PageCacheAdded, ev.FolioMoved, ev.FolioFreed),
)
"""Steps that need a folio which is in use."""

REFUSED = ("folio_get", "folio_put", "folio_unlock")
"""How an oops begins that stands in the place of one of them."""

CACHES: dict[type[ev.Event], int] = {ev.PageCacheAdded: 1, ev.PageCacheRemoved: -1, ev.SwapCacheAdded: 1, ev.SwapCacheRemoved: -1}


def balance(h: History) -> Iterator[Broken]:
    """What holds a folio is never more than its count, at any quiet moment."""
    quiet = _quiet_after(h)
    held = _mapped(h)
    for life in h.lives:
        ledger = life.ledger
        places = {at for at, _ in ledger} | {at for at, _ in held.get(id(life), ())}
        for at in sorted({quiet[place] for place in places}):
            if not life.open_at(at) or at >= len(h.steps):
                continue
            count, holders = _sum(ledger, at), _sum(held.get(id(life), []), at) + _kept(h, life, at)
            if count < holders:
                yield f"folio {life.pfn} has count {count}, and {holders} hold it", (at,)
                break


def freed_once(h: History) -> Iterator[Broken]:
    """A folio is freed with count 0, and from there on is nobody's until it is allocated again."""
    for at in h.places(*USES):
        event = h.steps[at].event
        pfn: int = getattr(event, "pfn")  # noqa: B009  (each of USES has one)
        before = h.life(pfn, at - 1) if isinstance(event, ev.FolioFreed) else h.life(pfn, at)
        if before is None:
            yield f"{type(event).__name__} of page {pfn}, which is free", (at,)
    for at in h.places(ev.Oops):
        event = h.steps[at].event
        refused = isinstance(event, ev.Oops) and event.what.startswith(REFUSED)
        if refused and isinstance(event, ev.Oops) and event.pfn is not None and h.life(event.pfn, at) is None:
            yield f"the kernel stopped at page {event.pfn}, which is free: {event.what}", (at,)
    for life in h.lives:
        yield from _end_of(h, life)


def _end_of(h: History, life: Life) -> Iterator[Broken]:
    ledger = life.ledger
    if life.freed and life.end is not None and _sum(ledger, life.end):
        yield f"folio {life.pfn} was freed with count {_sum(ledger, life.end)}", (life.end,)
    gone = life.gone
    after = next((count for count in life.counts if gone is not None and count.at > gone and count.delta > 0), None)
    if after is not None and gone is not None:
        yield f"folio {life.pfn} had no reference left, and got one", (gone, after.at)
    if not life.freed and life.end is not None and type(h.steps[life.end].event) is ev.FolioAllocated:
        yield f"page {life.pfn} was allocated while it was in use", (life.start, life.end)


def nothing_left(h: History) -> Iterator[Broken]:
    """When no operation is open any more, a folio in use is held by something: a reference that nothing has is never put.

    A lock that was never let go is A-LOCK-KEPT's.
    """
    last = len(h.steps) - 1
    if any(span.end is None for spans in h.operations.values() for span in spans):
        return
    named = {entries[-1].pte.pfn for entries in h.entries.values()}
    for life in h.lives:
        locked = h.page_lock(life.pfn, last) is not None
        if life.end is None and not locked and named.isdisjoint(life.frames) and not _kept(h, life, last):
            count = _sum(life.ledger, last)
            yield f"at the end nothing holds folio {life.pfn}, which has count {count}", (life.start, last)


def sums(h: History) -> Iterator[Broken]:
    """Each count that an event carries is the sum of what came before it. A get or a put may be of several references at once."""
    for life in h.lives:
        count = life.first
        for step in life.counts:
            said = count + step.delta if step.said is None else step.said
            several = type(h.steps[step.at].event) in (ev.FolioGot, ev.FolioPut) and (said - count) * step.delta > 0
            if said != count + step.delta and not several:
                yield f"folio {life.pfn} has count {count + step.delta} by what it was given, and {said} is said", (step.at,)
            count = said


def _sum(ledger: list[tuple[int, int]], at: int) -> int:
    return sum(delta for place, delta in ledger if place <= at)


def _mapped(h: History) -> dict[int, list[tuple[int, int]]]:
    """By folio, the places where one more or one less entry maps it. A leaf counts at its first page."""
    held: dict[int, list[tuple[int, int]]] = {}
    for (_, addr), entries in h.entries.items():
        for entry, end in zip(entries, [*(entry.at for entry in entries[1:]), None], strict=True):
            if entry.pte.kind in HOLDING and entry.pte.pfn is not None and entry.leaf in (None, addr):
                for life, start, stop in _lives_of(h, entry, end):
                    changes = held.setdefault(id(life), [])
                    changes.append((start, 1))
                    if stop is not None:
                        changes.append((stop, -1))
    return held


def _lives_of(h: History, entry: Entry, end: int | None) -> Iterator[tuple[Life, int, int | None]]:
    """The folios that an entry mapped one after the other: one, but for a folio that is split under it."""
    for life in h.of_frame.get(entry.pte.pfn or 0, []):
        start = max(entry.at, life.start)
        stops = [stop for stop in (end, life.end) if stop is not None]
        stop = min(stops) if stops else None
        if stop is None or start < stop:
            yield life, start, stop


def _kept(h: History, life: Life, at: int) -> int:
    """References of the page cache, the swap cache and the LRU's batches."""
    cached = sum(CACHES.get(type(h.steps[count.at].event), 0) for count in life.counts if count.at <= at)
    return cached + sum(hold.open_at(at) and hold.start >= life.start for hold in h.batched.get(life.pfn, ()))


def _quiet_after(h: History) -> list[int]:
    """For each place the next one, itself included, after which nobody holds a page-table lock."""
    depth = [0] * (len(h.steps) + 1)
    for name, holds in h.locks.items():
        for hold in holds if name.startswith("ptl:") else ():
            depth[hold.start] += 1
            if hold.end is not None:
                depth[hold.end] -= 1
    quiet: list[bool] = []
    held = 0
    for change in depth:
        held += change
        quiet.append(held == 0)
    after, then = [0] * len(depth), len(h.steps)
    for at in range(len(h.steps) - 1, -1, -1):
        then = at if quiet[at] else then
        after[at] = then
    after[len(h.steps)] = len(h.steps)
    return after
