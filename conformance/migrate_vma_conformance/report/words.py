"""What each kind of event is called in a column view: a few words that a kernel developer reads without a key.

A kind that has no words of its own is shown by its name and fields, so a new event is never lost.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from attrs import fields

from migrate_vma_spec import events as e
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    Pte,
    PteKind,
    VmFault,
    VmFlags,
    migrate_pfn_to_pfn,
)

Words = Callable[[Any], str]

_ACCESSES = {"read", "write"}
"""Operations of an address space and a page alone: a CPU's accesses."""

_ALLOCATION = "alloc"
"""What the data choices begin with in which an allocation fails."""

_KINDS = {
    PteKind.PRESENT: "page",
    PteKind.DEVICE_PRIVATE: "device",
    PteKind.ZERO: "zero page",
    PteKind.EXCLUSIVE: "exclusive",
    PteKind.TABLE: "a page table",
}


def pte(entry: Pte) -> str:
    """A page-table entry: `migration 4 w`, `device 8`, `4 rw` with the bits that are set."""
    kind = _KINDS.get(entry.kind, entry.kind.value)
    bits = ("write", "exclusive", "young", "dirty", "soft_dirty", "uffd_wp")
    letters = "".join(letter for bit, letter in zip(bits, "wxydsu", strict=True) if getattr(entry, bit))
    number = "" if entry.pfn is None or entry.kind is PteKind.ZERO else f" {entry.pfn}"
    if entry.swap is not None:
        number = f" slot {entry.swap}"
    return f"{kind}{number}{f' {letters}' if letters else ''}"


def entries(array: tuple[int, ...] | None) -> str:
    """A src or dst array: `8m` migrates, `8mw` may be written, `8mc` is large, `-m` is a hole, `8` stays, `-` is empty."""
    return "NULL" if array is None else f"[{' '.join(_entry(value) for value in array)}]"


def _entry(value: int) -> str:
    pfn = migrate_pfn_to_pfn(value)
    named = ((MIGRATE_PFN_MIGRATE, "m"), (MIGRATE_PFN_WRITE, "w"), (MIGRATE_PFN_COMPOUND, "c"))
    flags = "".join(letter for bit, letter in named if value & bit)
    return f"{'-' if pfn is None else pfn}{flags}"


def fault(result: VmFault) -> str:
    """A vm_fault_t as the kernel writes it: 0, or VM_FAULT_SIGBUS."""
    return "|".join(f"VM_FAULT_{bit.name}" for bit in VmFault if bit in result and bit) or "0"


def _range(event: Any) -> str:
    return f"{event.start}" if event.end == event.start + 1 else f"{event.start}-{event.end - 1}"


def _call(event: e.OperationBegan) -> str:
    if event.name in _ACCESSES and len(event.arguments) == 2:
        return f"{event.name} of mm{event.arguments[0]}:{event.arguments[1]} begins"
    return f"{event.name}({', '.join(map(str, event.arguments))}) begins"


def _chose(event: e.Chose) -> str:
    if event.what.startswith(_ALLOCATION) and event.answer:
        return f"{event.what} fails"
    return f"{event.what}: {'default' if event.answer == 0 else f'answer {event.answer}'}"


def _setup(event: e.SetupReturned) -> str:
    return f"setup = {event.result}, cpages {event.cpages}, src {entries(event.src)}"


def _moved(event: e.FolioMoved) -> str:
    count = f"refs {event.refcount}, expected {event.expected}"
    return f"{event.pfn} -> {event.dst} moved: {count}" if event.moved else f"{event.pfn} not moved: {count}"


def _checked(event: e.FolioChecked) -> str:
    return f"check {event.pfn}: refs {event.refcount}, maps {event.mapcount}: {'ok' if event.ok else 'refused'}"


def _access(who: str) -> Words:
    def words(event: Any) -> str:
        where = "nothing" if event.pfn is None else f"page {event.pfn}"
        return f"{who} {'writes' if event.write else 'reads'} address {event.addr}: {where}"

    return words


def _leaf(event: Any) -> str:
    return f"pmd mm{event.mm}:{event.addr}-{event.addr + event.pages - 1}"


def _place(event: Any) -> str:
    """Of a page that is read or written: in a file, or in swap."""
    return f"swap slot {event.index}" if event.file is None else f"file {event.file}:{event.index}"


def _flags(flags: VmFlags) -> str:
    return "|".join(str(flag.name) for flag in VmFlags if flag and flag in flags) or "PROT_NONE"


def _split(event: e.FolioSplit) -> str:
    heads = range(event.pfn, event.pfn + (1 << event.order), 1 << event.new_order)
    return f"split folio {event.pfn} into {' '.join(map(str, heads))}, refs {' '.join(map(str, event.refcounts))}"


def _callback(event: e.SplitCallback) -> str:
    return f"driver's split callback for {event.pfn}{'' if event.tail is None else f', new folio {event.tail}'}"


def _wait(event: Any) -> str:
    return event.on if event.pfn is None else f"{event.on} {event.pfn}"


WORDS: dict[type[e.Event], Words] = {
    e.OperationBegan: _call,
    e.OperationEnded: lambda v: f"{v.name} = {v.result}",
    e.LockTaken: lambda v: f"lock {v.lock}{_mode(v)}",
    e.LockMissed: lambda v: f"trylock {v.lock}{_mode(v)} fails",
    e.LockDropped: lambda v: f"unlock {v.lock}{_mode(v)}",
    e.WaitBegan: lambda v: f"sleeps on {_wait(v)}",
    e.WaitEnded: lambda v: f"wakes from {_wait(v)}",
    e.PointPassed: lambda v: f"passes {v.point.value}",
    e.Chose: _chose,
    e.DrainBegan: lambda _: "queues drain work on every CPU",
    e.DrainEnded: lambda _: "drain done on every CPU",
    e.WorkDone: lambda v: f"work done: {v.work}",
    e.FrameAdded: lambda v: f"frame {v.pfn}: {v.memory.value}",
    e.FolioAllocated: lambda v: f"alloc {v.pfn}, refs {v.refcount}{', locked' if v.locked else ''}",
    e.AllocationFailed: lambda v: f"no free frame for {v.what}",
    e.FolioFreed: lambda v: f"free {v.pfn}",
    e.FreeCallback: lambda v: f"driver's free callback for {v.pfn}",
    e.FolioGot: lambda v: f"get {v.pfn}, refs {v.refcount}",
    e.FolioGetMissed: lambda v: f"get {v.pfn} fails: no refs",
    e.FolioPut: lambda v: f"put {v.pfn}, refs {v.refcount}",
    e.FolioLocked: lambda v: f"{'lock' if v.blocking else 'trylock'} page {v.pfn}{'' if v.blocking else ' works'}",
    e.FolioLockMissed: lambda v: f"trylock page {v.pfn} fails",
    e.FolioUnlocked: lambda v: f"unlock page {v.pfn}",
    e.FolioDirtied: lambda v: f"dirty {v.pfn}",
    e.FolioRead: lambda v: f"look at {v.pfn}: refs {v.refcount}, maps {v.mapcount}",
    e.FolioSeen: lambda v: f"seen {v.pfn}{'' if v.refcount is None else f': refs {v.refcount}'}{_seen_lock(v)}",
    e.FolioUptodate: lambda v: f"{v.pfn} is up to date",
    e.LruIsolated: lambda v: f"isolate {v.pfn} from the LRU{'' if v.done else ' fails'}",
    e.LruAdded: lambda v: f"add {v.pfn} to the LRU batch, refs {v.refcount}",
    e.LruPutBack: lambda v: f"put {v.pfn} back on the LRU, refs {v.refcount}",
    e.LruDrained: lambda v: f"drain the LRU batch: {' '.join(map(str, v.pfns)) or 'empty'}",
    e.LruBatchRead: lambda v: f"LRU batch holds {' '.join(map(str, v.pfns)) or 'nothing'}",
    e.MemcgCharged: lambda v: f"charge {v.pfn}",
    e.MemcgUncharged: lambda v: f"uncharge {v.pfn}",
    e.RmapAdded: lambda v: f"rmap of {v.pfn} gains mm{v.mm}:{v.addr}, maps {v.mapcount}",
    e.RmapRemoved: lambda v: f"rmap of {v.pfn} loses mm{v.mm}:{v.addr}, maps {v.mapcount}",
    e.ExclusiveShared: lambda v: f"exclusive {v.pfn}{' given up' if v.done else ' kept: pinned'}",
    e.ExclusiveTaken: lambda v: f"{v.pfn} {'becomes exclusive' if v.done else 'stays shared'}, refs {v.refcount}",
    e.FolioChecked: _checked,
    e.FolioMoved: _moved,
    e.FlagsMoved: lambda v: f"flags {v.pfn} -> {v.dst}",
    e.FolioSplit: _split,
    e.SplitCallback: _callback,
    e.FolioCleaned: lambda v: f"clean {v.pfn}",
    e.FolioLazyfreed: lambda v: f"{v.pfn} may be dropped",
    e.PageCacheAdded: lambda v: f"page cache gains {v.pfn} for file {v.file}:{v.index}, refs {v.refcount}",
    e.PageCacheRemoved: lambda v: f"page cache loses {v.pfn} of file {v.file}:{v.index}, refs {v.refcount}",
    e.SwapCacheAdded: lambda v: f"swap cache gains {v.pfn} for slot {v.swap}, refs {v.refcount}",
    e.SwapCacheRemoved: lambda v: f"swap cache loses {v.pfn} of slot {v.swap}, refs {v.refcount}",
    e.CacheRead: lambda v: f"{_place(v)} in the cache: {'nothing' if v.pfn is None else v.pfn}",
    e.SwapCounted: lambda v: f"swap slot {v.swap} is held by {v.count} entries",
    e.PageFilled: lambda v: f"read {v.pfn} from {_place(v)}",
    e.PageWritten: lambda v: f"write {v.pfn} to {_place(v)}",
    e.CpuAccessed: _access("CPU"),
    e.DeviceAccessed: _access("device"),
    e.PageCopied: lambda v: f"copy {v.src} -> {v.dst}",
    e.PageCleared: lambda v: f"clear {v.pfn}",
    e.PteRead: lambda v: f"pte mm{v.mm}:{v.addr} is {pte(v.pte)}",
    e.PteChanged: lambda v: f"pte mm{v.mm}:{v.addr} {pte(v.old)} -> {pte(v.new)}",
    e.PmdRead: lambda v: f"{_leaf(v)} is {pte(v.pmd)}",
    e.PmdChanged: lambda v: f"{_leaf(v)} {pte(v.old)} -> {pte(v.new)}",
    e.PmdSplit: lambda v: f"pmd mm{v.mm}:{v.addr} {pte(v.old)} split into {len(v.ptes)} entries",
    e.PageTableAllocated: lambda v: f"mm{v.mm} gets a page table, has {v.tables}",
    e.PageTableFreed: lambda v: f"mm{v.mm} frees a page table, has {v.tables}",
    e.WriteProtectSeqChanged: lambda v: f"write_protect_seq of mm{v.mm}: {'fork begins' if v.writing else 'fork is done'}",
    e.WriteProtectSeqRead: lambda v: f"write_protect_seq of mm{v.mm} {'changed: step back' if v.stale else 'is as it was'}",
    e.LazyMmuEntered: lambda v: f"lazy mmu mode of mm{v.mm}",
    e.LazyMmuLeft: lambda v: f"lazy mmu mode of mm{v.mm} ends",
    e.FlushDeferred: lambda v: f"owes a tlb flush of mm{v.mm}:{_range(v)}",
    e.CacheFlushed: lambda v: f"flush cache mm{v.mm}:{v.addr}",
    e.TlbFilled: lambda v: f"tlb fill mm{v.mm}:{v.addr} {pte(v.pte)}",
    e.TlbFlushed: lambda v: f"tlb flush mm{v.mm}:{_range(v)}" if v.start < v.end else f"owes mm{v.mm} no tlb flush",
    e.MmCreated: lambda v: f"mm{v.mm} created",
    e.MmForked: lambda v: f"mm{v.mm} forked as mm{v.child}",
    e.MmExited: lambda v: f"mm{v.mm} exits",
    e.MmGot: lambda v: f"get mm{v.mm}, users {v.users}",
    e.MmGetMissed: lambda v: f"get mm{v.mm} fails: it exits",
    e.MmPut: lambda v: f"put mm{v.mm}, users {v.users}",
    e.VmaMapped: lambda v: f"mm{v.mm}:{_range(v)} mapped",
    e.VmaChanged: lambda v: f"mm{v.mm}:{_range(v)} is now {_flags(v.flags)}",
    e.VmaMoved: lambda v: f"mm{v.mm}:{_range(v)} moves to {v.to}",
    e.UserfaultRaised: lambda v: f"userfault mm{v.mm}:{v.addr} {'guarded' if v.write_protected else 'missing'}",
    e.VmaUnmapped: lambda v: f"mm{v.mm}:{_range(v)} unmapped",
    e.InvalidateBegan: lambda v: f"invalidate start mm{v.mm}:{_range(v)} {v.reason.value}",
    e.InvalidateEnded: lambda v: f"invalidate end mm{v.mm}:{_range(v)}",
    e.DeviceMapped: lambda v: f"{v.device} maps {v.addr} -> {v.pfn}{' w' if v.write else ''}",
    e.DeviceUnmapped: lambda v: f"{v.device} unmaps {v.addr}",
    e.IntervalRead: lambda v: f"interval read begins, mm{v.mm}",
    e.IntervalInvalidated: lambda v: f"open reads of mm{v.mm} are stale now",
    e.IntervalRetry: lambda v: f"interval read {'is stale: retry' if v.stale else 'is good'}",
    e.FaultBegan: lambda v: f"fault{' for the device' if v.device else ''} mm{v.mm}:{v.addr} {'write' if v.write else 'read'}",
    e.FaultEnded: lambda v: f"fault mm{v.mm}:{v.addr} = {fault(v.result)}",
    e.CallbackEntered: lambda v: f"migrate_to_ram(page {v.pfn})",
    e.CallbackReturned: lambda v: f"migrate_to_ram = {fault(v.result)}",
    e.RangeFaultBegan: lambda v: f"hmm_range_fault {_range(v)} {'write' if v.write else 'read'}",
    e.RangeFaultEnded: lambda v: f"hmm_range_fault = {v.result}",
    e.SetupCalled: lambda v: f"setup {_range(v)}, fault page {'none' if v.fault_page is None else v.fault_page}",
    e.SetupReturned: _setup,
    e.EntryRefilled: lambda v: f"src[{v.index}] refilled: {_entry(v.entry)}",
    e.RangeCalled: lambda v: f"device range {' '.join(map(str, v.pfns))}",
    e.RangeReturned: lambda v: f"device range = {v.result}, src {entries(v.src)}",
    e.PagesCalled: lambda v: f"pages, src {entries(v.src)} dst {entries(v.dst)}",
    e.PagesReturned: lambda v: f"pages done, src {entries(v.src)}",
    e.FinalizeCalled: lambda v: f"finalize, src {entries(v.src)} dst {entries(v.dst)}",
    e.FinalizeReturned: lambda _: "finalize done",
    e.DeviceUnbound: lambda v: f"unbind of {v.device} begins",
    e.DeviceGone: lambda v: f"{v.device} is gone",
    e.PgmapPut: lambda v: f"put pgmap of {v.device}, refs {v.refs}",
    e.ZoneDeviceDataRead: lambda v: f"look at zone_device_data of {v.pfn}",
    e.NotifierSubscribed: lambda v: f"{v.device} subscribes to mm{v.mm}",
    e.DriverStep: lambda v: f"{v.field}: {v.what}",
    e.Oops: lambda v: f"OOPS: {v.what}{'' if v.pfn is None else f', page {v.pfn}'}",
}


def _seen_lock(event: e.FolioSeen) -> str:
    return "" if event.locked is None else ", locked" if event.locked else ", not locked"


def _mode(event: Any) -> str:
    return f" {event.mode.value}" if event.mode.value in {"read", "write"} else ""


def describe(event: e.Event) -> str:
    """The event in a few words."""
    words = WORDS.get(type(event))
    return words(event) if words is not None else f"{type(event).__name__} {_fields(event)}".rstrip()


def _fields(event: e.Event) -> str:
    pairs = ((field.name, getattr(event, field.name)) for field in fields(type(event)))
    return ", ".join(f"{name} {value.value if isinstance(value, enum.Enum) else value}" for name, value in pairs)
