"""What named kernels really have wrong where they migrate large folios and device memory: sets of parts on their generations.

    AS_SHIPPED["v7.3"]

Rules:
- Each was read in the source of the release that `patch_levels` of its generation names (6.1.176, 6.12.107, 7.2.13 and 7.3.4), in
  mm/migrate_device.c where nothing else is said. A docstring says the function, and what is wrong there.
- A part replaces one step of the mended kernel, whose step beside it says what would be right.
- What a kernel has wrong everywhere, the generation already says: that a loser spins, that every faulter takes a reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.generations import REFERENCED, WAITING, Generation, with_compound
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get, folio_lock, folio_nr_pages, folio_unlock, page_folio
from migrate_vma_impl.mm.huge_memory_folio import folio_split_unmapped, split_folio
from migrate_vma_impl.mm.huge_memory_leaf import split_huge_pmd_address
from migrate_vma_impl.mm.migrate_device_by_pfn import migrate_device_pfn_lock
from migrate_vma_impl.mm.migrate_device_collect import Walk, folio_of_fault, leave_lazy_mmu, locked_by_fault
from migrate_vma_impl.mm.migrate_mapping import Mapping as CacheMapping
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_impl.mm.pgtable import flush_cache_page, pte_present
from migrate_vma_impl.mm.rmap import folio_mark_dirty
from migrate_vma_spec.vocabulary import MIGRATE_PFN_COMPOUND, Pte

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- v6.1, v6.12 -----------------------------------------------------------------------------------------------------


async def keep_the_reference(kernel: Kernel, folio: Folio) -> None:
    """migrate_vma_collect_pmd, v6.1 to v6.18: the reference to a leaf's folio stays taken when its page lock cannot be had."""


async def dirty_as_read(folio: Folio, pte: Pte) -> None:
    """migrate_vma_collect_pmd, v6.1: pte_dirty is asked of device-private entries too, whose bits mean something else: on x86 a
    writable one looks dirty, which hides drivers that never say that their device wrote the page.
    """
    if pte.dirty if pte_present(pte) else pte.write:
        await folio_mark_dirty(folio)


async def leave_in_swap_cache(kernel: Kernel, folio: Folio) -> bool:
    """__migrate_device_pages, v6.1: an anonymous page that is still in the swap cache never goes to a device."""
    return False


async def mapping_as_it_was(kernel: Kernel, folio: Folio, before: CacheMapping) -> CacheMapping | None:
    """__migrate_device_pages, v6.12: folio_free_swap took the page out of the swap cache, and `mapping` still names it."""
    return before


# ---- v7.2, v7.3: collect ---------------------------------------------------------------------------------------------


async def leave_then_pin(kernel: Kernel, walk: Walk, folio: Folio) -> None:
    """migrate_vma_split_folio, v7.2: the reference is taken with the page-table lock dropped already, so that the folio may have
    been freed, or be another one. Nor is what was cleared flushed before.
    """
    await leave_lazy_mmu(kernel, walk.vma.mm)
    await spin_unlock(walk.vma.mm.ptl)
    if not locked_by_fault(folio, walk.fault_folio):
        await folio_get(folio)


async def pin_and_leave(kernel: Kernel, walk: Walk, folio: Folio) -> None:
    """migrate_vma_collect_pmd, v7.3: the page-table lock is dropped for a split with cleared entries not flushed yet; a CPU may
    go on storing to their pages while others find the entries gone.
    """
    if not locked_by_fault(folio, walk.fault_folio):
        await folio_get(folio)
    await leave_lazy_mmu(kernel, walk.vma.mm)
    await spin_unlock(walk.vma.mm.ptl)


async def split_with_blocking_lock(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """migrate_vma_split_folio, v7.3: page locks are waited for with those of pages collected before held. And the fault handler's
    lock is dropped by the split, and taken anew on the folio of the fault page: somebody else may be faster.
    """
    fault_folio = await folio_of_fault(kernel, fault_page)
    if folio != fault_folio:
        await folio_lock(folio)
    split = await split_folio(kernel, folio)
    holder = await folio_of_fault(kernel, fault_page)
    if holder is not None and holder != fault_folio:
        await folio_get(holder)
        await folio_lock(holder)
    if folio != (holder if split else fault_folio):
        await folio_unlock(folio)
        await swap.folio_put(kernel, folio)
    return split


async def fault_folio_as_it_was(kernel: Kernel, fault_page: Folio | None, before: Folio | None) -> Folio | None:
    """migrate_vma_collect_pmd, v7.3: the folio of the fault page is looked up once, and not again after its split. So that of the
    first page, which is unlocked by then, counts as locked by the fault handler, and is collected without a lock.
    """
    return before


async def split_leaf_with_both_references(kernel: Kernel, folio: Folio, fault_locked: bool) -> bool:
    """migrate_vma_collect_huge_pmd, v7.3: the fault handler's folio has the walk's reference besides the handler's, and a split
    counts one: it always fails, and a driver that does not ask for COMPOUND never brings the folio back.
    """
    split = await split_folio(kernel, folio)
    if not fault_locked:
        await folio_unlock(folio)
    await swap.folio_put(kernel, folio)
    return split


# ---- v7.2, v7.3: pages -----------------------------------------------------------------------------------------------


async def split_the_callers_leaf(kernel: Kernel, vma: Vma, addr: int, folio: Folio) -> None:
    """migrate_vma_split_unmapped_folio, v7.3: the leaf of the caller's address space is split, those of forked ones are not, and
    go on holding a migration entry for the whole of a folio that is one page then.
    """
    await folio_get(folio)
    await split_huge_pmd_address(kernel, vma, addr, freeze=True)


async def split_as_counted(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """migrate_vma_split_unmapped_folio, v7.3: folio_split_unmapped counts one reference, and the fault page's folio has two. So a
    fault on a whole folio whose driver has only small pages brings nothing back. It leaves a page table, and the next fault is
    one of a page.
    """
    return await folio_split_unmapped(kernel, folio)


def go_on_with_large_destination(entry: int) -> bool:
    """__migrate_device_pages, v7.3: a large destination for a small source clears MIGRATE, and is migrated to all the same; at a
    small hole it is not even looked at, and what gives it up clears as many entries as a leaf has, however long the array is.
    """
    return False


def every_page_has_a_destination(entry: int) -> bool:
    """__migrate_device_pages, v7.3: of a COMPOUND hole with small destinations only the first is looked at; page_folio of NULL
    for one that is missing.
    """
    return False


async def flush_one_page(kernel: Kernel, mm: Mm, addr: int) -> None:
    """migrate_vma_insert_huge_pmd_page, v7.2: flush_cache_page, with an end address for its frame number."""
    await flush_cache_page(mm, addr)


# ---- v7.2, v7.3: by frame number -------------------------------------------------------------------------------------


async def lock_pfn_by_head(kernel: Kernel, pfn: int) -> tuple[int, int]:
    """migrate_device_range and _pfns, v7.3: the folio, and so its size, is that of before the lock, and counts from any of its
    pages: a page that cannot be had leaves COMPOUND alone in its entry, and a range that begins behind a folio's first page skips
    as many pages behind its end.
    """
    if not kernel.has_frame(pfn):
        return await migrate_device_pfn_lock(kernel, pfn), 1
    folio = await page_folio(kernel, Folio(pfn))
    entry = await migrate_device_pfn_lock(kernel, pfn)
    nr = await folio_nr_pages(kernel, folio)
    return entry | (MIGRATE_PFN_COMPOUND if nr > 1 else 0), nr


# ---- the kernels -----------------------------------------------------------------------------------------------------


def _named(generation: Generation, version: str) -> Generation:
    return evolve(generation, name=f"{generation.name}@{version}", aliases=(), patch_levels=(), compound_aliases=())


_V6_1 = _named(REFERENCED, "v6.1").with_steps(
    put_not_split=keep_the_reference,
    keep_dirty=dirty_as_read,
    free_swap=leave_in_swap_cache,
)

_V6_12 = _named(REFERENCED, "v6.12").with_steps(
    put_not_split=keep_the_reference,
    mapping_by_now=mapping_as_it_was,
)

_SINCE_COMPOUND = with_compound(WAITING).with_steps(
    split_large=split_with_blocking_lock,
    fault_folio_again=fault_folio_as_it_was,
    split_leaf=split_leaf_with_both_references,
    split_migration_pmds=split_the_callers_leaf,
    split_unmapped=split_as_counted,
    refuse_large_destination=go_on_with_large_destination,
    no_destination=every_page_has_a_destination,
    lock_pfn=lock_pfn_by_head,
)

_V7_2 = _named(_SINCE_COMPOUND, "v7.2").with_steps(pin_and_leave=leave_then_pin, flush_cache_huge=flush_one_page)
_V7_3 = _named(_SINCE_COMPOUND, "v7.3").with_steps(pin_and_leave=pin_and_leave)

AS_SHIPPED: Mapping[str, Generation] = MappingProxyType({"v6.1": _V6_1, "v6.12": _V6_12, "v7.2": _V7_2, "v7.3": _V7_3})
"""Kernels as they are, by version."""
