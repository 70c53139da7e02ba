"""Kernel objects: handles, which name slots of shared state, and the values that those slots hold.

Mirrors include/linux/mm_types.h and include/linux/mm.h as far as order-0 anonymous memory needs. A handle (Folio, Mm, PteSlot,
...) is what code passes around and keeps in its locals; a value (FolioState, MmState, Pte, ...) is what traps read and replace.
Addresses are virtual page numbers: one step is one page.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

from attrs import define, frozen

from migrate_vma_impl.machine.locks import RwSem, SpinLock
from migrate_vma_spec.vocabulary import PTE_NONE, Lru, Memory, Pte, Select, VmFlags


@frozen
class Folio:
    """A page frame, and the key of its slot (FolioState)."""

    pfn: int


class WaitMode(enum.Enum):
    """How a task waits in a page lock's queue: to be told of the unlock, to try again, or to be handed the lock."""

    TOLD = "wait"
    LOCK = "lock"
    HANDOFF = "handoff"


@frozen
class Waiter:
    task: str
    mode: WaitMode


@frozen
class FolioState:
    """struct folio, and struct page where a folio has several. The slot of each frame holds one.

    A folio of 1 << `order` pages keeps its counts, lock and flags in the slot of its first frame, the head; `mapcount` is
    folio_mapcount there. A tail page has `head` set, and keeps nothing but `exclusive`, which belongs to each page.

    `charged` is its memcg charge, `exclusive` PageAnonExclusive, `anon_vma` its mapping if it is anonymous, `file` if it belongs
    to a file, at page `index` of either; `swap` is its slot in the swap cache.

    `queue` is PG_locked's wait queue; `handed` names the task that an unlock gave the lock to. `pins` counts the references among
    `refcount` that are pins (folio_maybe_dma_pinned): a page under DMA, which must not move.
    """

    pfn: int
    memory: Memory = Memory.SYSTEM
    owner: str | None = None
    refcount: int = 0
    pins: int = 0
    mapcount: int = 0
    locked: bool = False
    queue: tuple[Waiter, ...] = ()
    handed: str | None = None
    lru: Lru = Lru.OFF
    dirty: bool = False
    young: bool = False
    uptodate: bool = False
    charged: bool = False
    exclusive: bool = False
    anon_vma: int | None = None
    index: int | None = None
    zone_device_data: Hashable = None
    order: int = 0
    head: int | None = None
    file: int | None = None
    swap: int | None = None

    @property
    def is_zone_device(self) -> bool:
        return self.memory is not Memory.SYSTEM


@frozen
class Mm:
    """An address space, and the key of its slot (MmState)."""

    number: int

    @property
    def mmap_lock(self) -> RwSem:
        return RwSem("mmap_lock", self.number)

    @property
    def ptl(self) -> SpinLock:
        """The one page-table lock: a simulated address space has one page table."""
        return SpinLock("ptl", self.number)


@frozen
class Vma:
    """struct vm_area_struct, as a value: it changes only under mmap_lock for writing. [start, end) in virtual page numbers.

    `anon_vma` is the number of the anon_vma that its anonymous folios belong to, shared with forked children; None for a shared
    mapping. `pgoff` is the page of the mapping that `start` shows: of the file where there is one, else of the anonymous memory
    itself (the address at which it was first mapped), so that it stays with the memory when mremap moves it.
    """

    mm: Mm
    start: int
    end: int
    flags: VmFlags
    anon_vma: int | None
    file: int | None = None
    pgoff: int = 0


@frozen
class MmState:
    """struct mm_struct: its VMAs in order of address, its users (0 once exited), and the devices subscribed to its notifiers."""

    number: int
    vmas: tuple[Vma, ...] = ()
    users: int = 1
    subscriptions: tuple[str, ...] = ()


@frozen
class PteSlot:
    """The page-table entry of `addr` in an address space, and the key of its slot (Pte)."""

    mm: int
    addr: int

    empty = PTE_NONE


@frozen
class PmdSlot:
    """The entry of the middle level for the `addr`-aligned pages of an address space, and the key of its slot (a Pte).

    PTE_NONE, a leaf, or PteKind.TABLE. There are none where Config.pmd_order is 0: a page table then hangs everywhere.
    """

    mm: int
    addr: int


@frozen
class AnonVma:
    """The rmap tree that forked address spaces share, and the key of its slot: a tuple of the VMAs (Vma) in it.

    The tuple keeps the order in which VMAs joined, for a walk must meet a parent before its child: fork copies from parent to
    child, so a walk in that order misses no entry that fork carries over behind it.
    """

    number: int

    @property
    def rwsem(self) -> RwSem:
        return RwSem("anon_vma", self.number)


@frozen
class Tlb:
    """A CPU's TLB, and the key of its slot: a tuple of TlbEntry in the order of (mm, addr)."""

    cpu: int


@frozen
class TlbEntry:
    mm: int
    addr: int
    pte: Pte


@frozen
class LruBatch:
    """A CPU's lru_add batch, and the key of its slot: a tuple of frame numbers, each held by one reference."""

    cpu: int


@frozen
class WorkList:
    """A CPU's pending work items, and the key of its slot: a tuple of WorkItem."""

    cpu: int


@frozen
class FreePages:
    """The page allocator's free system frames, and the key of its slot: a sorted tuple of frame numbers."""


@frozen
class Pgmap:
    """A device's dev_pagemap, and the key of its slot (PgmapState)."""

    device: str


@frozen
class PgmapState:
    """`refs` is the percpu_ref's live references, one per device page in use; `dying` after memunmap_pages began."""

    refs: int = 0
    dying: bool = False


@define
class FaultContext:
    """struct vm_fault: one fault on its way through the handlers. `orig_pte` is the entry as read without the lock.

    `page` is the device-private page that a driver's migrate_to_ram is asked to bring back.
    """

    vma: Vma
    address: int
    write: bool
    orig_pte: Pte
    page: Folio | None = None


SELECT_NOTHING = Select(0)


@define
class MigrateVma:
    """struct migrate_vma: what a driver asks of migrate_vma_setup, and what it gets. The arrays are the driver's own.

    `start` and `end` are page numbers. `call` tells apart the migrations that one task has in flight, in traces.
    """

    vma: Vma | None
    start: int
    end: int
    src: list[int] | None
    dst: list[int] | None
    pgmap_owner: str | None = None
    flags: Select = SELECT_NOTHING
    fault_page: Folio | None = None
    call: int = 0
    cpages: int = 0
    npages: int = 0
