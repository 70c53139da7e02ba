"""mmap_lock, the locks of single VMAs, and the address space's VMAs read under them: include/linux/mmap_lock.h, mm/mmap_lock.c.

Rules:
- VMAs change only under mmap_lock held for writing, so the step that takes the lock also answers them, and no later read of them
  needs a step of its own.
- With Config.vma_locks a fault first tries the lock of its VMA alone. Who changes a VMA or its page tables write-locks it, which
  waits for the faults that hold it, and every such lock is dropped with mmap_lock, in one step.
- A VMA's lock is known by the VMA's first page: no VMA begins there anew before the readers of the old one have gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import up_read
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Mm, MmState, Vma
from migrate_vma_spec.events import LockDropped, LockMissed, LockTaken, Oops
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import LockMode

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def find_vma(vmas: tuple[Vma, ...], addr: int) -> Vma | None:
    """The VMA that covers `addr` (vma_lookup)."""
    return next((vma for vma in vmas if vma.start <= addr < vma.end), None)


# ---- mmap_lock -------------------------------------------------------------------------------------------------------


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


def _write_unlock(holders: int, mm: MmState, name: str) -> Outcome:
    if holders >= 0:
        return (holders, mm), (), Oops(f"up_write of {name}, which has no writer")
    written = tuple(start for start, readers in mm.vma_locks for _ in range(-readers))
    left = tuple(lock for lock in mm.vma_locks if lock[1] > 0)
    return (0, evolve(mm, vma_locks=left)), written, LockDropped(name, LockMode.WRITE)


async def mmap_write_unlock(mm: Mm) -> None:
    """mmap_write_unlock, with vma_end_write_all in the same step."""
    written: tuple[int, ...] = await traps.step(_write_unlock, mm.mmap_lock, mm, args=(mm.mmap_lock.name,))
    for start in written:
        await traps.note(LockDropped(_lock_name(mm.number, start), LockMode.WRITE))


# ---- the lock of a VMA -----------------------------------------------------------------------------------------------


def _lock_name(mm: int, start: int) -> str:
    return f"vma:{mm}.{start}"


def _holders(mm: MmState, start: int) -> int:
    return dict(mm.vma_locks).get(start, 0)


def _with_holders(mm: MmState, start: int, holders: int) -> MmState:
    rest = {place: count for place, count in mm.vma_locks if place != start}
    if holders:
        rest[start] = holders
    return evolve(mm, vma_locks=tuple(sorted(rest.items())))


def _start_read(mm: MmState, addr: int) -> Outcome:
    vma = find_vma(mm.vmas, addr)
    if vma is None or _holders(mm, vma.start) < 0:
        return (mm,), None, LockMissed(_lock_name(mm.number, addr if vma is None else vma.start), LockMode.READ)
    after = _with_holders(mm, vma.start, _holders(mm, vma.start) + 1)
    return (after,), vma, LockTaken(_lock_name(mm.number, vma.start), LockMode.READ)


async def lock_vma_under_rcu(mm: Mm, addr: int) -> Vma | None:
    """The VMA of an address, with its lock held for reading; None where there is none or somebody is changing it."""
    return await traps.step(_start_read, mm, args=(addr,))  # type: ignore[no-any-return]


def _end_read(mm: MmState, start: int) -> Outcome:
    holders = _holders(mm, start)
    if holders <= 0:
        return (mm,), None, Oops(f"vma_end_read of {_lock_name(mm.number, start)}, which has no reader")
    return (_with_holders(mm, start, holders - 1),), None, LockDropped(_lock_name(mm.number, start), LockMode.READ)


async def vma_end_read(vma: Vma) -> None:
    await traps.step(_end_read, vma.mm, args=(vma.start,))


def _start_write(mm: MmState, start: int) -> Outcome:
    holders = _holders(mm, start)
    if holders > 0:
        return None
    return (_with_holders(mm, start, holders - 1),), None, LockTaken(_lock_name(mm.number, start), LockMode.WRITE)


async def vma_start_write(kernel: Kernel, vma: Vma) -> None:
    """Write-lock the VMA until mmap_lock, which the caller holds for writing, is dropped; sleeps while a fault holds it.

    Who has it may take it again.
    """
    if kernel.config.vma_locks:
        await traps.sleep_until(_start_write, vma.mm, args=(vma.start,))


async def release_fault_lock(vmf: FaultContext) -> None:
    """release_fault_lock: drop whichever lock keeps the address space of a fault. The fault must then answer RETRY."""
    if vmf.flags & FaultFlag.VMA_LOCK:
        await vma_end_read(vmf.vma)
    else:
        await mmap_read_unlock(vmf.vma.mm)
