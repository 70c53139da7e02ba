"""Contents, LRU and charge

What is in the pages, and what else the kernel keeps of them: that a CPU or a device reads, after a migration, what was last
written; that dirtiness, the place on the LRU and the memory cgroup's charge go with the content.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    NOTHING_KINDS,
    Changed,
    at,
    call_before,
    is_mapping,
    is_migrating,
    is_zone_device,
    page_pairs,
    pairs,
    pfn_of,
    pfns_of,
)
from migrate_vma_spec.clauses.tokens import (
    Contents,
    access,
    entry_changed,
    flushed,
    forget_addresses,
    lock_dropped,
    move_addresses,
    page_event,
    renamed,
)
from migrate_vma_spec.objects import Phase, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import Lru, Memory

Pages = frozenset[int]


@monitor(
    "C62",
    name="dirtiness of device data",
    party=Party.DRIVER,
    source="drivers' dirtying of migrated pages (mails of 2025-03, 2026-07)",
    symptom="dirty data is lost after swap-out",
    on=(ev.DeviceAccessed, ev.FolioAllocated, ev.FolioFreed, ev.FinalizeCalled),
    start=frozenset[int](),
)
def device_writes_make_dirty(memory: Pages, world: World, step: ev.Step) -> tuple[Pages, Judgement]:
    """The driver MUST mark the destination dirty, before finalize(), if the device wrote to the page that migrates back to system
    memory.
    """
    event = step.event
    if isinstance(event, ev.DeviceAccessed):
        private = event.pfn is not None and is_zone_device(world.frame(event.pfn).memory)
        return (memory | {event.pfn} if event.write and private and event.pfn is not None else memory), None
    if isinstance(event, ev.FolioAllocated | ev.FolioFreed):
        return memory - set(range(event.pfn, event.pfn + (1 << event.order))), None
    event = cast("ev.FinalizeCalled", event)
    judgement: Judgement = None
    for index, entry, dst in page_pairs(world, event.src, event.dst):
        old, new = pfn_of(entry), pfn_of(dst)
        if old not in memory or new is None or not is_migrating(entry) or world.frame(new).memory is not Memory.SYSTEM:
            continue
        if world.folio(new).dirty is False:
            return memory, f"the device wrote pfn {old}, and dst[{index}], pfn {new}, is not dirty"
        judgement = KEPT
    return memory, judgement


@monitor(
    "C71",
    name="page content",
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_device_finalize kernel-doc (6.1.192, 7.3.4); 835745a377a4",
    symptom="corruption, or a leak of old memory",
    on=(
        ev.CpuAccessed,
        ev.DeviceAccessed,
        ev.PageCopied,
        ev.PageCleared,
        ev.FolioAllocated,
        ev.FolioFreed,
        ev.PageFilled,
        ev.PageWritten,
        ev.SwapCounted,
        ev.PteChanged,
        ev.PmdChanged,
        ev.LockDropped,
        ev.TlbFlushed,
        ev.VmaMoved,
        ev.VmaUnmapped,
        ev.MmExited,
    ),
    start=Contents(),
)
def content_survives(memory: Contents, world: World, step: ev.Step) -> tuple[Contents, Judgement]:
    """What a CPU or a device reads at an address MUST be what was last written there: the copy MUST be complete and visible
    before finalize, and made after the device's own mappings were invalidated.
    """
    event = step.event
    judgement: Judgement = None
    if isinstance(event, ev.CpuAccessed | ev.DeviceAccessed):
        memory, judgement = access(memory, world, event)
    elif isinstance(event, ev.PteChanged | ev.PmdChanged):
        memory = entry_changed(memory, world, step, event)
    elif isinstance(event, ev.TlbFlushed):
        return flushed(memory, event), None
    elif isinstance(event, ev.LockDropped):
        return (lock_dropped(memory, event) if memory.cleared else memory), None
    elif isinstance(event, ev.VmaMoved):
        memory = move_addresses(memory, event)
    elif isinstance(event, ev.VmaUnmapped):
        memory = forget_addresses(memory, event.mm, event.start, event.end)
    elif isinstance(event, ev.MmExited):
        memory = forget_addresses(memory, event.mm, 0, float("inf"))
    else:
        memory = page_event(memory, event)
    return renamed(memory), judgement


@monitor(
    "C72",
    name="contents before visibility",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_insert_page (6.1.192, 7.3.4)",
    symptom="a CPU reads a page that is not complete yet",
    on=(ev.FolioUptodate, ev.PteChanged, ev.PmdChanged, ev.FolioAllocated, ev.FolioFreed),
    start=frozenset[int](),
)
def uptodate_before_insert(memory: Pages, world: World, step: ev.Step) -> tuple[Pages, Judgement]:
    """When pages() fills a hole, it MUST mark the page uptodate, which orders its contents, before the entry that shows it."""
    event = step.event
    if isinstance(event, ev.FolioUptodate):
        return memory | {event.pfn}, None
    if isinstance(event, ev.FolioAllocated | ev.FolioFreed):
        return memory - {event.pfn}, None
    event = cast("Changed", event)
    pfn = event.new.pfn
    if not is_mapping(event.new) or pfn is None:
        return memory, None
    pfn = world.head(pfn)
    filled = world.task(step.task).in_phase(Phase.MOVING) is not None and event.old.kind in NOTHING_KINDS
    if not filled:
        return memory - {pfn}, None
    if pfn not in memory:
        return memory, f"pages put pfn {pfn} at {at(event)} before it was uptodate"
    return memory - {pfn}, KEPT


ON_LRU = frozenset({Lru.BATCHED, Lru.ON})


@step_clause(
    "C73",
    name="LRU round trip",
    party=Party.CORE,
    source="mm/migrate_device.c:__migrate_device_finalize (41cddf83d8b0; CVE-2025-21861)",
    symptom="a page that is about to be freed is on the LRU: memcg splat",
    on=(ev.LruAdded, ev.LruPutBack, ev.FinalizeReturned),
)
def lru_round_trip(before: World, step: ev.Step, after: World) -> Judgement:
    """A system page that setup isolated MUST be put on the LRU once if it is restored, and never if it migrated; a new system
    page once if it is the destination of a page that migrated or fills a hole, and never otherwise.
    """
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.FinalizeReturned):
        return _on_lru_after(before, step, event)
    pfn = cast("ev.LruAdded | ev.LruPutBack", event).pfn
    frame = before.frame(pfn)
    active = task.active_call
    if active is None:
        return None
    if is_zone_device(frame.memory):
        return f"pfn {pfn} of {frame.owner} was put on the LRU"
    if frame.lru in ON_LRU:
        return f"pfn {pfn} was put on the LRU twice"
    call = active[1]
    if call.phase is not Phase.FINALIZING or call.dst is None:
        return None
    for _, entry, dst in pairs(call.src, call.dst):
        migrated = is_migrating(entry) and pfn_of(dst) is not None
        if pfn_of(entry) == pfn:
            return f"pfn {pfn} migrated to pfn {pfn_of(dst)}, and was put on the LRU" if migrated else KEPT
        if pfn_of(dst) == pfn:
            return KEPT if migrated else f"pfn {pfn} took no page's place, and was put on the LRU"
    return None


def _on_lru_after(world: World, step: ev.Step, event: ev.FinalizeReturned) -> Judgement:
    call = call_before(world, step, event.call)
    for _, entry, dst in pairs(call.src, call.dst) if call is not None else ():
        old, new = pfn_of(entry), pfn_of(dst)
        pfn = new if is_migrating(entry) and new is not None else old
        frame = world.frame(pfn) if pfn is not None else None
        if frame is None or old is None or frame.memory is not Memory.SYSTEM:
            continue
        if frame.lru in (Lru.OFF, Lru.ISOLATED) and frame.mapcount and frame.holder in (None, step.task):
            return f"pfn {pfn} is mapped after finalize, and is not on the LRU"
    return None


@step_clause(
    "C74",
    name="memcg charge",
    party=Party.CORE,
    source="mm/memcontrol.c:mem_cgroup_migrate; mm/migrate_device.c:migrate_vma_insert_page (6.1.192, 7.3.4)",
    symptom="memory that nobody is charged for",
    on=(ev.PteChanged, ev.PmdChanged, ev.PagesReturned),
)
def charge_follows(before: World, step: ev.Step, after: World) -> Judgement:
    """pages() MUST move the charge of a page to its destination, and MUST charge the page that fills a hole before it maps it."""
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.PteChanged | ev.PmdChanged):
        pfn = event.new.pfn
        filled = event.old.kind in NOTHING_KINDS and is_mapping(event.new)
        if pfn is None or not filled or task.in_phase(Phase.MOVING) is None:
            return None
        charged = before.folio(pfn).charged
        return f"pfn {pfn} fills {at(event)} and is not charged" if charged is False else None
    call = call_before(before, step, cast("ev.PagesReturned", event).call)
    moved = sorted(call.moved.items()) if call is not None else []
    for old, new in moved:
        if before.frame(old).charged:
            return f"pfn {old} moved to pfn {new}, and its charge did not"
    return KEPT if moved or (call is not None and call.inserted and pfns_of(call.dst)) else None
