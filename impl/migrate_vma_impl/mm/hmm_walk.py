"""The page walk of hmm_range_fault: what each entry offers, and what it lacks of what is asked (mm/hmm.c, 7.3).

Rules:
- Entries are read without the page-table lock: an invalidation voids what was read of them.
- Nothing is faulted here. What needs a fault is noted in HmmVmaWalk, and the walk is left (HMM_FAULT_PENDING): its caller takes
  the fault. An address whose result is not stored yet is where the next walk begins.
- A page of the caller's own device is reported as it is, even where a write was asked for and its entry is read-only.
- What an entry needs is needed of all the pages behind it, up to the end of its page table or VMA: the kernel faults them all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import define

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import migrate
from migrate_vma_impl.mm.hmm_types import HmmPfn, HmmRange, HmmRequest
from migrate_vma_impl.mm.huge_memory_migrate import pmd_migration_entry_wait
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.pgtable import hpage_nr, leaf_page, pmd_ranges, pmdp_get, pte_present, ptep_get
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

HMM_FAULT_PENDING = -Errno.EAGAIN


class Need(enum.IntEnum):
    """What a page needs before it can be reported; of several pages, the most."""

    NOTHING = 0
    FAULT = 1
    WRITE_FAULT = 2


@define
class HmmVmaWalk:
    """struct hmm_vma_walk. The caller's loop takes the fault that `need` tells of, on [last, end).

    `unlockable`: a fault may drop mmap_lock; then it is not `locked` any more.
    """

    range_: HmmRange
    last: int
    unlockable: bool = False
    locked: bool = True
    end: int = 0
    need: Need = Need.NOTHING


NOTHING_THERE = HmmPfn()
ERROR = HmmPfn(error=True)


def hmm_pte_need_fault(request: HmmRequest, found: HmmPfn) -> Need:
    if not request & HmmRequest.FAULT:
        return Need.NOTHING
    if request & HmmRequest.WRITE and not found.write:
        return Need.WRITE_FAULT
    return Need.NOTHING if found.valid else Need.FAULT


def hmm_range_need_fault(range_: HmmRange, addresses: Iterable[int], found: HmmPfn) -> Need:
    return max((hmm_pte_need_fault(range_.request(addr), found) for addr in addresses), default=Need.NOTHING)


def hmm_record_fault(walk: HmmVmaWalk, addr: int, end: int, need: Need) -> int:
    walk.last, walk.end, walk.need = addr, end, need
    return HMM_FAULT_PENDING


def _fill(walk: HmmVmaWalk, addr: int, end: int, found: HmmPfn) -> int:
    """hmm_pfns_fill: the same of every page, but that each has its own frame."""
    for i in range(end - addr):
        page = found.folio and Folio(found.folio.pfn + i)
        walk.range_.hmm_pfns.append(evolve(found, folio=page))
    return 0


async def walk_page_range(kernel: Kernel, walk: HmmVmaWalk) -> int:
    """From walk.last to the end of the range, VMA by VMA. 0, HMM_FAULT_PENDING, -EBUSY after a wait, or another errno."""
    range_, addr = walk.range_, walk.last
    while addr < range_.end:
        vma = find_vma(range_.vmas, addr)
        if vma is None:
            end = min([range_.end, *(each.start for each in range_.vmas if each.start > addr)])
            result = _walk_gap(walk, addr, end)
        else:
            end = min(range_.end, vma.end)
            result = await _walk_vma(kernel, walk, vma, addr, end)
        if result:
            return result
        addr = end
    return 0


def _walk_gap(walk: HmmVmaWalk, addr: int, end: int) -> int:
    """hmm_vma_walk_hole without a VMA."""
    if hmm_range_need_fault(walk.range_, range(addr, end), NOTHING_THERE):
        return -Errno.EFAULT
    return _fill(walk, addr, end, ERROR)


async def _walk_vma(kernel: Kernel, walk: HmmVmaWalk, vma: Vma, addr: int, end: int) -> int:
    """hmm_vma_walk_test, then the entries: a VMA that devices cannot use is refused, or skipped if nothing is asked."""
    if vma.flags & (VmFlags.IO | VmFlags.PFNMAP) or not vma.flags & VmFlags.READ:
        return _walk_gap(walk, addr, end)
    walk_entry = hmm_vma_walk_hugetlb_entry if vma.flags & VmFlags.HUGETLB else hmm_vma_walk_pmd
    for first, last in pmd_ranges(kernel, addr, end):
        result = await walk_entry(kernel, walk, vma, first, last)
        if result:
            return result
    return 0


# ---- the middle level ------------------------------------------------------------------------------------------------


async def hmm_vma_walk_pmd(kernel: Kernel, walk: HmmVmaWalk, vma: Vma, start: int, end: int) -> int:
    """One entry of the middle level: empty, a leaf, or a page table."""
    pmd = await pmdp_get(kernel, walk.range_.mm, start)
    if pmd.kind is PteKind.TABLE:
        return await _walk_ptes(kernel, walk, vma, start, end)
    if pmd.kind is PteKind.MIGRATION:
        if not hmm_range_need_fault(walk.range_, range(start, end), NOTHING_THERE):
            return _fill(walk, start, end, NOTHING_THERE)
        walk.last = start
        await pmd_migration_entry_wait(kernel, FaultContext(vma, start, write=False, orig_pte=PTE_NONE, orig_pmd=pmd))
        return -Errno.EBUSY
    return hmm_vma_handle_pmd(kernel, walk, start, end, pmd)


def hmm_vma_handle_pmd(kernel: Kernel, walk: HmmVmaWalk, start: int, end: int, pmd: Pte) -> int:
    """An empty entry or a leaf. Another device's folio is an error if nothing is asked for; as page by page it is not."""
    leaf = leaf_page(pmd, start % hpage_nr(kernel))
    found = _offered(kernel, walk.range_, leaf)
    if found.valid:
        found = evolve(found, order=kernel.config.pmd_order)
    own_pages = found.valid and not pte_present(pmd)
    need = Need.NOTHING if own_pages else hmm_range_need_fault(walk.range_, range(start, end), found)
    if need is not Need.NOTHING:
        return hmm_record_fault(walk, start, end, need)
    return _fill(walk, start, end, ERROR if pmd.kind is PteKind.DEVICE_PRIVATE and not found.valid else found)


async def hmm_vma_walk_hugetlb_entry(kernel: Kernel, walk: HmmVmaWalk, vma: Vma, start: int, end: int) -> int:
    """Under the page-table lock. What is asked of the first page counts for all; an empty entry has its order all the same."""
    await spin_lock(vma.mm.ptl)
    pmd = await pmdp_get(kernel, vma.mm, start)
    await spin_unlock(vma.mm.ptl)
    leaf = leaf_page(pmd, start % hpage_nr(kernel))
    found = evolve(_offered(kernel, walk.range_, leaf), order=kernel.config.pmd_order)
    need = hmm_pte_need_fault(walk.range_.request(start), found)
    return hmm_record_fault(walk, start, end, need) if need else _fill(walk, start, end, found)


# ---- the entries below it --------------------------------------------------------------------------------------------


async def _walk_ptes(kernel: Kernel, walk: HmmVmaWalk, vma: Vma, start: int, end: int) -> int:
    for addr in range(start, end):
        result = await hmm_vma_handle_pte(kernel, walk, vma, addr, end)
        if result:
            return result
    return 0


async def hmm_vma_handle_pte(kernel: Kernel, walk: HmmVmaWalk, vma: Vma, addr: int, end: int) -> int:
    range_ = walk.range_
    pte = await ptep_get(range_.mm, addr)
    found = _offered(kernel, range_, pte)
    own_page = found.valid and not pte_present(pte)
    need = Need.NOTHING if own_page else hmm_pte_need_fault(range_.request(addr), found)
    if need is Need.NOTHING:
        range_.hmm_pfns.append(found)
        return 0
    if pte.kind is PteKind.MIGRATION:
        walk.last = addr
        await migrate.migration_entry_wait(kernel, FaultContext(vma, addr, need is Need.WRITE_FAULT, pte))
        return -Errno.EBUSY
    if not kernel.generation.steps.hmm_faults_in(pte):
        return -Errno.EFAULT
    return hmm_record_fault(walk, addr, end, need)


def _offered(kernel: Kernel, range_: HmmRange, pte: Pte) -> HmmPfn:
    """What an entry offers as it is: a present page, the zero page, or a page of the caller's own device."""
    if pte_present(pte):
        return HmmPfn(valid=True, write=pte.write, folio=None if pte.pfn is None else Folio(pte.pfn))
    if pte.pfn is not None and kernel.generation.steps.hmm_owns(kernel, range_.dev_private_owner, pte):
        return HmmPfn(valid=True, write=pte.write, folio=Folio(pte.pfn))
    return NOTHING_THERE


def own_device_private(kernel: Kernel, owner: str | None, pte: Pte) -> bool:
    """Whether an entry is of a device-private page that belongs to the caller."""
    return pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None and kernel.owner_of(Folio(pte.pfn)) == owner


_FAULTED_IN = frozenset(
    {PteKind.NONE, PteKind.PRESENT, PteKind.ZERO, PteKind.MARKER, PteKind.SWAP, PteKind.DEVICE_PRIVATE, PteKind.EXCLUSIVE}
)


def is_faulted_in(pte: Pte) -> bool:
    """What a fault can turn into a page, another device's page among it; the rest is an error for who asks for it."""
    return pte.kind in _FAULTED_IN
