"""Shared anonymous memory: a file without a name that lives as long as it is mapped (mm/shmem.c, 7.3).

Rules:
- Its pages begin cleared, are never written back, and are not swapped out here, as on a tmpfs mounted with noswap.
- Nobody wants to hear of the first write to a page, so even a page that is only read is mapped as its VMA allows.
- A userfaultfd's monitor hears of a page that the file does not have; one that it has and that is not mapped is simply mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.filemap import filemap_add_folio, filemap_remove_folio, has_name, lock_cached_folio, unlock_and_put
from migrate_vma_impl.mm.highmem import clear_highpage
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, PageCache, Vma
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.userfaultfd import handle_userfault, userfaultfd_missing
from migrate_vma_spec.events import AllocationFailed, CacheRead, Oops
from migrate_vma_spec.vocabulary import VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def shmem_fault(kernel: Kernel, vmf: FaultContext, file: int, index: int) -> Folio | VmFault:
    """shmem_get_folio_gfp: the page, locked and with a reference, a new one cleared in the cache; or why there is none."""
    while (folio := await lock_cached_folio(kernel, file, index)) is None:
        if userfaultfd_missing(vmf):
            return await handle_userfault(kernel, vmf, write_protected=False)
        new = await alloc_page(kernel, "a page for shared memory")
        if new is None:
            return VmFault.OOM
        if await filemap_add_folio(kernel, new, file, index):
            await clear_highpage(new)
            await folio_mark_uptodate(new)
            return new
        await swap.folio_put(kernel, new)
    return folio


# ---- the file without a name -----------------------------------------------------------------------------------------


def _set_up(*values: Any) -> Outcome:
    """`values` are the caches of the files without a name, then the number of the first and of the pages of each."""
    *caches, first, pages = values
    free = next((i for i, cache in enumerate(caches) if cache is None), None)
    if free is None:
        return tuple(caches), None, AllocationFailed("a file for shared memory")
    caches[free] = (None,) * pages
    return tuple(caches), first + free, CacheRead(first + free, 0, None)


async def shmem_zero_setup(kernel: Kernel) -> int | None:
    """A new file without a name, empty; None where as many live as can (the smallest number that is free is taken)."""
    first = kernel.config.files
    files = (PageCache(file) for file in range(first, 2 * first))
    return await traps.step(_set_up, *files, args=(first, kernel.config.file_pages))  # type: ignore[no-any-return]


def _tear_down(cache: tuple[int | None, ...], file: int) -> Outcome:
    left = next((pfn for pfn in cache if pfn is not None), None)
    if left is not None:
        return (cache,), None, Oops("a file ends with a page in its cache", left)
    return (None,), None, CacheRead(file, 0, None)


async def shmem_evict_inode(kernel: Kernel, file: int) -> None:
    """The last mapping is gone, and the pages go with it. Nobody can look for them any more."""
    for index in range(kernel.config.file_pages):
        folio = await lock_cached_folio(kernel, file, index)
        if folio is not None:
            await filemap_remove_folio(folio, file, index)
            await unlock_and_put(kernel, folio)
    await traps.step(_tear_down, PageCache(file), args=(file,))


async def fput(kernel: Kernel, vma: Vma) -> None:
    """The VMA's file is not mapped any more, which is the end of one that has no name."""
    if vma.file is not None and not has_name(kernel, vma.file):
        await shmem_evict_inode(kernel, vma.file)
