"""Counts, and what they promise

Which reference counts let a page move, and what a driver may conclude from what setup and pages() say.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    call_before,
    entry_at,
    is_migrating,
    is_zone_device,
    page_pairs,
    pairs,
    pfn_of,
    pfns_of,
    show,
    was_refilled,
)
from migrate_vma_spec.objects import HELD_NOTHING, Phase, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import MIGRATE_PFN_VALID


@step_clause(
    "C46",
    name="exact count",
    party=Party.CORE,
    source="mm/migrate.c:folio_migrate_mapping (6.1.192, 7.3.4)",
    symptom="a pinned page is moved away from its pinner",
    on=(ev.FolioMoved,),
)
def exact_count(before: World, step: ev.Step, after: World) -> Judgement:
    """pages() MUST migrate a folio only if its refcount is the expected one: the library's reference, those of the page cache and
    the swap cache, and for the fault page the fault's.
    """
    event = cast("ev.FolioMoved", step.event)
    task = before.task(step.task)
    call, fault = task.in_phase(Phase.MOVING), task.callback
    if call is None:
        return None
    expected = 1 + (before.frame(event.pfn).mapcount or 0) + before.cache_refs(event.pfn)
    ours = fault is not None and fault.page is not None and before.head(fault.page) == event.pfn
    if fault is not None and fault.live and ours and not was_refilled(call, event.pfn):
        expected += 1 if fault.refs - call.ledger.get(event.pfn, HELD_NOTHING).refs >= 1 else 0
    if event.moved and event.refcount != expected:
        return f"pfn {event.pfn} was moved with {event.refcount} references; {expected} are expected"
    return KEPT


Freed = frozenset[tuple[str, int]]


@monitor(
    "C75",
    name="swap cache",
    party=Party.CORE,
    source="mm/migrate_device.c:__migrate_device_pages, folio_free_swap (6.12.107, 7.3.4)",
    symptom="a page that is in the swap cache never migrates, or its swap slot names a page that no CPU can read",
    on=(ev.SwapCacheRemoved, ev.FolioMoved, ev.PagesReturned),
    start=frozenset[tuple[str, int]](),
)
def swap_cache_is_left_first(memory: Freed, world: World, step: ev.Step) -> tuple[Freed, Judgement]:
    """pages() MUST move a folio of the swap cache to device memory only after it freed the swap slot, which it MUST NOT free
    while an entry holds it; the folio's count MUST then be expected without the swap cache's reference.
    """
    event = step.event
    if isinstance(event, ev.PagesReturned):
        return frozenset(pair for pair in memory if pair[0] != step.task), None
    if world.task(step.task).in_phase(Phase.MOVING) is None:
        return memory, None
    if isinstance(event, ev.SwapCacheRemoved):
        holders = world.extras.swaps.get(event.swap, 0)
        wrong = f"pages() freed swap slot {event.swap} of pfn {event.pfn}, which {holders} entries hold" if holders else None
        return memory | {(step.task, event.pfn)}, wrong
    event = cast("ev.FolioMoved", event)
    judgement = _left_swap((step.task, event.pfn) in memory, world, event)
    return memory - {(step.task, event.pfn)}, judgement


def _left_swap(freed: bool, world: World, event: ev.FolioMoved) -> Judgement:
    if event.moved and event.pfn in world.extras.swapped and is_zone_device(world.frame(event.dst).memory):
        return f"pfn {event.pfn} was moved to device memory with swap slot {world.extras.swapped[event.pfn]}"
    if not freed:
        return None
    # Whose references are in the way otherwise, C46 says.
    alone = event.refcount == 1 + world.cache_refs(event.pfn) and event.refcount < event.expected
    if not event.moved and alone:
        return f"pfn {event.pfn} left the swap cache and has {event.refcount} references, and {event.expected} were expected"
    return KEPT


Suspects = frozenset[tuple[str, int]]


@monitor(
    "C47",
    name="pinned pages stay",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_check_page, migrate_device_unmap (6.1.192, 7.3.4)",
    symptom="DMA to the wrong page",
    on=(ev.FolioChecked, ev.SetupReturned, ev.RangeReturned),
    start=frozenset[tuple[str, int]](),
)
def pinned_pages_are_restored(memory: Suspects, world: World, step: ev.Step) -> tuple[Suspects, Judgement]:
    """A page with unexpected references after unmap MUST be restored; on device memory one such reference MAY be tolerated."""
    event = step.event
    call = world.task(step.task).in_phase(Phase.COLLECTING)
    if isinstance(event, ev.FolioChecked):
        if call is None:
            return memory, None
        ours = call.fault_page is not None and world.head(call.fault_page) == event.pfn
        expected = 1 + ours + is_zone_device(world.frame(event.pfn).memory) + event.mapcount + world.cache_refs(event.pfn)
        return (memory | {(step.task, event.pfn)} if event.refcount > expected else memory), None
    src = cast("ev.SetupReturned | ev.RangeReturned", event).src
    mine = sorted(pfn for name, pfn in memory if name == step.task)
    kept = sorted(set(mine) & set(pfns_of(src)))
    memory = frozenset(pair for pair in memory if pair[0] != step.task)
    if kept:
        return memory, f"pfn {kept[0]} had unexpected references after unmap, and was taken"
    return memory, KEPT if mine and src is not None else None


@step_clause(
    "C48",
    name="setup promises nothing",
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_vma_check_page (6.1.192, 7.3.4)",
    symptom="a page that did not move is taken for one that did",
    on=(ev.FinalizeCalled,),
)
def src_is_read_again(before: World, step: ev.Step, after: World) -> Judgement:
    """Setup's check MAY tolerate an unexpected reference, so MIGRATE after setup promises no success: the driver MUST read
    src again after pages(), and MUST NOT give finalize() MIGRATE for an entry where pages() cleared it.
    """
    event = cast("ev.FinalizeCalled", step.event)
    call = call_before(before, step, event.call)
    if call is None or call.phase is not Phase.MOVED or None in (call.offered, call.src, event.src):
        return None
    judgement: Judgement = None
    for index, offered, left in pairs(call.offered, call.src):
        if not offered & MIGRATE_PFN_VALID or not is_migrating(offered) or is_migrating(left):
            continue
        now = entry_at(event.src, index)
        if is_migrating(now):
            return f"pages left src[{index}] as {show(left)}, and finalize was given {show(now)}"
        judgement = KEPT
    return judgement


@step_clause(
    "C49",
    name="only what migrated counts as migrated",
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_vma_pages kernel-doc (6.1.192, 7.3.4)",
    symptom="the device maps a page that finalize frees",
    on=(ev.DeviceMapped,),
)
def only_migrated_entries_are_mapped(before: World, step: ev.Step, after: World) -> Judgement:
    """After pages() the driver MUST treat only entries with MIGRATE in src and a VALID dst as migrated: it MUST NOT map
    another on the device.
    """
    event = cast("ev.DeviceMapped", step.event)
    if event.pfn is None:
        return None
    for call in before.task(step.task).calls.values():
        if call.phase is not Phase.MOVED:
            continue
        for index, entry, dst in page_pairs(before, call.src, call.dst):
            if pfn_of(dst) == event.pfn:
                migrated = is_migrating(entry)
                return KEPT if migrated else f"{event.device} maps dst[{index}], pfn {event.pfn}: src[{index}] is {show(entry)}"
    frame = before.folio(event.pfn)
    if is_zone_device(frame.memory) and frame.allocated is False:
        return f"{event.device} maps pfn {event.pfn}, which is free"
    return None
