"""Moving a device-coherent page to system memory at the kernel's own wish: mm/migrate_device.c:migrate_device_coherent_folio.

Such memory is mapped as system memory is, so no fault brings it back: who must not leave it there, because a pin for long would
keep the device from its own memory, asks here. There is no VMA and no notifier bracket of its own, as in
migrate_device_range. The contents are copied after migrate_device_pages: before it nothing is known to move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm.folio import folio_lock
from migrate_vma_impl.mm.highmem import copy_highpage
from migrate_vma_impl.mm.migrate_device import migrate_device_finalize, migrate_device_pages, migrate_device_unmap
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_spec.events import RangeCalled, RangeReturned
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, Errno, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def migrate_device_coherent_folio(kernel: Kernel, folio: Folio) -> int:
    """0 or -EBUSY. The caller's reference, which must not be a pin, is consumed either way."""
    await traps.note(RangeCalled(0, (folio.pfn,)))
    await folio_lock(folio)
    src, dst = [migrate_pfn(folio.pfn) | MIGRATE_PFN_MIGRATE], [0]
    await migrate_device_unmap(kernel, src, 1, None)
    await traps.note(RangeReturned(0, 0, tuple(src)))
    if not src[0] & MIGRATE_PFN_MIGRATE:
        return -Errno.EBUSY
    dfolio = await alloc_page(kernel, "a page in the place of a device-coherent one")
    if dfolio is not None:
        await folio_lock(dfolio)
        dst[0] = migrate_pfn(dfolio.pfn)
    await migrate_device_pages(kernel, src, dst, 1)
    if src[0] & MIGRATE_PFN_MIGRATE and dfolio is not None:
        await copy_highpage(dfolio, folio)
    await migrate_device_finalize(kernel, src, dst, 1)
    return 0 if src[0] & MIGRATE_PFN_MIGRATE else -Errno.EBUSY
