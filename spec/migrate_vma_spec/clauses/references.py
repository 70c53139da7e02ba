"""References and lifetime

Who holds which reference to a page, for how long, and which counts let a page move.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    entry_at,
    is_zone_device,
    pfn_of,
    pfns_of,
    show,
)
from migrate_vma_spec.objects import HELD_NOTHING, Call, Held, Phase, Stage, TaskState, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, step_clause
from migrate_vma_spec.vocabulary import Capability, LockMode, Lru, PteKind


@step_clause(
    "C41",
    name="reference before callback",
    party=Party.FAULT,
    source="mm/memory.c:do_swap_page (16ce101db85d, v6.1; CVE-2022-3523)",
    symptom="use after free of the page, or of its pgmap",
    on=(ev.CallbackEntered, ev.FolioPut),
)
def reference_before_callback(before: World, step: ev.Step, after: World) -> Judgement:
    """vmf->page MUST be referenced, under the PTL and while its entry still names it, before migrate_to_ram is called, and
    until it returns; a page that is handed over, until the callback's own finalize.
    """
    task, event = before.task(step.task), step.event
    if isinstance(event, ev.CallbackEntered):
        fault = task.fault
        if fault is None:
            return None
        if fault.page is not None and before.head(fault.page) == before.head(event.pfn) and fault.refs >= 1:
            return KEPT
        return f"migrate_to_ram was called for pfn {event.pfn} without a reference taken under the PTL"
    event = cast("ev.FolioPut", event)
    fault, now = task.fault, after.task(step.task).fault
    if fault is None or now is None or fault.page is None or fault.stage is not Stage.CALLBACK or not fault.live:
        return None
    # While the library splits the folio, C32 says what becomes of the reference.
    if before.head(fault.page) != event.pfn or fault.split or fault.refs < 1 or now.refs >= 1:
        return None
    if Capability.REFILL in before.capabilities and (task.in_phase(Phase.FINALIZING) or not before.migration_entries(event.pfn)):
        return None
    return f"the reference that protects the fault page, pfn {event.pfn}, was put in the callback; {event.refcount} are left"


@step_clause(
    "C42",
    name="pgmap alive while its pages are",
    party=Party.BOTH,
    source="mm/memremap.c:zone_device_page_init (0dc45ca1ce18; 6.1.192, 7.3.4)",
    symptom="a warning, and use after free of the pgmap",
    on=(ev.FolioAllocated, ev.DeviceGone),
)
def pgmap_outlives_pages(before: World, step: ev.Step, after: World) -> Judgement:
    """A device page that is allocated MUST hold a reference to its pgmap, which ends only after it, and drivers MUST NOT allocate
    after memunmap_pages began.
    """
    event = step.event
    if isinstance(event, ev.DeviceGone):
        for pfn, frame in sorted(before.frames.items()):
            if frame.owner == event.device and frame.allocated:
                return f"{event.device} is gone, and pfn {pfn} of it is in use"
        return KEPT
    event = cast("ev.FolioAllocated", event)
    frame = before.frame(event.pfn)
    if not is_zone_device(frame.memory):
        return None
    if frame.owner in before.unbound:
        return f"pfn {event.pfn} was allocated after memunmap_pages of {frame.owner} began"
    return KEPT


@step_clause(
    "C43",
    name="free means refcount 0",
    party=Party.BOTH,
    source="mm/memremap.c (ef233450898f; 6.1.192, 7.3.4)",
    symptom="get_page_unless_zero succeeds on a free page",
    on=(ev.FolioGot, ev.FolioAllocated, ev.FolioFreed),
)
def free_pages_have_no_reference(before: World, step: ev.Step, after: World) -> Judgement:
    """A free device page MUST have refcount 0, and drivers MUST take it out only through zone_device_page_init, which gives it
    one.
    """
    event = step.event
    pfn = cast("ev.FolioGot | ev.FolioAllocated | ev.FolioFreed", event).pfn
    frame = before.frame(pfn)
    if not is_zone_device(frame.memory):
        return None
    if isinstance(event, ev.FolioFreed):
        return f"pfn {pfn} was freed with {frame.refcount} references" if frame.refcount else KEPT
    if isinstance(event, ev.FolioAllocated):
        if frame.allocated:
            return f"pfn {pfn} was allocated while it was in use"
        return KEPT if event.refcount == 1 else f"pfn {pfn} was allocated with {event.refcount} references"
    return f"a reference was taken to pfn {pfn}, which is free" if frame.allocated is False else None


def _balanced(world: World, call: Call) -> Judgement:
    """Whether the library gave back, at the end of finalize, exactly what was its to give back."""
    if call.src is None or call.dst is None:
        return None
    due = {pfn: Held(-1, -1) for pfn in pfns_of(call.dst)}
    # What was handed over by the fault handler is C93's.
    handed_over = {pfn_of(entry_at(call.src, index)) for index in call.refilled}
    fault_folio = None if call.fault_page is None else world.head(call.fault_page)
    for pfn in sorted({*due, *call.ledger, *pfns_of(call.src)} - handed_over):
        wanted, held = due.get(pfn, HELD_NOTHING), call.ledger.get(pfn, HELD_NOTHING)
        # Whose the fault page's lock is, C31 says.
        locks = wanted.locks if pfn == fault_folio and Capability.FAULT_LOCK in world.capabilities else held.locks
        if (held.refs, locks) != (wanted.refs, wanted.locks):
            role = "destination" if pfn in pfns_of(call.dst) else "source"
            return (
                f"after finalize the library's balance of {role} pfn {pfn} is {held.refs:+} references and {held.locks:+} locks; "
                f"{wanted.refs:+} and {wanted.locks:+} are due"
            )
    return KEPT if pfns_of(call.src) or due else None


def _in_dispute(world: World, task: TaskState, pfn: int) -> bool:
    """A page whose lock or reference other clauses (C28, C31, C36, C45) follow: a destination in finalize, the fault page
    after the callback.
    """
    call = task.in_phase(Phase.FINALIZING)
    fault = task.fault
    after_callback = (
        fault is not None and fault.stage is Stage.RETURNED and fault.page is not None and world.head(fault.page) == pfn
    )
    return after_callback or (call is not None and pfn in pfns_of(call.dst))


def _leaks(world: World) -> Judgement:
    """At the end of all tasks: a page that is in use and that nothing will ever free."""
    if not world.idle:
        return None
    for pfn, frame in sorted(world.frames.items()):
        # What is still locked, or stood for by an entry, was left behind by a migration: other clauses say so.
        if not frame.allocated or frame.refcount is None or frame.locked or world.is_named(pfn) or world.cache_refs(pfn):
            continue
        if frame.refcount == 0:
            return f"pfn {pfn} has no reference left and was never freed"
        if frame.mapcount == 0 and frame.lru is not Lru.BATCHED:
            return f"pfn {pfn} is mapped nowhere and has {frame.refcount} references for ever"
    return None


@step_clause(
    "C44",
    name="balance",
    party=Party.BOTH,
    source="mm/migrate_device.c:__migrate_device_finalize (6.1.192, 7.3.4)",
    symptom="a page that is never freed, or is freed too early",
    on=(ev.FinalizeReturned, ev.FolioUnlocked, ev.FaultEnded, ev.OperationEnded, ev.Oops),
    end=_leaks,
)
def references_and_locks_balance(before: World, step: ev.Step, after: World) -> Judgement:
    """For each page, references and locks after finalize MUST be those before setup, less the mappings that moved to dst:
    finalize gives back one reference and one lock of each VALID src, and consumes the driver's of each VALID dst, whether or
    not it migrated.
    """
    task, event = before.task(step.task), step.event
    if isinstance(event, ev.FinalizeReturned):
        call = task.calls.get(event.call)
        return None if call is None else _balanced(before, call)
    if isinstance(event, ev.FolioUnlocked):
        holder = before.frame(event.pfn).holder
        if holder in (None, step.task) or _in_dispute(before, task, event.pfn):
            return None
        return f"{step.task} unlocked pfn {event.pfn}, whose lock {holder} holds"
    if isinstance(event, ev.Oops):
        named = event.what.startswith(("folio_put", "folio_unlock")) and event.pfn is not None
        return f"{event.what}: pfn {event.pfn}" if named and not _in_dispute(before, task, event.pfn or 0) else None
    if isinstance(event, ev.OperationEnded) and step.task in before.extras.spare:
        return f"{step.task} allocated a page table that is neither in use nor freed"
    return _left_behind(before, task, isinstance(event, ev.FaultEnded))


EXCLUSIVE = frozenset({PteKind.EXCLUSIVE})


def _left_behind(world: World, task: TaskState, fault_ends: bool) -> Judgement:
    fault = task.fault if fault_ends else None
    if fault is not None and fault.refs and Capability.REFILL not in world.capabilities:
        return f"the fault ended with {fault.refs} references to pfn {fault.page} not given back"
    if fault is not None and (fault.device or task.calls or Capability.REFILL in world.capabilities):
        return None
    # A device page whose lock was handed over and never given back is C94's.
    handed_over = Capability.REFILL in world.capabilities
    pages = [pfn for pfn in sorted(task.pages) if not (handed_over and is_zone_device(world.frame(pfn).memory))]
    # The lock of a page that a driver has to itself is C91's.
    pages = [pfn for pfn in pages if not world.folio_entries(pfn, EXCLUSIVE)]
    return f"page locks are held to the end: of {pages}" if pages else None


@step_clause(
    "C45",
    name="a published dst is finalize's to free",
    party=Party.DRIVER,
    source="mm/migrate_device.c:__migrate_device_finalize; UVM 595.45.04, drm_pagemap: clean-up of dst",
    symptom="double free",
    on=(ev.PagesCalled, ev.FolioPut, ev.FolioUnlocked, ev.FinalizeCalled),
)
def published_dst_is_not_freed(before: World, step: ev.Step, after: World) -> Judgement:
    """After it set a dst entry the driver MUST NOT unlock or put the page itself, unless it zeroes the entry first."""
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.FolioPut | ev.FolioUnlocked):
        return None if task.active_call is not None else _judge_release(task, after.task(step.task), event)
    event = cast("ev.PagesCalled | ev.FinalizeCalled", event)
    call = task.calls.get(event.call)
    finalizing = isinstance(event, ev.FinalizeCalled) and call is not None and call.phase is Phase.MOVED
    for index, entry in enumerate(event.dst or ()):
        frame = before.folio(entry_pfn) if (entry_pfn := pfn_of(entry)) is not None else None
        if frame is None:
            continue
        if frame.allocated is False:
            return f"dst[{index}] is {show(entry)}, and the page was freed"
        if finalizing and frame.locked is False:
            return f"dst[{index}] is {show(entry)} in finalize, and the page was unlocked"
    return KEPT if finalizing and pfns_of(event.dst) else None


def _judge_release(task: TaskState, now: TaskState, event: ev.FolioPut | ev.FolioUnlocked) -> Judgement:
    for number, call in task.calls.items():
        if call.phase is not Phase.MOVED or event.pfn not in pfns_of(call.dst):
            continue
        if isinstance(event, ev.FolioUnlocked):
            return f"pfn {event.pfn}, which dst names, was unlocked before finalize"
        own = now.calls.get(number, call).driver_ledger.get(event.pfn, HELD_NOTHING)
        if own.refs < 0:
            return f"pfn {event.pfn}, which dst names, was put before finalize"
    return None


@step_clause(
    "C50",
    name="no page freed while the fault uses it",
    party=Party.BOTH,
    source="mm/memory.c:do_swap_page (16ce101db85d, v6.1)",
    symptom="use after free in the driver",
    on=(ev.CallbackEntered, ev.FolioPut, ev.FolioFreed, ev.CallbackReturned),
)
def fault_page_is_not_freed(before: World, step: ev.Step, after: World) -> Judgement:
    """vmf->page MUST NOT be free when migrate_to_ram is called, and MUST NOT be freed while it runs, except by the callback's own
    finalize.
    """
    event = step.event
    if isinstance(event, ev.CallbackEntered):
        frame = before.folio(event.pfn)
        dead = frame.allocated is False or frame.refcount == 0
        return f"migrate_to_ram was called for pfn {event.pfn}, which is free" if dead else None
    if isinstance(event, ev.CallbackReturned):
        fault = before.task(step.task).callback
        return KEPT if fault is not None and fault.live else None
    if isinstance(event, ev.FolioPut) and event.refcount != 0:
        return None
    pfn = cast("ev.FolioPut | ev.FolioFreed", event).pfn
    for name, task in sorted(before.tasks.items()):
        fault = task.callback
        if fault is None or not fault.live or fault.page is None or before.head(fault.page) != pfn:
            continue
        own = name == step.task and (task.in_phase(Phase.FINALIZING) or Capability.REFILL in before.capabilities)
        if not own:
            return f"{step.task} freed pfn {pfn} while {name} ran migrate_to_ram for it"
    return None


@step_clause(
    "C51",
    name="the free callback does not sleep",
    party=Party.DRIVER,
    source="mm/memory.c:zap_nonpresent_ptes (7.3.4); reasoned from the code",
    symptom="sleeping in atomic context",
    on=(ev.LockTaken, ev.WaitBegan, ev.PointPassed, ev.FolioFreed),
)
def free_callback_does_not_sleep(before: World, step: ev.Step, after: World) -> Judgement:
    """folio_free runs in any context that puts the last reference, zap under the PTL among them: it MUST NOT sleep or take
    mmap_lock.
    """
    pfn, event = before.task(step.task).freeing, step.event
    if pfn is None:
        return None
    if isinstance(event, ev.FolioFreed):
        return KEPT if event.pfn == pfn else None
    if isinstance(event, ev.LockTaken):
        return None if event.mode is LockMode.SPIN else f"the free callback of pfn {pfn} took {event.lock}, which can sleep"
    what = event.on if isinstance(event, ev.WaitBegan) else cast("ev.PointPassed", event).point.value
    return f"the free callback of pfn {pfn} sleeps: {what}"
