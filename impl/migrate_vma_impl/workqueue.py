"""The per-CPU workqueues and their workers: kernel/workqueue.c as far as lru_add_drain_all needs it.

A work item runs on the CPU that it was queued on, when that CPU lets its worker run, and is gone from the list only when it is
done. So whoever waits for an item waits until no list holds it, and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import WorkList
from migrate_vma_spec.events import WaitEnded, WorkDone

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


@frozen
class WorkItem:
    """struct work_struct: its function runs on the CPU that has the item in its list. The name tells items apart."""

    name: str
    function: Callable[[Kernel], Coroutine[Any, Any, None]] = field(eq=False, repr=False)


def _first(pending: tuple[WorkItem, ...]) -> Outcome:
    return ((pending,), pending[0], WaitEnded("work")) if pending else None


def _done(pending: tuple[WorkItem, ...], item: WorkItem) -> Outcome:
    left = tuple(other for other in pending if other != item)
    return (left,), None, WorkDone(item.name)


async def process_one_work(kernel: Kernel, cpu: int) -> None:
    """Sleep until this CPU has work, and do the first item."""
    item: WorkItem = await traps.sleep_until(_first, WorkList(cpu))
    await item.function(kernel)
    await traps.step(_done, WorkList(cpu), args=(item,))


async def kworker(kernel: Kernel, cpu: int) -> None:
    """The worker of one CPU: a daemon, pinned to it."""
    while True:
        await process_one_work(kernel, cpu)


def with_work(pending: tuple[WorkItem, ...], item: WorkItem) -> tuple[WorkItem, ...]:
    """queue_work: an item that is pending already is not queued again."""
    return pending if item in pending else (*pending, item)
