"""Rows of the table of events: contents, page tables, address spaces."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.extras import piece
from migrate_vma_spec.model import calls, contents, operations, reach
from migrate_vma_spec.model.outcome import Outcome
from migrate_vma_spec.model.state import ModelState, Seen, Store, What, replaced, surveyed
from migrate_vma_spec.model.table import ALLOWED, on
from migrate_vma_spec.objects import World, evolve
from migrate_vma_spec.vocabulary import PteKind

# ---- contents --------------------------------------------------------------------------------------------------------


@on(ev.PageCopied)
def _page_copied(state: ModelState, world: World, _step: Step, event: ev.PageCopied) -> ModelState:
    return contents.copied(state, world, event.src, event.dst)


@on(ev.PageCleared)
def _page_cleared(state: ModelState, _world: World, _step: Step, event: ev.PageCleared) -> ModelState:
    return contents.cleared(state, event.pfn)


@on(ev.PageFilled)
def _page_filled(state: ModelState, world: World, _step: Step, event: ev.PageFilled) -> ModelState:
    return contents.read_in(state, world, Store(event.file, event.index), event.pfn)


@on(ev.PageWritten)
def _page_written(state: ModelState, world: World, _step: Step, event: ev.PageWritten) -> ModelState:
    return contents.copied(state, world, event.pfn, Store(event.file, event.index))


@on(ev.FolioAllocated, ev.FolioFreed)
def _forgotten(state: ModelState, world: World, _step: Step, event: ev.FolioAllocated | ev.FolioFreed) -> ModelState:
    return contents.frames_freed(state, world, range(event.pfn, event.pfn + (1 << event.order)))


@on(ev.SwapCounted)
def _swap_counted(state: ModelState, world: World, _step: Step, event: ev.SwapCounted) -> ModelState:
    """With no entry that holds it, and no page in the swap cache, a slot is free."""
    if event.count or event.swap in world.extras.swapped.values():
        return state
    return contents.frames_freed(state, world, [Store(None, event.swap)])


@on(ev.SwapCacheRemoved)
def _swap_cache_removed(state: ModelState, world: World, _step: Step, event: ev.SwapCacheRemoved) -> ModelState:
    if world.extras.swaps.get(event.swap):
        return state
    return contents.frames_freed(state, world, [Store(None, event.swap)])


@on(ev.PageCacheRemoved)
def _page_cache_removed(state: ModelState, _world: World, step: Step, event: ev.PageCacheRemoved) -> ModelState:
    """Where a hole is punched, the contents go with the page."""
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or scope.name != contents.PUNCH or scope.arguments != (event.file, event.index):
        return state
    state = replaced(state, step.task, scope, evolve(scope, seen=scope.seen | Seen.ACCESSED))
    return contents.punched(state, event.file, event.index)


@on(ev.FolioLazyfreed)
def _lazyfreed(state: ModelState, world: World, step: Step, event: ev.FolioLazyfreed) -> ModelState:
    return contents.lazyfreed(state, world, step, event.pfn)


def _cpu_access_allowed(state: ModelState, world: World, step: Step, event: ev.CpuAccessed) -> tuple[Outcome, ...]:
    key = event.mm, event.addr
    return reach.allowed_access(state, world, f"CPU {step.cpu}", key, event.pfn, event.write, tlb=True)


def _device_access_allowed(state: ModelState, world: World, _step: Step, event: ev.DeviceAccessed) -> tuple[Outcome, ...]:
    key = event.mm, event.addr
    return reach.allowed_access(state, world, f"device {event.device}", key, event.pfn, event.write, tlb=False)


ALLOWED[ev.CpuAccessed] = _cpu_access_allowed
ALLOWED[ev.DeviceAccessed] = _device_access_allowed


@on(ev.CpuAccessed, ev.DeviceAccessed)
def _accessed(state: ModelState, world: World, step: Step, event: ev.CpuAccessed | ev.DeviceAccessed) -> ModelState:
    device = event.device if isinstance(event, ev.DeviceAccessed) else None
    scope = state.scope(step.task, What.OPERATION)
    if scope is not None and operations.is_its_access(scope, device, event.mm, event.addr, event.write):
        state = replaced(state, step.task, scope, evolve(scope, seen=scope.seen | Seen.ACCESSED))
    key = event.mm, event.addr
    state = contents.loaded(state, world, key, event.pfn) if state.lazy else state
    return contents.stored(state, world, key, event.pfn) if event.write and event.pfn is not None else state


# ---- page tables -----------------------------------------------------------------------------------------------------


@on(ev.PteChanged)
def _pte_changed(state: ModelState, world: World, step: Step, event: ev.PteChanged) -> ModelState:
    state = _cleared(state, step, event.mm, range(event.addr, event.addr + 1), event.new.kind)
    state = contents.entry_changed(state, world, step, (event.mm, event.addr), event.old, event.new)
    return calls.entry_changed(state, world, step, event.mm, range(event.addr, event.addr + 1), event.old)


@on(ev.PmdRead)
def _pmd_read(state: ModelState, world: World, step: Step, event: ev.PmdRead) -> ModelState:
    return calls.nothing_read(state, world, step, event) if event.pmd.kind is PteKind.NONE else state


@on(ev.PmdChanged)
def _pmd_changed(state: ModelState, world: World, step: Step, event: ev.PmdChanged) -> ModelState:
    """A leaf is an entry for each of its pages; a page table that is hung or taken away changes none of them."""
    if PteKind.TABLE in (event.old.kind, event.new.kind):
        return state
    addrs = range(event.addr, event.addr + event.pages)
    state = _cleared(state, step, event.mm, addrs, event.new.kind)
    for offset, addr in enumerate(addrs):
        key = event.mm, addr
        state = contents.entry_changed(state, world, step, key, piece(event.old, offset), piece(event.new, offset))
    return calls.entry_changed(state, world, step, event.mm, addrs, event.old)


def _cleared(state: ModelState, step: Step, mm: int, addrs: range, kind: PteKind) -> ModelState:
    """What a discard had to clear."""
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or not scope.left or kind not in contents.GONE or scope.arguments[0] != mm:
        return state
    return replaced(state, step.task, scope, evolve(scope, left=scope.left.difference(addrs)))


# ---- address spaces --------------------------------------------------------------------------------------------------


@on(ev.MmCreated)
def _mm_created(state: ModelState, _world: World, _step: Step, event: ev.MmCreated) -> ModelState:
    return evolve(state, followed=state.followed | {event.mm})


@on(ev.MmForked)
def _mm_forked(state: ModelState, world: World, _step: Step, event: ev.MmForked) -> ModelState:
    return contents.forked(surveyed(state, world, event.child), event.mm, event.child)


@on(ev.MmExited)
def _mm_exited(state: ModelState, world: World, _step: Step, event: ev.MmExited) -> ModelState:
    return contents.exited(surveyed(state, world, event.mm), event.mm)


@on(ev.VmaMapped, ev.VmaChanged)
def _vma_mapped(state: ModelState, world: World, _step: Step, event: ev.VmaMapped | ev.VmaChanged) -> ModelState:
    return surveyed(state, world, event.mm)


@on(ev.VmaMoved)
def _vma_moved(state: ModelState, world: World, _step: Step, event: ev.VmaMoved) -> ModelState:
    return contents.moved(surveyed(state, world, event.mm), event.mm, event.start, event.end, event.to)


@on(ev.VmaUnmapped)
def _vma_unmapped(state: ModelState, world: World, _step: Step, event: ev.VmaUnmapped) -> ModelState:
    return contents.unmapped(surveyed(state, world, event.mm), event.mm, event.start, event.end)
