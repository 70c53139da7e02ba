"""Folding of what happens to page frames and folios."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.folding import booked, change_extras, is_page_of, on, put_frame, put_task, release_page_lock
from migrate_vma_spec.objects import (
    Frame,
    Phase,
    Stage,
    TaskState,
    World,
    evolve,
    free_frame,
    ptl,
)
from migrate_vma_spec.vocabulary import Lru, Memory, PteKind


@on(ev.FrameAdded)
def _frame_added(world: World, _name: str, _cpu: int, event: ev.FrameAdded) -> World:
    return put_frame(world, event.pfn, free_frame(event.memory, event.owner))


@on(ev.FolioAllocated)
def _folio_allocated(world: World, name: str, _cpu: int, event: ev.FolioAllocated) -> World:
    old = world.frame(event.pfn)
    world = release_page_lock(world, event.pfn)
    holder = name if event.locked else None
    frame = evolve(free_frame(old.memory, old.owner), allocated=True, refcount=event.refcount, locked=event.locked, holder=holder)
    world = put_frame(world, event.pfn, frame)
    if event.order:
        world = _compound(world, event.pfn, event.order)
    if holder is None:
        return world
    task = world.task(name)
    return put_task(world, name, evolve(task, pages=task.pages | {event.pfn}))


def _compound(world: World, pfn: int, order: int) -> World:
    """The world where the frames from `pfn` on are one folio."""
    extras, frames = world.extras, world.frames
    heads = extras.heads
    for tail in range(pfn + 1, pfn + (1 << order)):
        heads = heads.set(tail, pfn)
        old = world.frame(tail)
        frames = frames.set(tail, Frame(old.memory, old.owner, allocated=True))
    return change_extras(evolve(world, frames=frames), heads=heads, orders=extras.orders.set(pfn, order))


@on(ev.FreeCallback)
def _free_callback(world: World, name: str, _cpu: int, event: ev.FreeCallback) -> World:
    return put_task(world, name, evolve(world.task(name), freeing=event.pfn))


def _page_died(world: World, pfn: int) -> World:
    """No callback that was given a page of this folio has it any more."""
    for name, task in world.tasks.items():
        if any(fault.live and is_page_of(world, fault.page, pfn) for fault in task.faults):
            faults = tuple(evolve(fault, live=fault.live and not is_page_of(world, fault.page, pfn)) for fault in task.faults)
            world = evolve(world, tasks=world.tasks.set(name, evolve(task, faults=faults)))
    return world


@on(ev.FolioFreed)
def _folio_freed(world: World, name: str, _cpu: int, event: ev.FolioFreed) -> World:
    old = world.frame(event.pfn)
    world = _page_died(release_page_lock(world, event.pfn), event.pfn)
    world = put_frame(world, event.pfn, free_frame(old.memory, old.owner))
    if event.order or event.pfn in world.extras.orders:
        world = _dissolve(world, event.pfn, max(event.order, world.extras.orders.get(event.pfn, 0)))
    task = world.task(name)
    return put_task(world, name, evolve(task, freeing=None)) if task.freeing == event.pfn else world


def _dissolve(world: World, pfn: int, order: int) -> World:
    """The world where the tails of a folio that was freed are free frames of their own."""
    tails = range(pfn + 1, pfn + (1 << order))
    frames = world.frames
    for tail in tails:
        old = world.frame(tail)
        frames = frames.set(tail, free_frame(old.memory, old.owner))
    extras = world.extras
    return change_extras(evolve(world, frames=frames), heads=extras.heads.drop_all(tails), orders=extras.orders.drop(pfn))


@on(ev.FolioSeen)
def _folio_seen(world: World, _name: str, _cpu: int, event: ev.FolioSeen) -> World:
    known = world.frame(event.pfn)
    seen = evolve(
        known,
        refcount=known.refcount if event.refcount is None else event.refcount,
        locked=known.locked if event.locked is None else event.locked,
        memory=known.memory if event.memory is None else event.memory,
    )
    return world if seen == known else put_frame(world, event.pfn, seen)


@on(ev.FolioGot)
def _folio_got(world: World, name: str, _cpu: int, event: ev.FolioGot) -> World:
    task, frame = world.tasks.get(name), world.frame(event.pfn)
    # One for each page, where a leaf is split: they are taken at once.
    several = event.pfn in world.extras.orders and frame.refcount is not None
    refs = max(1, event.refcount - (frame.refcount or 0)) if several else 1
    world = booked(world, name, event.pfn, evolve(frame, refcount=event.refcount), refs=refs)
    fault = task.fault if task is not None else None
    if task is None or fault is None or fault.stage is not Stage.HANDLING or is_page_of(world, fault.page, event.pfn):
        return world
    pte = world.pte(fault.mm, fault.addr)
    if pte.kind is not PteKind.DEVICE_PRIVATE or not is_page_of(world, pte.pfn, event.pfn) or not task.holds(ptl(fault.mm)):
        return world
    task = world.task(name)
    return put_task(world, name, evolve(task, faults=(*task.faults[:-1], evolve(fault, page=pte.pfn, refs=1))))


@on(ev.FolioPut)
def _folio_put(world: World, name: str, _cpu: int, event: ev.FolioPut) -> World:
    world = booked(world, name, event.pfn, evolve(world.frame(event.pfn), refcount=event.refcount), refs=-1)
    if event.refcount == 0:
        return _page_died(world, event.pfn)
    task = world.tasks.get(name)
    fault = task.fault if task is not None and task.in_phase(Phase.FINALIZING) is not None else None
    if task is None or fault is None or not fault.live or not is_page_of(world, fault.page, event.pfn) or fault.refs > 0:
        return world
    # The callback's own finalize put the last reference that protected the page: from here on it is nobody's duty to keep it.
    return put_task(world, name, evolve(task, faults=(*task.faults[:-1], evolve(fault, live=False))))


@on(ev.FolioLocked)
def _folio_locked(world: World, name: str, _cpu: int, event: ev.FolioLocked) -> World:
    world = release_page_lock(world, event.pfn)
    frame = evolve(world.frame(event.pfn), locked=True, holder=name)
    world = booked(world, name, event.pfn, frame, refs=_taken_over(world.task(name), frame, event.pfn), locks=1)
    task = world.task(name)
    return put_task(world, name, evolve(task, pages=task.pages | {event.pfn}))


def _taken_over(task: TaskState, frame: Frame, pfn: int) -> int:
    """migrate_device_coherent_folio works with its caller's reference, and puts it; device_range would have taken one by now."""
    call = task.in_phase(Phase.COLLECTING) if frame.memory is Memory.DEVICE_COHERENT else None
    return 1 if call is not None and not call.vma and pfn in call.pfns and pfn not in call.ledger else 0


@on(ev.FolioUnlocked)
def _folio_unlocked(world: World, name: str, _cpu: int, event: ev.FolioUnlocked) -> World:
    world = release_page_lock(world, event.pfn)
    return booked(world, name, event.pfn, evolve(world.frame(event.pfn), locked=False, holder=None), refs=0, locks=-1)


@on(ev.FolioDirtied)
def _folio_dirtied(world: World, _name: str, _cpu: int, event: ev.FolioDirtied) -> World:
    return put_frame(world, event.pfn, evolve(world.frame(event.pfn), dirty=True))


@on(ev.FolioCleaned)
def _folio_cleaned(world: World, _name: str, _cpu: int, event: ev.FolioCleaned) -> World:
    return put_frame(world, event.pfn, evolve(world.frame(event.pfn), dirty=False))


@on(ev.FolioRead)
def _folio_read(world: World, _name: str, _cpu: int, event: ev.FolioRead) -> World:
    return put_frame(world, event.pfn, evolve(world.frame(event.pfn), refcount=event.refcount, mapcount=event.mapcount))


@on(ev.LruIsolated)
def _lru_isolated(world: World, name: str, _cpu: int, event: ev.LruIsolated) -> World:
    if not event.done:
        return world
    frame = world.frame(event.pfn)
    count = event.refcount
    if count is None and frame.refcount is not None:
        count = frame.refcount + 1
    return booked(world, name, event.pfn, evolve(frame, lru=Lru.ISOLATED, refcount=count), refs=1)


@on(ev.LruAdded)
def _lru_added(world: World, _name: str, _cpu: int, event: ev.LruAdded) -> World:
    return put_frame(world, event.pfn, evolve(world.frame(event.pfn), lru=Lru.BATCHED, refcount=event.refcount))


@on(ev.LruPutBack)
def _lru_put_back(world: World, name: str, _cpu: int, event: ev.LruPutBack) -> World:
    frame = evolve(world.frame(event.pfn), lru=Lru.ON, refcount=event.refcount)
    return booked(world, name, event.pfn, frame, refs=-1)


@on(ev.LruDrained)
def _lru_drained(world: World, _name: str, _cpu: int, event: ev.LruDrained) -> World:
    frames = world.frames
    for pfn in event.pfns:
        frame = world.frame(pfn)
        count = None if frame.refcount is None else frame.refcount - 1
        frames = frames.set(pfn, evolve(frame, lru=Lru.ON, refcount=count))
    return evolve(world, frames=frames)


@on(ev.MemcgCharged)
def _charged(world: World, _name: str, _cpu: int, event: ev.MemcgCharged) -> World:
    return put_frame(world, event.pfn, evolve(world.frame(event.pfn), charged=True))


@on(ev.MemcgUncharged)
def _uncharged(world: World, _name: str, _cpu: int, event: ev.MemcgUncharged) -> World:
    return put_frame(world, event.pfn, evolve(world.frame(event.pfn), charged=False))


def _of_page(world: World, pfn: int, exclusive: bool) -> World:
    """The world with this page's own flag, where the page is a tail of its folio."""
    return put_frame(world, pfn, evolve(world.frame(pfn), exclusive=exclusive))


@on(ev.RmapAdded)
def _rmap_added(world: World, name: str, _cpu: int, event: ev.RmapAdded) -> World:
    head = world.head(event.pfn)
    frame = evolve(world.frame(head), mapcount=event.mapcount)
    if head == event.pfn:
        return booked(world, name, head, evolve(frame, exclusive=event.exclusive), refs=-1)
    return booked(_of_page(world, event.pfn, event.exclusive), name, head, frame, refs=-1)


@on(ev.RmapRemoved)
def _rmap_removed(world: World, name: str, _cpu: int, event: ev.RmapRemoved) -> World:
    head = world.head(event.pfn)
    return booked(world, name, head, evolve(world.frame(head), mapcount=event.mapcount), refs=1)


@on(ev.ExclusiveShared)
def _exclusive_shared(world: World, _name: str, _cpu: int, event: ev.ExclusiveShared) -> World:
    return _of_page(world, event.pfn, exclusive=False) if event.done else world


@on(ev.ExclusiveTaken)
def _exclusive_taken(world: World, _name: str, _cpu: int, event: ev.ExclusiveTaken) -> World:
    head = world.head(event.pfn)
    world = put_frame(world, head, evolve(world.frame(head), refcount=event.refcount))
    return _of_page(world, event.pfn, exclusive=True) if event.done else world


@on(ev.FlagsMoved)
def _flags_moved(world: World, _name: str, _cpu: int, event: ev.FlagsMoved) -> World:
    src, dst = world.frame(event.pfn), world.frame(event.dst)
    frames = world.frames.set(event.dst, evolve(dst, charged=src.charged, dirty=dst.dirty or src.dirty))
    return evolve(world, frames=frames.set(event.pfn, evolve(src, charged=False)))
