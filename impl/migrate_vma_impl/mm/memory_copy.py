"""fork's copy of page-table entries: mm/memory.c:copy_page_range and below (7.3).

Rules:
- Both page-table locks are held, the child's first; mmap_lock of both address spaces is held for writing by the caller.
- After the copy neither side may write a page of a private mapping, whatever form its entry has.
- userfaultfd is taken to follow forks, so the child keeps the uffd-wp bit of every entry.
- Present entries are flushed by the caller, once for the whole address space, before mmap_lock is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm import memcontrol, mmu_notifier, swap
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.highmem import copy_highpage
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import Folio, Vma
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import mk_pte, pte_mkdirty, pte_wrprotect, ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_new_anon_rmap, folio_try_dup_anon_rmap
from migrate_vma_spec.vocabulary import Errno, NotifyReason, Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def is_cow_mapping(vma: Vma) -> bool:
    return bool(vma.flags & VmFlags.WRITE) and not vma.flags & VmFlags.SHARED


async def copy_page_range(kernel: Kernel, child: Vma, parent: Vma) -> int:
    """Copy the entries of one VMA, inside a notifier bracket for the protection that the parent loses."""
    cow = is_cow_mapping(parent)
    if cow:
        await mmu_notifier.invalidate_range_start(kernel, parent.mm, parent.start, parent.end, NotifyReason.PROTECTION)
    result = await _copy_pte_range(kernel, child, parent)
    if cow:
        await mmu_notifier.invalidate_range_end(kernel, parent.mm, parent.start, parent.end)
    return result


async def _copy_pte_range(kernel: Kernel, child: Vma, parent: Vma) -> int:
    """Entry by entry; a pinned page needs a page for its copy, which is allocated with the locks dropped."""
    addr = parent.start
    while addr < parent.end:
        addr, pinned = await _copy_until_pinned(kernel, child, parent, addr, None)
        if pinned:
            copy = await alloc_page(kernel, "a page for fork's copy of a pinned page")
            if copy is None:
                return -Errno.ENOMEM
            await memcontrol.mem_cgroup_charge(kernel, copy)
            addr, _ = await _copy_until_pinned(kernel, child, parent, addr, copy)
    return 0


async def _copy_until_pinned(kernel: Kernel, child: Vma, parent: Vma, addr: int, copy: Folio | None) -> tuple[int, bool]:
    """Copy from `addr` until the end, or to a pinned page that there is no page for; with `copy`, that one entry alone."""
    end = parent.end if copy is None else addr + 1
    await spin_lock(child.mm.ptl)
    await spin_lock(parent.mm.ptl)
    done = True
    while addr < end and done:
        done = await _copy_one_pte(kernel, child, parent, addr, copy)
        addr += done
    await spin_unlock(parent.mm.ptl)
    await spin_unlock(child.mm.ptl)
    return addr, not done


async def _copy_one_pte(kernel: Kernel, child: Vma, parent: Vma, addr: int, copy: Folio | None) -> bool:
    pte = await ptep_get(parent.mm, addr)
    if pte.kind is PteKind.PRESENT and pte.pfn is not None:
        return await _copy_present_pte(kernel, child, parent, addr, pte, Folio(pte.pfn), copy)
    if copy is not None:
        await swap.folio_put(kernel, copy)
    if pte.kind is PteKind.ZERO:
        await set_pte_at(child.mm, addr, evolve(pte, young=False))
    elif pte.kind is not PteKind.NONE:
        await _copy_nonpresent_pte(kernel, child, parent, addr, pte)
    return True


async def _copy_present_pte(
    kernel: Kernel, child: Vma, parent: Vma, addr: int, pte: Pte, folio: Folio, copy: Folio | None
) -> bool:
    """False for a pinned page, when there is no page to copy it to."""
    await folio_get(folio)
    if not await folio_try_dup_anon_rmap(folio, child, addr):
        await swap.folio_put(kernel, folio)
        if copy is not None:
            await _copy_present_page(kernel, child, addr, folio, copy)
        return copy is not None
    if copy is not None:
        await swap.folio_put(kernel, copy)
    if is_cow_mapping(parent) and pte.write:
        await kernel.generation.steps.write_protect_parent(parent.mm, addr)
        pte = pte_wrprotect(pte)
    await set_pte_at(child.mm, addr, evolve(pte, young=False))
    return True


async def _copy_present_page(kernel: Kernel, child: Vma, addr: int, folio: Folio, copy: Folio) -> None:
    """The child gets a page of its own at once, and the parent keeps the pinned one, exclusive and writable."""
    await copy_highpage(copy, folio)
    await folio_mark_uptodate(copy)
    await folio_add_new_anon_rmap(copy, child, addr)
    await swap.folio_add_lru(kernel, copy)
    write = bool(child.flags & VmFlags.WRITE)
    await set_pte_at(child.mm, addr, pte_mkdirty(evolve(mk_pte(copy), write=write)))


def forked_entry(pte: Pte) -> Pte:
    """What fork leaves of a migration or device-private entry of a private mapping, in parent and child.

    Readable, whatever it was. A device-private entry that loses its write permission loses soft-dirty with it.
    """
    if pte.kind is PteKind.MIGRATION:
        return evolve(pte, write=False, exclusive=False)
    return evolve(pte, write=False, soft_dirty=False) if pte.write else pte


async def _copy_nonpresent_pte(kernel: Kernel, child: Vma, parent: Vma, addr: int, pte: Pte) -> None:
    """A device-private page is referenced and mapped once more. The page of a migration entry is not: it is the migrator's."""
    if pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None:
        await folio_get(Folio(pte.pfn))
        await folio_try_dup_anon_rmap(Folio(pte.pfn), child, addr)
    if is_cow_mapping(parent):
        new = kernel.generation.steps.forked_entry(pte)
        if new != pte:
            await set_pte_at(parent.mm, addr, new)
            pte = new
    await set_pte_at(child.mm, addr, pte)
