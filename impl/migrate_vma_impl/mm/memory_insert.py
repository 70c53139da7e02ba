"""A driver's own pages in an address space: the mmap of a device file, by vm_insert_page (mm/memory.c; lib/test_hmm.c).

Rules:
- The VMA is VM_MIXEDMAP: migrate_vma_setup refuses it. Its pages are not anonymous, but private copies of them are.
- The pages are ordinary ones, cleared, mapped once and not on the LRU. Each belongs to its mapping alone, and goes with it.
- They are mapped as vma->vm_page_prot says: read-only in a private mapping. No fault handler brings back what was discarded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.highmem import clear_highpage
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_impl.mm.mmap import in_range, unmap_vmas, vma_link
from migrate_vma_impl.mm.mmap_lock import mmap_write_lock, mmap_write_unlock
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import mk_pte, pte_alloc, pte_offset_map_lock, ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap
from migrate_vma_spec.events import VmaMapped
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def mmap_device_file(kernel: Kernel, mm: Mm, start: int, end: int, prot: VmFlags) -> int:
    """mmap_region of a private mapping of a device file, whose driver fills it at once; without memory nothing is mapped."""
    if not in_range(kernel, start, end):
        return -Errno.EINVAL
    users, vmas = await mmap_write_lock(mm)
    result = 0 if users else -Errno.EINVAL
    if users:
        await unmap_vmas(kernel, mm, vmas, start, end)
        flags = prot | VmFlags.MIXEDMAP
        vma = Vma(mm, start, end, flags, mm.number, pgoff=start)
        await vma_link(kernel, vma, VmaMapped(mm.number, start, end, flags, anonymous=False))
        result = await dmirror_fops_mmap(kernel, vma)
        if result:
            await unmap_vmas(kernel, mm, (vma,), start, end)
    await mmap_write_unlock(mm)
    return result


async def dmirror_fops_mmap(kernel: Kernel, vma: Vma) -> int:
    for addr in range(vma.start, vma.end):
        page = await alloc_page(kernel, "a page of a device file")
        if page is None:
            return -Errno.ENOMEM
        await clear_highpage(page)
        await vm_insert_page(kernel, vma, addr, page)
        await swap.folio_put(kernel, page)
    return 0


async def vm_insert_page(kernel: Kernel, vma: Vma, addr: int, page: Folio) -> int:
    """Map a page of the driver's, with a reference of the mapping's own. -EBUSY where something is mapped already."""
    await pte_alloc(kernel, vma.mm, addr)
    if not await pte_offset_map_lock(kernel, vma.mm, addr):
        return -Errno.EBUSY
    empty = await ptep_get(vma.mm, addr) == PTE_NONE
    if empty:
        await folio_get(page)
        await folio_add_anon_rmap(page, vma, addr, exclusive=False)
        await set_pte_at(vma.mm, addr, mk_pte(page))
    await spin_unlock(vma.mm.ptl)
    return 0 if empty else -Errno.EBUSY
