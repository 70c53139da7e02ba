"""Notifiers, fault results, progress

How devices hear of a change before it happens, what a fault returns, and that somebody always gets on.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    NOTHING_KINDS,
    TABLE_EVENTS,
    Changed,
    at,
    call_before,
    changes_of,
    in_all,
    is_mapping,
    is_migrating,
    names,
    pages_of,
    pairs,
    pfn_of,
    pfns_of,
)
from migrate_vma_spec.objects import NAMING_KINDS, Call, Invalidation, Phase, Stage, TaskState, World
from migrate_vma_spec.registry import KEPT, Judgement, Level, Party, Progress, monitor, progress_clause, step_clause
from migrate_vma_spec.vocabulary import Errno, Memory, NotifyReason, Pte, PteKind, VmFault, VmFlags


def _brackets(range_: Invalidation, name: str, event: Changed, call: Call) -> bool:
    """True where this open range tells devices of the change that the task makes for the call."""
    if range_.task != name or not range_.start <= event.addr <= event.addr + pages_of(event) <= range_.end:
        return False
    if range_.reason is NotifyReason.MIGRATE:
        return call.vma and range_.owner == call.owner
    return call.phase is Phase.COLLECTING and range_.reason is NotifyReason.CLEAR and range_.owner is None


@step_clause(
    "C76",
    name="notifier brackets",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect, __migrate_device_pages; mm/rmap.c:try_to_migrate_one (6.1.192, 7.3.4)",
    symptom="a device reads through a stale mapping",
    on=TABLE_EVENTS,
)
def changes_are_bracketed(before: World, step: ev.Step, after: World) -> Judgement:
    """Every mapping that setup removes and every hole that pages() fills MUST lie in an open notifier range: MIGRATE with the
    call's owner in collect and insert, CLEAR without an owner in try_to_migrate.
    """
    active = before.task(step.task).active_call
    if active is None:
        return None
    return in_all(_is_bracketed(before, step.task, active[1], change) for change in changes_of(step.event))


def _is_bracketed(before: World, name: str, call: Call, event: Changed) -> Judgement:
    # A leaf that becomes a page table maps what it mapped.
    removed = is_mapping(event.old) and not is_mapping(event.new) and event.new.kind is not PteKind.TABLE
    filled = event.old.kind in NOTHING_KINDS and is_mapping(event.new)
    if not (removed if call.phase is Phase.COLLECTING else filled and call.phase is Phase.MOVING):
        return None
    ranges = before.invalidations.get(event.mm, ())
    if any(_brackets(range_, name, event, call) for range_ in ranges):
        return KEPT
    return f"{at(event)} was changed {call.phase.value}, outside of the notifier range that is due"


@step_clause(
    "C77",
    name="owner filter",
    party=Party.DRIVER,
    source="Documentation/mm/hmm.rst; lib/test_hmm.c (6.1.192, 7.3.4)",
    symptom="the device writes after the copy",
    on=(ev.PageCopied,),
)
def own_mappings_are_invalidated(before: World, step: ev.Step, after: World) -> Judgement:
    """A driver MAY ignore MIGRATE notifications with its own owner, and MUST then itself invalidate the device mappings of
    the pages that migrate, before it copies them.
    """
    event = cast("ev.PageCopied", step.event)
    calls = before.task(step.task).calls.values()
    migrating = [pfn for call in calls if call.phase in (Phase.COLLECTED, Phase.MOVED) for pfn in pfns_of(call.src)]
    if event.src not in migrating and before.head(event.src) not in migrating:
        return None
    mapped = sorted(before.mirrored.get(event.src, ()))
    if mapped:
        device, mm, addr = mapped[0]
        return f"pfn {event.src} was copied while {device} maps it at mm {mm} addr {addr}"
    return KEPT if before.subscribed else None


@step_clause(
    "C78",
    name="device map after pages",
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_vma_pages kernel-doc (6.1.192, 7.3.4)",
    symptom="the device uses a page before it is the address's page",
    on=(ev.DeviceMapped,),
)
def device_maps_after_pages(before: World, step: ev.Step, after: World) -> Judgement:
    """Device page tables for migrated pages MUST be set between pages() and finalize(), while both pages are locked."""
    event = cast("ev.DeviceMapped", step.event)
    if event.pfn is None:
        return None
    task = before.task(step.task)
    for call in task.calls.values():
        if call.phase is Phase.MOVED and {event.pfn, before.head(event.pfn)} & {*pfns_of(call.dst)}:
            return KEPT
    head = before.head(event.pfn)
    early = any(call.phase is Phase.COLLECTED and head not in pfns_of(call.src) for call in task.calls.values())
    # A page that the task locked, and that no page table knows, can only be the destination that it has just allocated.
    if early and head in task.pages and not before.is_named(head):
        return f"{event.device} maps pfn {event.pfn} at mm {event.mm} addr {event.addr} before pages()"
    return None


progress_clause(
    "C79",
    name="a CPU fault always migrates",
    sentence=(
        "migrate_to_ram MUST migrate the page or return an error (SIGBUS, OOM); it MAY return 0 without progress only when "
        "somebody else is making progress."
    ),
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_vma_setup kernel-doc (6.1.192, 7.3.4)",
    symptom="endless fault loop: a cycle that only an allocation or a pin that keeps failing sustains",
    progress=Progress.ENDLESS_RETRY,
    chapter=__name__,
)

ERRORS = VmFault.OOM | VmFault.SIGBUS | VmFault.HWPOISON | VmFault.SIGSEGV


@step_clause(
    "C80",
    name="result propagated",
    party=Party.FAULT,
    source="mm/memory.c:do_swap_page (4a955bed882e, v6.1)",
    symptom="the task retries silently instead of getting its SIGBUS",
    on=(ev.FaultEnded,),
)
def result_is_propagated(before: World, step: ev.Step, after: World) -> Judgement:
    """The fault MUST return what the callback returned."""
    event = cast("ev.FaultEnded", step.event)
    fault = before.task(step.task).fault
    if fault is None or fault.result is None:
        return None
    lost = fault.result & ~event.result
    if lost:
        return f"the callback returned {fault.result!r}, and the fault {event.result!r}"
    gained = event.result & ERRORS & ~fault.result
    if gained:
        return f"the callback returned {fault.result!r}, and the fault failed with {event.result!r}"
    return KEPT if fault.result else None


@step_clause(
    "C81",
    name="partial migration is allowed",
    party=Party.BOTH,
    source="mm/migrate_device.c:migrate_vma_setup kernel-doc (6.1.192, 7.3.4)",
    symptom="a page without a destination is lost",
    on=(ev.PagesReturned,),
)
def skipped_entries_are_cleared(before: World, step: ev.Step, after: World) -> Judgement:
    """A driver MAY leave any page where it is, save the one of a CPU fault, by giving it no destination: pages() MUST then
    clear its MIGRATE.
    """
    event = cast("ev.PagesReturned", step.event)
    call = call_before(before, step, event.call)
    if call is None or event.src is None or call.dst is None:
        return None
    judgement: Judgement = None
    for index, entry, left in pairs(call.offered, event.src):
        given = call.dst[index] if index < len(call.dst) else 0
        if not is_migrating(entry) or pfn_of(given) is not None:
            continue
        if is_migrating(left):
            return f"src[{index}] has MIGRATE after pages(), and dst[{index}] names no page"
        judgement = KEPT
    return judgement


progress_clause(
    "C82",
    name="waiters wake",
    sentence=(
        "A task that waits on a migration entry, or for the lock of a device-private page, MUST be woken when the page is "
        "unlocked, and a wake-up MUST NOT be lost between queueing, under the PTL, and sleeping."
    ),
    party=Party.CORE,
    source="mm/filemap.c:migration_entry_wait_on_locked (6.1.192), softleaf_entry_wait_on_locked (7.3.4)",
    symptom="hung task: the execution comes to a dead end with an operation open",
    progress=Progress.DEADLOCK,
    chapter=__name__,
)


def _waits_for(world: World, task: TaskState, pfn: int) -> bool:
    """True where the task handles a fault on an entry that names this page for another migration."""
    fault = task.fault
    if fault is None or fault.stage is not Stage.HANDLING:
        return False
    pte = world.pte(fault.mm, fault.addr)
    return pte.kind is PteKind.MIGRATION and pte.pfn is not None and world.head(pte.pfn) == pfn


@step_clause(
    "C83",
    name="waiters hold no reference",
    party=Party.CORE,
    source="mm/migrate.c:migration_entry_wait (ffa65753c431, v5.17)",
    symptom="the migration that they wait for fails: starvation",
    on=(ev.FolioGot, ev.WaitBegan),
)
def waiters_hold_no_reference(before: World, step: ev.Step, after: World) -> Judgement:
    """A fault that waits for a page's migration or lock MUST NOT raise its refcount."""
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.FolioGot):
        if event.pfn in task.pages or not _waits_for(before, task, event.pfn):
            return None
        return f"{step.task} took a reference to pfn {event.pfn}, whose migration entry it faulted on"
    pfn = cast("ev.WaitBegan", event).pfn
    fault = task.fault
    if pfn is None or fault is None or fault.stage is not Stage.HANDLING:
        return None
    if fault.page is not None and before.head(fault.page) == before.head(pfn) and fault.refs > 0:
        return f"{step.task} waits for pfn {pfn} with {fault.refs} references to it"
    return KEPT


def _migrators(cycle: tuple[ev.Step, ...]) -> frozenset[str]:
    """The tasks that, in this cycle, begin migrations elsewhere than in a fault's callback."""
    inside: set[str] = set()
    found: set[str] = set()
    # Twice around, because a cycle can start in the middle of a callback.
    for lap in (0, 1):
        for step in cycle:
            if isinstance(step.event, ev.CallbackEntered):
                inside.add(step.task)
            elif isinstance(step.event, ev.CallbackReturned):
                inside.discard(step.task)
            elif lap and isinstance(step.event, ev.SetupCalled | ev.RangeCalled) and step.task not in inside:
                found.add(step.task)
    return frozenset(found)


def _only_faulters(cycle: tuple[ev.Step, ...]) -> bool:
    return not _migrators(cycle)


def _opposing_migrators(cycle: tuple[ev.Step, ...]) -> bool:
    return bool(_migrators(cycle))


progress_clause(
    "C84",
    name="no livelock of N faulters",
    sentence="With N CPUs faulting on one device page, one of them MUST migrate it in a bounded number of retries.",
    party=Party.FAULT,
    source="mm/memory.c:do_swap_page (1afaeb8293c9, v6.15)",
    symptom="a fair cycle in which faults are open throughout and none completes (some 32 thousand retries were measured)",
    progress=Progress.LIVELOCK,
    chapter=__name__,
    cycle=_only_faulters,
)

progress_clause(
    "C85",
    name="the loser does not spin",
    sentence="The loser of the page lock SHOULD sleep, and not spin: the lock's holder may need its CPU.",
    party=Party.FAULT,
    level=Level.SHOULD,
    source="mm/memory.c:do_swap_page (a69d1ab971a6, v7.0 and stable)",
    symptom="soft lockup: an operation or a work item stays open for ever because a task on its CPU never lets go of it",
    progress=Progress.STARVATION,
    chapter=__name__,
)

progress_clause(
    "C86",
    name="two migrators",
    sentence=(
        "Opposing migrations of one range (by several devices, or by a CPU fault and a device) SHOULD have an argument for "
        "progress; the core gives none, and drivers serialise."
    ),
    party=Party.DRIVER,
    level=Level.SHOULD,
    source="drivers/gpu/drm/xe/xe_svm.c (0620837490e0); UVM 595.45.04",
    symptom="a fair cycle in which migrations undo or refuse each other, and none completes",
    progress=Progress.LIVELOCK,
    chapter=__name__,
    cycle=_opposing_migrators,
)


@step_clause(
    "C87",
    name="no drain with folio locks",
    party=Party.CORE,
    level=Level.SHOULD,
    source="mm/migrate_device.c:migrate_device_unmap, lru_add_drain_all (7.3.4; open)",
    symptom="the drain waits for a CPU on which a faulter spins for the lock that the drainer holds",
    on=(ev.DrainBegan,),
)
def no_drain_with_folio_locks(before: World, step: ev.Step, after: World) -> Judgement:
    """lru_add_drain_all SHOULD NOT run while its caller holds the lock of a folio on which CPUs can still fault through a
    device-private entry.
    """
    task = before.task(step.task)
    for pfn in sorted(task.pages):
        entries = before.folio_entries(pfn, frozenset({PteKind.DEVICE_PRIVATE}))
        if entries:
            return f"{step.task} drains every CPU with the lock of pfn {pfn} held, which {names(entries)} can fault on"
    return KEPT


@step_clause(
    "C88",
    name="eviction before teardown",
    party=Party.DRIVER,
    source="drivers/gpu/drm/nouveau/nouveau_dmem.c:nouveau_dmem_evict_chunk (6.1.192, 7.3.4)",
    symptom="memunmap_pages waits for ever, or use after free",
    on=(ev.DeviceUnbound,),
)
def evicted_before_teardown(before: World, step: ev.Step, after: World) -> Judgement:
    """Before memunmap_pages the driver MUST get every page of the device back, as often as it takes."""
    event = cast("ev.DeviceUnbound", step.event)
    for pfn, frame in sorted(before.frames.items()):
        if frame.owner == event.device and before.is_named(pfn):
            left = before.folio_entries(pfn, NAMING_KINDS)
            return f"{event.device} goes while pfn {pfn} is still in page tables: {names(left)}"
    return KEPT


Tried = frozenset[str]


@monitor(
    "C90",
    name="hmm_range_fault's owner rule",
    party=Party.CORE,
    source="mm/hmm.c:hmm_vma_handle_pte (8a295dbbaf72)",
    symptom="-EFAULT for memory that another device has, or a device is told of pages that it cannot reach",
    on=(ev.RangeFaultBegan, ev.FaultBegan, ev.RangeFaultEnded),
    start=frozenset[str](),
)
def range_fault_owner_rule(memory: Tried, world: World, step: ev.Step) -> tuple[Tried, Judgement]:
    """hmm_range_fault MUST report the device's own device-private pages as they are, and MUST fault in those of others; it
    MUST NOT fail on them.
    """
    event, task = step.event, world.task(step.task)
    if isinstance(event, ev.RangeFaultBegan):
        return memory - {step.task}, None
    if isinstance(event, ev.FaultBegan):
        return (memory | {step.task} if task.range_fault is not None else memory), None
    event = cast("ev.RangeFaultEnded", event)
    judgement = _judge_report(world, event)
    if event.result == -Errno.EFAULT and step.task not in memory:
        judgement = _judge_refusal(world, task)
    return memory - {step.task}, judgement


def _judge_report(world: World, event: ev.RangeFaultEnded) -> Judgement:
    judgement: Judgement = None
    for pfn in event.pfns if event.result == 0 else ():
        frame = world.frame(pfn) if pfn is not None else None
        if frame is None or frame.memory is not Memory.DEVICE_PRIVATE:
            continue  # CPUs reach coherent memory, and so may any device that is told of it
        if frame.owner != event.device:
            return f"{event.device} was told of pfn {pfn}, which {frame.owner} owns"
        judgement = KEPT
    return judgement


def _judge_refusal(world: World, task: TaskState) -> Judgement:
    """-EFAULT without one fault: only right where the range is not all mapped with the permission that was asked for."""
    running = task.range_fault
    if running is None:
        return None
    wanted = VmFlags.WRITE if running.write else VmFlags.READ
    foreign: list[tuple[int, Pte]] = []
    for addr in range(running.start, running.end):
        vma, pte = world.vma(running.mm, addr), world.pte(running.mm, addr)
        if vma is None or not vma.flags & wanted:
            return None
        if pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None and world.frame(pte.pfn).owner != running.device:
            foreign.append((addr, pte))
    if not foreign:
        return None
    return f"hmm_range_fault failed on addr {foreign[0][0]}, pfn {foreign[0][1].pfn}, another device's page, without a fault"
