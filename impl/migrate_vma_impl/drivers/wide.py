"""A small driver that moves wide ranges of mixed pages, as drm_pagemap and NVIDIA UVM do: an example to start from.

What is in system memory and what is on the device already go to new device pages together. Back they come by hmm_range_fault
without an owner, as drm_gpusvm_range_evict does it. It keeps no page table for its device, so its invalidate callback is the
one of the base class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.machine.containers import FreeList, Shared, shared
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Errno, Select, VmFault, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class Wide(Driver):
    """Two callbacks and two operations over one free list."""

    state: ClassVar[Shared] = shared(free=FreeList())

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        """The faulting page and no other. Without memory the fault fails: to let it try again would be to spin."""
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, Select.DEVICE_PRIVATE, vmf.page)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        if not args.cpages:
            return VmFault.NONE  # somebody else is at it: the CPU looks again
        page = await self.kernel.alloc_page("alloc_page in migrate_to_ram")
        if page is not None:
            await self.kernel.folio_lock(page)
            dst[0] = await self._copy(src[0], page)
            await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)  # with nothing in dst, it restores
        return VmFault.OOM if page is None else VmFault.NONE

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        """One migration of the whole range, which lies in one VMA. What finds no device page stays where it is."""
        vma = find_vma(await self.kernel.mmap_read_lock(mm), start)
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM | Select.DEVICE_PRIVATE)
        result = await self.kernel.migrate_vma_setup(args)
        if not result:
            for i, entry in enumerate(src):
                page = await self.state.free.pop() if entry & MIGRATE_PFN_MIGRATE else None
                if page is not None:
                    await self.kernel.zone_device_page_init(page)
                    dst[i] = await self._copy(entry, page)
            await self.kernel.migrate_vma_pages(args)
            result = sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in src)
            await self.kernel.migrate_vma_finalize(args)
        await self.kernel.mmap_read_unlock(mm)
        return result

    async def _copy(self, entry: int, page: Folio) -> int:
        """Fill a locked destination page for a source entry, a hole with zeros; the destination entry."""
        source = self.kernel.migrate_pfn_to_folio(entry)
        if source is None:
            await self.kernel.clear_highpage(page)
        else:
            await self.kernel.copy_highpage(page, source)
        return migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE

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
        await self.state.free.push(folio)


def make_wide(kernel: Kernel, name: str = "wide") -> Driver:
    return Wide(kernel, name)
