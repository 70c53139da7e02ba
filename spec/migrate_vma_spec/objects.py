"""What a reader of a trace knows: the records that the folded world is made of.

Rules:
- Everything here is a value. A fact that no event has told is None or absent, and is never judged.
- A record lives as long as its object: a freed frame is no more than its kind, an entry that is empty is absent, a call, a fault
  or a task that ended is gone. There are no counters of the past, so equal situations compare equal whatever led to them.
- What belongs to a task (the locks it holds, its calls and faults in flight, and their ledgers) is part of the situation.

A *ledger* counts what one task took and gave within one call, per frame: references that are not a mapping's own, and page locks.
Taking over the reference of a mapping that was removed counts as taking (`RmapRemoved`), giving one to a new mapping as giving.
"""

from __future__ import annotations

import enum

from migrate_vma_spec.extras import EMPTY as EMPTY  # noqa: PLC0414  (to be had from here)
from migrate_vma_spec.extras import NO_EXTRAS, Extras, Key, piece
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.records import evolve as evolve  # noqa: PLC0414  (as well)
from migrate_vma_spec.records import frozen
from migrate_vma_spec.vocabulary import (
    PTE_NONE,
    Capability,
    LockMode,
    Lru,
    Memory,
    NotifyReason,
    Pte,
    PteKind,
    Select,
    VmFault,
    VmFlags,
)

NO_SELECT = Select(0)

PAGE_KINDS = frozenset({PteKind.PRESENT, PteKind.DEVICE_PRIVATE, PteKind.EXCLUSIVE})
"""Entries through which a page is mapped: a CPU or a device reaches it, or faults to bring it back."""

NAMING_KINDS = PAGE_KINDS | {PteKind.MIGRATION}

CORE_LOCKS = frozenset({"ptl", "mmap_lock", "anon_vma", "i_mmap", "vma", "lru_add_drain_all"})
"""The kinds of lock (the part of a lock's name before the colon) that are the core's; every other is a driver's."""


def ptl(mm: int) -> str:
    """The name of an address space's page-table lock."""
    return f"ptl:{mm}"


def mmap_lock(mm: int) -> str:
    return f"mmap_lock:{mm}"


def is_driver_lock(lock: str) -> bool:
    return lock.partition(":")[0] not in CORE_LOCKS


@frozen(cache_hash=True)
class Frame:
    """A page frame. `holder` is the task that took the page lock, None while it is free or where that is not known.

    Of a folio of several pages the first frame has all this; the others know only whose memory they are, that they are
    allocated, and whether they are exclusive.
    """

    memory: Memory | None = None
    owner: str | None = None
    allocated: bool | None = None
    refcount: int | None = None
    mapcount: int | None = None
    locked: bool | None = None
    holder: str | None = None
    lru: Lru | None = None
    dirty: bool | None = None
    exclusive: bool | None = None
    charged: bool | None = None


def free_frame(memory: Memory | None, owner: str | None) -> Frame:
    return Frame(memory, owner, False, 0, 0, False, None, Lru.OFF, False, False, False)


@frozen(cache_hash=True)
class VmaRange:
    """A VMA, [start, end) in virtual page numbers; `file` is mapped from its page `index` on."""

    start: int
    end: int
    flags: VmFlags
    anonymous: bool
    file: int | None = None
    index: int = 0


@frozen(cache_hash=True)
class Invalidation:
    """An open notifier range, and the task that is inside it."""

    task: str
    start: int
    end: int
    reason: NotifyReason
    owner: str | None


@frozen(cache_hash=True)
class Mirror:
    """What a device's own page table maps at an address; no `pfn` for the zero page."""

    pfn: int | None
    write: bool


class Phase(enum.Enum):
    """How far a migration is. The library runs in COLLECTING, MOVING and FINALIZING; the driver in the others."""

    COLLECTING = "in setup"
    COLLECTED = "after setup"
    MOVING = "in pages"
    MOVED = "after pages"
    FINALIZING = "in finalize"


LIBRARY_PHASES = frozenset({Phase.COLLECTING, Phase.MOVING, Phase.FINALIZING})


@frozen(cache_hash=True)
class Held:
    """A ledger's line for one frame: references and page locks, taken less given."""

    refs: int = 0
    locks: int = 0


HELD_NOTHING = Held()
Ledger = FrozenMap[int, Held]


@frozen(cache_hash=True)
class Call:
    """A migration in flight, from its setup (or device_range) to its finalize.

    `src` is the array as the library last returned it, with what the driver refilled since (`refilled`: the indexes);
    `offered` is the one that was given to pages(), and `dst` with it. `ledger` is the library's, over all its phases;
    `driver_ledger` the driver's between pages() and finalize(). `moved` maps each source that pages() moved to its
    destination, `inserted` are the addresses at which it filled a hole. `in_fault`: it runs in a migrate_to_ram callback.
    `mm_was_unlocked`: its task dropped mmap_lock since setup began.
    """

    vma: bool
    in_fault: bool
    mm: int | None = None
    start: int = 0
    end: int = 0
    select: Select = NO_SELECT
    owner: str | None = None
    fault_page: int | None = None
    fault_page_was_locked: bool | None = None
    nsrc: int | None = None
    ndst: int | None = None
    pfns: tuple[int, ...] = ()
    phase: Phase = Phase.COLLECTING
    cpages: int | None = None
    npages: int | None = None
    src: tuple[int, ...] | None = None
    refilled: frozenset[int] = frozenset()
    offered: tuple[int, ...] | None = None
    dst: tuple[int, ...] | None = None
    ledger: Ledger = EMPTY
    driver_ledger: Ledger = EMPTY
    moved: FrozenMap[int, int] = EMPTY
    mm_was_unlocked: bool = False
    inserted: frozenset[int] = frozenset()

    @property
    def holds_pages(self) -> bool:
        """True where setup left something that finalize must end. Without the array, its count says so."""
        return any(self.src) if self.src is not None else bool(self.cpages)


class Stage(enum.Enum):
    """Where a fault is: in the handler before any callback, in the driver's migrate_to_ram, or in the handler after it."""

    HANDLING = "before the callback"
    CALLBACK = "in the callback"
    RETURNED = "after the callback"


@frozen(cache_hash=True)
class Fault:
    """A page fault in flight. `page` is the page that its entry named when the task took a reference to it under the page-
    table lock, or vmf->page; `refs` are the references that the task holds to it for this fault and what it calls, mappings'
    own not counted. `live`: a callback was entered with the page, which has not been freed since, nor been given up by the
    callback's own finalize. `result` is what the callback returned. `split`: the library split the page's folio, and its setup
    has not returned yet.
    """

    mm: int
    addr: int
    write: bool
    device: bool
    page: int | None = None
    refs: int = 0
    stage: Stage = Stage.HANDLING
    live: bool = False
    result: VmFault | None = None
    vma_lock: bool = False
    split: bool = False


@frozen(cache_hash=True)
class RangeFault:
    """An hmm_range_fault in flight."""

    device: str
    mm: int
    start: int
    end: int
    write: bool


@frozen(cache_hash=True)
class TaskState:
    """What a task has open. A task with nothing open is absent from the world.

    `locks` are sorted (name, mode) pairs, `pages` the frames whose page lock it took, `waiting` the frame for whose page lock
    it is queued, `freeing` the device page whose free callback it runs, `forking` the parent and child of its fork. `cleared`
    are the entries of pages that it took out of a page table, in setup or in the fault handler, under a page-table lock that
    it still holds.
    """

    operation: str | None = None
    locks: tuple[tuple[str, LockMode], ...] = ()
    pages: frozenset[int] = frozenset()
    waiting: int | None = None
    faults: tuple[Fault, ...] = ()
    calls: FrozenMap[int, Call] = EMPTY
    range_fault: RangeFault | None = None
    freeing: int | None = None
    forking: tuple[int, int] | None = None
    cleared: FrozenMap[tuple[int, int], Pte] = EMPTY

    def holds(self, lock: str) -> bool:
        return any(name == lock for name, _ in self.locks)

    @property
    def spinlocks(self) -> tuple[str, ...]:
        return tuple(name for name, mode in self.locks if mode is LockMode.SPIN)

    @property
    def driver_locks(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.locks if is_driver_lock(name))

    @property
    def fault(self) -> Fault | None:
        """The innermost fault in flight."""
        return self.faults[-1] if self.faults else None

    @property
    def callback(self) -> Fault | None:
        """The innermost fault whose migrate_to_ram is running."""
        for fault in reversed(self.faults):
            if fault.stage is Stage.CALLBACK:
                return fault
        return None

    @property
    def active_call(self) -> tuple[int, Call] | None:
        """The call that the library is working on now, with its number."""
        best: tuple[int, Call] | None = None
        if not self.calls:
            return best
        for number, call in self.calls.items():
            if call.phase in LIBRARY_PHASES and (best is None or number > best[0]):
                best = number, call
        return best

    def in_phase(self, phase: Phase) -> Call | None:
        """The call that the library is working on, if it is in this phase."""
        active = self.active_call
        return active[1] if active and active[1].phase is phase else None


IDLE = TaskState()


@frozen(cache_hash=True)
class World:
    """Everything that the events so far say of the situation.

    `named` lists, per frame, the page-table entries that name it, as (mm, addr), leaves of the middle level apart; `mirrored`
    the device mappings of it, as (device, mm, addr).
    """

    capabilities: frozenset[Capability] = frozenset()
    frames: FrozenMap[int, Frame] = EMPTY
    ptes: FrozenMap[Key, Pte] = EMPTY
    named: FrozenMap[int, frozenset[Key]] = EMPTY
    tlbs: FrozenMap[tuple[int, int], FrozenMap[int, Pte]] = EMPTY
    mms: FrozenMap[int, tuple[VmaRange, ...]] = EMPTY
    invalidations: FrozenMap[int, tuple[Invalidation, ...]] = EMPTY
    mirrors: FrozenMap[tuple[str, int, int], Mirror] = EMPTY
    mirrored: FrozenMap[int, frozenset[tuple[str, int, int]]] = EMPTY
    subscribed: frozenset[tuple[str, int]] = frozenset()
    unbound: frozenset[str] = frozenset()
    tasks: FrozenMap[str, TaskState] = EMPTY
    extras: Extras = NO_EXTRAS

    def frame(self, pfn: int) -> Frame:
        return self.frames.get(pfn, UNKNOWN)

    def task(self, name: str) -> TaskState:
        return self.tasks.get(name, IDLE)

    def head(self, pfn: int) -> int:
        """The first frame of the folio that this one belongs to."""
        return self.extras.heads.get(pfn, pfn)

    def folio(self, pfn: int) -> Frame:
        """The frame that has the counts, the lock and the flags of this page's folio."""
        return self.frame(self.head(pfn))

    def folio_pages(self, pfn: int) -> range:
        """The frames of this page's folio."""
        head = self.head(pfn)
        return range(head, head + (1 << self.extras.orders.get(head, 0)))

    def cache_refs(self, pfn: int) -> int:
        """The references that the page cache and the swap cache have to this page's folio."""
        head = self.head(pfn)
        return ((head in self.extras.cached) + (head in self.extras.swapped)) << self.extras.orders.get(head, 0)

    def leaf(self, mm: int, addr: int) -> tuple[int, Pte] | None:
        """The first address and the entry of the middle level over this address, where there is one."""
        if not self.extras.pmds:
            return None
        base = addr - addr % self.extras.leaf_pages
        pmd = self.extras.pmds.get((mm, base))
        return None if pmd is None else (base, pmd)

    def pte(self, mm: int, addr: int) -> Pte:
        """The entry of this address, or what the leaf over it says of its page."""
        found = self.ptes.get((mm, addr), PTE_NONE)
        if found is not PTE_NONE or not self.extras.pmds:
            return found
        leaf = self.leaf(mm, addr)
        return PTE_NONE if leaf is None else piece(leaf[1], addr - leaf[0])

    def vma(self, mm: int | None, addr: int) -> VmaRange | None:
        for vma in self.mms.get(mm, ()) if mm is not None else ():
            if vma.start <= addr < vma.end:
                return vma
        return None

    def entries(self, pfn: int, kinds: frozenset[PteKind]) -> list[tuple[int, int]]:
        """The (mm, addr) whose entry, or the leaf over it, names `pfn` and is of one of these kinds, in order."""
        found = [key for key in self.named.get(pfn, ()) if self.ptes[key].kind in kinds]
        for mm, base in self.extras.leaves.get(self.head(pfn), ()) if self.extras.leaves else ():
            pmd = self.extras.pmds[mm, base]
            if pmd.kind in kinds and pmd.pfn is not None and pmd.pfn <= pfn < pmd.pfn + self.extras.leaf_pages:
                found.append((mm, base + pfn - pmd.pfn))
        return sorted(found)

    def folio_entries(self, pfn: int, kinds: frozenset[PteKind]) -> list[tuple[int, int]]:
        """As `entries`, for all pages of this page's folio."""
        if not self.extras.orders:
            return self.entries(pfn, kinds)
        return sorted({key for page in self.folio_pages(pfn) for key in self.entries(page, kinds)})

    def migration_entries(self, pfn: int) -> list[tuple[int, int]]:
        """Where a migration entry names a page of this page's folio."""
        return self.folio_entries(pfn, _MIGRATION)

    def is_named(self, pfn: int) -> bool:
        """True where some page table names a page of this page's folio."""
        return any(page in self.named for page in self.folio_pages(pfn)) or self.head(pfn) in self.extras.leaves

    @property
    def idle(self) -> bool:
        """True where no task has anything open: the end of a whole execution, not a dead end of one."""
        return not self.tasks


UNKNOWN = Frame()
_MIGRATION = frozenset({PteKind.MIGRATION})
