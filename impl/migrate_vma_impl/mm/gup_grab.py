"""The references that GUP takes and drops: flags, try_grab_folio, gup_put_folio and the unpin calls (mm/gup.c, 7.3).

Rules:
- A pin is a reference that folio_maybe_dma_pinned can tell from others. The kernel counts it as 1024 references, here `pins`
  counts it beside the one reference. A folio keeps both counts in its head.
- An anonymous page may be pinned only while it is exclusive: what DMA reads or writes is then what the process has. A pin for
  reading finds pages that are shared, and must unshare them first.
- The zero page is never counted: it is None here, and all that takes a `Page` takes it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_lock, folio_unlock, page_folio
from migrate_vma_impl.mm.mm_types import Folio, FolioState
from migrate_vma_impl.mm.rmap import folio_mark_dirty
from migrate_vma_spec.events import FolioGot, FolioRead, Oops
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

Page = Folio | None
"""A page by its own frame; None for the zero page."""


class Foll(enum.IntFlag):
    """FOLL_ flags: what a caller asks (WRITE, GET, PIN, LONGTERM, SPLIT_PMD), and what GUP knows by itself."""

    NONE = 0
    WRITE = 1 << 0
    GET = 1 << 1
    LONGTERM = 1 << 8
    SPLIT_PMD = 1 << 9
    TOUCH = 1 << 16
    PIN = 1 << 19
    UNLOCKABLE = 1 << 21


class Grab(enum.Enum):
    """What became of a try to take references under the page-table lock."""

    DONE = "done"
    CLEAN = "done, and the folio is to be marked dirty"
    UNSHARE = "the page must be unshared first"


def unshares(flags: Foll) -> bool:
    """Whether gup_must_unshare looks at the page at all: a pin for writing finds it mapped writable, and so exclusive."""
    return flags & (Foll.WRITE | Foll.PIN) == Foll.PIN


def must_unshare(head: FolioState, page: FolioState, flags: Foll, vma_is_cow: bool) -> bool:
    """gup_must_unshare of a read-only entry: an anonymous page that is shared; for long, any other page of a private mapping."""
    if not unshares(flags):
        return False
    if head.anon_vma is None:
        return bool(flags & Foll.LONGTERM) and vma_is_cow
    return not page.exclusive


def _grab(f: FolioState, *rest: Any) -> Outcome:
    """`rest` is the page's own slot if it is a tail, then the number of references, the flags, and whether the entry is
    read-only in a private mapping that may be written (None: it is writable).
    """
    *tail, refs, flags, read_only = rest
    frames = (f, *tail)
    if f.refcount <= 0:
        return frames, Grab.DONE, Oops("a free page is pinned", f.pfn)
    if read_only is not None and must_unshare(f, frames[-1], flags, read_only):
        return frames, Grab.UNSHARE, FolioRead(f.pfn, f.refcount, f.mapcount)
    got = evolve(f, refcount=f.refcount + refs, pins=f.pins + (refs if flags & Foll.PIN else 0))
    dirties = Foll.TOUCH | Foll.WRITE
    answer = Grab.CLEAN if flags & dirties == dirties and not f.dirty else Grab.DONE
    return (got, *tail), answer, FolioGot(f.pfn, got.refcount)


async def try_grab_folio(kernel: Kernel, page: Folio, refs: int, flags: Foll, read_only: bool | None = None) -> Grab:
    """try_grab_folio behind gup_must_unshare, in one step, for both are under the page-table lock of an entry that maps the page.

    `read_only` is None for a writable entry, else whether its mapping is a COW mapping.
    """
    folio = await page_folio(kernel, page)
    keys = (folio,) if folio == page else (folio, page)
    return await traps.step(_grab, *keys, args=(refs, flags, read_only))  # type: ignore[no-any-return]


def _add_pins(f: FolioState, refs: int) -> Outcome:
    return (evolve(f, pins=f.pins + refs),), None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_add_pins(folio: Folio, refs: int) -> None:
    """Make references that are held already into pins."""
    await traps.step(_add_pins, folio, args=(refs,))


def _unpin(f: FolioState) -> Outcome:
    if f.pins <= 0:
        return (f,), None, Oops("a page is unpinned that is not pinned", f.pfn)
    return (evolve(f, pins=f.pins - 1),), None, FolioRead(f.pfn, f.refcount, f.mapcount)


async def gup_put_folio(kernel: Kernel, page: Page, flags: Foll) -> None:
    """Drop one reference, and its pin if it is one. The page may have been unmapped since, and then goes with it."""
    if page is None:
        return
    folio = await page_folio(kernel, page)
    if flags & Foll.PIN:
        await traps.step(_unpin, folio)
    await swap.folio_put(kernel, folio)


async def unpin_user_page(kernel: Kernel, page: Page) -> None:
    await gup_put_folio(kernel, page, Foll.PIN)


async def unpin_user_pages(kernel: Kernel, pages: Sequence[Page]) -> None:
    for page in pages:
        await unpin_user_page(kernel, page)


def _is_dirty(f: FolioState) -> Outcome:
    return (f,), f.dirty, FolioRead(f.pfn, f.refcount, f.mapcount)


async def unpin_user_pages_dirty_lock(kernel: Kernel, pages: Sequence[Page]) -> None:
    """Unpin what was written through the pins: what is clean is made dirty under the page lock first."""
    for page in pages:
        if page is not None:
            folio = await page_folio(kernel, page)
            if not await traps.step(_is_dirty, folio):
                await folio_lock(folio)
                await folio_mark_dirty(folio)
                await folio_unlock(folio)
        await unpin_user_page(kernel, page)
