"""What a workload can do: system calls and accesses of user space, each marked in the trace as one operation.

An operation's result is 0, minus a signal for an access that was killed, or a negated errno. System calls end on their way back
to user space, where another task of the CPU may go first.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_try_get
from migrate_vma_impl.mm.gup import pin_user_page, unpin_user_page
from migrate_vma_impl.mm.memory import cpu_access
from migrate_vma_impl.mm.mm_types import Folio, Mm
from migrate_vma_impl.mm.mmap import dup_mmap, madvise_dontneed_range, mmap_region, mmput, munmap_region
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


async def _system_call(name: str, arguments: tuple[int, ...], work: Work, *values: Any) -> int:
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
    return await _system_call("mmap", (mm.number, start, end, int(flags)), mmap_region, kernel, mm, start, end, flags)


async def munmap(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    return await _system_call("munmap", (mm.number, start, end), munmap_region, kernel, mm, start, end)


async def madvise_dontneed(kernel: Kernel, mm: Mm, start: int, end: int) -> int:
    return await _system_call("madvise_dontneed", (mm.number, start, end), madvise_dontneed_range, kernel, mm, start, end)


async def fork(kernel: Kernel, mm: Mm, child: Mm) -> int:
    """Fork into an address space that is free."""
    return await _system_call("fork", (mm.number, child.number), dup_mmap, kernel, mm, child)


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
    return await _system_call("unpin", (folio.pfn,), _unpin, kernel, folio)


async def pin_and_unpin(kernel: Kernel, mm: Mm, addr: int) -> int:
    """DMA to a page, from pin to unpin."""
    folio = await pin(kernel, mm, addr)
    return -Errno.EFAULT if folio is None else await unpin(kernel, folio)
