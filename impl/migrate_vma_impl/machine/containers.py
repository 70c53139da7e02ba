"""The containers of which a driver makes its state: `state = shared(free=FreeList(), mirror=Mirror(), busy=Lock())`.

Rules:
- A container is declared once, in the class of the driver, with its first value. Each driver object sees it bound to slots of its
  own: `await self.state.free.pop()`.
- Every method is one trap: one visible step, one event. What must happen in one step has one method.
- What a container holds is immutable and hashable: numbers, words, tuples, frozen attrs objects, handles such as Folio(3).
- A container that only grows keeps any search from ending. A Counter that counts for ever is statistics: leave it out.
- A step on a FreeList stands for the kernel's lock, list operation and unlock: nothing can be seen in between.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self, overload

from attrs import frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.container_locks import Fence, Lock, RwSem, SpinLock
from migrate_vma_impl.machine.container_values import Cell, Container, Counter, DeclarationError, DriverSlot, Map, Queue, brief
from migrate_vma_impl.machine.traps import Key, Outcome
from migrate_vma_impl.mm.mm_types import Folio, Mm
from migrate_vma_impl.mm.page_alloc import first_fit
from migrate_vma_spec.events import DeviceAccessed, DeviceMapped, DeviceUnmapped, Oops

__all__ = [
    "Cell",
    "Container",
    "Counter",
    "DeclarationError",
    "DriverSlot",
    "Fence",
    "FreeList",
    "Lock",
    "Map",
    "Mirror",
    "MirrorEntry",
    "Queue",
    "RwSem",
    "Shared",
    "SpinLock",
    "State",
    "brief",
    "shared",
]

# ---- the device's free pages -----------------------------------------------------------------------------------------

_Free = tuple[int, ...] | None
"""The frame numbers of a free list in order, or None once it is closed."""


def _pop(free: _Free, slot: DriverSlot, order: int) -> Outcome:
    head = first_fit(free, order) if free else None
    if head is None:
        return (free,), None, slot.did("empty")
    taken = range(head, head + (1 << order))
    return (tuple(pfn for pfn in free or () if pfn not in taken),), Folio(head), slot.did(f"gave {_pages(head, order)}")


def _pages(head: int, order: int) -> str:
    return f"folio {head} of {1 << order} pages" if order else f"folio {head}"


def _push(free: _Free, slot: DriverSlot, folio: Folio, order: int) -> Outcome:
    if free is None:
        return (free,), None, slot.did(f"closed: {_pages(folio.pfn, order)} stays out")
    given = range(folio.pfn, folio.pfn + (1 << order))
    if any(pfn in free for pfn in given):
        return (free,), None, Oops(f"{slot.device} puts {_pages(folio.pfn, order)} on its free list twice", folio.pfn)
    return (tuple(sorted((*free, *given))),), None, slot.did(f"took {_pages(folio.pfn, order)}")


def _close(_: _Free, slot: DriverSlot) -> Outcome:
    return (None,), None, slot.did("closed")


@frozen
class FreeList(Container):
    """The device pages that the driver may hand out: all of the device's frames at first, or the first `count` of them.

    The smallest is given first, so that states which differ only in their history meet.
    """

    count: int | None = None

    @property
    def first(self) -> Hashable:
        return ()

    def first_of(self, folios: tuple[Folio, ...]) -> Hashable:
        """The slot's first value, for a device with these page frames."""
        if self.count is not None and self.count > len(folios):
            raise DeclarationError(f"a FreeList({self.count}) for a device of {len(folios)} frames: raise `frames` of the driver")
        return tuple(folio.pfn for folio in folios[: self.count])

    async def pop(self, order: int = 0) -> Folio | None:
        """A free page, or 1 << order of them that can be one folio, by the first; or None. See zone_device_page_init."""
        folio = await traps.step(_pop, self.key, args=(self.at, order))
        return folio if isinstance(folio, Folio) else None

    async def push(self, folio: Folio, order: int = 0) -> None:
        """From this step on another CPU may take the pages: make it the last thing that folio_free does with them."""
        await traps.step(_push, self.key, args=(self.at, folio, order))

    async def close(self) -> None:
        """Give out no page any more, and keep none that comes back: the device is going away."""
        await traps.step(_close, self.key, args=(self.at,))


# ---- the device's page table -----------------------------------------------------------------------------------------


@frozen(order=True)
class MirrorEntry:
    """One entry of a device's page table. `pfn` is None where the CPU's page table has the zero page.

    `atomic` says that the device has the page for itself (make_device_exclusive), as the driver noted it. `bare`: the driver
    noted a page that has no memory behind it, so that to reach through the entry is the end of the kernel.
    """

    mm: int
    addr: int
    pfn: int | None
    write: bool
    atomic: bool = False
    bare: bool = False


_Table = tuple[MirrorEntry, ...]


def _entry(table: _Table, mm: int, addr: int) -> MirrorEntry | None:
    return next((entry for entry in table if (entry.mm, entry.addr) == (mm, addr)), None)


def _without(table: _Table, mm: int, addr: int) -> _Table:
    return tuple(entry for entry in table if (entry.mm, entry.addr) != (mm, addr))


def _place(entry: MirrorEntry) -> tuple[int, int]:
    return entry.mm, entry.addr


def _map(table: _Table, slot: DriverSlot, new: MirrorEntry) -> Outcome:
    changed = tuple(sorted((*_without(table, new.mm, new.addr), new), key=_place))
    return (changed,), None, DeviceMapped(slot.device, new.mm, new.addr, new.pfn, new.write)


def _unmap(table: _Table, slot: DriverSlot, mm: int, addr: int) -> Outcome:
    old = _entry(table, mm, addr)
    if old is None:
        return (table,), False, slot.did(f"mm {mm} page {addr} was not mapped")
    return (_without(table, mm, addr),), True, DeviceUnmapped(slot.device, mm, addr, old.pfn)


def _unmap_next(table: _Table, slot: DriverSlot, mm: int, start: int, end: int) -> Outcome:
    inside = [entry for entry in table if entry.mm == mm and start <= entry.addr < end]
    if not inside:
        return (table,), False, slot.did(f"mm {mm} pages {start} to {end} were not mapped")
    old = inside[0]
    return (_without(table, mm, old.addr),), len(inside) > 1, DeviceUnmapped(slot.device, mm, old.addr, old.pfn)


def _look(table: _Table, slot: DriverSlot, mm: int, addr: int) -> Outcome:
    entry = _entry(table, mm, addr)
    return (table,), entry, slot.did(f"mm {mm} page {addr} maps to {'nothing' if entry is None else brief(entry.pfn)}")


def _access(table: _Table, slot: DriverSlot, mm: int, addr: int, write: bool) -> Outcome:
    entry = _entry(table, mm, addr)
    if entry is None or (write and not entry.write):
        return (table,), False, slot.did(f"mm {mm} page {addr}: device fault")
    if entry.bare:
        return (table,), True, Oops(f"{slot.device} reaches through a page that has no memory behind it", entry.pfn)
    return (table,), True, DeviceAccessed(slot.device, mm, addr, entry.pfn, write)


@frozen
class Mirror(Container):
    """A device's page table: what the device itself goes through to memory, and what an invalidate callback must clear."""

    @property
    def first(self) -> Hashable:
        return ()

    async def map(self, mm: Mm, addr: int, folio: Folio | None, write: bool, atomic: bool = False, bare: bool = False) -> None:
        """Map the page, over what was there. `folio` is None for the zero page."""
        entry = MirrorEntry(mm.number, addr, None if folio is None else folio.pfn, write, atomic, bare)
        await traps.step(_map, self.key, args=(self.at, entry))

    async def unmap(self, mm: Mm, addr: int) -> bool:
        """Whether there was something to unmap."""
        return bool(await traps.step(_unmap, self.key, args=(self.at, mm.number, addr)))

    async def unmap_range(self, mm: Mm, start: int, end: int) -> None:
        """Unmap [start, end), one step for each page that is mapped."""
        while await traps.step(_unmap_next, self.key, args=(self.at, mm.number, start, end)):
            pass

    async def lookup(self, mm: Mm, addr: int) -> MirrorEntry | None:
        entry = await traps.step(_look, self.key, args=(self.at, mm.number, addr))
        return entry if isinstance(entry, MirrorEntry) else None

    async def access(self, mm: Mm, addr: int, write: bool) -> bool:
        """The device loads or stores: look-up and access are one step, as in hardware. False: not mapped (so), a device fault."""
        return bool(await traps.step(_access, self.key, args=(self.at, mm.number, addr, write)))


# ---- the declaration -------------------------------------------------------------------------------------------------


class State:
    """A driver's state as the driver sees it: each declared container, bound to this device's slots."""

    canonical_constant: ClassVar[bool] = True

    def __init__(self, device: str, declared: Mapping[str, Container]) -> None:
        vars(self).update(_device=device)
        vars(self).update((name, container.bind(DriverSlot(device, name))) for name, container in declared.items())

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(name for name in vars(self) if name != "_device") or "nothing"
        raise AttributeError(f"the state of {self._device} has no {name}: it declares {known}")


    def __setattr__(self, name: str, value: object) -> None:
        raise DeclarationError(
            f"state.{name} of {self._device} is set to {brief(value)}, which nobody would see: "
            f"write await self.state.{name}.set(...)"
        )


class Shared:
    """The declaration that `shared` makes. As an attribute of a driver object it gives the `State`."""

    canonical_constant: ClassVar[bool] = True

    def __init__(self, fields: Mapping[str, Container]) -> None:
        self.fields: Mapping[str, Container] = MappingProxyType(dict(fields))
        self._states: dict[str, State] = {}

    def of(self, device: str) -> State:
        """The state of the device of this name: always the same object, which is a constant."""
        state = self._states.get(device)
        if state is None:
            state = self._states[device] = State(device, self.fields)
        return state

    @overload
    def __get__(self, driver: None, owner: type) -> Self: ...

    @overload
    def __get__(self, driver: Any, owner: type) -> State: ...

    def __get__(self, driver: Any, owner: type) -> Self | State:
        return self if driver is None else self.of(driver.name)

    def slots(self, device: str, folios: tuple[Folio, ...]) -> dict[Key, Any]:
        """The slots of this state with their first values, for a device with these frames."""
        state = self.of(device)
        bound: list[Container] = [getattr(state, name) for name in self.fields]
        return {each.key: each.first_of(folios) if isinstance(each, FreeList) else each.first for each in bound}


def shared(**fields: Container) -> Shared:
    """Declare the state of a driver, in its class.

    A subclass adds to its base's: `state = shared(**Base.state.fields, x=Cell(0))`.
    """
    for name, container in fields.items():
        if not isinstance(container, Container):  # pyright: ignore[reportUnnecessaryIsInstance]  # third parties need not type-check
            raise DeclarationError(f"state field {name} is {brief(container)}: declare {name}=Cell({brief(container)})")
    return Shared(fields)
