"""The kernel's own test driver, lib/test_hmm.c, for order-0 anonymous memory (7.3; the fault of one page as in 6.1).

Rules and liberties:
- The mutex guards the mirror (the page table of the pretended device); the fault path erases its entry without it, as there.
- A device page holds its own contents. In the kernel a backing system page does, whose allocation can fail too.
- zone_device_data names the address space that a page was migrated for, which the kernel finds through the backing page.
- A device access looks up the mirror and reaches the memory in one step; the kernel's two steps are under the mutex.
- hmm_range_fault has no time-out here: time is no argument for progress.

What it does wrong stays, for `check` to report:
- migrate_to_ram returns 0 when it had no memory, so the fault is tried for ever while memory stays short (C79, 6.1);
- migrating to the device leaves the mirror's entry for the system page in place while that is copied, for it ignores its own
  notification, so a store of the device in between is lost (C77, C71);
- release evicts once: what a racing fault holds locked is still mapped when memunmap_pages begins, which waits for it (C88).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.machine.containers import FreeList, Lock, Mirror, Shared, shared
from migrate_vma_impl.mm.hmm import HmmRange
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Errno,
    NotifyReason,
    Select,
    VmFault,
    VmFlags,
    migrate_pfn,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

WINDOW = 64
"""Pages in one migrate_vma of the ioctls (6.1)."""


_Window = Callable[[Vma, int, int], Coroutine[Any, Any, int]]


def _successful_migrated_pages(src: list[int]) -> int:
    both = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE
    return sum(entry & both == both for entry in src)


class Dmirror(Driver):
    """struct dmirror_device, with a struct dmirror for each address space that it mirrors."""

    state: ClassVar[Shared] = shared(mutex=Lock(), mirror=Mirror(), free=FreeList())
    adapted: ClassVar[bool] = False

    # ---- back to system memory: dmirror_devmem_fault, dmirror_migrate_to_system ------------------------------------------

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        """dmirror_devmem_fault."""
        if vmf.page is None:
            return VmFault.SIGBUS
        mirrored: Mm = await self.kernel.zone_device_data(vmf.page)
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, Select.DEVICE_PRIVATE, vmf.page)
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
        """dmirror_migrate_to_system (HMM_DMIRROR_MIGRATE_TO_SYS): the number of pages that came back."""
        return await self._windows(mm, start, end, self._window_to_system)

    async def _window_to_system(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.DEVICE_PRIVATE)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        await self._system_alloc_and_copy(src, dst, vma.mm, start, "alloc_page in migrate_to_system")
        await self.kernel.migrate_vma_pages(args)
        migrated = _successful_migrated_pages(src)
        await self.kernel.migrate_vma_finalize(args)
        return migrated

    # ---- to the device: dmirror_migrate_to_device --------------------------------------------------------------------------

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        """dmirror_migrate_to_device (HMM_DMIRROR_MIGRATE_TO_DEV), which reads back through the mirror what it migrated."""
        result = await self._windows(mm, start, end, self._window_to_device)
        return result if result < 0 else await self._read_back(mm, start, end)

    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        await self._device_alloc_and_copy(src, dst, vma.mm)
        await self.kernel.migrate_vma_pages(args)
        await self._finalize_and_map(src, dst, vma.mm, start)
        await self.kernel.migrate_vma_finalize(args)
        return 0

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], mm: Mm) -> None:
        """dmirror_migrate_alloc_and_copy: a copy, or a cleared page for a hole."""
        for i, entry in enumerate(src):
            if not entry & MIGRATE_PFN_MIGRATE:
                continue
            spage = self.kernel.migrate_pfn_to_folio(entry)
            dpage = await self.state.free.pop()
            if dpage is None:
                continue
            await self.kernel.zone_device_page_init(dpage, mm)
            if spage is None:
                await self.kernel.clear_highpage(dpage)
            else:
                await self.kernel.copy_highpage(dpage, spage)
            dst[i] = migrate_pfn(dpage.pfn) | entry & MIGRATE_PFN_WRITE

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        """dmirror_migrate_finalize_and_map: between pages and finalize, what still has MIGRATE."""
        await self.state.mutex.lock()
        for i, entry in enumerate(dst):
            dpage = self.kernel.migrate_pfn_to_folio(entry)
            if dpage is not None and src[i] & MIGRATE_PFN_MIGRATE:
                await self.state.mirror.map(mm, start + i, dpage, bool(entry & MIGRATE_PFN_WRITE))
        await self.state.mutex.unlock()

    async def _read_back(self, mm: Mm, start: int, end: int) -> int:
        """dmirror_do_read: -ENOENT at the first page that the mirror does not have."""
        addr = start
        await self.state.mutex.lock()
        while addr < end and await self.state.mirror.access(mm, addr, write=False):
            addr += 1
        await self.state.mutex.unlock()
        return end - start if addr == end else -Errno.ENOENT

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
            window = addr
            addr = min(end, addr + WINDOW, vma.end)
            result = await migrate(vma, window, addr)
            done = result if result < 0 else done + result
        await self.kernel.mmap_read_unlock(mm)
        await self.kernel.mmput(mm)
        return done

    # ---- eviction: dmirror_device_evict_chunk, dmirror_device_remove_chunks ------------------------------------------------

    async def evict(self) -> int:
        """dmirror_device_evict_chunk, on a device that stays."""
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
        """dmirror_device_remove_chunks (HMM_DMIRROR_RELEASE). memunmap_pages waits for what a racing fault kept from eviction."""
        await self.state.free.close()
        evicted = await self._evict_chunk()
        await self.kernel.memunmap_pages(self.name)
        return evicted

    async def folio_free(self, folio: Folio) -> None:
        """dmirror_devmem_free."""
        await self.state.free.push(folio)

    # ---- the mirror: dmirror_interval_invalidate, dmirror_read, dmirror_write ----------------------------------------------

    async def invalidate(self, range_: NotifierRange) -> None:
        """dmirror_interval_invalidate: its own migrations see to the mirror themselves."""
        if range_.reason is NotifyReason.MIGRATE and range_.owner == self.owner:
            return
        await self.state.mutex.lock()
        await self.kernel.mmu_interval_set_seq(self.name, range_.mm)
        await self.state.mirror.unmap_range(range_.mm, range_.start, range_.end)
        await self.state.mutex.unlock()

    async def device_read(self, mm: Mm, addr: int) -> int:
        """dmirror_read of one page."""
        return await self._access(mm, addr, write=False)

    async def device_write(self, mm: Mm, addr: int) -> int:
        """dmirror_write of one page."""
        return await self._access(mm, addr, write=True)

    async def _access(self, mm: Mm, addr: int, *, write: bool) -> int:
        while not await self._try_access(mm, addr, write=write):
            result = await self._fault(mm, addr, write=write)
            if result:
                return result
        return 0

    async def _try_access(self, mm: Mm, addr: int, *, write: bool) -> bool:
        await self.state.mutex.lock()
        done: bool = await self.state.mirror.access(mm, addr, write=write)
        await self.state.mutex.unlock()
        return done

    async def _fault(self, mm: Mm, addr: int, *, write: bool) -> int:
        """dmirror_fault: -EFAULT where the address space is gone."""
        if not await self.kernel.mmget_not_zero(mm):
            return -Errno.EFAULT
        result = -Errno.EBUSY
        while result == -Errno.EBUSY:
            result = await self._range_fault(mm, addr, write=write)
        await self.kernel.mmput(mm)
        return result

    async def _range_fault(self, mm: Mm, addr: int, *, write: bool) -> int:
        """One round of dmirror_range_fault: -EBUSY where an invalidation came in between."""
        await self.kernel.mmu_interval_read_begin(self.name, mm)
        vmas = await self.kernel.mmap_read_lock(mm)
        range_ = HmmRange(self.name, mm, vmas, addr, addr + 1, write=write, dev_private_owner=self.owner)
        result = await self.kernel.hmm_range_fault(range_)
        await self.kernel.mmap_read_unlock(mm)
        if result:
            return result
        await self.state.mutex.lock()
        stale = await self.kernel.mmu_interval_read_retry(self.name, mm)
        result = -Errno.EBUSY if stale else await self._do_fault(range_)
        await self.state.mutex.unlock()
        return result

    async def _do_fault(self, range_: HmmRange) -> int:
        """dmirror_do_fault: -EFAULT for a page that cannot be written, one of the device's own behind a read-only entry."""
        for i, found in enumerate(range_.hmm_pfns):
            if range_.write and not found.write:
                return -Errno.EFAULT
            await self.state.mirror.map(range_.mm, range_.start + i, found.folio, found.write)
        return 0


class AdaptedDmirror(Dmirror):
    """The same driver with the change that `entry-first` asks of drivers: the fault entry is filled in after setup."""

    adapted: ClassVar[bool] = True


def make_test_hmm(kernel: Kernel, name: str = "test_hmm") -> Driver:
    return Dmirror(kernel, name)


def make_test_hmm_adapted(kernel: Kernel, name: str = "test_hmm") -> Driver:
    return AdaptedDmirror(kernel, name)
