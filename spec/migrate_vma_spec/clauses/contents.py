"""Contents, LRU and charge

What is in the pages, and what else the kernel keeps of them: that a CPU or a device reads, after a migration, what was last
written; that dirtiness, the place on the LRU and the memory cgroup's charge go with the content.
"""

from __future__ import annotations

from typing import cast

from attrs import evolve, frozen

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import call_before, is_migrating, is_zone_device, pairs, pfn_of, pfns_of
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import EMPTY, NAMING_KINDS, PAGE_KINDS, Phase, Stage, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import Lru, Memory, PteKind

Pages = frozenset[int]
Key = tuple[int, int]


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
        return memory - {event.pfn}, None
    event = cast("ev.FinalizeCalled", event)
    judgement: Judgement = None
    for index, entry, dst in pairs(event.src, event.dst):
        old, new = pfn_of(entry), pfn_of(dst)
        if old not in memory or new is None or not is_migrating(entry) or world.frame(new).memory is not Memory.SYSTEM:
            continue
        if world.frame(new).dirty is False:
            return memory, f"the device wrote pfn {old}, and dst[{index}], pfn {new}, is not dirty"
        judgement = KEPT
    return memory, judgement


ZERO = 0
STALE = -1
"""Contents: zeroes; what a frame held for its last owner; and, from 1 on, what some store left."""


@frozen
class Contents:
    """What is where. `frames` holds the content of each frame, `expected` what each virtual page must read as (absent: zeroes).

    `copied` are the frames that got their content by a copy; `zapped` the addresses that were unmapped while a TLB could still
    reach the old page: until the flush, what an access there sees is nobody's fault.
    """

    frames: FrozenMap[int, int] = EMPTY
    expected: FrozenMap[Key, int] = EMPTY
    copied: frozenset[int] = frozenset()
    zapped: frozenset[Key] = frozenset()


def _renamed(contents: Contents) -> Contents:
    """The same contents under the smallest names: numbered by first occurrence, so that equal situations are equal values."""
    tokens = {ZERO: ZERO, STALE: STALE}
    for _, token in sorted(contents.frames.items()):
        tokens.setdefault(token, len(tokens) - 1)
    for _, token in sorted(contents.expected.items()):
        tokens.setdefault(token, len(tokens) - 1)
    if all(old == new for old, new in tokens.items()):
        return contents
    return evolve(
        contents,
        frames=FrozenMap((pfn, tokens[token]) for pfn, token in contents.frames.items()),
        expected=FrozenMap((key, tokens[token]) for key, token in contents.expected.items()),
    )


def _expect(contents: Contents, key: Key, token: int) -> Contents:
    expected = contents.expected.drop(key) if token == ZERO else contents.expected.set(key, token)
    return evolve(contents, expected=expected)


def _forget_page(contents: Contents, pfn: int) -> Contents:
    return evolve(contents, frames=contents.frames.drop(pfn), copied=contents.copied - {pfn})


def _forget_addresses(contents: Contents, mm: int, start: int, end: float) -> Contents:
    gone = [key for key in contents.expected if key[0] == mm and start <= key[1] < end]
    zapped = frozenset(key for key in contents.zapped if key[0] != mm or not start <= key[1] < end)
    return evolve(contents, expected=contents.expected.drop_all(gone), zapped=zapped)


Access = ev.CpuAccessed | ev.DeviceAccessed


def _sharers(world: World, key: Key, pfn: int) -> list[Key]:
    """Where else this page is mapped by a fork that is not finished: what its parent still writes, the child may see."""
    children = {task.forking[1] for task in world.tasks.values() if task.forking is not None}
    return [other for other in world.named.get(pfn, ()) if other != key and other[0] in children] if children else []


def _access(contents: Contents, world: World, event: Access) -> tuple[Contents, Judgement]:
    key, pfn = (event.mm, event.addr), event.pfn
    if pfn is None or (key in contents.zapped and world.pte(*key).pfn != pfn):
        return contents, None
    vma = world.vma(event.mm, event.addr)
    wanted = contents.expected.get(key, ZERO if vma is not None and vma.anonymous else None)
    seen = contents.frames.get(pfn)
    judgement: Judgement = None
    if wanted is not None and seen is not None:
        judgement = KEPT if pfn in contents.copied else None
        if seen != wanted:
            who = event.device if isinstance(event, ev.DeviceAccessed) else "a CPU"
            what = "what the frame held before" if seen == STALE else "zeroes" if seen == ZERO else "another store"
            judgement = f"{who} reached pfn {pfn} for mm {event.mm} addr {event.addr}, and found {what} instead of the last store"
            judgement = judgement if wanted != ZERO else judgement.replace("the last store", "zeroes")
    if event.write:
        token = 1 + max((*contents.frames.values(), *contents.expected.values()), default=0)
        contents = evolve(contents, frames=contents.frames.set(pfn, token))
        for other in (key, *_sharers(world, key, pfn)):
            contents = _expect(contents, other, token)
    return contents, judgement


def _pte_changed(contents: Contents, world: World, step: ev.Step, event: ev.PteChanged) -> Contents:
    key, task = (event.mm, event.addr), world.task(step.task)
    if task.forking is not None and task.forking[1] == event.mm and event.old.kind is PteKind.NONE:
        return _expect(contents, key, contents.expected.get((task.forking[0], event.addr), ZERO))
    handling = task.fault is not None and task.fault.stage is Stage.HANDLING
    if event.old.kind not in NAMING_KINDS or event.new.kind is not PteKind.NONE or task.library is not None or handling:
        return contents
    # A zap: from now on the address reads as zeroes.
    contents = _expect(contents, key, ZERO)
    reachable = any(pte.pfn == event.old.pfn for pte in world.tlbs.get(key, EMPTY).values())
    return evolve(contents, zapped=contents.zapped | {key}) if reachable else contents


def _page_event(contents: Contents, event: ev.Event) -> Contents:
    if isinstance(event, ev.PageCleared):
        return evolve(contents, frames=contents.frames.set(event.pfn, ZERO), copied=contents.copied - {event.pfn})
    if isinstance(event, ev.PageCopied):
        token = contents.frames.get(event.src)
        if token is None:
            return _forget_page(contents, event.dst)
        return evolve(contents, frames=contents.frames.set(event.dst, token), copied=contents.copied | {event.dst})
    if isinstance(event, ev.FolioAllocated):
        return evolve(contents, frames=contents.frames.set(event.pfn, STALE), copied=contents.copied - {event.pfn})
    if isinstance(event, ev.FolioFreed):
        return _forget_page(contents, event.pfn)
    return contents


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
        ev.PteChanged,
        ev.TlbFlushed,
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
        memory, judgement = _access(memory, world, event)
    elif isinstance(event, ev.PteChanged):
        memory = _pte_changed(memory, world, step, event)
    elif isinstance(event, ev.TlbFlushed):
        gone = frozenset(key for key in memory.zapped if key[0] == event.mm and event.start <= key[1] < event.end)
        return (evolve(memory, zapped=memory.zapped - gone) if gone else memory), None
    elif isinstance(event, ev.VmaUnmapped):
        memory = _forget_addresses(memory, event.mm, event.start, event.end)
    elif isinstance(event, ev.MmExited):
        memory = _forget_addresses(memory, event.mm, 0, float("inf"))
    else:
        memory = _page_event(memory, event)
    return _renamed(memory), judgement


@monitor(
    "C72",
    name="contents before visibility",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_insert_page (6.1.192, 7.3.4)",
    symptom="a CPU reads a page that is not complete yet",
    on=(ev.FolioUptodate, ev.PteChanged, ev.FolioAllocated, ev.FolioFreed),
    start=frozenset[int](),
)
def uptodate_before_insert(memory: Pages, world: World, step: ev.Step) -> tuple[Pages, Judgement]:
    """When pages() fills a hole, it MUST mark the page uptodate, which orders its contents, before the entry that shows it."""
    event = step.event
    if isinstance(event, ev.FolioUptodate):
        return memory | {event.pfn}, None
    if isinstance(event, ev.FolioAllocated | ev.FolioFreed):
        return memory - {event.pfn}, None
    event = cast("ev.PteChanged", event)
    pfn = event.new.pfn
    if event.new.kind not in PAGE_KINDS or pfn is None:
        return memory, None
    filled = world.task(step.task).in_phase(Phase.MOVING) is not None and event.old.kind in (PteKind.NONE, PteKind.ZERO)
    if not filled:
        return memory - {pfn}, None
    if pfn not in memory:
        return memory, f"pages put pfn {pfn} at mm {event.mm} addr {event.addr} before it was uptodate"
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
    active = task.library
    if active is None:
        return None
    if is_zone_device(frame.memory):
        return f"pfn {pfn} of {frame.owner} was put on the LRU"
    if frame.lru in ON_LRU:
        return f"pfn {pfn} was put on the LRU twice"
    call = active[1]
    if call.phase is not Phase.FINALIZING:
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
    on=(ev.PteChanged, ev.PagesReturned),
)
def charge_follows(before: World, step: ev.Step, after: World) -> Judgement:
    """pages() MUST move the charge of a page to its destination, and MUST charge the page that fills a hole before it maps it."""
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.PteChanged):
        pfn = event.new.pfn
        filled = event.old.kind in (PteKind.NONE, PteKind.ZERO) and event.new.kind in PAGE_KINDS
        if pfn is None or not filled or task.in_phase(Phase.MOVING) is None:
            return None
        charged = before.frame(pfn).charged
        return f"pfn {pfn} fills mm {event.mm} addr {event.addr} and is not charged" if charged is False else None
    call = call_before(before, step, cast("ev.PagesReturned", event).call)
    moved = sorted(call.moved.items()) if call is not None else []
    for old, new in moved:
        if before.frame(old).charged:
            return f"pfn {old} moved to pfn {new}, and its charge did not"
    return KEPT if moved or (call is not None and call.inserted and pfns_of(call.dst)) else None
