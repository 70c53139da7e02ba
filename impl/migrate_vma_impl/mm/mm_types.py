"""Kernel objects: handles, which name slots of shared state, and the values that those slots hold.

Mirrors include/linux/mm_types.h and include/linux/mm.h as far as order-0 anonymous memory needs. A handle (Folio, Mm, PteSlot,
...) is what code passes around and keeps in its locals; a value (FolioState, MmState, Pte, ...) is what traps read and replace.
Addresses are virtual page numbers: one step is one page.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

from attrs import define

from migrate_vma_impl.machine.handles import Handle
from migrate_vma_impl.machine.locks import RwSem, SpinLock
from migrate_vma_spec.records import evolve, frozen
from migrate_vma_spec.vocabulary import PTE_NONE, Lru, Memory, Pte, PteKind, Select, VmFlags


@frozen(eq=False)
class Folio(Handle):
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
    to a file, at page `index` of either; `swap` is its slot in the swap cache. `lazyfree` (MADV_FREE; PG_swapbacked clear) says
    that its contents may be dropped while nobody writes them again.

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
    lazyfree: bool = False

    @property
    def is_zone_device(self) -> bool:
        return self.memory is not Memory.SYSTEM

    @property
    def maybe_dma_pinned(self) -> bool:
        """folio_maybe_dma_pinned, where exclusivity is to be given up. A device-private page cannot be pinned."""
        return self.pins > 0 and self.memory is not Memory.DEVICE_PRIVATE


@frozen(eq=False)
class Mm(Handle):
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

    `soft_dirty_tracked` is the absence of VM_SOFTDIRTY: clear_refs has begun to watch which pages are written. `uffd_forks` says
    that the monitor of its userfaultfd follows forks (UFFD_FEATURE_EVENT_FORK).
    """

    mm: Mm
    start: int
    end: int
    flags: VmFlags
    anon_vma: int | None
    file: int | None = None
    pgoff: int = 0
    soft_dirty_tracked: bool = False
    uffd_forks: bool = False

    @property
    def anonymous(self) -> bool:
        """vma_is_anonymous: no file is mapped, nor pages of a driver (MIXEDMAP), nor hugetlb memory, which is a file's.

        Pages written through a private mapping of a file are anonymous all the same.
        """
        return self.file is None and not self.flags & (VmFlags.MIXEDMAP | VmFlags.HUGETLB)

    def index_of(self, addr: int) -> int:
        """linear_page_index: the page of the mapping that `addr` shows."""
        return self.pgoff + addr - self.start

    def address_of(self, index: int) -> int | None:
        """vma_address: where the mapping's page `index` is shown, or None if it is not."""
        addr = self.start + index - self.pgoff
        return addr if self.start <= addr < self.end else None

    def part(self, start: int, end: int) -> Vma:
        """What [start, end), which lies inside, is when the VMA is split."""
        return evolve(self, start=start, end=end, pgoff=self.index_of(start))


@frozen
class Userfault:
    """A task in the wait queue of an address space's userfaultfd: for the page at `addr`, or for a fork to be noticed (None).

    `told`: the monitor has read the message.
    """

    task: str
    addr: int | None
    write_protected: bool = False
    told: bool = False


@frozen
class MmState:
    """struct mm_struct: its VMAs in order of address, its users (0 once exited), and the devices subscribed to its notifiers.

    `vma_locks` are the locks of its VMAs that are held: the VMA's first page, and the number of readers, or, negative, how
    often its writer took it. `flush_pending` counts those who change entries without mmap_lock for writing, and have yet to flush
    (mm_tlb_flush_pending); `flush_batched` says that reclaim may owe a flush (tlb_flush_batched). `userfaults` are
    the tasks that wait for the monitor of its userfaultfd.
    """

    number: int
    vmas: tuple[Vma, ...] = ()
    users: int = 1
    subscriptions: tuple[str, ...] = ()
    vma_locks: tuple[tuple[int, int], ...] = ()
    flush_pending: int = 0
    flush_batched: bool = False
    userfaults: tuple[Userfault, ...] = ()


@frozen(eq=False)
class PteSlot(Handle):
    """The page-table entry of `addr` in an address space, and the key of its slot (Pte)."""

    mm: int
    addr: int

    empty = PTE_NONE


@frozen(eq=False)
class PmdSlot(Handle):
    """The entry of the middle level for the `addr`-aligned pages of an address space, and the key of its slot (a Pte).

    PTE_NONE, a leaf, or PteKind.TABLE. There are none where Config.pmd_order is 0: a page table then hangs everywhere.
    """

    mm: int
    addr: int


@frozen(eq=False)
class PageTables(Handle):
    """How many page tables an address space has (mm_struct.pgtables_bytes), and the key of that slot (an int).

    Those that hang in the middle level, those deposited behind its leaves, and those allocated beforehand and not used yet.
    """

    mm: int


@frozen(eq=False)
class AnonVma(Handle):
    """The rmap tree that forked address spaces share, and the key of its slot: a tuple of the VMAs (Vma) in it.

    The tuple keeps the order in which VMAs joined, for a walk must meet a parent before its child: fork copies from parent to
    child, so a walk in that order misses no entry that fork carries over behind it.
    """

    number: int

    @property
    def rwsem(self) -> RwSem:
        return RwSem("anon_vma", self.number)


@frozen(eq=False)
class IMmap(Handle):
    """The VMAs that map a file (address_space.i_mmap), and the key of its slot: a tuple of them in the order of joining,
    as in AnonVma.
    """

    file: int

    @property
    def rwsem(self) -> RwSem:
        return RwSem("i_mmap", self.file)


@frozen(eq=False)
class PageCache(Handle):
    """The page cache of a file, and the key of its slot: a tuple with the frame number of each page of the file, or None."""

    file: int


@frozen(eq=False)
class SwapSlot(Handle):
    """A slot of the swap device, and the key of its slot of shared state (SwapSlotState)."""

    number: int


@frozen
class SwapSlotState:
    """An entry of the swap table: how many page-table entries hold the slot, and the folio that the swap cache has for it.

    With neither it is free.
    """

    count: int = 0
    folio: int | None = None


@frozen(eq=False)
class Tlb(Handle):
    """A CPU's TLB, and the key of its slot: a tuple of TlbEntry in the order of (mm, addr)."""

    cpu: int


@frozen
class TlbEntry:
    mm: int
    addr: int
    pte: Pte


@frozen(eq=False)
class LruBatch(Handle):
    """A CPU's lru_add batch, and the key of its slot: a tuple of frame numbers, each held by one reference."""

    cpu: int


@frozen(eq=False)
class WorkList(Handle):
    """A CPU's pending work items, and the key of its slot: a tuple of WorkItem."""

    cpu: int


@frozen(eq=False)
class FreePages(Handle):
    """The page allocator's free system frames, and the key of its slot: a sorted tuple of frame numbers."""


@frozen(eq=False)
class Pgmap(Handle):
    """A device's dev_pagemap, and the key of its slot (PgmapState)."""

    device: str


@frozen
class PgmapState:
    """`refs` is the percpu_ref's live references, one per device page in use; `dying` after memunmap_pages began."""

    refs: int = 0
    dying: bool = False


class FaultFlag(enum.IntFlag):
    """enum fault_flag, the ones that handlers ask (include/linux/mm_types.h).

    ALLOW_RETRY: the handler may drop the lock of the address space and answer RETRY. VMA_LOCK: that lock is the VMA's own.
    UNSHARE: the page must become exclusive, but not writable (for a pin that only reads).
    """

    NONE = 0
    ALLOW_RETRY = 1 << 2
    UNSHARE = 1 << 10
    VMA_LOCK = 1 << 12


@define
class FaultContext:
    """struct vm_fault: one fault on its way through the handlers. `orig_pte` is the entry as read without the lock.

    `orig_pmd` is the entry of the middle level, read so too: a leaf where the fault is one of the whole range that it maps.

    `page` is the device-private page that a driver's migrate_to_ram is asked to bring back: of a large folio the page that was
    touched, or its first one where the whole folio faults (`pmd_fault`; in C vmf->pte is NULL then).
    """

    vma: Vma
    address: int
    write: bool
    orig_pte: Pte
    page: Folio | None = None
    flags: FaultFlag = FaultFlag.NONE
    orig_pmd: Pte = PTE_NONE

    @property
    def pmd_fault(self) -> bool:
        return self.orig_pmd.kind is PteKind.DEVICE_PRIVATE


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
