"""Copying and clearing whole pages: include/linux/highmem.h.

Contents are not in the state: the step names the frames that it reads or writes, so that its order against other steps on them
is explored, and says in the trace what it did.
"""

from __future__ import annotations

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState
from migrate_vma_spec.events import Oops, PageCleared, PageCopied


def _is_free(f: FolioState) -> bool:
    """Nobody has the page. A tail page keeps no count of its own."""
    return f.refcount <= 0 and f.head is None


def _copy(dst: FolioState, src: FolioState) -> Outcome:
    if _is_free(dst):
        return (dst, src), None, Oops("a free page is written", dst.pfn)
    return (dst, src), None, PageCopied(src.pfn, dst.pfn)


async def copy_highpage(dst: Folio, src: Folio) -> None:
    """copy_highpage: all of `src` to `dst`."""
    if dst == src:
        await traps.oops("a page is copied onto itself", src.pfn)
        return
    await traps.step(_copy, dst, src)


def _clear(f: FolioState) -> Outcome:
    if _is_free(f):
        return (f,), None, Oops("a free page is written", f.pfn)
    return (f,), None, PageCleared(f.pfn)


async def clear_highpage(folio: Folio) -> None:
    await traps.step(_clear, folio)


# ---- large folios ----------------------------------------------------------------------------------------------------


def folio_pages(folio: Folio, nr: int) -> tuple[Folio, ...]:
    """The `nr` pages of a folio, its head first."""
    return tuple(Folio(pfn) for pfn in range(folio.pfn, folio.pfn + nr))


async def folio_zero_user(folio: Folio, nr: int) -> None:
    """folio_zero_user: page by page (mm/memory.c)."""
    for page in folio_pages(folio, nr):
        await clear_highpage(page)


async def folio_copy(dst: Folio, src: Folio, nr: int) -> None:
    """folio_copy of `nr` pages, page by page (mm/util.c)."""
    for i in range(nr):
        await copy_highpage(Folio(dst.pfn + i), Folio(src.pfn + i))
