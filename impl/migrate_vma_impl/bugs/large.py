"""Faults with large folios: whole leaves, their splits, the entries of their pages, and what a driver is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl import as_shipped
from migrate_vma_impl.bugs.bug import Bug, driver_bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import CompoundDmirror, Dmirror
from migrate_vma_impl.generations import WAITING, with_compound
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm.folio import page_folio
from migrate_vma_impl.mm.huge_memory_folio import split_folio
from migrate_vma_impl.mm.huge_memory_leaf import pte_free
from migrate_vma_impl.mm.migrate_device_collect import Collected, Walk
from migrate_vma_impl.mm.migrate_device_huge import migrate_vma_collect_huge_pmd, migrate_vma_split_folio
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    Select,
    migrate_pfn,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

LARGE = with_compound(WAITING)

# ---- setup -----------------------------------------------------------------------------------------------------------


async def take_whole_unasked(kernel: Kernel, walk: Walk) -> Collected:
    """A leaf is taken whole though the caller did not ask for it."""
    asked = walk.args.flags
    walk.args.flags |= Select.COMPOUND
    found = await migrate_vma_collect_huge_pmd(kernel, walk)
    walk.args.flags = asked
    return found


async def leave_tail_entry(kernel: Kernel, walk: Walk) -> Collected:
    """The entry behind a COMPOUND one is not 0."""
    found = await migrate_vma_collect_huge_pmd(kernel, walk)
    src = walk.args.src or []
    for i in range(len(src) - 1):
        if src[i] & MIGRATE_PFN_COMPOUND and src[i] & MIGRATE_PFN_VALID:
            src[i + 1] = MIGRATE_PFN_MIGRATE
    return found


async def keep_lock_of_head(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """The lock and the reference of the fault handler stay with the first page of what was split."""
    if fault_page is not None and folio == await page_folio(kernel, fault_page):
        return await split_folio(kernel, folio)
    return await migrate_vma_split_folio(kernel, folio, fault_page)


async def keep_lock_and_fail(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> bool:
    """The same, and what was split is told as what could not be."""
    await keep_lock_of_head(kernel, folio, fault_page)
    return False


# ---- pages -----------------------------------------------------------------------------------------------------------


def entry_without_write(pfn: int, number: int, flags: int) -> int:
    return migrate_pfn(pfn + number) | flags & ~MIGRATE_PFN_WRITE


def entry_of_first(pfn: int, number: int, flags: int) -> int:
    return migrate_pfn(pfn) | flags


async def tell_nobody(kernel: Kernel, head: Folio, tails: tuple[Folio, ...]) -> None:
    pass


async def keep_table(kernel: Kernel, mm: Mm) -> None:
    """The page table that was to be deposited is forgotten."""
    await spin_unlock(mm.ptl)


async def keep_huge_ptl(kernel: Kernel, mm: Mm) -> None:
    """The abort jumps past the unlock."""
    await pte_free(kernel, mm)


# ---- drivers ---------------------------------------------------------------------------------------------------------


class GivesLargeForSmall(CompoundDmirror):
    """Says COMPOUND of every destination."""

    async def _device_alloc_and_copy(self, src: list[int], dst: list[int], vma: Vma) -> None:
        await super()._device_alloc_and_copy(src, dst, vma)
        dst[:] = [entry | MIGRATE_PFN_COMPOUND if entry else 0 for entry in dst]


class GivesPartsAway(CompoundDmirror):
    """The last page of a large folio that it gives stays on the list of single pages, before all others."""

    async def _devmem_alloc_page(self, mm: Mm, order: int) -> Folio | None:
        pages = await self._taken(mm) if not order else None
        return pages or await super()._devmem_alloc_page(mm, order)

    async def _taken(self, mm: Mm) -> Folio | None:
        """The second page of the first large folio, where that is in use."""
        nr = 1 << self.order
        for folio in self.folios:
            if folio.pfn % nr == 0 and await self.state.backing.get(folio.pfn):
                await self.kernel.zone_device_page_init(Folio(folio.pfn + 1), mm)
                return Folio(folio.pfn + 1)
        return None


def single_pages(kernel: Kernel) -> Driver:
    """The driver as it was when devices had single pages only: it never asks for COMPOUND."""
    return Dmirror(kernel, "test_hmm")


def gives_large_for_small(kernel: Kernel) -> Driver:
    return GivesLargeForSmall(kernel, "test_hmm")


def gives_parts_away(kernel: Kernel) -> Driver:
    return GivesPartsAway(kernel, "test_hmm")


BUGS = (
    Bug(
        "B26",
        "an abort of a huge insert keeps the page-table lock",
        "The next who needs it spins for ever.",
        ("C37",),
        LARGE.with_steps(abort_huge_insert=keep_huge_ptl),
        commit="63451de16e0a",
        year=2026,
        kernels="v6.19 to v7.1",
    ),
    Bug(
        "B27",
        "an abort of a huge insert keeps the page table",
        "The page table that was to be deposited behind the leaf is never freed.",
        ("C44",),
        LARGE.with_steps(abort_huge_insert=keep_table),
        commit="2c6f81d58741",
        year=2026,
        kernels="v6.19 to v7.1",
    ),
    Bug(
        "B31",
        "a large folio is pinned too late",
        "The page-table lock is dropped before the reference is taken; the folio may be free by then, or another one.",
        ("C41", "C44", "C59", "C19"),
        LARGE.with_steps(pin_and_leave=as_shipped.leave_then_pin),
        commit="mm/migrate_device: pin large folios before splitting",
        year=2026,
        kernels="v6.19 to v7.2",
    ),
    Bug(
        "B37",
        "the driver is not told of a split",
        "It counts and frees the parts of a folio as the whole.",
        ("C52",),
        LARGE.with_steps(tell_of_split=tell_nobody),
        commit="drm/nouveau/dmem: fix callocated underflow on large folio split",
        year=2026,
        kernels="v6.19 to v7.1",
    ),
    Bug(
        "compound_unasked",
        "setup returns COMPOUND unasked",
        "A driver that knows single pages only copies the first of many.",
        ("C24",),
        evolve(LARGE, collect_huge_pmd=take_whole_unasked),
        f"{__name__}:single_pages",
    ),
    Bug(
        "entry_behind_compound",
        "an entry behind a COMPOUND one is left",
        "One page stands in src twice.",
        ("C25",),
        evolve(LARGE, collect_huge_pmd=leave_tail_entry),
    ),
    Bug(
        "parts_out_of_order",
        "a split names one page for all",
        "The pages of a range change places.",
        ("C27", "C54"),
        LARGE.with_steps(part_entry=entry_of_first),
    ),
    Bug(
        "parts_lose_write",
        "the entries of a split lose WRITE",
        "The device maps what the CPU could write read-only, and faults once more.",
        ("C27",),
        LARGE.with_steps(part_entry=entry_without_write),
    ),
    Bug(
        "lock_stays_with_head",
        "a split leaves the lock with the first page",
        "The fault handler unlocks a page that is not locked, and the first page stays locked.",
        ("C32", "C58"),
        LARGE.with_steps(split_large=keep_lock_of_head),
    ),
    Bug(
        "lock_lost_in_a_failure",
        "a split that is told as failed leaves the lock with the first page",
        "Nothing is collected, and the fault handler unlocks a page that is not locked.",
        ("C32",),
        LARGE.with_steps(split_large=keep_lock_and_fail),
    ),
    Bug(
        "waits_for_a_second_lock",
        "the split of a large folio waits for its lock",
        "Two migrations wait for each other's folios.",
        ("C35",),
        LARGE.with_steps(split_large=as_shipped.split_with_blocking_lock),
        year=2026,
        kernels="v6.19 to v7.3",
    ),
    driver_bug(
        "large_for_small",
        "the driver gives a large destination for a small source",
        "Memory behind the page is overwritten, or the entry is dropped.",
        ("C26",),
        gives_large_for_small,
        LARGE,
    ),
    driver_bug(
        "part_given_twice",
        "the driver gives a part of a large folio that is in use",
        "A page belongs to two folios.",
        ("C53",),
        gives_parts_away,
        LARGE,
    ),
)
