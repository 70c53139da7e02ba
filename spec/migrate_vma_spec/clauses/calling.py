"""The calling convention

Which locks and arguments a caller brings to migrate_vma_setup, _pages and _finalize, in which order it calls them, and what the
library answers. A *call* is one migration, from its setup (or device_range) to its finalize.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    call_before,
    entry_at,
    pairs,
    show,
)
from migrate_vma_spec.objects import Call, Phase, World, mmap_lock
from migrate_vma_spec.registry import KEPT, Judgement, Party, step_clause
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    VM_SPECIAL,
    Errno,
    VmFlags,
)

REFUSED = -int(Errno.EINVAL)


def _unlocked_mm(world: World, task: str, mm: int | None) -> bool:
    return mm is not None and not world.task(task).holds(mmap_lock(mm))


@step_clause(
    "C01",
    name="mmap_lock held",
    party=Party.DRIVER,
    source="Documentation/mm/hmm.rst steps 1-7; mm/migrate_device.c:migrate_vma_setup kernel-doc (6.1.192, 7.3.4)",
    symptom="the VMA is freed or split under the walk; pages are mapped into a dead range",
    on=(ev.SetupCalled, ev.PagesCalled, ev.FinalizeCalled),
)
def mmap_lock_is_held(before: World, step: ev.Step, after: World) -> Judgement:
    """The caller MUST hold mmap_lock, for reading at least, from before migrate_vma_setup until after migrate_vma_finalize."""
    event = step.event
    if isinstance(event, ev.SetupCalled):
        unlocked = _unlocked_mm(before, step.task, event.mm)
        return f"{step.task} called setup on mm {event.mm} without mmap_lock" if unlocked else None
    event = cast("ev.PagesCalled | ev.FinalizeCalled", event)
    call = call_before(before, step, event.call)
    if call is None or not call.vma or call.mm is None:
        return None
    if _unlocked_mm(before, step.task, call.mm):
        return f"{step.task} called {_NAMES[type(event)]} for mm {call.mm} without mmap_lock"
    if call.mm_was_unlocked:
        return f"{step.task} dropped mmap_lock of mm {call.mm} between setup and {_NAMES[type(event)]}"
    return KEPT


_NAMES: dict[type[ev.Event], str] = {ev.PagesCalled: "pages", ev.FinalizeCalled: "finalize"}


def _bad_range(world: World, call: Call) -> str | None:
    """Why setup must refuse the range of this call, as far as the world knows its address space."""
    if call.end <= call.start:
        return f"[{call.start}, {call.end}) is empty"
    vma = world.vma(call.mm, call.start)
    if vma is None:
        return f"mm {call.mm} has no VMA at {call.start}"
    if call.end > vma.end:
        return f"[{call.start}, {call.end}) leaves the VMA [{vma.start}, {vma.end})"
    bad = vma.flags & (VM_SPECIAL | VmFlags.HUGETLB | VmFlags.DAX)
    return f"the VMA [{vma.start}, {vma.end}) is {bad.name}" if bad else None


@step_clause(
    "C02",
    name="one VMA",
    party=Party.BOTH,
    source="mm/migrate_device.c:migrate_vma_setup argument checks (6.1.192, 7.3.4)",
    symptom="a walk outside of the VMA, or over memory that has no struct page of its own",
    on=(ev.SetupReturned,),
)
def one_vma(before: World, step: ev.Step, after: World) -> Judgement:
    """[start, end) MUST lie in one VMA that is neither hugetlb, VM_SPECIAL nor DAX; setup MUST refuse any other range with
    -EINVAL.
    """
    event = cast("ev.SetupReturned", step.event)
    call = call_before(before, step, event.call)
    if call is None or call.mm is None or call.mm not in before.mms:
        return None
    reason = _bad_range(before, call)
    if reason is None:
        return None
    return KEPT if event.result == REFUSED else f"setup returned {event.result} although {reason}"


@step_clause(
    "C03",
    name="masked bounds",
    party=Party.BOTH,
    source="mm/migrate_device.c:migrate_vma_setup, migrate_vma_collect (6.1.192, 7.3.4)",
    symptom="the driver loops past npages",
    on=(ev.SetupReturned, ev.PagesCalled),
)
def bounds_after_setup(before: World, step: ev.Step, after: World) -> Judgement:
    """Setup leaves end = start + npages, and the driver MUST use the values after setup: it MUST NOT fill dst past npages."""
    event = step.event
    if isinstance(event, ev.SetupReturned):
        call = call_before(before, step, event.call)
        if event.result != 0 or call is None:
            return None
        if event.start != call.start or event.end != event.start + event.npages:
            return f"setup of [{call.start}, {call.end}) left [{event.start}, {event.end}) with npages {event.npages}"
        return KEPT
    event = cast("ev.PagesCalled", event)
    call = call_before(before, step, event.call)
    if call is None or call.npages is None or event.dst is None:
        return None
    for index, entry in enumerate(event.dst[call.npages :], call.npages):
        if entry:
            return f"dst[{index}] is {show(entry)}, past npages {call.npages}"
    return KEPT


@step_clause(
    "C04",
    name="array size",
    party=Party.DRIVER,
    source="include/linux/migrate.h: struct migrate_vma comment (6.1.192, 7.3.4)",
    symptom="writes out of bounds",
    on=(ev.SetupCalled,),
)
def arrays_are_large_enough(before: World, step: ev.Step, after: World) -> Judgement:
    """The arrays src and dst MUST each have room for (end - start) / PAGE_SIZE entries."""
    event = cast("ev.SetupCalled", step.event)
    pages = event.end - event.start
    lengths = {"src": event.nsrc, "dst": event.ndst}
    known = {name: length for name, length in lengths.items() if length}
    for name, length in known.items():
        if length < pages:
            return f"{name} has room for {length} entries, [{event.start}, {event.end}) needs {pages}"
    return KEPT if pages > 0 and known else None


@step_clause(
    "C05",
    name="core writes no entry too many",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect, migrate_device_range (6.1.192, 7.3.4)",
    symptom="KASAN: out-of-bounds write",
    on=(ev.SetupReturned, ev.RangeReturned),
)
def no_entry_too_many(before: World, step: ev.Step, after: World) -> Judgement:
    """The library MUST NOT store more entries than (end - start) / PAGE_SIZE, nor more than the number that device_range was
    given.
    """
    event = cast("ev.SetupReturned | ev.RangeReturned", step.event)
    call = call_before(before, step, event.call)
    if call is None or event.src is None or event.result != 0:
        return None
    room = call.end - call.start if isinstance(event, ev.SetupReturned) else len(call.pfns)
    for index, entry in enumerate(event.src[room:], room):
        if entry:
            return f"src[{index}] is {show(entry)}, but the call is for {room} pages"
    if isinstance(event, ev.SetupReturned) and event.npages > room:
        return f"npages is {event.npages}, but the call is for {room} pages"
    return KEPT


@step_clause(
    "C06",
    name="setup result",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_setup (6.1.192, 7.3.4)",
    symptom="locks and references leak after an error",
    on=(ev.SetupReturned,),
)
def setup_result(before: World, step: ev.Step, after: World) -> Judgement:
    """Setup MUST return 0 or -EINVAL and nothing else, -EINVAL without arrays to fill; after an error no page is locked,
    referenced or unmapped by it.
    """
    event = cast("ev.SetupReturned", step.event)
    if event.result not in (0, REFUSED):
        return f"setup returned {event.result}"
    call = call_before(before, step, event.call)
    if call is None:
        return None
    if event.result == 0:
        return "setup returned 0 without an array to fill" if 0 in (call.nsrc, call.ndst) else None
    for pfn, held in call.ledger.items():
        return f"setup returned -EINVAL and keeps {held.refs} references and {held.locks} locks of pfn {pfn}"
    return KEPT


def _is_open(call: Call) -> bool:
    """True where only finalize can end the call."""
    return call.phase not in (Phase.COLLECTING, Phase.COLLECTED) or call.holds_pages


@step_clause(
    "C07",
    name="three phases in order",
    party=Party.DRIVER,
    source="Documentation/mm/hmm.rst; mm/migrate_device.c kernel-doc (6.1.192, 7.3.4)",
    symptom="locked pages and migration entries left for ever; double unlock",
    on=(ev.PagesCalled, ev.FinalizeCalled, ev.SetupCalled, ev.RangeCalled, ev.CallbackReturned, ev.OperationEnded),
)
def three_phases(before: World, step: ev.Step, after: World) -> Judgement:
    """After a setup that returned 0 and left any entry, the driver MUST call pages() at most once and finalize() exactly once, in
    that order.
    """
    event = step.event
    calls = before.task(step.task).calls
    if isinstance(event, ev.PagesCalled | ev.FinalizeCalled):
        call = calls.get(event.call)
        legal = {Phase.COLLECTED} if isinstance(event, ev.PagesCalled) else {Phase.COLLECTED, Phase.MOVED}
        if call is None:
            return f"{_NAMES[type(event)]} for call {event.call}, which is not in flight"
        if call.phase not in legal:
            return f"{_NAMES[type(event)]} for call {event.call}, which is {call.phase.value}"
        return KEPT if isinstance(event, ev.FinalizeCalled) else None
    if isinstance(event, ev.SetupCalled | ev.RangeCalled):
        call = calls.get(event.call)
        return f"call {event.call} began anew without finalize" if call is not None and _is_open(call) else None
    for number, call in sorted(calls.items()):
        if (call.in_fault or isinstance(event, ev.OperationEnded)) and _is_open(call):
            return f"{step.task} left call {number} without finalize, {call.phase.value}"
    return None


@step_clause(
    "C08",
    name="no finalize without pages",
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_device_finalize (7.3.4); reasoned from the code",
    symptom="a migration entry survives a freed page; BUG on the next touch",
    on=(ev.FinalizeCalled,),
)
def finalize_without_pages(before: World, step: ev.Step, after: World) -> Judgement:
    """finalize() MAY be called without pages() only where no dst entry is VALID."""
    event = cast("ev.FinalizeCalled", step.event)
    call = call_before(before, step, event.call)
    if call is None or call.phase is not Phase.COLLECTED or event.dst is None:
        return None
    for index, entry in enumerate(event.dst):
        if entry & MIGRATE_PFN_VALID:
            return f"finalize without pages, and dst[{index}] is {show(entry)}"
    return KEPT


@step_clause(
    "C09",
    name="cpages 0 means that nothing is held",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_setup, migrate_vma_unmap (6.1.192, 7.3.4); nouveau, amdkfd, drm_pagemap rely on it",
    symptom="a lock or a reference leaks when the driver stops there",
    on=(ev.SetupReturned, ev.RangeReturned),
)
def nothing_collected_nothing_held(before: World, step: ev.Step, after: World) -> Judgement:
    """When cpages is 0 after setup the driver MAY skip pages() and finalize(): the library MUST hold nothing then, and no
    entry is set.
    """
    event = cast("ev.SetupReturned | ev.RangeReturned", step.event)
    call = call_before(before, step, event.call)
    if call is None or event.result != 0:
        return None
    empty = event.cpages == 0 if isinstance(event, ev.SetupReturned) else not any(event.src)
    if not empty:
        return None
    for pfn, held in call.ledger.items():
        return f"nothing was collected, and {held.refs} references and {held.locks} locks of pfn {pfn} are kept"
    return KEPT


def _gave_up(was: int, now: int, dst: int) -> bool:
    """The driver cleared MIGRATE of an entry and gave it no destination: harmless."""
    return now == was & ~MIGRATE_PFN_MIGRATE and dst == 0


def _regained(was: int, now: int) -> bool:
    """MIGRATE is set again where the library had cleared it: that is C48's business."""
    return now == was | MIGRATE_PFN_MIGRATE


@step_clause(
    "C12",
    name="src is the library's",
    party=Party.DRIVER,
    source="include/linux/migrate.h: struct migrate_vma comment (6.1.192, 7.3.4)",
    symptom="pages() moves a page that finalize() then takes for one that failed",
    on=(ev.PagesCalled, ev.FinalizeCalled),
)
def src_is_not_changed(before: World, step: ev.Step, after: World) -> Judgement:
    """The driver MUST NOT change src after setup, except to clear MIGRATE of an entry that it gives no destination, and
    except for the entry of the fault address under the capability `refill`.
    """
    event = cast("ev.PagesCalled | ev.FinalizeCalled", step.event)
    call = call_before(before, step, event.call)
    if call is None or call.src is None or event.src is None:
        return None
    finalizing = isinstance(event, ev.FinalizeCalled)
    for index, was, now in pairs(call.src, event.src):
        if was == now or _gave_up(was, now, entry_at(event.dst, index)) or (finalizing and _regained(was, now)):
            continue
        return f"src[{index}] was {show(was)}, and {_NAMES[type(event)]} was given {show(now)}"
    return KEPT


@step_clause(
    "C13",
    name="dst frozen after pages",
    party=Party.DRIVER,
    source="include/linux/migrate.h: struct migrate_vma comment (6.1.192, 7.3.4)",
    symptom="finalize maps or frees the wrong page",
    on=(ev.FinalizeCalled,),
)
def dst_is_not_changed(before: World, step: ev.Step, after: World) -> Judgement:
    """The driver MUST NOT change dst after pages()."""
    event = cast("ev.FinalizeCalled", step.event)
    call = call_before(before, step, event.call)
    if call is None or call.phase is not Phase.MOVED or call.dst is None or event.dst is None:
        return None
    for index, was, now in pairs(call.dst, event.dst):
        if was != now:
            return f"dst[{index}] was {show(was)} in pages, and is {show(now)} in finalize"
    return KEPT
