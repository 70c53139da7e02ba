"""Page tables

What page-table entries, in whichever address space, may become at which moment of a migration, and which of their bits
survive it. A *mapping* is an entry through which a page is reached, present or device-private; a *migration entry* stands for
one meanwhile.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    TABLE_EVENTS,
    Changed,
    addresses_of,
    at,
    call_before,
    changes_of,
    in_all,
    is_mapping,
    is_migration,
    names,
    page_pairs,
    pfn_of,
    successors,
)
from migrate_vma_spec.objects import PAGE_KINDS, Call, Phase, TaskState, World, ptl
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import PteKind


def _library_call(task: TaskState) -> Call | None:
    active = task.active_call
    return active[1] if active is not None else None


def _successor(world: World, call: Call, pfn: int) -> int:
    """The page that must take the place of `pfn` when the call's migration entries go: its destination if it migrated."""
    return successors(world, call).get(pfn, pfn) if call.phase is Phase.FINALIZING else pfn


@step_clause(
    "C55",
    name="one page at a time",
    party=Party.CORE,
    source="mm/migrate.c:remove_migration_pte; mm/migrate_device.c:migrate_vma_collect_pmd (6.1.192, 7.3.4)",
    symptom="an address is mapped twice, or to a page that does not have its content",
    on=TABLE_EVENTS,
)
def one_page_at_a_time(before: World, step: ev.Step, after: World) -> Judgement:
    """At every instant a virtual page MUST be mapped by its old page, a migration entry, or its new page: the entry of a page
    that moved gives way to the page that it moved to, that of any other to the same page.
    """
    call = _library_call(before.task(step.task))
    if call is None:
        return None
    return in_all(_one_page(before, after, call, event) for event in changes_of(step.event))


def _one_page(before: World, after: World, call: Call, event: Changed) -> Judgement:
    old, new = event.old, event.new
    if old.pfn is None or not (is_mapping(new) or (is_migration(old) and is_migration(new))):
        return None
    if is_mapping(old) or is_migration(new):
        # What pages() may overwrite is C69's.
        if old.pfn == new.pfn or (call.phase is Phase.MOVING and is_mapping(new)):
            return None
        return f"{at(event)} went from pfn {old.pfn} to pfn {new.pfn} without a migration entry"
    if not is_migration(old) or (call.phase is Phase.FINALIZING and None in (call.src, call.dst)):
        return None
    successor = _successor(before, call, old.pfn)
    if new.pfn != successor:
        return f"the migration entry of pfn {old.pfn} at {at(event)} became pfn {new.pfn}, not pfn {successor}"
    if successor != old.pfn and call.moved.get(before.head(old.pfn)) != before.head(successor):
        return f"the migration entry of pfn {old.pfn} at {at(event)} became pfn {successor}, to which pages() did not move it"
    both = [key for key in after.entries(old.pfn, PAGE_KINDS) if key[0] == event.mm] if successor != old.pfn else []
    return f"{at(event)} maps pfn {successor}, and pfn {old.pfn} is still mapped at {names(both)}" if both else KEPT


@step_clause(
    "C56",
    name="all mappings or none",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_device_unmap, folio_mapped check (6.1.192, 7.3.4)",
    symptom="another process keeps the old page, uncharged",
    on=(ev.FolioMoved,),
)
def moved_pages_are_unmapped(before: World, step: ev.Step, after: World) -> Judgement:
    """pages() MUST NOT move a page while an entry in any address space still maps it."""
    event = cast("ev.FolioMoved", step.event)
    if not event.moved:
        return None
    mapped, mapcount = before.folio_entries(event.pfn, PAGE_KINDS), before.folio(event.pfn).mapcount
    if mapped or mapcount:
        return f"pfn {event.pfn} was moved to pfn {event.dst} while it was mapped {mapcount} times: {names(mapped)}"
    return KEPT


@step_clause(
    "C57",
    name="finalize leaves no entry",
    party=Party.CORE,
    source="mm/migrate.c:remove_migration_ptes (6.1.192, 7.3.4)",
    symptom="waiters loop for ever, or BUG",
    on=(ev.FinalizeReturned,),
)
def finalize_leaves_no_entry(before: World, step: ev.Step, after: World) -> Judgement:
    """Finalize MUST replace every migration entry that names a source page, in every address space."""
    event = cast("ev.FinalizeReturned", step.event)
    call = call_before(before, step, event.call)
    entries = page_pairs(before, call.src, None) if call is not None else ()
    pfns = [pfn for _, entry, _ in entries if (pfn := pfn_of(entry)) is not None]
    for pfn in pfns:
        # Another migration may have begun on the page since finalize unlocked it.
        left = before.migration_entries(pfn) if before.folio(pfn).holder in (None, step.task) else []
        if left:
            return f"after finalize migration entries of pfn {pfn} are left at {names(left)}"
    return KEPT if pfns else None


@step_clause(
    "C58",
    name="an entry implies a locked page",
    party=Party.CORE,
    source="include/linux/swapops.h: migration entries; mm/filemap.c:migration_entry_wait_on_locked (6.1.192, 7.3.4)",
    symptom="BUG_ON in pfn_swap_entry_to_page; waiters that nobody wakes",
    on=(*TABLE_EVENTS, ev.FolioUnlocked, ev.FolioPut, ev.FolioFreed),
)
def entry_implies_locked_page(before: World, step: ev.Step, after: World) -> Judgement:
    """While a migration entry exists its page MUST be locked and referenced."""
    event = step.event
    if isinstance(event, TABLE_EVENTS):
        return in_all(_names_locked_page(before, change) for change in changes_of(event))
    pfn = cast("ev.FolioUnlocked | ev.FolioPut | ev.FolioFreed", event).pfn
    if isinstance(event, ev.FolioPut) and event.refcount:
        return None
    left = before.migration_entries(pfn)
    what = "unlocked" if isinstance(event, ev.FolioUnlocked) else "freed"
    return f"pfn {pfn} was {what} while {names(left)} held migration entries of it" if left else None


def _names_locked_page(world: World, event: Changed) -> Judgement:
    if not is_migration(event.new) or event.new.pfn is None or event.old == event.new:
        return None
    frame = world.folio(event.new.pfn)
    if frame.locked is False or frame.allocated is False:
        state = "free" if frame.allocated is False else "not locked"
        return f"{at(event)} became a migration entry of pfn {event.new.pfn}, which is {state}"
    return KEPT


@step_clause(
    "C59",
    name="TLB flush before PTL unlock",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (60bae7370896, v6.1); mm/rmap.c:try_to_unmap_flush (7.3.4)",
    symptom="a CPU writes after the copy",
    on=(ev.LockDropped, ev.PageWritten, ev.FolioFreed, ev.TlbFlushed),
)
def tlb_flushed_before_unlock(before: World, step: ev.Step, after: World) -> Judgement:
    """In setup, the TLB entries of the present entries that were cleared MUST be flushed before the PTL is released; a flush that
    reclaim puts off MUST be made before the page is written out or freed.
    """
    event = step.event
    if not isinstance(event, ev.LockDropped):
        return _flush_was_owed(before, after, step) if before.extras.owed else None
    task = before.task(step.task)
    if task.in_phase(Phase.COLLECTING) is None:
        return None
    judgement: Judgement = None
    for (mm, addr), old in sorted(task.cleared.items()):
        if old.kind is not PteKind.PRESENT or event.lock != ptl(mm):
            continue
        stale = _stale(before, mm, addr, old.pfn)
        if stale is not None:
            return f"{event.lock} was released while CPU {stale} can still reach pfn {old.pfn} at mm {mm} addr {addr}"
        judgement = KEPT
    return judgement


def _stale(world: World, mm: int, addr: int, pfn: int | None) -> int | None:
    """The first CPU whose TLB still takes this address to the page."""
    return next((cpu for cpu, pte in sorted(world.tlbs.get((mm, addr), {}).items()) if pte.pfn == pfn), None)


def _flush_was_owed(before: World, after: World, step: ev.Step) -> Judgement:
    debts, event = before.extras.owed.get(step.task, frozenset()), step.event
    if isinstance(event, ev.TlbFlushed):
        return KEPT if debts and step.task not in after.extras.owed else None
    pages = before.folio_pages(cast("ev.PageWritten | ev.FolioFreed", event).pfn)
    what = "written out" if isinstance(event, ev.PageWritten) else "freed"
    for mm, start, end in sorted(debts):
        for addr in range(start, end):
            for page in pages:
                stale = _stale(before, mm, addr, page)
                if stale is not None:
                    return f"pfn {page} was {what} while CPU {stale} can still reach it at mm {mm} addr {addr}"
    return None


Flushed = frozenset[tuple[str, int, int]]


@monitor(
    "C60",
    name="cache flush before clear",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (a3589e1d5fe3, v6.1); mm/rmap.c:try_to_migrate_one",
    symptom="stale data on CPUs whose caches are indexed by virtual address",
    on=(ev.CacheFlushed, ev.PteChanged, ev.PmdChanged, ev.LockDropped),
    start=frozenset[tuple[str, int, int]](),
)
def cache_flushed_before_clear(memory: Flushed, world: World, step: ev.Step) -> tuple[Flushed, Judgement]:
    """In setup, the cache MUST be flushed for an address before its present entry is cleared."""
    event = step.event
    if isinstance(event, ev.LockDropped):
        return frozenset(line for line in memory if line[0] != step.task or ptl(line[1]) != event.lock), None
    if world.task(step.task).in_phase(Phase.COLLECTING) is None:
        return memory, None
    if isinstance(event, ev.CacheFlushed):
        return memory | {(step.task, event.mm, addr) for addr in range(event.addr, event.addr + event.pages)}, None
    event = cast("Changed", event)
    if event.old.kind is not PteKind.PRESENT or is_mapping(event.new):
        return memory, None
    wanted = frozenset((step.task, event.mm, addr) for addr in addresses_of(event))
    if not wanted <= memory:
        return memory, f"the present entry of {at(event)} was cleared without a cache flush"
    return memory - wanted, KEPT
