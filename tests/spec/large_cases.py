"""Large folios and leaves of the middle level, clause by clause: the clauses about them, and those that hold for any page."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec.events import (
    CacheFlushed,
    DeviceAccessed,
    DeviceMapped,
    ExclusiveShared,
    FlagsMoved,
    FolioAllocated,
    FolioDirtied,
    FolioFreed,
    FolioMoved,
    FolioPut,
    FolioUnlocked,
    FrameAdded,
    InvalidateBegan,
    InvalidateEnded,
    PageCleared,
    PagesCalled,
    PagesReturned,
    PageTableAllocated,
    PteChanged,
    RmapAdded,
    SetupReturned,
    SplitCallback,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Memory, NotifyReason, Select, migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, later, put, the, up_to, without
from tests.spec.large_fault_traces import BIG_FAULT, BIG_TAKEN, HANDED, SPLIT_IN_SETUP, TAIL, TOLD
from tests.spec.large_parts import LARGE, LARGE_BOOT, MIGRATE_RANGE, PAGES, alone, compound
from tests.spec.large_traces import (
    BIG_CLEARED,
    BIG_ENTRY,
    BIG_FLUSHED,
    BIG_HOLE_FILLED,
    BIG_INSERTED,
    BIG_INSTALLED,
    BIG_MOVED,
    BIG_PMD_SPLIT,
    BIG_RESTORED,
    BIG_RETURNED,
    BIG_SETUP,
    BIG_SPLIT,
    BIG_TO_DEVICE,
    PARTS,
    SPLIT_IN_PAGES,
)
from tests.spec.parts import HOLE, PTL_OFF, by, migrating, migration, present, private
from tests.spec.traces import TO_DEVICE

BIG_PAGES = the(BIG_TO_DEVICE, PagesCalled)[0]
COLLECTED = up_to(BIG_TO_DEVICE, BIG_RETURNED)
UNASKED = evolve(BIG_SETUP, select=Select.SYSTEM)
NARROW = evolve(BIG_SETUP, end=7, nsrc=3, ndst=3)
DEVICE_ONLY = evolve(BIG_SETUP, select=Select.DEVICE_PRIVATE | Select.COMPOUND)
FREED = FolioFreed(60, order=2)
SMALL_PAGES = the(TO_DEVICE, PagesCalled)[0]
COMPOUND_GIVEN = evolve(SMALL_PAGES, dst=(compound(migrate_pfn(10)),))
AS_A_PAGE = evolve(BIG_PAGES, dst=alone(migrate_pfn(60)))
IN_THE_MIDDLE = FolioAllocated(62, 1, locked=True)
OVER_ANOTHER = evolve(BIG_INSERTED, old=present(40))
WRITTEN_THROUGH = the(BIG_FAULT, DeviceMapped, nth=3)[0]
NOT_TAKEN = up_to(SPLIT_IN_SETUP, HANDED[2]) + by("cpu1", InvalidateEnded(0, 5, 6), SetupReturned(0, 0, 5, 6, 0, 1, (0,)))
LOCK_LEFT_BEHIND = put(NOT_TAKEN, HANDED[0], FolioUnlocked(TAIL), nth=1)
REFERENCE_LEFT_BEHIND = put(NOT_TAKEN, HANDED[2], FolioPut(TAIL, 1))


def split_into(*src):
    """pages() splits the folio, and leaves this in src."""
    return up_to(change(SPLIT_IN_PAGES, PagesReturned, src=src), PagesReturned(0, src))


def moved(at):
    return FolioMoved(40 + at, 10 + at, 1, 1, moved=True), FlagsMoved(40 + at, 10 + at)


BIG_RMAP = RmapAdded(60, 0, 4, 1, exclusive=True, pages=4)
BIG_ALLOCATED = FolioAllocated(60, 1, locked=True, order=2)
ANOTHER_PAGE = evolve(BIG_RESTORED, new=private(64))
CLEAN_ENTRY = evolve(BIG_INSTALLED, new=migration(40, young=True))
OLD_ENTRY = evolve(BIG_INSTALLED, new=migration(40, dirty=True))
DIRTY_TAKEN = evolve(BIG_TAKEN, new=migration(60, dirty=True))
READ_ONLY_TAKEN = evolve(BIG_TAKEN, old=private(60, write=False))
SOFT_DIRTY_PARTS = evolve(BIG_PMD_SPLIT, ptes=tuple(evolve(pte, soft_dirty=True) for pte in BIG_PMD_SPLIT.ptes))
WRONG_ORDER = evolve(BIG_PMD_SPLIT, ptes=tuple(BIG_PMD_SPLIT.ptes[at] for at in (0, 2, 1, 3)))
HOLE_LOST = up_to(
    change(without(BIG_HOLE_FILLED, BIG_RMAP, BIG_INSERTED), PagesReturned, src=alone(0)), PagesReturned(0, alone(0))
)
ONE_FOR_ALL = evolve(BIG_PAGES, dst=alone(compound(migrate_pfn(10))))
MAPPED_BY_ANOTHER = PteChanged(1, 2, PTE_NONE, present(43))
STOOD_FOR_IN_ANOTHER = PteChanged(1, 2, PTE_NONE, migration(43, write=False))
DEVICE_STORE = DeviceAccessed("gpu", 0, 6, 62, write=True)
NOT_DIRTIED = without(BIG_FAULT, FolioDirtied(40))

CASES = [
    case(
        "C14",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        not_selected=up_to(put(BIG_TO_DEVICE, BIG_SETUP, DEVICE_ONLY), BIG_CLEARED),
    ),
    case("C17", kept=BIG_HOLE_FILLED, capabilities=LARGE, one_page_is_not_zeroed=without(BIG_HOLE_FILLED, PageCleared(62))),
    case(
        "C20",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        a_tail_is_mapped_elsewhere=before(COLLECTED, BIG_RETURNED, MAPPED_BY_ANOTHER, task="boot"),
    ),
    case(
        "C24",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        nobody_asked=put(COLLECTED, BIG_SETUP, UNASKED),
        the_range_has_a_part_of_it=put(
            change(COLLECTED, SetupReturned, src=(BIG_ENTRY, 0, 0), end=7, npages=3), BIG_SETUP, NARROW
        ),
        a_large_folio_as_a_page=change(COLLECTED, SetupReturned, src=alone(migrating(40))),
    ),
    case(
        "C25",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        a_hole_behind_it=wrong(change(COLLECTED, SetupReturned, src=(BIG_ENTRY, HOLE, 0, 0), cpages=2)),
    ),
    case(
        "C26",
        kept=SPLIT_IN_PAGES,
        capabilities=LARGE,
        compound_for_a_page=up_to(put(TO_DEVICE, SMALL_PAGES, COMPOUND_GIVEN), COMPOUND_GIVEN),
        a_large_folio_as_a_page=up_to(put(BIG_TO_DEVICE, BIG_PAGES, AS_A_PAGE), AS_A_PAGE),
        a_page_for_all=up_to(put(BIG_TO_DEVICE, BIG_PAGES, FolioAllocated(10, 1, locked=True), ONE_FOR_ALL), ONE_FOR_ALL),
    ),
    case(
        "C27",
        kept=SPLIT_IN_PAGES,
        capabilities=LARGE,
        two_change_places=split_into(PARTS[0], PARTS[2], PARTS[1], PARTS[3]),
        write_is_lost=split_into(PARTS[0], PARTS[1], PARTS[2], migrating(43, write=False)),
        one_is_missing=split_into(PARTS[0], PARTS[1], PARTS[2], 0),
        not_split_and_said_to_migrate=up_to(
            without(SPLIT_IN_PAGES, BIG_SPLIT, *(event for at in PAGES for event in moved(at))), PagesReturned(0, PARTS)
        ),
    ),
    case(
        "C32",
        kept=SPLIT_IN_SETUP,
        capabilities=LARGE,
        the_lock_stays_behind=wrong(LOCK_LEFT_BEHIND, "C09", "C21"),
        the_reference_stays_behind=wrong(REFERENCE_LEFT_BEHIND, "C09", "C21"),
    ),
    case(
        "C44",
        kept=BIG_HOLE_FILLED,
        capabilities=LARGE,
        a_page_table_is_left_over=after(BIG_TO_DEVICE, BIG_MOVED, PageTableAllocated(0, 2)),
        the_destination_is_not_put=without(BIG_TO_DEVICE, FolioPut(60, 1)),
    ),
    case(
        "C46",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        pinned=put(BIG_TO_DEVICE, BIG_MOVED, FolioMoved(40, 60, 2, 2, moved=True)),
    ),
    case(
        "C52",
        kept=SPLIT_IN_SETUP,
        capabilities=LARGE,
        one_is_not_told=without(SPLIT_IN_SETUP, SplitCallback(60, 62)),
        freed_untold=without(SPLIT_IN_SETUP, *TOLD),
        freed_as_a_page=put(BIG_FAULT, FREED, FolioFreed(60)),
        a_tail_is_freed=wrong(put(BIG_FAULT, FREED, FolioFreed(61)), "C44"),
    ),
    case(
        "C53",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        a_page_is_in_use=before(up_to(BIG_TO_DEVICE, BIG_ALLOCATED), BIG_ALLOCATED, FolioAllocated(62, 1, locked=False)),
        a_part_of_another=wrong(up_to(after(BIG_TO_DEVICE, BIG_ALLOCATED, IN_THE_MIDDLE), IN_THE_MIDDLE), "C43"),
        of_two_devices=LARGE_BOOT
        + by("boot", FrameAdded(14, Memory.DEVICE_PRIVATE, "npu"))
        + by("mig0", FolioAllocated(12, 1, locked=True, order=2)),
    ),
    case(
        "C55",
        kept=SPLIT_IN_PAGES,
        capabilities=LARGE,
        another_page=up_to(put(BIG_TO_DEVICE, BIG_RESTORED, ANOTHER_PAGE), ANOTHER_PAGE),
        two_change_places=up_to(put(SPLIT_IN_PAGES, BIG_PMD_SPLIT, WRONG_ORDER), WRONG_ORDER),
    ),
    case(
        "C56",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        a_tail_is_mapped=before(up_to(BIG_TO_DEVICE, BIG_MOVED), BIG_MOVED, MAPPED_BY_ANOTHER, task="boot"),
    ),
    case(
        "C57",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        a_tails_entry_is_left=wrong(after(BIG_TO_DEVICE, BIG_PAGES, STOOD_FOR_IN_ANOTHER, task="boot"), "C58"),
    ),
    case(
        "C58",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        unlocked_too_early=up_to(before(BIG_TO_DEVICE, BIG_RESTORED, FolioUnlocked(40)), BIG_RESTORED),
    ),
    case(
        "C59",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        not_flushed=without(BIG_TO_DEVICE, BIG_FLUSHED),
        flushed_too_late=later(BIG_TO_DEVICE, BIG_FLUSHED, PTL_OFF),
        one_page_flushed=put(BIG_TO_DEVICE, BIG_FLUSHED, TlbFlushed(0, 4, 5)),
    ),
    case(
        "C60",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        one_page_flushed=put(BIG_TO_DEVICE, CacheFlushed(0, 4, pages=4), CacheFlushed(0, 4)),
    ),
    case(
        "C61",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        the_folio_is_clean=without(BIG_TO_DEVICE, FolioDirtied(40)),
        the_entry_is_clean=put(COLLECTED, BIG_INSTALLED, CLEAN_ENTRY),
    ),
    case(
        "C62",
        kept=after(BIG_FAULT, WRITTEN_THROUGH, DEVICE_STORE, task="gpu0"),
        capabilities=LARGE,
        a_tail_was_written=wrong(after(NOT_DIRTIED, WRITTEN_THROUGH, DEVICE_STORE, task="gpu0")),
    ),
    case(
        "C63",
        kept=BIG_FAULT,
        capabilities=LARGE,
        the_entry_is_dirty=up_to(put(BIG_FAULT, BIG_TAKEN, DIRTY_TAKEN), DIRTY_TAKEN),
    ),
    case(
        "C64",
        kept=SPLIT_IN_PAGES,
        capabilities=LARGE,
        young_is_lost=put(COLLECTED, BIG_INSTALLED, OLD_ENTRY),
        soft_dirty_is_made_up_by_a_split=up_to(put(SPLIT_IN_PAGES, BIG_PMD_SPLIT, SOFT_DIRTY_PARTS), SOFT_DIRTY_PARTS),
    ),
    case(
        "C65",
        kept=SPLIT_IN_PAGES,
        capabilities=LARGE,
        the_entry_gains_write=up_to(put(BIG_FAULT, BIG_TAKEN, READ_ONLY_TAKEN), READ_ONLY_TAKEN),
    ),
    case(
        "C66",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        not_given_up=without(BIG_TO_DEVICE, ExclusiveShared(40, done=True)),
        not_restored=change(BIG_TO_DEVICE, RmapAdded, nth=1, exclusive=False),
    ),
    case(
        "C69",
        kept=HOLE_LOST,
        capabilities=LARGE,
        another_came_meanwhile=up_to(put(BIG_HOLE_FILLED, BIG_INSERTED, OVER_ANOTHER), OVER_ANOTHER),
        the_loser_keeps_migrate=up_to(without(BIG_HOLE_FILLED, BIG_RMAP, BIG_INSERTED), the(BIG_HOLE_FILLED, PagesReturned)[0]),
    ),
    case(
        "C76",
        kept=BIG_TO_DEVICE,
        capabilities=LARGE,
        the_range_is_too_short=put(
            put(BIG_TO_DEVICE, MIGRATE_RANGE[0], InvalidateBegan(0, 4, 7, NotifyReason.MIGRATE, "gpu")),
            MIGRATE_RANGE[1],
            InvalidateEnded(0, 4, 7),
        ),
    ),
]
