"""Faults of migrate_vma_setup, _pages and _finalize, and of what they call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_unlock
from migrate_vma_impl.mm.migrate import entry_after_migration
from migrate_vma_impl.mm.migrate_device_collect import selects
from migrate_vma_impl.mm.mm_types import Folio, FolioState, MigrateVma, Mm, Vma
from migrate_vma_impl.mm.pgtable import flush_tlb_range, migration_entry_for
from migrate_vma_spec.vocabulary import Pte, PteKind, Select, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

# ---- collect ---------------------------------------------------------------------------------------------------------


async def unlock_then_flush(kernel: Kernel, mm: Mm, start: int, end: int, unmapped: int) -> None:
    await spin_unlock(mm.ptl)
    if unmapped:
        await flush_tlb_range(kernel, mm, start, end)


async def flush_nothing(kernel: Kernel, mm: Mm, addr: int) -> None:
    pass


async def flush_no_cache(mm: Mm, addr: int) -> None:
    pass


async def keep_exclusive(folio: Folio) -> bool:
    return True


async def keep_clean(folio: Folio, pte: Pte) -> None:
    pass


def lose_young(pte: Pte, exclusive: bool) -> Pte:
    return evolve(migration_entry_for(pte, exclusive), young=False)


def lose_soft_dirty(pte: Pte, exclusive: bool) -> Pte:
    return evolve(migration_entry_for(pte, exclusive), soft_dirty=False)


def lose_write(pte: Pte, exclusive: bool) -> Pte:
    return evolve(migration_entry_for(pte, exclusive), write=False)


def dirty_as_writable(pte: Pte, exclusive: bool) -> Pte:
    """The present-only accessor applied to a device-private entry: on x86 a writable one reads as dirty."""
    entry = migration_entry_for(pte, exclusive)
    return evolve(entry, dirty=entry.dirty or (pte.kind is PteKind.DEVICE_PRIVATE and pte.write))


def anybodys(kernel: Kernel, args: MigrateVma, pte: Pte) -> bool:
    return True


def any_owners(kernel: Kernel, args: MigrateVma, pte: Pte) -> bool:
    """Whose device it is that a page is on is not asked."""
    device = pte.kind is PteKind.DEVICE_PRIVATE and bool(args.flags & Select.DEVICE_PRIVATE)
    return device or selects(kernel, args, pte)


def no_holes(args: MigrateVma, vma: Vma, pte: Pte) -> int | None:
    """Empty entries are left out, though the VMA is anonymous."""
    return 0 if pte.kind in (PteKind.NONE, PteKind.ZERO) else None


def count_nothing(entry: int) -> int:
    return 0


# ---- unmap -----------------------------------------------------------------------------------------------------------


async def unmap_nothing(kernel: Kernel, folio: Folio) -> None:
    pass


def always_good(state: FolioState, extra: int) -> bool:
    return not state.mapcount


async def map_nothing(kernel: Kernel, src: Folio, dst: Folio) -> None:
    pass


async def forget_the_lock(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> None:
    pass


async def unlock_even_the_fault_page(kernel: Kernel, folio: Folio, fault_page: Folio | None) -> None:
    await folio_unlock(folio)


# ---- pages and finalize ----------------------------------------------------------------------------------------------


def any_count(state: FolioState, extra: int) -> int:
    return state.refcount


async def move_no_flags(dst: Folio, src: Folio) -> None:
    pass


async def never_uptodate(folio: Folio) -> None:
    pass


def insert_anywhere(vma: Vma, pte: Pte) -> bool:
    return not vma.flags & VmFlags.UFFD_MISSING


async def keep_ptl(mm: Mm) -> None:
    pass


async def source_to_lru(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """putback_lru of the dead source, as before the mending."""
    if not kernel.is_zone_device(src):
        await swap.folio_add_lru(kernel, src)


def always_writable(old: Pte, dst: Folio, device: bool, dirty: bool) -> Pte:
    return evolve(entry_after_migration(old, dst, device, dirty), write=True)


async def put_nothing(kernel: Kernel, folio: Folio) -> None:
    pass


# ---- fork ------------------------------------------------------------------------------------------------------------


def fork_keeps_write(pte: Pte) -> Pte:
    return pte


BUGS = (
    Bug(
        "B13",
        "the TLB is flushed after the page-table lock",
        "MADV_DONTNEED finds the entry gone and returns, while a stale translation still writes.",
        ("C59",),
        WAITING.with_steps(flush_and_unlock=unlock_then_flush, flush_exclusive=flush_nothing),
        commit="60bae7370896",
        year=2022,
        kernels="before v6.1",
    ),
    Bug(
        "B14",
        "the cache is not flushed",
        "A virtually indexed cache keeps what a CPU wrote through the entry that is gone.",
        ("C60",),
        WAITING.with_steps(flush_cache=flush_no_cache),
        commit="a3589e1d5fe3",
        year=2022,
        kernels="before v6.1",
    ),
    Bug(
        "B15",
        "the dead source goes on the LRU",
        "finalize puts the migrated source back on the LRU, uncharged, where it is freed from.",
        ("C73",),
        WAITING.with_steps(add_to_lru=source_to_lru),
        commit="41cddf83d8b0",
        year=2025,
        kernels="before v6.14",
    ),
    Bug(
        "B17",
        "the slow path loses the write permission",
        "try_to_migrate makes every entry read-only, so a write faults a second time.",
        ("C22", "C64", "REF"),
        WAITING.with_steps(unmap_entry=lose_write),
        commit="mm/rmap.c: avoid double faults migrating device private pages",
        year=2021,
        kernels="before v5.14",
    ),
    Bug(
        "B28",
        "a device-private entry is asked for its dirty bit",
        "A writable one reads as dirty, which hides drivers that never dirty what the device wrote.",
        ("C63",),
        WAITING.with_steps(collect_entry=dirty_as_writable),
        commit="mails of 2025 and 2026",
        year=2026,
        kernels="v6.1 to v7.1",
    ),
    Bug(
        "B52",
        "pages of any device are collected",
        "A driver migrates another driver's pages, and the wrong callback hears of it.",
        ("C14",),
        WAITING.with_steps(selects=any_owners),
        commit="5143192cd410",
        year=2020,
        kernels="before v5.9",
    ),
    Bug(
        "B53",
        "soft-dirty is lost",
        "The bit does not go from the entry to the migration entry, and a checkpoint misses a write.",
        ("C64",),
        WAITING.with_steps(collect_entry=lose_soft_dirty),
        commit="3d321bf82c4b, ad7df764b7e1, ebdf8321eeeb",
        year=2020,
        kernels="before v5.9",
    ),
    Bug(
        "B55",
        "the check for references always succeeds",
        "Device-private pages may always migrate, as the check once had it: references are hidden, not counted.",
        ("C46", "C47"),
        WAITING.with_steps(check_page=always_good, expected_references=any_count),
        commit="mail of February 2021, rejected",
        year=2021,
        kernels="before v5.18",
    ),
    Bug(
        "finalize_unlocks_fault_page",
        "finalize unlocks the fault page",
        "The lock is the fault handler's, which unlocks it again.",
        ("C31",),
        WAITING.with_steps(unlock_migrated=unlock_even_the_fault_page),
    ),
    Bug(
        "restore_unlocks_fault_page",
        "the restore loop unlocks the fault page",
        "As finalize might.",
        ("C31",),
        WAITING.with_steps(unlock_restored=unlock_even_the_fault_page),
    ),
    Bug(
        "restore_forgets_lock",
        "the restore loop forgets to unlock",
        "A page that could not be taken stays locked.",
        ("C21", "C44"),
        WAITING.with_steps(unlock_restored=forget_the_lock),
    ),
    Bug(
        "restore_maps_nothing",
        "what could not be taken is not mapped again",
        "Its migration entries stay, and its page is unlocked.",
        ("C21", "C58"),
        WAITING.with_steps(restore_mappings=map_nothing),
    ),
    Bug(
        "young_lost",
        "the young bit is lost",
        "The migration entry of a page that was used says that it was not.",
        ("C64",),
        WAITING.with_steps(collect_entry=lose_young),
    ),
    Bug(
        "dirty_lost",
        "a dirty entry does not dirty its page",
        "What a CPU wrote is lost when the page is swapped.",
        ("C61",),
        WAITING.with_steps(keep_dirty=keep_clean),
    ),
    Bug(
        "exclusive_kept",
        "exclusivity is not given up",
        "The page is exclusive behind an entry that says that it is not, and a pin takes it for its own.",
        ("C66",),
        WAITING.with_steps(share_exclusive=keep_exclusive),
    ),
    Bug(
        "collects_anything",
        "setup takes what nobody asked for",
        "System pages are collected by a caller that asked for its device's alone.",
        ("C14",),
        WAITING.with_steps(selects=anybodys),
    ),
    Bug(
        "holes_left_out",
        "holes are not collected",
        "An empty entry of an anonymous VMA gets 0.",
        ("C16",),
        WAITING.with_steps(empty_entry=no_holes),
    ),
    Bug(
        "holes_not_counted",
        "cpages forgets the holes",
        "A driver takes a migration for empty that is not.",
        ("C10",),
        WAITING.with_steps(count_empty=count_nothing),
    ),
    Bug(
        "unmaps_nothing",
        "other mappings stay",
        "A page that a forked process maps is never unmapped there, so its migration fails for ever.",
        ("C84",),
        WAITING.with_steps(unmap_all=unmap_nothing, check_page=always_good),
    ),
    Bug(
        "pinned_taken",
        "the check for references is left out",
        "Setup promises a page that somebody holds; it is copied in vain.",
        ("C47",),
        WAITING.with_steps(check_page=always_good),
    ),
    Bug(
        "any_count",
        "any count will do",
        "The page moves away from who holds a reference to it.",
        ("C46",),
        WAITING.with_steps(expected_references=any_count),
    ),
    Bug(
        "flags_stay",
        "the flags do not move",
        "Dirty, young and the memcg charge stay with the page that is freed.",
        ("C74", "C64", "C61", "REF"),
        WAITING.with_steps(move_flags=move_no_flags),
    ),
    Bug(
        "not_uptodate",
        "an inserted page is mapped before it is uptodate",
        "Its contents need not be visible before the entry that shows them.",
        ("C72",),
        WAITING.with_steps(mark_uptodate=never_uptodate),
    ),
    Bug(
        "inserts_anywhere",
        "an insert does not look again",
        "A page that came in meanwhile is mapped over.",
        ("C69",),
        WAITING.with_steps(may_insert=insert_anywhere),
    ),
    Bug(
        "insert_keeps_ptl",
        "an insert that gives up keeps the page-table lock",
        "The next who needs it spins for ever.",
        ("C37", "C82"),
        WAITING.with_steps(abort_insert=keep_ptl),
        commit="as 63451de16e0a, for one page",
    ),
    Bug(
        "finalize_maps_nothing",
        "finalize leaves the migration entries",
        "They name a page that is unlocked and freed.",
        ("C57", "C58"),
        WAITING.with_steps(map_destination=map_nothing),
    ),
    Bug(
        "restore_gains_write",
        "a mapping gains the write permission",
        "Every entry that finalize makes is writable, also where another process shares the page.",
        ("C65",),
        WAITING.with_steps(restored_entry=always_writable),
    ),
    Bug(
        "source_not_put",
        "finalize forgets a reference",
        "The source is never freed.",
        ("C44",),
        WAITING.with_steps(put_migrated=put_nothing),
    ),
    Bug(
        "fork_keeps_write",
        "fork leaves an entry writable",
        "A migration or device-private entry stays writable in parent and child, and one writes into the other's page.",
        ("C67",),
        WAITING.with_steps(forked_entry=fork_keeps_write),
    ),
)
