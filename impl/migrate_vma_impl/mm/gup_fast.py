"""The lockless walk of get_user_pages_fast (mm/gup.c, 7.3).

Rules:
- No lock is held: a reference is tried on whatever the entry named, and then the entry must be the same still. Who changes an
  entry does it the other way round: clears the entry, then looks for references and pins.
- What is special, absent, not writable though it is to be written, or must be unshared ends the walk; the slow path goes on.
- fork gives up exclusivity before it takes the write permission, so a pin in between must not count (`gup_seq.py`).
- The kernel walks with interrupts off, which keeps page tables from being freed under it. Page tables are not freed under a walk
  here, and nothing waits for its interrupts: flushes that wait for them would hide orders that other architectures have.
- There is no such walk where Config.gup_fast is not set (CONFIG_HAVE_GUP_FAST), and no slot for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_try_get, page_folio
from migrate_vma_impl.mm.gup_grab import Foll, Page, folio_add_pins, gup_put_folio, must_unshare, unpin_user_pages, unshares
from migrate_vma_impl.mm.gup_seq import write_protect_seq_retry, write_protect_seq_try_begin
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm
from migrate_vma_impl.mm.pgtable import hpage_nr, leaf_page, pmdp_get, ptep_get
from migrate_vma_spec.events import FolioRead
from migrate_vma_spec.vocabulary import Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def gup_fast(kernel: Kernel, mm: Mm, addr: int, nr: int, flags: Foll) -> list[Page]:
    """The pages from `addr` on that could be had without a lock; none where fork may have interfered with a pin."""
    if not kernel.config.gup_fast:
        return []
    pinning = bool(flags & Foll.PIN)
    if pinning and not await write_protect_seq_try_begin(mm):
        return []
    pages: list[Page] = []
    while len(pages) < nr and await _gup_fast_pmd(kernel, mm, addr, nr, flags, pages):
        pass
    if pinning and await write_protect_seq_retry(mm):
        await unpin_user_pages(kernel, pages)
        return []
    return pages


async def _gup_fast_pmd(kernel: Kernel, mm: Mm, start: int, nr: int, flags: Foll, pages: list[Page]) -> bool:
    """The pages below the next entry of the middle level; False where one of them could not be had."""
    addr = start + len(pages)
    if addr >= kernel.config.addresses:
        return False
    pmd = await pmdp_get(kernel, mm, addr)
    if pmd.kind is PteKind.TABLE:
        return await _gup_fast_pte(kernel, mm, addr, pmd, flags, pages)
    offset = addr % hpage_nr(kernel)
    leaf = leaf_page(pmd, offset)
    if not _permitted(leaf, flags) or leaf.pfn is None:
        return False
    refs = min(start + nr - addr, hpage_nr(kernel) - offset)
    head = await try_grab_folio_fast(kernel, Folio(leaf.pfn), refs, flags)
    if head is None:
        return False
    same = await pmdp_get(kernel, mm, addr) == pmd
    if not same or (not pmd.write and await _must_unshare(head, head, flags)):
        for _ in range(refs):
            await gup_put_folio(kernel, head, flags)
        return False
    pages += [Folio(leaf.pfn + i) for i in range(refs)]
    return True


async def _gup_fast_pte(kernel: Kernel, mm: Mm, addr: int, pmd: Pte, flags: Foll, pages: list[Page]) -> bool:
    pte = await ptep_get(mm, addr)
    if not _permitted(pte, flags) or pte.pfn is None:
        return False
    page = Folio(pte.pfn)
    head = await try_grab_folio_fast(kernel, page, 1, flags)
    if head is None:
        return False
    same = await pmdp_get(kernel, mm, addr) == pmd and await ptep_get(mm, addr) == pte
    if not same or (not pte.write and await _must_unshare(head, page, flags)):
        await gup_put_folio(kernel, head, flags)
        return False
    pages.append(page)
    return True


def _permitted(entry: Pte, flags: Foll) -> bool:
    """pte_access_permitted of an entry that is not special, as the zero page's is."""
    return entry.kind is PteKind.PRESENT and (entry.write or not flags & Foll.WRITE)


async def try_grab_folio_fast(kernel: Kernel, page: Folio, refs: int, flags: Foll) -> Folio | None:
    """References on a page that may be free by now, or another one's; pins, if asked for, before the entry is looked at again."""
    head = await _try_get_folio(kernel, page, refs)
    if head is None or not flags & Foll.PIN:
        return head
    if flags & Foll.LONGTERM and kernel.is_device_coherent(head):
        for _ in range(refs):
            await swap.folio_put(kernel, head)
        return None
    await folio_add_pins(head, refs)
    return head


async def _try_get_folio(kernel: Kernel, page: Folio, refs: int) -> Folio | None:
    """try_get_folio: the folio may be split, or freed, between the look for its head and the reference."""
    while True:
        head = await page_folio(kernel, page)
        for i in range(refs):
            if not await folio_try_get(head):
                await _put_back(kernel, head, i)
                return None
        if await page_folio(kernel, page) == head:
            return head
        await _put_back(kernel, head, refs)


async def _put_back(kernel: Kernel, head: Folio, refs: int) -> None:
    for _ in range(refs):
        await swap.folio_put(kernel, head)


def _shared(f: FolioState, *rest: Any) -> Outcome:
    *tail, flags = rest
    frames = (f, *tail)
    # Without a VMA it is not known whether the mapping is private, and taken to be.
    return frames, must_unshare(f, frames[-1], flags, vma_is_cow=True), FolioRead(f.pfn, f.refcount, f.mapcount)


async def _must_unshare(head: Folio, page: Folio, flags: Foll) -> bool:
    if not unshares(flags):
        return False
    return bool(await traps.step(_shared, *((head,) if head == page else (head, page)), args=(flags,)))
