"""Large folios

Folios of several pages: when an entry of src or dst may stand for a whole one, and what a split owes to each of its parts. An
entry with COMPOUND stands for as many pages as an entry of the middle level maps.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    call_before,
    entry_at,
    in_all,
    is_compound,
    is_migrating,
    is_zone_device,
    pairs,
    pfn_of,
    show,
    span,
)
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import Call, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import MIGRATE_PFN_VALID, MIGRATE_PFN_WRITE, Capability, Select


@step_clause(
    "C24",
    name="COMPOUND only on request",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_huge_pmd (a30b48bf1b24; 7.3.4)",
    symptom="a driver that knows single pages only copies the first of many",
    on=(ev.SetupReturned,),
    requires={Capability.COMPOUND},
)
def compound_on_request(before: World, step: ev.Step, after: World) -> Judgement:
    """Setup MUST return COMPOUND only if SELECT_COMPOUND was given and the whole aligned range of a middle-level entry lies in
    the call's; any other large folio MUST be split or skipped.
    """
    event = cast("ev.SetupReturned", step.event)
    call = call_before(before, step, event.call)
    if call is None or event.result != 0 or event.src is None:
        return None
    src = event.src
    return in_all(_asked_for(after, call, index, entry) for index, entry in enumerate(src) if entry)


def _asked_for(world: World, call: Call, index: int, entry: int) -> Judgement:
    pfn, pages = pfn_of(entry), span(world, entry)
    if not is_compound(entry):
        whole = pfn is not None and len(world.folio_pages(pfn)) > 1
        return f"src[{index}] is {show(entry)}, and its folio is large" if whole else None
    if not call.select & Select.COMPOUND:
        return f"src[{index}] is {show(entry)}, and the call selects {call.select!r}"
    addr = call.start + index
    if addr % pages or addr + pages > call.end:
        return f"src[{index}] is {show(entry)} for [{addr}, {addr + pages}), and the call is for [{call.start}, {call.end})"
    return KEPT


@step_clause(
    "C25",
    name="nothing behind a COMPOUND entry",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_huge_pmd, migrate_device_range (a30b48bf1b24; 7.3.4)",
    symptom="a page migrates twice in one call",
    on=(ev.SetupReturned, ev.RangeReturned),
    requires={Capability.COMPOUND},
)
def nothing_behind_compound(before: World, step: ev.Step, after: World) -> Judgement:
    """In src, a COMPOUND entry MUST be followed by entries that are 0, one for each further page that it stands for."""
    event = cast("ev.SetupReturned | ev.RangeReturned", step.event)
    if event.result != 0 or event.src is None:
        return None
    judgement: Judgement = None
    for index, entry in enumerate(event.src):
        if not is_compound(entry):
            continue
        for behind in range(index + 1, min(index + span(after, entry), len(event.src))):
            if event.src[behind]:
                return f"src[{index}] is {show(entry)}, and src[{behind}] is {show(event.src[behind])}"
        judgement = KEPT
    return judgement


@step_clause(
    "C26",
    name="a destination as large as its source, or small ones",
    party=Party.DRIVER,
    source="mm/migrate_device.c:__migrate_device_pages (a30b48bf1b24; 7.3.4)",
    symptom="the entry is dropped, or memory beyond the page is overwritten",
    on=(ev.PagesCalled,),
    requires={Capability.COMPOUND},
)
def destination_fits(before: World, step: ev.Step, after: World) -> Judgement:
    """For a COMPOUND entry the driver MAY give a COMPOUND destination of the same size, small pages for its pages, or nothing. It
    MUST NOT give a COMPOUND destination for an entry that is not COMPOUND.
    """
    event = cast("ev.PagesCalled", step.event)
    judgement: Judgement = None
    until, pages = 0, 1
    for index, entry, dst in pairs(event.src, event.dst):
        if index >= until:
            pages = span(before, entry)
            until = index + pages
        pfn = pfn_of(dst)
        if pfn is None:
            continue
        size = len(before.folio_pages(pfn))
        if is_compound(dst) and is_migrating(entry) and not is_compound(entry):
            return f"dst[{index}] is {show(dst)}, and src[{index}] is {show(entry)}"
        known = not is_compound(entry) or pages > 1
        if known and before.folio(pfn).allocated and size != (pages if is_compound(dst) else 1):
            return f"dst[{index}] is {show(dst)}, a folio of {size} pages, and src[{index}] is {show(entry)}"
        judgement = KEPT if is_compound(entry) or pages > 1 else judgement
    return judgement


_FLAGS = MIGRATE_PFN_VALID | MIGRATE_PFN_WRITE


@step_clause(
    "C27",
    name="a split keeps the order of pages",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_split_unmapped_folio (7.3.4)",
    symptom="pages of one range change places",
    on=(ev.PagesReturned,),
    requires={Capability.COMPOUND},
)
def split_keeps_order(before: World, step: ev.Step, after: World) -> Judgement:
    """Where pages() split a COMPOUND source, src[i + k] MUST name the k-th of its pages, with the flags of the whole; where it
    could not, the entry MUST lose MIGRATE.
    """
    event = cast("ev.PagesReturned", step.event)
    call = call_before(before, step, event.call)
    if call is None or event.src is None or call.offered is None:
        return None
    judgement: Judgement = None
    for index, entry in enumerate(call.offered):
        pfn, given = pfn_of(entry), entry_at(call.dst, index)
        if pfn is None or not is_compound(entry) or not is_migrating(entry) or is_compound(given) or pfn_of(given) is None:
            continue
        wrong = _not_in_order(before, call, event.src, index, entry)
        if wrong is not None:
            return wrong
        judgement = KEPT
    return judgement


def _not_in_order(world: World, call: Call, src: tuple[int, ...], index: int, entry: int) -> str | None:
    pfn, left = pfn_of(entry), entry_at(src, index)
    pages = world.extras.leaf_pages or sum(page in world.frames for page in world.folio_pages(pfn or 0))
    if len(world.folio_pages(pfn or 0)) > 1:
        return f"src[{index}] is {show(left)}, and its folio was not split" if is_migrating(left) else None
    for offset in range(min(pages, len(src) - index)):
        now = src[index + offset]
        if pfn_of(now) != (pfn or 0) + offset or now & _FLAGS != entry & _FLAGS or is_compound(now):
            return f"src[{index}] was {show(entry)} before its split, and src[{index + offset}] is {show(now)}"
    return None


Untold = FrozenMap[int, frozenset[int]]
NOTHING_UNTOLD: Untold = FrozenMap()


@monitor(
    "C52",
    name="parts of a folio are freed as what they are",
    party=Party.BOTH,
    source="include/linux/memremap.h: folio_split; mm/huge_memory.c (7.3.4); drivers/gpu/drm/nouveau/nouveau_dmem.c",
    symptom="the driver's counters underflow, or memory of a folio is lost",
    on=(ev.FolioSplit, ev.SplitCallback, ev.FolioFreed, ev.FreeCallback),
    start=NOTHING_UNTOLD,
    requires={Capability.COMPOUND},
)
def parts_are_freed(memory: Untold, world: World, step: ev.Step) -> tuple[Untold, Judgement]:
    """When a device folio is split the driver MUST be told of each new one, by folio_split, before that is freed; a device folio
    MUST be freed as a whole, with the order that it has.
    """
    event = step.event
    if isinstance(event, ev.FolioSplit):
        tails = frozenset(range(event.pfn, event.pfn + (1 << event.order), 1 << event.new_order)) - {event.pfn}
        return (memory.set(event.pfn, tails) if is_zone_device(world.frame(event.pfn).memory) else memory), None
    if isinstance(event, ev.SplitCallback):
        return _told(memory, event)
    pfn = cast("ev.FolioFreed | ev.FreeCallback", event).pfn
    for head, tails in sorted(memory.items()):
        if pfn in tails:
            return memory, f"pfn {pfn}, split off from pfn {head}, was freed before the driver was told of it"
    order = world.extras.orders.get(pfn, 0)
    if not isinstance(event, ev.FolioFreed) or not is_zone_device(world.frame(pfn).memory):
        return memory.drop(pfn), None
    if world.head(pfn) != pfn:
        return memory, f"pfn {pfn} was freed, which is a part of the folio of pfn {world.head(pfn)}"
    if event.order != order:
        return memory, f"pfn {pfn} was freed as {1 << event.order} pages, and its folio has {1 << order}"
    return memory.drop(pfn), KEPT if order else None


def _told(memory: Untold, event: ev.SplitCallback) -> tuple[Untold, Judgement]:
    left = memory.get(event.pfn)
    if left is None:
        return memory, None
    if event.tail is not None:
        return memory.set(event.pfn, left - {event.tail}), None
    if left:
        return memory.drop(event.pfn), f"the split of pfn {event.pfn} ended, and the driver was not told of {sorted(left)}"
    return memory.drop(event.pfn), KEPT


@step_clause(
    "C53",
    name="clean on reuse",
    party=Party.CORE,
    source="mm/memremap.c:zone_device_page_init (12b2285bf3d1; 7.3.4)",
    symptom="a corrupt folio, or a page lock that nobody holds",
    on=(ev.FolioAllocated,),
    requires={Capability.COMPOUND},
)
def clean_on_reuse(before: World, step: ev.Step, after: World) -> Judgement:
    """A device page MUST be initialised anew before it is used again: nothing of the folio that it was part of is left, and no
    page of the new one belongs to another.
    """
    event = cast("ev.FolioAllocated", step.event)
    if not is_zone_device(before.frame(event.pfn).memory):
        return None
    pages, owner = range(event.pfn, event.pfn + (1 << event.order)), before.frame(event.pfn).owner
    for page in pages:
        frame, head = before.frame(page), before.head(page)
        if head != page and head not in pages:
            return f"pfn {event.pfn} was taken for {len(pages)} pages, and pfn {page} is a part of the folio of pfn {head}"
        if frame.allocated and page != event.pfn:
            return f"pfn {event.pfn} was taken for {len(pages)} pages, and pfn {page} is in use"
        if None not in (frame.owner, owner) and frame.owner != owner:
            return f"pfn {event.pfn} was taken for {len(pages)} pages, and pfn {page} is not the same device's"
        if page != event.pfn and frame.locked:
            return f"pfn {event.pfn} was taken for {len(pages)} pages, and pfn {page} is locked"
    return KEPT
