"""The migrate_vma calls: which src entries setup, device_range and pages() may leave.

With nothing else running an entry has one allowed value, which follows from the page table, the frame and the arguments. In a race
it may have the value of each state that its page-table entry went through before the call took it, and 0 (after pages(): no
MIGRATE) where the trace shows why the call left the page: its lock was missed, its count was not the expected one, it could not be
isolated or be shared, another had the entry.
"""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.outcome import Outcome, entry_words, outcome
from migrate_vma_spec.model.state import Attempt, ModelState, Scope, Seen, What, replaced
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

Entries = tuple[frozenset[int], ...]


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
    return page.memory is Memory.DEVICE_PRIVATE and not (
        Capability.FAULT_LOCK in world.capabilities and page.locked is False
    )


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
    if event.mm is not None and event.mm not in state.followed:
        return Attempt(event.mm, event.start, valid=True)
    if event.mm is None or not setup_is_valid(world, event):
        return Attempt(event.mm, event.start, valid=False)
    vma = world.vma(event.mm, event.start)
    entries: list[frozenset[int]] = []
    stuck: set[int] = set()
    for index, addr in enumerate(range(event.start, event.end)):
        entry = collected(world, world.pte(event.mm, addr), vma, event.select, event.owner)
        pfn = migrate_pfn_to_pfn(entry)
        is_left = False if pfn is None else is_stuck(world, pfn, event.fault_page)
        entries.append(frozenset({entry, 0}) if is_left is None else frozenset({entry}))
        if is_left:
            stuck.add(index)
    return Attempt(event.mm, event.start, tuple(entries), frozenset(stuck))


def range_attempt(world: World, event: ev.RangeCalled) -> Attempt:
    entries: list[frozenset[int]] = []
    stuck: set[int] = set()
    for index, pfn in enumerate(event.pfns):
        entry = migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE
        is_left = pfn in event.pfns[:index] or is_stuck(world, pfn, None)
        entries.append(frozenset({entry, 0}) if is_left is None else frozenset({entry}))
        if is_left:
            stuck.add(index)
    return Attempt(None, 0, tuple(entries), frozenset(stuck))


# ---- what pages() may leave --------------------------------------------------------------------------------------------------


def pages_attempt(state: ModelState, world: World, step: Step, event: ev.PagesCalled) -> Attempt:
    call = world.task(step.task).calls.get(event.call)
    if event.src is None or (call is not None and call.mm is not None and call.mm not in state.followed):
        return Attempt()
    call = call or Call(vma=event.vma, in_fault=False)
    mm = call.mm if event.vma else None
    start = call.start if event.vma else 0
    entries = tuple(_offered(world, call, event, index) for index in range(len(event.src)))
    return Attempt(mm, start, entries)


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

CALLS = (What.SETUP, What.RANGE, What.PAGES)


def entry_changed(state: ModelState, world: World, step: Step, event: ev.PteChanged) -> ModelState:
    """The call itself takes an entry: that settles its value. Another's change is one more state that the call may have met."""
    for task, scopes in state.tasks.items():
        scope = scopes[-1]
        attempt = scope.attempt
        if attempt is None or attempt.entries is None or attempt.mm != event.mm:
            continue
        index = event.addr - attempt.start
        if not 0 <= index < len(attempt.entries) or index in attempt.settled:
            continue
        if task == step.task:
            state = replaced(state, task, scope, evolve(scope, attempt=_settled(world, step, scope, attempt, index, event)))
        elif not world.task(step.task).holds(ptl(event.mm)):
            state = _met(state, world, task, scope, attempt, index, event.new)
    return state


def _settled(world: World, step: Step, scope: Scope, attempt: Attempt, index: int, event: ev.PteChanged) -> Attempt:
    entries = attempt.entries or ()
    if scope.what is What.SETUP:
        entry = _collected(world, step.task, event.addr, event.old)
        entries = (*entries[:index], frozenset({entry}), *entries[index + 1 :])
    return evolve(attempt, entries=entries, settled=attempt.settled | {index})


def _collected(world: World, task: str, addr: int, pte: Pte) -> int:
    active = world.task(task).library
    if active is None:
        return 0
    call = active[1]
    return collected(world, pte, world.vma(call.mm, addr), call.select, call.owner)


def _met(state: ModelState, world: World, task: str, scope: Scope, attempt: Attempt, index: int, pte: Pte) -> ModelState:
    """The call may find this entry at one of its addresses."""
    entries = attempt.entries or ()
    if scope.what is What.SETUP:
        more = {_collected(world, task, attempt.start + index, pte)}
    elif pte.kind not in (PteKind.NONE, PteKind.ZERO):
        more = {entry & ~MIGRATE_PFN_MIGRATE for entry in entries[index] if migrate_pfn_to_pfn(entry) is None}
    else:
        more = set[int]()
    if more <= entries[index]:
        return state
    entries = (*entries[:index], entries[index] | more, *entries[index + 1 :])
    return replaced(state, task, scope, evolve(scope, attempt=evolve(attempt, entries=entries)))


def lock_dropped(state: ModelState, world: World, step: Step, event: ev.LockDropped) -> ModelState:
    """Changes under a page-table lock are seen by others when it is dropped."""
    for task in state.tasks:
        scope = state.tasks[task][-1]
        attempt = scope.attempt
        if task == step.task or attempt is None or attempt.entries is None or attempt.mm is None or ptl(attempt.mm) != event.lock:
            continue
        for index in range(len(attempt.entries)):
            scope = state.tasks[task][-1]
            attempt = scope.attempt or attempt
            if index not in attempt.settled and attempt.mm is not None:
                state = _met(state, world, task, scope, attempt, index, world.pte(attempt.mm, attempt.start + index))
    return state


def skipped(state: ModelState, task: str, pfn: int) -> ModelState:
    """The trace shows why the task's call cannot take this page."""
    scopes = state.tasks.get(task)
    if scopes is None or scopes[-1].attempt is None or pfn in scopes[-1].attempt.skipped:
        return state
    scope = scopes[-1]
    attempt = scopes[-1].attempt
    return replaced(state, task, scope, evolve(scope, attempt=evolve(attempt, skipped=attempt.skipped | {pfn})))


# ---- what may be answered ------------------------------------------------------------------------------------------------------


def _entries(scope: Scope, attempt: Attempt) -> Entries:
    """What setup or device_range may leave in each entry of src."""
    choices: list[frozenset[int]] = []
    for index, entries in enumerate(attempt.entries or ()):
        if scope.quiet:
            choices.append(frozenset({0}) if index in attempt.stuck else entries)
        elif any(migrate_pfn_to_pfn(entry) in attempt.skipped for entry in entries):
            choices.append(entries | {0})
        else:
            choices.append(entries)
    return tuple(choices)


def _arrays(what: str, src: tuple[int, ...] | None, choices: Entries) -> list[Outcome]:
    return [
        outcome(f"{what} returned src[{index}] =", entry, allowed, entry_words)
        for index, (entry, allowed) in enumerate(zip(src or (), choices, strict=False))
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
    choices = _entries(scope, scope.attempt)
    found += _arrays(what, event.src, choices)
    if event.src is not None:
        cpages = {sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in event.src[: len(choices)])}
    else:
        cpages = _counts(choices)
    found.insert(1, outcome(f"{what} returned cpages", event.cpages, cpages))
    return tuple(found)


def _counts(choices: Entries) -> set[int]:
    """The numbers of migrating entries that the choices allow, where the array itself is not shown."""
    least = sum(all(entry & MIGRATE_PFN_MIGRATE for entry in choice) for choice in choices)
    most = sum(any(entry & MIGRATE_PFN_MIGRATE for entry in choice) for choice in choices)
    return set(range(least, most + 1))


def allowed_range(state: ModelState, world: World, step: Step, event: ev.RangeReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.RANGE)
    if scope is None or scope.attempt is None:
        return ()
    what = f"device range of {len(scope.attempt.entries or ())} pages"
    found = [outcome(f"{what} returned", event.result, {0})]
    return (*found, *_arrays(what, event.src, _entries(scope, scope.attempt)))


def allowed_pages(state: ModelState, world: World, step: Step, event: ev.PagesReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.PAGES)
    call = world.task(step.task).calls.get(event.call)
    if scope is None or scope.attempt is None or scope.attempt.entries is None or call is None:
        return ()
    choices: list[frozenset[int]] = []
    for index, entries in enumerate(scope.attempt.entries):
        offered = (call.offered or ())[index]
        choices.append(entries if scope.quiet and Seen.FAILED not in scope.seen else _raced(world, call, scope, offered, entries))
    return tuple(_arrays("pages()", event.src, tuple(choices)))


def _raced(world: World, call: Call, scope: Scope, offered: int, entries: frozenset[int]) -> frozenset[int]:
    """What pages() may leave of this entry in a race, or after a failed allocation."""
    attempt = scope.attempt or Attempt()
    pfn = migrate_pfn_to_pfn(offered)
    failed = offered & ~MIGRATE_PFN_MIGRATE
    if pfn is None:
        return entries | {failed} if Seen.FAILED in scope.seen else entries
    if pfn in attempt.skipped:
        return frozenset({failed})
    if pfn in call.moved:
        return frozenset({failed if world.frame(pfn).mapcount else offered})
    return entries
