"""What is in which page, for the clause on contents: each store makes a new token. No clause is here.

Rules: a token is known where the trace showed the store, the copy or the clearing that put it there; what is not known is absent,
and is never judged. Pages of the page cache belong to their file: what an address must read there is the file's, and no token of
the address's own.
"""

from __future__ import annotations

from attrs import evolve, frozen

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import Changed, addresses_of
from migrate_vma_spec.extras import EMPTY, Key, piece
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import NAMING_KINDS, Stage, World, ptl
from migrate_vma_spec.registry import KEPT, Judgement
from migrate_vma_spec.vocabulary import PteKind, VmFlags

ZERO = 0
STALE = -1
"""Contents: zeroes; what a frame held for its last owner; and, from 1 on, what some store left."""

Tokens = FrozenMap[int, int]


@frozen
class Contents:
    """What is where. `frames` holds the content of each frame, `expected` what each virtual page must read as (absent: zeroes),
    `slots` what was written to each swap slot.

    `copied` are the frames that got their content by a copy; `zapped` the addresses that were unmapped while a TLB could still
    reach the old page: until the flush, what an access there sees is nobody's fault. `cleared` are the tokens of entries that are
    empty for as long as the page-table lock is held: what takes the entry's place may stand for the same page.
    """

    frames: Tokens = EMPTY
    expected: FrozenMap[Key, int] = EMPTY
    copied: frozenset[int] = frozenset()
    zapped: frozenset[Key] = frozenset()
    slots: Tokens = EMPTY
    cleared: FrozenMap[Key, int] = EMPTY


def renamed(contents: Contents) -> Contents:
    """The same contents under the smallest names: numbered by first occurrence, so that equal situations are equal values."""
    tokens = {ZERO: ZERO, STALE: STALE}
    for _, token in sorted(contents.frames.items()):
        tokens.setdefault(token, len(tokens) - 1)
    for _, token in sorted(contents.expected.items()):
        tokens.setdefault(token, len(tokens) - 1)
    for _, token in (*sorted(contents.slots.items()), *sorted(contents.cleared.items())):
        tokens.setdefault(token, len(tokens) - 1)
    if all(old == new for old, new in tokens.items()):
        return contents
    return evolve(
        contents,
        frames=FrozenMap((pfn, tokens[token]) for pfn, token in contents.frames.items()),
        expected=FrozenMap((key, tokens[token]) for key, token in contents.expected.items()),
        slots=FrozenMap((slot, tokens[token]) for slot, token in contents.slots.items()),
        cleared=FrozenMap((key, tokens[token]) for key, token in contents.cleared.items()),
    )


def _expect(contents: Contents, key: Key, token: int) -> Contents:
    expected = contents.expected.drop(key) if token == ZERO else contents.expected.set(key, token)
    return evolve(contents, expected=expected)


def _hold(contents: Contents, pfn: int, token: int | None) -> Contents:
    if token is None:
        return evolve(contents, frames=contents.frames.drop(pfn), copied=contents.copied - {pfn})
    return evolve(contents, frames=contents.frames.set(pfn, token), copied=contents.copied - {pfn})


def forget_addresses(contents: Contents, mm: int, start: int, end: float) -> Contents:
    """Nothing is mapped in [start, end) any more."""
    gone = [key for key in contents.expected if key[0] == mm and start <= key[1] < end]
    zapped = frozenset(key for key in contents.zapped if key[0] != mm or not start <= key[1] < end)
    return evolve(contents, expected=contents.expected.drop_all(gone), zapped=zapped)


def flushed(contents: Contents, event: ev.TlbFlushed) -> Contents:
    """No TLB reaches what was unmapped in this range."""
    gone = frozenset(key for key in contents.zapped if key[0] == event.mm and event.start <= key[1] < event.end)
    return evolve(contents, zapped=contents.zapped - gone) if gone else contents


def move_addresses(contents: Contents, event: ev.VmaMoved) -> Contents:
    """What was expected in a range is expected where mremap put it."""
    moved = {key: token for key, token in contents.expected.items() if key[0] == event.mm and event.start <= key[1] < event.end}
    contents = forget_addresses(contents, event.mm, event.to, event.to + event.end - event.start)
    expected = contents.expected.drop_all(moved)
    for (mm, addr), token in moved.items():
        expected = expected.set((mm, addr - event.start + event.to), token)
    return evolve(contents, expected=expected)


Access = ev.CpuAccessed | ev.DeviceAccessed


def _sharers(world: World, key: Key, pfn: int) -> list[Key]:
    """Where else this page is mapped by a fork that is not finished: what its parent still writes, the child may see."""
    children = {task.forking[1] for task in world.tasks.values() if task.forking is not None}
    return [other for other in world.entries(pfn, NAMING_KINDS) if other != key and other[0] in children] if children else []


def access(contents: Contents, world: World, event: Access) -> tuple[Contents, Judgement]:
    """A load finds, or a store makes, the content of an address."""
    key, pfn = (event.mm, event.addr), event.pfn
    if pfn is None or (key in contents.zapped and world.pte(*key).pfn != pfn):
        return contents, None
    vma = world.vma(event.mm, event.addr)
    of_file = world.head(pfn) in world.extras.cached
    wanted = contents.expected.get(key, ZERO if vma is not None and vma.anonymous else None)
    seen = None if of_file else contents.frames.get(pfn)
    judgement: Judgement = None
    if wanted is not None and seen is not None:
        judgement = KEPT if pfn in contents.copied else None
        if seen != wanted:
            who = event.device if isinstance(event, ev.DeviceAccessed) else "a CPU"
            what = "what the frame held before" if seen == STALE else "zeroes" if seen == ZERO else "another store"
            judgement = f"{who} reached pfn {pfn} for mm {event.mm} addr {event.addr}, and found {what} instead of the last store"
            judgement = judgement if wanted != ZERO else judgement.replace("the last store", "zeroes")
    return (_stored(contents, world, key, pfn, of_file) if event.write else contents), judgement


def _stored(contents: Contents, world: World, key: Key, pfn: int, of_file: bool) -> Contents:
    token = 1 + max((*contents.frames.values(), *contents.expected.values(), *contents.slots.values()), default=0)
    contents = evolve(contents, frames=contents.frames.set(pfn, token))
    if of_file:
        return evolve(contents, expected=contents.expected.drop(key))
    for other in (key, *_sharers(world, key, pfn)):
        contents = _expect(contents, other, token)
    return contents


def entry_changed(contents: Contents, world: World, step: ev.Step, event: Changed) -> Contents:
    """Fork hands a child what its parent has; a zap leaves zeroes."""
    task = world.task(step.task)
    if task.forking is not None and task.forking[1] == event.mm and event.old.kind is PteKind.NONE:
        for addr in addresses_of(event):
            contents = _expect(contents, (event.mm, addr), contents.expected.get((task.forking[0], addr), ZERO))
        return contents
    handling = task.fault is not None and task.fault.stage is Stage.HANDLING
    if event.new.kind is PteKind.PRESENT and task.active_call is None and not task.faults and _is_guarded(world, event):
        return _copied_in(contents, event)
    if contents.cleared and event.new.kind in STANDS_FOR_A_PAGE:
        return _set_anew(contents, event)
    left = event.old.kind in NAMING_KINDS or event.old.kind is PteKind.SWAP
    if not left or event.new.kind is not PteKind.NONE or task.active_call is not None or handling:
        return contents
    for addr in addresses_of(event):
        key = (event.mm, addr)
        if key in contents.expected and task.holds(ptl(event.mm)):
            contents = evolve(contents, cleared=contents.cleared.set(key, contents.expected[key]))
        contents = _zapped(contents, world, key, piece(event.old, addr - event.addr).pfn)
    return contents


def _is_guarded(world: World, event: Changed) -> bool:
    vma = world.vma(event.mm, event.addr) if event.old.kind in (PteKind.NONE, PteKind.MARKER) else None
    return vma is not None and bool(vma.flags & (VmFlags.UFFD_MISSING | VmFlags.UFFD_WP))


def _copied_in(contents: Contents, event: Changed) -> Contents:
    """A userfaultfd's monitor answers a fault with a page of its own making: a store."""
    token = None if event.new.pfn is None else contents.frames.get(event.new.pfn)
    return contents if token is None else _expect(contents, (event.mm, event.addr), token)


STANDS_FOR_A_PAGE = NAMING_KINDS | {PteKind.SWAP}


def _set_anew(contents: Contents, event: Changed) -> Contents:
    """The entry was empty only until something else stood for the page."""
    for key in ((event.mm, addr) for addr in addresses_of(event)):
        if key in contents.cleared:
            contents = _expect(contents, key, contents.cleared[key])
            contents = evolve(contents, cleared=contents.cleared.drop(key), zapped=contents.zapped - {key})
    return contents


def lock_dropped(contents: Contents, event: ev.LockDropped) -> Contents:
    """What is empty now stays empty."""
    gone = [key for key in contents.cleared if ptl(key[0]) == event.lock]
    return evolve(contents, cleared=contents.cleared.drop_all(gone)) if gone else contents


def _zapped(contents: Contents, world: World, key: Key, pfn: int | None) -> Contents:
    """From now on the address reads as zeroes."""
    contents = _expect(contents, key, ZERO)
    reachable = pfn is not None and any(pte.pfn == pfn for pte in world.tlbs.get(key, EMPTY).values())
    return evolve(contents, zapped=contents.zapped | {key}) if reachable else contents


def page_event(contents: Contents, event: ev.Event) -> Contents:
    """What a copy, a clearing, input and output, an allocation or a free make of the contents of frames."""
    if isinstance(event, ev.PageCleared):
        return _hold(contents, event.pfn, ZERO)
    if isinstance(event, ev.PageCopied):
        token = contents.frames.get(event.src)
        contents = _hold(contents, event.dst, token)
        return contents if token is None else evolve(contents, copied=contents.copied | {event.dst})
    if isinstance(event, ev.PageFilled):
        return _hold(contents, event.pfn, contents.slots.get(event.index) if event.file is None else None)
    if isinstance(event, ev.PageWritten) and event.file is None:
        token = contents.frames.get(event.pfn)
        return evolve(
            contents, slots=contents.slots.drop(event.index) if token is None else contents.slots.set(event.index, token)
        )
    if isinstance(event, ev.SwapCounted) and not event.count:
        return evolve(contents, slots=contents.slots.drop(event.swap))
    if isinstance(event, ev.FolioAllocated | ev.FolioFreed):
        for pfn in range(event.pfn, event.pfn + (1 << event.order)):
            contents = _hold(contents, pfn, STALE if isinstance(event, ev.FolioAllocated) else None)
    return contents
