"""Retired pages, borrowed pages, driver data

What may be done with a page whose content has left it, with one that a device has to itself for a while, and how long what a
driver attaches to pages and processes must live.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import at
from migrate_vma_spec.objects import TaskState, World, mmap_lock
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import Capability, NotifyReason, PteKind

Retired = frozenset[int]


@monitor(
    "C54",
    name="a retired page does not migrate again",
    party=Party.DRIVER,
    source="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_retire_migrated_pages (7.2)",
    symptom="a stale copy; a folio on the LRU that nobody is charged for",
    on=(ev.FolioMoved, ev.FolioAllocated, ev.FolioFreed),
    start=frozenset[int](),
)
def retired_pages_stay(memory: Retired, world: World, step: ev.Step) -> tuple[Retired, Judgement]:
    """A page whose content has migrated MUST NOT be picked for another migration, by an eviction say, before it is freed."""
    event = step.event
    if isinstance(event, ev.FolioMoved):
        if not event.moved:
            return memory, None
        again = event.pfn in memory
        wrong = f"pfn {event.pfn}, whose content has migrated before, was moved to pfn {event.dst}"
        return (memory - {event.dst}) | {event.pfn}, wrong if again else None
    pages = frozenset(range(event.pfn, event.pfn + (1 << event.order))) if isinstance(event, ev.FolioFreed) else {_pfn(event)}
    return memory - pages, KEPT if memory & pages else None


def _pfn(event: ev.Event) -> int:
    return cast("ev.FolioAllocated", event).pfn


def _in_notifier(world: World, name: str) -> bool:
    return any(range_.task == name for ranges in world.invalidations.values() for range_ in ranges)


@step_clause(
    "C89",
    name="what a driver reaches is alive",
    party=Party.DRIVER,
    source="drivers/gpu/drm/amd/amdkfd; drivers/gpu/drm/drm_pagemap.c (7.3.4; fa582c6f3684)",
    symptom="use after free; a deadlock where the last user of an address space leaves it in a callback",
    on=(ev.ZoneDeviceDataRead, ev.SetupCalled, ev.RangeFaultBegan, ev.MmPut),
)
def what_a_driver_reaches_is_alive(before: World, step: ev.Step, after: World) -> Judgement:
    """What a driver reaches through zone_device_data MUST live until folio_free, and the driver MUST NOT look at it for a
    page that is free. It MUST be a user of an address space (mmget_not_zero) while it works on one that is not its caller's, and
    MUST NOT cease to be one in a notifier or a free callback, which the last user's exit would need.
    """
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.ZoneDeviceDataRead):
        return _data_read(before, task, event)
    if isinstance(event, ev.SetupCalled | ev.RangeFaultBegan):
        gone = before.mms and event.mm is not None and event.mm not in before.mms
        return f"{step.task} works on mm {event.mm}, which has exited" if gone else None
    event = cast("ev.MmPut", event)
    if _in_notifier(before, step.task):
        return f"{step.task} put mm {event.mm} in a notifier, which the exit of its last user would need"
    if task.freeing is not None:
        return f"{step.task} put mm {event.mm} in the free callback of pfn {task.freeing}"
    if task.holds(mmap_lock(event.mm)):
        return f"{step.task} put mm {event.mm} with {mmap_lock(event.mm)} held"
    return KEPT


def _data_read(world: World, task: TaskState, event: ev.ZoneDeviceDataRead) -> Judgement:
    fault = task.callback
    given = fault is not None and fault.page is not None and not fault.live and world.head(fault.page) == world.head(event.pfn)
    if given and Capability.REFILL not in world.capabilities:
        # The fault handler gave the driver a page that it did not protect: C41 and C50 say so.
        return None
    return f"zone_device_data of pfn {event.pfn} was read, which is free" if world.folio(event.pfn).allocated is False else KEPT


Borrowed = frozenset[tuple[str, int, bool]]
"""(task, page, True for its lock or False for its reference): what make_device_exclusive gave the task, and it still has."""


@monitor(
    "C91",
    name="device-exclusive pages",
    party=Party.BOTH,
    source="mm/rmap.c:make_device_exclusive; mm/memory.c:restore_exclusive_pte (7c7b962938dd, b3fefbb30a16; 7.3.4)",
    symptom="a CPU and the device write one page at a time that both take for their own; a lock or a reference leaks",
    on=(ev.PteChanged, ev.FolioUnlocked, ev.FolioPut, ev.OperationEnded),
    start=frozenset[tuple[str, int, bool]](),
)
def exclusive_pages_are_held(memory: Borrowed, world: World, step: ev.Step) -> tuple[Borrowed, Judgement]:
    """A page MUST be locked and referenced while its entry is made device-exclusive or is restored; the driver MUST unlock and
    put the page that it was given.
    """
    event = step.event
    if isinstance(event, ev.PteChanged):
        return _made_or_restored(memory, world, step.task, event)
    if isinstance(event, ev.OperationEnded):
        kept = sorted((pfn, lock) for name, pfn, lock in memory if name == step.task)
        rest = frozenset(line for line in memory if line[0] != step.task)
        if kept:
            return (
                rest,
                f"{step.task} keeps the {'lock' if kept[-1][1] else 'reference'} of pfn {kept[-1][0]}, made exclusive for it",
            )
        return rest, None
    if not memory:
        return memory, None
    lock = isinstance(event, ev.FolioUnlocked)
    line = (step.task, cast("ev.FolioUnlocked | ev.FolioPut", event).pfn, lock)
    return memory - {line}, KEPT if line in memory else None


def _taking(world: World, name: str, event: ev.PteChanged) -> bool:
    """Whether the task makes the entry of a page exclusive: the entry is present, or cleared and flushed, inside of the notifier
    range that says so.
    """
    if event.old.kind not in (PteKind.PRESENT, PteKind.NONE):
        return False
    ranges = (range_ for range_ in world.invalidations.get(event.mm, ()) if range_.task == name)
    return any(range_.reason is NotifyReason.EXCLUSIVE and range_.start <= event.addr < range_.end for range_ in ranges)


def _made_or_restored(memory: Borrowed, world: World, name: str, event: ev.PteChanged) -> tuple[Borrowed, Judgement]:
    made = event.new.kind is PteKind.EXCLUSIVE and _taking(world, name, event)
    restored = event.old.kind is PteKind.EXCLUSIVE and event.new.kind is PteKind.PRESENT
    pfn = event.new.pfn
    if pfn is None or not (made or restored):
        return memory, None
    head, frame = world.head(pfn), world.folio(pfn)
    what = "made device-exclusive" if made else "restored"
    if frame.locked is False or frame.holder not in (None, name):
        return memory, f"the entry of {at(event)} was {what}, and {name} does not hold the lock of pfn {pfn}"
    # A mapping's own reference is not the task's; for a restoration, under the page-table lock, it is enough.
    if (
        made
        and frame.refcount is not None
        and frame.mapcount is not None
        and frame.refcount <= frame.mapcount + world.cache_refs(pfn)
    ):
        return memory, f"the entry of {at(event)} was {what} without a reference to pfn {pfn}"
    return (memory | {(name, head, True), (name, head, False)} if made else memory), KEPT
