"""Operations on files, shared memory and swap, each marked in the trace as one operation (see `syscalls.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.mm.filemap import has_name, mapping_evict_folio, write_back_page
from migrate_vma_impl.mm.madvise_pageout import madvise_pageout_range
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_impl.mm.mmap import mmap_region
from migrate_vma_impl.mm.shmem import shmem_evict_inode, shmem_zero_setup
from migrate_vma_impl.mm.syscalls import READ_WRITE, system_call
from migrate_vma_impl.mm.truncate import truncate_inode_page
from migrate_vma_spec.vocabulary import Errno, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def mmap_file(
    kernel: Kernel, mm: Mm, start: int, end: int, file: int, index: int = 0, flags: VmFlags = READ_WRITE, shared: bool = False
) -> int:
    """Map a file from its page `index` on at [start, end), over what is there: MAP_PRIVATE, or MAP_SHARED."""
    flags |= VmFlags.SHARED if shared else VmFlags.NONE
    arguments = (mm.number, start, end, file, index, int(flags))
    return await system_call("mmap_file", arguments, _mmap_file, kernel, mm, start, end, flags, file, index)


async def _mmap_file(kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags, file: int, index: int) -> int:
    if file < 0 or index < 0 or not has_name(kernel, file):
        return -Errno.EINVAL
    return await mmap_region(kernel, mm, start, end, flags, file, index)


async def mmap_shared(kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags = READ_WRITE) -> int:
    """Map shared anonymous memory at [start, end), over what is there."""
    flags |= VmFlags.SHARED
    return await system_call("mmap_shared", (mm.number, start, end, int(flags)), _mmap_shared, kernel, mm, start, end, flags)


async def _mmap_shared(kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags) -> int:
    if end - start > kernel.config.file_pages:
        return -Errno.ENOMEM
    file = await shmem_zero_setup(kernel)
    if file is None:
        return -Errno.ENOMEM
    result = await mmap_region(kernel, mm, start, end, flags, file, 0)
    if result:
        await shmem_evict_inode(kernel, file)
    return result


def _is_page(kernel: Kernel, file: int, index: int) -> bool:
    return 0 <= file < kernel.config.files and 0 <= index < kernel.config.file_pages


async def write_back(kernel: Kernel, file: int, index: int) -> int:
    """Write a page of a file to its medium, if it is dirty: 1 if it was."""
    return await system_call("write_back", (file, index), _write_back, kernel, file, index)


async def _write_back(kernel: Kernel, file: int, index: int) -> int:
    return await write_back_page(kernel, file, index) if _is_page(kernel, file, index) else -Errno.EINVAL


async def drop_page(kernel: Kernel, file: int, index: int) -> int:
    """POSIX_FADV_DONTNEED: drop a page from the page cache, if it is clean and nobody uses it: 1 if it is gone."""
    return await system_call("drop_page", (file, index), _drop_page, kernel, file, index)


async def _drop_page(kernel: Kernel, file: int, index: int) -> int:
    return await mapping_evict_folio(kernel, file, index) if _is_page(kernel, file, index) else -Errno.EINVAL


async def punch_hole(kernel: Kernel, file: int, index: int) -> int:
    """FALLOC_FL_PUNCH_HOLE: a page of a file loses its contents. Private copies of it stay."""
    return await system_call("punch_hole", (file, index), _punch_hole, kernel, file, index)


async def _punch_hole(kernel: Kernel, file: int, index: int) -> int:
    if not _is_page(kernel, file, index):
        return -Errno.EINVAL
    await truncate_inode_page(kernel, file, index)
    return 0


async def pageout(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """MADV_PAGEOUT: reclaim the pages of [start, end) that nobody else maps."""
    return await system_call("pageout", (mm.number, start, end), madvise_pageout_range, kernel, mm, start, end)
