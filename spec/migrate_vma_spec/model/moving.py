"""What migrate_vma_pages and migrate_device_pages may leave in src.

An entry keeps MIGRATE if its page moved, or its hole was filled. A COMPOUND source whose destination is not one is split
first: its pages then have an entry each. What cannot be moved, by its counts or by its kind, loses MIGRATE.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.state import Attempt, ModelState, Scope, Seen
from migrate_vma_spec.objects import Call, World
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    Capability,
    Memory,
    PteKind,
    VmFlags,
    migrate_pfn,
    migrate_pfn_to_pfn,
)

SPLIT_FAILED = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
FLAGS = (1 << MIGRATE_PFN_SHIFT) - 1
ZONE_DEVICE = (Memory.DEVICE_PRIVATE, Memory.DEVICE_COHERENT)


def pages_attempt(state: ModelState, world: World, step: Step, event: ev.PagesCalled) -> Attempt:
    call = world.task(step.task).calls.get(event.call)
    if event.src is None or (call is not None and call.mm is not None and call.mm not in state.followed):
        return Attempt()
    call = call or Call(vma=event.vma, in_fault=False)
    src, dst = split_entries(world, call, event.src, event.dst)
    choices = tuple(_offered(world, call, event.src[index], src[index], dst[index], index) for index in range(len(src)))
    return Attempt(call.mm if event.vma else None, call.start, len(choices), choices)


def split_entries(
    world: World, call: Call, src: tuple[int, ...], dst: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both arrays as pages() works on them: a COMPOUND source with another destination has an entry for each page."""
    out, to = list(src), [*(dst or ()), *(0 for _ in src)][: len(src)]
    for index, entry in enumerate(src):
        if not entry & MIGRATE_PFN_COMPOUND or not entry & MIGRATE_PFN_MIGRATE or not call.vma:
            continue
        if to[index] & MIGRATE_PFN_COMPOUND or not to[index] & MIGRATE_PFN_VALID:
            continue
        pfn = migrate_pfn_to_pfn(entry)
        pages = len(world.folio_pages(pfn)) if pfn is not None else world.extras.leaf_pages
        for place in range(index, min(index + pages, len(out))):
            page = 0 if pfn is None else migrate_pfn(pfn + place - index)
            out[place] = page | (entry & FLAGS & ~MIGRATE_PFN_COMPOUND)
    return tuple(out), tuple(to)


def failed(entry: int, dst: int, *, vma: bool) -> int:
    """The entry of what was not moved. Without a VMA a folio that was to be split loses COMPOUND as well."""
    keeps = dst & MIGRATE_PFN_COMPOUND or not dst & MIGRATE_PFN_VALID or not entry & MIGRATE_PFN_VALID
    split = not vma and entry & MIGRATE_PFN_COMPOUND and not keeps
    return entry & ~MIGRATE_PFN_MIGRATE & ~(MIGRATE_PFN_COMPOUND if split else 0)


def _offered(world: World, call: Call, given: int, entry: int, dst: int, index: int) -> frozenset[int]:
    """What pages() makes of one entry that it is given, with nothing else running; `entry` is what a split makes of it."""
    left = failed(entry, dst, vma=call.vma)
    pfn = migrate_pfn_to_pfn(entry)
    moves = is_movable(world, call, pfn, migrate_pfn_to_pfn(dst)) if pfn is not None else None
    if given != entry and pfn is not None and moves is False:
        return frozenset({given & ~SPLIT_FAILED})  # who cannot be moved cannot be split
    if not dst & MIGRATE_PFN_VALID or not entry & MIGRATE_PFN_MIGRATE or is_mismatched(entry, dst, vma=call.vma):
        return frozenset({left})
    if pfn is not None:
        return frozenset({entry, left} if moves is None else {entry} if moves else {left})
    if call.mm is None:
        return frozenset({entry, left})
    return frozenset({entry if is_fillable(world, call.mm, call.start + index) else left})


def is_mismatched(entry: int, dst: int, *, vma: bool) -> bool:
    """A page is not moved into a larger folio, nor, where no VMA tells how to split it, a large folio into a page."""
    larger = bool(dst & MIGRATE_PFN_COMPOUND) and not entry & MIGRATE_PFN_COMPOUND
    smaller = bool(entry & MIGRATE_PFN_COMPOUND) and not dst & MIGRATE_PFN_COMPOUND
    return bool(entry & MIGRATE_PFN_VALID) and (larger or (smaller and not vma))


def is_movable(world: World, call: Call, pfn: int, dst: int | None) -> bool | None:
    """Nobody maps the page or holds a reference that the migration does not know of, and it is of a kind that can go there.

    Only anonymous pages go to a device; one in the swap cache does if its slot is wanted by no entry any more, and is then
    taken out. None: the trace does not tell.
    """
    folio = world.folio(pfn)
    if folio.refcount is None or folio.mapcount is None:
        return None
    head = world.head(pfn)
    caches = world.cache_refs(pfn)
    if caches and dst is not None and world.frame(dst).memory in ZONE_DEVICE:
        slot = world.extras.swapped.get(head)
        if slot is None or world.extras.swaps.get(slot, 0):
            return False
    is_fault_page = (
        call.fault_page is not None and world.head(call.fault_page) == head and Capability.FAULT_PAGE in world.capabilities
    )
    return folio.mapcount == 0 and folio.refcount == 1 + is_fault_page + caches


def is_fillable(world: World, mm: int, addr: int) -> bool:
    vma = world.vma(mm, addr)
    if vma is None or not vma.anonymous or vma.flags & VmFlags.UFFD_MISSING:
        return False
    return world.pte(mm, addr).kind in (PteKind.NONE, PteKind.ZERO)


def left_behind(world: World, call: Call, scope: Scope, attempt: Attempt, index: int) -> frozenset[int]:
    """What pages() may leave of an entry in a race, or after a failed allocation. A split may have failed as well."""
    given = call.offered or ()
    src, dst = split_entries(world, call, given, call.dst)
    entry, to = src[index], dst[index]
    unsplit = frozenset({given[index] & ~SPLIT_FAILED} if entry != given[index] and entry & MIGRATE_PFN_VALID else ())
    left = failed(entry, to, vma=call.vma)
    pfn = migrate_pfn_to_pfn(entry)
    if not to & MIGRATE_PFN_VALID or not entry & MIGRATE_PFN_MIGRATE or pfn in attempt.skipped:
        return unsplit | {left}
    if is_mismatched(entry, to, vma=call.vma):
        return frozenset({left})
    if pfn is not None:
        target = migrate_pfn_to_pfn(to)
        barred = target is not None and world.frame(target).memory in ZONE_DEVICE and world.cache_refs(pfn) > 0
        return unsplit | {left if barred else entry}  # what a cache still has goes to no device
    met = attempt.met[index] if attempt.met is not None else frozenset({entry, left})
    return met | {left} if Seen.FAILED in scope.seen else met
