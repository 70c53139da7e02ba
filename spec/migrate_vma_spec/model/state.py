"""What the reference model remembers: where the contents of each page are, and what each task has open.

Rules:
- Everything here is a value, and says only what holds now. A page is described by the *places that hold its contents*, not by a
  number of its last store: two histories that led to the same contents in the same places are one state, and nothing grows.
- A place is a frame, by its number, or a `Store`: a page of a file on its disk, or a swap slot.
- A page is a virtual page of private memory, (mm, addr), or a page of a file, which all mappings of it share: a `Store` as well.
- Dead things are dropped: a page with its VMA, a frame's contents when it is freed, a scope when its call or operation ends.
- A page that was never written, or was discarded, is absent from `pages`: its contents are zero, and `zeroed` are the places that
  hold zeros. A frame whose contents the trace has not told is in `unknown`, or was never announced; it is not judged.
- What private anonymous memory of single pages does not have (`lazy`, `moved`, stores) is absent, and costs nothing there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import frozen

from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import EMPTY, World, evolve
from migrate_vma_spec.vocabulary import VmFault, VmFlags

Key = tuple[int, int]
"""A virtual page: (mm, addr)."""

Frames = frozenset[int]
NO_FRAMES: Frames = frozenset()


@frozen(cache_hash=True)
class Store:
    """Where contents are kept outside memory: page `index` of a file, or the swap slot of that number (`file` None)."""

    file: int | None
    index: int

    def __str__(self) -> str:
        return f"swap slot {self.index}" if self.file is None else f"page {self.index} of file {self.file}"


Place = int | Store
Places = frozenset[Place]
NO_PLACES: Places = frozenset()

Page = Key | Store
"""What has contents: a virtual page of private memory, or a page of a file."""


About = tuple[int, int, int, VmFlags]
"""A wish: (mm, first page, page after the last, the flags that the VMA must have; none: that there is a VMA)."""


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

    RACED: another task had something open. DENIED, GRANTED: at some time the VMAs forbade, or allowed, what the scope does.
    FAILED: an allocation, or another data choice, failed. LOST: a lock was missed, a page had no
    reference to add to, an address space was gone. STALE: an interval notifier said that its read is stale. ACCESSED: the access
    that the operation is about took place, or the reference that it wants was had. RAISED: a monitor was told of a userfault.
    WATCHED: what is missing, or guarded, is a userfaultfd's. INDIRECT: the entry named no page that an access reaches at once.
    """

    NOTHING = 0
    RACED = enum.auto()
    DENIED = enum.auto()
    GRANTED = enum.auto()
    FAILED = enum.auto()
    LOST = enum.auto()
    STALE = enum.auto()
    ACCESSED = enum.auto()
    RAISED = enum.auto()
    WATCHED = enum.auto()
    INDIRECT = enum.auto()


Entries = tuple[frozenset[int], ...]
"""Per entry of src, the values that it may have."""


@frozen(cache_hash=True)
class Attempt:
    """What a migrate_vma call may answer, as far as it has come.

    `alone` is what it answers if nothing else runs, None once something did. `met` is what the page-table entries allow that it
    found under the page-table lock, None before it took the lock; an index is `settled` once the call itself has changed the
    entry. `skipped` are the frames that it could not take. `valid`: it accepts its arguments. [start, start + count) is its
    range, where `mm` is not None. `large` are the frames that it was given and that were of large folios then.
    """

    mm: int | None = None
    start: int = 0
    count: int = 0
    alone: Entries | None = None
    met: Entries | None = None
    settled: frozenset[int] = frozenset()
    skipped: Frames = NO_FRAMES
    valid: bool = True
    large: Frames = NO_FRAMES


@frozen(cache_hash=True)
class Scope:
    """Something that a task has open: an operation of its workload, a fault, a call.

    `about` is what it asks of the VMAs, or None. `fault` is the error
    with which the last page fault inside it ended. `before` are the frames of the pages that it is to move, as they were when it
    began. `left` are the addresses that a discard has yet to clear.
    """

    what: What
    seen: Seen = Seen.NOTHING
    name: str = ""
    arguments: tuple[int, ...] = ()
    about: About | None = None
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

    `pages`: per written page, the places that hold its contents; none when they are lost. `overtaken`: per page of a
    discard in flight, the frames that a CPU may still reach through its TLB. `followed`: the address spaces whose whole life the
    trace shows. `tasks`: what each task has open, the innermost last. `lazy`: the pages whose contents may be dropped since
    MADV_FREE. `moved`: while mremap runs, where what an address showed is now.
    """

    pages: FrozenMap[Page, Places] = EMPTY
    zeroed: Places = NO_PLACES
    unknown: Places = NO_PLACES
    overtaken: FrozenMap[Key, Frames] = EMPTY
    followed: frozenset[int] = frozenset()
    tasks: FrozenMap[str, tuple[Scope, ...]] = EMPTY
    lazy: frozenset[Key] = frozenset()
    moved: FrozenMap[Key, Key] = EMPTY

    def copies(self, page: Page) -> Places:
        """The places in which a reader finds what this page must show."""
        written = self.pages.get(page)
        return self.zeroed if written is None else written

    def operations(self) -> Iterator[Scope]:
        """The operations that are open."""
        return (scope for scopes in self.tasks.values() for scope in scopes if scope.what is What.OPERATION)

    def scope(self, task: str, what: What) -> Scope | None:
        """The innermost scope of this kind that the task has open."""
        for scope in reversed(self.tasks.get(task, ())):
            if scope.what is what:
                return scope
        return None

    def inner(self, task: str) -> Scope | None:
        """What the task opened last."""
        scopes = self.tasks.get(task)
        return scopes[-1] if scopes else None

    def alone(self, task: str) -> bool:
        """No other task has anything open."""
        return all(name == task for name in self.tasks)

    def is_told(self, world: World, place: Place) -> bool:
        """The trace says what this place holds."""
        return place not in self.unknown and (not isinstance(place, int) or world.frame(place).memory is not None)


START = ModelState()


# ---- scopes ----------------------------------------------------------------------------------------------------------


def opened(state: ModelState, task: str, scope: Scope) -> ModelState:
    """The task opens a scope. Whatever others have open is from now on a race, and so is this."""
    tasks = state.tasks
    for name, scopes in state.tasks.items():
        if name != task:
            scope = _raced(scope)
            if any(other.quiet for other in scopes):
                tasks = tasks.set(name, tuple(map(_raced, scopes)))
    return evolve(state, tasks=tasks.set(task, (*tasks.get(task, ()), scope)))


def _raced(scope: Scope) -> Scope:
    """The scope, less what holds only while nothing else runs."""
    if not scope.quiet:
        return scope
    attempt = None if scope.attempt is None else evolve(scope.attempt, alone=None)
    return evolve(scope, seen=scope.seen | Seen.RACED, before=(), attempt=attempt)


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


def saw(state: ModelState, task: str, seen: Seen, *kinds: What) -> ModelState:
    """What the task has open of these kinds has seen this."""
    scopes = state.tasks.get(task, ())
    if all(seen in scope.seen for scope in scopes if scope.what in kinds):
        return state
    after = (evolve(scope, seen=scope.seen | seen) if scope.what in kinds else scope for scope in scopes)
    return evolve(state, tasks=state.tasks.set(task, tuple(after)))


def surveyed(state: ModelState, world: World, mm: int) -> ModelState:
    """The VMAs of this address space change: what asks something of them has seen whether they granted it until now."""
    for task, scopes in state.tasks.items():
        if any(scope.about is not None and scope.about[0] == mm for scope in scopes):
            now = tuple(_surveyed(world, scope, mm) for scope in scopes)
            state = evolve(state, tasks=state.tasks.set(task, now))
    return state


def _surveyed(world: World, scope: Scope, mm: int) -> Scope:
    if scope.about is None or scope.about[0] != mm:
        return scope
    return evolve(scope, seen=scope.seen | permission(world, scope))


def permission(world: World, scope: Scope) -> Seen:
    """GRANTED or DENIED, or NOTHING for a scope that asks nothing of the VMAs."""
    if scope.about is None:
        return Seen.NOTHING
    return Seen.GRANTED if is_granted(world, scope.about) else Seen.DENIED


def access(write: bool) -> VmFlags:
    """The flag of a VMA that allows a store or a load."""
    return VmFlags.WRITE if write else VmFlags.READ


def is_granted(world: World, about: About) -> bool:
    """VMAs with the flags cover every page of [start, end)."""
    mm, addr, end, flags = about
    while addr < end:
        vma = world.vma(mm, addr)
        if vma is None or flags & ~vma.flags:
            return False
        addr = vma.end
    return True
