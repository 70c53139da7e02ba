"""mmap_lock, and the address space's VMAs read under it: include/linux/mmap_lock.h.

VMAs change only under the lock held for writing, so the step that takes the lock also answers them, and no later read of them
needs a step of its own.
"""

from __future__ import annotations

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import up_read, up_write
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Mm, MmState, Vma
from migrate_vma_spec.events import LockTaken
from migrate_vma_spec.vocabulary import LockMode


def _read_lock(holders: int, mm: MmState, name: str) -> Outcome:
    return None if holders < 0 else ((holders + 1, mm), mm.vmas, LockTaken(name, LockMode.READ))


async def mmap_read_lock(mm: Mm) -> tuple[Vma, ...]:
    """Take mmap_lock for reading: the VMAs, in order of address, as they stay until it is dropped."""
    return await traps.sleep_until(_read_lock, mm.mmap_lock, mm, args=(mm.mmap_lock.name,))  # type: ignore[no-any-return]


async def mmap_read_unlock(mm: Mm) -> None:
    await up_read(mm.mmap_lock)


def _write_lock(holders: int, mm: MmState, name: str) -> Outcome:
    return None if holders else ((-1, mm), (mm.users, mm.vmas), LockTaken(name, LockMode.WRITE))


async def mmap_write_lock(mm: Mm) -> tuple[int, tuple[Vma, ...]]:
    """Take mmap_lock for writing: the number of users and the VMAs."""
    return await traps.sleep_until(_write_lock, mm.mmap_lock, mm, args=(mm.mmap_lock.name,))  # type: ignore[no-any-return]


async def mmap_write_unlock(mm: Mm) -> None:
    await up_write(mm.mmap_lock)


def find_vma(vmas: tuple[Vma, ...], addr: int) -> Vma | None:
    """The VMA that covers `addr` (vma_lookup)."""
    return next((vma for vma in vmas if vma.start <= addr < vma.end), None)
