"""What system calls on address spaces may answer, what must be so after them, and where contents go with them."""

from __future__ import annotations

import pytest

from migrate_vma_spec.events import (
    AllocationFailed,
    Chose,
    CpuAccessed,
    FolioAllocated,
    FolioLazyfreed,
    MmCreated,
    MmExited,
    MmForked,
    OperationBegan,
    OperationEnded,
    PageCleared,
    PageCopied,
    PteChanged,
    TlbFilled,
    VmaChanged,
    VmaMapped,
    VmaMoved,
    VmaUnmapped,
)
from migrate_vma_spec.model import is_known
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind, VmFlags
from tests.spec.edits import without
from tests.spec.model_traces import (
    NAP,
    SETTLED,
    ZERO_READ,
    allowed_last,
    first_store,
    load,
    memory_after,
    operation,
    refusals,
    store,
)
from tests.spec.parts import BOOT, RW, by, migration, present

READ = int(VmFlags.READ)
LONGTERM, PIN, WRITE = 1 << 8, 1 << 19, 1
DIRTY = present(1, dirty=True)
SWAPPED = Pte(PteKind.SWAP, swap=3)
ON_3_ONLY = by("boot", VmaUnmapped(0, 0, 3), VmaUnmapped(0, 4, 8))


def ends(trace, name, arguments, *during):
    """The results that an operation may have after this trace, with these events in it."""
    steps = by("t1", OperationBegan(name, arguments)) + [step for steps in during for step in steps]
    found = allowed_last(trace + steps + by("t1", OperationEnded(name, 0)))
    (results,) = [values for what, values in found.items() if what.endswith("ended with")]
    return results


def flagged(flags, **more):
    return by("boot", VmaMapped(0, 0, 8, RW | flags, **{"anonymous": True, **more}))


FILE = flagged(VmFlags.NONE, anonymous=False, file=7)
SHORT = by("t1", Chose("vma", 1))
GONE = by("other3", VmaUnmapped(0, 2, 3))

# ---- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trace", "name", "arguments", "results"),
    [
        pytest.param(SETTLED, "mprotect", (0, 2, 3, READ), {0}, id="mprotect"),
        pytest.param(SETTLED, "mprotect", (0, 6, 9, READ), {-12}, id="mprotect of what is not mapped"),
        pytest.param(SETTLED, "mremap", (0, 2, 3, 9), {0}, id="mremap"),
        pytest.param(SETTLED, "mremap", (0, 7, 9, 12), {-14}, id="mremap of what is not mapped"),
        pytest.param(SETTLED, "mremap", (0, 2, 4, 3), {-22}, id="mremap onto itself"),
        pytest.param(SETTLED, "mremap", (0, 2, 4, 4), {0}, id="mremap just behind itself"),
        pytest.param(SETTLED, "madvise_free", (0, 2, 3), {0}, id="MADV_FREE"),
        pytest.param(SETTLED + FILE, "madvise_free", (0, 2, 3), {-22}, id="MADV_FREE of a file"),
        pytest.param(SETTLED, "madvise_free", (0, 8, 9), {-12}, id="MADV_FREE of nothing"),
        pytest.param(
            SETTLED + flagged(VmFlags.LOCKED), "madvise_dontneed", (0, 2, 3), {-22}, id="MADV_DONTNEED of what is locked"
        ),
        pytest.param(SETTLED, "madvise_cold", (0, 2, 3), {0}, id="MADV_COLD"),
        pytest.param(SETTLED + flagged(VmFlags.LOCKED), "madvise_cold", (0, 2, 3), {-22}, id="MADV_COLD of what is locked"),
        pytest.param(SETTLED, "madvise_pageout", (0, 2, 3), {0}, id="MADV_PAGEOUT"),
        pytest.param(SETTLED, "madvise_pageout", (0, 7, 9), {-12}, id="MADV_PAGEOUT of what is not mapped"),
        pytest.param(SETTLED, "madvise_hugepage", (0, 0, 8), {0}, id="MADV_HUGEPAGE"),
        pytest.param(SETTLED + flagged(VmFlags.PFNMAP), "madvise_hugepage", (0, 0, 8), {-22}, id="MADV_HUGEPAGE, special"),
        pytest.param(SETTLED, "execve", (0, 1), {0}, id="exec"),
        pytest.param(SETTLED, "clear_refs", (0,), {0}, id="clear_refs"),
        pytest.param(SETTLED, "uffd_register", (0, 2, 3, int(VmFlags.UFFD_MISSING), 0), {0}, id="register"),
        pytest.param(SETTLED, "uffd_register", (0, 8, 9, int(VmFlags.UFFD_MISSING), 0), {-22}, id="register nothing"),
        pytest.param(SETTLED, "uffd_unregister", (0, 2, 3), {0}, id="unregister"),
        pytest.param(SETTLED + flagged(VmFlags.UFFD_MISSING), "uffd_copy", (0, 5, 2, 0), {0}, id="fill a hole"),
        pytest.param(SETTLED + flagged(VmFlags.UFFD_MISSING), "uffd_copy", (0, 2, 5, 0), {-17}, id="fill over a page"),
        pytest.param(SETTLED, "uffd_copy", (0, 5, 2, 0), {-2}, id="fill where nobody watches"),
        pytest.param(SETTLED + flagged(VmFlags.UFFD_MISSING), "uffd_zeropage", (0, 5), {0}, id="zeros for a hole"),
        pytest.param(SETTLED + flagged(VmFlags.UFFD_WP), "uffd_writeprotect", (0, 2, 3, 1), {0}, id="write-protect"),
        pytest.param(SETTLED, "uffd_writeprotect", (0, 2, 3, 1), {-2}, id="write-protect where nobody watches"),
        pytest.param(SETTLED, "pin_user_pages", (0, 2, 4, PIN | WRITE), {2}, id="pin two pages"),
        pytest.param(SETTLED, "get_user_pages", (0, 7, 9, 0), {1}, id="pages up to the end of the VMA"),
        pytest.param(SETTLED, "get_user_pages", (0, 9, 10, 0), {-14, -22}, id="pages of nothing"),
        pytest.param(SETTLED, "get_user_pages", (0, 2, 3, LONGTERM), {-22}, id="pages for long without a pin"),
        pytest.param(SETTLED, "unpin_user_pages", (1,), {0}, id="unpin"),
    ],
)
def test_alone_a_system_call_has_one_result(trace, name, arguments, results):
    assert ends(trace, name, arguments) == results


@pytest.mark.parametrize(
    ("name", "arguments", "results"),
    [
        ("mprotect", (0, 2, 3, READ), {0, -12}),
        ("mremap", (0, 2, 3, 9), {0, -12}),
        ("execve", (0, 1), {0, -12}),
        ("pin_user_pages", (0, 2, 3, PIN), {1, -12, -14, -133}),
    ],
)
def test_memory_that_runs_short_is_a_reason_for_an_error(name, arguments, results):
    assert ends(SETTLED, name, arguments, SHORT) == results
    assert ends(SETTLED, name, arguments, by("t1", AllocationFailed("vma"))) == results


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [("mprotect", (0, 2, 3, READ), -12), ("mremap", (0, 2, 3, 9), -14), ("madvise_cold", (0, 2, 3), -12)],
)
def test_in_a_race_with_an_unmap_a_system_call_may_find_nothing(name, arguments, error):
    assert ends(SETTLED + NAP, name, arguments) == {0}
    assert ends(SETTLED + NAP, name, arguments, GONE) >= {0, error}


def test_a_speculative_reference_fails_on_a_frame_that_is_free():
    assert ends(SETTLED, "speculative_reference", (1,)) == {0}
    assert ends(SETTLED, "speculative_reference", (3,)) == {0, -11}


# ---- what must be so after it ------------------------------------------------------------------------------------------

PROTECTED = VmaChanged(0, 2, 3, VmFlags.READ), PteChanged(0, 2, DIRTY, present(1, write=False, dirty=True))
MPROTECT = operation("t1", "mprotect", (0, 2, 3, READ), *PROTECTED)
WATCH = int(VmFlags.UFFD_WP)
GUARDED = PteChanged(0, 2, DIRTY, present(1, write=False, uffd_wp=True))
ADVICE = VmaChanged(0, 0, 8, RW | VmFlags.HUGEPAGE)


@pytest.mark.parametrize(
    ("trace", "undone", "sentence"),
    [
        (SETTLED + MPROTECT, PROTECTED[0], "mprotect(0, 2, 3, 1) gave these permissions to 0; allowed: 1"),
        (SETTLED + MPROTECT, PROTECTED[1], "mm 0 addr 2 may be written, though the VMA's flags are 1"),
        (
            SETTLED + operation("t1", "madvise_hugepage", (0, 0, 8), ADVICE),
            ADVICE,
            "madvise_hugepage(0, 0, 8) marked pages: 0; allowed: 8",
        ),
        (
            SETTLED + operation("t1", "uffd_register", (0, 0, 8, WATCH, 0), VmaChanged(0, 0, 8, RW | VmFlags.UFFD_WP)),
            VmaChanged(0, 0, 8, RW | VmFlags.UFFD_WP),
            "uffd_register(0, 0, 8, 4096, 0) watches pages: 0; allowed: 8",
        ),
        (
            SETTLED + flagged(VmFlags.UFFD_WP) + operation("t1", "uffd_writeprotect", (0, 2, 3, 1), GUARDED),
            GUARDED,
            "uffd_writeprotect(0, 2, 3, 1) left otherwise 1; allowed: 0",
        ),
        (
            SETTLED + operation("t1", "mremap", (0, 2, 3, 9), VmaMoved(0, 2, 3, 9), PteChanged(0, 2, DIRTY, PTE_NONE))
            + by("t1", PteChanged(0, 9, PTE_NONE, DIRTY)),
            VmaMoved(0, 2, 3, 9),
            "mremap(0, 2, 3, 9) left mapped 1; allowed: 0",
        ),
    ],
    ids=["mprotect's VMA", "mprotect's entry", "MADV_HUGEPAGE", "register", "write-protect", "mremap"],
)  # fmt: skip
def test_what_a_call_left_undone_is_refused(trace, undone, sentence):
    if not any(isinstance(step.event, VmaMoved) for step in trace):
        assert refusals(trace) == []
    assert sentence in refusals(without(trace, undone))[0]


def test_a_page_that_is_guarded_may_not_be_written():
    guarded = PteChanged(0, 2, DIRTY, present(1, uffd_wp=True))
    trace = SETTLED + flagged(VmFlags.UFFD_WP) + operation("t1", "uffd_writeprotect", (0, 2, 3, 1), guarded)
    assert "mm 0 addr 2 may be written, and is write-protected: True; allowed: False" in refusals(trace)[0]


def test_a_private_page_that_others_map_may_not_be_written():
    forked = by("t1", OperationBegan("fork", (0, 1)), MmForked(0, 1), PteChanged(1, 2, PTE_NONE, present(1, write=False)))
    trace = SETTLED + forked + by("t1", OperationEnded("fork", 0))
    assert "mm 0 addr 2 may be written, and its frame is mapped by 2; allowed: 1" in refusals(trace)[0]


def test_a_tlb_permits_nothing_that_the_entry_forbids():
    cached = by("cpu1", TlbFilled(0, 2, DIRTY))
    trace = SETTLED + cached + MPROTECT
    assert "CPU 1's TLB maps mm 0 addr 2 for writing, and the entry allows that: False; allowed: True" in refusals(trace)[0]


# ---- contents: mremap --------------------------------------------------------------------------------------------------

MOVES = (VmaMoved(0, 2, 4, 10), PteChanged(0, 2, DIRTY, PTE_NONE), PteChanged(0, 10, PTE_NONE, DIRTY))
MREMAP = operation("t1", "mremap", (0, 2, 4, 10), *MOVES)


def test_contents_move_with_their_mapping():
    assert refusals(SETTLED + MREMAP + load(addr=10)) == []
    assert memory_after(SETTLED + MREMAP).copies((0, 10)) == {1}
    lost = without(MREMAP, MOVES[2])
    assert "mm 0 addr 10 leads to the zero page; allowed: frame 1" in refusals(SETTLED + lost)[0]
    assert "reached frame 1; allowed: nothing" in refusals(SETTLED + MREMAP + load())[0]


def test_while_a_mapping_moves_its_old_address_is_still_stored_to():
    half, rest = MREMAP[:2], MREMAP[2:]
    copied = by("other3", FolioAllocated(2, 1, locked=False), PageCopied(1, 2))
    late = by("cpu2", CpuAccessed(0, 2, 1, write=True))
    assert memory_after(SETTLED + half + copied + late + rest).copies((0, 10)) == {1}
    assert memory_after(SETTLED + half + copied + rest).copies((0, 10)) == {1, 2}
    assert not memory_after(SETTLED + MREMAP).moved


# ---- contents: MADV_FREE -----------------------------------------------------------------------------------------------

CLEANED = PteChanged(0, 2, DIRTY, present(1, young=False))
FREE = operation("t1", "madvise_free", (0, 2, 3), CLEANED, FolioLazyfreed(1))
DROPPED = by("reclaim1", PteChanged(0, 2, present(1, young=False), PTE_NONE))
ZEROS = by("cpu1", FolioAllocated(2, 1, locked=False), PageCleared(2), PteChanged(0, 2, PTE_NONE, present(2)))


def test_what_was_freed_lazily_is_old_or_zero():
    freed = SETTLED + FREE
    assert refusals(freed + load()) == []
    assert refusals(freed + DROPPED + ZERO_READ) == []
    assert refusals(freed + DROPPED + ZEROS + load(pfn=2)) == []
    assert refusals(freed + DROPPED + ZEROS + store(pfn=2) + load(pfn=2)) == []


def test_what_was_found_to_be_zero_stays_zero():
    back = by("boot", PteChanged(0, 2, Pte(PteKind.ZERO, young=True), present(1)))
    assert "found what is in frame 1; allowed: the zero page" in refusals(SETTLED + FREE + DROPPED + ZERO_READ + back + load())[0]


def test_a_store_ends_the_laziness():
    written = SETTLED + FREE + store()
    assert "mm 0 addr 2 leads to the zero page; allowed: frame 1" in refusals(written + DROPPED + operation("t1", "nap", ()))[0]


def test_a_store_before_the_last_flush_does_not():
    racing = FREE[:-1] + by("cpu2", CpuAccessed(0, 2, 1, write=True)) + FREE[-1:]
    assert refusals(SETTLED + racing + DROPPED + operation("t1", "nap", ())) == []


def test_a_page_that_nobody_gave_up_is_not_dropped():
    assert "mm 0 addr 2 leads to the zero page" in refusals(SETTLED + DROPPED + operation("t1", "nap", ()))[0]
    beside = operation("t1", "madvise_free", (0, 3, 4), FolioLazyfreed(1))
    assert memory_after(SETTLED + beside).lazy == frozenset()


def test_a_child_inherits_the_laziness_and_an_unmap_ends_it():
    fork = by("t1", OperationBegan("fork", (0, 1)), MmForked(0, 1))
    assert memory_after(SETTLED + FREE + fork).lazy == {(0, 2), (1, 2)}
    assert memory_after(SETTLED + FREE + by("t1", VmaUnmapped(0, 2, 3))).lazy == frozenset()


def test_swapped_contents_are_freed_at_once():
    swap = by("boot", PteChanged(0, 2, DIRTY, SWAPPED))
    free = operation("t1", "madvise_free", (0, 2, 3), PteChanged(0, 2, SWAPPED, PTE_NONE))
    assert refusals(SETTLED + swap + free + ZERO_READ) == []


# ---- contents: userfaultfd, poison, exec -------------------------------------------------------------------------------

WATCHED = SETTLED + flagged(VmFlags.UFFD_MISSING)
ANSWER = (FolioAllocated(2, 1, locked=False), PageCopied(1, 2), PteChanged(0, 5, PTE_NONE, present(2)))


@pytest.mark.parametrize(("name", "arguments"), [("uffd_copy", (0, 5, 2, 0)), ("uffd_serve", (0, 2))])
def test_a_monitors_copy_is_what_its_page_holds(name, arguments):
    answered = operation("t1", name, arguments, *ANSWER)
    assert refusals(WATCHED + answered + load(addr=5, pfn=2)) == []
    assert refusals(WATCHED + answered + store() + load(addr=5, pfn=2)) == []
    skipped = without(answered, ANSWER[1]) + load(addr=5, pfn=2)
    assert "mm 0 addr 5 leads to frame 2; allowed: frame 1" in refusals(WATCHED + skipped)[0]


def test_a_monitors_copy_that_a_store_outdates_is_right():
    racing = by("t1", OperationBegan("uffd_copy", (0, 5, 2, 0)), *ANSWER[:2])
    racing += store("cpu2") + by("t1", ANSWER[2], OperationEnded("uffd_copy", 0))
    assert "leads to frame 2" in refusals(WATCHED + racing)[0]
    open_still = by("cpu2", OperationBegan("write", (0, 2)), CpuAccessed(0, 2, 1, write=True))
    racing = by("t1", OperationBegan("uffd_copy", (0, 5, 2, 0)), *ANSWER[:2]) + open_still + by("t1", ANSWER[2])
    assert refusals(WATCHED + racing + by("cpu2", CpuAccessed(0, 5, 2, write=False))) == []


def test_a_poisoned_page_has_no_contents():
    poisoned = by("boot", PteChanged(0, 2, DIRTY, Pte(PteKind.HWPOISON)))
    assert refusals(SETTLED + poisoned + operation("t1", "nap", ())) == []
    assert memory_after(SETTLED + poisoned).pages == memory_after(BOOT).pages


def test_exec_leaves_nothing():
    gone = (PteChanged(0, 2, DIRTY, PTE_NONE), MmExited(0), MmCreated(0), VmaMapped(0, 0, 8, RW, anonymous=True))
    execed = SETTLED + operation("t1", "execve", (0, 1), *gone)
    assert refusals(execed + ZERO_READ) == []
    assert refusals(execed + first_store(pfn=2) + load(pfn=2)) == []
    assert "found what is in frame 1; allowed: the zero page" in refusals(execed + load())[0]


def test_a_page_in_a_migration_entry_is_kept_by_a_discard_of_its_neighbour():
    half = by("boot", PteChanged(0, 2, DIRTY, migration(1)))
    beside = operation("t1", "madvise_dontneed", (0, 3, 4), PteChanged(0, 3, PTE_NONE, PTE_NONE))
    assert memory_after(SETTLED + half + beside).copies((0, 2)) == {1}


# ---- names -------------------------------------------------------------------------------------------------------------


def test_what_the_model_does_not_know_it_says_so():
    assert is_known("mremap")
    assert is_known("gpu.check_exclusive")
    assert not is_known("defragment")
    assert not is_known("gpu.reset")
    assert not is_known("gpu.mremap")
    assert not is_known("to_device")


# ---- what a reader of /proc is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "bits"),
    [
        (PTE_NONE, 0),
        (present(1), 1 << 8),
        (SWAPPED, 1 << 7),
        (Pte(PteKind.DEVICE_PRIVATE, 10), 1 << 7),
        (present(1, write=False, uffd_wp=True), 1 << 8 | 1 << 2),
    ],
    ids=["nothing", "a page", "swap", "a device page", "a guarded page"],
)
def test_pagemap_tells_what_the_entry_is(entry, bits):
    trace = BOOT + by("boot", PteChanged(0, 2, PTE_NONE, entry), OperationBegan("pagemap", (0, 2)))
    for result, allowed in ((bits, {bits}), (bits ^ 1 << 7, {bits}), (bits | 1, {bits | 1})):
        found = allowed_last(trace + by("boot", OperationEnded("pagemap", result)))
        assert found["pagemap(0, 2) ended with"] == allowed
