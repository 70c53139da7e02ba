"""What every field of a driver's state is, and the fields that hold plain values: cells, counters, maps, queues.

Rules:
- A method is one trap: one visible step, one event. What must happen in one step has one method here.
- What a container holds is immutable and hashable, and its order never that of a hash.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, Self

from attrs import evolve, field, frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.handles import Handle
from migrate_vma_impl.machine.traps import Key, Outcome
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_spec.events import DriverStep, Event, WaitEnded


class DeclarationError(Exception):
    """A driver's state is declared or used against the rules; the message names the field and says what to write."""


@frozen(eq=False)
class DriverSlot(Handle):
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

    @property
    @abstractmethod
    def first(self) -> Hashable:
        """The slot's first value."""


_TUPLES = frozenset[type]({tuple})


def brief(value: Any) -> str:
    """A value as a trace shows it: short, and the same in every process."""
    if type(value) is Folio:
        return f"folio {value.pfn}"
    if type(value) in _TUPLES:
        return f"({', '.join(brief(item) for item in value)})"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hashable(slot: DriverSlot, value: Any) -> Any:
    """The value, if it can be part of a state.

    Raises:
        DeclarationError: it can change by itself.
    """
    try:
        hash(value)
    except TypeError:
        raise DeclarationError(
            f"{slot.device}.state.{slot.field} is given {brief(value)}, which can change without a step: "
            f"give it something immutable (a tuple for a list)"
        ) from None
    return value


# ---- single values ---------------------------------------------------------------------------------------------------


def get_value(value: Any, slot: DriverSlot) -> Outcome:
    return (value,), value, slot.did(f"is {brief(value)}")


def set_value(_: Any, slot: DriverSlot, new: Any) -> Outcome:
    return (new,), None, slot.did(f"set to {brief(new)}")


def _swap(value: Any, slot: DriverSlot, new: Any) -> Outcome:
    return (new,), value, slot.did(f"was {brief(value)}, set to {brief(new)}")


def _compare_and_set(value: Any, slot: DriverSlot, old: Any, new: Any) -> Outcome:
    if value != old:
        return (value,), False, slot.did(f"is {brief(value)}, not {brief(old)}: left")
    return (new,), True, slot.did(f"was {brief(old)}, set to {brief(new)}")


def wait_for_value(value: Any, slot: DriverSlot, wanted: Any) -> Outcome:
    return ((value,), None, WaitEnded(f"{slot.device}:{slot.field}")) if value == wanted else None


@frozen
class Cell(Container):
    """One value, read and written as a whole (READ_ONCE, WRITE_ONCE, xchg, cmpxchg)."""

    initial: Hashable = None

    @property
    def first(self) -> Hashable:
        return self.initial

    async def get(self) -> Any:
        return await traps.step(get_value, self.key, args=(self.at,))

    async def set(self, value: Hashable) -> None:
        await traps.step(set_value, self.key, args=(self.at, hashable(self.at, value)))

    async def swap(self, value: Hashable) -> Any:
        """Set it, and answer what it was."""
        return await traps.step(_swap, self.key, args=(self.at, hashable(self.at, value)))

    async def compare_and_set(self, old: Hashable, new: Hashable) -> bool:
        return bool(await traps.step(_compare_and_set, self.key, args=(self.at, old, hashable(self.at, new))))

    async def wait_for(self, value: Hashable) -> None:
        """Sleep until it holds `value` (wait_event)."""
        await traps.sleep_until(wait_for_value, self.key, args=(self.at, value))


def _add(value: int, slot: DriverSlot, more: int) -> Outcome:
    return (value + more,), value + more, slot.did(f"{more:+d}: {value + more}")


@frozen
class Counter(Container):
    """A number that goes up and down again (atomic_t, a kref)."""

    initial: int = 0

    @property
    def first(self) -> Hashable:
        return self.initial

    async def add(self, more: int = 1) -> int:
        """Answers the new value."""
        return int(await traps.step(_add, self.key, args=(self.at, more)))

    async def sub(self, less: int = 1) -> int:
        """Answers the new value."""
        return await self.add(-less)

    async def get(self) -> int:
        return int(await traps.step(get_value, self.key, args=(self.at,)))

    async def wait_for(self, value: int) -> None:
        """Sleep until it is `value`."""
        await traps.sleep_until(wait_for_value, self.key, args=(self.at, value))


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

    @property
    def first(self) -> Hashable:
        return ()

    async def get(self, key: Hashable) -> Any:
        return await traps.step(_lookup, self.key, args=(self.at, key))

    async def set(self, key: Hashable, value: Hashable) -> None:
        await traps.step(_store, self.key, args=(self.at, hashable(self.at, key), hashable(self.at, value)))

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

    @property
    def first(self) -> Hashable:
        return ()

    async def put(self, value: Hashable) -> None:
        await traps.step(_append, self.key, args=(self.at, hashable(self.at, value)))

    async def get(self) -> Any:
        """Sleep until there is something, and take the first."""
        return await traps.sleep_until(_take_first, self.key, args=(self.at,))

    async def tryget(self) -> Any:
        """The first, or None."""
        return await traps.step(_try_first, self.key, args=(self.at,))
