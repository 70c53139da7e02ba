"""The containers of which a driver makes its state: `state = shared(free=FreeList(), mirror=Mirror(), busy=Lock())`.

Rules:
- A container is declared once, in the class of the driver, with its first value. Each driver object sees it bound to slots of its
  own: `await self.state.free.pop()`.
- Every method is one trap: one visible step, one event. What must happen in one step has one method here.
- What a container holds is immutable and hashable: numbers, words, tuples, frozen attrs objects, handles such as Folio(3).
- A container that only grows keeps any search from ending. A Counter that counts for ever is statistics: leave it out.
- A step on a FreeList stands for the kernel's lock, list operation and unlock: nothing can be seen in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self, overload

from attrs import evolve, field, frozen
from migrate_vma_spec.events import (
    DeviceAccessed,
    DeviceMapped,
    DeviceUnmapped,
    DriverStep,
    Event,
    Oops,
    WaitEnded,
)

from migrate_vma_impl.machine import locks, traps
from migrate_vma_impl.machine.traps import Key, Outcome
from migrate_vma_impl.mm.mm_types import Folio, Mm


class DeclarationError(Exception):
    """A driver's state is declared or used against the rules; the message names the field and says what to write."""


@frozen
class DriverSlot:
    """One field of a driver's state, and the key of its slot."""

    device: str
    field: str

    def did(self, what: str) -> Event:
        return DriverStep(self.device, self.field, what)


@frozen
class Container(ABC):
    """A field of a driver's state: as declared without a slot, and bound to one where a driver uses it."""

    slot: DriverSlot | None = field(default=None, kw_only=True)

    def bind(self, slot: DriverSlot) -> Self:
        return evolve(self, slot=slot)

    @property
    def at(self) -> DriverSlot:
        if self.slot is None:
            raise DeclarationError(
                f"a {type(self).__name__} is used without a driver: declare it in the class, "
                f"state = shared(x={type(self).__name__}(...)), and use it as self.state.x"
            )
        return self.slot

    @property
    def key(self) -> Key:
        """The slot that the traps touch."""
        return self.at

    @abstractmethod
    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        """The slot's first value, for a device with these page frames."""


def brief(value: Any) -> str:
    """A value as a trace shows it: short, and the same in every process."""
    if isinstance(value, Folio):
        return f"folio {value.pfn}"
    if isinstance(value, tuple):
        return f"({', '.join(brief(item) for item in value)})"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hashable(slot: DriverSlot, value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        raise DeclarationError(
            f"{slot.device}.state.{slot.field} is given {brief(value)}, which can change without a step: "
            f"give it something immutable (a tuple for a list)"
        ) from None
    return value


# ---- single values ---------------------------------------------------------------------------------------------------


def _get(value: Any, slot: DriverSlot) -> Outcome:
    return (value,), value, slot.did(f"is {brief(value)}")


def _set(_: Any, slot: DriverSlot, new: Any) -> Outcome:
    return (new,), None, slot.did(f"set to {brief(new)}")


def _swap(value: Any, slot: DriverSlot, new: Any) -> Outcome:
    return (new,), value, slot.did(f"was {brief(value)}, set to {brief(new)}")


def _compare_and_set(value: Any, slot: DriverSlot, old: Any, new: Any) -> Outcome:
    if value != old:
        return (value,), False, slot.did(f"is {brief(value)}, not {brief(old)}: left")
    return (new,), True, slot.did(f"was {brief(old)}, set to {brief(new)}")


def _wait_for(value: Any, slot: DriverSlot, wanted: Any) -> Outcome:
    return ((value,), None, WaitEnded(f"{slot.device}:{slot.field}")) if value == wanted else None


@frozen
class Cell(Container):
    """One value, read and written as a whole (READ_ONCE, WRITE_ONCE, xchg, cmpxchg)."""

    initial: Hashable = None

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        return self.initial

    async def get(self) -> Any:
        return await traps.step(_get, self.key, args=(self.at,))

    async def set(self, value: Hashable) -> None:
        await traps.step(_set, self.key, args=(self.at, _hashable(self.at, value)))

    async def swap(self, value: Hashable) -> Any:
        """Set it, and answer what it was."""
        return await traps.step(_swap, self.key, args=(self.at, _hashable(self.at, value)))

    async def compare_and_set(self, old: Hashable, new: Hashable) -> bool:
        return bool(await traps.step(_compare_and_set, self.key, args=(self.at, old, _hashable(self.at, new))))

    async def wait_for(self, value: Hashable) -> None:
        """Sleep until it holds `value` (wait_event)."""
        await traps.sleep_until(_wait_for, self.key, args=(self.at, value))


def _add(value: int, slot: DriverSlot, more: int) -> Outcome:
    return (value + more,), value + more, slot.did(f"{more:+d}: {value + more}")


@frozen
class Counter(Container):
    """A number that goes up and down again (atomic_t, a kref)."""

    initial: int = 0

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        return self.initial

    async def add(self, more: int = 1) -> int:
        """Answers the new value."""
        return int(await traps.step(_add, self.key, args=(self.at, more)))

    async def sub(self, less: int = 1) -> int:
        """Answers the new value."""
        return await self.add(-less)

    async def get(self) -> int:
        return int(await traps.step(_get, self.key, args=(self.at,)))

    async def wait_for(self, value: int) -> None:
        """Sleep until it is `value`."""
        await traps.sleep_until(_wait_for, self.key, args=(self.at, value))


# ---- the device's free pages -----------------------------------------------------------------------------------------

_Free = tuple[int, ...] | None
"""The frame numbers of a free list in order, or None once it is closed."""


def _pop(free: _Free, slot: DriverSlot) -> Outcome:
    if not free:
        return (free,), None, slot.did("empty")
    return (free[1:],), Folio(free[0]), slot.did(f"gave folio {free[0]}")


def _push(free: _Free, slot: DriverSlot, folio: Folio) -> Outcome:
    if free is None:
        return (free,), None, slot.did(f"closed: folio {folio.pfn} stays out")
    if folio.pfn in free:
        return (free,), None, Oops(f"{slot.device} puts folio {folio.pfn} on its free list twice", folio.pfn)
    return (tuple(sorted((*free, folio.pfn))),), None, slot.did(f"took folio {folio.pfn}")


def _close(_: _Free, slot: DriverSlot) -> Outcome:
    return (None,), None, slot.did("closed")


@frozen
class FreeList(Container):
    """The device pages that the driver may hand out: all of the device's frames at first, or the first `count` of them.

    The smallest is given first, so that states which differ only in their history meet.
    """

    count: int | None = None

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        if self.count is not None and self.count > len(folios):
            raise DeclarationError(f"a FreeList({self.count}) for a device of {len(folios)} frames: raise `frames` of the driver")
        return tuple(folio.pfn for folio in folios[: self.count])

    async def pop(self) -> Folio | None:
        """A free page, or None. It is not initialised: see zone_device_page_init."""
        folio = await traps.step(_pop, self.key, args=(self.at,))
        return folio if isinstance(folio, Folio) else None

    async def push(self, folio: Folio) -> None:
        """From this step on another CPU may take the page: make it the last thing that folio_free does with it."""
        await traps.step(_push, self.key, args=(self.at, folio))

    async def close(self) -> None:
        """Give out no page any more, and keep none that comes back: the device is going away."""
        await traps.step(_close, self.key, args=(self.at,))


# ---- collections -----------------------------------------------------------------------------------------------------

_Pairs = tuple[tuple[Any, Any], ...]


def _order(pair: tuple[Any, Any]) -> tuple[str, Any]:
    """Numbers by value, everything else by what a trace shows: never by a hash."""
    key = pair[0]
    return ("", key) if isinstance(key, int) else (brief(key), 0)


def _lookup(pairs: _Pairs, slot: DriverSlot, key: Any) -> Outcome:
    found = dict(pairs).get(key)
    return (pairs,), found, slot.did(f"[{brief(key)}] is {brief(found)}")


def _store(pairs: _Pairs, slot: DriverSlot, key: Any, value: Any) -> Outcome:
    changed = dict(pairs) | {key: value}
    return (tuple(sorted(changed.items(), key=_order)),), None, slot.did(f"[{brief(key)}] set to {brief(value)}")


def _take_out(pairs: _Pairs, slot: DriverSlot, key: Any) -> Outcome:
    left = tuple(pair for pair in pairs if pair[0] != key)
    return (left,), dict(pairs).get(key), slot.did(f"[{brief(key)}] {'removed' if left != pairs else 'was not there'}")


def _items(pairs: _Pairs, slot: DriverSlot) -> Outcome:
    return (pairs,), pairs, slot.did(f"has {len(pairs)} items")


@frozen
class Map(Container):
    """Keys and values (an xarray, a hash table). An absent key answers None."""

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        return ()

    async def get(self, key: Hashable) -> Any:
        return await traps.step(_lookup, self.key, args=(self.at, key))

    async def set(self, key: Hashable, value: Hashable) -> None:
        await traps.step(_store, self.key, args=(self.at, _hashable(self.at, key), _hashable(self.at, value)))

    async def pop(self, key: Hashable) -> Any:
        """Remove the key, and answer what it held."""
        return await traps.step(_take_out, self.key, args=(self.at, key))

    async def items(self) -> tuple[tuple[Any, Any], ...]:
        return tuple(await traps.step(_items, self.key, args=(self.at,)))


def _append(queue: tuple[Any, ...], slot: DriverSlot, value: Any) -> Outcome:
    return ((*queue, value),), None, slot.did(f"put {brief(value)}")


def _take_first(queue: tuple[Any, ...], slot: DriverSlot) -> Outcome:
    return ((queue[1:],), queue[0], slot.did(f"got {brief(queue[0])}")) if queue else None


def _try_first(queue: tuple[Any, ...], slot: DriverSlot) -> Outcome:
    return _take_first(queue, slot) or ((queue,), None, slot.did("empty"))


@frozen
class Queue(Container):
    """First in, first out."""

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        return ()

    async def put(self, value: Hashable) -> None:
        await traps.step(_append, self.key, args=(self.at, _hashable(self.at, value)))

    async def get(self) -> Any:
        """Sleep until there is something, and take the first."""
        return await traps.sleep_until(_take_first, self.key, args=(self.at,))

    async def tryget(self) -> Any:
        """The first, or None."""
        return await traps.step(_try_first, self.key, args=(self.at,))


# ---- the device's page table -----------------------------------------------------------------------------------------


@frozen(order=True)
class MirrorEntry:
    """One entry of a device's page table. `pfn` is None where the CPU's page table has the zero page."""

    mm: int
    addr: int
    pfn: int | None
    write: bool


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
    return (table,), True, DeviceAccessed(slot.device, mm, addr, entry.pfn, write)


@frozen
class Mirror(Container):
    """A device's page table: what the device itself goes through to memory, and what an invalidate callback must clear."""

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        return ()

    async def map(self, mm: Mm, addr: int, folio: Folio | None, write: bool) -> None:
        """Map the page, over what was there. `folio` is None for the zero page."""
        entry = MirrorEntry(mm.number, addr, None if folio is None else folio.pfn, write)
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


# ---- locks and fences ------------------------------------------------------------------------------------------------


@frozen
class Lock(Container):
    """A sleeping lock (struct mutex)."""

    @property
    def key(self) -> locks.Mutex:
        return locks.Mutex(self.at.device, self.at.field)

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
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

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
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

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
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

    def first(self, folios: tuple[Folio, ...]) -> Hashable:
        return True

    async def arm(self) -> None:
        """Begin: waiters sleep from now on."""
        await traps.step(_set, self.key, args=(self.at, False))

    async def signal(self) -> None:
        await traps.step(_set, self.key, args=(self.at, True))

    async def signalled(self) -> bool:
        return bool(await traps.step(_get, self.key, args=(self.at,)))

    async def wait(self) -> None:
        """Sleep until it is signalled."""
        await traps.sleep_until(_wait_for, self.key, args=(self.at, True))


# ---- the declaration -------------------------------------------------------------------------------------------------


@frozen
class State:
    """A driver's state as the driver sees it: each declared container, bound to this device's slots."""

    device: str
    declared: Shared

    def __getattr__(self, name: str) -> Any:
        container = self.declared.fields.get(name)
        if container is None:
            known = ", ".join(self.declared.fields) or "nothing"
            raise AttributeError(f"the state of {self.device} has no {name}: it declares {known}")
        return container.bind(DriverSlot(self.device, name))


class Shared:
    """The declaration that `shared` makes. As an attribute of a driver object it gives the `State`."""

    canonical_constant: ClassVar[bool] = True

    def __init__(self, fields: Mapping[str, Container]) -> None:
        self.fields: Mapping[str, Container] = MappingProxyType(dict(fields))

    @overload
    def __get__(self, driver: None, owner: type) -> Self: ...

    @overload
    def __get__(self, driver: Any, owner: type) -> State: ...

    def __get__(self, driver: Any, owner: type) -> Self | State:
        return self if driver is None else State(driver.name, self)

    def slots(self, device: str, folios: tuple[Folio, ...]) -> dict[Key, Any]:
        """The slots of this state with their first values, for a device with these frames."""
        bound = [container.bind(DriverSlot(device, name)) for name, container in self.fields.items()]
        return {container.key: container.first(folios) for container in bound}


def shared(**fields: Container) -> Shared:
    """Declare the state of a driver. A subclass adds to it: `state = shared(**Base.state.fields, x=Cell(0))`."""
    for name, container in fields.items():
        if not isinstance(container, Container):  # pyright: ignore[reportUnnecessaryIsInstance]  # third parties need not type-check
            raise DeclarationError(f"state field {name} is {brief(container)}: declare a container, {name}=Cell({brief(container)})")
    return Shared(fields)
