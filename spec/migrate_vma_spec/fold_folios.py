"""Folding of what happens to folios of several pages, and to folios that the page cache or the swap cache holds."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.extras import Extras
from migrate_vma_spec.folding import booked, change_extras, is_page_of, on, put_frame, put_task, transferred
from migrate_vma_spec.objects import Phase, World, evolve
from migrate_vma_spec.vocabulary import Capability

# ---- splitting ---------------------------------------------------------------------------------------------------------


def _divided(extras: Extras, heads: range, pfn: int, pages: int) -> Extras:
    """The folio at `pfn` is several now, each with a head of its own; what held the whole holds each of them."""
    of_page = extras.heads.drop_all(range(pfn, pfn + pages))
    orders, cached, swapped = extras.orders.drop(pfn), extras.cached, extras.swapped
    for head in heads:
        for tail in range(head + 1, head + heads.step):
            of_page = of_page.set(tail, head)
        if heads.step > 1:
            orders = orders.set(head, heads.step.bit_length() - 1)
        if pfn in cached:
            file, index = cached[pfn]
            cached = cached.set(head, (file, index + head - pfn))
        if pfn in swapped:
            swapped = swapped.set(head, swapped[pfn] + head - pfn)
    return evolve(extras, heads=of_page, orders=orders, cached=cached, swapped=swapped)


@on(ev.FolioSplit)
def _folio_split(world: World, name: str, _cpu: int, event: ev.FolioSplit) -> World:
    """The splitter has the lock of each new folio, and the reference that keeps a tail alive until it gives it up."""
    pages, step = 1 << event.order, 1 << event.new_order
    heads = range(event.pfn, event.pfn + pages, step)
    old, was = world.frame(event.pfn), world
    world = evolve(world, extras=_divided(world.extras, heads, event.pfn, pages))
    task = world.task(name)
    world = put_task(world, name, evolve(task, pages=task.pages | frozenset(heads)))
    world = _hand_over(was, world, name, event.pfn)
    for head, refcount, mapcount in zip(heads, event.refcounts, event.mapcounts, strict=False):
        own = world.frame(head)
        frame = evolve(old, refcount=refcount, mapcount=mapcount, locked=True, holder=name)
        if head == event.pfn:
            world = put_frame(world, head, frame)
            continue
        frame = evolve(frame, exclusive=old.exclusive if own.exclusive is None else own.exclusive)
        world = booked(world, name, head, frame, refs=refcount - mapcount - world.cache_refs(head), locks=1)
    return world


def _hand_over(was: World, world: World, name: str, pfn: int) -> World:
    """The fault's lock and reference go with the fault page. Where that is a tail now, they are the library's at the old head,
    and the library owes them to the page.
    """
    task = world.task(name)
    fault = task.fault
    if fault is None or fault.page is None or not is_page_of(was, fault.page, pfn):
        return world
    active, new = task.active_call, world.head(fault.page)
    if new == pfn:
        return world
    if active is None or not fault.live:
        return put_task(world, name, evolve(task, faults=(*task.faults[:-1], evolve(fault, refs=0))))
    number, call = active
    locks = 1 if Capability.FAULT_LOCK in world.capabilities and Capability.REFILL not in world.capabilities else 0
    refs = 1 if fault.refs > 0 else 0
    call = evolve(call, ledger=transferred(call.ledger, pfn, new, refs, locks))
    # Its references are counted anew, from the one that the split leaves it.
    fault = evolve(fault, refs=0, split=call.phase is Phase.COLLECTING)
    task = evolve(task, calls=task.calls.set(number, call), faults=(*task.faults[:-1], fault))
    return put_task(world, name, task)


# ---- page cache and swap -----------------------------------------------------------------------------------------------


@on(ev.PageCacheAdded)
def _cache_added(world: World, _name: str, _cpu: int, event: ev.PageCacheAdded) -> World:
    world = put_frame(world, event.pfn, evolve(world.frame(event.pfn), refcount=event.refcount))
    return change_extras(world, cached=world.extras.cached.set(event.pfn, (event.file, event.index)))


@on(ev.PageCacheRemoved)
def _cache_removed(world: World, _name: str, _cpu: int, event: ev.PageCacheRemoved) -> World:
    world = put_frame(world, event.pfn, evolve(world.frame(event.pfn), refcount=event.refcount))
    return change_extras(world, cached=world.extras.cached.drop(event.pfn))


@on(ev.SwapCacheAdded)
def _swap_added(world: World, _name: str, _cpu: int, event: ev.SwapCacheAdded) -> World:
    world = put_frame(world, event.pfn, evolve(world.frame(event.pfn), refcount=event.refcount))
    return change_extras(world, swapped=world.extras.swapped.set(event.pfn, event.swap))


@on(ev.SwapCacheRemoved)
def _swap_removed(world: World, _name: str, _cpu: int, event: ev.SwapCacheRemoved) -> World:
    world = put_frame(world, event.pfn, evolve(world.frame(event.pfn), refcount=event.refcount))
    return change_extras(world, swapped=world.extras.swapped.drop(event.pfn))


@on(ev.SwapCounted)
def _swap_counted(world: World, _name: str, _cpu: int, event: ev.SwapCounted) -> World:
    swaps = world.extras.swaps
    return change_extras(world, swaps=swaps.set(event.swap, event.count) if event.count else swaps.drop(event.swap))


@on(ev.FolioMoved)
def _folio_moved(world: World, name: str, _cpu: int, event: ev.FolioMoved) -> World:
    """What held the source in the page cache or the swap cache holds the destination."""
    if not event.moved:
        return world
    if world.cache_refs(event.pfn):
        world = _caches_moved(world, event.pfn, event.dst)
    task = world.task(name)
    active = task.active_call
    if active is None:
        return world
    number, call = active
    call = evolve(call, moved=call.moved.set(event.pfn, event.dst))
    return put_task(world, name, evolve(task, calls=task.calls.set(number, call)))


def _caches_moved(world: World, src: int, dst: int) -> World:
    moved, extras = world.cache_refs(src), world.extras
    for pfn, refs in ((src, -moved), (dst, moved)):
        frame = world.frame(pfn)
        if frame.refcount is not None:
            world = put_frame(world, pfn, evolve(frame, refcount=frame.refcount + refs))
    cached, swapped = extras.cached, extras.swapped
    if src in cached:
        cached = cached.set(dst, cached[src]).drop(src)
    if src in swapped:
        swapped = swapped.set(dst, swapped[src]).drop(src)
    return change_extras(world, cached=cached, swapped=swapped)
