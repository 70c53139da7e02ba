"""Shared state in words: what differs from boot, a line for each object. `folio 100: refcount 1, locked, mapcount 1`.

Only what differs is said, field by field, so a state reads as what happened to it. An object that has no words of its own is
shown by its handle and its value.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

from attrs import fields, has

from migrate_vma_conformance.report import words
from migrate_vma_impl.machine.containers import DriverSlot, MirrorEntry, brief
from migrate_vma_impl.machine.locks import Mutex, RwSem, SpinLock
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.mm.mm_types import (
    AnonVma,
    Folio,
    FreePages,
    LruBatch,
    Mm,
    Pgmap,
    PteSlot,
    Tlb,
    TlbEntry,
    Vma,
    Waiter,
    WorkList,
)
from migrate_vma_impl.mm.mmu_notifier import Reader, Subscriptions
from migrate_vma_impl.workqueue import WorkItem
from migrate_vma_spec.vocabulary import Pte

Name = Callable[[Any], str]

NAMES: dict[type, Name] = {
    Folio: lambda key: f"folio {key.pfn}",
    Mm: lambda key: f"mm {key.number}",
    PteSlot: lambda key: f"pte mm{key.mm}:{key.addr}",
    SpinLock: lambda key: f"spinlock {key.name}",
    Mutex: lambda key: f"lock {key.name}",
    RwSem: lambda key: f"rwsem {key.name}",
    AnonVma: lambda key: f"anon_vma {key.number}",
    Tlb: lambda key: f"TLB of CPU {key.cpu}",
    LruBatch: lambda key: f"LRU batch of CPU {key.cpu}",
    WorkList: lambda key: f"work items of CPU {key.cpu}",
    FreePages: lambda _: "free system frames",
    Pgmap: lambda key: f"pgmap of {key.device}",
    Subscriptions: lambda key: f"notifiers of mm {key.mm}",
    DriverSlot: lambda key: f"{key.device}.{key.field}",
}

ITEMS: dict[type, Name] = {
    Mm: lambda mm: f"mm {mm.number}",
    Pte: words.pte,
    Vma: lambda vma: f"mm{vma.mm.number}:{vma.start}-{vma.end - 1} {'|'.join(flag.name or '' for flag in vma.flags)}",
    TlbEntry: lambda entry: f"mm{entry.mm}:{entry.addr} {words.pte(entry.pte)}",
    Waiter: lambda waiter: f"{waiter.task} ({waiter.mode.value})",
    Reader: lambda reader: f"{reader.task} for {reader.device}{' (stale)' if reader.stale else ''}",
    WorkItem: lambda item: item.name,
    MirrorEntry: lambda entry: f"mm{entry.mm}:{entry.addr} -> {_frame(entry.pfn)}{' w' if entry.write else ''}",
}


def describe(first: Mapping[Key, Any], final: Mapping[Key, Any]) -> tuple[str, ...]:
    """A line for each slot whose value is not the first one any more, in the order of the slots."""
    return tuple(f"{_name(key)}: {_value(key, old, final[key])}" for key, old in first.items() if final[key] != old)


def _name(key: Key) -> str:
    name = NAMES.get(type(key))
    return name(key) if name is not None else repr(key)


def _value(key: Key, old: Any, new: Any) -> str:
    if isinstance(key, (SpinLock, Mutex)):
        return "held" if new else "free"
    if isinstance(key, RwSem):
        return "held by a writer" if new < 0 else f"held by {new} reader{'s' if new != 1 else ''}"
    if new.__class__ is old.__class__ and has(new.__class__) and new.__class__ not in ITEMS:
        names = [field.name for field in fields(new.__class__) if getattr(old, field.name) != getattr(new, field.name)]
        return ", ".join(_field(name, getattr(new, name)) for name in names)
    return _item(new)


def _frame(pfn: int | None) -> str:
    return "zero page" if pfn is None else str(pfn)


def _field(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {_item(value)}"


def _item(value: Any) -> str:
    if type(value) in ITEMS:
        return ITEMS[type(value)](value)
    if value.__class__ is tuple:
        return ", ".join(_item(item) for item in value) or "empty"
    if isinstance(value, enum.Enum):
        return str(value.value)
    return value if isinstance(value, str) else brief(value)
