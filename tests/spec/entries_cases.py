"""Entries and flags, clause by clause."""

from __future__ import annotations

from migrate_vma_spec.events import (
    DeviceMapped,
    ExclusiveShared,
    FlagsMoved,
    FolioAllocated,
    FolioGot,
    FolioLocked,
    FolioPut,
    FolioUnlocked,
    LruPutBack,
    MmCreated,
    PageCopied,
    PagesCalled,
    PagesReturned,
    PteChanged,
    RangeReturned,
    RmapAdded,
    SetupReturned,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import MIGRATE_PFN_VALID, PTE_NONE, VmFlags, migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import before, change, put, the, up_to, without
from tests.spec.fault_traces import EVICT, TAKEN
from tests.spec.parts import BOOT, HOLE, RW, by, migrating, migration, present, private, system_page
from tests.spec.traces import ENTRY, HOLE_FILLED, INSTALLED, LRU_ISOLATED, MAPPED, MOVED, PINNED, TO_DEVICE, collected

RETURNED = the(TO_DEVICE, SetupReturned)[0]
SET_UP = up_to(TO_DEVICE, RETURNED)
EVICTED = up_to(EVICT, the(EVICT, RangeReturned)[0])
RESTORED_PRESENT = PteChanged(0, 2, migration(1, young=True), present(1))
LOST_WRITE = PteChanged(0, 2, private(10), migration(10, write=False, exclusive=True))
LOCKED = FolioLocked(1, blocking=False)
READ_ONLY = {"old": present(1, write=False), "new": migration(1, write=False, exclusive=True, young=True)}
OTHER_MAPPING = by(
    "boot",
    MmCreated(1),
    VmaMapped(1, 0, 8, RW, anonymous=True),
    PteChanged(1, 2, PTE_NONE, present(1, write=False)),
    RmapAdded(1, 1, 2, 2, exclusive=False),
    FolioGot(1, 3),
)


def with_other_mapping():
    """The page is shared with mm 1, whose mapping setup leaves."""
    trace = collected(present(1, write=False), migration(1, write=False, young=True), migrating(1, write=False))
    trace = without(trace, ExclusiveShared(1, done=True))
    place = len(BOOT) + len(system_page())
    return trace[:place] + OTHER_MAPPING + trace[place:]


def mapped_on_device(write):
    """A read-only page goes to the device, which maps it."""
    trace = collected(**READ_ONLY, entry=migrating(1, write=False))
    src, dst = (migrating(1, write=False),), (migrate_pfn(10),)
    return trace + by(
        "mig0",
        FolioAllocated(10, 1, locked=True),
        PageCopied(1, 10),
        PagesCalled(0, src, dst, vma=True),
        MOVED,
        FlagsMoved(1, 10),
        PagesReturned(0, src),
        DeviceMapped("gpu", 0, 2, 10, write),
    )


CASES = [
    case(
        "C19",
        kept=TO_DEVICE,
        a_page_without_valid=wrong(change(SET_UP, SetupReturned, src=(ENTRY & ~MIGRATE_PFN_VALID,)), "C21"),
        the_lock_was_not_taken=wrong(without(SET_UP, LOCKED), "C58"),
        the_lock_is_another_tasks=before(without(SET_UP, LOCKED), INSTALLED, LOCKED, task="cpu1"),
        the_reference_was_put_too_often=before(SET_UP, RETURNED, FolioPut(1, 1)),
        a_page_that_is_free=wrong(change(EVICTED, RangeReturned, src=(migrating(11, write=False),)), "C21"),
    ),
    case(
        "C20",
        kept=TO_DEVICE,
        another_process_still_maps_it=with_other_mapping(),
        it_is_still_on_the_lru=put(SET_UP, LRU_ISOLATED, FolioGot(1, 2)),
    ),
    case(
        "C21",
        kept=PINNED,
        an_entry_that_does_not_migrate=wrong(change(SET_UP, SetupReturned, src=(ENTRY & ~HOLE,)), "C10"),
        the_migration_entry_stays=wrong(without(PINNED, RESTORED_PRESENT), "C58"),
        the_lock_stays=wrong(without(PINNED, FolioUnlocked(1)), "C09", "C44"),
        it_stays_isolated=put(PINNED, LruPutBack(1, 2), FolioPut(1, 2)),
    ),
    case(
        "C22",
        kept=TO_DEVICE,
        write_is_dropped=change(SET_UP, SetupReturned, src=(migrating(1, write=False),)),
        write_is_made_up=collected(**READ_ONLY, entry=migrating(1)),
        the_migration_entry_loses_it=put(
            EVICTED, TAKEN, PteChanged(0, 2, private(10), migration(10, write=False, exclusive=True))
        ),
        the_device_may_write_a_read_only_page=mapped_on_device(write=True),
        the_device_may_write_a_read_only_hole=before(
            change(up_to(HOLE_FILLED, MAPPED), PteChanged, new=private(10, write=False)),
            MAPPED,
            VmaMapped(0, 0, 8, VmFlags.READ, anonymous=True),
            task="boot",
        ),
    ),
    case("C23", kept=EVICT, write_without_a_mapping=change(EVICTED, RangeReturned, src=(migrating(10),))),
]

ACCEPTED = {
    "the device maps a read-only page read-only": mapped_on_device(write=False),
    "a read-only mapping has no WRITE": collected(**READ_ONLY, entry=migrating(1, write=False)),
}
