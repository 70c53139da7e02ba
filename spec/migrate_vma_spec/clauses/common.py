"""What several chapters ask of a world and of the entries of a call. No clause is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.extras import piece
from migrate_vma_spec.objects import PAGE_KINDS, Call, TaskState, World
from migrate_vma_spec.registry import Judgement
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Memory,
    Pte,
    PteKind,
    migrate_pfn_to_pfn,
)

FLAGS = {
    MIGRATE_PFN_VALID: "VALID",
    MIGRATE_PFN_MIGRATE: "MIGRATE",
    MIGRATE_PFN_WRITE: "WRITE",
    MIGRATE_PFN_COMPOUND: "COMPOUND",
}


def is_migrating(entry: int) -> bool:
    return bool(entry & MIGRATE_PFN_MIGRATE)


def is_hole(entry: int) -> bool:
    """Nothing is mapped there (or the zero page), and it migrates: MIGRATE without VALID."""
    return entry & (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE) == MIGRATE_PFN_MIGRATE


def pfn_of(entry: int) -> int | None:
    return migrate_pfn_to_pfn(entry)


def pfns_of(entries: tuple[int, ...] | None) -> list[int]:
    """The frames that an array names, in its order."""
    return [entry >> MIGRATE_PFN_SHIFT for entry in entries or () if entry & MIGRATE_PFN_VALID]


def show(entry: int) -> str:
    """An entry as a reader wants it: `pfn 3|VALID|MIGRATE`, or 0."""
    words = [name for flag, name in FLAGS.items() if entry & flag]
    if entry >> MIGRATE_PFN_SHIFT:
        words.insert(0, f"pfn {entry >> MIGRATE_PFN_SHIFT}")
    return "|".join(words) or "0"


def entry_at(entries: tuple[int, ...] | None, index: int) -> int:
    """The entry at `index`; an array that is shorter, or absent, has 0 there."""
    return entries[index] if entries is not None and index < len(entries) else 0


def pairs(src: tuple[int, ...] | None, dst: tuple[int, ...] | None) -> Iterator[tuple[int, int, int]]:
    """(index, src entry, dst entry) over the longer of both arrays; nothing where src is unknown."""
    if src is None:
        return
    for index in range(max(len(src), len(dst or ()))):
        yield index, entry_at(src, index), entry_at(dst, index)


def is_compound(entry: int) -> bool:
    """The entry stands for a whole folio of the size that the middle level maps, or for as many empty pages."""
    return bool(entry & MIGRATE_PFN_COMPOUND)


def span(world: World, entry: int) -> int:
    """How many pages an entry of src or dst stands for."""
    if not is_compound(entry):
        return 1
    pfn = pfn_of(entry)
    order = world.extras.orders.get(pfn, 0) if pfn is not None else 0
    return 1 << order if order else max(world.extras.leaf_pages, 1)


def _part(entry: int, offset: int) -> int:
    return entry + (offset << MIGRATE_PFN_SHIFT) if entry & MIGRATE_PFN_VALID else entry


def page_pairs(world: World, src: tuple[int, ...] | None, dst: tuple[int, ...] | None) -> Iterator[tuple[int, int, int]]:
    """As `pairs`, but page by page: an entry of several pages as one for each, with that page's own frame."""
    until, entry, first = 0, 0, 0
    filler, start = 0, 0
    for index, now, given in pairs(src, dst):
        if index >= until:
            until, entry, first = index + max(span(world, now), span(world, given)), now, index
            filler, start = (given, index) if is_compound(given) else (0, index)
        own = _part(entry, index - first) if is_compound(entry) else now
        yield index, own, _part(filler, index - start) if is_compound(filler) else given


def successors(world: World, call: Call) -> dict[int, int]:
    """Which frame takes the place of which, in the arrays of a call: of the entries that migrate and have a destination."""
    found: dict[int, int] = {}
    for _, entry, dst in page_pairs(world, call.src, call.dst):
        old, new = pfn_of(entry), pfn_of(dst)
        if old is not None and new is not None and is_migrating(entry):
            found[old] = new
    return found


def was_refilled(call: Call, pfn: int | None) -> bool:
    """The driver wrote this frame into src after setup, or may have: src is unknown."""
    if call.src is None:
        return bool(call.refilled)
    return any(pfn_of(entry_at(call.src, index)) == pfn for index in call.refilled)


Changed = ev.PteChanged | ev.PmdChanged
"""A change of one entry, of either level."""

NOTHING_KINDS = frozenset({PteKind.NONE, PteKind.ZERO})
"""Entries of addresses that hold no page of their own."""

TABLE_EVENTS: tuple[type[ev.Event], ...] = (ev.PteChanged, ev.PmdChanged, ev.PmdSplit)
"""The events that change entries; `changes_of` has what each of them does."""


def changes_of(event: ev.Event) -> tuple[Changed, ...]:
    """Entry by entry, what an event of TABLE_EVENTS does. The split of a leaf is a change of each page's entry."""
    if isinstance(event, ev.PmdSplit):
        return tuple(
            ev.PteChanged(event.mm, event.addr + at, piece(event.old, at), new)
            for at, new in enumerate(event.ptes)
            if piece(event.old, at) != new
        )
    return (event,) if isinstance(event, ev.PteChanged | ev.PmdChanged) else ()


def pages_of(change: Changed) -> int:
    return change.pages if isinstance(change, ev.PmdChanged) else 1


def addresses_of(change: Changed) -> range:
    return range(change.addr, change.addr + pages_of(change))


def at(change: Changed) -> str:
    """Where, in words."""
    return f"mm {change.mm} addr {change.addr}"


def is_mapping(pte: Pte) -> bool:
    return pte.kind in PAGE_KINDS


def is_migration(pte: Pte) -> bool:
    return pte.kind is PteKind.MIGRATION


def replaced(task: TaskState, event: Changed) -> Pte | None:
    """The mapping that a new migration entry stands for: what it overwrote, or what the task had just cleared there."""
    if not is_migration(event.new):
        return None
    old = event.old if is_mapping(event.old) else task.cleared.get((event.mm, event.addr))
    return old if old is not None and old.pfn == event.new.pfn else None


def in_all(judgements: Iterable[Judgement]) -> Judgement:
    """What is to be said of several things at once: the first that is wrong, else KEPT where the clause applied to any."""
    together: Judgement = None
    for judgement in judgements:
        if isinstance(judgement, str):
            return judgement
        together = judgement or together
    return together


def call_before(world: World, step: Step, number: int) -> Call | None:
    """The task's call of this number as it was before the step."""
    return world.task(step.task).calls.get(number)


def is_zone_device(memory: Memory | None) -> bool:
    return memory in (Memory.DEVICE_PRIVATE, Memory.DEVICE_COHERENT)


def names(entries: list[tuple[int, int]]) -> str:
    """Page-table entries as `mm 0 addr 2, mm 1 addr 2`."""
    return ", ".join(f"mm {mm} addr {addr}" for mm, addr in entries)
