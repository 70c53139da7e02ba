"""Threads written by hand: what is judged of what they do, and what is left open."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.traces.recording import Recording
from migrate_vma_conformance.report.words import describe
from migrate_vma_conformance.subject import KNOWN_GENERATIONS
from migrate_vma_spec.events import FolioSeen, Step
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import Memory
from migrate_vma_spec.world import fold
from tests.kernel.projection import line, page
from tests.kernel.simulated import judged_from, recorded

WAITING = KNOWN_GENERATIONS["waiting"]
DEVICE, RAM = 100, 7
LOCKED, UNLOCKED = 0x2001, 0x2000
MIGRATES, TO = DEVICE << 6 | 3, RAM << 6 | 1
MM, ARGS = 0xFFFF888000001000, 0xFFFFC90000001000


class Thread:
    """Writes lines, one after the other, each a microsecond later than the last of any thread."""

    def __init__(self, pid=33, cpu=0, clock=None):
        self.pid, self.cpu, self.clock = pid, cpu, clock if clock is not None else [1_000_000]

    def __call__(self, event, **fields):
        self.clock[0] += 1
        return line(event, self.clock[0], pid=self.pid, cpu=self.cpu, **fields)

    def fault(self, pfn=DEVICE, ref=2):
        return self("fault", mm=MM, addr=0x5000, ff=0x254, pg=page(pfn), pgfl=LOCKED, ref=ref)

    def fault_ret(self, ret=0):
        return self("fault_ret", ret=ret)

    def free(self, pfn=DEVICE, ref=0):
        return self("freepg", pg=page(pfn), pgfl=UNLOCKED, ref=ref)

    def _call(self, event, counts, fp, args, **more):
        cpages, npages = counts
        state = {"args": args, "st": 0x5000, "en": 0x5000 + 0x1000 * more.pop("pages", 1), "fl": 2, "cp": cpages, "np": npages}
        return self(event, **state, ow=0xFFFFFFFFA0000040, fp=page(fp), mm=MM, pgfl=more.pop("pgfl", LOCKED), **more)

    def setup(self, fp=DEVICE, args=ARGS, **more):
        return self._call("setup", (0, 0), fp, args, **more)

    def setup_ret(self, ret=0, cpages=1, npages=1, fp=DEVICE, args=ARGS, src=(MIGRATES,), **more):
        return self._call("setup_ret", (cpages, npages), fp, args, ret=ret, src=src, **more)

    def pages(self, fp=DEVICE, args=ARGS, src=(MIGRATES,), dst=(TO,), **more):
        return self._call("pages", (1, 1), fp, args, src=src, dst=dst, **more)

    def fin(self, fp=DEVICE, args=ARGS, src=(MIGRATES,), dst=(TO,), **more):
        return self._call("fin", (1, 1), fp, args, src=src, dst=dst, **more)

    def migration(self, **more):
        return [self.setup(**more), self.setup_ret(**more), self.pages(**more), self.fin(**more)]

    def whole_fault(self):
        return [self.fault(), *self.migration(), self.fault_ret(), self.free()]


@pytest.fixture
def one():
    return Thread()


def test_a_fault_as_it_should_be_breaks_nothing(one):
    found = recorded([*one.whole_fault(), *one.whole_fault()], WAITING)
    assert found.juries[0].broken == {}
    assert (found.storms.entries, found.storms.migrations) == (2, 2)


# ---- the order of calls ------------------------------------------------------------------------------------------------


def test_a_callback_that_does_not_finalize_is_told(one):
    lines = [one.fault(), one.setup(), one.setup_ret(), one.pages(), one.fault_ret()]
    assert judged_from(lines, WAITING) == {"C07"}


def test_a_callback_may_stop_where_nothing_was_collected(one):
    lines = [one.fault(), one.setup(), one.setup_ret(cpages=0, src=(0,)), one.fault_ret()]
    found = recorded([*lines, *one.whole_fault()], WAITING)
    assert found.juries[0].broken == {}
    assert (found.storms.fruitless, found.storms.empty) == (1, 1)


def test_a_migration_that_is_finalized_twice_is_told(one):
    lines = [one.fault(), *one.migration(), one.fin(), one.fault_ret()]
    assert judged_from(lines, WAITING) == {"C07"}


def test_outside_of_a_callback_it_is_told_of_a_thread_that_is_known(one):
    outside = one.migration(fp=None)
    assert judged_from([*outside, one.fin(fp=None)], WAITING) == {"C07"}
    assert judged_from([one.fin(fp=None), *one.migration(fp=None)], WAITING) == set()


def test_a_migration_that_begins_anew_without_finalize_is_told(one):
    lines = [one.setup(fp=None), one.setup_ret(fp=None), *one.migration(fp=None)]
    assert judged_from(lines, WAITING) == {"C07"}


def test_a_migration_inside_another_is_told_apart_by_its_arguments(one):
    outer, inner = {"fp": None, "args": ARGS}, {"fp": None, "args": ARGS + 0x400}
    lines = [one.setup(**outer), one.setup_ret(**outer), *one.migration(**inner), one.pages(**outer), one.fin(**outer)]
    assert judged_from(lines, WAITING) == set()


def without_arguments(lines):
    return [text.replace(f"args={ARGS:#x} ", "").replace(f"args={ARGS + 0x400:#x} ", "") for text in lines]


def test_without_its_arguments_it_is_left_open(one):
    outer, inner = {"fp": None, "args": ARGS}, {"fp": None, "args": ARGS + 0x400}
    lines = [one.setup(**outer), one.setup_ret(**outer), *one.migration(**inner), one.pages(**outer), one.fin(**outer)]
    assert judged_from(without_arguments(lines), WAITING) == set()


def test_finalize_without_pages_and_with_a_destination_is_told(one):
    lines = [one.fault(), one.setup(), one.setup_ret(), one.fin(), one.fault_ret()]
    assert judged_from(lines, WAITING) == {"C08"}


# ---- returns that were missed ------------------------------------------------------------------------------------------


def test_a_return_of_setup_that_was_missed_leaves_the_migration_open(one):
    lines = [one.fault(), one.setup(), one.pages(), one.fin(dst=(0,)), one.fault_ret(), *one.whole_fault()]
    assert judged_from(lines, WAITING) == set()


def test_a_return_of_a_callback_that_was_missed_leaves_the_next_one_open(one):
    lines = [one.fault(), one.setup(), one.setup_ret(), *one.whole_fault(), one.fin(), one.fault_ret()]
    assert judged_from(lines, WAITING) == set()


def test_a_callback_that_begins_before_the_trace_is_open(one):
    lines = [one.setup(), one.setup_ret(), one.fault_ret(), *one.whole_fault()]
    assert judged_from(lines, WAITING) == set()


# ---- what the calls are given and give ---------------------------------------------------------------------------------


def test_a_fault_page_that_is_not_locked_must_be_refused(one):
    taken = [one.fault(), one.setup(pgfl=UNLOCKED), one.setup_ret(cpages=0, src=(0,), pgfl=UNLOCKED), one.fault_ret()]
    refused = [one.fault(), one.setup(pgfl=UNLOCKED), one.setup_ret(ret=-22, pgfl=UNLOCKED), one.fault_ret()]
    assert judged_from(taken, WAITING) == {"C30"}
    assert judged_from(refused, WAITING) == set()
    assert judged_from(taken, KNOWN_GENERATIONS["referenced"]) == set()


def test_a_lock_that_is_seen_once_is_not_known_later(one):
    """Unlocked at setup, and not looked at when it returned: by then somebody may have locked it."""
    lines = [one.fault(), one.setup(pgfl=UNLOCKED), one.setup_ret(cpages=0, src=(0,)), one.fault_ret()]
    lines[2] = lines[2].replace(f"pgfl={LOCKED:#x}", "")
    assert judged_from([*lines, *one.whole_fault()], WAITING) == set()


@pytest.mark.parametrize("given", [None, DEVICE + 1])
def test_the_fault_page_must_be_the_faults(one, given):
    lines = [one.fault(), one.setup(fp=given), one.setup_ret(fp=given), one.pages(fp=given), one.fin(fp=given), one.fault_ret()]
    assert judged_from([*lines, *one.whole_fault()], WAITING) == {"C29"}


def test_a_fault_page_outside_of_a_callback_is_told_of_a_thread_that_is_known(one):
    assert judged_from([*one.migration(), *one.whole_fault()], WAITING) == set()
    assert judged_from([*one.whole_fault(), *one.migration()], WAITING) == {"C29"}


def test_counts_and_results_of_setup_are_judged(one):
    def setup_returning(**more):
        return [one.fault(), one.setup(), one.setup_ret(**more), one.fault_ret(), *one.whole_fault()]

    assert judged_from(setup_returning(ret=-12), WAITING) == {"C06"}
    assert judged_from(setup_returning(cpages=0, npages=0, src=(0,)), WAITING) == {"C03", "C11"}
    assert judged_from(setup_returning(cpages=1, src=(0,)), WAITING) >= {"C10"}


def test_dst_must_not_change_after_pages(one):
    lines = [one.fault(), one.setup(), one.setup_ret(), one.pages(), one.fin(dst=(TO + 64,)), one.fault_ret()]
    assert judged_from(lines, WAITING) == {"C13"}


def test_an_array_that_is_not_shown_whole_is_not_judged(one):
    many = {"pages": 3, "npages": 3, "cpages": 3, "fp": None}
    entries = {"src": (MIGRATES,), "dst": (TO,)}
    calls = [one._call(name, (3, 3), None, ARGS, pages=3, **entries) for name in ("pages", "fin")]
    changed = calls[1].replace(f"dst={{{TO:#x}}}", "dst={0x0}")
    lines = [one.setup(fp=None, pages=3), one.setup_ret(**many), calls[0], changed]
    assert judged_from(lines, WAITING) == set()


# ---- pages that are freed ----------------------------------------------------------------------------------------------


def test_a_page_must_not_be_freed_with_references(one):
    assert judged_from([*one.whole_fault(), one.free(ref=1)], WAITING) == {"C43"}


def test_a_page_must_not_be_freed_while_a_callback_has_it():
    first = Thread(33, 0)
    other = Thread(34, 1, first.clock)
    lines = [*first.whole_fault(), first.fault(), first.setup(), other.free(), first.setup_ret(), first.pages(), first.fin()]
    assert judged_from(lines, WAITING) == {"C50"}
    assert judged_from([*lines[:9], other.free(pfn=DEVICE + 8), *lines[10:]], WAITING) == set()


def test_a_callback_must_not_be_given_a_free_page(one):
    assert judged_from([*one.whole_fault(), one.fault(ref=0), one.fault_ret()], WAITING) == {"C50"}


# ---- storms ------------------------------------------------------------------------------------------------------------


def test_entries_are_counted_for_each_page():
    first = Thread(33, 0)
    other = Thread(34, 1, first.clock)
    lines = []
    for thread in (first, other, first):
        lines += [thread.fault(), thread.setup(), thread.setup_ret(cpages=0, src=(0,)), thread.fault_ret()]
    lines += [first.fault(pfn=DEVICE + 1), first.fault_ret(), *other.whole_fault()]
    storms = recorded(lines, WAITING).storms
    assert (storms.entries, storms.migrations, storms.fruitless, storms.empty) == (5, 1, 4, 3)
    assert (storms.worst.entries, storms.worst.fruitless, storms.worst.threads) == (4, 3, {33, 34})


def test_what_is_open_at_the_end_breaks_nothing(one):
    found = recorded([*one.whole_fault(), one.fault(), one.setup(), one.setup_ret(), one.pages()], WAITING)
    assert isinstance(found, Recording)
    assert (found.juries[0].broken, found.storms.entries) == ({}, 1)


# ---- a look at a page --------------------------------------------------------------------------------------------------


def seen(world, **what):
    return fold(world, Step("task", 0, FolioSeen(5, **what)))


def test_a_look_tells_what_it_shows_and_leaves_the_rest():
    world = seen(seen(World(), refcount=2, locked=True), locked=False, memory=Memory.DEVICE_PRIVATE)
    frame = world.frame(5)
    assert (frame.refcount, frame.locked, frame.memory, frame.mapcount) == (2, False, Memory.DEVICE_PRIVATE, None)
    assert seen(world) == world


def test_a_look_is_told_in_words():
    assert [describe(FolioSeen(5, *more)) for more in ((2, True), (None, False), ())] == [
        "seen 5: refs 2, locked",
        "seen 5, not locked",
        "seen 5",
    ]
