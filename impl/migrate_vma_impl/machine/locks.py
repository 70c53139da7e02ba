"""Locks other than the page lock: spinlocks, sleeping locks, reader-writer semaphores.

A spinlock disables preemption while it is held. All are fair only by the fairness that a liveness check assumes: no queue is
kept, which keeps states few (a ticket order would multiply them). A handle is the key of its slot.
"""

from __future__ import annotations

from attrs import Factory, field, frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.handles import Handle
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_spec.events import LockDropped, LockMissed, LockTaken, Oops
from migrate_vma_spec.vocabulary import LockMode


def _name(lock: SpinLock | Mutex | RwSem) -> str:
    return f"{lock.kind}:{lock.number}"


@frozen(eq=False)
class SpinLock(Handle):
    """A spinlock named `kind:number` in traces; its slot holds whether it is held."""

    kind: str
    number: int | str = 0

    name: str = field(init=False, repr=False, default=Factory(_name, takes_self=True))

    free = False


def _take(held: bool, name: str, mode: LockMode) -> Outcome:
    return None if held else ((True,), True, LockTaken(name, mode))


def _try(held: bool, name: str, mode: LockMode) -> Outcome:
    return ((True,), False, LockMissed(name, mode)) if held else ((True,), True, LockTaken(name, mode))


def _drop(held: bool, name: str, mode: LockMode) -> Outcome:
    return (False,), None, LockDropped(name, mode) if held else Oops(f"unlock of {name}, which is not locked")


async def spin_lock(lock: SpinLock) -> None:
    await traps.spin_lock_step(_take, lock, (lock.name, LockMode.SPIN))


async def spin_trylock(lock: SpinLock) -> bool:
    return bool(await traps.spin_lock_step(_try, lock, (lock.name, LockMode.SPIN)))


async def spin_unlock(lock: SpinLock) -> None:
    await traps.spin_unlock_step(_drop, lock, (lock.name, LockMode.SPIN))


@frozen(eq=False)
class Mutex(Handle):
    """A sleeping lock; its slot holds whether it is held."""

    kind: str
    number: int | str = 0

    name: str = field(init=False, repr=False, default=Factory(_name, takes_self=True))

    free = False


async def mutex_lock(lock: Mutex) -> None:
    await traps.sleep_until(_take, lock, args=(lock.name, LockMode.SLEEP))


async def mutex_trylock(lock: Mutex) -> bool:
    return bool(await traps.step(_try, lock, args=(lock.name, LockMode.SLEEP)))


async def mutex_unlock(lock: Mutex) -> None:
    await traps.step(_drop, lock, args=(lock.name, LockMode.SLEEP))


@frozen(eq=False)
class RwSem(Handle):
    """A reader-writer semaphore; its slot holds the number of readers, or -1 for a writer. Readers pass waiting writers."""

    kind: str
    number: int | str = 0

    name: str = field(init=False, repr=False, default=Factory(_name, takes_self=True))

    free = 0


def _down_read(holders: int, name: str) -> Outcome:
    return None if holders < 0 else ((holders + 1,), True, LockTaken(name, LockMode.READ))


def _down_read_trylock(holders: int, name: str) -> Outcome:
    if holders < 0:
        return (holders,), False, LockMissed(name, LockMode.READ)
    return (holders + 1,), True, LockTaken(name, LockMode.READ)


def _up_read(holders: int, name: str) -> Outcome:
    event = LockDropped(name, LockMode.READ) if holders > 0 else Oops(f"up_read of {name}, which has no reader")
    return (max(holders - 1, 0),), None, event


def _down_write(holders: int, name: str) -> Outcome:
    return None if holders else ((-1,), True, LockTaken(name, LockMode.WRITE))


def _up_write(holders: int, name: str) -> Outcome:
    event = LockDropped(name, LockMode.WRITE) if holders < 0 else Oops(f"up_write of {name}, which has no writer")
    return (0,), None, event


async def down_read(lock: RwSem) -> None:
    await traps.sleep_until(_down_read, lock, args=(lock.name,))


async def down_read_trylock(lock: RwSem) -> bool:
    return bool(await traps.step(_down_read_trylock, lock, args=(lock.name,)))


async def up_read(lock: RwSem) -> None:
    await traps.step(_up_read, lock, args=(lock.name,))


async def down_write(lock: RwSem) -> None:
    await traps.sleep_until(_down_write, lock, args=(lock.name,))


async def up_write(lock: RwSem) -> None:
    await traps.step(_up_write, lock, args=(lock.name,))
