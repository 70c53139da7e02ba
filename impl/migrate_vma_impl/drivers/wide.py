"""A small driver that moves wide ranges of mixed pages, as drm_pagemap and NVIDIA UVM do: an example to start from.

What is in system memory and what is on the device already go to new device pages together. Back they come by hmm_range_fault
without an owner, as drm_gpusvm_range_evict does it. It keeps no page table for its device, so its invalidate callback is the
one of the base class.

Large folios go and come whole, where the kernel has them on devices; what there is no large folio for goes page by page. A fault
brings back all of the device's pages that one leaf of the middle level maps, or could map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.machine.containers import FreeList, Lock, Shared, shared
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Errno,
    Select,
    VmFault,
    migrate_pfn,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class Wide(Driver):
    """Three callbacks and two operations over one free list, and a mutex for migrations to the device, one at a time."""

    state: ClassVar[Shared] = shared(free=FreeList(), mutex=Lock())

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        """What a leaf maps around the fault. Without memory for its page the fault fails: to try again would be to spin."""
        nr = 1 << self.kernel.config.pmd_order
        first = vmf.address - vmf.address % nr
        start, end = max(first, vmf.vma.start), min(first + nr, vmf.vma.end)
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vmf.vma, start, end, src, dst, self.owner, Select.DEVICE_PRIVATE | self._compound, vmf.page)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        await self.kernel.refill_fault_entry(args, vmf)
        if not args.cpages:
            return VmFault.NONE  # somebody else is at it: the CPU looks again
        faulting = 0 if src[0] & MIGRATE_PFN_COMPOUND else vmf.address - start
        await self._fill_from_system(src, dst)
        short = bool(src[faulting] & MIGRATE_PFN_VALID) and not dst[0 if dst[0] & MIGRATE_PFN_COMPOUND else vmf.address - start]
        if any(dst):
            await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)  # with nothing in dst, it restores
        return VmFault.OOM if short else VmFault.NONE

    @property
    def _compound(self) -> Select:
        return Select.COMPOUND if self.kernel.thp_migration_supported else Select(0)

    async def _fill_from_system(self, src: list[int], dst: list[int]) -> None:
        """System pages for what the device has; holes are left as they are."""
        for i, entry in enumerate(src):
            if not entry & MIGRATE_PFN_MIGRATE or not entry & MIGRATE_PFN_VALID:
                continue
            order = self._order(entry)
            folio = await self.kernel.folio_alloc("folio_alloc in migrate_to_ram", order) if order else None
            if folio is not None:
                await self.kernel.folio_lock(folio)
                await self._copy(dst, i, entry, folio, order)
                continue
            for k in range(1 << order):
                page = await self.kernel.alloc_page("alloc_page in migrate_to_ram")
                if page is None:
                    return
                await self.kernel.folio_lock(page)
                await self._copy(dst, i + k, self._entry_of(entry, k), page, 0)

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        """One migration of the whole range, which lies in one VMA. What finds no device page stays where it is.

        The mutex is held across setup, which tells this driver, too, of other address spaces: neither invalidate nor the fault
        path needs it (C39, C38).
        """
        vma = find_vma(await self.kernel.mmap_read_lock(mm), start)
        await self.state.mutex.lock()
        src, dst = [0] * (end - start), [0] * (end - start)
        select = Select.SYSTEM | Select.DEVICE_PRIVATE | self._compound
        args = MigrateVma(vma, start, end, src, dst, self.owner, select)
        result = await self.kernel.migrate_vma_setup(args)
        if not result:
            for i, entry in enumerate(tuple(src)):
                if entry & MIGRATE_PFN_MIGRATE:
                    await self._fill_from_device(dst, i, entry)
            await self.kernel.migrate_vma_pages(args)
            result = self._pages_of(src)
            await self.kernel.migrate_vma_finalize(args)
        await self.state.mutex.unlock()
        await self.kernel.mmap_read_unlock(mm)
        return result

    async def _fill_from_device(self, dst: list[int], i: int, entry: int) -> None:
        """Device memory for one entry: a large folio for a large one, or as many pages as there are."""
        order = self._order(entry)
        folio = await self.state.free.pop(order) if order else None
        if folio is not None:
            await self.kernel.zone_device_page_init(folio, order=order)
            await self._copy(dst, i, entry, folio, order)
            return
        for k in range(1 << order):
            page = await self.state.free.pop()
            if page is not None:
                await self.kernel.zone_device_page_init(page)
                await self._copy(dst, i + k, self._entry_of(entry, k), page, 0)

    def _order(self, entry: int) -> int:
        return self.kernel.config.pmd_order if entry & MIGRATE_PFN_COMPOUND else 0

    def _pages_of(self, src: list[int]) -> int:
        """How many pages the entries stand for that still migrate."""
        return sum(1 << self._order(entry) for entry in src if entry & MIGRATE_PFN_MIGRATE)

    def _entry_of(self, entry: int, k: int) -> int:
        """What the entry of page `k` alone would be."""
        source = self.kernel.migrate_pfn_to_folio(entry)
        return entry if source is None else migrate_pfn(source.pfn + k) | entry & MIGRATE_PFN_WRITE

    async def _copy(self, dst: list[int], i: int, entry: int, folio: Folio, order: int) -> None:
        """Fill a locked destination for a source entry, a hole with zeros, and publish it."""
        source = self.kernel.migrate_pfn_to_folio(entry)
        for k in range(1 << order):
            page = Folio(folio.pfn + k)
            if source is None:
                await self.kernel.clear_highpage(page)
            else:
                await self.kernel.copy_highpage(page, Folio(source.pfn + k))
        dst[i] = migrate_pfn(folio.pfn) | entry & MIGRATE_PFN_WRITE | (MIGRATE_PFN_COMPOUND if order else 0)

    async def to_system(self, mm: Mm, start: int, end: int) -> int:
        """Fault every page of the range in: without an owner, pages of the driver's own device too."""
        result = -Errno.EBUSY
        while result == -Errno.EBUSY:
            await self.kernel.mmu_interval_read_begin(self.name, mm)
            vmas = await self.kernel.mmap_read_lock(mm)
            result = await self.kernel.hmm_range_fault(HmmRange(self.name, mm, vmas, start, end))
            await self.kernel.mmap_read_unlock(mm)
            if not result and await self.kernel.mmu_interval_read_retry(self.name, mm):
                result = -Errno.EBUSY
        return result or end - start

    async def folio_free(self, folio: Folio) -> None:
        nr = await self.kernel.folio_nr_pages(folio)
        await self.state.free.push(folio, nr.bit_length() - 1)


def make_wide(kernel: Kernel, name: str = "wide") -> Driver:
    return Wide(kernel, name)
