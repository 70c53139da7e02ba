"""Migration in the kernel's test driver since device-private folios may be large (7.2, 7.3).

Rules:
- A window of an ioctl is as long as a leaf of the middle level. Where setup gives a large folio and the device has one free, the
  folio moves as a whole; without one its pages move one by one, and the library splits the source.
- A fault brings back the whole folio only where one leaf maps it; behind smaller entries it brings back one page, and the library
  splits the folio.
- The device's memory is two chunks: one whose pages are given out singly, and one whose pages are given out as large folios. What
  a split has made of a large folio is given out singly from then on.
- `backing` holds the order of the large folios that back device folios, which folio_split keeps in step with the device's own: by
  it, and not by the device folio, the driver counts and frees. Coherent memory backs itself, and its splits are not told.
- `in_use` is the difference of the driver's calloc and cfree.
- A free list and its count are two steps here; in the kernel one spinlock holds both.

What it does wrong stays, for `check` to report:
- where memory runs out in the middle of a window, migrate_to_system finalizes without migrate_vma_pages, though the folios before
  have their destinations set (C08);
- without a free small page, the fallback of migrate_to_device reads through a NULL pointer; so does eviction without a large one.
"""

from __future__ import annotations

from typing import Any, ClassVar

from migrate_vma_impl.drivers.test_hmm_ioctl import DmirrorIoctl
from migrate_vma_impl.drivers.test_hmm_migrate import successful_migrated_pages
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.containers import Counter, FreeList, Map, Shared, shared
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma, Mm, Vma
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    Errno,
    Memory,
    Select,
    VmFault,
    migrate_pfn,
)

FAIL_ALLOC = "HMM_DMIRROR_FLAG_FAIL_ALLOC"
"""The data choice that the next allocation of device memory fails, as the ioctl HMM_DMIRROR_FLAGS makes it."""


def page_of(folio: Folio, number: int) -> Folio:
    """folio_page: the frame of one page of a folio."""
    return Folio(folio.pfn + number)


class DmirrorCompound(DmirrorIoctl):
    """struct dmirror_device with free_folios beside free_pages."""

    frames: ClassVar[int] = 16
    state: ClassVar[Shared] = shared(**DmirrorIoctl.state.fields, folios=FreeList(), backing=Map(), in_use=Counter())

    @property
    def order(self) -> int:
        """HPAGE_PMD_ORDER."""
        return self.kernel.config.pmd_order

    @property
    def window(self) -> int:
        return 1 << self.order

    def slots(self) -> dict[Key, Any]:
        """The state as it is once there is a chunk of each kind, the one of large folios behind the other."""
        size = 1 << self.order
        first, last = self.folios[len(self.folios) // 2].pfn, self.folios[-1].pfn
        heads = tuple(pfn for pfn in range(first + -first % size, last + 1, size) if pfn + size <= last + 1)
        small = tuple(folio.pfn for folio in self.folios if not heads or folio.pfn < heads[0])
        return {**super().slots(), self.state.free.key: small, self.state.folios.key: heads}

    # ---- the device's memory: dmirror_devmem_alloc_page, dmirror_devmem_free, dmirror_devmem_folio_split --------------------

    async def _devmem_alloc_page(self, mm: Mm, order: int) -> Folio | None:
        page: Folio | None = await (self.state.folios if order else self.state.free).pop()
        if page is None:
            return None
        await self.state.in_use.add(1 << order)
        await self.kernel.zone_device_page_init(page, mm, order)
        if order and not self.coherent:
            await self.state.backing.set(page.pfn, order)
        return page

    @property
    def coherent(self) -> bool:
        return self.memory is Memory.DEVICE_COHERENT

    async def _order_of(self, folio: Folio) -> int:
        """The order of the folio that backs this one: of itself, where the memory is the CPUs' too."""
        if self.coherent:
            return (await self.kernel.folio_nr_pages(folio)).bit_length() - 1
        return await self.state.backing.get(folio.pfn) or 0

    async def folio_free(self, folio: Folio) -> None:
        order = await self._order_of(folio)
        if order and not self.coherent:
            await self.state.backing.pop(folio.pfn)
        await self.state.in_use.sub(1 << order)
        await (self.state.folios if order else self.state.free).push(folio)

    async def folio_split(self, folio: Folio, tail: Folio | None) -> None:
        """A new folio is backed by its part of what backed the old one; at the end nothing large is left behind the head."""
        if tail is None:
            await self.state.backing.pop(folio.pfn)

    # ---- to the device ------------------------------------------------------------------------------------------------------

    async def _window_to_device(self, vma: Vma, start: int, end: int) -> int:
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM | Select.COMPOUND)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        await self._device_alloc_and_copy(src, dst, vma)
        await self.kernel.migrate_vma_pages(args)
        await self._finalize_and_map(src, dst, vma.mm, start)
        await self.kernel.migrate_vma_finalize(args)
        return 0

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        i = 0
        while i < len(src):
            i += await self._fill_entry(src, dst, i, vma.mm) if src[i] & MIGRATE_PFN_MIGRATE else 1

    async def _fill_entry(self, src: list[int], dst: list[int], i: int, mm: Mm) -> int:
        """The destination of one entry, and what is copied into it; how many pages it stands for."""
        large = src[i] & MIGRATE_PFN_COMPOUND
        order = self.order if large else 0
        failed = await traps.choose(FAIL_ALLOC)
        dpage = None if failed else await self._devmem_alloc_page(mm, order)
        if dpage is None:
            return await self._fill_with_small_pages(src, dst, i, mm) if large else 1
        dst[i] = migrate_pfn(dpage.pfn) | src[i] & MIGRATE_PFN_WRITE | large
        for number in range(1 << order):
            await self._copy(page_of(dpage, number), self.kernel.migrate_pfn_to_folio(src[i]), number)
        return 1 << order

    async def _fill_with_small_pages(self, src: list[int], dst: list[int], i: int, mm: Mm) -> int:
        """Without a large destination: one of a page each, which makes the library split the source."""
        for number in range(1 << self.order):
            dpage = await self._devmem_alloc_page(mm, 0)
            if dpage is None:
                await traps.oops("dmirror_migrate_alloc_and_copy writes to a page that it did not get")
                break
            dst[i + number] = migrate_pfn(dpage.pfn) | src[i] & MIGRATE_PFN_WRITE
            await self._copy(dpage, self.kernel.migrate_pfn_to_folio(src[i]), number)
        return 1 << self.order

    async def _copy(self, dpage: Folio, spage: Folio | None, number: int) -> None:
        """Fill a device page from one page of the source, or clear it for a hole."""
        if spage is None:
            await self.kernel.clear_highpage(dpage)
        else:
            await self.kernel.copy_highpage(dpage, page_of(spage, number))

    async def _finalize_and_map(self, src: list[int], dst: list[int], mm: Mm, start: int) -> None:
        await self.state.mutex.lock()
        for i, entry in enumerate(dst):
            dpage = self.kernel.migrate_pfn_to_folio(entry)
            if dpage is None or not src[i] & MIGRATE_PFN_MIGRATE:
                continue
            for number in range(1 << self.order if entry & MIGRATE_PFN_COMPOUND else 1):
                page = page_of(dpage, number)
                await self.state.mirror.map(mm, start + i + number, page, bool(entry & MIGRATE_PFN_WRITE))
        await self.state.mutex.unlock()

    # ---- back to system memory ----------------------------------------------------------------------------------------------

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        """dmirror_devmem_fault: the whole folio where a leaf of the middle level maps it, else one page."""
        if vmf.page is None:
            return VmFault.SIGBUS
        mirrored: Mm = await self.kernel.zone_device_data(await self.kernel.page_folio(vmf.page))
        nr = 1 << self.order if vmf.pmd_fault else 1
        select = self.select_device | (Select.COMPOUND if vmf.pmd_fault else 0)
        start = vmf.address - vmf.address % nr
        args = MigrateVma(vmf.vma, start, start + nr, [0] * nr, [0] * nr, self.owner, select, vmf.page)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        if self.adapted:
            await self.kernel.refill_fault_entry(args, vmf)
        result = await self._back_alloc_and_copy(args, mirrored, "migrate_to_ram")
        if result is VmFault.NONE:
            await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return result

    async def _window_to_system(self, vma: Vma, start: int, end: int) -> int:
        """One round of dmirror_migrate_to_system: the number of entries that came back."""
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, self.select_device | Select.COMPOUND)
        result = await self.kernel.migrate_vma_setup(args)
        if result:
            return result
        if await self._back_alloc_and_copy(args, vma.mm, "migrate_to_system"):
            await self.kernel.migrate_vma_finalize(args)
            return -Errno.ENOMEM
        await self.kernel.migrate_vma_pages(args)
        migrated = successful_migrated_pages(src)
        await self.kernel.migrate_vma_finalize(args)
        return migrated

    async def _back_alloc_and_copy(self, args: MigrateVma, mm: Mm, where: str) -> VmFault:
        """dmirror_devmem_fault_alloc_and_copy."""
        i = 0
        while i < args.npages:
            spage = self.kernel.migrate_pfn_to_folio(_at(args.src, i))
            if spage is None or not _at(args.src, i) & MIGRATE_PFN_MIGRATE:
                i += 1
                continue
            order = await self._order_of(spage)
            if not await self._bring_back(args, i, spage, order, mm, where):
                return VmFault.OOM
            i += 1 << order
        return VmFault.NONE

    async def _bring_back(self, args: MigrateVma, i: int, spage: Folio, order: int, mm: Mm, where: str) -> bool:
        """A destination for one source folio, large or in small pages, and the copy; False without memory."""
        dst = args.dst
        if dst is None:
            return False
        what = f"a large folio in {where}" if order else f"alloc_page in {where}"
        dpage = await self.kernel.folio_alloc(what, order)
        if dpage is None and not order:
            return False
        if dpage is not None:
            await self.kernel.folio_lock(dpage)
            dst[i] = migrate_pfn(dpage.pfn) | _at(args.src, i) & MIGRATE_PFN_WRITE | (MIGRATE_PFN_COMPOUND if order else 0)
        for number in range(1 << order):
            page = await self._small_page(dst, i, number, where) if dpage is None else page_of(dpage, number)
            if page is None:
                return False
            await self.state.mirror.unmap(mm, args.start + i + number)
            await self.kernel.copy_highpage(page, page_of(spage, number))
        return True

    async def _small_page(self, dst: list[int], i: int, number: int, where: str) -> Folio | None:
        """One of the small destinations of a large source. Without it, those before it are given up again."""
        page = await self.kernel.alloc_page(f"alloc_page in {where}")
        if page is not None:
            await self.kernel.folio_lock(page)
            dst[i + number] = migrate_pfn(page.pfn)
            return page
        for given_up in range(i + number - 1, i - 1, -1):
            earlier = self.kernel.migrate_pfn_to_folio(dst[given_up])
            dst[given_up] = 0
            if earlier is not None:
                await self.kernel.folio_unlock(earlier)
                await self.kernel.folio_put(earlier)
        return None

    # ---- eviction -----------------------------------------------------------------------------------------------------------

    async def _evict_chunk(self) -> int:
        pfns = [folio.pfn for folio in self.folios]
        src, dst = [0] * len(pfns), [0] * len(pfns)
        await self.kernel.migrate_device_range(src, pfns[0], len(pfns))
        for i, entry in enumerate(src):
            spage = self.kernel.migrate_pfn_to_folio(entry)
            if spage is not None and entry & MIGRATE_PFN_MIGRATE:
                dst[i] = await self._evict_folio(spage, entry)
        await self.kernel.migrate_device_pages(src, dst, len(pfns))
        pages = sum(1 << (self.order if entry & MIGRATE_PFN_COMPOUND else 0) for entry in src if entry & MIGRATE_PFN_MIGRATE)
        await self.kernel.migrate_device_finalize(src, dst, len(pfns))
        return pages

    async def _evict_folio(self, spage: Folio, entry: int) -> int:
        """The destination of what is evicted. A single page is waited for; a large folio is there, or the kernel oopses."""
        compound = entry & MIGRATE_PFN_COMPOUND
        what = "a large folio in eviction"
        dpage = await self.kernel.folio_alloc(what, self.order) if compound else await self.kernel.alloc_page_nofail()
        if dpage is None:
            await traps.oops("dmirror_device_evict_chunk locks a folio that it did not get")
            return 0
        await self.kernel.folio_lock(dpage)
        for number in range(1 << await self._order_of(spage)):
            await self.kernel.copy_highpage(page_of(dpage, number), page_of(spage, number))
        return migrate_pfn(dpage.pfn) | entry & MIGRATE_PFN_WRITE | compound

    async def _remove_chunks(self) -> int:
        await self.state.folios.close()
        return await super()._remove_chunks()


def _at(entries: list[int] | None, i: int) -> int:
    """src[i] of a migration that was set up."""
    return 0 if entries is None else entries[i]
