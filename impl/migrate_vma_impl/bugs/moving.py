"""Faults of migrate_vma_pages and _finalize beside those in `migration.py`: what moves, what is skipped, what is mapped again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm.filemap import folio_clear_dirty
from migrate_vma_impl.mm.folio import folio_get
from migrate_vma_impl.mm.migrate import folio_migrate_flags, remove_migration_ptes
from migrate_vma_impl.mm.migrate_mapping import Mapping
from migrate_vma_impl.mm.mm_types import Folio, Vma
from migrate_vma_impl.mm.pgtable import mk_pte, ptep_get, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_mapping_place, rmap_walk_begin, rmap_walk_end
from migrate_vma_impl.mm.swapfile import folio_free_swap, folio_swap_slot
from migrate_vma_spec.vocabulary import Pte, PteKind

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- pages -----------------------------------------------------------------------------------------------------------


def any_cache(mapping: Mapping) -> bool:
    return True


async def pretend_to_free(kernel: Kernel, folio: Folio) -> bool:
    """The answer is not looked at: the page may be in the cache still."""
    return True


async def leave_any_cache(kernel: Kernel, folio: Folio) -> bool:
    """A file's page is in no swap cache, so there is nothing to leave."""
    return await folio_free_swap(kernel, folio) or await folio_swap_slot(folio) is None


async def never_free_swap(kernel: Kernel, folio: Folio) -> bool:
    return False


async def mapping_of_before(kernel: Kernel, folio: Folio, before: Mapping) -> Mapping | None:
    return before


async def move_flags_but_dirty(dst: Folio, src: Folio) -> None:
    await folio_migrate_flags(dst, src)
    await folio_clear_dirty(dst)


def still_migrating(entry: int) -> int:
    return entry


def hole_for_anybody(vma: Vma, pte: Pte) -> bool:
    """Whether a monitor wants to hear of missing pages is not asked."""
    return pte.kind in (PteKind.NONE, PteKind.ZERO)


# ---- finalize --------------------------------------------------------------------------------------------------------


async def map_source_again(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """The walk is given the source for both."""
    await remove_migration_ptes(kernel, src, src)


async def map_on_devices_only(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """What comes back from a device is not mapped."""
    if kernel.is_zone_device(dst):
        await remove_migration_ptes(kernel, src, dst)


async def map_whatever_is_there(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """Where the entry went meanwhile, the page is mapped all the same."""
    await remove_migration_ptes(kernel, src, dst)
    _, place = await folio_mapping_place(dst)
    if place is None or kernel.is_device_private(dst):
        return
    tree, index = place
    for vma, addr in await rmap_walk_begin(tree, index):
        await spin_lock(vma.mm.ptl)
        if (await ptep_get(vma.mm, addr)).kind is PteKind.NONE:
            await folio_get(dst)
            await folio_add_anon_rmap(dst, vma, addr, exclusive=False)
            await set_pte_at(vma.mm, addr, mk_pte(dst))
        await spin_unlock(vma.mm.ptl)
    await rmap_walk_end(tree)


BUGS = (
    Bug(
        "B24",
        "a page in the swap cache never goes to the device",
        "Every access of the device faults again, and finds the page where it was.",
        ("C75", "REF"),
        WAITING.with_steps(free_swap=never_free_swap),
        commit="mm/migrate_device: Try to handle swapcache pages",
        year=2023,
        kernels="before v6.5",
    ),
    Bug(
        "mapping_not_read_again",
        "the swap cache is counted after the page left it",
        "The page is moved in a cache that has no such page.",
        ("C44", "C75"),
        WAITING.with_steps(mapping_by_now=mapping_of_before),
        year=2026,
        kernels="v6.12",
    ),
    Bug(
        "swap_not_freed",
        "a page goes to the device with its swap slot",
        "The slot names a page that no CPU can read.",
        ("C75",),
        WAITING.with_steps(free_swap=pretend_to_free),
    ),
    Bug(
        "file_pages_move",
        "a file's page goes to the device",
        "The page cache names a page that no CPU can read.",
        ("C18",),
        WAITING.with_steps(may_leave_cache=any_cache, free_swap=leave_any_cache),
    ),
    Bug(
        "dirt_stays",
        "the dirty bit does not move",
        "What the device wrote is lost when the page is swapped.",
        ("C62",),
        WAITING.with_steps(move_flags=move_flags_but_dirty),
    ),
    Bug(
        "skipped_still_migrating",
        "what has no destination still migrates",
        "finalize takes it for a page that moved.",
        ("C81",),
        WAITING.with_steps(skipped_entry=still_migrating),
    ),
    Bug(
        "fills_watched_holes",
        "a hole is filled that a userfaultfd watches",
        "Its monitor never hears of the page.",
        ("C70",),
        WAITING.with_steps(may_insert=hole_for_anybody),
    ),
    Bug(
        "source_mapped_again",
        "finalize maps the source",
        "The page that is freed is mapped, and the one with the contents is not.",
        ("C55",),
        WAITING.with_steps(map_destination=map_source_again),
    ),
    Bug(
        "back_not_mapped",
        "finalize leaves the entries of what comes back",
        "They name the fault page, which is locked still: who waits on them finds out when it is not.",
        ("C57",),
        WAITING.with_steps(map_destination=map_on_devices_only),
    ),
    Bug(
        "maps_where_nothing_is",
        "finalize maps where the entry was zapped",
        "A page appears in memory that was discarded.",
        ("C68",),
        WAITING.with_steps(map_destination=map_whatever_is_there),
    ),
)
