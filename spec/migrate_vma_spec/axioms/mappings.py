"""A-MAP: where a page of a private anonymous content is: in page tables, or behind migration entries, and never in two places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from migrate_vma_spec import events as ev
from migrate_vma_spec.axioms.axiom import Broken
from migrate_vma_spec.axioms.history import HOLDING, Entry, History
from migrate_vma_spec.vocabulary import PteKind


def behind_locked_pages(h: History) -> Iterator[Broken]:
    """The time of a migration entry lies within the time for which its page is locked, and in use."""
    for (mm, addr), entry, end in _stretches(h):
        if entry.pte.kind is PteKind.MIGRATION and entry.pte.pfn is not None:
            gap = _unlocked_in(h, entry.pte.pfn, entry.at, end)
            if gap is not None:
                yield f"({mm}, {addr}) has a migration entry of page {entry.pte.pfn}, which is not locked", (entry.at, gap)


def _unlocked_in(h: History, pfn: int, start: int, end: int | None) -> int | None:
    """The first place of a stretch at which the page is not locked, or has no reference."""
    at = start
    while end is None or at < end:
        hold, life = h.page_lock(pfn, at), h.life(pfn, at)
        if hold is None or life is None or (life.gone is not None and life.gone <= at):
            return at
        ends = [stop for stop in (hold.end, life.end, life.gone) if stop is not None]
        if not ends:
            return None
        at = min(ends)
    return None


def follows_the_page(h: History) -> Iterator[Broken]:
    """What replaces a migration entry maps the page that it named, or the page that this one was moved to.

    Moved since the entry was made: by a migration, or by a fault that hands its page over. Fork, mremap and mprotect only copy
    one that was there.
    """
    for (mm, addr), entries in h.entries.items():
        since = 0
        for old, new in itertools.pairwise(entries):
            if h.in_call(old.task, old.at) or h.in_fault(old.task, old.at):
                since = old.at
            if old.pte.kind is not PteKind.MIGRATION or old.pte.pfn is None or new.pte.pfn is None:
                continue
            moved = _moved_to(h, old.pte.pfn, since, new.at)
            right = moved if moved is not None and new.pte.kind is not PteKind.MIGRATION else old.pte.pfn
            if new.pte.pfn != right:
                yield f"({mm}, {addr}): page {new.pte.pfn} in the place of page {old.pte.pfn}", (old.at, new.at)


def _moved_to(h: History, pfn: int, since: int, before: int) -> int | None:
    """Where the content of a page went last in its life, between these steps."""
    life = h.life(pfn, before)
    for at in reversed(h.places(ev.FolioMoved)) if life is not None else ():
        event = h.steps[at].event
        then = life is not None and max(since, life.start) <= at < before
        if isinstance(event, ev.FolioMoved) and event.moved and then and h.life(event.pfn, at) is life:
            return event.dst + pfn - event.pfn
    return None


def moved_when_unmapped(h: History) -> Iterator[Broken]:
    """When a page is moved, no entry of any address space maps it."""
    for at in h.places(ev.FolioMoved):
        event = h.steps[at].event
        life = h.life(event.pfn, at) if isinstance(event, ev.FolioMoved) and event.moved else None
        for (mm, addr), _ in h.entries.items() if life is not None else ():
            pte = h.entry(mm, addr, at)
            if life is not None and pte.kind in HOLDING and pte.pfn in life.frames:
                yield f"page {pte.pfn} moves, and ({mm}, {addr}) maps it", (at,)


def one_writer(h: History) -> Iterator[Broken]:
    """A page of anonymous memory that is mapped in several places may be written through none of them."""
    cached = {(e.pfn, at) for at in h.places(ev.PageCacheAdded) if isinstance(e := h.steps[at].event, ev.PageCacheAdded)}
    places: dict[int, list[tuple[int, int]]] = {}
    for place, entries in h.entries.items():
        for pfn in {entry.pte.pfn for entry in entries if entry.pte.pfn is not None and entry.pte.kind in HOLDING}:
            places.setdefault(pfn, []).append(place)
    for pfn, where in places.items():
        if len(where) > 1:
            yield from _writers(h, pfn, where, cached)


def _writers(h: History, pfn: int, where: list[tuple[int, int]], cached: set[tuple[int, int]]) -> Iterator[Broken]:
    for at in sorted({entry.at for place in where for entry in h.entries[place] if entry.pte.pfn == pfn}):
        life = h.life(pfn, at)
        if life is None or any(other == life.pfn and life.start <= since <= at for other, since in cached):
            continue
        names = [place for place in where if h.entry(*place, at).pfn == pfn and h.entry(*place, at).kind in HOLDING]
        if len(names) > 1 and any(h.entry(*place, at).write for place in names):
            yield f"page {pfn} is mapped at {names}, and may be written", (at,)
            return


def _stretches(h: History) -> Iterator[tuple[tuple[int, int], Entry, int | None]]:
    """Each entry, with the place at which it gave way to another."""
    for place, entries in h.entries.items():
        for entry, after in zip(entries, [*entries[1:], None], strict=True):
            yield place, entry, after.at if after is not None else None
