"""Faults of migrate_vma_setup and migrate_device_range: the arguments, the walk, what is taken, the entries in src."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.bugs.migration import unmap_nothing
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get, folio_try_get, folio_trylock, folio_unlock
from migrate_vma_impl.mm.migrate_device import check_arguments
from migrate_vma_impl.mm.migrate_device_by_pfn import lock_pfn
from migrate_vma_impl.mm.migrate_device_collect import migrate_vma_collect, migrate_vma_collect_pmd
from migrate_vma_impl.mm.mm_types import Folio, FolioState, MigrateVma
from migrate_vma_impl.mm.pgtable import pmd_ranges
from migrate_vma_impl.mm.rmap_migrate import try_to_migrate
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Errno, VmFlags, migrate_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- the arguments ---------------------------------------------------------------------------------------------------


def accept_special(args: MigrateVma) -> int:
    """The flags of the VMA are not looked at."""
    vma = args.vma
    ordinary = None if vma is None else evolve(vma, flags=vma.flags & (VmFlags.READ | VmFlags.WRITE))
    return check_arguments(evolve(args, vma=ordinary))


def accept_empty(args: MigrateVma) -> int:
    """A range that ends where it begins is no error."""
    return 0 if args.start == args.end and args.src is not None else check_arguments(args)


def refuse_as_no_memory(args: MigrateVma) -> int:
    return -Errno.ENOMEM if args.src is None or args.dst is None else check_arguments(args)


# ---- the walk --------------------------------------------------------------------------------------------------------


async def collect_and_lose_end(kernel: Kernel, args: MigrateVma) -> None:
    """`end` is where the walk began its last part, not where it came to."""
    await migrate_vma_collect(kernel, args)
    args.end = args.start


async def collect_one_more(kernel: Kernel, args: MigrateVma) -> None:
    """One more entry is stored than the range has pages, into an array that happens to have room."""
    await migrate_vma_collect(kernel, args)
    if args.src is not None:
        args.src.append(MIGRATE_PFN_WRITE)


async def collect_all_but_the_last(kernel: Kernel, args: MigrateVma) -> None:
    if args.end - args.start > 1:
        args.end -= 1
    await migrate_vma_collect(kernel, args)


async def collect_in_silence(kernel: Kernel, args: MigrateVma) -> None:
    """No device hears of it."""
    if args.vma is not None:
        for start, end in pmd_ranges(kernel, args.start, args.end):
            await migrate_vma_collect_pmd(kernel, args, args.vma, start, end)
    args.end = args.start + args.npages


async def lock_with_two_references(folio: Folio) -> bool:
    locked = await folio_trylock(folio)
    if locked:
        await folio_get(folio)
    return locked


# ---- unmap -----------------------------------------------------------------------------------------------------------


def mapped_is_good(state: FolioState, extra: int) -> bool:
    return True


async def drain_before_unmap(kernel: Kernel, folio: Folio) -> None:
    """Every folio has the batches of all CPUs drained, with its lock held, and before it is unmapped."""
    await swap.lru_add_drain_all(kernel)
    await try_to_migrate(kernel, folio)


# ---- by frame number -------------------------------------------------------------------------------------------------


async def lock_pfn_writable(kernel: Kernel, pfn: int) -> tuple[int, int]:
    entry, nr = await lock_pfn(kernel, pfn)
    return entry | (MIGRATE_PFN_WRITE if entry else 0), nr


async def lock_pfn_unlocked(kernel: Kernel, pfn: int) -> tuple[int, int]:
    """The entry says that the page was had, and its lock was dropped again."""
    entry, nr = await lock_pfn(kernel, pfn)
    if entry:
        await folio_unlock(Folio(pfn))
    return entry, nr


async def lock_pfn_and_put_twice(kernel: Kernel, pfn: int) -> tuple[int, int]:
    """A page whose lock cannot be had is put on two ways out."""
    folio = Folio(pfn)
    if not await folio_try_get(folio):
        return 0, 1
    if await folio_trylock(folio):
        return migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE, 1
    await swap.folio_put(kernel, folio)
    await swap.folio_put(kernel, folio)
    return 0, 1


async def lock_pfn_blindly(kernel: Kernel, pfn: int) -> tuple[int, int]:
    """A page that could not be had gets an entry all the same."""
    entry, nr = await lock_pfn(kernel, pfn)
    return entry or migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE, nr


BUGS = (
    Bug(
        "special_vma_taken",
        "setup does not look at the VMA's flags",
        "Memory without page structs of its own, or of hugetlb, is walked as if it were anonymous.",
        ("C02", "C58"),
        WAITING.with_steps(check_arguments=accept_special),
    ),
    Bug(
        "empty_range_taken",
        "setup takes an empty range",
        "Its callers are told that something was looked at.",
        ("C02",),
        WAITING.with_steps(check_arguments=accept_empty),
    ),
    Bug(
        "end_not_kept",
        "setup leaves a wrong end",
        "The range that is said to be collected is not the one that npages counts.",
        ("C03",),
        WAITING.with_steps(collect=collect_and_lose_end),
    ),
    Bug(
        "entry_too_many",
        "setup writes one entry too many",
        "Something behind the array is overwritten.",
        ("C05",),
        WAITING.with_steps(collect=collect_one_more),
    ),
    Bug(
        "setup_out_of_memory",
        "setup returns another error",
        "Its callers know -EINVAL and nothing else.",
        ("C06",),
        WAITING.with_steps(check_arguments=refuse_as_no_memory),
    ),
    Bug(
        "last_page_not_walked",
        "the walk ends before the last page",
        "The last page of a range never migrates.",
        ("C11",),
        WAITING.with_steps(collect=collect_all_but_the_last),
    ),
    Bug(
        "collected_in_silence",
        "devices are not told of the walk",
        "A device goes on through mappings whose entries are gone.",
        ("C76",),
        WAITING.with_steps(collect=collect_in_silence),
    ),
    Bug(
        "two_references",
        "setup takes two references",
        "One of them is never given back; where setup finds the page held, nothing was collected and something is.",
        ("C09", "C19", "C21", "C44"),
        WAITING.with_steps(lock_collected=lock_with_two_references),
    ),
    Bug(
        "mapped_taken",
        "a page that is still mapped is taken",
        "A forked process goes on writing to it while it is copied.",
        ("C20",),
        WAITING.with_steps(unmap_all=unmap_nothing, check_page=mapped_is_good),
    ),
    Bug(
        "drains_each",
        "the batches are drained for every page",
        "With the page's lock held, and before its other mappings are migration entries: who faults there spins on the CPU that "
        "the drain waits for.",
        ("C87",),
        WAITING.with_steps(unmap_all=drain_before_unmap),
    ),
    Bug(
        "range_says_write",
        "device_range says WRITE",
        "It knows of no mapping, and its driver takes the page for writable everywhere.",
        ("C23",),
        WAITING.with_steps(lock_pfn=lock_pfn_writable),
    ),
    Bug(
        "range_does_not_lock",
        "device_range drops the page lock",
        "Its pages are used by others while they migrate.",
        ("C19", "C58"),
        WAITING.with_steps(lock_pfn=lock_pfn_unlocked),
    ),
    Bug(
        "range_puts_twice",
        "device_range puts a page twice that it cannot lock",
        "The page is freed while another CPU's fault has it.",
        ("C44", "C50"),
        WAITING.with_steps(lock_pfn=lock_pfn_and_put_twice),
    ),
    Bug(
        "range_takes_free_pages",
        "device_range takes pages that it cannot have",
        "A free page migrates.",
        ("C19", "C43", "C44"),
        WAITING.with_steps(lock_pfn=lock_pfn_blindly),
    ),
)
