"""Entries and flags

What the flags of a src entry promise: VALID, MIGRATE and WRITE, as setup and device_range return them.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    TABLE_EVENTS,
    Changed,
    call_before,
    changes_of,
    is_hole,
    is_migrating,
    names,
    page_pairs,
    pfn_of,
    pfns_of,
    show,
)
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import HELD_NOTHING, PAGE_KINDS, Call, Phase, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Lru,
    Memory,
    PteKind,
    VmFlags,
)

Returned = ev.SetupReturned | ev.RangeReturned


def _returned(before: World, step: ev.Step) -> tuple[Call, tuple[int, ...]] | None:
    """The call and the array of a setup or device_range that returned 0, where both are known."""
    event = cast("Returned", step.event)
    call = call_before(before, step, event.call)
    return (call, event.src) if call is not None and event.result == 0 and event.src is not None else None


@step_clause(
    "C19",
    name="VALID names a page that is held",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd, migrate_device_unmap (6.1.192, 7.3.4)",
    symptom="NULL dereference, or the wrong page",
    on=(ev.SetupReturned, ev.RangeReturned),
)
def valid_names_a_held_page(before: World, step: ev.Step, after: World) -> Judgement:
    """VALID MUST be set exactly where the entry names a page whose lock and one reference the library holds for this
    migration.
    """
    returned = _returned(before, step)
    if returned is None:
        return None
    call, src = returned
    for index, entry in enumerate(src):
        pfn = pfn_of(entry)
        if pfn is None:
            if entry >> MIGRATE_PFN_SHIFT:
                return f"src[{index}] is {show(entry)}: a page without VALID"
            continue
        frame, held = after.folio(pfn), call.ledger.get(after.head(pfn), HELD_NOTHING)
        if frame.allocated is False:
            return f"src[{index}] is {show(entry)}, and pfn {pfn} is free"
        if frame.locked is False or frame.holder not in (None, step.task):
            return f"src[{index}] is {show(entry)}, and its page lock is held by {frame.holder or 'nobody'}, not by {step.task}"
        if held.refs != 1:
            return f"src[{index}] is {show(entry)}, and the library took {held.refs} references for it"
    return KEPT if pfns_of(src) else None


@step_clause(
    "C20",
    name="MIGRATE after setup",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_setup kernel-doc and closing comment (6.1.192, 7.3.4)",
    symptom="the copy races with CPU writes",
    on=(ev.SetupReturned, ev.RangeReturned),
)
def migrating_pages_are_unmapped(before: World, step: ev.Step, after: World) -> Judgement:
    """A page whose entry has MIGRATE after setup MUST be mapped nowhere, every mapping replaced by a migration entry, and MUST be
    isolated from the LRU if it is system memory.
    """
    returned = _returned(before, step)
    if returned is None:
        return None
    judgement: Judgement = None
    for index, entry in enumerate(returned[1]):
        pfn = pfn_of(entry)
        if pfn is None or not is_migrating(entry):
            continue
        frame, mapped = after.folio(pfn), after.folio_entries(pfn, PAGE_KINDS)
        if mapped or frame.mapcount:
            return f"src[{index}] is {show(entry)}, and pfn {pfn} is mapped {frame.mapcount} times: {names(mapped)}"
        if frame.memory is Memory.SYSTEM and frame.lru not in (None, Lru.ISOLATED):
            return f"src[{index}] is {show(entry)}, and pfn {pfn} is not isolated from the LRU but {frame.lru.value}"
        judgement = KEPT
    return judgement


Touched = frozenset[tuple[str, int, bool]]
"""(task, page, whether its setup isolated the page from the LRU)."""
NOTHING_TOUCHED: Touched = frozenset()


def _of_task(memory: Touched, task: str) -> list[int]:
    return sorted({pfn for name, pfn, _ in memory if name == task})


def _without_task(memory: Touched, task: str) -> Touched:
    return frozenset(line for line in memory if line[0] != task)


@monitor(
    "C21",
    name="losers are restored and zero",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_device_unmap restore loop (6.1.192, 7.3.4)",
    symptom="locks and references leak; the device copies a live page",
    on=(
        ev.SetupCalled,
        ev.RangeCalled,
        ev.FolioGot,
        ev.FolioLocked,
        ev.LruIsolated,
        ev.LruPutBack,
        *TABLE_EVENTS,
        ev.SetupReturned,
        ev.RangeReturned,
    ),
    start=NOTHING_TOUCHED,
)
def losers_are_restored(memory: Touched, world: World, step: ev.Step) -> tuple[Touched, Judgement]:
    """A page that setup could not take MUST be restored in full (page tables, LRU, lock, reference), and its src entry MUST be
    0.
    """
    event = step.event
    if isinstance(event, ev.SetupCalled | ev.RangeCalled):
        return _without_task(memory, step.task), None
    if isinstance(event, ev.SetupReturned | ev.RangeReturned):
        judgement = _judge_losers(memory, world, step)
        return _without_task(memory, step.task), judgement
    if world.task(step.task).in_phase(Phase.COLLECTING) is None:
        return memory, None
    if isinstance(event, ev.LruIsolated):
        return (memory | {(step.task, event.pfn, True)} if event.done else memory), None
    if isinstance(event, ev.LruPutBack):
        return memory - {(step.task, event.pfn, True)}, None
    if isinstance(event, TABLE_EVENTS):
        pfns = [change.new.pfn for change in changes_of(event) if change.new.kind is PteKind.MIGRATION]
    else:
        pfns = [cast("ev.FolioGot | ev.FolioLocked", event).pfn]
    return memory | {(step.task, pfn, False) for pfn in pfns if pfn is not None}, None


def _judge_losers(memory: Touched, world: World, step: ev.Step) -> Judgement:
    returned = _returned(world, step)
    if returned is None:
        return None
    call, src = returned
    for index, entry in enumerate(src):
        if entry and not is_migrating(entry):
            return f"src[{index}] is {show(entry)}: an entry that does not migrate is not 0"
    taken = {world.head(pfn) for pfn in pfns_of(src)}
    losers = [pfn for pfn in _of_task(memory, step.task) if world.head(pfn) not in taken]
    for pfn in losers:
        frame, held = world.folio(pfn), call.ledger.get(pfn, HELD_NOTHING)
        if held != HELD_NOTHING:
            return f"pfn {pfn} was not taken, and {held.refs} references and {held.locks} locks of it are kept"
        # Another migration may have begun on the page since it was restored.
        left = world.migration_entries(pfn) if frame.holder in (None, step.task) else []
        if left:
            return f"pfn {pfn} was not taken, and migration entries are left at {names(left)}"
        isolated = (step.task, pfn, True) in memory and frame.lru is Lru.ISOLATED
        if isolated and frame.holder in (None, step.task):
            return f"pfn {pfn} was not taken, and it is still isolated from the LRU"
    return KEPT if losers else None


Writable = FrozenMap[tuple[str, int], bool]
NO_WRITABLE: Writable = FrozenMap()


@monitor(
    "C22",
    name="WRITE",
    party=Party.BOTH,
    source="Documentation/mm/hmm.rst step 5; mm/migrate_device.c; mm/rmap.c:try_to_migrate_one (6.1.192, 7.3.4)",
    symptom="the device writes a copy-on-write page; a write permission is lost and a second fault follows",
    on=(ev.SetupCalled, *TABLE_EVENTS, ev.SetupReturned, ev.DeviceMapped),
    start=NO_WRITABLE,
)
def write_is_the_mappings(memory: Writable, world: World, step: ev.Step) -> tuple[Writable, Judgement]:
    """WRITE in src MUST say whether the collected mapping allowed writes, and a migration entry MUST be writable where the
    mapping was (that of a device-exclusive page MAY be less); the driver MUST NOT map the destination writable on the device
    unless WRITE is set (for a hole: unless the VMA is writable).
    """
    event = step.event
    if isinstance(event, ev.SetupCalled):
        return memory.drop_all(key for key in memory if key[0] == step.task), None
    if isinstance(event, ev.DeviceMapped):
        return memory, _judge_device_write(world, step.task, event)
    if isinstance(event, ev.SetupReturned):
        judgement = _judge_write_flags(memory, world, step)
        return memory.drop_all(key for key in memory if key[0] == step.task), judgement
    judgement = None
    for change in changes_of(event):
        memory, wrong = _watch_unmapping(memory, world, step.task, change)
        judgement = judgement or wrong
    return memory, judgement


def _watch_unmapping(memory: Writable, world: World, name: str, event: Changed) -> tuple[Writable, Judgement]:
    task = world.task(name)
    call = task.in_phase(Phase.COLLECTING)
    if call is None or event.new.kind in PAGE_KINDS:
        return memory, None
    old = event.old if event.old.kind in PAGE_KINDS else task.cleared.get((event.mm, event.addr))
    if old is None:
        return memory, None
    if call.vma and event.mm == call.mm and call.start <= event.addr < call.end:
        memory = memory.set((name, event.addr), old.write)
    lost = old.write and not event.new.write and old.kind is not PteKind.EXCLUSIVE
    if lost and event.new.kind is PteKind.MIGRATION:
        return memory, f"the writable mapping of mm {event.mm} addr {event.addr} became a migration entry that is not writable"
    return memory, None


def _judge_write_flags(memory: Writable, world: World, step: ev.Step) -> Judgement:
    returned = _returned(world, step)
    if returned is None:
        return None
    call, src = returned
    judgement: Judgement = None
    for index, entry in enumerate(src):
        was = memory.get((step.task, call.start + index))
        if was is None or not entry & MIGRATE_PFN_VALID:
            continue
        if was != bool(entry & MIGRATE_PFN_WRITE):
            return f"src[{index}] is {show(entry)}, and the mapping was {'writable' if was else 'read-only'}"
        judgement = KEPT
    return judgement


def _judge_device_write(world: World, name: str, event: ev.DeviceMapped) -> Judgement:
    for call in world.task(name).calls.values():
        if not call.vma or call.phase is not Phase.MOVED or call.mm != event.mm:
            continue
        for index, entry, dst in page_pairs(world, call.src, call.dst):
            if not event.write or event.pfn is None or pfn_of(dst) != event.pfn or call.start + index != event.addr:
                continue
            vma = world.vma(call.mm, event.addr)
            allowed = vma is None or vma.flags & VmFlags.WRITE if is_hole(entry) else entry & MIGRATE_PFN_WRITE
            return KEPT if allowed else f"{event.device} maps addr {event.addr} writable, and src[{index}] is {show(entry)}"
    return None


@step_clause(
    "C23",
    name="no WRITE without a mapping",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_device_pfn_lock (6.1.192, 7.3.4)",
    symptom="a driver takes one mapping's permission for all of them",
    on=(ev.RangeReturned,),
)
def range_entries_carry_no_write(before: World, step: ev.Step, after: World) -> Judgement:
    """device_range and device_pfns know of no mapping: their entries MUST NOT carry WRITE, and its absence MUST NOT be taken for
    read-only.
    """
    returned = _returned(before, step)
    if returned is None:
        return None
    for index, entry in enumerate(returned[1]):
        if entry & MIGRATE_PFN_WRITE:
            return f"src[{index}] of device_range is {show(entry)}"
    return KEPT if any(returned[1]) else None
