"""Folding of what happens to page tables, of both levels, and to TLBs."""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.extras import TABLE, Key, piece
from migrate_vma_spec.folding import change_extras, on, put_task
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import EMPTY, NAMING_KINDS, PAGE_KINDS, Phase, Stage, World, evolve, ptl
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind

Keys = frozenset[Key]
NO_KEYS: Keys = frozenset()


def _renamed(named: FrozenMap[int, Keys], key: Key, old: Pte, new: Pte) -> FrozenMap[int, Keys]:
    was = old.pfn if old.kind in NAMING_KINDS else None
    now = new.pfn if new.kind in NAMING_KINDS else None
    if was == now:
        return named
    if was is not None:
        left = named.get(was, NO_KEYS) - {key}
        named = named.set(was, left) if left else named.drop(was)
    return named if now is None else named.set(now, named.get(now, NO_KEYS) | {key})


def with_pte(world: World, key: Key, new: Pte) -> World:
    """The world with this page-table entry."""
    old = world.ptes.get(key, PTE_NONE)
    ptes = world.ptes.drop(key) if new == PTE_NONE else world.ptes.set(key, new)
    return evolve(world, ptes=ptes, named=_renamed(world.named, key, old, new))


def with_pmd(world: World, key: Key, pages: int, new: Pte) -> World:
    """The world with this entry of the middle level."""
    extras = world.extras
    old = extras.pmds.get(key, PTE_NONE)
    pmds = extras.pmds.drop(key) if new == PTE_NONE else extras.pmds.set(key, new)
    leaves = _renamed(extras.leaves, key, old, new)
    if pmds is extras.pmds and leaves is extras.leaves and extras.leaf_pages == pages:
        return world
    return change_extras(world, leaf_pages=pages, pmds=pmds, leaves=leaves)


def _followed(world: World, name: str, mm: int, changes: list[tuple[int, Pte, Pte]]) -> World:
    """The task's own books of what it did to entries: what pages() filled, and what was cleared under a page-table lock."""
    task = world.tasks.get(name)
    if task is None:
        return world
    active = task.active_call
    if active is not None and active[1].phase is Phase.MOVING:
        filled = frozenset(addr for addr, _, new in changes if new.kind in PAGE_KINDS)
        if not filled:
            return world
        number, call = active
        call = evolve(call, inserted=call.inserted | filled)
        return put_task(world, name, evolve(task, calls=task.calls.set(number, call)))
    collecting = active is not None and active[1].phase is Phase.COLLECTING
    handling = task.fault is not None and task.fault.stage is Stage.HANDLING
    if not (collecting or handling):
        return world
    cleared = task.cleared
    for addr, old, new in changes:
        if new.kind in PAGE_KINDS:
            cleared = cleared.drop((mm, addr))
        elif old.kind in PAGE_KINDS and task.holds(ptl(mm)):
            cleared = cleared.set((mm, addr), old)
    return world if cleared is task.cleared else put_task(world, name, evolve(task, cleared=cleared))


@on(ev.PteChanged)
def _pte_changed(world: World, name: str, _cpu: int, event: ev.PteChanged) -> World:
    world = with_pte(world, (event.mm, event.addr), event.new)
    task = world.tasks.get(name)
    if task is None or not (task.calls or task.faults):
        return world
    return _followed(world, name, event.mm, [(event.addr, event.old, event.new)])


@on(ev.PteRead)
def _pte_read(world: World, _name: str, _cpu: int, event: ev.PteRead) -> World:
    key = (event.mm, event.addr)
    return world if world.ptes.get(key, PTE_NONE) == event.pte else with_pte(world, key, event.pte)


@on(ev.PmdChanged)
def _pmd_changed(world: World, name: str, _cpu: int, event: ev.PmdChanged) -> World:
    world = with_pmd(world, (event.mm, event.addr), event.pages, event.new)
    if event.old == PTE_NONE:
        world = _table_used(world, name)
    changes = [(event.addr + at, piece(event.old, at), piece(event.new, at)) for at in range(event.pages)]
    return _followed(world, name, event.mm, changes)


@on(ev.PageTableAllocated)
def _table_allocated(world: World, name: str, _cpu: int, _event: ev.PageTableAllocated) -> World:
    spare = world.extras.spare
    return change_extras(world, spare=spare.set(name, spare.get(name, 0) + 1))


@on(ev.PageTableFreed)
def _table_freed(world: World, name: str, _cpu: int, _event: ev.PageTableFreed) -> World:
    return _table_used(world, name)


def _table_used(world: World, name: str) -> World:
    """A page table that the task had in hand is in the address space now, or gone."""
    spare = world.extras.spare
    left = spare.get(name, 0) - 1
    return world if left < 0 else change_extras(world, spare=spare.set(name, left) if left else spare.drop(name))


@on(ev.PmdRead)
def _pmd_read(world: World, _name: str, _cpu: int, event: ev.PmdRead) -> World:
    return with_pmd(world, (event.mm, event.addr), event.pages, event.pmd)


@on(ev.PmdSplit)
def _pmd_split(world: World, name: str, _cpu: int, event: ev.PmdSplit) -> World:
    """The references and the mappings of its pages follow as events of their own."""
    pages = len(event.ptes)
    world = with_pmd(world, (event.mm, event.addr), pages, TABLE)
    for at, pte in enumerate(event.ptes):
        world = with_pte(world, (event.mm, event.addr + at), pte)
    changes = [(event.addr + at, piece(event.old, at), pte) for at, pte in enumerate(event.ptes)]
    return _followed(world, name, event.mm, changes)


@on(ev.TlbFilled)
def _tlb_filled(world: World, _name: str, cpu: int, event: ev.TlbFilled) -> World:
    """The walk that fills a TLB also sets the entry's young and dirty bits."""
    key = (event.mm, event.addr)
    cpus: FrozenMap[int, Pte] = world.tlbs.get(key) or EMPTY
    world = evolve(world, tlbs=world.tlbs.set(key, cpus.set(cpu, event.pte)))
    pte = world.ptes.get(key, PTE_NONE)
    if pte is PTE_NONE and world.extras.pmds:
        return _leaf_touched(world, event)
    if pte.kind is not PteKind.PRESENT or pte.pfn != event.pte.pfn:
        return world
    young, dirty = pte.young or event.pte.young, pte.dirty or event.pte.dirty
    return with_pte(world, key, evolve(pte, young=young, dirty=dirty))


def _leaf_touched(world: World, event: ev.TlbFilled) -> World:
    leaf = world.leaf(event.mm, event.addr)
    if leaf is None or leaf[1].kind is not PteKind.PRESENT or world.pte(event.mm, event.addr).pfn != event.pte.pfn:
        return world
    base, pmd = leaf
    pmd = evolve(pmd, young=pmd.young or event.pte.young, dirty=pmd.dirty or event.pte.dirty)
    return with_pmd(world, (event.mm, base), world.extras.leaf_pages, pmd)


@on(ev.TlbFlushed)
def _tlb_flushed(world: World, name: str, _cpu: int, event: ev.TlbFlushed) -> World:
    if world.extras.owed:
        world = _flush_paid(world, name, event)
    tlbs = world.tlbs
    if event.end - event.start <= len(tlbs):
        gone = [(event.mm, addr) for addr in range(event.start, event.end)]
    else:
        gone = [key for key in tlbs if key[0] == event.mm and event.start <= key[1] < event.end]
    tlbs = tlbs.drop(gone[0]) if len(gone) == 1 else tlbs.drop_all(gone)
    return world if tlbs is world.tlbs else evolve(world, tlbs=tlbs)


@on(ev.FlushDeferred)
def _flush_deferred(world: World, name: str, _cpu: int, event: ev.FlushDeferred) -> World:
    owed = world.extras.owed
    return change_extras(world, owed=owed.set(name, owed.get(name, frozenset()) | {(event.mm, event.start, event.end)}))


def _flush_paid(world: World, name: str, event: ev.TlbFlushed) -> World:
    owed = world.extras.owed
    left = frozenset(
        debt for debt in owed.get(name, ()) if debt[0] != event.mm or not event.start <= debt[1] <= debt[2] <= event.end
    )
    return change_extras(world, owed=owed.set(name, left) if left else owed.drop(name))
