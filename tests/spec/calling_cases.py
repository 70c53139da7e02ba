"""The calling convention, clause by clause."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec.events import (
    CallbackReturned,
    FinalizeCalled,
    FinalizeReturned,
    FolioAllocated,
    FolioGot,
    FolioLocked,
    NotifierSubscribed,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PagesCalled,
    PagesReturned,
    PteChanged,
    PteRead,
    RangeReturned,
    SetupCalled,
    SetupReturned,
    VmaMapped,
)
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, Pte, PteKind, Select, VmFault, VmFlags, migrate_pfn
from tests.spec.cases import case, wrong
from tests.spec.edits import after, before, change, put, the, up_to, without
from tests.spec.fault_traces import DEVICE_START, EVICT, FAULT
from tests.spec.parts import BOOT, HOLE, MMAP, MMAP_OFF, PTL, PTL_OFF, RW, by, migrating
from tests.spec.traces import ABORTED, ENTRY, HOLE_FILLED, HOLE_LOST, INSERTED, MAPPED, PINNED, SETUP, TO_DEVICE

FINALIZE = the(TO_DEVICE, FinalizeCalled)[0]
CALLBACK_RETURNED = CallbackReturned(10, 0, 2, VmFault.NONE)
PAGES = the(TO_DEVICE, PagesCalled)[0]
EINVAL = -int(Errno.EINVAL)


def setup(result=0, boot=BOOT, cpages=0, npages=1, src=(0,), **arguments):
    """A setup that finds nothing."""
    call = evolve(SETUP, **arguments)
    returned = SetupReturned(0, result, call.start, call.end, cpages, npages, src)
    return boot + by("mig0", OperationBegan("migrate"), MMAP, call, returned, MMAP_OFF, OperationEnded("migrate", 0))


def walked(pte, src, select=Select.SYSTEM, boot=BOOT, anonymous=True):
    """A setup that reads one entry under the PTL."""
    boot = boot + by("boot", VmaMapped(0, 0, 8, RW, anonymous), PteChanged(0, 2, PTE_NONE, pte))
    returned = SetupReturned(0, 0, 2, 3, int(src != 0), 1, (src,))
    call = evolve(SETUP, select=select)
    finalize = (FinalizeCalled(0, (src,), (0,), vma=True), FinalizeReturned(0)) if src else ()
    return boot + by("mig0", MMAP, call, PTL, PteRead(0, 2, pte), PTL_OFF, returned, *finalize, MMAP_OFF)


FILE = BOOT + by("boot", VmaMapped(0, 0, 8, RW, anonymous=False))
TWO_VMAS = BOOT + by("boot", VmaMapped(0, 3, 8, VmFlags.READ, anonymous=True))
ZERO = Pte(PteKind.ZERO)

CASES = [
    case(
        "C01",
        kept=TO_DEVICE,
        setup_without_mmap_lock=without(without(TO_DEVICE, MMAP), MMAP_OFF),
        lock_dropped_before_finalize=before(without(TO_DEVICE, MMAP_OFF), FINALIZE, MMAP_OFF),
        lock_dropped_and_taken_again=before(TO_DEVICE, PAGES, MMAP_OFF, MMAP),
    ),
    case(
        "C02",
        kept=setup(EINVAL, boot=TWO_VMAS, end=5, nsrc=3, ndst=3),
        two_vmas_accepted=setup(0, boot=TWO_VMAS, end=5, npages=3, src=(0, 0, 0), nsrc=3, ndst=3),
        hugetlb_accepted=setup(0, boot=BOOT + by("boot", VmaMapped(0, 0, 8, RW | VmFlags.HUGETLB, anonymous=True))),
        empty_range_accepted=setup(0, end=2, npages=0, src=(), nsrc=1),
        no_vma_accepted=setup(0, start=9, end=10),
    ),
    case(
        "C03",
        kept=TO_DEVICE,
        dst_filled_past_npages=wrong(change(ABORTED, PagesCalled, dst=(0, migrate_pfn(11))), "C13", "C45"),
        end_is_not_start_plus_npages=change(ABORTED, SetupReturned, end=4),
    ),
    case("C04", kept=TO_DEVICE, src_too_short=setup(end=5, npages=3, src=(0, 0, 0), nsrc=2, ndst=3)),
    case(
        "C05",
        kept=TO_DEVICE,
        entry_past_the_end=wrong(change(setup(), SetupReturned, src=(0, HOLE)), "C07", "C10"),
        npages_past_the_end=wrong(setup(npages=2), "C03", "C11"),
        entry_past_the_pfns=change(EVICT, RangeReturned, src=(migrating(10, write=False), HOLE)),
    ),
    case(
        "C06",
        kept=setup(EINVAL, boot=TWO_VMAS, end=5, nsrc=3, ndst=3),
        another_errno=setup(-int(Errno.ENOMEM)),
        no_arrays_accepted=setup(nsrc=0),
        lock_kept_after_an_error=wrong(after(setup(EINVAL, DEVICE_START), SETUP, FolioLocked(10, blocking=False)), "C44"),
    ),
    case(
        "C07",
        kept=TO_DEVICE,
        finalize_left_out=wrong(
            [*up_to(TO_DEVICE, PAGES), *by("mig0", PagesReturned(0, (ENTRY,)), OperationEnded("migrate", 0))], "C44"
        ),
        finalize_twice=wrong(after(TO_DEVICE, FinalizeReturned(0), FINALIZE)),
        pages_twice=wrong(before(TO_DEVICE, FINALIZE, PAGES)),
        finalize_after_a_refusal=before(setup(EINVAL, end=9, nsrc=9, ndst=9), MMAP_OFF, evolve(FINALIZE, dst=(0,))),
        setup_again_without_finalize=[*up_to(TO_DEVICE, PAGES), *by("mig0", SETUP)],
        callback_returns_with_pages_held=up_to(FAULT, the(FAULT, SetupReturned)[0]) + by("cpu1", CALLBACK_RETURNED),
    ),
    case(
        "C08",
        kept=without(ABORTED, PagesCalled(0, (ENTRY,), (0,), vma=True), PagesReturned(0, (ENTRY & ~HOLE,))),
        a_destination_is_given=wrong(without(TO_DEVICE, PAGES, PagesReturned(0, (ENTRY,)), MAPPED), "C55"),
    ),
    case(
        "C09",
        kept=PINNED,
        a_lock_is_left=wrong(after(setup(boot=DEVICE_START), SETUP, FolioLocked(10, blocking=False)), "C21", "C44"),
        a_reference_is_left=wrong(after(setup(boot=DEVICE_START), SETUP, FolioGot(10, 2)), "C21"),
    ),
    case("C10", kept=TO_DEVICE, a_hole_is_not_counted=change(HOLE_FILLED, SetupReturned, cpages=0)),
    case("C11", kept=TO_DEVICE, the_walk_stops_early=wrong(setup(end=4, npages=1, nsrc=2, ndst=2), "C03")),
    case(
        "C12",
        kept=ABORTED,
        write_is_dropped=wrong(change(TO_DEVICE, PagesCalled, src=(migrating(1, write=False),))),
        migrate_is_cleared_with_a_destination=wrong(change(TO_DEVICE, FinalizeCalled, src=(migrate_pfn(1),)), "C55"),
    ),
    case(
        "C13",
        kept=TO_DEVICE,
        another_page_at_finalize=wrong(change(TO_DEVICE, FinalizeCalled, dst=(migrate_pfn(11),)), "C44", "C45", "C55"),
        a_destination_withdrawn=wrong(change(TO_DEVICE, FinalizeCalled, dst=(0,)), "C44", "C55"),
    ),
    case(
        "C14",
        kept=TO_DEVICE,
        system_memory_is_not_selected=put(TO_DEVICE, SETUP, evolve(SETUP, select=Select.DEVICE_PRIVATE)),
        another_owners_page=wrong(change(FAULT, SetupCalled, owner="npu"), "C76"),
    ),
    case("C15", kept=TO_DEVICE, no_owner=setup(boot=BOOT + by("boot", NotifierSubscribed("gpu", 0)), owner=None)),
    case(
        "C16",
        kept=HOLE_FILLED,
        anonymous_hole_is_skipped=walked(PTE_NONE, 0),
        files_hole_is_taken=walked(PTE_NONE, HOLE, anonymous=False),
        zero_page_without_select_system=walked(ZERO, HOLE, select=Select.DEVICE_PRIVATE),
        unseen_hole_of_a_file=wrong(change(setup(boot=FILE, cpages=1), SetupReturned, src=(HOLE,)), "C07"),
    ),
    case(
        "C17",
        kept=HOLE_FILLED,
        a_page_that_nobody_cleared=without(HOLE_FILLED, PageCleared(10)),
        system_page_cleared_too_late=[
            *up_to(HOLE_LOST, the(HOLE_LOST, SetupReturned)[0]),
            *by("mig0", FolioAllocated(3, 1, locked=False), FolioLocked(3, blocking=False)),
            *by("mig0", PagesCalled(0, (HOLE,), (migrate_pfn(3),), vma=True)),
        ],
    ),
    case(
        "C18",
        kept=HOLE_FILLED,
        a_files_hole_is_filled=before(HOLE_FILLED, INSERTED, VmaMapped(0, 0, 8, RW, anonymous=False), task="boot"),
    ),
]
