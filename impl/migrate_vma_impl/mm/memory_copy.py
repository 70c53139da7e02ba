"""fork's copy of page-table entries: mm/memory.c:copy_page_range and below (7.3).

Rules:
- Both page-table locks are held, the child's first; mmap_lock of both address spaces is held for writing by the caller.
- After the copy neither side may write a page of a private mapping, whatever form its entry has.
- The child keeps an entry's uffd-wp bit, and a marker, only if userfaultfd follows the fork, which its VMA's flags tell.
- Present entries are flushed by the caller, once for the whole address space, before mmap_lock is dropped.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import memcontrol, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get, page_folio
from migrate_vma_impl.mm.gup_seq import write_protect_seq_begin, write_protect_seq_end
from migrate_vma_impl.mm.highmem import copy_highpage
from migrate_vma_impl.mm.huge_memory_walk import copy_huge_pmd
from migrate_vma_impl.mm.memory_exclusive import try_restore_exclusive_pte
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import Folio, Vma
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import (
    mk_pte,
    pmd_is_huge,
    pmd_ranges,
    pmdp_get,
    pte_alloc,
    pte_mkdirty,
    pte_wrprotect,
    ptep_get,
    set_pte_at,
)
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap, folio_try_dup_anon_rmap
from migrate_vma_impl.mm.swapfile import swap_duplicate
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class Copied(enum.Enum):
    """What became of one entry."""

    DONE = "copied"
    PINNED = "a pinned page needs a page for its copy"
    LOCKED = "a device-exclusive page is locked, and cannot be made an ordinary one"


def is_cow_mapping(vma: Vma) -> bool:
    """Private: VM_MAYWRITE is set for every private mapping here, for mprotect may make any of them writable."""
    return not vma.flags & VmFlags.SHARED


async def copy_page_range(kernel: Kernel, child: Vma, parent: Vma) -> int:
    """Copy the entries of one VMA, inside a notifier bracket for the protection that the parent loses.

    Those of a shared mapping are not copied: a fault finds the same page in the file (vma_needs_copy).
    """
    if parent.anon_vma is None:
        return 0
    cow = is_cow_mapping(parent)
    if cow:
        await mmu_notifier.invalidate_range_start(kernel, parent.mm, parent.start, parent.end, NotifyReason.PROTECTION)
        await write_protect_seq_begin(kernel, parent.mm)
    result = await _copy_pmd_range(kernel, child, parent)
    if cow:
        await write_protect_seq_end(kernel, parent.mm)
        await mmu_notifier.invalidate_range_end(kernel, parent.mm, parent.start, parent.end)
    return result


async def _copy_pmd_range(kernel: Kernel, child: Vma, parent: Vma) -> int:
    """Leaves are copied whole, but for those of pinned folios; below page tables entry by entry."""
    for start, end in pmd_ranges(kernel, parent.start, parent.end):
        if pmd_is_huge(await pmdp_get(kernel, parent.mm, start)) and await copy_huge_pmd(kernel, child, parent, start):
            continue
        if (await pmdp_get(kernel, parent.mm, start)).kind is not PteKind.NONE:
            await pte_alloc(kernel, child.mm, start)
            result = await _copy_pte_range(kernel, child, parent, start, end)
            if result:
                return result
    return 0


async def _copy_pte_range(kernel: Kernel, child: Vma, parent: Vma, start: int, end: int) -> int:
    """Entry by entry; a pinned page needs a page for its copy, which is allocated with the locks dropped.

    A device-exclusive page that somebody has locked ends the fork: copy_pmd_range makes -ENOMEM of the -EBUSY.
    """
    addr = start
    while addr < end:
        addr, copied = await _copy_until_pinned(kernel, child, parent, addr, end, None)
        if copied is Copied.LOCKED:
            return -Errno.ENOMEM
        if copied is Copied.PINNED:
            copy = await alloc_page(kernel, "a page for fork's copy of a pinned page")
            if copy is None:
                return -Errno.ENOMEM
            await memcontrol.mem_cgroup_charge(kernel, copy)
            addr, _ = await _copy_until_pinned(kernel, child, parent, addr, addr + 1, copy)
    return 0


async def _copy_until_pinned(
    kernel: Kernel, child: Vma, parent: Vma, addr: int, end: int, copy: Folio | None
) -> tuple[int, Copied]:
    """Copy from `addr` until `end`, or to a pinned page that there is no page for; with `copy`, that one entry alone."""
    await spin_lock(child.mm.ptl)
    await spin_lock(parent.mm.ptl)
    copied = Copied.DONE
    while addr < end and copied is Copied.DONE:
        copied = await _copy_one_pte(kernel, child, parent, addr, copy)
        addr += copied is Copied.DONE
    await spin_unlock(parent.mm.ptl)
    await spin_unlock(child.mm.ptl)
    return addr, copied


async def _copy_one_pte(kernel: Kernel, child: Vma, parent: Vma, addr: int, copy: Folio | None) -> Copied:
    pte = await ptep_get(parent.mm, addr)
    if pte.kind is PteKind.EXCLUSIVE:
        restored = await try_restore_exclusive_pte(kernel, parent, addr, pte)
        if restored is None:
            return Copied.LOCKED
        pte = restored
    if pte.kind is PteKind.PRESENT and pte.pfn is not None:
        return await _copy_present_pte(kernel, child, parent, addr, pte, Folio(pte.pfn), copy)
    if copy is not None:
        await swap.folio_put(kernel, copy)
    if pte.kind is PteKind.ZERO:
        await set_pte_at(child.mm, addr, for_child(child, evolve(pte, young=False)))
    elif pte.kind is not PteKind.NONE:
        await _copy_nonpresent_pte(kernel, child, parent, addr, pte)
    return Copied.DONE


async def _copy_present_pte(
    kernel: Kernel, child: Vma, parent: Vma, addr: int, pte: Pte, page: Folio, copy: Folio | None
) -> Copied:
    """PINNED for a pinned page, when there is no page to copy it to."""
    folio = await page_folio(kernel, page)
    await folio_get(folio)
    if not await folio_try_dup_anon_rmap(folio, child, addr, page=page):
        await swap.folio_put(kernel, folio)
        if copy is not None:
            await _copy_present_page(kernel, child, addr, page, copy)
        return Copied.PINNED if copy is None else Copied.DONE
    if copy is not None:
        await swap.folio_put(kernel, copy)
    if is_cow_mapping(parent) and pte.write:
        await kernel.generation.steps.write_protect_parent(parent.mm, addr)
        pte = pte_wrprotect(pte)
    await set_pte_at(child.mm, addr, for_child(child, evolve(pte, young=False)))
    return Copied.DONE


def for_child(child: Vma, pte: Pte) -> Pte:
    """What the child gets of an entry: without userfaultfd's bit where that does not watch the child."""
    if child.flags & VmFlags.UFFD_WP:
        return pte
    return PTE_NONE if pte.kind is PteKind.MARKER else evolve(pte, uffd_wp=False)


async def _copy_present_page(kernel: Kernel, child: Vma, addr: int, folio: Folio, copy: Folio) -> None:
    """The child gets a page of its own at once, and the parent keeps the pinned one, exclusive and writable."""
    await copy_highpage(copy, folio)
    await folio_mark_uptodate(copy)
    await folio_add_new_anon_rmap(copy, child, addr)
    await swap.folio_add_lru(kernel, copy)
    write = bool(child.flags & VmFlags.WRITE)
    await set_pte_at(child.mm, addr, pte_mkdirty(evolve(mk_pte(copy), write=write)))


def forked_entry(pte: Pte) -> Pte:
    """What fork leaves of a migration, swap or device-private entry of a private mapping, in parent and child.

    Readable and shared, whatever it was. A device-private entry that loses its write permission loses soft-dirty with it.
    """
    if pte.kind in (PteKind.MIGRATION, PteKind.SWAP):
        return evolve(pte, write=False, exclusive=False)
    return evolve(pte, write=False, soft_dirty=False) if pte.write else pte


async def _copy_nonpresent_pte(kernel: Kernel, child: Vma, parent: Vma, addr: int, pte: Pte) -> None:
    """A device-private page is referenced and mapped once more. The page of a migration entry is not: it is the migrator's.

    A swap slot has one more entry; it is shared from now on, whether or not its memory may be written at present.
    """
    if pte.kind is PteKind.SWAP and pte.swap is not None:
        await swap_duplicate(pte.swap)
    if pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None:
        folio = await page_folio(kernel, Folio(pte.pfn))
        await folio_get(folio)
        await folio_try_dup_anon_rmap(folio, child, addr, page=Folio(pte.pfn))
    if is_cow_mapping(parent) or pte.kind is PteKind.SWAP:
        new = kernel.generation.steps.forked_entry(pte)
        if new != pte:
            await set_pte_at(parent.mm, addr, new)
            pte = new
    copied = for_child(child, pte)
    if copied.kind is not PteKind.NONE:
        await set_pte_at(child.mm, addr, copied)
