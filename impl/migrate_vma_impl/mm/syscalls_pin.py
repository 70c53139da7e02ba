"""Operations on the pages behind user space: get_user_pages and its kin, as drivers of other devices and gup_test call them, and
pages that a driver itself maps.

Pages that an operation took are its answer, for the operation that drops them. What was not to be had says so in the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm.gup import user_pages, user_pages_fast
from migrate_vma_impl.mm.gup_grab import Foll, Page, gup_put_folio, unpin_user_pages, unpin_user_pages_dirty_lock
from migrate_vma_impl.mm.hugetlb import mmap_hugetlb
from migrate_vma_impl.mm.memory_insert import mmap_device_file
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_spec.events import OperationBegan, OperationEnded
from migrate_vma_spec.vocabulary import Errno, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

Pages = tuple[Page, ...]


async def take_user_pages(kernel: Kernel, mm: Mm, start: int, end: int, flags: Foll, *, fast: bool = False) -> Pages:
    """get_user_pages or pin_user_pages (Foll.PIN) of [start, end), or their _fast forms: the pages, perhaps fewer than asked.

    Foll.WRITE to write to them, Foll.LONGTERM with a pin that stays.
    """
    name = f"{'pin' if flags & Foll.PIN else 'get'}_user_pages{'_fast' if fast else ''}"
    await traps.note(OperationBegan(name, (mm.number, start, end, int(flags))))
    found = await _take(kernel, mm, start, end, flags, fast=fast)
    await traps.return_to_user()
    await traps.note(OperationEnded(name, -found if isinstance(found, Errno) else len(found)))
    return () if isinstance(found, Errno) else tuple(found)


async def _take(kernel: Kernel, mm: Mm, start: int, end: int, flags: Foll, *, fast: bool) -> list[Page] | Errno:
    if not 0 <= start < end <= kernel.config.addresses or (flags & Foll.LONGTERM and not flags & Foll.PIN):
        return Errno.EINVAL
    flags |= Foll.NONE if flags & Foll.PIN else Foll.GET
    return await (user_pages_fast if fast else user_pages)(kernel, mm, start, end - start, flags)


async def drop_user_pages(kernel: Kernel, pages: Sequence[Page], flags: Foll) -> int:
    """put_page or unpin_user_page of what take_user_pages answered; unpin_user_pages_dirty_lock if written to (Foll.WRITE)."""
    name = "unpin_user_pages" if flags & Foll.PIN else "put_user_pages"
    await traps.note(OperationBegan(name, tuple(0 if page is None else page.pfn for page in pages)))
    if flags & Foll.PIN and flags & Foll.WRITE:
        await unpin_user_pages_dirty_lock(kernel, pages)
    elif flags & Foll.PIN:
        await unpin_user_pages(kernel, pages)
    else:
        for page in pages:
            await gup_put_folio(kernel, page, Foll.GET)
    await traps.return_to_user()
    await traps.note(OperationEnded(name, 0))
    return 0


async def gup_test(kernel: Kernel, mm: Mm, start: int, end: int, flags: Foll, *, fast: bool = False) -> int:
    """What the commands of mm/gup_test.c do: take the pages and drop them again; how many there were."""
    pages = await take_user_pages(kernel, mm, start, end, flags, fast=fast)
    await drop_user_pages(kernel, pages, flags & ~Foll.WRITE)
    return len(pages)


async def mmap_device(kernel: Kernel, mm: Mm, start: int, end: int, prot: VmFlags = VmFlags.READ | VmFlags.WRITE) -> int:
    """Map a device file at [start, end), over what is there: its driver's own pages, in a VM_MIXEDMAP VMA."""
    await traps.note(OperationBegan("mmap_device", (mm.number, start, end, int(prot))))
    result = await mmap_device_file(kernel, mm, start, end, prot)
    await traps.return_to_user()
    await traps.note(OperationEnded("mmap_device", result))
    return result


async def mmap_huge_pages(kernel: Kernel, mm: Mm, start: int, end: int, prot: VmFlags = VmFlags.READ | VmFlags.WRITE) -> int:
    """Map private hugetlb memory (MAP_HUGETLB) at [start, end), over what is there."""
    await traps.note(OperationBegan("mmap_hugetlb", (mm.number, start, end, int(prot))))
    result = await mmap_hugetlb(kernel, mm, start, end, prot)
    await traps.return_to_user()
    await traps.note(OperationEnded("mmap_hugetlb", result))
    return result
