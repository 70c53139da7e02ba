"""The reverse map: who maps an anonymous folio, and how its mappings are counted, removed and replaced (mm/rmap.c).

Rules:
- A folio's mappings are found through its anon_vma at its index; the tree is read under its rwsem, held for the whole walk.
- The walk takes the page-table lock before it looks. The kernel looks first and locks when it sees something of interest, which
  saves it locks and us nothing.
- Every change of an entry by try_to_migrate is in a notifier bracket of its own, event CLEAR without an owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock, up_read, up_write
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import mmu_notifier, swap
from migrate_vma_impl.mm.mm_types import AnonVma, Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import (
    flush_cache_page,
    flush_tlb_page,
    pte_present,
    ptep_get,
    ptep_get_and_clear,
    set_pte_at,
)
from migrate_vma_spec.events import (
    ExclusiveShared,
    ExclusiveTaken,
    FolioDirtied,
    FolioRead,
    LockTaken,
    Oops,
    RmapAdded,
    RmapRemoved,
)
from migrate_vma_spec.vocabulary import LockMode, NotifyReason, Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- counting mappings -----------------------------------------------------------------------------------------------


def _add_new(f: FolioState, mm: int, addr: int, anon_vma: int | None) -> Outcome:
    if f.mapcount:
        return (f,), None, Oops("a mapped folio is added to the reverse map as new", f.pfn)
    new = evolve(f, mapcount=1, exclusive=True, anon_vma=anon_vma, index=addr)
    return (new,), None, RmapAdded(f.pfn, mm, addr, 1, exclusive=True)


async def folio_add_new_anon_rmap(folio: Folio, vma: Vma, addr: int) -> None:
    """The first mapping of a folio: it belongs to the VMA's anon_vma from here on, and is exclusive to this mapping."""
    await traps.step(_add_new, folio, args=(vma.mm.number, addr, vma.anon_vma))


def _add(f: FolioState, mm: int, addr: int, exclusive: bool) -> Outcome:
    new = evolve(f, mapcount=f.mapcount + 1, exclusive=f.exclusive or exclusive)
    return (new,), f.dirty, RmapAdded(f.pfn, mm, addr, new.mapcount, new.exclusive)


async def folio_add_anon_rmap(folio: Folio, vma: Vma, addr: int, *, exclusive: bool) -> bool:
    """One more mapping. Answers whether the folio is dirty, which the one caller needs next and the page lock keeps stable."""
    return bool(await traps.step(_add, folio, args=(vma.mm.number, addr, exclusive)))


def _dup(f: FolioState, mm: int, addr: int) -> Outcome:
    if f.exclusive and f.pins and not f.is_zone_device:
        return (f,), False, ExclusiveShared(f.pfn, done=False)
    new = evolve(f, mapcount=f.mapcount + 1, exclusive=False)
    return (new,), True, RmapAdded(f.pfn, mm, addr, new.mapcount, exclusive=False)


async def folio_try_dup_anon_rmap(folio: Folio, child: Vma, addr: int) -> bool:
    """Fork's copy of a mapping: nobody has the page exclusively afterwards. False for a pinned page, which fork must copy."""
    return bool(await traps.step(_dup, folio, args=(child.mm.number, addr)))


def _remove(f: FolioState, mm: int, addr: int) -> Outcome:
    if f.mapcount <= 0:
        return (f,), None, Oops("a mapping is removed from a folio that is not mapped", f.pfn)
    return (evolve(f, mapcount=f.mapcount - 1),), None, RmapRemoved(f.pfn, mm, addr, f.mapcount - 1)


async def folio_remove_rmap(folio: Folio, vma: Vma, addr: int) -> None:
    await traps.step(_remove, folio, args=(vma.mm.number, addr))


def _share(f: FolioState) -> Outcome:
    if f.pins and not f.is_zone_device:
        return (f,), False, ExclusiveShared(f.pfn, done=False)
    return (evolve(f, exclusive=False),), True, ExclusiveShared(f.pfn, done=True)


async def folio_try_share_anon_rmap(folio: Folio) -> bool:
    """Give up anon-exclusivity after the entry was cleared. False for a pinned page; a device-private page cannot be pinned."""
    return bool(await traps.step(_share, folio))


def _move(f: FolioState) -> Outcome:
    done = f.refcount == 1
    return (evolve(f, exclusive=f.exclusive or done),), done, ExclusiveTaken(f.pfn, f.refcount, done)


async def folio_move_anon_rmap(folio: Folio) -> bool:
    """Make the page exclusive to its one mapping, if that is its one reference; the caller holds the page lock."""
    return bool(await traps.step(_move, folio))


def _dirty(f: FolioState) -> Outcome:
    return (evolve(f, dirty=True),), None, FolioDirtied(f.pfn)


async def folio_mark_dirty(folio: Folio) -> None:
    await traps.step(_dirty, folio)


# ---- the tree --------------------------------------------------------------------------------------------------------


def _change(holders: int, tree: tuple[Vma, ...], name: str, old: Vma | None, new: tuple[Vma, ...]) -> Outcome:
    """Take the rwsem for writing and change the tree; nobody sees the change before the lock is dropped."""
    if holders:
        return None
    if old is None:
        return (-1, (*tree, *new)), None, LockTaken(name, LockMode.WRITE)
    after = tuple(part for vma in tree for part in (new if vma == old else (vma,)))
    return (-1, after), None, LockTaken(name, LockMode.WRITE)


async def _change_tree(number: int, old: Vma | None, new: tuple[Vma, ...]) -> None:
    tree = AnonVma(number)
    await traps.sleep_until(_change, tree.rwsem, tree, args=(tree.rwsem.name, old, new))
    await up_write(tree.rwsem)


async def anon_vma_fork(child: Vma) -> None:
    """The child's VMA joins the tree behind its parent's, before any entry is copied."""
    if child.anon_vma is not None:
        await _change_tree(child.anon_vma, None, (child,))


async def unlink_anon_vmas(vma: Vma, left: tuple[Vma, ...] = ()) -> None:
    """The VMA leaves its tree; `left` are the parts of it that stay mapped."""
    if vma.anon_vma is not None:
        await _change_tree(vma.anon_vma, vma, left)


def _read_lock(holders: int, tree: tuple[Vma, ...], name: str) -> Outcome:
    return None if holders < 0 else ((holders + 1, tree), tree, LockTaken(name, LockMode.READ))


async def rmap_walk_begin(tree: AnonVma, index: int) -> tuple[Vma, ...]:
    """Take the tree's rwsem for reading: the VMAs that cover `index`, parents first."""
    vmas: tuple[Vma, ...] = await traps.sleep_until(_read_lock, tree.rwsem, tree, args=(tree.rwsem.name,))
    return tuple(vma for vma in vmas if vma.start <= index < vma.end)


async def rmap_walk_end(tree: AnonVma) -> None:
    await up_read(tree.rwsem)


def _read(f: FolioState) -> Outcome:
    place = None if f.anon_vma is None or f.index is None else (f.anon_vma, f.index)
    return (f,), (f.mapcount > 0, place), FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_mapping_place(folio: Folio) -> tuple[bool, tuple[int, int] | None]:
    """Whether the folio is mapped, and its anon_vma's number and index, if it ever was. The page lock keeps the latter stable."""
    return await traps.step(_read, folio)  # type: ignore[no-any-return]


# ---- to migration entries --------------------------------------------------------------------------------------------


async def try_to_migrate(kernel: Kernel, folio: Folio) -> None:
    """Replace every mapping of a locked folio by a migration entry; a pinned page stops it (mm/rmap.c:try_to_migrate, 7.3)."""
    mapped, place = await folio_mapping_place(folio)
    if not mapped or place is None:
        return
    tree, index = AnonVma(place[0]), place[1]
    for vma in await rmap_walk_begin(tree, index):
        if not await try_to_migrate_one(kernel, folio, vma, index):
            break
    await rmap_walk_end(tree)


async def try_to_migrate_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int) -> bool:
    await mmu_notifier.invalidate_range_start(kernel, vma.mm, addr, addr + 1, NotifyReason.CLEAR)
    await spin_lock(vma.mm.ptl)
    done = True
    pte = await ptep_get(vma.mm, addr)
    if maps(pte, folio):
        done = await _unmap_one(kernel, folio, vma, addr, pte_present(pte))
    await spin_unlock(vma.mm.ptl)
    await mmu_notifier.invalidate_range_end(kernel, vma.mm, addr, addr + 1)
    return done


def maps(pte: Pte, folio: Folio) -> bool:
    return pte.kind in (PteKind.PRESENT, PteKind.DEVICE_PRIVATE) and pte.pfn == folio.pfn


async def _unmap_one(kernel: Kernel, folio: Folio, vma: Vma, addr: int, present: bool) -> bool:
    """The entry maps the folio and its page-table lock is held: put a migration entry there."""
    if present:
        await flush_cache_page(vma.mm, addr)
    pte, exclusive = await ptep_get_and_clear(vma.mm, addr, folio)
    if present:
        await flush_tlb_page(kernel, vma.mm, addr)
        if pte.dirty:
            await folio_mark_dirty(folio)
    if exclusive and not await folio_try_share_anon_rmap(folio):
        await set_pte_at(vma.mm, addr, pte)
        return False
    await set_pte_at(vma.mm, addr, kernel.generation.steps.unmap_entry(pte, exclusive))
    await folio_remove_rmap(folio, vma, addr)
    await swap.folio_put(kernel, folio)
    return True
