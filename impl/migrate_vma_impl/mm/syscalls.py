"""What a workload can do: system calls and accesses of user space, each marked in the trace as one operation.

An operation's result is 0, minus a signal for an access that was killed, or a negated errno. System calls end on their way back
to user space, where another task of the CPU may go first.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.exec import exec_mmap
from migrate_vma_impl.mm.folio import folio_try_get
from migrate_vma_impl.mm.gup import pin_user_page
from migrate_vma_impl.mm.gup_grab import unpin_user_page
from migrate_vma_impl.mm.madvise import (
    madvise_cold_range,
    madvise_dontneed_range,
    madvise_free_range,
    madvise_hugepage_range,
)
from migrate_vma_impl.mm.memory import cpu_access
from migrate_vma_impl.mm.memory_failure import memory_failure
from migrate_vma_impl.mm.mm_types import Folio, Mm
from migrate_vma_impl.mm.mmap import dup_mmap, mmap_region, mmput, munmap_region
from migrate_vma_impl.mm.mprotect import do_mprotect
from migrate_vma_impl.mm.mremap import do_mremap
from migrate_vma_impl.mm.task_mmu import clear_refs_soft_dirty, pagemap_read
from migrate_vma_impl.mm.userfaultfd_ioctl import (
    mfill_atomic_copy,
    mfill_atomic_zeropage,
    mwriteprotect_range,
    serve_userfault,
    userfaultfd_register,
    userfaultfd_unregister,
)
from migrate_vma_spec.events import OperationBegan, OperationEnded
from migrate_vma_spec.vocabulary import Errno, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

READ_WRITE = VmFlags.READ | VmFlags.WRITE


Work = Callable[..., Coroutine[Any, Any, int]]


async def _operation(name: str, arguments: tuple[int, ...], work: Work, *values: Any) -> int:
    await traps.note(OperationBegan(name, arguments))
    result = await work(*values)
    await traps.note(OperationEnded(name, result))
    return result


async def system_call(name: str, arguments: tuple[int, ...], work: Work, *values: Any) -> int:
    return await _operation(name, arguments, _and_return, work, *values)


async def _and_return(work: Work, *values: Any) -> int:
    result = await work(*values)
    await traps.return_to_user()
    return result


async def touch(kernel: Kernel, mm: Mm, addr: int, write: bool) -> int:
    """A load, or a store, by user space."""
    return await _operation("write" if write else "read", (mm.number, addr), cpu_access, kernel, mm, addr, write)


async def mmap(kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags = READ_WRITE) -> int:
    """Map private anonymous memory at [start, end), over what is there."""
    return await system_call("mmap", (mm.number, start, end, int(flags)), mmap_region, kernel, mm, start, end, flags)


async def munmap(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    return await system_call("munmap", (mm.number, start, end), munmap_region, kernel, mm, start, end)


async def mprotect(kernel: Kernel, mm: Mm, start: int, end: int, prot: VmFlags) -> int:
    """Allow READ, READ and WRITE, or nothing (VmFlags.NONE) in [start, end)."""
    return await system_call("mprotect", (mm.number, start, end, int(prot)), do_mprotect, kernel, mm, start, end, prot)


async def mremap(kernel: Kernel, mm: Mm, start: int, end: int, to: int) -> int:
    """Move what is mapped in [start, end) to `to`, over what is there."""
    return await system_call("mremap", (mm.number, start, end, to), do_mremap, kernel, mm, start, end, to)


async def uffd_register(
    kernel: Kernel, mm: Mm, start: int, end: int, mode: VmFlags = VmFlags.UFFD_MISSING, forks: bool = False
) -> int:
    """Have faults in [start, end) told to a monitor: of missing pages, of stores to write-protected ones, or both."""
    arguments = (mm.number, start, end, int(mode), int(forks))
    return await system_call("uffd_register", arguments, userfaultfd_register, kernel, mm, start, end, mode, forks)


async def uffd_unregister(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    return await system_call("uffd_unregister", (mm.number, start, end), userfaultfd_unregister, kernel, mm, start, end)


async def uffd_copy(kernel: Kernel, mm: Mm, addr: int, source: int, write_protected: bool = False) -> int:
    """Fill a missing page with what page `source` of the same address space holds."""
    arguments = (mm.number, addr, source, int(write_protected))
    return await system_call("uffd_copy", arguments, mfill_atomic_copy, kernel, mm, addr, source, write_protected)


async def uffd_zeropage(kernel: Kernel, mm: Mm, addr: int) -> int:
    return await system_call("uffd_zeropage", (mm.number, addr), mfill_atomic_zeropage, kernel, mm, addr)


async def uffd_writeprotect(kernel: Kernel, mm: Mm, start: int, end: int, protect: bool) -> int:
    """Guard the pages of [start, end) against stores, or let the stores through that wait."""
    arguments = (mm.number, start, end, int(protect))
    return await system_call("uffd_writeprotect", arguments, mwriteprotect_range, kernel, mm, start, end, protect)


async def uffd_serve(kernel: Kernel, mm: Mm, source: int | None = None) -> int:
    """The monitor reads one message, which it waits for, and answers it: from page `source`, or with zeros."""
    arguments = (mm.number,) if source is None else (mm.number, source)
    return await system_call("uffd_serve", arguments, serve_userfault, kernel, mm, source)


async def madvise_dontneed(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    return await system_call("madvise_dontneed", (mm.number, start, end), madvise_dontneed_range, kernel, mm, start, end)


async def madvise_free(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    """The contents may be dropped when memory is short, unless they are written again."""
    return await system_call("madvise_free", (mm.number, start, end), madvise_free_range, kernel, mm, start, end)


async def madvise_cold(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    return await system_call("madvise_cold", (mm.number, start, end), madvise_cold_range, kernel, mm, start, end)


async def madvise_hugepage(kernel: Kernel, mm: Mm, start: int, end: int, enable: bool = True) -> int:
    """MADV_HUGEPAGE, or MADV_NOHUGEPAGE."""
    arguments = (mm.number, start, end, int(enable))
    return await system_call("madvise_hugepage", arguments, madvise_hugepage_range, kernel, mm, start, end, enable)


async def clear_refs(kernel: Kernel, mm: Mm) -> int:
    """Begin to watch which pages are written (soft-dirty)."""
    return await system_call("clear_refs", (mm.number,), clear_refs_soft_dirty, kernel, mm)


async def pagemap(kernel: Kernel, mm: Mm, addr: int) -> int:
    """The flags of a page's entry in /proc/pid/pagemap (`task_mmu.Pagemap`)."""
    return await system_call("pagemap", (mm.number, addr), pagemap_read, kernel, mm, addr)


async def poison(kernel: Kernel, pfn: int) -> int:
    """The hardware reports that a page frame is broken."""
    return await _operation("poison", (pfn,), memory_failure, kernel, Folio(pfn))


async def execve(kernel: Kernel, mm: Mm, new: Mm) -> int:
    """The process goes on in an address space that is free, with nothing mapped."""
    return await system_call("execve", (mm.number, new.number), exec_mmap, kernel, mm, new)


async def fork(kernel: Kernel, mm: Mm, child: Mm) -> int:
    """Fork into an address space that is free."""
    return await system_call("fork", (mm.number, child.number), dup_mmap, kernel, mm, child)


async def _exit(kernel: Kernel, mm: Mm) -> int:
    await mmput(kernel, mm)
    return 0


async def exit(kernel: Kernel, mm: Mm) -> int:  # noqa: A001  (the system call's name)
    """The process ends: its use of the address space is dropped, and with the last use the address space."""
    return await _operation("exit", (mm.number,), _exit, kernel, mm)


async def _hold(kernel: Kernel, folio: Folio) -> int:
    if not await folio_try_get(folio):
        return -Errno.EAGAIN
    await swap.folio_put(kernel, folio)
    return 0


async def speculative_reference(kernel: Kernel, pfn: int) -> int:
    """A transient reference to whatever a frame holds, as compaction and walkers of frame numbers take."""
    return await _operation("speculative_reference", (pfn,), _hold, kernel, Folio(pfn))


async def pin(kernel: Kernel, mm: Mm, addr: int) -> Folio | None:
    """Pin a page for DMA. The page, for `unpin`; None where it cannot be had (the trace says why)."""
    await traps.note(OperationBegan("pin", (mm.number, addr)))
    found = await pin_user_page(kernel, mm, addr)
    await traps.return_to_user()
    await traps.note(OperationEnded("pin", 0 if isinstance(found, Folio) else -found))
    return found if isinstance(found, Folio) else None


async def _unpin(kernel: Kernel, folio: Folio) -> int:
    await unpin_user_page(kernel, folio)
    return 0


async def unpin(kernel: Kernel, folio: Folio) -> int:
    return await system_call("unpin", (folio.pfn,), _unpin, kernel, folio)


async def pin_and_unpin(kernel: Kernel, mm: Mm, addr: int) -> int:
    """DMA to a page, from pin to unpin."""
    folio = await pin(kernel, mm, addr)
    return -Errno.EFAULT if folio is None else await unpin(kernel, folio)
