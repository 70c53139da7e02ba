"""Migration in the kernel's test driver as it was when device-private memory had single pages only (6.1).

Rules:
- Each window of an ioctl lies inside one VMA. What cannot migrate is left where it is, and no error: reading back tells.
- A device page that is initialised belongs to a migration; finalize lets go of it, whether it migrated or not.
- The fault path erases the mirror's entry without the mutex, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from migrate_vma_impl.drivers.test_hmm_access import DmirrorAccess, Reply
from migrate_vma_impl.machine.containers import FreeList, Shared, shared
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Errno,
    Memory,
    Select,
    VmFault,
    VmFlags,
    migrate_pfn,
)

WINDOW = 64
"""Pages in one migrate_vma of the ioctls (6.1)."""

_Window = Callable[[Vma, int, int], Coroutine[Any, Any, int]]


def successful_migrated_pages(src: list[int]) -> int:
    """dmirror_successful_migrated_pages: entries, of which one may stand for a large folio."""
    both = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE
    return sum(entry & both == both for entry in src)


class DmirrorMigrate(DmirrorAccess):
    """struct dmirror_device: the device's memory, and how pages come into it and leave it."""

    state: ClassVar[Shared] = shared(**DmirrorAccess.state.fields, free=FreeList())
    adapted: ClassVar[bool] = False
    writes_holes: ClassVar[bool] = False
    """dmirror_migrate_alloc_and_copy of 6.1: what fills a hole may be written if the VMA may. 7.3 says so of no hole."""

    @property
    def select_device(self) -> Select:
        """dmirror_select_device."""
        return Select.DEVICE_COHERENT if self.memory is Memory.DEVICE_COHERENT else Select.DEVICE_PRIVATE

    @property
    def window(self) -> int:
        """How many pages one migrate_vma of the ioctls covers at most."""
        return WINDOW

    # ---- back to system memory: dmirror_devmem_fault, dmirror_migrate_to_system ------------------------------------------

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        """dmirror_devmem_fault."""
        if vmf.page is None:
            return VmFault.SIGBUS
        mirrored: Mm = await self.kernel.zone_device_data(vmf.page)
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, self.select_device, vmf.page)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        if self.adapted:
            await self.kernel.refill_fault_entry(args, vmf)
        await self._system_alloc_and_copy(src, dst, mirrored, vmf.address, "alloc_page in migrate_to_ram")
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.NONE

    async def _system_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm, start: int, what: str) -> None:
        """dmirror_devmem_fault_alloc_and_copy: what gets no page keeps the entry 0, and stays where it is."""
        for i, entry in enumerate(src):
            spage = self.kernel.migrate_pfn_to_folio(entry)
            if spage is None or not entry & MIGRATE_PFN_MIGRATE:
                continue
            dpage = await self.kernel.alloc_page(what)
            if dpage is None:
                continue
            await self.kernel.folio_lock(dpage)
            await self.state.mirror.unmap(mm, start + i)
            await self.kernel.copy_highpage(dpage, spage)
            dst[i] = migrate_pfn(dpage.pfn) | entry & MIGRATE_PFN_WRITE

    async def to_system(self, mm: Mm, start: int, end: int) -> int:
        """HMM_DMIRROR_MIGRATE_TO_SYS."""
        return await self._windows(mm, start, end, self._window_to_system)

    async def _window_to_system(self, vma: Vma, start: int, end: int) -> int:
        """One round of dmirror_migrate_to_system: the number of pages that came back."""
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, self.select_device)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        await self._system_alloc_and_copy(src, dst, vma.mm, start, "alloc_page in migrate_to_system")
        await self.kernel.migrate_vma_pages(args)
        migrated = successful_migrated_pages(src)
        await self.kernel.migrate_vma_finalize(args)
        return migrated

    # ---- to the device: dmirror_migrate_to_device --------------------------------------------------------------------------

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        """HMM_DMIRROR_MIGRATE_TO_DEV."""
        return (await self._migrate_to_device(mm, start, end)).number

    async def _migrate_to_device(self, mm: Mm, start: int, end: int) -> Reply:
        """dmirror_migrate_to_device, which reads back through the mirror what it migrated."""
        result = await self._windows(mm, start, end, self._window_to_device)
        return Reply(result) if result < 0 else await self._read_back(mm, start, end)

    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        await self._device_alloc_and_copy(src, dst, vma)
        await self.kernel.migrate_vma_pages(args)
        await self._finalize_and_map(src, dst, vma.mm, start)
        await self.kernel.migrate_vma_finalize(args)
        return 0

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        """dmirror_migrate_alloc_and_copy: a copy, or a cleared page for a hole."""
        for i, entry in enumerate(src):
            if not entry & MIGRATE_PFN_MIGRATE:
                continue
            spage = self.kernel.migrate_pfn_to_folio(entry)
            dpage = await self.state.free.pop()
            if dpage is None:
                continue
            await self.kernel.zone_device_page_init(dpage, vma.mm)
            dst[i] = migrate_pfn(dpage.pfn) | entry & MIGRATE_PFN_WRITE
            if spage is not None:
                await self.kernel.copy_highpage(dpage, spage)
                continue
            await self.kernel.clear_highpage(dpage)
            if self.writes_holes and vma.flags & VmFlags.WRITE:
                dst[i] |= MIGRATE_PFN_WRITE

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        """dmirror_migrate_finalize_and_map: between pages and finalize, what still has MIGRATE."""
        await self.state.mutex.lock()
        for i, entry in enumerate(dst):
            dpage = self.kernel.migrate_pfn_to_folio(entry)
            if dpage is not None and src[i] & MIGRATE_PFN_MIGRATE:
                await self.state.mirror.map(mm, start + i, dpage, bool(entry & MIGRATE_PFN_WRITE))
        await self.state.mutex.unlock()

    async def _windows(self, mm: Mm, start: int, end: int, migrate: _Window) -> int:
        """One migrate_vma for each window inside one VMA: the sum of what they answer, or the first error."""
        if not await self.kernel.mmget_not_zero(mm):
            return -Errno.EINVAL
        vmas = await self.kernel.mmap_read_lock(mm)
        done, addr = 0, start
        while addr < end and done >= 0:
            vma = find_vma(vmas, addr)
            if vma is None or not vma.flags & VmFlags.READ:
                done = -Errno.EINVAL
                break
            first = addr
            addr = min(end, addr + self.window, vma.end)
            result = await migrate(vma, first, addr)
            done = result if result < 0 else done + result
        await self.kernel.mmap_read_unlock(mm)
        await self.kernel.mmput(mm)
        return done

    # ---- eviction: dmirror_device_evict_chunk, dmirror_device_remove_chunks ------------------------------------------------

    async def evict(self) -> int:
        """dmirror_device_evict_chunk, on a device that stays: the last file that was open on it is closed."""
        return await self._evict_chunk()

    async def _evict_chunk(self) -> int:
        pfns = [folio.pfn for folio in self.folios]
        src, dst = [0] * len(pfns), [0] * len(pfns)
        await self.kernel.migrate_device_range(src, pfns[0], len(pfns))
        for i, entry in enumerate(src):
            spage = self.kernel.migrate_pfn_to_folio(entry)
            if spage is None or not entry & MIGRATE_PFN_MIGRATE:
                continue
            dpage = await self.kernel.alloc_page_nofail()
            await self.kernel.folio_lock(dpage)
            await self.kernel.copy_highpage(dpage, spage)
            dst[i] = migrate_pfn(dpage.pfn) | entry & MIGRATE_PFN_WRITE
        await self.kernel.migrate_device_pages(src, dst, len(pfns))
        migrated = sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in src)
        await self.kernel.migrate_device_finalize(src, dst, len(pfns))
        return migrated

    async def release(self) -> int:
        """HMM_DMIRROR_RELEASE."""
        return await self._remove_chunks()

    async def _remove_chunks(self) -> int:
        """dmirror_device_remove_chunks. memunmap_pages waits for what a racing fault kept from eviction."""
        await self.state.free.close()
        evicted = await self._evict_chunk()
        await self.kernel.memunmap_pages(self.name)
        return evicted

    async def folio_free(self, folio: Folio) -> None:
        """dmirror_devmem_free."""
        await self.state.free.push(folio)
