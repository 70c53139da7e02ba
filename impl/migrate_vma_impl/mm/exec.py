"""Replacing a process' address space: fs/exec.c (7.3), begin_new_exec as far as memory goes.

The new address space exists beside the old one before it takes its place, and the process drops its use of the old one last. A
driver that uses the old one (mmget_not_zero) keeps it alive for that long, with all that is mapped there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Mm, MmState
from migrate_vma_impl.mm.mmap import mmput
from migrate_vma_impl.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from migrate_vma_spec.events import MmCreated, MmGetMissed, MmGot
from migrate_vma_spec.vocabulary import Errno

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def _alloc(old: MmState, new: MmState) -> Outcome:
    if not old.users:
        return (old, new), False, MmGetMissed(old.number)
    if new.users:
        return (old, new), False, MmGot(new.number, new.users)
    return (old, MmState(new.number)), True, MmCreated(new.number)


async def exec_mmap(kernel: Kernel, mm: Mm, new: Mm) -> int:
    """mm_alloc, exec_mmap: the process goes on in `new`, which must be free; -EAGAIN if it is not, or the process has ended."""
    if mm == new or not await traps.step(_alloc, mm, new):
        return -Errno.EAGAIN
    await mmap_read_lock(mm)
    await mmap_read_unlock(mm)
    await mmput(kernel, mm)
    return 0
