"""The vocabulary of traces: one class per kind of visible step.

Rules:
- A step of a core yields exactly one event, at its linearisation point, and the event carries the values after the step. So a
  reader who folds the events knows the shared state, and needs nothing of the core.
- Events name objects by small integers and words: `pfn` (page frame number), `mm` (address space), `addr` (virtual page number,
  not a byte address), `lock` and `device` (names). `call` numbers a task's migrations in flight: 0, and 1 for one inside another.
- A lock is named `kind:number`. The core's are `ptl:3` and `mmap_lock:3` of address space 3, and the kinds `anon_vma`,
  `i_mmap`, `vma` and `lru_add_drain_all`; every other kind is a driver's.
- A device, the owner of its pages (pgmap_owner) and the driver behind both have one name.
- A field that a real trace cannot show is None, and None is never judged. An argument that is NULL is None as well.
- `pfn` is a page's own frame. Of a folio of several pages the counts, the lock and the LRU state are those of its first frame,
  its head; `RmapAdded` and `RmapRemoved` name the page that is mapped, and `mapcount` counts the folio's mappings, of any size.
- A leaf at the middle level of the page table maps `pages` pages from `addr` on: `Pmd...` events. An entry below it: `Pte...`.
- A trace begins with the events that build its first state (`FrameAdded`, `MmCreated`, `VmaMapped`, ...).

Long because it is one list, layer by layer: records without logic, which a reader searches, and whose order is the schema's.
"""

from __future__ import annotations

from migrate_vma_spec.records import frozen
from migrate_vma_spec.vocabulary import LockMode, Memory, NotifyReason, Point, Pte, Select, VmFault, VmFlags

VERSION = 1


@frozen
class Event:
    """What happened. Who did it is in the `Step` around it."""


@frozen
class Step:
    """One line of a trace: the task, the CPU it ran on, and what it did."""

    task: str
    cpu: int
    event: Event


# ---- scheduling, locks, work -----------------------------------------------------------------------------------------


@frozen
class OperationBegan(Event):
    """A task begins an operation of its workload (a system call, a touch of a page, work of the device)."""

    name: str
    arguments: tuple[int, ...] = ()


@frozen
class OperationEnded(Event):
    """It ended. `result` is 0 or a count where it succeeded, a negated errno, or minus the signal for a killing fault."""

    name: str
    result: int


@frozen
class LockTaken(Event):
    lock: str
    mode: LockMode


@frozen
class LockMissed(Event):
    """A trylock that failed."""

    lock: str
    mode: LockMode


@frozen
class LockDropped(Event):
    lock: str
    mode: LockMode


@frozen
class WaitBegan(Event):
    """Queued on the page lock's wait queue (`pfn`) or for a condition; the task holds no reference for it."""

    on: str
    pfn: int | None = None


@frozen
class WaitEnded(Event):
    on: str
    pfn: int | None = None


@frozen
class PointPassed(Event):
    """Passed a scheduling point."""

    point: Point


@frozen
class Chose(Event):
    """A data choice was answered: 0 is the default (an allocation that succeeds)."""

    what: str
    answer: int


@frozen
class DrainBegan(Event):
    """lru_add_drain_all queued its work item on every CPU."""


@frozen
class DrainEnded(Event):
    pass


@frozen
class WorkDone(Event):
    """A CPU's worker ran a work item."""

    work: str


# ---- page frames -----------------------------------------------------------------------------------------------------


@frozen
class FrameAdded(Event):
    """A page frame exists (at boot, or when a device registers its memory). It is free."""

    pfn: int
    memory: Memory
    owner: str | None = None


@frozen
class FolioAllocated(Event):
    """Taken from its allocator with one reference. Device pages come locked (zone_device_page_init).

    A folio of 1 << `order` pages has the frames from `pfn` on.
    """

    pfn: int
    refcount: int
    locked: bool
    order: int = 0


@frozen
class AllocationFailed(Event):
    """The page allocator had no free frame for `what`."""

    what: str


@frozen
class FolioFreed(Event):
    """Returned to its allocator, after its last reference was put and its driver's free callback ran: 1 << `order` pages."""

    pfn: int
    order: int = 0


@frozen
class FolioSplit(Event):
    """A locked folio of 1 << `order` pages became folios of 1 << `new_order`, whose heads have these references and mappings.

    All of them are locked now, by the task that splits; flags, charge and place in the reverse map are those of the old one.
    """

    pfn: int
    order: int
    new_order: int
    refcounts: tuple[int, ...]
    mapcounts: tuple[int, ...]


@frozen
class SplitCallback(Event):
    """The driver's folio_split: `pfn` is the head that was split, `tail` one of the new heads; None at the end of the split."""

    pfn: int
    tail: int | None


@frozen
class FreeCallback(Event):
    """The driver's folio_free / page_free begins for a device page."""

    pfn: int


@frozen
class FolioGot(Event):
    pfn: int
    refcount: int


@frozen
class FolioGetMissed(Event):
    """get_page_unless_zero or folio_try_get found no reference to add to."""

    pfn: int


@frozen
class FolioPut(Event):
    pfn: int
    refcount: int


@frozen
class FolioLocked(Event):
    pfn: int
    blocking: bool


@frozen
class FolioLockMissed(Event):
    pfn: int


@frozen
class FolioUnlocked(Event):
    pfn: int


@frozen
class FolioDirtied(Event):
    pfn: int


@frozen
class FolioCleaned(Event):
    """The dirty flag is gone: the contents were written where they belong, or nobody wants them (MADV_FREE)."""

    pfn: int


@frozen
class FolioLazyfreed(Event):
    """MADV_FREE: the contents may be dropped instead of swapped, unless the page is written again."""

    pfn: int


@frozen
class FolioRead(Event):
    """The counts and flags of a folio were read by code that decides by them."""

    pfn: int
    refcount: int
    mapcount: int


@frozen
class FolioSeen(Event):
    """A probe of a real trace looked at a folio, to which nothing happened by that. What it did not look at is None."""

    pfn: int
    refcount: int | None = None
    locked: bool | None = None
    memory: Memory | None = None


@frozen
class FolioUptodate(Event):
    """__folio_mark_uptodate: the contents are complete before the page-table entry that shows them."""

    pfn: int


@frozen
class LruIsolated(Event):
    """folio_isolate_lru: where it was `done`, the same step took the isolation's reference. `refcount` is the count after it."""

    pfn: int
    done: bool
    refcount: int | None = None


@frozen
class LruAdded(Event):
    """folio_add_lru: into this CPU's batch, which holds a reference of its own until it is drained."""

    pfn: int
    refcount: int


@frozen
class LruPutBack(Event):
    """folio_putback_lru: back on a list; the isolation's reference is put by the same step."""

    pfn: int
    refcount: int


@frozen
class LruDrained(Event):
    """A CPU's batch went to the lists, each folio losing the batch's reference (lru_add_drain). `freed` had no other."""

    pfns: tuple[int, ...]


@frozen
class LruBatchRead(Event):
    """lru_add_drain found these folios in its CPU's batch, and goes on to drain them."""

    pfns: tuple[int, ...]


@frozen
class MemcgCharged(Event):
    pfn: int


@frozen
class MemcgUncharged(Event):
    pfn: int


@frozen
class RmapAdded(Event):
    """One more mapping: of a page, or by one leaf of `pages` pages from `pfn` on."""

    pfn: int
    mm: int
    addr: int
    mapcount: int
    exclusive: bool
    pages: int = 1


@frozen
class RmapRemoved(Event):
    pfn: int
    mm: int
    addr: int
    mapcount: int
    pages: int = 1


@frozen
class ExclusiveShared(Event):
    """folio_try_share_anon_rmap: the page gives up anon-exclusivity (`done`), or may not (pinned)."""

    pfn: int
    done: bool


@frozen
class ExclusiveTaken(Event):
    """A write fault on a page that is mapped read-only: it becomes exclusive to its one user (`done`), or has others."""

    pfn: int
    refcount: int
    done: bool


@frozen
class FolioChecked(Event):
    """migrate_vma_check_page after unmap."""

    pfn: int
    refcount: int
    mapcount: int
    ok: bool


@frozen
class FolioMoved(Event):
    """folio_migrate_mapping: `moved` to `dst`, or refused because the count was not the expected one."""

    pfn: int
    dst: int
    refcount: int
    expected: int
    moved: bool


@frozen
class FlagsMoved(Event):
    """folio_migrate_flags, and the memcg charge with them (mem_cgroup_migrate)."""

    pfn: int
    dst: int


# ---- page cache and swap ---------------------------------------------------------------------------------------------


@frozen
class CacheRead(Event):
    """The page cache of a file, or the swap cache (`file` None, `index` the swap slot), was asked for a page without a lock.

    `pfn` is None where it has none.
    """

    file: int | None
    index: int
    pfn: int | None


@frozen
class PageCacheAdded(Event):
    """The page cache holds this folio for page `index` of a file, with a reference of its own. A shared anonymous mapping is
    one of a file without a name (mm/shmem.c).
    """

    pfn: int
    file: int
    index: int
    refcount: int


@frozen
class PageCacheRemoved(Event):
    pfn: int
    file: int
    index: int
    refcount: int


@frozen
class SwapCacheAdded(Event):
    """The swap cache holds this folio for a swap slot, with a reference of its own."""

    pfn: int
    swap: int
    refcount: int


@frozen
class SwapCacheRemoved(Event):
    pfn: int
    swap: int
    refcount: int


@frozen
class SwapCounted(Event):
    """The number of page-table entries that hold the swap slot has changed; with 0, and no page in the swap cache, it is free."""

    swap: int
    count: int


# ---- contents --------------------------------------------------------------------------------------------------------


@frozen
class CpuAccessed(Event):
    """A load or store by a CPU reached memory through its TLB."""

    mm: int
    addr: int
    pfn: int | None
    write: bool


@frozen
class DeviceAccessed(Event):
    """A load or store by the device reached memory through the driver's mirror page table."""

    device: str
    mm: int
    addr: int
    pfn: int | None
    write: bool


@frozen
class PageCopied(Event):
    src: int
    dst: int


@frozen
class PageCleared(Event):
    pfn: int


@frozen
class PageFilled(Event):
    """A page was read in: from page `index` of a file, or from a swap slot (`file` None)."""

    pfn: int
    file: int | None
    index: int


@frozen
class PageWritten(Event):
    """A page was written out: to page `index` of a file, or to a swap slot (`file` None)."""

    pfn: int
    file: int | None
    index: int


# ---- page tables and TLBs --------------------------------------------------------------------------------------------


@frozen
class PteRead(Event):
    mm: int
    addr: int
    pte: Pte


@frozen
class PteChanged(Event):
    mm: int
    addr: int
    old: Pte
    new: Pte


@frozen
class PmdRead(Event):
    """The entry of the middle level for the `pages` pages from `addr` on."""

    mm: int
    addr: int
    pages: int
    pmd: Pte


@frozen
class PmdChanged(Event):
    mm: int
    addr: int
    pages: int
    old: Pte
    new: Pte


@frozen
class PmdSplit(Event):
    """A leaf became a page table with these entries, which map the same pages (__split_huge_pmd)."""

    mm: int
    addr: int
    old: Pte
    ptes: tuple[Pte, ...]


@frozen
class PageTableAllocated(Event):
    """A page table was allocated beforehand (pte_alloc_one), to be deposited behind a leaf; the address space has `tables` now.

    One that is hung into an empty entry at once shows as that PmdChanged alone.
    """

    mm: int
    tables: int


@frozen
class PageTableFreed(Event):
    """A page table that hung nowhere any more, or that was not needed, is gone; the address space has `tables` left."""

    mm: int
    tables: int


@frozen
class CacheFlushed(Event):
    """flush_cache_page, or flush_cache_range of `pages` pages."""

    mm: int
    addr: int
    pages: int = 1


@frozen
class LazyMmuEntered(Event):
    """arch_enter_lazy_mmu_mode: until it is left, changed entries need not have reached the page table that a CPU walks."""

    mm: int


@frozen
class LazyMmuLeft(Event):
    mm: int


@frozen
class FlushDeferred(Event):
    """set_tlb_ubc_flush_pending: the flush of cleared entries is owed by this task, for all that it unmaps in one batch."""

    mm: int
    start: int
    end: int


@frozen
class WriteProtectSeqChanged(Event):
    """fork begins (`writing`) or has ended to write-protect the entries of an address space (mm->write_protect_seq)."""

    mm: int
    writing: bool


@frozen
class WriteProtectSeqRead(Event):
    """get_user_pages_fast looked at that: `stale` where a fork is at it, or was since the task first looked."""

    mm: int
    stale: bool


@frozen
class TlbFilled(Event):
    """This CPU's TLB took a translation. `young` and `dirty` are what the walk set in the PTE."""

    mm: int
    addr: int
    pte: Pte


@frozen
class TlbFlushed(Event):
    """Every CPU's translations of [start, end) are gone."""

    mm: int
    start: int
    end: int


# ---- address spaces --------------------------------------------------------------------------------------------------


@frozen
class MmCreated(Event):
    mm: int


@frozen
class MmForked(Event):
    """fork has copied the VMAs; the page tables follow entry by entry."""

    mm: int
    child: int


@frozen
class MmExited(Event):
    mm: int


@frozen
class MmGot(Event):
    """mmget_not_zero: the address space cannot exit while the caller uses it."""

    mm: int
    users: int


@frozen
class MmGetMissed(Event):
    mm: int


@frozen
class MmPut(Event):
    """mmput. The user that leaves none behind tears the address space down."""

    mm: int
    users: int


@frozen
class VmaMapped(Event):
    """[start, end) is mapped: private anonymous memory (`anonymous`), or a file from its page `index` on.

    A private mapping of a file is not anonymous, though pages that were written through it are.
    """

    mm: int
    start: int
    end: int
    flags: VmFlags
    anonymous: bool
    file: int | None = None
    index: int = 0


@frozen
class VmaChanged(Event):
    """The flags of what is mapped in [start, end) changed (mprotect, madvise, userfaultfd, clear_refs)."""

    mm: int
    start: int
    end: int
    flags: VmFlags


@frozen
class VmaMoved(Event):
    """mremap made what is mapped in [start, end) appear at `to`; the page tables follow entry by entry."""

    mm: int
    start: int
    end: int
    to: int


@frozen
class VmaUnmapped(Event):
    mm: int
    start: int
    end: int


@frozen
class InvalidateBegan(Event):
    """mmu_notifier_invalidate_range_start. `owner` is set for reasons that carry one."""

    mm: int
    start: int
    end: int
    reason: NotifyReason
    owner: str | None


@frozen
class InvalidateEnded(Event):
    mm: int
    start: int
    end: int


@frozen
class DeviceMapped(Event):
    """The driver's mirror page table maps `addr`; `pfn` is None for the zero page."""

    device: str
    mm: int
    addr: int
    pfn: int | None
    write: bool


@frozen
class DeviceUnmapped(Event):
    device: str
    mm: int
    addr: int
    pfn: int | None


@frozen
class IntervalRead(Event):
    """mmu_interval_read_begin of the device's interval notifier."""

    device: str
    mm: int


@frozen
class IntervalInvalidated(Event):
    """mmu_interval_set_seq in the driver's invalidate callback: the reads of this device and mm that are open are stale now."""

    device: str
    mm: int


@frozen
class IntervalRetry(Event):
    """mmu_interval_read_retry: `stale` when an invalidation came since the read began."""

    device: str
    mm: int
    stale: bool


# ---- the fault path --------------------------------------------------------------------------------------------------


@frozen
class FaultBegan(Event):
    """handle_mm_fault, by a CPU's access or by hmm_range_fault (`device` True).

    `vma_lock`: under the VMA's own lock, without mmap_lock.
    """

    mm: int
    addr: int
    write: bool
    device: bool = False
    vma_lock: bool = False


@frozen
class UserfaultRaised(Event):
    """handle_userfault tells the monitor of a fault: of a missing page, or (`write_protected`) of a write that it guards."""

    mm: int
    addr: int
    write_protected: bool


@frozen
class FaultEnded(Event):
    mm: int
    addr: int
    result: VmFault


@frozen
class CallbackEntered(Event):
    """do_swap_page calls the driver's migrate_to_ram; `pfn` is vmf->page."""

    pfn: int
    mm: int
    addr: int


@frozen
class CallbackReturned(Event):
    pfn: int
    mm: int
    addr: int
    result: VmFault


@frozen
class RangeFaultBegan(Event):
    """hmm_range_fault over [start, end)."""

    device: str
    mm: int
    start: int
    end: int
    write: bool


@frozen
class RangeFaultEnded(Event):
    """Its errno (0 or negated) and, per page, the frame number that it reports, or None."""

    device: str
    mm: int
    start: int
    result: int
    pfns: tuple[int | None, ...]


# ---- the migrate_vma calls -------------------------------------------------------------------------------------------


@frozen
class SetupCalled(Event):
    """migrate_vma_setup with the arguments as the caller gave them; `nsrc` and `ndst` are the lengths of the arrays."""

    call: int
    mm: int | None
    start: int
    end: int
    select: Select
    owner: str | None
    fault_page: int | None
    nsrc: int | None
    ndst: int | None


@frozen
class SetupReturned(Event):
    call: int
    result: int
    start: int
    end: int
    cpages: int
    npages: int
    src: tuple[int, ...] | None


@frozen
class EntryRefilled(Event):
    """The driver wrote src[index] after setup, through refill_fault_entry or by itself."""

    call: int
    index: int
    entry: int


@frozen
class RangeCalled(Event):
    """migrate_device_range or migrate_device_pfns with these frame numbers."""

    call: int
    pfns: tuple[int, ...]


@frozen
class RangeReturned(Event):
    call: int
    result: int
    src: tuple[int, ...]


@frozen
class PagesCalled(Event):
    """migrate_vma_pages, or migrate_device_pages (`vma` False)."""

    call: int
    src: tuple[int, ...] | None
    dst: tuple[int, ...] | None
    vma: bool


@frozen
class PagesReturned(Event):
    call: int
    src: tuple[int, ...] | None


@frozen
class FinalizeCalled(Event):
    call: int
    src: tuple[int, ...] | None
    dst: tuple[int, ...] | None
    vma: bool


@frozen
class FinalizeReturned(Event):
    call: int


# ---- the device's life, a driver's own state, and the end of a broken run --------------------------------------------


@frozen
class DeviceUnbound(Event):
    """memunmap_pages begins for the device: its pages' references are no longer to be had."""

    device: str


@frozen
class DeviceGone(Event):
    """memunmap_pages is done: no page of the device holds a reference to its pgmap."""

    device: str


@frozen
class PgmapPut(Event):
    """A freed device page dropped its reference to the pgmap, as its last act; `refs` are left."""

    device: str
    refs: int


@frozen
class ZoneDeviceDataRead(Event):
    """The driver looked at page->zone_device_data."""

    pfn: int


@frozen
class NotifierSubscribed(Event):
    """mmu_interval_notifier_insert: the device's callback hears of invalidations of this address space from now on."""

    device: str
    mm: int


@frozen
class DriverStep(Event):
    """A step on a driver's own state (`field` of its declaration), in words; no clause reads it."""

    device: str
    field: str
    what: str


@frozen
class Oops(Event):
    """The kernel's own checks stop here (BUG_ON, use of freed memory): what would follow is undefined and is not judged."""

    what: str
    pfn: int | None = None
