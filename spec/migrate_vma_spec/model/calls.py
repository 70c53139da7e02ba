"""The migrate_vma calls: which src entries setup, device_range and pages() may leave.

With nothing else running an entry has one allowed value, which follows from the page table, the frame and the arguments. In a
race it has the value of the page-table entry that the call found under the page-table lock, or 0 (after pages(): no MIGRATE)
where the trace shows why the call left the page: its lock was missed, its count was not the expected one, it could not be
isolated or be shared, another had the entry. A call in a race of which the trace shows no lock is not judged by its entries.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.collecting import LEGACY_SLACK, found, hole, wish_of
from migrate_vma_spec.model.moving import is_fillable, is_movable, left_behind, split_entries
from migrate_vma_spec.model.outcome import Outcome, entry_words, outcome
from migrate_vma_spec.model.state import Attempt, Entries, ModelState, Scope, Seen, What, replaced
from migrate_vma_spec.objects import Call, World, evolve, mmap_lock, ptl
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    Errno,
    Memory,
    Pte,
    PteKind,
    migrate_pfn,
    migrate_pfn_to_pfn,
)

REFUSED = -Errno.EINVAL


# ---- what happens while a call runs ----------------------------------------------------------------------------------


def lock_taken(state: ModelState, world: World, step: Step, event: ev.LockTaken) -> ModelState:
    """From here to the end of the lock the call finds these entries, and nobody else changes them."""
    scope = state.inner(step.task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None or attempt.mm is None or ptl(attempt.mm) != event.lock:
        return state
    met = tuple(
        before if index in attempt.settled else before | _found(world, step.task, scope, attempt.mm, attempt.start + index)
        for index, before in enumerate(attempt.met or (frozenset[int](),) * attempt.count)
    )
    return _attempting(state, step.task, scope, evolve(attempt, met=met))


def _attempting(state: ModelState, task: str, scope: Scope, attempt: Attempt) -> ModelState:
    return replaced(state, task, scope, evolve(scope, attempt=attempt))


def _found(world: World, task: str, scope: Scope, mm: int, addr: int) -> frozenset[int]:
    """The value of src that the entry allows as it is: of setup, or of pages() for a hole that it is to fill."""
    active = world.task(task).active_call
    if active is None:
        return frozenset()
    call = active[1]
    if scope.what is What.SETUP:
        return found(world, wish_of(call), addr)
    return _filling(world, call, mm, addr)


def _filling(world: World, call: Call, mm: int, addr: int) -> frozenset[int]:
    """What pages() leaves of the entry of a hole. One that was offered whole keeps COMPOUND, unless it is filled page by page."""
    offered, _ = split_entries(world, call, call.offered or (), call.dst)
    entry = offered[addr - call.start] if addr - call.start < len(offered) else MIGRATE_PFN_MIGRATE
    if entry & MIGRATE_PFN_VALID:
        return frozenset({MIGRATE_PFN_MIGRATE})
    return frozenset({entry if is_fillable(world, mm, addr) else entry & ~MIGRATE_PFN_MIGRATE})


def nothing_read(state: ModelState, world: World, step: Step, event: ev.PmdRead) -> ModelState:
    """Setup takes an empty entry of the middle level for a hole without looking again under the lock."""
    scope = state.inner(step.task)
    attempt = scope.attempt if scope is not None else None
    active = world.task(step.task).active_call
    if scope is None or attempt is None or attempt.mm != event.mm or scope.what is not What.SETUP or active is None:
        return state
    block = range(event.addr, event.addr + event.pages)
    met = list(attempt.met or (frozenset[int](),) * attempt.count)
    for index in range(attempt.count):
        if attempt.start + index in block and index not in attempt.settled:
            met[index] |= hole(world, wish_of(active[1]), attempt.start + index, block)
    return _attempting(state, step.task, scope, evolve(attempt, met=tuple(met)))


def entry_changed(state: ModelState, world: World, step: Step, mm: int, addrs: range, old: Pte) -> ModelState:
    """The call takes or fills these entries itself. What its lock shows it later is its own work.

    What a split for this call puts back is not taken yet.
    """
    scope = state.inner(step.task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None or attempt.mm != mm:
        return state
    if scope.what is What.SETUP and old.kind is PteKind.MIGRATION:
        return state
    mine = [index for addr in addrs if 0 <= (index := addr - attempt.start) < attempt.count and index not in attempt.settled]
    if not mine:
        return state
    met = attempt.met
    if met is not None:
        now = {index: _found(world, step.task, scope, mm, attempt.start + index) for index in mine}
        met = tuple(now.get(index, before) for index, before in enumerate(met))
    return _attempting(state, step.task, scope, evolve(attempt, met=met, settled=attempt.settled.union(mine)))


def skipped(state: ModelState, world: World, task: str, pfn: int) -> ModelState:
    """The trace shows why the task's call cannot take this page, and the others of its folio."""
    scope = state.inner(task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None or pfn in attempt.skipped:
        return state
    return _attempting(state, task, scope, evolve(attempt, skipped=attempt.skipped.union(world.folio_pages(pfn))))


def isolated(state: ModelState, world: World, step: Step, event: ev.LruIsolated) -> ModelState:
    """A page that was not on a list is tried once more after a drain of all CPUs."""
    if not event.done:
        return skipped(state, world, step.task, event.pfn)
    scope = state.inner(step.task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None:
        return state
    if event.pfn not in attempt.skipped:
        return state
    return _attempting(state, step.task, scope, evolve(attempt, skipped=attempt.skipped.difference(world.folio_pages(event.pfn))))


def folio_checked(state: ModelState, world: World, step: Step, event: ev.FolioChecked) -> ModelState:
    """The check refused the page. That is a reason where somebody maps it or holds a reference that the call does not know of."""
    folio = world.folio(event.pfn)
    if folio.refcount is not None and folio.mapcount == 0:
        active = world.task(step.task).active_call
        fault_page = active is not None and wish_of(active[1]).is_fault_page(world, event.pfn)
        slack = (folio.memory is not Memory.SYSTEM) * LEGACY_SLACK
        if folio.refcount <= 1 + fault_page + slack + world.cache_refs(event.pfn):
            return state
    return skipped(state, world, step.task, event.pfn)


def folio_moved(state: ModelState, world: World, step: Step, event: ev.FolioMoved) -> ModelState:
    """Whether pages() may move the page is decided by its counts as they are now."""
    active = world.task(step.task).active_call
    moves = is_movable(world, active[1], event.pfn, event.dst) if active is not None else None
    return state if (event.moved if moves is None else moves) else skipped(state, world, step.task, event.pfn)


# ---- what may be answered --------------------------------------------------------------------------------------------


def _setup_choices(scope: Scope, attempt: Attempt) -> Entries | None:
    if attempt.alone is not None:
        return attempt.alone
    return attempt.met and tuple(frozenset(_unless_skipped(entry, attempt) for entry in met) for met in attempt.met)


def _unless_skipped(entry: int, attempt: Attempt) -> int:
    return 0 if migrate_pfn_to_pfn(entry) in attempt.skipped else entry


def _range_choices(world: World, attempt: Attempt, pfns: tuple[int, ...]) -> Entries:
    if attempt.alone is not None:
        return attempt.alone
    return tuple(_ranged(world, attempt, pfns, index) for index in range(len(pfns)))


def _ranged(world: World, attempt: Attempt, pfns: tuple[int, ...], index: int) -> frozenset[int]:
    """In a race. Of a large folio, as it was when the call saw it or as it is now: what its head, or a page of it, may have."""
    pfn = pfns[index]
    plain = migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE
    if pfn in pfns[:index] or pfn in attempt.skipped:
        return frozenset({0, MIGRATE_PFN_COMPOUND}) if pfn in attempt.large else frozenset({0})
    if pfn not in attempt.large and len(world.folio_pages(pfn)) == 1:
        return frozenset({plain})
    return frozenset({plain, plain | MIGRATE_PFN_COMPOUND, 0, MIGRATE_PFN_COMPOUND})


def _arrays(what: str, src: tuple[int, ...] | None, choices: Entries | None) -> list[Outcome]:
    return [
        outcome(f"{what} returned src[{index}] =", entry, allowed, entry_words)
        for index, (entry, allowed) in enumerate(zip(src or (), choices or (), strict=False))
    ]


def allowed_setup(state: ModelState, world: World, step: Step, event: ev.SetupReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.SETUP)
    call = world.task(step.task).calls.get(event.call)
    if scope is None or scope.attempt is None or call is None or (call.mm is not None and call.mm not in state.followed):
        return ()
    what = f"setup of [{call.start}, {call.end})"
    results = {0 if scope.attempt.valid else REFUSED}
    if not scope.quiet and call.mm is not None and not world.task(step.task).holds(mmap_lock(call.mm)):
        results = {0, REFUSED}
    found = [outcome(f"{what} returned", event.result, results)]
    if event.result or not scope.attempt.valid:
        return tuple(found)
    found.append(outcome(f"{what} returned npages", event.npages, {call.end - call.start}))
    found.append(outcome(f"{what} returned start and end", (event.start, event.end), {(call.start, call.end)}))
    choices = _setup_choices(scope, scope.attempt)
    cpages = _counts(event.src, event.npages, choices)
    if cpages is not None:
        found.insert(1, outcome(f"{what} returned cpages", event.cpages, cpages))
    return (*found, *_arrays(what, event.src, choices))


def _counts(src: tuple[int, ...] | None, npages: int, choices: Entries | None) -> set[int] | None:
    """The number of migrating entries: of those that are shown, or of those that may be there."""
    if src is not None:
        return {sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in src[:npages])}
    if choices is None:
        return None
    least = sum(all(entry & MIGRATE_PFN_MIGRATE for entry in choice) for choice in choices)
    most = sum(any(entry & MIGRATE_PFN_MIGRATE for entry in choice) for choice in choices)
    return set(range(least, most + 1))


def allowed_range(state: ModelState, world: World, step: Step, event: ev.RangeReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.RANGE)
    call = world.task(step.task).calls.get(event.call)
    if scope is None or scope.attempt is None or call is None:
        return ()
    what = f"device range of {scope.attempt.count} pages"
    found = [outcome(f"{what} returned", event.result, {0})]
    return (*found, *_arrays(what, event.src, _range_choices(world, scope.attempt, call.pfns)))


def allowed_pages(state: ModelState, world: World, step: Step, event: ev.PagesReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.PAGES)
    call = world.task(step.task).calls.get(event.call)
    if scope is None or scope.attempt is None or not scope.attempt.count or call is None:
        return ()
    choices = scope.attempt.alone
    if choices is None or Seen.FAILED in scope.seen:
        choices = tuple(left_behind(world, call, scope, scope.attempt, index) for index in range(scope.attempt.count))
    return tuple(_arrays("pages()", event.src, choices))
