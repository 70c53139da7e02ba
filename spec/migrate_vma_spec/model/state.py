"""What the reference model remembers: where the contents of each virtual page are, and what each task has open.

Rules:
- Everything here is a value, and says only what holds now. A virtual page is described by the *frames that hold its contents*, not by
  a number of its last store: two histories that led to the same contents in the same frames are one state, and nothing grows.
- Dead things are dropped: a page with its VMA, a frame's contents when it is freed, a scope when its call or operation ends.
- A page that was never written, or was discarded, is absent from `pages`: its contents are zero, and `zeroed` are the frames that
  hold zeros. A frame whose contents the trace has not told is in `unknown`, or was never announced; it is not judged.
"""

from __future__ import annotations

import enum

from attrs import evolve, frozen

from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import EMPTY, World
from migrate_vma_spec.vocabulary import VmFault

Key = tuple[int, int]
"""A virtual page: (mm, addr)."""

Frames = frozenset[int]
NO_FRAMES: Frames = frozenset()


class What(enum.Enum):
    """What a task can have open."""

    OPERATION = "operation"
    FAULT = "fault"
    CALLBACK = "migrate_to_ram"
    RANGE_FAULT = "hmm_range_fault"
    SETUP = "setup"
    RANGE = "device range"
    PAGES = "pages"


class Seen(enum.Flag):
    """What was seen while a scope was open. Results other than the one of an undisturbed run need such a reason.

    RACED: another task had something open. DENIED, GRANTED: at some time the VMAs forbade, or allowed, what the scope does. FAILED:
    an allocation, or another data choice, failed. REFUSED: a setup gave an error. LOST: a lock was missed or an address space was
    gone. STALE: an interval notifier said that its read is stale. ACCESSED: the access that the operation is about took place.
    """

    NOTHING = 0
    RACED = enum.auto()
    DENIED = enum.auto()
    GRANTED = enum.auto()
    FAILED = enum.auto()
    REFUSED = enum.auto()
    LOST = enum.auto()
    STALE = enum.auto()
    ACCESSED = enum.auto()


@frozen(cache_hash=True)
class Attempt:
    """What a migrate_vma call may answer, entry by entry, as far as the call has come.

    `entries` are the values that the states of the page table so far allow; an index is `settled` once the call itself has changed
    that entry. `stuck` are the indexes that a call with nothing else running cannot take. `skipped` are the frames for which the trace has
    shown a reason. `valid`: the arguments are ones that the call accepts.
    """

    mm: int | None = None
    start: int = 0
    entries: tuple[frozenset[int], ...] | None = None
    stuck: frozenset[int] = frozenset()
    settled: frozenset[int] = frozenset()
    skipped: Frames = NO_FRAMES
    valid: bool = True


@frozen(cache_hash=True)
class Scope:
    """Something that a task has open: an operation of its workload, a fault, a call.

    `about` is what it wants of the address space: (mm, first page, page after the last, write), or None. `fault` is the error with
    which the last page fault of an operation ended. `before` are the frames
    of the pages that it is to move, as they were when it began. `left` are the addresses that a
    discard has yet to clear.
    """

    what: What
    seen: Seen = Seen.NOTHING
    name: str = ""
    arguments: tuple[int, ...] = ()
    about: tuple[int, int, int, bool] | None = None
    fault: VmFault = VmFault.NONE
    before: tuple[int | None, ...] = ()
    left: frozenset[int] = frozenset()
    attempt: Attempt | None = None

    @property
    def quiet(self) -> bool:
        """Nothing else ran while this was open."""
        return Seen.RACED not in self.seen


@frozen(cache_hash=True)
class ModelState:
    """The abstract machine.

    `pages`: per written virtual page, the frames that hold its contents; none when they are lost. `overtaken`: per page of a discard
    in flight, the frames that a CPU may still reach through its TLB. `followed`: the address spaces whose whole life the trace shows.
    `tasks`: what each task has open, the innermost last.
    """

    pages: FrozenMap[Key, Frames] = EMPTY
    zeroed: Frames = NO_FRAMES
    unknown: Frames = NO_FRAMES
    overtaken: FrozenMap[Key, Frames] = EMPTY
    followed: frozenset[int] = frozenset()
    tasks: FrozenMap[str, tuple[Scope, ...]] = EMPTY

    def copies(self, key: Key) -> Frames:
        """The frames in which a reader finds what this page must show."""
        written = self.pages.get(key)
        return self.zeroed if written is None else written

    def scope(self, task: str, what: What) -> Scope | None:
        """The innermost scope of this kind that the task has open."""
        for scope in reversed(self.tasks.get(task, ())):
            if scope.what is what:
                return scope
        return None

    def alone(self, task: str) -> bool:
        """No other task has anything open."""
        return all(name == task for name in self.tasks)

    def is_told(self, world: World, pfn: int) -> bool:
        """The trace says what this frame holds."""
        return world.frame(pfn).memory is not None and pfn not in self.unknown


START = ModelState()


# ---- scopes ------------------------------------------------------------------------------------------------------------


def opened(state: ModelState, task: str, scope: Scope) -> ModelState:
    """The task opens a scope. Whatever others have open is from now on a race, and so is this."""
    tasks = state.tasks
    for name, scopes in state.tasks.items():
        if name != task:
            scope = evolve(scope, seen=scope.seen | Seen.RACED)
            if any(other.quiet for other in scopes):
                tasks = tasks.set(name, tuple(evolve(other, seen=other.seen | Seen.RACED) for other in scopes))
    return evolve(state, tasks=tasks.set(task, (*tasks.get(task, ()), scope)))


def closed(state: ModelState, task: str, what: What) -> ModelState:
    """The task's innermost scope of this kind ends, and what it still had open inside."""
    scopes = state.tasks.get(task, ())
    for place in range(len(scopes) - 1, -1, -1):
        if scopes[place].what is what:
            return evolve(state, tasks=state.tasks.set(task, scopes[:place]) if place else state.tasks.drop(task))
    return state


def replaced(state: ModelState, task: str, old: Scope, new: Scope) -> ModelState:
    if old is new or old == new:
        return state
    scopes = tuple(new if scope is old else scope for scope in state.tasks.get(task, ()))
    return evolve(state, tasks=state.tasks.set(task, scopes))


def saw(state: ModelState, task: str, seen: Seen) -> ModelState:
    """Everything that the task has open has seen this."""
    scopes = state.tasks.get(task, ())
    if all(seen in scope.seen for scope in scopes):
        return state
    return evolve(state, tasks=state.tasks.set(task, tuple(evolve(scope, seen=scope.seen | seen) for scope in scopes)))


def surveyed(state: ModelState, world: World) -> ModelState:
    """Each scope has seen whether the VMAs, as they are now, allow what it is about."""
    for task, scopes in state.tasks.items():
        now = tuple(evolve(scope, seen=scope.seen | permission(world, scope)) for scope in scopes)
        if now != scopes:
            state = evolve(state, tasks=state.tasks.set(task, now))
    return state


def permission(world: World, scope: Scope) -> Seen:
    """GRANTED or DENIED, or NOTHING for a scope that asks nothing of the VMAs."""
    if scope.about is None:
        return Seen.NOTHING
    mm, start, end, write = scope.about
    return Seen.GRANTED if may_access(world, mm, start, end, write) else Seen.DENIED


def may_access(world: World, mm: int, start: int, end: int, write: bool) -> bool:
    """One VMA covers [start, end), and its flags allow the access."""
    vma = world.vma(mm, start)
    if vma is None or vma.end < end:
        return False
    return bool(vma.flags & vma.flags.WRITE) if write else bool(vma.flags & vma.flags.READ)
