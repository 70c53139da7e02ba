"""Page tables, clause by clause."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec.events import (
    CacheFlushed,
    ExclusiveShared,
    FinalizeCalled,
    FinalizeReturned,
    FlagsMoved,
    FolioDirtied,
    FolioFreed,
    FolioGot,
    FolioLocked,
    FolioPut,
    FolioUnlocked,
    FreeCallback,
    InvalidateEnded,
    LockDropped,
    LockTaken,
    LruAdded,
    MmCreated,
    MmForked,
    OperationBegan,
    OperationEnded,
    PagesCalled,
    PagesReturned,
    PteChanged,
    RmapAdded,
    SetupReturned,
    TlbFlushed,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, LockMode, VmFlags
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, later, put, the, up_to, without
from tests.spec.fault_traces import FAULT, TAKEN
from tests.spec.parts import BOOT, HOLE, MMAP_OFF, PTL, PTL_OFF, RW, by, migrating, migration, present, private
from tests.spec.traces import (
    ABORTED,
    CLEARED,
    ENTRY,
    HOLE_FILLED,
    HOLE_LOST,
    INSERTED,
    INSTALLED,
    MOVED,
    RESTORED,
    TO_DEVICE,
    collected,
)

SET_UP = the(TO_DEVICE, SetupReturned)[0]
AFTER_SETUP = len(up_to(TO_DEVICE, SET_UP))
FINALIZED = FinalizeReturned(0)
READ_ONLY_VMA = VmaMapped(0, 0, 8, VmFlags.READ, anonymous=True)
READ_ONLY_BOOT = BOOT + by("boot", READ_ONLY_VMA)
UFFD_VMA = VmaMapped(0, 0, 8, RW | VmFlags.UFFD_MISSING, anonymous=True)
PTL_1, PTL_1_OFF = LockTaken("ptl:1", LockMode.SPIN), LockDropped("ptl:1", LockMode.SPIN)
TAKEN_OVER = migration(1, young=True, dirty=True)
MAPPED_AFTER_ZAP = PteChanged(0, 2, PTE_NONE, private(10))
READABLE = evolve(TAKEN_OVER, write=False)
OTHER_ENTRY = by("boot", MmCreated(1), PteChanged(1, 2, PTE_NONE, migration(1, write=False)))

ZAPPED_MEANWHILE = [
    *up_to(TO_DEVICE, the(TO_DEVICE, FinalizeCalled)[0]),
    *by("zap1", PTL, PteChanged(0, 2, TAKEN_OVER, PTE_NONE), PTL_OFF),
    *by("mig0", FolioUnlocked(1), FolioPut(1, 0), FolioFreed(1)),
    *by("mig0", FolioUnlocked(10), FolioPut(10, 0), FreeCallback(10), FolioFreed(10), FINALIZED, MMAP_OFF),
]


def forked(child, parent=READABLE):
    """fork copies the migration entry of addr 2, while its page is on the way to the device."""
    copy = (
        *(OperationBegan("fork"), MmCreated(1), MmForked(0, 1), PTL, PTL_1),
        *(PteChanged(0, 2, TAKEN_OVER, parent), PteChanged(1, 2, PTE_NONE, child)),
        *(PTL_1_OFF, PTL_OFF),
    )
    return up_to(TO_DEVICE, SET_UP) + by("cpu2", *copy)


def round_trip(old, entry, restored, rmap_exclusive=True, boot=BOOT):
    """A page is collected, gets no destination, and is restored."""
    return collected(old, entry, boot=boot) + by(
        "mig0",
        PagesCalled(0, (ENTRY,), (0,), vma=True),
        PagesReturned(0, (ENTRY & ~HOLE,)),
        FinalizeCalled(0, (ENTRY & ~HOLE,), (0,), vma=True),
        LruAdded(1, 2),
        PTL,
        FolioGot(1, 3),
        RmapAdded(1, 0, 2, 1, rmap_exclusive),
        PteChanged(0, 2, entry, restored),
        PTL_OFF,
        FolioUnlocked(1),
        FolioPut(1, 2),
        FINALIZED,
        MMAP_OFF,
        OperationEnded("migrate", 0),
    )


OLD = present(1, dirty=True, soft_dirty=True, uffd_wp=True)
STANDING_IN = migration(1, young=True, dirty=True, soft_dirty=True, uffd_wp=True)


def bits_lost(**bits):
    """Bits of a present entry that its migration entry has not."""
    return collected(OLD, evolve(STANDING_IN, **bits))


CASES = [
    case(
        "C55",
        kept=TO_DEVICE,
        restored_to_another_page=put(TO_DEVICE, RESTORED, evolve(RESTORED, new=private(11))),
        restored_to_the_old_page=put(TO_DEVICE, RESTORED, evolve(RESTORED, new=private(1))),
        no_migration_entry=before(up_to(TO_DEVICE, CLEARED), CLEARED, evolve(CLEARED, new=present(2))),
        the_page_never_moved=without(TO_DEVICE, MOVED, FlagsMoved(1, 10)),
        still_mapped_elsewhere=before(TO_DEVICE, RESTORED, PteChanged(0, 5, PTE_NONE, present(1)), task="boot"),
    ),
    case(
        "C56",
        kept=TO_DEVICE,
        another_mapping=before(up_to(TO_DEVICE, MOVED), MOVED, PteChanged(1, 2, PTE_NONE, present(1)), task="boot"),
    ),
    case(
        "C57",
        kept=TO_DEVICE,
        another_process_is_left=wrong(up_to(TO_DEVICE, SET_UP) + OTHER_ENTRY + TO_DEVICE[AFTER_SETUP:], "C58"),
    ),
    case(
        "C58",
        kept=TO_DEVICE,
        the_page_is_not_locked=up_to(without(TO_DEVICE, FolioLocked(1, blocking=False)), INSTALLED),
        unlocked_too_early=up_to(before(TO_DEVICE, RESTORED, FolioUnlocked(1)), RESTORED),
        freed_too_early=up_to(before(TO_DEVICE, RESTORED, FolioPut(1, 0)), RESTORED),
    ),
    case(
        "C59",
        kept=TO_DEVICE,
        not_flushed=without(TO_DEVICE, TlbFlushed(0, 2, 3)),
        flushed_too_late=later(TO_DEVICE, TlbFlushed(0, 2, 3), PTL_OFF),
    ),
    case("C60", kept=TO_DEVICE, no_flush=without(TO_DEVICE, CacheFlushed(0, 2))),
    case(
        "C61",
        kept=TO_DEVICE,
        the_folio_is_clean=without(TO_DEVICE, FolioDirtied(1)),
        the_entry_is_clean=bits_lost(dirty=False),
    ),
    case(
        "C63",
        kept=FAULT,
        the_entry_is_dirty=put(up_to(FAULT, TAKEN), TAKEN, evolve(TAKEN, new=migration(10, dirty=True))),
        the_page_is_dirty=up_to(after(FAULT, TAKEN, FolioDirtied(10)), FolioDirtied(10)),
    ),
    case(
        "C64",
        kept=round_trip(OLD, STANDING_IN, OLD),
        young_is_lost=bits_lost(young=False),
        soft_dirty_is_lost=bits_lost(soft_dirty=False),
        uffd_wp_is_lost=bits_lost(uffd_wp=False),
        soft_dirty_is_not_restored=round_trip(OLD, STANDING_IN, evolve(OLD, soft_dirty=False)),
        young_is_made_up=round_trip(present(1, young=False), migration(1), present(1)),
    ),
    case(
        "C65",
        kept=ABORTED,
        the_entry_gains_write=wrong(collected(present(1, write=False), migration(1, young=True)), "C22"),
        the_mapping_gains_write=wrong(
            round_trip(present(1, write=False), migration(1, write=False, exclusive=True, young=True), present(1)), "C22"
        ),
        the_vma_is_read_only_now=round_trip(present(1), migration(1, young=True), present(1), boot=READ_ONLY_BOOT),
        a_hole_of_a_read_only_vma=before(up_to(HOLE_FILLED, INSERTED), INSERTED, READ_ONLY_VMA, task="boot"),
    ),
    case(
        "C66",
        kept=ABORTED,
        not_given_up=without(TO_DEVICE, ExclusiveShared(1, done=True)),
        a_pinned_page_is_taken=put(TO_DEVICE, ExclusiveShared(1, done=True), ExclusiveShared(1, done=False)),
        plain_readable=collected(present(1, write=False), migration(1, write=False, young=True), migrating(1, write=False)),
        not_restored=round_trip(present(1), migration(1, young=True), present(1), rmap_exclusive=False),
    ),
    case(
        "C67",
        kept=forked(child=READABLE),
        the_child_may_write=forked(child=evolve(READABLE, write=True)),
        the_child_is_exclusive=forked(child=evolve(READABLE, exclusive=True)),
        the_parent_may_write=forked(child=READABLE, parent=evolve(READABLE, write=True)),
    ),
    case(
        "C68",
        kept=ZAPPED_MEANWHILE,
        mapped_all_the_same=up_to(
            before(ZAPPED_MEANWHILE, FolioUnlocked(1), PTL, FolioGot(10, 2), MAPPED_AFTER_ZAP, PTL_OFF), MAPPED_AFTER_ZAP
        ),
    ),
    case(
        "C69",
        kept=HOLE_LOST,
        a_page_came_meanwhile=wrong(put(HOLE_FILLED, INSERTED, evolve(INSERTED, old=present(3)))),
        without_the_ptl=later(HOLE_FILLED, INSERTED, InvalidateEnded(0, 2, 3), nth=0),
        the_loser_keeps_migrate=up_to(change(HOLE_LOST, PagesReturned, src=(HOLE,)), PagesReturned(0, (HOLE,))),
    ),
    case(
        "C70",
        kept=HOLE_LOST,
        filled_all_the_same=before(HOLE_FILLED, INSERTED, UFFD_VMA, task="boot"),
    ),
]
