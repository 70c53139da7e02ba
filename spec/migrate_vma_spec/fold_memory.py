"""Folding of what happens to memory: page frames, page tables, TLBs, address spaces, devices."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.folding import booked, on, put_frame, put_task, release_page_lock
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import (
    EMPTY,
    NAMING_KINDS,
    PAGE_KINDS,
    Invalidation,
    Mirror,
    Phase,
    Stage,
    VmaRange,
    World,
    change,
    free_frame,
    ptl,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Lru, Pte, PteKind

# ---- page frames -------------------------------------------------------------------------------------------------------


@on(ev.FrameAdded)
def _frame_added(world: World, _name: str, _cpu: int, event: ev.FrameAdded) -> World:
    return put_frame(world, event.pfn, free_frame(event.memory, event.owner))


@on(ev.FolioAllocated)
def _folio_allocated(world: World, name: str, _cpu: int, event: ev.FolioAllocated) -> World:
    old = world.frame(event.pfn)
    world = release_page_lock(world, event.pfn)
    holder = name if event.locked else None
    frame = change(free_frame(old.memory, old.owner), allocated=True, refcount=event.refcount, locked=event.locked, holder=holder)
    world = put_frame(world, event.pfn, frame)
    if holder is None:
        return world
    task = world.task(name)
    return put_task(world, name, change(task, pages=task.pages | {event.pfn}))


@on(ev.FreeCallback)
def _free_callback(world: World, name: str, _cpu: int, event: ev.FreeCallback) -> World:
    return put_task(world, name, change(world.task(name), freeing=event.pfn))


def _page_died(world: World, pfn: int) -> World:
    """No callback that was given this page has it any more."""
    for name, task in world.tasks.items():
        if any(fault.live and fault.page == pfn for fault in task.faults):
            faults = tuple(change(fault, live=fault.live and fault.page != pfn) for fault in task.faults)
            world = change(world, tasks=world.tasks.set(name, change(task, faults=faults)))
    return world


@on(ev.FolioFreed)
def _folio_freed(world: World, name: str, _cpu: int, event: ev.FolioFreed) -> World:
    old = world.frame(event.pfn)
    world = _page_died(release_page_lock(world, event.pfn), event.pfn)
    world = put_frame(world, event.pfn, free_frame(old.memory, old.owner))
    task = world.task(name)
    return put_task(world, name, change(task, freeing=None)) if task.freeing == event.pfn else world


@on(ev.FolioGot)
def _folio_got(world: World, name: str, _cpu: int, event: ev.FolioGot) -> World:
    task = world.tasks.get(name)
    world = booked(world, name, event.pfn, change(world.frame(event.pfn), refcount=event.refcount), refs=1)
    fault = task.fault if task is not None else None
    if task is None or fault is None or fault.stage is not Stage.HANDLING or fault.page == event.pfn:
        return world
    pte = world.pte(fault.mm, fault.addr)
    if pte.kind is not PteKind.DEVICE_PRIVATE or pte.pfn != event.pfn or not task.holds(ptl(fault.mm)):
        return world
    task = world.task(name)
    return put_task(world, name, change(task, faults=(*task.faults[:-1], change(fault, page=event.pfn, refs=1))))


@on(ev.FolioPut)
def _folio_put(world: World, name: str, _cpu: int, event: ev.FolioPut) -> World:
    world = booked(world, name, event.pfn, change(world.frame(event.pfn), refcount=event.refcount), refs=-1)
    if event.refcount == 0:
        return _page_died(world, event.pfn)
    task = world.tasks.get(name)
    fault = task.fault if task is not None and task.in_phase(Phase.FINALIZING) is not None else None
    if task is None or fault is None or not fault.live or fault.page != event.pfn or fault.refs > 0:
        return world
    # The callback's own finalize put the last reference that protected the page: from here on it is nobody's duty to keep it.
    return put_task(world, name, change(task, faults=(*task.faults[:-1], change(fault, live=False))))


@on(ev.FolioLocked)
def _folio_locked(world: World, name: str, _cpu: int, event: ev.FolioLocked) -> World:
    world = release_page_lock(world, event.pfn)
    frame = change(world.frame(event.pfn), locked=True, holder=name)
    world = booked(world, name, event.pfn, frame, refs=0, locks=1)
    task = world.task(name)
    return put_task(world, name, change(task, pages=task.pages | {event.pfn}))


@on(ev.FolioUnlocked)
def _folio_unlocked(world: World, name: str, _cpu: int, event: ev.FolioUnlocked) -> World:
    world = release_page_lock(world, event.pfn)
    return booked(world, name, event.pfn, change(world.frame(event.pfn), locked=False, holder=None), refs=0, locks=-1)


@on(ev.FolioDirtied)
def _folio_dirtied(world: World, _name: str, _cpu: int, event: ev.FolioDirtied) -> World:
    return put_frame(world, event.pfn, change(world.frame(event.pfn), dirty=True))


@on(ev.FolioRead)
def _folio_read(world: World, _name: str, _cpu: int, event: ev.FolioRead) -> World:
    return put_frame(world, event.pfn, change(world.frame(event.pfn), refcount=event.refcount, mapcount=event.mapcount))


@on(ev.LruIsolated)
def _lru_isolated(world: World, name: str, _cpu: int, event: ev.LruIsolated) -> World:
    if not event.done:
        return world
    frame = world.frame(event.pfn)
    count = event.refcount
    if count is None and frame.refcount is not None:
        count = frame.refcount + 1
    return booked(world, name, event.pfn, change(frame, lru=Lru.ISOLATED, refcount=count), refs=1)


@on(ev.LruAdded)
def _lru_added(world: World, _name: str, _cpu: int, event: ev.LruAdded) -> World:
    return put_frame(world, event.pfn, change(world.frame(event.pfn), lru=Lru.BATCHED, refcount=event.refcount))


@on(ev.LruPutBack)
def _lru_put_back(world: World, name: str, _cpu: int, event: ev.LruPutBack) -> World:
    frame = change(world.frame(event.pfn), lru=Lru.ON, refcount=event.refcount)
    return booked(world, name, event.pfn, frame, refs=-1)


@on(ev.LruDrained)
def _lru_drained(world: World, _name: str, _cpu: int, event: ev.LruDrained) -> World:
    frames = world.frames
    for pfn in event.pfns:
        frame = world.frame(pfn)
        count = None if frame.refcount is None else frame.refcount - 1
        frames = frames.set(pfn, change(frame, lru=Lru.ON, refcount=count))
    return change(world, frames=frames)


@on(ev.MemcgCharged)
def _charged(world: World, _name: str, _cpu: int, event: ev.MemcgCharged) -> World:
    return put_frame(world, event.pfn, change(world.frame(event.pfn), charged=True))


@on(ev.MemcgUncharged)
def _uncharged(world: World, _name: str, _cpu: int, event: ev.MemcgUncharged) -> World:
    return put_frame(world, event.pfn, change(world.frame(event.pfn), charged=False))


@on(ev.RmapAdded)
def _rmap_added(world: World, name: str, _cpu: int, event: ev.RmapAdded) -> World:
    frame = change(world.frame(event.pfn), mapcount=event.mapcount, exclusive=event.exclusive)
    return booked(world, name, event.pfn, frame, refs=-1)


@on(ev.RmapRemoved)
def _rmap_removed(world: World, name: str, _cpu: int, event: ev.RmapRemoved) -> World:
    return booked(world, name, event.pfn, change(world.frame(event.pfn), mapcount=event.mapcount), refs=1)


@on(ev.ExclusiveShared)
def _exclusive_shared(world: World, _name: str, _cpu: int, event: ev.ExclusiveShared) -> World:
    return put_frame(world, event.pfn, change(world.frame(event.pfn), exclusive=False)) if event.done else world


@on(ev.ExclusiveTaken)
def _exclusive_taken(world: World, _name: str, _cpu: int, event: ev.ExclusiveTaken) -> World:
    frame = change(world.frame(event.pfn), refcount=event.refcount)
    return put_frame(world, event.pfn, change(frame, exclusive=True) if event.done else frame)


@on(ev.FolioMoved)
def _folio_moved(world: World, name: str, _cpu: int, event: ev.FolioMoved) -> World:
    task = world.task(name)
    active = task.library
    if not event.moved or active is None:
        return world
    number, call = active
    call = change(call, moved=call.moved.set(event.pfn, event.dst))
    return put_task(world, name, change(task, calls=task.calls.set(number, call)))


@on(ev.FlagsMoved)
def _flags_moved(world: World, _name: str, _cpu: int, event: ev.FlagsMoved) -> World:
    src, dst = world.frame(event.pfn), world.frame(event.dst)
    frames = world.frames.set(event.dst, change(dst, charged=src.charged, dirty=dst.dirty or src.dirty))
    return change(world, frames=frames.set(event.pfn, change(src, charged=False)))


# ---- page tables and TLBs ----------------------------------------------------------------------------------------------

Key = tuple[int, int]


def _renamed(named: FrozenMap[int, frozenset[Key]], key: Key, old: Pte, new: Pte) -> FrozenMap[int, frozenset[Key]]:
    was = old.pfn if old.kind in NAMING_KINDS else None
    now = new.pfn if new.kind in NAMING_KINDS else None
    if was == now:
        return named
    if was is not None:
        left = named.get(was, frozenset[Key]()) - {key}
        named = named.set(was, left) if left else named.drop(was)
    return named if now is None else named.set(now, named.get(now, frozenset[Key]()) | {key})


def _with_pte(world: World, key: Key, new: Pte) -> World:
    old = world.ptes.get(key, PTE_NONE)
    ptes = world.ptes.drop(key) if new == PTE_NONE else world.ptes.set(key, new)
    return change(world, ptes=ptes, named=_renamed(world.named, key, old, new))


@on(ev.PteChanged)
def _pte_changed(world: World, name: str, _cpu: int, event: ev.PteChanged) -> World:
    key = (event.mm, event.addr)
    world = _with_pte(world, key, event.new)
    task = world.tasks.get(name)
    if task is None:
        return world
    active = task.library
    if active is not None and active[1].phase is Phase.MOVING and event.new.kind in PAGE_KINDS:
        number, call = active
        call = change(call, inserted=call.inserted | {event.addr})
        return put_task(world, name, change(task, calls=task.calls.set(number, call)))
    collecting = active is not None and active[1].phase is Phase.COLLECTING
    handling = task.fault is not None and task.fault.stage is Stage.HANDLING
    if not (collecting or handling):
        return world
    cleared = task.cleared
    if event.new.kind in PAGE_KINDS:
        cleared = cleared.drop(key)
    elif event.old.kind in PAGE_KINDS and task.holds(ptl(event.mm)):
        cleared = cleared.set(key, event.old)
    return world if cleared is task.cleared else put_task(world, name, change(task, cleared=cleared))


@on(ev.PteRead)
def _pte_read(world: World, _name: str, _cpu: int, event: ev.PteRead) -> World:
    key = (event.mm, event.addr)
    return world if world.ptes.get(key, PTE_NONE) == event.pte else _with_pte(world, key, event.pte)


@on(ev.TlbFilled)
def _tlb_filled(world: World, _name: str, cpu: int, event: ev.TlbFilled) -> World:
    """The walk that fills a TLB also sets the entry's young and dirty bits."""
    key = (event.mm, event.addr)
    cpus: FrozenMap[int, Pte] = world.tlbs.get(key) or EMPTY
    world = change(world, tlbs=world.tlbs.set(key, cpus.set(cpu, event.pte)))
    pte = world.ptes.get(key, PTE_NONE)
    if pte.kind is not PteKind.PRESENT or pte.pfn != event.pte.pfn:
        return world
    young, dirty = pte.young or event.pte.young, pte.dirty or event.pte.dirty
    return _with_pte(world, key, change(pte, young=young, dirty=dirty))


@on(ev.TlbFlushed)
def _tlb_flushed(world: World, _name: str, _cpu: int, event: ev.TlbFlushed) -> World:
    tlbs = world.tlbs
    if event.end - event.start <= len(tlbs):
        gone = [(event.mm, addr) for addr in range(event.start, event.end)]
    else:
        gone = [key for key in tlbs if key[0] == event.mm and event.start <= key[1] < event.end]
    tlbs = tlbs.drop(gone[0]) if len(gone) == 1 else tlbs.drop_all(gone)
    return world if tlbs is world.tlbs else change(world, tlbs=tlbs)


# ---- address spaces ----------------------------------------------------------------------------------------------------


def _without(vmas: tuple[VmaRange, ...], start: int, end: int) -> list[VmaRange]:
    """These VMAs less [start, end): what sticks out on either side stays."""
    left: list[VmaRange] = []
    for vma in vmas:
        if vma.start < min(vma.end, start):
            left.append(change(vma, end=min(vma.end, start)))
        if max(vma.start, end) < vma.end:
            left.append(change(vma, start=max(vma.start, end)))
    return left


@on(ev.MmCreated)
def _mm_created(world: World, _name: str, _cpu: int, event: ev.MmCreated) -> World:
    return change(world, mms=world.mms.set(event.mm, ()))


@on(ev.MmForked)
def _mm_forked(world: World, name: str, _cpu: int, event: ev.MmForked) -> World:
    world = change(world, mms=world.mms.set(event.child, world.mms.get(event.mm, ())))
    return put_task(world, name, change(world.task(name), forking=(event.mm, event.child)))


@on(ev.MmExited)
def _mm_exited(world: World, _name: str, _cpu: int, event: ev.MmExited) -> World:
    for key in [key for key in world.ptes if key[0] == event.mm]:
        world = _with_pte(world, key, PTE_NONE)
    for mirror in [key for key in world.mirrors if key[1] == event.mm]:
        world = _with_mirror(world, mirror, None)
    return change(
        world,
        mms=world.mms.drop(event.mm),
        tlbs=world.tlbs.drop_all(key for key in world.tlbs if key[0] == event.mm),
        subscribed=frozenset(pair for pair in world.subscribed if pair[1] != event.mm),
    )


@on(ev.VmaMapped)
def _vma_mapped(world: World, _name: str, _cpu: int, event: ev.VmaMapped) -> World:
    """A VMA with new flags over an old one (mprotect) takes its place."""
    vmas = _without(world.mms.get(event.mm, ()), event.start, event.end)
    vmas.append(VmaRange(event.start, event.end, event.flags, event.anonymous))
    vmas.sort(key=lambda vma: vma.start)
    return change(world, mms=world.mms.set(event.mm, tuple(vmas)))


@on(ev.VmaUnmapped)
def _vma_unmapped(world: World, _name: str, _cpu: int, event: ev.VmaUnmapped) -> World:
    vmas = _without(world.mms.get(event.mm, ()), event.start, event.end)
    return change(world, mms=world.mms.set(event.mm, tuple(sorted(vmas, key=lambda vma: vma.start))))


def _order(range_: Invalidation) -> tuple[str, int, int, str, str]:
    return range_.task, range_.start, range_.end, range_.reason.value, range_.owner or ""


@on(ev.InvalidateBegan)
def _invalidate_began(world: World, name: str, _cpu: int, event: ev.InvalidateBegan) -> World:
    new = Invalidation(name, event.start, event.end, event.reason, event.owner)
    ranges = sorted((*world.invalidations.get(event.mm, ()), new), key=_order)
    return change(world, invalidations=world.invalidations.set(event.mm, tuple(ranges)))


@on(ev.InvalidateEnded)
def _invalidate_ended(world: World, name: str, _cpu: int, event: ev.InvalidateEnded) -> World:
    ranges = list(world.invalidations.get(event.mm, ()))
    for range_ in ranges:
        if (range_.task, range_.start, range_.end) == (name, event.start, event.end):
            ranges.remove(range_)
            break
    left = tuple(ranges)
    invalidations = world.invalidations.set(event.mm, left) if left else world.invalidations.drop(event.mm)
    return change(world, invalidations=invalidations)


MirrorKey = tuple[str, int, int]


def _with_mirror(world: World, key: MirrorKey, new: Mirror | None) -> World:
    old = world.mirrors.get(key)
    mirrored = world.mirrored
    if old is not None and old.pfn is not None:
        left = mirrored.get(old.pfn, frozenset[MirrorKey]()) - {key}
        mirrored = mirrored.set(old.pfn, left) if left else mirrored.drop(old.pfn)
    if new is not None and new.pfn is not None:
        mirrored = mirrored.set(new.pfn, mirrored.get(new.pfn, frozenset[MirrorKey]()) | {key})
    mirrors = world.mirrors.drop(key) if new is None else world.mirrors.set(key, new)
    return change(world, mirrors=mirrors, mirrored=mirrored)


@on(ev.DeviceMapped)
def _device_mapped(world: World, _name: str, _cpu: int, event: ev.DeviceMapped) -> World:
    return _with_mirror(world, (event.device, event.mm, event.addr), Mirror(event.pfn, event.write))


@on(ev.DeviceUnmapped)
def _device_unmapped(world: World, _name: str, _cpu: int, event: ev.DeviceUnmapped) -> World:
    return _with_mirror(world, (event.device, event.mm, event.addr), None)


@on(ev.NotifierSubscribed)
def _notifier_subscribed(world: World, _name: str, _cpu: int, event: ev.NotifierSubscribed) -> World:
    return change(world, subscribed=world.subscribed | {(event.device, event.mm)})


# ---- the device's life -------------------------------------------------------------------------------------------------


@on(ev.DeviceUnbound)
def _device_unbound(world: World, _name: str, _cpu: int, event: ev.DeviceUnbound) -> World:
    return change(world, unbound=world.unbound | {event.device})
