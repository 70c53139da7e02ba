"""Folding of what happens to address spaces, and to devices: their mirrors, their notifiers, their life."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.fold_tables import with_pmd, with_pte
from migrate_vma_spec.folding import on, put_task
from migrate_vma_spec.objects import Invalidation, Mirror, VmaRange, World, evolve
from migrate_vma_spec.vocabulary import PTE_NONE

# ---- address spaces ----------------------------------------------------------------------------------------------------


def _without(vmas: tuple[VmaRange, ...], start: int, end: int) -> list[VmaRange]:
    """These VMAs less [start, end): what sticks out on either side stays."""
    left: list[VmaRange] = []
    for vma in vmas:
        if vma.start < min(vma.end, start):
            left.append(evolve(vma, end=min(vma.end, start)))
        if max(vma.start, end) < vma.end:
            left.append(_from(vma, max(vma.start, end)))
    return left


def _from(vma: VmaRange, start: int) -> VmaRange:
    """What is left of a VMA from `start` on."""
    return evolve(vma, start=start, index=vma.index + start - vma.start if vma.file is not None else 0)


def _within(vmas: tuple[VmaRange, ...], start: int, end: int) -> list[VmaRange]:
    """What these VMAs map in [start, end)."""
    parts = [vma for vma in vmas if max(vma.start, start) < min(vma.end, end)]
    return [evolve(_from(vma, max(vma.start, start)), end=min(vma.end, end)) for vma in parts]


def _put_vmas(world: World, mm: int, vmas: list[VmaRange]) -> World:
    vmas.sort(key=lambda vma: vma.start)
    return evolve(world, mms=world.mms.set(mm, tuple(vmas)))


@on(ev.MmCreated)
def _mm_created(world: World, _name: str, _cpu: int, event: ev.MmCreated) -> World:
    return evolve(world, mms=world.mms.set(event.mm, ()))


@on(ev.MmForked)
def _mm_forked(world: World, name: str, _cpu: int, event: ev.MmForked) -> World:
    world = evolve(world, mms=world.mms.set(event.child, world.mms.get(event.mm, ())))
    return put_task(world, name, evolve(world.task(name), forking=(event.mm, event.child)))


@on(ev.MmExited)
def _mm_exited(world: World, _name: str, _cpu: int, event: ev.MmExited) -> World:
    for key in [key for key in world.ptes if key[0] == event.mm]:
        world = with_pte(world, key, PTE_NONE)
    for key in [key for key in world.extras.pmds if key[0] == event.mm]:
        world = with_pmd(world, key, world.extras.leaf_pages, PTE_NONE)
    for mirror in [key for key in world.mirrors if key[1] == event.mm]:
        world = _with_mirror(world, mirror, None)
    return evolve(
        world,
        mms=world.mms.drop(event.mm),
        tlbs=world.tlbs.drop_all(key for key in world.tlbs if key[0] == event.mm),
        subscribed=frozenset(pair for pair in world.subscribed if pair[1] != event.mm),
    )


@on(ev.VmaMapped)
def _vma_mapped(world: World, _name: str, _cpu: int, event: ev.VmaMapped) -> World:
    """A VMA over an old one takes its place."""
    new = VmaRange(event.start, event.end, event.flags, event.anonymous, event.file, event.index)
    return _put_vmas(world, event.mm, [*_without(world.mms.get(event.mm, ()), event.start, event.end), new])


@on(ev.VmaChanged)
def _vma_changed(world: World, _name: str, _cpu: int, event: ev.VmaChanged) -> World:
    vmas = world.mms.get(event.mm, ())
    changed = [evolve(vma, flags=event.flags) for vma in _within(vmas, event.start, event.end)]
    return _put_vmas(world, event.mm, [*_without(vmas, event.start, event.end), *changed])


@on(ev.VmaMoved)
def _vma_moved(world: World, _name: str, _cpu: int, event: ev.VmaMoved) -> World:
    vmas, by = world.mms.get(event.mm, ()), event.to - event.start
    moved = [evolve(vma, start=vma.start + by, end=vma.end + by) for vma in _within(vmas, event.start, event.end)]
    left = _without(tuple(_without(vmas, event.start, event.end)), event.to, event.end + by)
    return _put_vmas(world, event.mm, [*left, *moved])


@on(ev.VmaUnmapped)
def _vma_unmapped(world: World, _name: str, _cpu: int, event: ev.VmaUnmapped) -> World:
    return _put_vmas(world, event.mm, _without(world.mms.get(event.mm, ()), event.start, event.end))


def _order(range_: Invalidation) -> tuple[str, int, int, str, str]:
    return range_.task, range_.start, range_.end, range_.reason.value, range_.owner or ""


@on(ev.InvalidateBegan)
def _invalidate_began(world: World, name: str, _cpu: int, event: ev.InvalidateBegan) -> World:
    new = Invalidation(name, event.start, event.end, event.reason, event.owner)
    ranges = sorted((*world.invalidations.get(event.mm, ()), new), key=_order)
    return evolve(world, invalidations=world.invalidations.set(event.mm, tuple(ranges)))


@on(ev.InvalidateEnded)
def _invalidate_ended(world: World, name: str, _cpu: int, event: ev.InvalidateEnded) -> World:
    ranges = list(world.invalidations.get(event.mm, ()))
    for range_ in ranges:
        if (range_.task, range_.start, range_.end) == (name, event.start, event.end):
            ranges.remove(range_)
            break
    left = tuple(ranges)
    invalidations = world.invalidations.set(event.mm, left) if left else world.invalidations.drop(event.mm)
    return evolve(world, invalidations=invalidations)


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
    return evolve(world, mirrors=mirrors, mirrored=mirrored)


@on(ev.DeviceMapped)
def _device_mapped(world: World, _name: str, _cpu: int, event: ev.DeviceMapped) -> World:
    return _with_mirror(world, (event.device, event.mm, event.addr), Mirror(event.pfn, event.write))


@on(ev.DeviceUnmapped)
def _device_unmapped(world: World, _name: str, _cpu: int, event: ev.DeviceUnmapped) -> World:
    return _with_mirror(world, (event.device, event.mm, event.addr), None)


@on(ev.NotifierSubscribed)
def _notifier_subscribed(world: World, _name: str, _cpu: int, event: ev.NotifierSubscribed) -> World:
    return evolve(world, subscribed=world.subscribed | {(event.device, event.mm)})


# ---- the device's life -------------------------------------------------------------------------------------------------


@on(ev.DeviceUnbound)
def _device_unbound(world: World, _name: str, _cpu: int, event: ev.DeviceUnbound) -> World:
    return evolve(world, unbound=world.unbound | {event.device})
