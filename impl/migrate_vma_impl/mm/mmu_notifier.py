"""MMU notifiers: mm/mmu_notifier.c.

Rules:
- A device subscribes to an address space as a whole, with an interval notifier; its callback is the driver's `invalidate`.
- An interval notifier's sequence is one stale bit for each task that reads it, and one bit per device that says whether the
  invalidation in progress has reached it (in the kernel: its sequence is the odd one of the subscriptions). So nothing grows.
- mmu_interval_read_begin waits for an invalidation only where that has reached the device; one that the driver ignores, or that
  has not called it yet, does not hold up readers: those find themselves stale afterwards.
- A read is closed by mmu_interval_read_retry. A driver that asks more than once passes `close=False` before its last question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.handles import Handle
from migrate_vma_impl.machine.traps import ME, Key, Outcome
from migrate_vma_impl.mm.mm_types import Mm, MmState
from migrate_vma_spec.events import (
    IntervalInvalidated,
    IntervalRead,
    IntervalRetry,
    InvalidateBegan,
    InvalidateEnded,
    NotifierSubscribed,
    Oops,
    WaitBegan,
)
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import NotifyReason

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


@frozen(eq=False)
class Subscriptions(Handle):
    """struct mmu_notifier_subscriptions of an address space, and the key of its slot (SubscriptionsState)."""

    mm: int


@frozen(order=True)
class Reader:
    """A task's open read of a device's interval notifier; `stale` once an invalidation has reached the device since."""

    device: str
    task: str
    stale: bool


@frozen
class SubscriptionsState:
    """`active` counts the invalidations in progress, `reached` names the devices that they have reached so far."""

    active: int = 0
    reached: tuple[str, ...] = ()
    readers: tuple[Reader, ...] = ()


@frozen
class NotifierRange:
    """struct mmu_notifier_range: what an invalidate callback is told. `owner` is None for reasons that carry none."""

    mm: Mm
    start: int
    end: int
    reason: NotifyReason
    owner: str | None


def slots(mms: int) -> dict[Key, Any]:
    """The slots of this file for address spaces 0 to `mms` - 1, with their first values."""
    return {Subscriptions(mm): SubscriptionsState() for mm in range(mms)}


# ---- subscribing -----------------------------------------------------------------------------------------------------


def _insert(mm: MmState, device: str) -> Outcome:
    subscribed = tuple(sorted({*mm.subscriptions, device}))
    return (evolve(mm, subscriptions=subscribed),), None, NotifierSubscribed(device, mm.number)


async def mmu_interval_notifier_insert(kernel: Kernel, device: str, mm: Mm) -> None:
    """mmu_interval_notifier_insert over the whole address space. A forked child does not inherit it."""
    await traps.step(_insert, mm, args=(device,))


# ---- invalidating ----------------------------------------------------------------------------------------------------


def _start(subscriptions: SubscriptionsState, mm: MmState, event: InvalidateBegan) -> Outcome:
    return (evolve(subscriptions, active=subscriptions.active + 1), mm), mm.subscriptions, event


async def invalidate_range_start(
    kernel: Kernel, mm: Mm, start: int, end: int, reason: NotifyReason, owner: str | None = None
) -> None:
    """mmu_notifier_invalidate_range_start: every subscribed driver's callback, one after the other. It may sleep in them."""
    event = InvalidateBegan(mm.number, start, end, reason, owner)
    subscribed: tuple[str, ...] = await traps.sleep_until(_start, Subscriptions(mm.number), mm, args=(event,))
    if subscribed:
        await _call_drivers(kernel, subscribed, NotifierRange(mm, start, end, reason, owner))


async def _call_drivers(kernel: Kernel, subscribed: tuple[str, ...], what: NotifierRange) -> None:
    for device in subscribed:
        await kernel.devices[device].invalidate(what)


def _end(subscriptions: SubscriptionsState, event: InvalidateEnded) -> Outcome:
    left = subscriptions.active - 1
    if left < 0:
        return (subscriptions,), None, Oops(f"invalidate_range_end of mm {event.mm} without a start")
    return (evolve(subscriptions, active=left, reached=subscriptions.reached if left else ()),), None, event


async def invalidate_range_end(kernel: Kernel, mm: Mm, start: int, end: int) -> None:
    """mmu_notifier_invalidate_range_end: the last one in progress lets the waiting readers go."""
    await traps.step(_end, Subscriptions(mm.number), args=(InvalidateEnded(mm.number, start, end),))


def _set_seq(subscriptions: SubscriptionsState, mm: int, device: str) -> Outcome:
    event = IntervalInvalidated(device, mm)
    if not subscriptions.active:
        return (subscriptions,), None, Oops(f"{device} calls mmu_interval_set_seq outside an invalidation of mm {mm}")
    if device in subscriptions.reached:
        return (subscriptions,), None, event
    reached = tuple(sorted((*subscriptions.reached, device)))
    readers = tuple(evolve(reader, stale=True) if reader.device == device else reader for reader in subscriptions.readers)
    return (evolve(subscriptions, reached=reached, readers=readers),), None, event


async def mmu_interval_set_seq(kernel: Kernel, device: str, mm: Mm) -> None:
    """mmu_interval_set_seq: for the driver's invalidate callback, under the lock that guards its mappings."""
    await traps.step(_set_seq, Subscriptions(mm.number), args=(mm.number, device))


# ---- reading ---------------------------------------------------------------------------------------------------------


def _mine(subscriptions: SubscriptionsState, device: str, task: str) -> Reader | None:
    return next((reader for reader in subscriptions.readers if (reader.device, reader.task) == (device, task)), None)


def _with_reader(subscriptions: SubscriptionsState, new: Reader) -> SubscriptionsState:
    return evolve(subscriptions, readers=tuple(sorted((*_others(subscriptions, new.device, new.task), new))))


def _others(subscriptions: SubscriptionsState, device: str, task: str) -> tuple[Reader, ...]:
    return tuple(reader for reader in subscriptions.readers if (reader.device, reader.task) != (device, task))


def _begin(subscriptions: SubscriptionsState, mm: int, device: str, task: str) -> Outcome:
    after = _with_reader(subscriptions, Reader(device, task, stale=False))
    if device in subscriptions.reached:
        return (after,), False, WaitBegan("invalidate_range_end")
    return (after,), True, IntervalRead(device, mm)


def _wait(subscriptions: SubscriptionsState, mm: int, device: str, task: str) -> Outcome:
    reader = _mine(subscriptions, device, task)
    if device in subscriptions.reached and not (reader and reader.stale):
        return None
    return (subscriptions,), None, IntervalRead(device, mm)


async def mmu_interval_read_begin(kernel: Kernel, device: str, mm: Mm) -> None:
    """mmu_interval_read_begin: open a read, once no invalidation that has reached the device is in progress."""
    if not await traps.step(_begin, Subscriptions(mm.number), args=(mm.number, device, ME)):
        await traps.sleep_until(_wait, Subscriptions(mm.number), args=(mm.number, device, ME))


def _retry(subscriptions: SubscriptionsState, mm: int, device: str, task: str, close: bool) -> Outcome:
    reader = _mine(subscriptions, device, task)
    if reader is None:
        return (subscriptions,), True, Oops(f"{device} checks a read of mm {mm} that it did not begin, or closed")
    after = evolve(subscriptions, readers=_others(subscriptions, device, task)) if close else subscriptions
    return (after,), reader.stale, IntervalRetry(device, mm, reader.stale)


async def mmu_interval_read_retry(kernel: Kernel, device: str, mm: Mm, *, close: bool = True) -> bool:
    """mmu_interval_read_retry: whether an invalidation has reached the device since the read began, and the read is void."""
    return bool(await traps.step(_retry, Subscriptions(mm.number), args=(mm.number, device, ME, close)))


async def mmu_interval_check_retry(kernel: Kernel, device: str, mm: Mm) -> bool:
    """mmu_interval_check_retry: the same question in the middle of a read, without the driver's lock."""
    return await mmu_interval_read_retry(kernel, device, mm, close=False)
