"""What walkers of page tables do about a leaf of the middle level: mm/huge_memory.c (7.3).

    zap_huge_pmd, copy_huge_pmd (fork), change_huge_pmd (mprotect), move_huge_pmd (mremap), madvise_free_huge_pmd

Rules:
- Each takes the page-table lock, looks, and answers whether the leaf is dealt with; if it is none any more, its caller goes on
  with the page table. A range that is not all of the leaf's is not for these: its callers split the leaf first.
- A migration entry is never more than an entry: its folio is the migrator's. A leaf of a device-private folio is a mapping and a
  reference, but has no translation.
- The deposited page table goes with the leaf, and moves with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get, folio_trylock, folio_unlock
from migrate_vma_impl.mm.huge_memory_folio import split_folio
from migrate_vma_impl.mm.huge_memory_leaf import (
    flush_pmd_tlb_range,
    pmdp_huge_get_and_clear,
    pmdp_set_wrprotect,
    pte_alloc_one,
    pte_free,
    set_pmd_at,
    spans_leaf,
    split_huge_pmd,
)
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Vma
from migrate_vma_impl.mm.pgtable import hpage_nr, pmd_is_huge, pmd_slot, pmd_trans_huge, pmdp_get, pte_present, pte_wrprotect
from migrate_vma_impl.mm.rmap import folio_remove_rmap, folio_try_dup_anon_rmap
from migrate_vma_spec.events import FolioCleaned, FolioLazyfreed, FolioRead, PmdChanged
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel
    from migrate_vma_impl.mm.mprotect import Change


async def pmd_trans_huge_lock(kernel: Kernel, vma: Vma, addr: int) -> Pte | None:
    """pmd_trans_huge_lock: the leaf at `addr`, of any kind, with the page-table lock; None, without it, where none hangs."""
    await spin_lock(vma.mm.ptl)
    pmd = await pmdp_get(kernel, vma.mm, addr)
    if pmd_is_huge(pmd):
        return pmd
    await spin_unlock(vma.mm.ptl)
    return None


def _folio(pmd: Pte) -> Folio | None:
    return None if pmd.pfn is None else Folio(pmd.pfn)


# ---- zap -------------------------------------------------------------------------------------------------------------


async def zap_huge_pmd(kernel: Kernel, vma: Vma, addr: int, gathered: list[Folio]) -> bool | None:
    """Remove the leaf; a folio that is to be put behind the flush goes into `gathered`. Whether a flush is due; None: no leaf."""
    leaf = await pmd_trans_huge_lock(kernel, vma, addr)
    if leaf is None:
        return None
    folio = _folio(leaf)
    pmd, _ = await pmdp_huge_get_and_clear(kernel, vma.mm, addr, None)
    if folio is not None and pmd.kind is not PteKind.MIGRATION:
        await folio_remove_rmap(folio, vma, addr, pages=hpage_nr(kernel))
        if pte_present(pmd):
            gathered.append(folio)
        else:
            await swap.folio_put(kernel, folio)
    await pte_free(kernel, vma.mm)
    await spin_unlock(vma.mm.ptl)
    return pte_present(pmd)


# ---- fork ------------------------------------------------------------------------------------------------------------


async def copy_huge_pmd(kernel: Kernel, child: Vma, parent: Vma, addr: int) -> bool:
    """Copy the leaf that the parent has at `addr`. False: there is a page table by now, or the folio is pinned, so that its leaf
    was split: the entries are copied one by one.
    """
    await pte_alloc_one(kernel, child.mm)
    await spin_lock(child.mm.ptl)
    await spin_lock(parent.mm.ptl)
    pmd = await pmdp_get(kernel, parent.mm, addr)
    copied = None
    if pmd_trans_huge(pmd):
        copied = await _copy_present(kernel, child, parent, addr, pmd)
    elif pmd_is_huge(pmd):
        copied = await _copy_not_present(kernel, child, parent, addr, pmd)
    if copied is not None:
        keep = bool(child.flags & VmFlags.UFFD_WP)
        await set_pmd_at(kernel, child.mm, addr, copied if keep else evolve(copied, uffd_wp=False))
    else:
        await pte_free(kernel, child.mm)
    await spin_unlock(parent.mm.ptl)
    await spin_unlock(child.mm.ptl)
    if copied is None and pmd_is_huge(pmd):
        await split_huge_pmd(kernel, parent, addr)
    return copied is not None


async def _copy_present(kernel: Kernel, child: Vma, parent: Vma, addr: int, pmd: Pte) -> Pte | None:
    """The child's leaf, read-only as the parent's is now; None for a pinned folio."""
    folio = _folio(pmd)
    if folio is not None:
        await folio_get(folio)
        if not await folio_try_dup_anon_rmap(folio, child, addr, pages=hpage_nr(kernel)):
            await swap.folio_put(kernel, folio)
            return None
    await pmdp_set_wrprotect(kernel, parent.mm, addr)
    return evolve(pte_wrprotect(pmd), young=False)


async def _copy_not_present(kernel: Kernel, child: Vma, parent: Vma, addr: int, pmd: Pte) -> Pte:
    """copy_huge_non_present_pmd: readable in both, and, unlike an entry of a page table, soft-dirty still if it was.

    A device-private folio is referenced and mapped once more; that of a migration entry is the migrator's.
    """
    new = evolve(kernel.generation.steps.forked_entry(pmd), soft_dirty=pmd.soft_dirty)
    if new != pmd:
        await set_pmd_at(kernel, parent.mm, addr, new)
    folio = _folio(pmd)
    if pmd.kind is PteKind.DEVICE_PRIVATE and folio is not None:
        await folio_get(folio)
        await folio_try_dup_anon_rmap(folio, child, addr, pages=hpage_nr(kernel))
    return new


# ---- mprotect --------------------------------------------------------------------------------------------------------

ChangedPte = Callable[[Vma, Pte, bool, "Change"], Pte]
"""What protection makes of a present entry: its VMA, the entry, whether the page is exclusive, what is asked for."""


def _change(old: Pte, *rest: Any) -> Outcome:
    *head, addr, pages, vma, change, changed = rest
    new: Pte = changed(vma, old, bool(head) and head[0].exclusive, change)
    return (new, *head), (old, new), PmdChanged(vma.mm.number, addr, pages, old, new)


async def change_huge_pmd(kernel: Kernel, vma: Vma, addr: int, change: Change, changed: ChangedPte) -> tuple[Pte, Pte] | None:
    """Give the leaf the protection of its VMA, present ones by `changed`. The leaf before and after; None: no leaf.

    A present one changes in one step, for page walkers go on meanwhile (pmdp_modify_prot: pmdp_invalidate_ad).
    """
    pmd = await pmd_trans_huge_lock(kernel, vma, addr)
    if pmd is None:
        return None
    if pmd_trans_huge(pmd):
        slot, folio = pmd_slot(kernel, vma.mm, addr), _folio(pmd)
        keys = (slot,) if folio is None else (slot, folio)
        args = (slot.addr, hpage_nr(kernel), vma, change, changed)
        result: tuple[Pte, Pte] = await traps.step(_change, *keys, args=args)
    else:
        result = (pmd, kernel.generation.steps.protected_entry(pmd, change))
        if result[1] != pmd:
            await set_pmd_at(kernel, vma.mm, addr, result[1])
    await spin_unlock(vma.mm.ptl)
    return result


# ---- mremap ----------------------------------------------------------------------------------------------------------


async def move_huge_pmd(kernel: Kernel, vma: Vma, old: int, new: int) -> bool:
    """Move the leaf at `old` to `new`, where nothing hangs. False: something does, or the leaf is none any more."""
    if (await pmdp_get(kernel, vma.mm, new)).kind is not PteKind.NONE:
        return False
    leaf = await pmd_trans_huge_lock(kernel, vma, old)
    if leaf is None:
        return False
    pmd, _ = await pmdp_huge_get_and_clear(kernel, vma.mm, old, None)
    await set_pmd_at(kernel, vma.mm, new, kernel.generation.steps.moved_entry(vma, pmd))
    if pte_present(pmd):
        await flush_pmd_tlb_range(kernel, vma.mm, old)
    await spin_unlock(vma.mm.ptl)
    return True


# ---- MADV_FREE -------------------------------------------------------------------------------------------------------


def _alone(f: FolioState) -> Outcome:
    return (f,), f.mapcount == 1, FolioRead(f.pfn, f.refcount, f.mapcount)


async def madvise_free_huge_pmd(kernel: Kernel, vma: Vma, addr: int, end: int) -> bool:
    """MADV_FREE of [addr, end) below one leaf. True: all of it is done; else the page table, if there is one now, is looked at.

    What is not present is left alone, and so is the huge zero page; a folio that others map too, or that is locked; one of which
    the range has a part is split.
    """
    pmd = await pmd_trans_huge_lock(kernel, vma, addr)
    if pmd is None:
        return False
    folio = _folio(pmd)
    if folio is None or not pmd_trans_huge(pmd) or not await traps.step(_alone, folio) or not await folio_trylock(folio):
        await spin_unlock(vma.mm.ptl)
        return False
    if not spans_leaf(kernel, addr, end):
        await _split_for_free(kernel, vma, folio)
        return False
    await traps.step(_clean, folio)
    await folio_unlock(folio)
    if pmd.young or pmd.dirty:
        last, _ = await pmdp_huge_get_and_clear(kernel, vma.mm, addr, None)
        await flush_pmd_tlb_range(kernel, vma.mm, addr)
        await set_pmd_at(kernel, vma.mm, addr, evolve(last, young=False, dirty=False))
    await traps.step(_lazyfree, folio)
    await spin_unlock(vma.mm.ptl)
    return True


def _clean(f: FolioState) -> Outcome:
    event = FolioCleaned(f.pfn) if f.dirty else FolioRead(f.pfn, f.refcount, f.mapcount)
    return (evolve(f, dirty=False),), None, event


def _lazyfree(f: FolioState) -> Outcome:
    return (evolve(f, lazyfree=True),), None, FolioLazyfreed(f.pfn)


async def _split_for_free(kernel: Kernel, vma: Vma, folio: Folio) -> None:
    """Split a locked folio whose leaf's page-table lock is held, which is dropped."""
    await folio_get(folio)
    await spin_unlock(vma.mm.ptl)
    await split_folio(kernel, folio)
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
