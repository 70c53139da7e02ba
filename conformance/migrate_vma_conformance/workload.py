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
from typing import Any

from attrs import define, field, frozen

from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.system import Task
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
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

    @property
    def ranges(self) -> bool:
        """It takes several pages, not one."""
        return self in _RANGES

    @property
    def needs(self) -> Load | None:
        """The operation that a driver must offer."""
        return next((load for load in Load if load.value == self.value), None)


_RANGES = frozenset({Act.TO_DEVICE, Act.TO_SYSTEM, Act.DISCARD, Act.MUNMAP, Act.MMAP, Act.MMAP_READ_ONLY})


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

    def range(self, operation: Operation) -> tuple[int, int]:
        addresses = self.kernel.config.addresses
        start = operation.addr % addresses
        return start, start + 1 + operation.more % (addresses - start)

    def mapped_range(self, mm: Mm, operation: Operation) -> tuple[int, int] | None:
        """The part of the range in the VMA that its first page lies in, as drivers are asked to migrate."""
        start, end = self.range(operation)
        vma: Vma | None = find_vma(self.values[mm].vmas, start)
        return None if vma is None else (start, min(end, vma.end))

    def pins(self) -> list[Folio]:
        """Page frames with a pin that no operation of this burst drops, once for each such pin."""
        folios = (Folio(pfn) for pfn in self.kernel.system_pfns)
        return [folio for folio in folios for _ in range(self.values[folio].pins - self.unpinned[folio.pfn])]


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
    free = (Mm(number) for number in range(plan.kernel.config.mms))
    child = next((mm for mm in free if not plan.values[mm].users and mm.number not in plan.born), None)
    if child is None:
        return None
    plan.born.add(child.number)
    return syscalls.fork, (plan.kernel, plan.user(operation), child)


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
    folios = (*(Folio(pfn) for pfn in plan.kernel.system_pfns), *plan.driver.folios)
    in_use = [folio for folio in folios if plan.values[folio].refcount]
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
}
