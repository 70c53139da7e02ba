"""Which function a step is told of: the innermost one of its stack that the kernel, or the driver, has by that name.

Our own small functions, for what the kernel has inline, take their caller's name, and so do those that make one step each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

from migrate_vma_impl import fault_page
from migrate_vma_impl.machine import containers, locks, traps
from migrate_vma_impl.mm import (
    folio,
    highmem,
    huge_memory_device,
    huge_memory_leaf,
    memcontrol,
    memory,
    memory_lock,
    migrate,
    migrate_device,
    migrate_device_collect,
    migrate_device_huge,
    migrate_device_pages,
    mmap_lock,
    pgtable,
    rmap,
    swap,
    syscalls,
)
from migrate_vma_spec import events as e
from migrate_vma_spec.events import Event

_PRIMITIVE = (traps, locks, containers, folio, pgtable, huge_memory_leaf, mmap_lock, memcontrol, highmem, fault_page)
"""Modules of functions that make one step each, or that the kernel has inline: a line names their callers."""

_SMALL = (
    memory.cpu_access,
    memory.do_device_private_page,
    memory_lock.lock_if_same,
    migrate.queue_then_drop_ptl,
    migrate_device.add_destination_to_lru,
    migrate_device.unlock_unless_fault_page,
    migrate_device_collect.dirty_present,
    migrate_device_collect.flush_then_drop_ptl,
    migrate_device_collect.migration_entry_at,
    migrate_device_pages.device_pages,
    huge_memory_device.lock_if_same_pmd,
    migrate_device_collect.collect_entry,
    migrate_device_collect.enter_lazy_mmu,
    migrate_device_collect.leave_lazy_mmu,
    migrate_device_huge.pin_flush_and_leave,
    migrate_device_huge.split_leaf,
    rmap.folio_add_anon_rmap,
    rmap.folio_add_new_anon_rmap,
    rmap.folio_mark_dirty,
    rmap.folio_remove_rmap,
    rmap.folio_try_dup_anon_rmap,
    rmap.folio_try_share_anon_rmap,
    swap.folio_put,
    syscalls.touch,
)
"""Such functions in modules that have others."""

_WRAPPER = "operation"
"""What migrate_vma_impl.driver calls the function around each of a driver's operations."""

_SCENARIO = "_act"
"""The function that a scenario's task begins with; the one that it calls is the scenario's too."""

_NOTES: tuple[type[Event], ...] = (
    e.OperationBegan,
    e.OperationEnded,
    e.FaultBegan,
    e.FaultEnded,
    e.CallbackEntered,
    e.CallbackReturned,
    e.RangeFaultBegan,
    e.RangeFaultEnded,
    e.SetupCalled,
    e.SetupReturned,
    e.EntryRefilled,
    e.RangeCalled,
    e.RangeReturned,
    e.PagesCalled,
    e.PagesReturned,
    e.FinalizeCalled,
    e.FinalizeReturned,
    e.InvalidateBegan,
    e.InvalidateEnded,
    e.DrainBegan,
    e.DrainEnded,
    e.PointPassed,
    e.Chose,
)
"""Events whose words name their function."""


@functools.cache
def _machinery() -> frozenset[str]:
    """Functions whose name says no more than the event that they make."""
    scopes = [*_PRIMITIVE, *(kind for _, kind in inspect.getmembers(containers, inspect.isclass))]
    names = {name for scope in scopes for name, _ in inspect.getmembers(scope, _is_awaited)}
    return frozenset(names | {function.__name__ for function in _SMALL} | {_WRAPPER})


def _is_awaited(member: object) -> bool:
    """A coroutine function, or one of the traps, which are generator functions."""
    return inspect.iscoroutinefunction(member) or inspect.isgeneratorfunction(member)


def told(stack: Sequence[str]) -> list[str]:
    """The functions of a stack that a reader wants to know of, innermost first."""
    inner = stack[2:] if stack[:1] == (_SCENARIO,) else stack
    return [name for name in reversed(inner) if name not in _machinery() and not name.startswith("_")]


def function_of(stack: Sequence[str]) -> str:
    """The innermost of them; empty where there is none."""
    return next(iter(told(stack)), "")


def names_itself(event: Event) -> bool:
    """Whether the words for the event say which function it belongs to."""
    return isinstance(event, _NOTES)
