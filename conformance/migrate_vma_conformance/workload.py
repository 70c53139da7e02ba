"""Operations as numbers, and what they come to on a kernel that is under way: the workload of the state machine.

Rules:
- Every operation is legal: its numbers count round what there is (address spaces that live, addresses, page frames in use), and
  what nobody could do now (unpin without a pin, fork without a free address space) is not done.
- Operations of one race are planned together, before any of them runs: no two fork into one address space, nobody uses an address
  space that another ends, no pin is dropped twice.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, field, frozen

from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.system import Task
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.gup_grab import Foll
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.syscalls_pin import gup_test
from migrate_vma_spec.vocabulary import VmFlags

MOST_PINS = 2
"""Pinned pages outlive their mappings: more of them would only use up memory."""


class Act(enum.Enum):
    """What a task does. Each takes a CPU, and those of `address` a page of an address space as well."""

    READ = "read"
    WRITE = "write"
    TO_DEVICE = "to_device"
    TO_SYSTEM = "to_system"
    EVICT = "evict"
    DEVICE_READ = "device_read"
    DEVICE_WRITE = "device_write"
    DISCARD = "madvise_dontneed"
    MUNMAP = "munmap"
    MMAP = "mmap"
    MMAP_READ_ONLY = "mmap_read_only"
    FORK = "fork"
    EXIT = "exit"
    OPEN = "open"
    BORROW = "speculative_reference"
    PIN = "pin"
    UNPIN = "unpin"
    PROTECT_READ = "mprotect_read"
    PROTECT_NONE = "mprotect_none"
    PROTECT_WRITE = "mprotect_write"
    MOVE = "mremap"
    FREE = "madvise_free"
    COLD = "madvise_cold"
    CLEAR_REFS = "clear_refs"
    EXEC = "execve"
    GUP = "get_user_pages"
    GUP_FAST = "get_user_pages_fast"
    PIN_LONGTERM = "pin_user_pages_longterm"
    SNAPSHOT = "snapshot"
    EXCLUSIVE = "exclusive"
    CHECK_EXCLUSIVE = "check_exclusive"
    UFFD_MISSING = "uffd_register_missing"
    UFFD_GUARD = "uffd_register_and_write_protect"
    UFFD_END = "uffd_unregister"
    PAGEOUT = "pageout"
    MMAP_FILE = "mmap_file"
    MMAP_FILE_SHARED = "mmap_file_shared"
    MMAP_SHARED = "mmap_shared"
    WRITE_BACK = "write_back"
    DROP_PAGE = "drop_page"
    PUNCH_HOLE = "punch_hole"
    HUGE = "madvise_hugepage"
    NO_HUGE = "madvise_nohugepage"

    @property
    def ranges(self) -> bool:
        """It takes several pages, not one."""
        return self in _RANGES

    @property
    def needs(self) -> Load | None:
        """The operation that a driver must offer."""
        return next((load for load in Load if load.value == self.value), None)

    def is_offered(self, driver: Driver, config: Config) -> bool:
        """Whether the driver can do it, and the system has what it is about."""
        if (self in _OF_FILES and not config.files) or (self is Act.PAGEOUT and not config.swap_slots):
            return False
        if self in (Act.HUGE, Act.NO_HUGE) and not config.pmd_order:
            return False
        return self.needs is None or self.needs in driver.loads


_OF_FILES = frozenset({Act.MMAP_FILE, Act.MMAP_FILE_SHARED, Act.MMAP_SHARED, Act.WRITE_BACK, Act.DROP_PAGE, Act.PUNCH_HOLE})
_RANGES = frozenset(
    {
        *(Act.TO_DEVICE, Act.TO_SYSTEM, Act.DISCARD, Act.MUNMAP, Act.MMAP, Act.MMAP_READ_ONLY),
        *(Act.PROTECT_READ, Act.PROTECT_NONE, Act.PROTECT_WRITE, Act.MOVE, Act.FREE, Act.COLD, Act.GUP, Act.GUP_FAST),
        *(Act.PIN_LONGTERM, Act.SNAPSHOT, Act.EXCLUSIVE, Act.UFFD_MISSING, Act.UFFD_GUARD, Act.UFFD_END, Act.PAGEOUT),
        *(Act.MMAP_FILE, Act.MMAP_FILE_SHARED, Act.MMAP_SHARED, Act.HUGE, Act.NO_HUGE),
    }
)


@frozen(repr=False)
class Operation:
    """One task's act. `addr` is its first page, or counts page frames or pins; `more` are the pages after the first."""

    act: Act
    cpu: int = 0
    mm: int = 0
    addr: int = 0
    more: int = 0

    def __repr__(self) -> str:
        """Without the numbers that are 0."""
        numbers = (("cpu", self.cpu), ("mm", self.mm), ("addr", self.addr), ("more", self.more))
        return f"Operation({', '.join([str(self.act), *(f'{name}={number}' for name, number in numbers if number)])})"


Work = tuple[Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...]]


@define(eq=False)
class Plan:
    """The operations of one burst, as they are planned one after the other. `values` is what the slots hold before it."""

    kernel: Kernel
    driver: Driver
    values: Mapping[Key, Any]
    opened: frozenset[int]
    used: set[int] = field(factory=set[int])
    ended: set[int] = field(factory=set[int])
    born: set[int] = field(factory=set[int])
    opening: set[int] = field(factory=set[int])
    unpinned: Counter[int] = field(factory=Counter[int])
    pinning: int = 0

    def task(self, name: str, operation: Operation) -> Task | None:
        """The task that does it, or None where nobody can."""
        work = _WORK[operation.act](self, operation)
        if work is None:
            return None
        function, values = work
        return Task(name, operation.cpu % self.kernel.config.cpus, _only, (function, *values))

    def alive(self) -> list[Mm]:
        every = (Mm(number) for number in range(self.kernel.config.mms))
        return [mm for mm in every if self.values[mm].users and mm.number not in self.ended]

    def user(self, operation: Operation) -> Mm:
        """The address space of an operation: one of those that live, of which there is always one. No other may end it now."""
        alive = self.alive()
        mm = alive[operation.mm % len(alive)]
        self.used.add(mm.number)
        return mm

    def mirrored(self, operation: Operation) -> Mm | None:
        """The same, if the device serves it."""
        mm = self.user(operation)
        return mm if mm.number in self.opened else None

    def unborn(self) -> Mm | None:
        """An address space that is free, and from now on this operation's."""
        free = (Mm(number) for number in range(self.kernel.config.mms))
        found = next((mm for mm in free if not self.values[mm].users and mm.number not in self.born), None)
        if found is not None:
            self.born.add(found.number)
        return found

    def range(self, operation: Operation) -> tuple[int, int]:
        addresses = self.kernel.config.addresses
        start = operation.addr % addresses
        return start, start + 1 + operation.more % (addresses - start)

    def mapped_range(self, mm: Mm, operation: Operation) -> tuple[int, int] | None:
        """The part of the range in the VMA that its first page lies in, as drivers are asked to migrate."""
        start, end = self.range(operation)
        vma: Vma | None = find_vma(self.values[mm].vmas, start)
        return None if vma is None else (start, min(end, vma.end))

    def folios(self) -> tuple[Folio, ...]:
        """Every page frame there is: the system's, and the device's behind them."""
        return (*(Folio(pfn) for pfn in self.kernel.system_pfns), *self.driver.folios)

    def pins(self) -> list[Folio]:
        """Page frames with a pin that no operation of this burst drops, once for each such pin."""
        return [folio for folio in self.folios() for _ in range(self.values[folio].pins - self.unpinned[folio.pfn])]


async def _only(function: Callable[..., Coroutine[Any, Any, Any]], *values: Any) -> None:
    await function(*values)


def tasks(plan: Plan, operations: Sequence[Operation]) -> tuple[Task, ...]:
    """The tasks of a burst, named t1, t2, ... in the order of their operations."""
    found = (plan.task(f"t{number}", operation) for number, operation in enumerate(operations, 1))
    return tuple(task for task in found if task is not None)


# ---- what each act comes to ------------------------------------------------------------------------------------------


def _touch(*, write: bool) -> Callable[[Plan, Operation], Work | None]:
    def work(plan: Plan, operation: Operation) -> Work | None:
        return syscalls.touch, (plan.kernel, plan.user(operation), plan.range(operation)[0], write)

    return work


def _on_range(call: Callable[..., Coroutine[Any, Any, Any]], *more: Any) -> Callable[[Plan, Operation], Work | None]:
    def work(plan: Plan, operation: Operation) -> Work | None:
        return call, (plan.kernel, plan.user(operation), *plan.range(operation), *more)

    return work


def _migrate(plan: Plan, operation: Operation) -> Work | None:
    mm = plan.mirrored(operation)
    found = None if mm is None else plan.mapped_range(mm, operation)
    return None if found is None else (getattr(plan.driver, operation.act.value), (mm, *found))


def _device_access(plan: Plan, operation: Operation) -> Work | None:
    mm = plan.mirrored(operation)
    return None if mm is None else (getattr(plan.driver, operation.act.value), (mm, plan.range(operation)[0]))


def _evict(plan: Plan, operation: Operation) -> Work | None:
    return plan.driver.evict, ()


def _fork(plan: Plan, operation: Operation) -> Work | None:
    child = plan.unborn()
    return None if child is None else (syscalls.fork, (plan.kernel, plan.user(operation), child))


def _exec(plan: Plan, operation: Operation) -> Work | None:
    """What another task of the burst uses stays; so does the address space that would be left without a process."""
    alive = plan.alive()
    mm = alive[operation.mm % len(alive)]
    new = None if mm.number in plan.used else plan.unborn()
    if new is None:
        return None
    plan.ended.add(mm.number)
    plan.used.add(new.number)
    return syscalls.execve, (plan.kernel, mm, new)


def _move(plan: Plan, operation: Operation) -> Work | None:
    """To the pages right behind, round and round; where that would be over itself, one page to the other end."""
    start, end = plan.range(operation)
    to = end if 2 * end - start <= plan.kernel.config.addresses else 0
    if to < start < end - start:
        start = end - 1
    return None if to == start else (syscalls.mremap, (plan.kernel, plan.user(operation), start, end, to))


def _gup(flags: Foll, *, fast: bool = False) -> Callable[[Plan, Operation], Work | None]:
    def work(plan: Plan, operation: Operation) -> Work | None:
        return partial(gup_test, fast=fast), (plan.kernel, plan.user(operation), *plan.range(operation), flags)

    return work


async def _register_and_guard(kernel: Kernel, mm: Mm, start: int, end: int) -> None:
    await syscalls.uffd_register(kernel, mm, start, end, VmFlags.UFFD_WP)
    await syscalls.uffd_writeprotect(kernel, mm, start, end, protect=True)


def _map_file(*, shared: bool) -> Callable[[Plan, Operation], Work | None]:
    def work(plan: Plan, operation: Operation) -> Work | None:
        start, end = plan.range(operation)
        file, index = operation.cpu % plan.kernel.config.files, operation.more % plan.kernel.config.file_pages
        end = min(end, start + plan.kernel.config.file_pages - index)
        call = partial(syscalls_files.mmap_file, shared=shared)
        return call, (plan.kernel, plan.user(operation), start, end, file, index)

    return work


def _map_shared(plan: Plan, operation: Operation) -> Work | None:
    start, end = plan.range(operation)
    end = min(end, start + plan.kernel.config.file_pages)
    return syscalls_files.mmap_shared, (plan.kernel, plan.user(operation), start, end)


def _on_file(call: Callable[..., Coroutine[Any, Any, int]]) -> Callable[[Plan, Operation], Work | None]:
    def work(plan: Plan, operation: Operation) -> Work | None:
        config = plan.kernel.config
        return call, (plan.kernel, operation.mm % config.files, operation.addr % config.file_pages)

    return work


def _clear_refs(plan: Plan, operation: Operation) -> Work | None:
    return syscalls.clear_refs, (plan.kernel, plan.user(operation))


def _exit(plan: Plan, operation: Operation) -> Work | None:
    """The last address space stays, and so does one that another task of the burst uses."""
    alive = plan.alive()
    mm = alive[operation.mm % len(alive)]
    if len(alive) == 1 or mm.number in plan.used:
        return None
    plan.ended.add(mm.number)
    return syscalls.exit, (plan.kernel, mm)


def _open(plan: Plan, operation: Operation) -> Work | None:
    mm = plan.user(operation)
    if mm.number in plan.opened | plan.opening:
        return None
    plan.opening.add(mm.number)
    return plan.driver.open, (mm,)


def _borrow(plan: Plan, operation: Operation) -> Work | None:
    in_use = [folio for folio in plan.folios() if plan.values[folio].refcount]
    if not in_use:
        return None
    return syscalls.speculative_reference, (plan.kernel, in_use[operation.addr % len(in_use)].pfn)


def _pin(plan: Plan, operation: Operation) -> Work | None:
    if len(plan.pins()) + plan.pinning >= MOST_PINS:
        return None
    plan.pinning += 1
    return syscalls.pin, (plan.kernel, plan.user(operation), plan.range(operation)[0])


def _unpin(plan: Plan, operation: Operation) -> Work | None:
    pins = plan.pins()
    if not pins:
        return None
    folio = pins[operation.addr % len(pins)]
    plan.unpinned[folio.pfn] += 1
    return syscalls.unpin, (plan.kernel, folio)


_WORK: Mapping[Act, Callable[[Plan, Operation], Work | None]] = {
    Act.READ: _touch(write=False),
    Act.WRITE: _touch(write=True),
    Act.TO_DEVICE: _migrate,
    Act.TO_SYSTEM: _migrate,
    Act.EVICT: _evict,
    Act.DEVICE_READ: _device_access,
    Act.DEVICE_WRITE: _device_access,
    Act.DISCARD: _on_range(syscalls.madvise_dontneed),
    Act.MUNMAP: _on_range(syscalls.munmap),
    Act.MMAP: _on_range(syscalls.mmap),
    Act.MMAP_READ_ONLY: _on_range(syscalls.mmap, VmFlags.READ),
    Act.FORK: _fork,
    Act.EXIT: _exit,
    Act.OPEN: _open,
    Act.BORROW: _borrow,
    Act.PIN: _pin,
    Act.UNPIN: _unpin,
    Act.PROTECT_READ: _on_range(syscalls.mprotect, VmFlags.READ),
    Act.PROTECT_NONE: _on_range(syscalls.mprotect, VmFlags.NONE),
    Act.PROTECT_WRITE: _on_range(syscalls.mprotect, VmFlags.READ | VmFlags.WRITE),
    Act.MOVE: _move,
    Act.FREE: _on_range(syscalls.madvise_free),
    Act.COLD: _on_range(syscalls.madvise_cold),
    Act.CLEAR_REFS: _clear_refs,
    Act.EXEC: _exec,
    Act.GUP: _gup(Foll.NONE),
    Act.GUP_FAST: _gup(Foll.WRITE, fast=True),
    Act.PIN_LONGTERM: _gup(Foll.PIN | Foll.LONGTERM | Foll.WRITE),
    Act.SNAPSHOT: _migrate,
    Act.EXCLUSIVE: _migrate,
    Act.CHECK_EXCLUSIVE: _device_access,
    Act.UFFD_MISSING: _on_range(syscalls.uffd_register),
    Act.UFFD_GUARD: _on_range(_register_and_guard),
    Act.UFFD_END: _on_range(syscalls.uffd_unregister),
    Act.PAGEOUT: _on_range(syscalls_files.pageout),
    Act.MMAP_FILE: _map_file(shared=False),
    Act.MMAP_FILE_SHARED: _map_file(shared=True),
    Act.MMAP_SHARED: _map_shared,
    Act.WRITE_BACK: _on_file(syscalls_files.write_back),
    Act.DROP_PAGE: _on_file(syscalls_files.drop_page),
    Act.PUNCH_HOLE: _on_file(syscalls_files.punch_hole),
    Act.HUGE: _on_range(syscalls.madvise_hugepage),
    Act.NO_HUGE: _on_range(syscalls.madvise_hugepage, False),
}
