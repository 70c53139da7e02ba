"""Contents: what a CPU or a device must find in a virtual page, and who may write it.

A store makes the frame that it reaches the only one that holds the page's contents; a copy makes one more; nothing else makes
any. An access must reach one of them. So a lost store, a stale load, an uncleared page and a store that a COW partner sees are
all found at the first access that shows them, or when nothing runs any more and the page table names a frame that holds
something else.

Only private anonymous memory is judged: the contents of files and of shared mappings are not described here.
"""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.model.outcome import Outcome, frame_words, outcome
from migrate_vma_spec.model.state import NO_FRAMES, Frames, Key, ModelState, What, access, is_granted
from migrate_vma_spec.objects import VmaRange, World
from migrate_vma_spec.vocabulary import PteKind, VmFlags

REMAPPERS = frozenset({"mmap", "munmap", "mprotect", "exit"})
"""The operations that change VMAs. While one runs, an access falls before or after it."""

DISCARD = "madvise_dontneed"


# ---- how contents move ---------------------------------------------------------------------------------------------------


def _filled(frames: Frames, src: int, dst: int) -> Frames:
    """Those frames, after what `src` holds was written over `dst`."""
    return frames | {dst} if src in frames else frames - {dst}


def copied(state: ModelState, world: World, src: int, dst: int) -> ModelState:
    unknown = state.unknown if state.is_told(world, src) else state.unknown | {src}
    return evolve(
        state,
        pages=FrozenMap((key, _filled(frames, src, dst)) for key, frames in state.pages.items()),
        zeroed=_filled(state.zeroed, src, dst),
        unknown=_filled(unknown, src, dst),
    )


def forgotten(state: ModelState, pfn: int) -> ModelState:
    """The frame was freed, or taken from its allocator: what it holds is nobody's."""
    return evolve(
        state,
        pages=_without(state.pages, pfn),
        zeroed=state.zeroed - {pfn},
        unknown=state.unknown - {pfn},
        overtaken=FrozenMap((key, left) for key, left in _without(state.overtaken, pfn).items() if left),
    )


def _without(frames: FrozenMap[Key, Frames], pfn: int) -> FrozenMap[Key, Frames]:
    for key, copies in frames.items():
        if pfn in copies:
            frames = frames.set(key, copies - {pfn})
    return frames


def cleared(state: ModelState, pfn: int) -> ModelState:
    state = forgotten(state, pfn)
    return evolve(state, zeroed=state.zeroed | {pfn})


def stored(state: ModelState, world: World, key: Key, pfn: int) -> ModelState:
    """The page's contents are new, and in this frame alone; what others had there is gone."""
    if pfn in state.overtaken.get(key, ()):
        return state  # the store came before the discard, which took it away
    sharers = _half_forked(world, key, pfn)
    pages = _without(state.pages, pfn)
    for owner in (key, *sharers):
        pages = pages.set(owner, frozenset({pfn}))
    return evolve(state, pages=pages, zeroed=state.zeroed - {pfn}, unknown=state.unknown - {pfn})


def _half_forked(world: World, key: Key, pfn: int) -> list[Key]:
    """The child's page while a fork runs: until its last flush, stores of the parent may reach a page that was copied already."""
    mm, addr = key
    children = [task.forking[1] for task in world.tasks.values() if task.forking is not None and task.forking[0] == mm]
    return [(child, addr) for child in children if world.pte(child, addr).pfn == pfn]


def forked(state: ModelState, mm: int, child: int) -> ModelState:
    """The child begins with the parent's contents."""
    pages = state.pages
    for (owner, addr), frames in state.pages.items():
        if owner == mm:
            pages = pages.set((child, addr), frames)
    followed = state.followed | {child} if mm in state.followed else state.followed - {child}
    return evolve(state, pages=pages, followed=followed)


def entry_changed(state: ModelState, world: World, step: Step, event: ev.PteChanged) -> ModelState:
    """Fork has come to a page, or a discard has: here they take their effect."""
    key = event.mm, event.addr
    task = world.task(step.task)
    if event.new.kind is not PteKind.NONE:
        if task.forking is not None and task.forking[1] == event.mm:
            frames = state.pages.get((task.forking[0], event.addr))
            return evolve(state, pages=state.pages.drop(key) if frames is None else state.pages.set(key, frames))
        return state
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or scope.name != DISCARD or not _in_range(scope.arguments, key):
        return state
    state = evolve(state, pages=state.pages.drop(key))
    if event.old.kind is not PteKind.PRESENT or event.old.pfn is None:
        return state
    frames = state.overtaken.get(key, NO_FRAMES) | {event.old.pfn}
    return evolve(state, overtaken=state.overtaken.set(key, frames))


def _in_range(arguments: tuple[int, ...], key: Key) -> bool:
    return len(arguments) == 3 and arguments[0] == key[0] and arguments[1] <= key[1] < arguments[2]


def discard_ended(state: ModelState, arguments: tuple[int, ...]) -> ModelState:
    """Every CPU's translations are flushed: no access falls before the discard any more. Called when its scope is closed."""
    others = [
        scope.arguments
        for scopes in state.tasks.values()
        for scope in scopes
        if scope.what is What.OPERATION and scope.name == DISCARD
    ]
    gone = [key for key in state.overtaken if _in_range(arguments, key) and not any(_in_range(other, key) for other in others)]
    return evolve(state, overtaken=state.overtaken.drop_all(gone)) if gone else state


def unmapped(state: ModelState, mm: int, start: int, end: int) -> ModelState:
    gone = [key for key in (*state.pages, *state.overtaken) if key[0] == mm and start <= key[1] < end]
    return evolve(state, pages=state.pages.drop_all(gone), overtaken=state.overtaken.drop_all(gone)) if gone else state


def exited(state: ModelState, mm: int) -> ModelState:
    gone = [key for key in (*state.pages, *state.overtaken) if key[0] == mm]
    return evolve(
        state,
        pages=state.pages.drop_all(gone),
        overtaken=state.overtaken.drop_all(gone),
        followed=state.followed - {mm},
    )


# ---- what an access may find ---------------------------------------------------------------------------------------------


def is_described(vma: VmaRange | None) -> bool:
    return vma is not None and vma.anonymous and not vma.flags & VmFlags.SHARED


def _remapping(state: ModelState, mm: int) -> bool:
    return any(
        scope.what is What.OPERATION and scope.name in REMAPPERS and scope.arguments[:1] == (mm,)
        for scopes in state.tasks.values()
        for scope in scopes
    )


def allowed_access(
    state: ModelState, world: World, who: str, key: Key, pfn: int | None, write: bool, *, tlb: bool
) -> tuple[Outcome, ...]:
    """An access must be one that the VMA allows, and find the page's contents: a store changes a part of them and keeps the rest.

    `tlb`: it goes through a CPU's TLB, which a discard in flight has yet to flush.
    """
    mm, addr = key
    kind = "store" if write else "load"
    what = f"{kind} of {who} at mm {mm} addr {addr}"
    if mm not in state.followed:
        return ()
    if not is_granted(world, (mm, addr, addr + 1, access(write))):
        return () if _remapping(state, mm) else (outcome(f"{what} reached", pfn, (), frame_words),)
    if not is_described(world.vma(mm, addr)):
        return ()
    if pfn is not None and not state.is_told(world, pfn):
        return ()
    found: set[int | None] = set(state.copies(key) | (state.overtaken.get(key, NO_FRAMES) if tlb else NO_FRAMES))
    if key not in state.pages and not write:
        found.add(None)
    return (outcome(f"{what} found what is in", pfn, found, frame_words),)


# ---- what is reachable when nothing runs -----------------------------------------------------------------------------------


def allowed_at_rest(state: ModelState, world: World) -> tuple[Outcome, ...]:
    """With nothing open, every entry, device mapping and TLB leads to the contents of its page, and written pages have one."""
    found = [found for key in sorted({*world.ptes, *state.pages}) if (found := _entry_at_rest(state, world, key)) is not None]
    for device, mm, addr in sorted(world.mirrors):
        pfn = world.mirrors[device, mm, addr].pfn
        found += _reached(state, world, f"device {device} maps mm {mm} addr {addr} to", (mm, addr), pfn)
    for key, cpus in world.tlbs.items():
        for cpu in sorted(cpus):
            found += _reached(state, world, f"CPU {cpu}'s TLB maps mm {key[0]} addr {key[1]} to", key, cpus[cpu].pfn)
    return tuple(found)


def _entry_at_rest(state: ModelState, world: World, key: Key) -> Outcome | None:
    mm, addr = key
    if mm not in state.followed or not is_described(world.vma(mm, addr)):
        return None
    pte = world.pte(mm, addr)
    if pte.kind is PteKind.MIGRATION:
        what = f"with nothing running, mm {mm} addr {addr} is"
        return outcome(what, pte.kind, (PteKind.NONE, PteKind.PRESENT, PteKind.DEVICE_PRIVATE), lambda kind: str(kind.value))
    if pte.pfn is not None and not state.is_told(world, pte.pfn):
        return None
    what = f"with nothing running, mm {mm} addr {addr} leads to"
    found: set[int | None] = set(state.copies(key))
    if key not in state.pages:
        found.add(None)
    return outcome(what, pte.pfn, found, frame_words)


def _reached(state: ModelState, world: World, what: str, key: Key, pfn: int | None) -> list[Outcome]:
    if key[0] not in state.followed or not is_described(world.vma(*key)) or (pfn is not None and not state.is_told(world, pfn)):
        return []
    found: set[int | None] = set(state.copies(key))
    if key not in state.pages:
        found.add(None)
    return [outcome(f"with nothing running, {what}", pfn, found, frame_words)]
