"""The simulated core as a subject: operations on its system calls, and on the ioctls of its test driver.

Rules:
- Process p is address space p + 1. Address space 0 is nobody's: it keeps the file mapped that processes map, so that the file
  lives on when they do not. Neither its entries nor its device mappings are ever used.
- In sequences of small pages the arena lies in one page table, which is never mapped or migrated whole: no more has a real arena
  of so few pages a part of 2 MB.
- The file is one of tmpfs, as the guests have it: memory without a name here.
- Whoever closes a device, also by ending, has the whole device evicted, as the module does it (dmirror_fops_release).
- After a release the device goes on with new memory, as the module does: here it is emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from attrs import evolve, frozen

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Command, Kind, Module, Protection
from migrate_vma_conformance.kernel.comparing.core_machine import CoreMachine, Ended, Work
from migrate_vma_conformance.kernel.comparing.operations import NOT_OPEN, Observation, Sequence, of_access, of_device, padded
from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm_access import Reply
from migrate_vma_impl.drivers.test_hmm_ioctl import Command as Ioctl
from migrate_vma_impl.drivers.test_hmm_ioctl import DmirrorIoctl
from migrate_vma_impl.drivers.test_hmm_shipped import MENDED, STOCK
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_impl.mm.mmap import mmap_region
from migrate_vma_spec.events import Step
from migrate_vma_spec.vocabulary import Errno, VmFlags

PAGES = 12
"""Of the arena, in sequences of small pages."""
PROCESSES = 3
DEVICE_FRAMES = 64
FILES = 6
"""So many pieces of shared memory may live at once, the file among them."""

SMALL = Config(cpus=2, system_frames=96, addresses=16, mms=PROCESSES + 1, processes=2, pmd_order=4, files=FILES, file_pages=16)
"""A core for sequences of small pages. All of its addresses are one entry of the middle level."""

LARGE = evolve(SMALL, pmd_order=2)
"""A core for sequences on large folios: one is four pages."""

MakeDriver = Callable[[Kernel, str], Driver]

_KEEPER = Mm(0)
_PROTECTIONS = {
    Protection.NONE: VmFlags.NONE,
    Protection.READ: VmFlags.READ,
    Protection.WRITE: VmFlags.READ | VmFlags.WRITE,
}
_IOCTLS: dict[type[Command], Ioctl] = {
    ops.DeviceRead: Ioctl.READ,
    ops.DeviceWrite: Ioctl.WRITE,
    ops.ToDevice: Ioctl.MIGRATE_TO_DEV,
    ops.ToSystem: Ioctl.MIGRATE_TO_SYS,
    ops.Snapshot: Ioctl.SNAPSHOT,
    ops.Exclusive: Ioctl.EXCLUSIVE,
    ops.CheckExclusive: Ioctl.CHECK_EXCLUSIVE,
}
_READS = (Ioctl.READ, Ioctl.MIGRATE_TO_DEV, Ioctl.EXCLUSIVE)
"""The commands that answer what is in the pages."""
_ADVICE: dict[ops.Advice, tuple[Work, tuple[Any, ...]]] = {
    ops.Advice.DONTNEED: (syscalls.madvise_dontneed, ()),
    ops.Advice.FREE: (syscalls.madvise_free, ()),
    ops.Advice.COLD: (syscalls.madvise_cold, ()),
    ops.Advice.PAGEOUT: (syscalls_files.pageout, ()),
    ops.Advice.HUGEPAGE: (syscalls.madvise_hugepage, (True,)),
    ops.Advice.NOHUGEPAGE: (syscalls.madvise_hugepage, (False,)),
}


class Unsupported(ValueError):
    """The simulated core has no such operation."""


@frozen
class CoreSubject:
    """A core of a generation, with devices that `make_driver` makes. `watch` makes what is told every step of a run."""

    name: str
    generation: Generation
    make_driver: MakeDriver
    config: Config = SMALL
    watch: Callable[[], Callable[[Step], object]] | None = None

    def run(self, sequence: Sequence) -> tuple[Observation, ...]:
        """What each operation of the sequence comes to.

        Raises:
            Unsupported: the core has no such operation.
        """
        life = _Life(self)
        seen: list[Observation] = []
        for operation in sequence:
            try:
                seen.append(life.do(operation))
            except Ended as end:
                seen.append(Observation(ended=end.words, evidence=end.evidence))
                break
        return padded(seen, sequence)


def core_of(
    guest: str, module: Module, watch: Callable[[], Callable[[Step], object]] | None = None, config: Config = SMALL
) -> CoreSubject:
    """The core that is to be as a guest is (6.1, 7.3-debug, ...), with this module of its version, bugs and all."""
    version = "v" + guest.partition("-")[0]
    makers = STOCK if module is Module.STOCK else MENDED
    return CoreSubject(f"core {version}", AS_SHIPPED[version], makers[version], config, watch)


class _Life:
    """One run: a kernel from its boot on."""

    def __init__(self, subject: CoreSubject) -> None:
        kernel = Kernel(subject.generation, subject.config)
        self._drivers: list[Any] = []
        for number in range(ops.DEVICES):
            driver: Any = subject.make_driver(kernel, f"dev{number}")
            driver.frames = DEVICE_FRAMES
            kernel.attach(driver)
            self._drivers.append(driver)
        self._kernel = kernel
        self._machine = CoreMachine(kernel, subject.watch() if subject.watch is not None else None)
        self._opened: set[tuple[int, int]] = set()
        self._call(syscalls_files.mmap_shared, _KEEPER, 0, subject.config.file_pages)

    def do(self, operation: Command) -> Observation:
        match operation:
            case ops.Load() | ops.Store():
                return self._touch(operation)
            case ops.Open(process, device):
                self._machine.run(self._drivers[device].open, _mm(process))
                self._opened.add((process, device))
                return Observation(0)
            case ops.Exit(process):
                return self._exit(process)
            case ops.DeviceAccess() if (operation.process, operation.device) not in self._opened:
                return Observation(NOT_OPEN)
            case ops.Release():
                self._machine.run(self._drivers[operation.device].evict)
                return of_device(0)
            case ops.DeviceAccess():
                return self._ioctl(operation)
            case _:
                return Observation(self._system_call(operation))

    # ---- user space --------------------------------------------------------------------------------------------------

    def _touch(self, operation: ops.Load | ops.Store) -> Observation:
        write = isinstance(operation, ops.Store)
        writes = {operation.page: operation.value} if isinstance(operation, ops.Store) else {}
        result = self._call(syscalls.touch, _mm(operation.process), operation.page, write, writes=writes)
        return of_access(operation, result, self._machine.reads.get(operation.page))

    def _system_call(self, operation: Command) -> int:
        match operation:
            case ops.Map():
                return self._map(operation)
            case ops.Unmap(process, first, count):
                return self._call(syscalls.munmap, _mm(process), first, first + count)
            case ops.Protect(process, first, count, protection):
                return self._call(syscalls.mprotect, _mm(process), first, first + count, _PROTECTIONS[protection])
            case ops.Advise(process, first, count, advice) if advice in _ADVICE:
                call, more = _ADVICE[advice]
                return self._call(call, _mm(process), first, first + count, *more)
            case ops.Remap(process, first, count, to):
                return self._call(syscalls.mremap, _mm(process), first, first + count, to)
            case ops.Fork(process, child):
                return self._call(syscalls.fork, _mm(process), _mm(child))
            case _:
                raise Unsupported(f"the simulated core has no {operation}")

    def _call(self, call: Work, *values: Any, writes: dict[int, int] | None = None) -> int:
        return cast("int", self._machine.run(call, self._kernel, *values, writes=writes))

    def _map(self, operation: ops.Map) -> int:
        mm, start, end = _mm(operation.process), operation.first, operation.first + operation.count
        flags = _PROTECTIONS[operation.protection]
        match operation.kind:
            case Kind.SHARED:
                return self._call(syscalls_files.mmap_shared, mm, start, end, flags)
            case Kind.FILE | Kind.FILE_PRIVATE:
                flags |= VmFlags.SHARED if operation.kind is Kind.FILE else VmFlags.NONE
                return self._call(_mmap_file, mm, start, end, flags, _file(self._kernel))
            case _:
                result = self._call(syscalls.mmap, mm, start, end, flags)
        if operation.kind is Kind.HUGE and not result:
            return self._call(syscalls.madvise_hugepage, mm, start, end)
        return result

    def _exit(self, process: int) -> Observation:
        result = self._call(syscalls.exit, _mm(process))
        for device in range(ops.DEVICES):
            if (process, device) in self._opened:
                self._opened.remove((process, device))
                self._machine.run(self._drivers[device].evict)
        return Observation(result)

    # ---- devices -----------------------------------------------------------------------------------------------------

    def _ioctl(self, operation: ops.DeviceAccess) -> Observation:
        command, driver = _IOCTLS[type(operation)], cast("DmirrorIoctl", self._drivers[operation.device])
        pages = range(operation.first, operation.first + operation.count)
        value = operation.value if isinstance(operation, ops.DeviceWrite) else 0
        writes = {page: (value + page - operation.first) % 256 for page in pages}
        mm = _mm(operation.process)
        reply: Reply = self._machine.run(driver.ioctl, command, mm, operation.first, operation.count, writes=writes)
        data = bytes(self._machine.reads[page] for page in pages) if command in _READS and not reply.ret else None
        data = bytes(reply.perm) if command is Ioctl.SNAPSHOT else data
        return of_device(reply.ret, reply.cpages, reply.faults, data)


def _mm(process: int) -> Mm:
    return Mm(process + 1)


def _file(kernel: Kernel) -> int:
    """The first piece of shared memory is the file: the keeper's."""
    return kernel.config.files


async def _mmap_file(kernel: Kernel, mm: Mm, start: int, end: int, flags: VmFlags, file: int) -> int:
    """Map the file, from the page on that has the number of the first address."""
    arguments = (mm.number, start, end, file, start, int(flags))
    if end > kernel.config.file_pages:
        return -Errno.EINVAL
    return await syscalls.system_call("mmap_file", arguments, mmap_region, kernel, mm, start, end, flags, file, start)
