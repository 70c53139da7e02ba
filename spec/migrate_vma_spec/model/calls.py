"""The migrate_vma calls: which src entries setup, device_range and pages() may leave.

With nothing else running an entry has one allowed value, which follows from the page table, the frame and the arguments. In a
race it has the value of the page-table entry that the call found under the page-table lock, or 0 (after pages(): no MIGRATE)
where the trace shows why the call left the page: its lock was missed, its count was not the expected one, it could not be
isolated or be shared, another had the entry. A call in a race of which the trace shows no lock is not judged by its entries.
"""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.outcome import Outcome, entry_words, outcome
from migrate_vma_spec.model.state import Attempt, Entries, ModelState, Scope, Seen, What, replaced
from migrate_vma_spec.objects import Call, Frame, VmaRange, World, mmap_lock, ptl
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    VM_SPECIAL,
    Capability,
    Errno,
    Lru,
    Memory,
    Pte,
    PteKind,
    Select,
    VmFlags,
    migrate_pfn,
    migrate_pfn_to_pfn,
)

REFUSED = -Errno.EINVAL
NO_VMA_OF_SETUP = VM_SPECIAL | VmFlags.HUGETLB | VmFlags.DAX
LEGACY_SLACK = 1
"""One unexpected reference to a zone-device page passes the check of setup: the extra count of the days before v5.18."""


# ---- what setup may collect ------------------------------------------------------------------------------------------------


def setup_is_valid(world: World, event: ev.SetupCalled) -> bool:
    """The checks of migrate_vma_setup; each of them gives the same error."""
    vma = world.vma(event.mm, event.start)
    if vma is None or vma.flags & NO_VMA_OF_SETUP or event.end <= event.start or event.end > vma.end:
        return False
    if event.nsrc is None or event.ndst is None:
        return False
    if event.fault_page is None or Capability.FAULT_PAGE not in world.capabilities:
        return True
    page = world.frame(event.fault_page)
    return page.memory is Memory.DEVICE_PRIVATE and not (Capability.FAULT_LOCK in world.capabilities and page.locked is False)


def collected(world: World, pte: Pte, vma: VmaRange | None, select: Select, owner: str | None) -> int:
    """The src entry that this page-table entry gives, if its page can be taken."""
    if pte.kind is PteKind.NONE:
        return MIGRATE_PFN_MIGRATE if vma is not None and vma.anonymous else 0
    if pte.kind is PteKind.ZERO:
        return MIGRATE_PFN_MIGRATE if select & Select.SYSTEM else 0
    if pte.pfn is None or pte.kind is PteKind.MIGRATION or not _is_selected(world.frame(pte.pfn), select, owner):
        return 0
    return migrate_pfn(pte.pfn) | MIGRATE_PFN_MIGRATE | (MIGRATE_PFN_WRITE if pte.write else 0)


def _is_selected(frame: Frame, select: Select, owner: str | None) -> bool:
    if frame.memory is Memory.DEVICE_PRIVATE:
        return bool(select & Select.DEVICE_PRIVATE) and frame.owner == owner
    if frame.memory is Memory.DEVICE_COHERENT:
        return bool(select & Select.DEVICE_COHERENT) and frame.owner == owner
    return bool(select & Select.SYSTEM)


def is_stuck(world: World, pfn: int, fault_page: int | None) -> bool | None:
    """Whether a call with nothing else running cannot take this page. None: the trace does not tell its counts."""
    frame = world.frame(pfn)
    is_fault_page = pfn == fault_page and Capability.FAULT_PAGE in world.capabilities
    if frame.locked and not (is_fault_page and Capability.FAULT_LOCK in world.capabilities):
        return True
    if frame.refcount is None or frame.mapcount is None or frame.locked is None or frame.memory is None or frame.lru is None:
        return None
    if frame.refcount == 0:
        return True
    is_system = frame.memory is Memory.SYSTEM
    if is_system and frame.lru in (Lru.OFF, Lru.ISOLATED):
        return True
    known = frame.mapcount + is_fault_page + (frame.lru is Lru.BATCHED)
    return frame.refcount - known > (0 if is_system else LEGACY_SLACK)


def setup_attempt(state: ModelState, world: World, event: ev.SetupCalled) -> Attempt:
    if event.mm is None or event.mm not in state.followed:
        return Attempt(valid=event.mm is not None)
    if not setup_is_valid(world, event):
        return Attempt(event.mm, event.start, valid=False)
    choices: list[frozenset[int]] = []
    for addr in range(event.start, event.end):
        entry = collected(world, world.pte(event.mm, addr), world.vma(event.mm, addr), event.select, event.owner)
        pfn = migrate_pfn_to_pfn(entry)
        choices.append(_taken(entry, False if pfn is None else is_stuck(world, pfn, event.fault_page)))
    return Attempt(event.mm, event.start, len(choices), tuple(choices))


def _taken(entry: int, stuck: bool | None) -> frozenset[int]:
    return frozenset({entry, 0} if stuck is None else {0} if stuck else {entry})


def range_attempt(world: World, event: ev.RangeCalled) -> Attempt:
    choices = tuple(
        _taken(migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE, pfn in event.pfns[:index] or is_stuck(world, pfn, None))
        for index, pfn in enumerate(event.pfns)
    )
    return Attempt(count=len(choices), alone=choices)


# ---- what pages() may leave --------------------------------------------------------------------------------------------------


def pages_attempt(state: ModelState, world: World, step: Step, event: ev.PagesCalled) -> Attempt:
    call = world.task(step.task).calls.get(event.call)
    if event.src is None or (call is not None and call.mm is not None and call.mm not in state.followed):
        return Attempt()
    call = call or Call(vma=event.vma, in_fault=False)
    choices = tuple(_offered(world, call, event, index) for index in range(len(event.src)))
    return Attempt(call.mm if event.vma else None, call.start, len(choices), choices)


def _offered(world: World, call: Call, event: ev.PagesCalled, index: int) -> frozenset[int]:
    """What pages() makes of one entry that it is given, with nothing else running."""
    entry = (event.src or ())[index]
    dst = event.dst[index] if event.dst is not None and index < len(event.dst) else 0
    failed = entry & ~MIGRATE_PFN_MIGRATE
    if not dst & MIGRATE_PFN_VALID or not entry & MIGRATE_PFN_MIGRATE:
        return frozenset({failed})
    pfn = migrate_pfn_to_pfn(entry)
    if pfn is not None:
        moves = is_movable(world, call, pfn)
        return frozenset({entry, failed} if moves is None else {entry} if moves else {failed})
    if call.mm is None:
        return frozenset({entry, failed})
    return frozenset({entry if _is_fillable(world, call.mm, call.start + index) else failed})


def is_movable(world: World, call: Call, pfn: int) -> bool | None:
    """Nobody maps the page or holds a reference that the migration does not know of. None: the trace does not tell."""
    frame = world.frame(pfn)
    if frame.refcount is None or frame.mapcount is None:
        return None
    fault_page = call.fault_page == pfn and Capability.FAULT_PAGE in world.capabilities
    return frame.mapcount == 0 and frame.refcount == 1 + fault_page


def _is_fillable(world: World, mm: int, addr: int) -> bool:
    vma = world.vma(mm, addr)
    if vma is None or not vma.anonymous or vma.flags & VmFlags.UFFD_MISSING:
        return False
    return world.pte(mm, addr).kind in (PteKind.NONE, PteKind.ZERO)


# ---- what happens while a call runs ------------------------------------------------------------------------------------------


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
    return replaced(state, step.task, scope, evolve(scope, attempt=evolve(attempt, met=met)))


def _found(world: World, task: str, scope: Scope, mm: int, addr: int) -> frozenset[int]:
    """The value of src that the entry allows as it is: of setup, or of pages() for a hole that it is to fill."""
    active = world.task(task).library
    if active is None:
        return frozenset()
    call = active[1]
    if scope.what is What.SETUP:
        return frozenset({collected(world, world.pte(mm, addr), world.vma(mm, addr), call.select, call.owner)})
    return frozenset({MIGRATE_PFN_MIGRATE if _is_fillable(world, mm, addr) else 0})


def entry_changed(state: ModelState, world: World, step: Step, event: ev.PteChanged) -> ModelState:
    """The call takes or fills an entry itself. What its lock shows it later is its own work."""
    scope = state.inner(step.task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None or attempt.mm != event.mm:
        return state
    index = event.addr - attempt.start
    if not 0 <= index < attempt.count or index in attempt.settled:
        return state
    met = attempt.met
    if met is not None:
        now = _found(world, step.task, scope, event.mm, event.addr)
        met = (*met[:index], now, *met[index + 1 :])
    return replaced(state, step.task, scope, evolve(scope, attempt=evolve(attempt, met=met, settled=attempt.settled | {index})))


def skipped(state: ModelState, task: str, pfn: int) -> ModelState:
    """The trace shows why the task's call cannot take this page."""
    scope = state.inner(task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None or pfn in attempt.skipped:
        return state
    return replaced(state, task, scope, evolve(scope, attempt=evolve(attempt, skipped=attempt.skipped | {pfn})))


def isolated(state: ModelState, step: Step, event: ev.LruIsolated) -> ModelState:
    """A page that was not on a list is tried once more after a drain of all CPUs."""
    if not event.done:
        return skipped(state, step.task, event.pfn)
    scope = state.inner(step.task)
    attempt = scope.attempt if scope is not None else None
    if scope is None or attempt is None:
        return state
    return replaced(state, step.task, scope, evolve(scope, attempt=evolve(attempt, skipped=attempt.skipped - {event.pfn})))


def folio_checked(state: ModelState, world: World, step: Step, event: ev.FolioChecked) -> ModelState:
    """The check refused the page. That is a reason where somebody maps it or holds a reference that the call does not know of."""
    frame = world.frame(event.pfn)
    if frame.refcount is not None and frame.mapcount == 0:
        active = world.task(step.task).library
        fault_page = active is not None and active[1].fault_page == event.pfn and Capability.FAULT_PAGE in world.capabilities
        if frame.refcount <= 1 + fault_page + (frame.memory is not Memory.SYSTEM) * LEGACY_SLACK:
            return state
    return skipped(state, step.task, event.pfn)


def folio_moved(state: ModelState, world: World, step: Step, event: ev.FolioMoved) -> ModelState:
    """Whether pages() may move the page is decided by its counts as they are now."""
    active = world.task(step.task).library
    moves = is_movable(world, active[1], event.pfn) if active is not None else None
    return state if (event.moved if moves is None else moves) else skipped(state, step.task, event.pfn)


# ---- what may be answered ------------------------------------------------------------------------------------------------------


def _setup_choices(scope: Scope, attempt: Attempt) -> Entries | None:
    if attempt.alone is not None:
        return attempt.alone
    return attempt.met and tuple(frozenset(_unless_skipped(entry, attempt) for entry in met) for met in attempt.met)


def _unless_skipped(entry: int, attempt: Attempt) -> int:
    return 0 if migrate_pfn_to_pfn(entry) in attempt.skipped else entry


def _range_choices(attempt: Attempt, pfns: tuple[int, ...]) -> Entries:
    if attempt.alone is not None:
        return attempt.alone
    return tuple(
        _taken(migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE, pfn in pfns[:index] or pfn in attempt.skipped)
        for index, pfn in enumerate(pfns)
    )


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
    return (*found, *_arrays(what, event.src, _range_choices(scope.attempt, call.pfns)))


def allowed_pages(state: ModelState, world: World, step: Step, event: ev.PagesReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.PAGES)
    call = world.task(step.task).calls.get(event.call)
    if scope is None or scope.attempt is None or not scope.attempt.count or call is None:
        return ()
    choices = scope.attempt.alone
    if choices is None or Seen.FAILED in scope.seen:
        choices = tuple(_left(call, scope, scope.attempt, index) for index in range(scope.attempt.count))
    return tuple(_arrays("pages()", event.src, choices))


def _left(call: Call, scope: Scope, attempt: Attempt, index: int) -> frozenset[int]:
    """What pages() may leave of an entry in a race, or after a failed allocation."""
    entry = (call.offered or ())[index]
    dst = call.dst[index] if call.dst is not None and index < len(call.dst) else 0
    failed = entry & ~MIGRATE_PFN_MIGRATE
    pfn = migrate_pfn_to_pfn(entry)
    if not dst & MIGRATE_PFN_VALID or not entry & MIGRATE_PFN_MIGRATE or pfn in attempt.skipped:
        return frozenset({failed})
    if pfn is not None:
        return frozenset({entry})
    met = attempt.met[index] if attempt.met is not None else frozenset({entry, failed})
    return met | {failed} if Seen.FAILED in scope.seen else met
