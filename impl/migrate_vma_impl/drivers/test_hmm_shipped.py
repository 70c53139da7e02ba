"""The kernel's test driver as two kernels have it, 6.1 and 7.3: as shipped, and with its one fault mended that a device reads by.

Rules:
- The other modules of this driver have what versions share, or have one after the other; this one has versions as a whole.
- The mended module differs from the shipped one in `stores_device_pages` alone: what else is odd in it makes no read wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import CompoundDmirror, Dmirror
from migrate_vma_impl.drivers.test_hmm_access import Reply
from migrate_vma_impl.drivers.test_hmm_migrate import WINDOW
from migrate_vma_impl.mm.mm_types import Mm, Vma
from migrate_vma_spec.vocabulary import Errno


class RangeDmirror(Dmirror):
    """The module of 6.1, which takes a window of pages at once for its device alone."""

    erases_one_more: ClassVar[bool] = True
    writes_holes: ClassVar[bool] = True

    async def _exclusive(self, mm: Mm, start: int, end: int) -> Reply:
        """dmirror_exclusive: -EBUSY where not every page of a window is to be had, whatever the reason."""
        if not await self.kernel.mmget_not_zero(mm):
            return Reply(-Errno.EINVAL)
        vmas = await self.kernel.mmap_read_lock(mm)
        taken = True
        for addr in range(start, end, WINDOW):
            taken = taken and await self._take_window(mm, vmas, addr, min(end, addr + WINDOW))
        await self.kernel.mmap_read_unlock(mm)
        await self.kernel.mmput(mm)
        return await self._read_back(mm, start, end) if taken else Reply(-Errno.EBUSY)

    async def _take_window(self, mm: Mm, vmas: tuple[Vma, ...], start: int, end: int) -> bool:
        """dmirror_atomic_map, where as many pages as were asked for have been found."""
        pages = await self.kernel.make_device_exclusive_range(mm, vmas, start, end)
        mapped = 0
        if len(pages) == end - start:
            await self.state.mutex.lock()
            for addr, page in enumerate(pages, start):
                if page is not None:
                    await self.state.mirror.map(mm, addr, page, write=False, atomic=True)
                    mapped += 1
            await self.state.mutex.unlock()
        for page in pages:
            if page is not None:
                await self.kernel.folio_unlock(page)
                await self.kernel.folio_put(page)
        return mapped == end - start


class StockRangeDmirror(RangeDmirror):
    """The same as it is shipped."""

    stores_device_pages: ClassVar[bool] = True


class LargeDmirror(CompoundDmirror):
    """The module of 7.3."""

    erases_one_more: ClassVar[bool] = True


class StockLargeDmirror(LargeDmirror):
    """The same as it is shipped."""

    stores_device_pages: ClassVar[bool] = True


STOCK: Mapping[str, type[Driver]] = MappingProxyType({"v6.1": StockRangeDmirror, "v7.3": StockLargeDmirror})
"""The module as each of these kernels has it, by version. That of 7.3 wants a core with a middle level."""

MENDED: Mapping[str, type[Driver]] = MappingProxyType({"v6.1": RangeDmirror, "v7.3": LargeDmirror})
"""The same with the fault mended."""
