"""The ioctls of the kernel's test driver: dmirror_fops_unlocked_ioctl of lib/test_hmm.c.

An ioctl is one operation, told in the trace by the name of the operation of a scenario that does the same.
"""

from __future__ import annotations

import enum

from migrate_vma_impl.drivers.test_hmm_access import Reply
from migrate_vma_impl.drivers.test_hmm_migrate import DmirrorMigrate
from migrate_vma_impl.machine import traps
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_spec.events import OperationBegan, OperationEnded
from migrate_vma_spec.vocabulary import Errno


class Command(enum.Enum):
    """HMM_DMIRROR_* of lib/test_hmm_uapi.h. HMM_DMIRROR_FLAGS has none: what it makes fail is a data choice here."""

    READ = "device_read"
    WRITE = "device_write"
    MIGRATE_TO_DEV = "to_device"
    MIGRATE_TO_SYS = "to_system"
    READ_UNLOCKED = "read_unlocked"
    SNAPSHOT = "snapshot"
    EXCLUSIVE = "exclusive"
    CHECK_EXCLUSIVE = "check_exclusive"
    RELEASE = "release"


class DmirrorIoctl(DmirrorMigrate):
    """The driver with its ioctls."""

    async def ioctl(self, command: Command, mm: Mm, start: int, npages: int) -> Reply:
        """One command on the pages [start, start + npages) of an address space."""
        name, end = f"{self.name}.{command.value}", start + npages
        await traps.note(OperationBegan(name, () if command is Command.RELEASE else (mm.number, start, end)))
        reply = await self._command(command, mm, start, end) if start < end else Reply(-Errno.EINVAL)
        await traps.return_to_user()
        await traps.note(OperationEnded(name, reply.number))
        return reply

    async def _command(self, command: Command, mm: Mm, start: int, end: int) -> Reply:
        match command:
            case Command.READ | Command.WRITE:
                return await self._access(mm, start, end, write=command is Command.WRITE)
            case Command.READ_UNLOCKED:
                return await self._access(mm, start, end, write=False, unlocked=True)
            case Command.MIGRATE_TO_DEV:
                return await self._migrate_to_device(mm, start, end)
            case Command.MIGRATE_TO_SYS:
                result = await self._windows(mm, start, end, self._window_to_system)
                return Reply(min(result, 0), max(result, 0))
            case Command.SNAPSHOT:
                return await self._snapshot(mm, start, end)
            case Command.EXCLUSIVE:
                return await self._exclusive(mm, start, end)
            case Command.CHECK_EXCLUSIVE:
                return Reply(await self._check_atomic(mm, start, end))
            case Command.RELEASE:
                return Reply(cpages=await self._remove_chunks())
