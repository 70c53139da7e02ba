"""The fields of a driver's state by which tasks wait for one another: locks, and fences of work that the device does later.

A lock's slot is that of the handle which the kernel's own locks use, so traces and schedulers see no difference.
"""

from __future__ import annotations

from collections.abc import Hashable

from attrs import frozen

from migrate_vma_impl.machine import locks, traps
from migrate_vma_impl.machine.container_values import Container, get_value, set_value, wait_for_value


@frozen
class Lock(Container):
    """A sleeping lock (struct mutex)."""

    @property
    def key(self) -> locks.Mutex:
        return locks.Mutex(self.at.device, self.at.field)

    @property
    def first(self) -> Hashable:
        return locks.Mutex.free

    async def lock(self) -> None:
        await locks.mutex_lock(self.key)

    async def trylock(self) -> bool:
        return await locks.mutex_trylock(self.key)

    async def unlock(self) -> None:
        await locks.mutex_unlock(self.key)


@frozen
class SpinLock(Container):
    """A spinlock: its holder must not sleep, and keeps its CPU."""

    @property
    def key(self) -> locks.SpinLock:
        return locks.SpinLock(self.at.device, self.at.field)

    @property
    def first(self) -> Hashable:
        return locks.SpinLock.free

    async def lock(self) -> None:
        await locks.spin_lock(self.key)

    async def trylock(self) -> bool:
        return await locks.spin_trylock(self.key)

    async def unlock(self) -> None:
        await locks.spin_unlock(self.key)


@frozen
class RwSem(Container):
    """A reader-writer semaphore."""

    @property
    def key(self) -> locks.RwSem:
        return locks.RwSem(self.at.device, self.at.field)

    @property
    def first(self) -> Hashable:
        return locks.RwSem.free

    async def down_read(self) -> None:
        await locks.down_read(self.key)

    async def down_read_trylock(self) -> bool:
        return await locks.down_read_trylock(self.key)

    async def up_read(self) -> None:
        await locks.up_read(self.key)

    async def down_write(self) -> None:
        await locks.down_write(self.key)

    async def up_write(self) -> None:
        await locks.up_write(self.key)


@frozen
class Fence(Container):
    """Work that the device finishes later (dma_fence): armed, signalled once, waited for."""

    @property
    def first(self) -> Hashable:
        return True

    async def arm(self) -> None:
        """Begin: waiters sleep from now on."""
        await traps.step(set_value, self.key, args=(self.at, False))

    async def signal(self) -> None:
        await traps.step(set_value, self.key, args=(self.at, True))

    async def signalled(self) -> bool:
        return bool(await traps.step(get_value, self.key, args=(self.at,)))

    async def wait(self) -> None:
        """Sleep until it is signalled."""
        await traps.sleep_until(wait_for_value, self.key, args=(self.at, True))
