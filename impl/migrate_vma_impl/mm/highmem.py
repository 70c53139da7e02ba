"""Copying and clearing whole pages: include/linux/highmem.h.

Contents are not in the state: the step names the frames that it reads or writes, so that its order against other steps on them
is explored, and says in the trace what it did.
"""

from __future__ import annotations

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState
from migrate_vma_spec.events import Oops, PageCleared, PageCopied


def _copy(dst: FolioState, src: FolioState) -> Outcome:
    if dst.refcount <= 0:
        return (dst, src), None, Oops("a free page is written", dst.pfn)
    return (dst, src), None, PageCopied(src.pfn, dst.pfn)


async def copy_highpage(dst: Folio, src: Folio) -> None:
    """copy_highpage: all of `src` to `dst`."""
    if dst == src:
        await traps.oops("a page is copied onto itself", src.pfn)
        return
    await traps.step(_copy, dst, src)


def _clear(f: FolioState) -> Outcome:
    if f.refcount <= 0:
        return (f,), None, Oops("a free page is written", f.pfn)
    return (f,), None, PageCleared(f.pfn)


async def clear_highpage(folio: Folio) -> None:
    await traps.step(_clear, folio)
