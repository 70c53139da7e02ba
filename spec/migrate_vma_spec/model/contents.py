"""Contents: where they are, and how they move.

A store makes the frame that it reaches the only place that holds the page's contents; a copy, a write to a file or to swap,
and a read from there make one more; nothing else makes any. What an access may then find is said in `reach.py`.

- A shared mapping shows the pages of its file; a private one shows them too, until a page gets a frame of its own.
- What a file holds before the trace wrote it is told by reading it in. A file of no name (shared anonymous memory) begins
  with zeros.
- MADV_DONTNEED makes the contents zero at once, MADV_FREE at any time until the next store.
- mremap takes the contents along, fork doubles them, and a userfaultfd's copy is a store of the monitor.
"""

from __future__ import annotations

from collections.abc import Iterable

from migrate_vma_spec.events import Step
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.model.state import NO_FRAMES, NO_PLACES, Key, ModelState, Page, Place, Places, Scope, Seen, Store, What
from migrate_vma_spec.objects import EMPTY, PAGE_KINDS, World, evolve
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFlags

DISCARD, FREE, MOVE = "madvise_dontneed", "madvise_free", "mremap"
USER_COPY, SERVE = "uffd_copy", "uffd_serve"
PUNCH = "punch_hole"

GONE = frozenset({PteKind.NONE, PteKind.MARKER})


# ---- which page an address shows -------------------------------------------------------------------------------------


def page_of(state: ModelState, world: World, key: Key) -> Page | None:
    """The page whose contents this address shows, or None where the trace does not describe them."""
    if state.moved:
        key = state.moved.get(key, key)
    vma = world.vma(*key)
    if vma is None:
        return None
    if vma.file is None:
        return key if vma.anonymous and not vma.flags & VmFlags.SHARED else None
    if not vma.flags & VmFlags.SHARED and key in state.pages:
        return key
    return Store(vma.file, vma.index + key[1] - vma.start)


def is_mapped(world: World, store: Store) -> bool:
    """Some address space maps this page of a file."""
    return any(
        vma.file == store.file and vma.index <= store.index < vma.index + vma.end - vma.start
        for vmas in world.mms.values()
        for vma in vmas
    )


# ---- how contents move -----------------------------------------------------------------------------------------------


def _filled(places: Places, src: Place, dst: Place) -> Places:
    """Those places, after what `src` holds was written over `dst`."""
    return places | {dst} if src in places else places - {dst}


def copied(state: ModelState, world: World, src: Place, dst: Place) -> ModelState:
    unknown = state.unknown if state.is_told(world, src) else state.unknown | {src}
    return evolve(
        state,
        pages=FrozenMap((page, _filled(places, src, dst)) for page, places in state.pages.items()),
        zeroed=_filled(state.zeroed, src, dst),
        unknown=_filled(unknown, src, dst),
    )


def read_in(state: ModelState, world: World, store: Store, pfn: int) -> ModelState:
    """A page was filled from its store. The first time that a file's page is read, this tells that its disk has the contents."""
    if store.file is not None and store not in state.pages and store not in state.zeroed:
        state = evolve(state, pages=state.pages.set(store, frozenset({store})))
    return copied(state, world, store, pfn)


def forgotten(state: ModelState, place: Place) -> ModelState:
    """The frame was freed, or taken from its allocator, or the slot is free: what it holds is nobody's."""
    overtaken = state.overtaken
    if overtaken and isinstance(place, int):
        less = ((key, frames - {place}) for key, frames in overtaken.items())
        overtaken = FrozenMap((key, frames) for key, frames in less if frames)
    return evolve(
        state,
        pages=_without(state.pages, place),
        zeroed=state.zeroed - {place},
        unknown=state.unknown - {place},
        overtaken=overtaken,
    )


def frames_freed(state: ModelState, world: World, frames: Iterable[Place]) -> ModelState:
    """So many places are nobody's now. A file that nobody maps, of which nothing is left, is gone as well."""
    for place in frames:
        state = forgotten(state, place)
    lost = [page for page, places in state.pages.items() if not places and isinstance(page, Store) and not is_mapped(world, page)]
    return evolve(state, pages=state.pages.drop_all(lost)) if lost else state


def _without(pages: FrozenMap[Page, Places], place: Place) -> FrozenMap[Page, Places]:
    for page, places in pages.items():
        if place in places:
            pages = pages.set(page, places - {place})
    return pages


def cleared(state: ModelState, pfn: int) -> ModelState:
    state = forgotten(state, pfn)
    return evolve(state, zeroed=state.zeroed | {pfn})


def stored(state: ModelState, world: World, key: Key, pfn: int) -> ModelState:
    """The page's contents are new, and in this frame alone; what others had there is gone."""
    page = page_of(state, world, key)
    if page is None or pfn in state.overtaken.get(key, NO_FRAMES):
        return state  # nobody describes it, or the store came before the discard, which took it away
    pages = _without(state.pages, pfn)
    for owner in (page, *_half_forked(world, page, pfn)):
        pages = pages.set(owner, frozenset({pfn}))
    lazy = state.lazy
    if page in lazy and not any(_in_range(scope.arguments, key) for scope in state.operations() if scope.name == FREE):
        lazy = frozenset(other for other in lazy if other != page)
    return evolve(state, pages=pages, zeroed=state.zeroed - {pfn}, unknown=state.unknown - {pfn}, lazy=lazy)


def _half_forked(world: World, page: Page, pfn: int) -> list[Key]:
    """The child's page while a fork runs: until its last flush, stores of the parent may reach a page that was copied already."""
    if isinstance(page, Store):
        return []
    mm, addr = page
    children = [task.forking[1] for task in world.tasks.values() if task.forking is not None and task.forking[0] == mm]
    return [(child, addr) for child in children if world.pte(child, addr).pfn == pfn]


def loaded(state: ModelState, world: World, key: Key, pfn: int | None) -> ModelState:
    """Who finds zeros in a page that MADV_FREE gave up will not find the old contents there again."""
    if key not in state.lazy or (pfn is not None and pfn in state.pages.get(key, NO_PLACES)):
        return state
    return evolve(state, pages=state.pages.drop(key), lazy=state.lazy - {key})


# ---- address spaces --------------------------------------------------------------------------------------------------


def forked(state: ModelState, mm: int, child: int) -> ModelState:
    """The child begins with the parent's contents."""
    pages, lazy = state.pages, state.lazy
    for page, places in state.pages.items():
        if not isinstance(page, Store) and page[0] == mm:
            pages = pages.set((child, page[1]), places)
    if lazy:
        lazy |= {(child, addr) for owner, addr in lazy if owner == mm}
    followed = state.followed | {child} if mm in state.followed else state.followed - {child}
    return evolve(state, pages=pages, followed=followed, lazy=lazy)


def moved(state: ModelState, mm: int, start: int, end: int, to: int) -> ModelState:
    """mremap: what these addresses showed is elsewhere now. Until it ends, a CPU may still use the old ones through its TLB."""
    renamed = {(mm, addr): (mm, addr - start + to) for addr in range(start, end)}
    return evolve(
        state,
        pages=FrozenMap((page if isinstance(page, Store) else renamed.get(page, page), at) for page, at in state.pages.items()),
        overtaken=FrozenMap((renamed.get(key, key), frames) for key, frames in state.overtaken.items()),
        lazy=frozenset(renamed.get(key, key) for key in state.lazy),
        moved=FrozenMap({**state.moved, **renamed}),
    )


def _dropped(state: ModelState, gone: Iterable[Key]) -> ModelState:
    keys = frozenset(gone)
    if not keys:
        return state
    return evolve(state, pages=state.pages.drop_all(keys), overtaken=state.overtaken.drop_all(keys), lazy=state.lazy - keys)


def _keys(state: ModelState) -> set[Key]:
    """The virtual pages of which the model knows something."""
    return {page for page in (*state.pages, *state.overtaken, *state.lazy) if not isinstance(page, Store)}


def unmapped(state: ModelState, mm: int, start: int, end: int) -> ModelState:
    return _dropped(state, (key for key in _keys(state) if key[0] == mm and start <= key[1] < end))


def exited(state: ModelState, mm: int) -> ModelState:
    state = _dropped(state, (key for key in _keys(state) if key[0] == mm))
    return evolve(state, followed=state.followed - {mm})


# ---- what the change of an entry does --------------------------------------------------------------------------------


def entry_changed(state: ModelState, world: World, step: Step, key: Key, old: Pte, new: Pte) -> ModelState:
    """Fork has come to a page, a discard has, or a page got a frame of its own: here they take their effect."""
    if new.kind in GONE:
        return _entry_gone(state, world, step, key, old, new)
    task = world.task(step.task)
    if task.forking is not None and task.forking[1] == key[0]:
        places = state.pages.get((task.forking[0], key[1]))
        return evolve(state, pages=state.pages.drop(key) if places is None else state.pages.set(key, places))
    if new.kind is PteKind.HWPOISON:
        return _lost(state, world, key)
    if old.kind is PteKind.MIGRATION or new.kind not in PAGE_KINDS or new.pfn is None:
        return state
    scope = state.scope(step.task, What.OPERATION)
    if scope is not None and old.kind in GONE and _source(scope, key) is not None:
        return _answered(state, world, step, key, _source(scope, key), new.pfn)
    vma = world.vma(*key)
    if vma is None or vma.file is None or vma.flags & VmFlags.SHARED or world.head(new.pfn) in world.extras.cached:
        return state
    return _own(state, step, key, Store(vma.file, vma.index + key[1] - vma.start), new.pfn)


def _source(scope: Scope, key: Key) -> Key | None:
    """The page that a userfaultfd's monitor copies to this address."""
    numbers = list(scope.arguments)
    if scope.name == USER_COPY and numbers[:2] == list(key) and len(numbers) >= 3:
        return key[0], numbers[2]
    serves = scope.name == SERVE and len(numbers) == 2 and numbers[0] == key[0]
    return (key[0], numbers[1]) if serves else None


def _answered(state: ModelState, world: World, step: Step, key: Key, source: Key | None, pfn: int) -> ModelState:
    """The page is what the monitor's is. A store to that, in between, may have outdated the copy."""
    page, model = page_of(state, world, key), None if source is None else page_of(state, world, source)
    if page is None or model is None:
        return state
    if pfn not in state.copies(model) and not state.alone(step.task):
        return evolve(state, pages=state.pages.set(page, frozenset({pfn})))
    return evolve(state, pages=state.pages.set(page, state.pages[model]) if model in state.pages else state.pages.drop(page))


def _own(state: ModelState, step: Step, key: Key, store: Store, pfn: int) -> ModelState:
    """A private mapping of a file gets a page of its own: a copy, which a store to the file in between may have outdated."""
    if key in state.pages:
        return state
    places = state.copies(store)
    if pfn not in places and not state.alone(step.task):
        places = frozenset[Place]({pfn})
    return evolve(state, pages=state.pages.set(key, places))


def _entry_gone(state: ModelState, world: World, step: Step, key: Key, old: Pte, new: Pte) -> ModelState:
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or not _discards(scope, old) or not _in_range(scope.arguments, key):
        return state
    vma = world.vma(*key)
    if vma is not None and vma.file is not None and key not in state.pages:
        return state  # the contents are the file's
    state = evolve(state, pages=state.pages.drop(key), lazy=state.lazy - {key} if state.lazy else state.lazy)
    if old.kind is not PteKind.PRESENT or old.pfn is None:
        return state
    frames = state.overtaken.get(key, NO_FRAMES) | {old.pfn}
    return evolve(state, overtaken=state.overtaken.set(key, frames))


def _discards(scope: Scope, old: Pte) -> bool:
    """MADV_FREE gives up at once what is in swap alone."""
    return scope.name == DISCARD or (scope.name == FREE and old.kind is PteKind.SWAP)


def _lost(state: ModelState, world: World, key: Key) -> ModelState:
    """Memory that is poisoned takes its contents with it; of a file's page, what its disk has is left."""
    page = page_of(state, world, key)
    if isinstance(page, Store):
        return evolve(state, pages=state.pages.set(page, frozenset({page}))) if page in state.pages else state
    return evolve(state, pages=state.pages.drop(key))


def punched(state: ModelState, file: int, index: int) -> ModelState:
    """A hole was punched into a file: this page of it is zero, on its disk as well."""
    store = Store(file, index)
    return evolve(state, pages=state.pages.drop(store), zeroed=state.zeroed | {store})


def lazyfreed(state: ModelState, world: World, step: Step, pfn: int) -> ModelState:
    """MADV_FREE has come to a folio: from now on its pages may read as zeros."""
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or scope.name != FREE or len(scope.arguments) != 3:
        return state
    mm, start, end = scope.arguments
    frames = world.folio_pages(pfn)
    given = {(mm, addr) for addr in range(start, end) if (mm, addr) in state.pages and world.pte(mm, addr).pfn in frames}
    return evolve(state, lazy=state.lazy | given) if given else state


def _in_range(arguments: tuple[int, ...], key: Key) -> bool:
    return len(arguments) == 3 and arguments[0] == key[0] and arguments[1] <= key[1] < arguments[2]


def operation_ended(state: ModelState, scope: Scope) -> ModelState:
    """Every CPU's translations are flushed: no access falls before a discard, or a move, any more. Its scope is closed."""
    if scope.name == PUNCH and Seen.ACCESSED not in scope.seen and len(scope.arguments) == 2:
        return punched(state, *scope.arguments)
    if scope.name == MOVE and state.moved:
        return evolve(state, moved=EMPTY)
    if scope.name not in (DISCARD, FREE) or not state.overtaken:
        return state
    others = [other.arguments for other in state.operations() if other.name in (DISCARD, FREE)]
    gone = [
        key for key in state.overtaken if _in_range(scope.arguments, key) and not any(_in_range(other, key) for other in others)
    ]
    return evolve(state, overtaken=state.overtaken.drop_all(gone)) if gone else state
