"""The base class of driver models: what a third party subclasses, and all that the simulated kernel knows of a driver.

Rules:
- A driver object is a constant once its factory has returned. What changes is declared: `state = shared(free=FreeList())`, and
  every look at it and change of it is awaited, as every call of the kernel is.
- The kernel calls `migrate_to_ram`, `folio_free` and `invalidate`. A scenario calls the operations, those of `Load` that the
  class defines, each as a system call: without locks held, from begin to end.
- An operation does not call another one of its own; what they share is a method with a name of its own.

See docs/writing-a-driver.md.
"""

from __future__ import annotations

import enum
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.containers import Shared, brief, shared
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, Mm
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.events import OperationBegan, OperationEnded
from migrate_vma_spec.vocabulary import Memory, VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class FrozenDriverError(Exception):
    """A driver object was changed, or can be, behind the machine's back: a fault of its model. The message says the cure."""


class ResultError(Exception):
    """A method of a driver returned what no kernel caller of it can use: a fault of its model."""


class UnsupportedLoadError(Exception):
    """A scenario asked a driver for an operation that its class lacks: a fault of the scenario, which can ask `loads`."""


_CHANGEABLE = frozenset[type]({list, dict, set, bytearray})


class Load(enum.Enum):
    """The operations that a scenario may ask of a driver; the value is the method's name."""

    TO_DEVICE = "to_device"
    TO_SYSTEM = "to_system"
    EVICT = "evict"
    DEVICE_READ = "device_read"
    DEVICE_WRITE = "device_write"
    RELEASE = "release"
    SNAPSHOT = "snapshot"
    EXCLUSIVE = "exclusive"
    CHECK_EXCLUSIVE = "check_exclusive"


_Method = Callable[..., Coroutine[Any, Any, int]]


def _as_number(argument: object) -> int:
    return argument.number if isinstance(argument, Mm) else int(argument)  # type: ignore[call-overload]


def _count(driver: Driver, load: Load, result: object) -> int:
    """What an operation returned, held to being a number."""
    if isinstance(result, int) and not isinstance(result, bool):
        return result
    expected = "a count of pages, 0, or a negated errno"
    raise ResultError(f"{type(driver).__name__}.{load.value} returned {brief(result)}; expected {expected}")


def _operation(load: Load, method: _Method) -> _Method:
    """The method as a system call: between the notes of an operation, with the way back to user space at its end."""

    @functools.wraps(method)
    async def operation(self: Driver, *arguments: object) -> int:
        name = f"{self.name}.{load.value}"
        await traps.note(OperationBegan(name, tuple(_as_number(argument) for argument in arguments)))
        result = _count(self, load, await method(self, *arguments))
        await traps.return_to_user()
        await traps.note(OperationEnded(name, result))
        return result

    return operation


class Driver(ABC):
    """A device and its driver.

    Attributes:
        frames: How many page frames of memory the device has.
        memory: The kind of that memory.
        state: What the driver keeps, declared with `shared`.
        loads: The operations that this class offers; worked out from its methods.
        name: The device's name in traces and handles: unique among the devices of a kernel.
        kernel: The kernel that it is attached to; its methods are the kernel's own functions.
    """

    canonical_constant: ClassVar[bool] = True

    frames: ClassVar[int] = 4
    memory: ClassVar[Memory] = Memory.DEVICE_PRIVATE
    state: ClassVar[Shared] = shared()
    loads: ClassVar[frozenset[Load]] = frozenset()

    _frozen: bool = False

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = {load for load in Load if load.value in cls.__dict__}
        for load in own:
            setattr(cls, load.value, _operation(load, cls.__dict__[load.value]))
        cls.loads = cls.loads | own

    # ---- what the kernel reads -----------------------------------------------------------------------------------------

    @property
    def owner(self) -> str:
        """pgmap->owner of its pages, and pgmap_owner of its migrations."""
        return self.name

    @property
    def folios(self) -> tuple[Folio, ...]:
        """The device's page frames, in order."""
        return self.kernel.device_folios(self)

    def slots(self) -> dict[Key, Any]:
        """The slots of its state with their first values, once it is attached."""
        return type(self).state.slots(self.name, self.folios)

    def freeze(self) -> None:
        """From here on the object is a constant.

        Raises:
            FrozenDriverError: an attribute holds something that can change by itself.
        """
        for name, value in vars(self).items():
            if type(value) in _CHANGEABLE:
                raise FrozenDriverError(
                    f"{type(self).__name__}.{name} is a {type(value).__name__}, which can change without a step that anybody "
                    f"sees: {self._cure(name)}; or keep a tuple if it never changes"
                )
        object.__setattr__(self, "_frozen", True)

    def __setattr__(self, name: str, value: object) -> None:
        if self._frozen:
            raise FrozenDriverError(
                f"{type(self).__name__} sets self.{name} = {brief(value)}, but a driver object is a constant once its factory "
                f"has returned: {self._cure(name)}"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._frozen:
            raise FrozenDriverError(f"{type(self).__name__} deletes self.{name}, but it is a constant: {self._cure(name)}")
        object.__delattr__(self, name)

    @staticmethod
    def _cure(name: str) -> str:
        return f"declare it in the class, state = shared({name}=Cell(...)), and write: await self.state.{name}.set(...)"

    # ---- what the kernel calls -----------------------------------------------------------------------------------------

    @abstractmethod
    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        """dev_pagemap_ops.migrate_to_ram: a CPU touched vmf.page, which is on the device. mmap_lock is held, the page referenced.

        VmFault.NONE lets the CPU try again; OOM and SIGBUS kill its task.
        """

    def fault_result(self, result: object) -> VmFault:
        """What migrate_to_ram returned, held to being one of the results that a fault can have."""
        known = VmFault.__members__
        if isinstance(result, int) and not isinstance(result, bool) and result in known.values():
            return VmFault(result)
        expected = ", ".join(f"VmFault.{name}" for name in known)
        raise ResultError(f"{type(self).__name__}.migrate_to_ram returned {brief(result)}; expected one of {expected}")

    @abstractmethod
    async def folio_free(self, folio: Folio) -> None:
        """dev_pagemap_ops.folio_free: the last reference is gone. May run under a page-table lock, so it must not sleep.

        A large folio comes as one: ask `folio_nr_pages`, which stays true until the page is initialised again.
        """

    async def folio_split(self, folio: Folio, tail: Folio | None) -> None:  # noqa: B027  (who keeps nothing by folio does nothing)
        """dev_pagemap_ops.folio_split: `tail` is a folio of its own from now on, and was part of `folio`; None at the end.

        For what a driver keeps by folio. Each part is freed by itself later. It runs inside the split, so it must not sleep.
        """

    async def invalidate(self, range_: NotifierRange) -> None:
        """The interval notifier's callback: a driver that mirrors page tables drops what it has of the range.

        As it stands here it does for a driver without such tables: the reads of the interval notifier are stale now.
        """
        await self.kernel.mmu_interval_set_seq(self.name, range_.mm)

    async def open(self, mm: Mm) -> None:
        """Begin to serve an address space: subscribe to its invalidations."""
        await self.kernel.mmu_interval_notifier_insert(self.name, mm)

    # ---- what a scenario calls -----------------------------------------------------------------------------------------

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        """Migrate [start, end) to the device; the number of pages, or a negated errno."""
        return self._unsupported(Load.TO_DEVICE, mm, start, end)

    async def to_system(self, mm: Mm, start: int, end: int) -> int:
        """Bring [start, end) back; the number of pages, or a negated errno."""
        return self._unsupported(Load.TO_SYSTEM, mm, start, end)

    async def evict(self) -> int:
        """Empty the device's memory, whoever's pages are there; how many pages left it."""
        return self._unsupported(Load.EVICT)

    async def device_read(self, mm: Mm, addr: int) -> int:
        """The device loads from the page, faulting it in if need be; 0 or a negated errno."""
        return self._unsupported(Load.DEVICE_READ, mm, addr)

    async def device_write(self, mm: Mm, addr: int) -> int:
        """The device stores to the page, faulting it in if need be; 0 or a negated errno."""
        return self._unsupported(Load.DEVICE_WRITE, mm, addr)

    async def release(self) -> int:
        """The driver is unbound: empty the memory, then memunmap_pages; how many pages left it."""
        return self._unsupported(Load.RELEASE)

    async def snapshot(self, mm: Mm, start: int, end: int) -> int:
        """What the device could use of [start, end) as it is, without faults; how many pages, or a negated errno."""
        return self._unsupported(Load.SNAPSHOT, mm, start, end)

    async def exclusive(self, mm: Mm, start: int, end: int) -> int:
        """Take [start, end) for the device alone (make_device_exclusive); the number of pages, or a negated errno."""
        return self._unsupported(Load.EXCLUSIVE, mm, start, end)

    async def check_exclusive(self, mm: Mm, addr: int) -> int:
        """Whether the device still has the page for itself: -EPERM if so, 0 if it has lost it (as the kernel's test asks it)."""
        return self._unsupported(Load.CHECK_EXCLUSIVE, mm, addr)

    def _unsupported(self, load: Load, *arguments: object) -> int:
        known = ", ".join(sorted(known.value for known in self.loads)) or "nothing"
        raise UnsupportedLoadError(
            f"{self.name} is asked for {load.value}{brief(arguments)}, but {type(self).__name__} defines {known}"
        )
