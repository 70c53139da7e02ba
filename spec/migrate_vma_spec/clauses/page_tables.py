"""Page tables

What page-table entries, in whichever address space, may become at which moment of a migration, and which of their bits
survive it. A *mapping* is an entry through which a page is reached, present or device-private; a *migration entry* stands for
one meanwhile.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import call_before, is_migrating, names, pairs, pfn_of, pfns_of
from migrate_vma_spec.objects import PAGE_KINDS, Call, Phase, TaskState, World, ptl
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import Memory, Pte, PteKind, VmFlags

NOTHING_KINDS = frozenset({PteKind.NONE, PteKind.ZERO})


def _at(event: ev.PteChanged) -> str:
    return f"mm {event.mm} addr {event.addr}"


def _is_mapping(pte: Pte) -> bool:
    return pte.kind in PAGE_KINDS


def _is_migration(pte: Pte) -> bool:
    return pte.kind is PteKind.MIGRATION


def _replaced(task: TaskState, event: ev.PteChanged) -> Pte | None:
    """The mapping that a new migration entry stands for: what it overwrote, or what the task had just cleared there."""
    if not _is_migration(event.new):
        return None
    old = event.old if _is_mapping(event.old) else task.cleared.get((event.mm, event.addr))
    return old if old is not None and old.pfn == event.new.pfn else None


def _library_call(task: TaskState) -> Call | None:
    active = task.library
    return active[1] if active is not None else None


def _successor(call: Call, pfn: int) -> int:
    """The page that must take the place of `pfn` when the call's migration entries go: its destination if it migrated."""
    if call.phase is not Phase.FINALIZING:
        return pfn
    for _, entry, dst in pairs(call.src, call.dst):
        new = pfn_of(dst)
        if pfn_of(entry) == pfn and is_migrating(entry) and new is not None:
            return new
    return pfn


@step_clause(
    "C55",
    name="one page at a time",
    party=Party.CORE,
    source="mm/migrate.c:remove_migration_pte; mm/migrate_device.c:migrate_vma_collect_pmd (6.1.192, 7.3.4)",
    symptom="an address is mapped twice, or to a page that does not have its content",
    on=(ev.PteChanged,),
)
def one_page_at_a_time(before: World, step: ev.Step, after: World) -> Judgement:
    """At every instant a virtual page MUST be mapped by its old page, a migration entry, or its new page: the entry of a page
    that moved gives way to the page that it moved to, that of any other to the same page.
    """
    event = cast("ev.PteChanged", step.event)
    call = _library_call(before.task(step.task))
    old, new = event.old, event.new
    if call is None or not _is_mapping(new) or old.pfn is None:
        return None
    if _is_mapping(old):
        # What pages() may overwrite is C69's.
        if old.pfn == new.pfn or call.phase is Phase.MOVING:
            return None
        return f"{_at(event)} went from pfn {old.pfn} to pfn {new.pfn} without a migration entry"
    if not _is_migration(old):
        return None
    successor = _successor(call, old.pfn)
    if new.pfn != successor:
        return f"the migration entry of pfn {old.pfn} at {_at(event)} became pfn {new.pfn}, not pfn {successor}"
    if successor != old.pfn and call.moved.get(old.pfn) != successor:
        return f"the migration entry of pfn {old.pfn} at {_at(event)} became pfn {successor}, to which pages() did not move it"
    both = [key for key in after.entries(old.pfn, PAGE_KINDS) if key[0] == event.mm] if successor != old.pfn else []
    return f"{_at(event)} maps pfn {successor}, and pfn {old.pfn} is still mapped at {names(both)}" if both else KEPT


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
    mapped, mapcount = before.entries(event.pfn, PAGE_KINDS), before.frame(event.pfn).mapcount
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
    pfns = pfns_of(call.src) if call is not None else []
    for pfn in pfns:
        # Another migration may have begun on the page since finalize unlocked it.
        left = before.migration_entries(pfn) if before.frame(pfn).holder in (None, step.task) else []
        if left:
            return f"after finalize migration entries of pfn {pfn} are left at {names(left)}"
    return KEPT if pfns else None


@step_clause(
    "C58",
    name="an entry implies a locked page",
    party=Party.CORE,
    source="include/linux/swapops.h: migration entries; mm/filemap.c:migration_entry_wait_on_locked (6.1.192, 7.3.4)",
    symptom="BUG_ON in pfn_swap_entry_to_page; waiters that nobody wakes",
    on=(ev.PteChanged, ev.FolioUnlocked, ev.FolioPut, ev.FolioFreed),
)
def entry_implies_locked_page(before: World, step: ev.Step, after: World) -> Judgement:
    """While a migration entry exists its page MUST be locked and referenced."""
    event = step.event
    if isinstance(event, ev.PteChanged):
        if not _is_migration(event.new) or event.new.pfn is None or event.old == event.new:
            return None
        frame = before.frame(event.new.pfn)
        if frame.locked is False or frame.allocated is False:
            state = "free" if frame.allocated is False else "not locked"
            return f"{_at(event)} became a migration entry of pfn {event.new.pfn}, which is {state}"
        return KEPT
    pfn = cast("ev.FolioUnlocked | ev.FolioPut | ev.FolioFreed", event).pfn
    if isinstance(event, ev.FolioPut) and event.refcount:
        return None
    left = before.migration_entries(pfn)
    what = "unlocked" if isinstance(event, ev.FolioUnlocked) else "freed"
    return f"pfn {pfn} was {what} while {names(left)} held migration entries of it" if left else None


@step_clause(
    "C59",
    name="TLB flush before PTL unlock",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (60bae7370896, v6.1)",
    symptom="a CPU writes after the copy",
    on=(ev.LockDropped,),
)
def tlb_flushed_before_unlock(before: World, step: ev.Step, after: World) -> Judgement:
    """In setup, the TLB entries of the present entries that were cleared MUST be flushed before the PTL is released."""
    event = cast("ev.LockDropped", step.event)
    task = before.task(step.task)
    if task.in_phase(Phase.COLLECTING) is None:
        return None
    judgement: Judgement = None
    for (mm, addr), old in sorted(task.cleared.items()):
        if old.kind is not PteKind.PRESENT or event.lock != ptl(mm):
            continue
        stale = [cpu for cpu, pte in sorted(before.tlbs.get((mm, addr), {}).items()) if pte.pfn == old.pfn]
        if stale:
            return f"{event.lock} was released while CPU {stale[0]} can still reach pfn {old.pfn} at mm {mm} addr {addr}"
        judgement = KEPT
    return judgement


Flushed = frozenset[tuple[str, int, int]]


@monitor(
    "C60",
    name="cache flush before clear",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (a3589e1d5fe3, v6.1); mm/rmap.c:try_to_migrate_one",
    symptom="stale data on CPUs whose caches are indexed by virtual address",
    on=(ev.CacheFlushed, ev.PteChanged, ev.LockDropped),
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
        return memory | {(step.task, event.mm, event.addr)}, None
    event = cast("ev.PteChanged", event)
    if event.old.kind is not PteKind.PRESENT or _is_mapping(event.new):
        return memory, None
    if (step.task, event.mm, event.addr) not in memory:
        return memory, f"the present entry of {_at(event)} was cleared without a cache flush"
    return memory - {(step.task, event.mm, event.addr)}, KEPT


@step_clause(
    "C61",
    name="dirty kept",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (fd35ca3d12cc, v6.1)",
    symptom="data is lost at swap-out",
    on=(ev.LockDropped,),
)
def dirty_is_kept(before: World, step: ev.Step, after: World) -> Judgement:
    """A dirty present entry that setup replaces MUST mark the folio dirty, and the migration entry with it, before the PTL is
    released.
    """
    event = cast("ev.LockDropped", step.event)
    task = before.task(step.task)
    if task.in_phase(Phase.COLLECTING) is None:
        return None
    judgement: Judgement = None
    for (mm, addr), old in sorted(task.cleared.items()):
        now = before.pte(mm, addr)
        dirty = old.kind is PteKind.PRESENT and old.dirty
        if not dirty or old.pfn is None or event.lock != ptl(mm) or not _is_migration(now) or now.pfn != old.pfn:
            continue
        if before.frame(old.pfn).dirty is False:
            return f"the dirty entry of mm {mm} addr {addr} was replaced, and pfn {old.pfn} is not dirty"
        if not now.dirty:
            return f"the dirty entry of mm {mm} addr {addr} became a migration entry that is not dirty"
        judgement = KEPT
    return judgement


@step_clause(
    "C63",
    name="no present bits of device entries",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (review of 2025-03 and 2026-07)",
    symptom="junk is taken for dirty and young bits",
    on=(ev.PteChanged, ev.FolioDirtied),
)
def device_entries_have_no_present_bits(before: World, step: ev.Step, after: World) -> Judgement:
    """Dirty and young bits MUST NOT be read from a device-private entry: what replaces it in setup has neither, and its folio
    is not made dirty.
    """
    event, task = step.event, before.task(step.task)
    if task.in_phase(Phase.COLLECTING) is None:
        return None
    if isinstance(event, ev.FolioDirtied):
        private = before.frame(event.pfn).memory is Memory.DEVICE_PRIVATE
        return f"setup made the device page pfn {event.pfn} dirty" if private else None
    event = cast("ev.PteChanged", event)
    old = _replaced(task, event)
    if old is None or old.kind is not PteKind.DEVICE_PRIVATE:
        return None
    if event.new.dirty or event.new.young:
        return f"the device-private entry of {_at(event)} became {'dirty' if event.new.dirty else 'young'}"
    return KEPT


def _lost(old: Pte, new: Pte, with_young: bool) -> str | None:
    """The first of the bits that must survive in which the two entries differ."""
    if old.soft_dirty != new.soft_dirty:
        return "soft_dirty"
    if old.uffd_wp != new.uffd_wp:
        return "uffd_wp"
    return "young" if with_young and old.young != new.young else None


@step_clause(
    "C64",
    name="young, soft-dirty and uffd-wp kept",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd; mm/migrate.c:remove_migration_pte (6.1.192, 7.3.4)",
    symptom="checkpoint or userfaultfd misses writes",
    on=(ev.PteChanged,),
)
def bits_are_kept(before: World, step: ev.Step, after: World) -> Judgement:
    """The young, soft-dirty and uffd-wp bits of an entry MUST survive the round trip through a migration entry; device-private
    entries carry no young bit.
    """
    event = cast("ev.PteChanged", step.event)
    old = _replaced(before.task(step.task), event)
    if old is not None:
        lost = _lost(old, event.new, with_young=old.kind is PteKind.PRESENT)
    elif _is_migration(event.old) and _is_mapping(event.new):
        lost = _lost(event.old, event.new, with_young=event.new.kind is PteKind.PRESENT)
    else:
        return None
    return f"{lost} of {_at(event)} changed on the way to {event.new.kind.value}" if lost else KEPT


@step_clause(
    "C65",
    name="never gains write",
    party=Party.CORE,
    source="mm/migrate.c:remove_migration_pte (6.1.192, 7.3.4)",
    symptom="a copy-on-write page is written",
    on=(ev.PteChanged,),
)
def write_is_never_gained(before: World, step: ev.Step, after: World) -> Judgement:
    """A migration MUST NOT make a mapping writable that was not, nor one in a VMA that is not writable now."""
    event = cast("ev.PteChanged", step.event)
    task = before.task(step.task)
    if not (_is_migration(event.old) or _is_migration(event.new)):
        call = task.in_phase(Phase.MOVING)
        if call is None or event.old.kind not in NOTHING_KINDS or not _is_mapping(event.new):
            return None
    elif _is_migration(event.old) and event.new.kind in PAGE_KINDS | {PteKind.MIGRATION} and not event.old.write:
        return f"{_at(event)} was read-only, and became writable" if event.new.write else KEPT
    elif (old := _replaced(task, event)) is not None and event.new.write and not old.write:
        return f"the read-only mapping of {_at(event)} became a writable migration entry"
    vma = before.vma(event.mm, event.addr)
    if not event.new.write or not _is_mapping(event.new) or vma is None:
        return None
    return KEPT if vma.flags & VmFlags.WRITE else f"{_at(event)} became writable in a VMA that is not"


Shared = frozenset[tuple[str, int]]


@monitor(
    "C66",
    name="anon-exclusive",
    party=Party.CORE,
    source="mm/rmap.c:folio_try_share_anon_rmap; mm/migrate.c:remove_migration_pte (6c287605fd56, v5.19)",
    symptom="a pin sees another page than the process",
    on=(ev.ExclusiveShared, ev.PteChanged, ev.RmapAdded, ev.LockDropped),
    start=frozenset[tuple[str, int]](),
)
def exclusivity_is_carried(memory: Shared, world: World, step: ev.Step) -> tuple[Shared, Judgement]:
    """A page's exclusivity MUST be given up before a migration entry replaces its mapping (a pinned page cannot: it is not
    migrated), MUST be kept by the entry as writable or readable-exclusive, and MUST be restored with the mapping.
    """
    event = step.event
    if isinstance(event, ev.LockDropped):
        ours = event.lock.startswith("ptl:")
        return (frozenset(pair for pair in memory if pair[0] != step.task) if ours else memory), None
    if isinstance(event, ev.ExclusiveShared):
        return (memory | {(step.task, event.pfn)} if event.done else memory), None
    if isinstance(event, ev.RmapAdded):
        return memory, _judge_restored(world, event)
    event = cast("ev.PteChanged", event)
    old = _replaced(world.task(step.task), event)
    if old is None or old.pfn is None:
        return memory, None
    shared = (step.task, old.pfn) in memory
    memory -= {(step.task, old.pfn)}
    if world.frame(old.pfn).exclusive:
        return memory, f"{_at(event)} became a migration entry while pfn {old.pfn} was exclusive"
    if shared:
        kept = event.new.write or event.new.exclusive
        return memory, KEPT if kept else f"pfn {old.pfn} was exclusive, and its entry at {_at(event)} is plain readable"
    return memory, f"pfn {old.pfn} was not exclusive, and its entry at {_at(event)} is" if event.new.exclusive else None


def _judge_restored(world: World, event: ev.RmapAdded) -> Judgement:
    pte = world.pte(event.mm, event.addr)
    if not _is_migration(pte):
        return None
    wanted = pte.write or pte.exclusive
    if event.exclusive == wanted:
        return KEPT
    return f"pfn {event.pfn} was mapped at mm {event.mm} addr {event.addr} {'' if event.exclusive else 'not '}exclusive"
