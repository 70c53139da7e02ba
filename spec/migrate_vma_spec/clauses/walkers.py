"""Fork, zap and insert

What else walks the page tables during a migration, and how pages() fills a hole that others may fill too.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    NOTHING_KINDS,
    Changed,
    at,
    call_before,
    entry_at,
    is_compound,
    is_hole,
    is_mapping,
    is_migrating,
    is_migration,
    page_pairs,
    pfn_of,
)
from migrate_vma_spec.objects import Call, Phase, VmaRange, World, ptl
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import PteKind, VmFlags


def _is_cow(vma: VmaRange | None) -> bool:
    return vma is not None and not vma.flags & VmFlags.SHARED


@step_clause(
    "C67",
    name="fork downgrade",
    party=Party.CORE,
    source="mm/memory.c:copy_nonpresent_pte (6.1.192, 7.3.4)",
    symptom="a child's writes reach its parent",
    on=(ev.PteChanged, ev.PmdChanged, ev.LockDropped),
)
def fork_downgrades(before: World, step: ev.Step, after: World) -> Judgement:
    """Fork MUST make writable and exclusive migration entries, and writable device-private entries, readable in parent and child,
    in a private VMA.
    """
    event, forking = step.event, before.task(step.task).forking
    if forking is None:
        return None
    parent, child = forking
    if isinstance(event, ev.LockDropped):
        return _judge_parent(before, parent, child) if event.lock == ptl(parent) else None
    event = cast("Changed", event)
    if event.mm != child or event.new.kind not in (PteKind.MIGRATION, PteKind.DEVICE_PRIVATE):
        return None
    if not _is_cow(before.vma(child, event.addr)):
        return None
    if event.new.write or event.new.exclusive:
        return f"fork gave {at(event)} a {event.new.kind.value} entry that is {'writable' if event.new.write else 'exclusive'}"
    return KEPT


def _judge_parent(world: World, parent: int, child: int) -> Judgement:
    leaves = ((key, pmd) for key, pmd in world.extras.pmds.items() if pmd.pfn is not None)
    for (mm, addr), copy in sorted((*world.ptes.items(), *leaves), key=lambda item: item[0]):
        pte = world.pte(parent, addr)
        if mm != child or pte.pfn != copy.pfn or pte.kind not in (PteKind.MIGRATION, PteKind.DEVICE_PRIVATE):
            continue
        if (pte.write or pte.exclusive) and _is_cow(world.vma(parent, addr)):
            return f"fork left mm {parent} addr {addr} writable or exclusive, and mm {child} has a copy"
    return None


Zapped = frozenset[str]


@monitor(
    "C68",
    name="zap during migration",
    party=Party.CORE,
    source="mm/memory.c:zap_pte_range; mm/migrate.c:remove_migration_pte (6.1.192, 7.3.4)",
    symptom="a page is mapped into memory that was unmapped",
    on=(ev.PteChanged, ev.PmdChanged, ev.FinalizeReturned, ev.OperationEnded),
    start=frozenset[str](),
)
def zapped_entries_stay_zapped(memory: Zapped, world: World, step: ev.Step) -> tuple[Zapped, Judgement]:
    """Migration entries can be zapped at any time; finalize MUST then free the destination, and MUST NOT map it."""
    event = step.event
    if isinstance(event, ev.FinalizeReturned):
        return memory - {step.task}, KEPT if step.task in memory else None
    if isinstance(event, ev.OperationEnded):
        return memory - {step.task}, None
    event = cast("Changed", event)
    call = world.task(step.task).in_phase(Phase.FINALIZING)
    if call is not None and event.old.kind in NOTHING_KINDS and is_mapping(event.new):
        return memory, f"finalize mapped pfn {event.new.pfn} at {at(event)}, where nothing was to be restored"
    if is_migration(event.old) and event.new.kind is PteKind.NONE and event.old.pfn is not None:
        holder = world.folio(event.old.pfn).holder
        if holder not in (None, step.task) and world.task(str(holder)).calls:
            return memory | {str(holder)}, None
    return memory, None


def _offered_holes(world: World, call: Call) -> list[tuple[int, int]]:
    """The holes that pages() was given a page for, as (index, entry): one of several pages that gets small ones, page by page."""
    found: list[tuple[int, int]] = []
    whole = 0
    for index, entry, dst in page_pairs(world, call.offered, call.dst):
        given = entry_at(call.dst, index)
        if not is_hole(entry) or pfn_of(dst) is None or (is_compound(entry) and index < whole):
            continue
        if is_compound(given):
            whole = index + max(world.extras.leaf_pages, 1)
        found.append((index, entry))
    return found


@step_clause(
    "C69",
    name="insert looks again",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_insert_page (6.1.192, 7.3.4); Documentation/mm/hmm.rst step 4",
    symptom="two pages for one address",
    on=(ev.PteChanged, ev.PmdChanged, ev.PagesReturned),
)
def insert_looks_again(before: World, step: ev.Step, after: World) -> Judgement:
    """pages() MUST fill a hole only after it found, under the PTL, that nothing or the zero page is still there; where it
    lost the race, MIGRATE MUST be cleared.
    """
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.PteChanged | ev.PmdChanged):
        if task.in_phase(Phase.MOVING) is None or not is_mapping(event.new):
            return None
        if event.old.kind not in NOTHING_KINDS:
            return f"pages put pfn {event.new.pfn} at {at(event)}, which held {event.old.kind.value} pfn {event.old.pfn}"
        return None if task.holds(ptl(event.mm)) else f"pages put pfn {event.new.pfn} at {at(event)} without the PTL"
    event = cast("ev.PagesReturned", event)
    call = task.calls.get(event.call)
    if call is None or event.src is None or not call.vma:
        return None
    judgement: Judgement = None
    for index, _ in _offered_holes(before, call):
        filled, claimed = call.start + index in call.inserted, is_migrating(entry_at(event.src, index))
        if filled != claimed:
            return (
                f"the hole at addr {call.start + index} was {'filled' if filled else 'not filled'}, and MIGRATE says the opposite"
            )
        judgement = judgement if filled else KEPT
    return judgement


@step_clause(
    "C70",
    name="userfaultfd holes stay",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_insert_page (6.1.192, 7.3.4)",
    symptom="userfaultfd's monitor never hears of the page",
    on=(ev.PteChanged, ev.PmdChanged, ev.PagesReturned),
)
def userfaultfd_holes_stay(before: World, step: ev.Step, after: World) -> Judgement:
    """A hole in a VMA that is registered for userfaultfd-missing MUST NOT be filled."""
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.PteChanged | ev.PmdChanged):
        vma = before.vma(event.mm, event.addr) if task.in_phase(Phase.MOVING) and is_mapping(event.new) else None
        if vma is None or not vma.flags & VmFlags.UFFD_MISSING:
            return None
        return f"pages put pfn {event.new.pfn} at {at(event)}, a hole that is userfaultfd's"
    call = call_before(before, step, cast("ev.PagesReturned", event).call)
    if call is None or not call.vma:
        return None
    for index, _ in _offered_holes(before, call):
        vma = before.vma(call.mm, call.start + index)
        if vma is not None and vma.flags & VmFlags.UFFD_MISSING:
            return KEPT
    return None
