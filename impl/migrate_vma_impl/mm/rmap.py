"""The reverse map: who maps a folio, and how its mappings are counted, removed and replaced (mm/rmap.c).

Rules:
- A folio's mappings are found through its anon_vma, or its file's i_mmap, at its index; the tree is read under its rwsem, held
  for the whole walk.
- The walk takes the page-table lock before it looks. The kernel looks first and locks when it sees something of interest, which
  saves it locks and us nothing.
- The counts of a folio are in its head, the exclusivity in each page; a mapping by a leaf of the middle level is one mapping, and
  has the exclusivity of the head. `page` names the page of a large folio that a page-table entry maps.
"""

from __future__ import annotations

from typing import Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import up_read, up_write
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import AnonVma, Folio, FolioState, IMmap, Vma
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
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import LockMode

# ---- counting mappings -----------------------------------------------------------------------------------------------


def page_and_head(folio: Folio, page: Folio | None) -> tuple[Folio, ...]:
    """The slots of a folio and of one of its pages: one where the page is the head, or none is named."""
    return (folio,) if page is None or page == folio else (folio, page)


def _add_new(f: FolioState, mm: int, addr: int, anon_vma: int | None, index: int, exclusive: bool, pages: int) -> Outcome:
    if f.mapcount:
        return (f,), None, Oops("a mapped folio is added to the reverse map as new", f.pfn)
    new = evolve(f, mapcount=1, exclusive=exclusive, anon_vma=anon_vma, index=index)
    return (new,), None, RmapAdded(f.pfn, mm, addr, 1, exclusive, pages)


async def folio_add_new_anon_rmap(folio: Folio, vma: Vma, addr: int, *, exclusive: bool = True, pages: int = 1) -> None:
    """The first mapping of a folio, by a leaf of `pages` if it is large: it belongs to the VMA's anon_vma from here on, and is
    exclusive to this mapping.

    Only a page that comes back from swap may be shared from the start: with page-table entries that still hold its slot.
    """
    await traps.step(_add_new, folio, args=(vma.mm.number, addr, vma.anon_vma, vma.index_of(addr), exclusive, pages))


def _add(f: FolioState, *rest: Any) -> Outcome:
    *tail, mm, addr, exclusive, pages = rest
    new = [evolve(f, mapcount=f.mapcount + 1), *tail]
    new[-1] = evolve(new[-1], exclusive=new[-1].exclusive or (exclusive and f.file is None))
    return tuple(new), f.dirty, RmapAdded(new[-1].pfn, mm, addr, new[0].mapcount, new[-1].exclusive, pages)


async def folio_add_anon_rmap(
    folio: Folio, vma: Vma, addr: int, *, exclusive: bool, page: Folio | None = None, pages: int = 1
) -> bool:
    """One more mapping: of `page`, or by a leaf of `pages` pages. Answers whether the folio is dirty, which the one caller needs
    next and the page lock keeps stable.

    For a page of a file too, which has no exclusivity (folio_add_file_rmap_pte).
    """
    args = (vma.mm.number, addr, exclusive, pages)
    return bool(await traps.step(_add, *page_and_head(folio, page), args=args))


def _dup(f: FolioState, *rest: Any) -> Outcome:
    *tail, mm, addr, pages = rest
    page: FolioState = tail[0] if tail else f
    if page.exclusive and f.maybe_dma_pinned:
        return (f, *tail), False, ExclusiveShared(page.pfn, done=False)
    new = [evolve(f, mapcount=f.mapcount + 1), *tail]
    new[-1] = evolve(new[-1], exclusive=False)
    return tuple(new), True, RmapAdded(page.pfn, mm, addr, new[0].mapcount, exclusive=False, pages=pages)


async def folio_try_dup_anon_rmap(folio: Folio, child: Vma, addr: int, *, page: Folio | None = None, pages: int = 1) -> bool:
    """Fork's copy of a mapping: nobody has the page exclusively afterwards. False for a pinned page, which fork must copy."""
    return bool(await traps.step(_dup, *page_and_head(folio, page), args=(child.mm.number, addr, pages)))


def _remove(f: FolioState, mm: int, addr: int, pfn: int, pages: int) -> Outcome:
    if f.mapcount <= 0:
        return (f,), None, Oops("a mapping is removed from a folio that is not mapped", f.pfn)
    return (evolve(f, mapcount=f.mapcount - 1),), None, RmapRemoved(pfn, mm, addr, f.mapcount - 1, pages)


async def folio_remove_rmap(folio: Folio, vma: Vma, addr: int, *, page: Folio | None = None, pages: int = 1) -> None:
    await traps.step(_remove, folio, args=(vma.mm.number, addr, (page or folio).pfn, pages))


def _share(f: FolioState, *tail: FolioState) -> Outcome:
    new = [f, *tail]
    if f.maybe_dma_pinned:
        return tuple(new), False, ExclusiveShared(new[-1].pfn, done=False)
    new[-1] = evolve(new[-1], exclusive=False)
    return tuple(new), True, ExclusiveShared(new[-1].pfn, done=True)


async def folio_try_share_anon_rmap(folio: Folio, page: Folio | None = None) -> bool:
    """Give up anon-exclusivity after the entry was cleared. False for a pinned page; a device-private page cannot be pinned."""
    return bool(await traps.step(_share, *page_and_head(folio, page)))


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
        return (-1, (*tree, *new)), False, LockTaken(name, LockMode.WRITE)
    after = tuple(part for vma in tree for part in (new if vma == old else (vma,)))
    return (-1, after), not after, LockTaken(name, LockMode.WRITE)


async def _change_trees(vma: Vma, old: Vma | None, new: tuple[Vma, ...]) -> bool:
    """In the trees that the VMA is in: its anon_vma's, its file's. True where nothing maps the file any more."""
    if vma.anon_vma is not None:
        await _change_tree(AnonVma(vma.anon_vma), old, new)
    return vma.file is not None and await _change_tree(IMmap(vma.file), old, new)


async def _change_tree(tree: AnonVma | IMmap, old: Vma | None, new: tuple[Vma, ...]) -> bool:
    empty = bool(await traps.sleep_until(_change, tree.rwsem, tree, args=(tree.rwsem.name, old, new)))
    await up_write(tree.rwsem)
    return empty


async def link_file_vma(vma: Vma) -> None:
    """A new mapping of a file joins the trees (vma_link_file; and anon_vma_prepare, if it is private)."""
    await _change_trees(vma, None, (vma,))


async def anon_vma_fork(child: Vma) -> None:
    """The child's VMA joins the trees behind its parent's, before any entry is copied."""
    await _change_trees(child, None, (child,))


async def unlink_anon_vmas(vma: Vma, left: tuple[Vma, ...] = ()) -> bool:
    """The VMA leaves its trees, the file's with the anonymous one (unlink_file_vma); `left` are the parts of it that stay.

    True where it maps a file that nothing maps any more.
    """
    return await _change_trees(vma, vma, left)


def _read_lock(holders: int, tree: tuple[Vma, ...], name: str) -> Outcome:
    return None if holders < 0 else ((holders + 1, tree), tree, LockTaken(name, LockMode.READ))


async def rmap_walk_begin(tree: AnonVma | IMmap, index: int, pages: int = 1) -> tuple[tuple[Vma, int], ...]:
    """Take the tree's rwsem for reading: the VMAs that show some of the pages from `index` on, parents first, each with the
    address of the first of them that it shows.
    """
    vmas: tuple[Vma, ...] = await traps.sleep_until(_read_lock, tree.rwsem, tree, args=(tree.rwsem.name,))
    return tuple((vma, shown.start) for vma in vmas if (shown := shows(vma, index, pages)))


def shows(vma: Vma, index: int, pages: int) -> range:
    """The addresses at which a VMA shows pages from `index` on (vma_address, vma_address_end)."""
    first = vma.start + index - vma.pgoff
    return range(max(first, vma.start), min(first + pages, vma.end))


def _write_lock(holders: int, tree: tuple[Vma, ...], name: str) -> Outcome:
    return None if holders else ((-1, tree), tree, LockTaken(name, LockMode.WRITE))


async def rmap_lock_write(tree: AnonVma | IMmap) -> tuple[Vma, ...]:
    """anon_vma_lock_write: the VMAs in the tree, as they stay until up_write of its rwsem."""
    return await traps.sleep_until(_write_lock, tree.rwsem, tree, args=(tree.rwsem.name,))  # type: ignore[no-any-return]


async def rmap_walk_end(tree: AnonVma | IMmap) -> None:
    await up_read(tree.rwsem)


def _place(f: FolioState) -> tuple[AnonVma | IMmap, int] | None:
    if f.index is None:
        return None
    if f.file is not None:
        return IMmap(f.file), f.index
    return None if f.anon_vma is None else (AnonVma(f.anon_vma), f.index)


def _read(f: FolioState) -> Outcome:
    return (f,), (f.mapcount > 0, _place(f)), FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_mapping_place(folio: Folio) -> tuple[bool, tuple[AnonVma | IMmap, int] | None]:
    """Whether the folio is mapped, and its place in the reverse map, if it ever had one. The page lock keeps that stable."""
    return await traps.step(_read, folio)  # type: ignore[no-any-return]
