"""Bits of entries

Which bits of a page-table entry survive the round trip through a migration entry, which are never gained by it, and where
device-private entries have none to read.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    NOTHING_KINDS,
    TABLE_EVENTS,
    Changed,
    at,
    changes_of,
    in_all,
    is_mapping,
    is_migration,
    replaced,
)
from migrate_vma_spec.objects import PAGE_KINDS, Phase, TaskState, World, mmap_lock, ptl
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import LockMode, Memory, Pte, PteKind, VmFlags


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
        if not dirty or old.pfn is None or event.lock != ptl(mm) or not is_migration(now) or now.pfn != old.pfn:
            continue
        if before.folio(old.pfn).dirty is False:
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
    on=(*TABLE_EVENTS, ev.FolioDirtied),
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
    return in_all(_no_present_bits(task, change) for change in changes_of(event))


def _no_present_bits(task: TaskState, event: Changed) -> Judgement:
    old = replaced(task, event)
    if old is None or old.kind is not PteKind.DEVICE_PRIVATE:
        return None
    if event.new.dirty or event.new.young:
        return f"the device-private entry of {at(event)} became {'dirty' if event.new.dirty else 'young'}"
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
    on=TABLE_EVENTS,
)
def bits_are_kept(before: World, step: ev.Step, after: World) -> Judgement:
    """The young, soft-dirty and uffd-wp bits of an entry MUST survive the round trip through a migration entry; device-private
    entries carry no young bit.
    """
    splits = isinstance(step.event, ev.PmdSplit)
    return in_all(_bits_kept(before.task(step.task), change, splits) for change in changes_of(step.event))


def _bits_kept(task: TaskState, event: Changed, splits: bool) -> Judgement:
    old = replaced(task, event)
    if old is not None:
        lost = _lost(old, event.new, with_young=old.kind is PteKind.PRESENT)
    elif is_migration(event.old) and (is_mapping(event.new) or (splits and is_migration(event.new))):
        lost = _lost(event.old, event.new, with_young=event.new.kind in (PteKind.PRESENT, PteKind.MIGRATION))
    else:
        return None
    return f"{lost} of {at(event)} changed on the way to {event.new.kind.value}" if lost else KEPT


@step_clause(
    "C65",
    name="never gains write",
    party=Party.CORE,
    source="mm/migrate.c:remove_migration_pte (6.1.192, 7.3.4)",
    symptom="a copy-on-write page is written",
    on=TABLE_EVENTS,
)
def write_is_never_gained(before: World, step: ev.Step, after: World) -> Judgement:
    """A migration MUST NOT make a mapping writable that was not, nor one in a VMA that is not writable now; save while a writer
    of mmap_lock is changing VMAs, who has the entries still to walk.
    """
    return in_all(_write_not_gained(before, before.task(step.task), change) for change in changes_of(step.event))


def _write_not_gained(before: World, task: TaskState, event: Changed) -> Judgement:
    if not (is_migration(event.old) or is_migration(event.new)):
        call = task.in_phase(Phase.MOVING)
        if call is None or event.old.kind not in NOTHING_KINDS or not is_mapping(event.new):
            return None
    elif is_migration(event.old) and event.new.kind in PAGE_KINDS | {PteKind.MIGRATION} and not event.old.write:
        return f"{at(event)} was read-only, and became writable" if event.new.write else KEPT
    elif (old := replaced(task, event)) is not None and event.new.write and not old.write:
        return f"the read-only mapping of {at(event)} became a writable migration entry"
    vma = before.vma(event.mm, event.addr)
    if not event.new.write or not is_mapping(event.new) or vma is None:
        return None
    if vma.flags & VmFlags.WRITE:
        return KEPT
    return None if _are_changing(before, event.mm) else f"{at(event)} became writable in a VMA that is not"


def _are_changing(world: World, mm: int) -> bool:
    """Whether some task has the VMAs of the address space for itself."""
    return any((mmap_lock(mm), LockMode.WRITE) in task.locks for task in world.tasks.values())


Shared = frozenset[tuple[str, int]]


@monitor(
    "C66",
    name="anon-exclusive",
    party=Party.CORE,
    source="mm/rmap.c:folio_try_share_anon_rmap; mm/migrate.c:remove_migration_pte (6c287605fd56, v5.19)",
    symptom="a pin sees another page than the process",
    on=(ev.ExclusiveShared, *TABLE_EVENTS, ev.RmapAdded, ev.LockDropped),
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
    # Of a leaf the one flag is the head's, also where the leaf gives way to an entry for each page.
    leaf = event.old.pfn if isinstance(event, ev.PmdSplit) else None
    task, changes = world.task(step.task), changes_of(event)
    stood_for = [old.pfn for change in changes if (old := replaced(task, change)) is not None]
    given_up = memory - {(step.task, pfn if leaf is None else leaf) for pfn in stood_for if pfn is not None}
    return given_up, in_all(_judge_given_up(memory, world, step.task, change, leaf) for change in changes)


def _judge_given_up(memory: Shared, world: World, name: str, event: Changed, leaf: int | None) -> Judgement:
    old = replaced(world.task(name), event)
    if old is None or old.pfn is None:
        return None
    flagged = old.pfn if leaf is None else leaf
    if world.frame(flagged).exclusive:
        return f"{at(event)} became a migration entry while pfn {old.pfn} was exclusive"
    if (name, flagged) in memory:
        kept = event.new.write or event.new.exclusive
        return KEPT if kept else f"pfn {old.pfn} was exclusive, and its entry at {at(event)} is plain readable"
    return f"pfn {old.pfn} was not exclusive, and its entry at {at(event)} is" if event.new.exclusive else None


def _judge_restored(world: World, event: ev.RmapAdded) -> Judgement:
    pte = world.pte(event.mm, event.addr)
    # A file's pages are exclusive to nobody.
    if not is_migration(pte) or world.head(event.pfn) in world.extras.cached:
        return None
    wanted = pte.write or pte.exclusive
    if event.exclusive == wanted:
        return KEPT
    return f"pfn {event.pfn} was mapped at mm {event.mm} addr {event.addr} {'' if event.exclusive else 'not '}exclusive"
