"""migrate_vma_setup: what it refuses and in which order, and what it takes, entry by entry."""

import pytest
from attrs import evolve

from migrate_vma_impl.generations import ENTRY_FIRST, GENERATIONS, REFERENCED, TRYLOCKED, UNREFERENCED, WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.folio import folio_lock, folio_try_get
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm
from migrate_vma_spec.events import (
    FolioGot,
    FolioLocked,
    FolioRead,
    InvalidateBegan,
    InvalidateEnded,
    LockDropped,
    SetupReturned,
    TlbFlushed,
)
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    Lru,
    NotifyReason,
    PteKind,
    Select,
    VmFlags,
    migrate_pfn,
)
from tests.impl.stage import DEVICE_PAGE, VMA, A, B, Stage, Stopped

EINVAL = -22


@pytest.fixture
def stage():
    return Stage(WAITING)


def setup(stage, start=0, end=2, flags=Select.SYSTEM, vma=VMA, **given):
    size = max(end - start, 0)
    args = MigrateVma(vma, start, end, [0] * size, [0] * size, "dev0", flags)
    for name, value in given.items():
        setattr(args, name, value)
    return stage.run(stage.kernel.migrate_vma_setup, args), args


def flagged(flag):
    return evolve(VMA, flags=VMA.flags | flag)


REFUSED = {
    "no VMA": {"vma": None},
    "hugetlb": {"vma": flagged(VmFlags.HUGETLB)},
    "io": {"vma": flagged(VmFlags.IO)},
    "pfnmap": {"vma": flagged(VmFlags.PFNMAP)},
    "mixedmap": {"vma": flagged(VmFlags.MIXEDMAP)},
    "dontexpand": {"vma": flagged(VmFlags.DONTEXPAND)},
    "dax": {"vma": flagged(VmFlags.DAX)},
    "no pages": {"start": 1, "end": 1},
    "backwards": {"start": 2, "end": 1},
    "before the VMA": {"start": -1, "end": 1},
    "behind the VMA": {"start": 2, "end": 3},
    "over its end": {"start": 1, "end": 3},
    "no src": {"src": None},
    "no dst": {"dst": None},
}


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=lambda each: each.name)
@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_setup_refuses_and_holds_nothing(given, generation):
    stage = Stage(generation)
    stage.touch(0, write=True)
    before = dict(stage.slots)
    assert setup(stage, **given)[0] == EINVAL
    assert stage.slots == before


def test_a_missing_array_is_refused_before_the_fault_page_is_looked_at():
    stage = Stage(TRYLOCKED)
    assert setup(stage, src=None, fault_page=DEVICE_PAGE)[0] == EINVAL
    assert not stage.said(FolioRead)


FAULT_PAGE_ANSWERS = [
    (UNREFERENCED, 0, 0, 0),
    (REFERENCED, EINVAL, 0, 0),
    (TRYLOCKED, EINVAL, EINVAL, 0),
    (WAITING, EINVAL, EINVAL, 0),
    (ENTRY_FIRST, 0, 0, 0),
]


@pytest.mark.parametrize(("generation", "system", "unlocked", "locked"), FAULT_PAGE_ANSWERS)
def test_what_setup_demands_of_the_fault_page(generation, system, unlocked, locked):
    stage = Stage(generation)
    stage.touch(0, write=True)
    assert setup(stage, fault_page=Folio(1), flags=Select.DEVICE_PRIVATE)[0] == system
    assert setup(stage, fault_page=DEVICE_PAGE, flags=Select.DEVICE_PRIVATE)[0] == unlocked
    stage.run(stage.kernel.zone_device_page_init, DEVICE_PAGE)
    assert setup(stage, fault_page=DEVICE_PAGE, flags=Select.DEVICE_PRIVATE)[0] == locked


def test_holes_and_zero_pages_migrate_without_a_page(stage):
    stage.touch(0, write=False)
    result, args = setup(stage)
    assert (result, args.cpages, args.npages, args.src) == (0, 2, 2, [MIGRATE_PFN_MIGRATE] * 2)
    assert args.dst == [0, 0]


def test_a_hole_is_taken_whatever_is_selected_and_the_zero_page_only_as_system_memory(stage):
    stage.touch(0, write=False)
    _, args = setup(stage, flags=Select.DEVICE_PRIVATE)
    assert (args.src, args.cpages) == ([0, MIGRATE_PFN_MIGRATE], 1)


def test_a_file_mapping_has_no_holes_to_give(stage):
    _, args = setup(stage, vma=evolve(VMA, anon_vma=None))
    assert (args.src, args.cpages, args.npages) == ([0, 0], 0, 2)


def test_a_system_page_is_locked_unmapped_isolated_and_held_once(stage):
    stage.touch(0, write=True)
    result, args = setup(stage)
    page = stage.folio(1)
    assert (result, args.src[0]) == (0, migrate_pfn(1) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE)
    assert (page.refcount, page.mapcount, page.locked, page.lru, page.dirty) == (1, 0, True, Lru.ISOLATED, True)
    assert (stage.pte(0).kind, stage.pte(0).write) == (PteKind.MIGRATION, True)


def test_a_system_page_is_left_alone_where_only_device_pages_are_selected(stage):
    stage.touch(0, write=True)
    before = stage.pte(0)
    _, args = setup(stage, flags=Select.DEVICE_PRIVATE, end=1)
    assert (args.src, args.cpages, stage.pte(0)) == ([0], 0, before)


@pytest.mark.parametrize(
    ("flags", "owner", "taken"),
    [
        (Select.SYSTEM, "dev0", False),
        (Select.DEVICE_PRIVATE, "dev1", False),
        (Select.DEVICE_PRIVATE, None, False),
        (Select.DEVICE_PRIVATE, "dev0", True),
        (Select.SYSTEM | Select.DEVICE_PRIVATE, "dev0", True),
    ],
)
def test_a_device_page_is_taken_only_for_its_owner(flags, owner, taken):
    stage = Stage(WAITING, devices=2)
    stage.touch(0, write=True)
    stage.to_device()
    _, args = setup(stage, end=1, flags=flags, pgmap_owner=owner)
    assert bool(args.src[0]) is taken
    assert stage.folio(100).locked is taken


def test_a_page_that_is_locked_by_another_is_skipped(stage):
    stage.touch(0, write=True)
    stage.run(folio_lock, Folio(1))
    before = stage.folio(1)
    _, args = setup(stage, end=1)
    assert (args.src, args.cpages, stage.folio(1)) == ([0], 0, before)


def test_a_migration_entry_is_skipped(stage):
    stage.touch(0, write=True)
    setup(stage, end=1)
    _, again = setup(stage, end=1)
    assert again.src == [0]


def test_a_page_with_one_more_reference_is_restored_as_it_was(stage):
    stage.touch(0, write=True)
    stage.run(stage.kernel.lru_add_drain)
    stage.run(folio_try_get, Folio(1))
    before = stage.pte(0), evolve(stage.folio(1), dirty=True)
    _, args = setup(stage, end=1)
    assert (args.src, args.cpages) == ([0], 0)
    assert (stage.pte(0), stage.folio(1)) == before


def test_a_pinned_exclusive_page_keeps_its_entry(stage):
    stage.touch(0, write=True)
    stage.run(syscalls.pin, stage.kernel, A, 0)
    before = stage.pte(0), stage.folio(1)
    _, args = setup(stage, end=1)
    assert (args.src, stage.pte(0), stage.folio(1)) == ([0], *before)


def test_a_page_in_another_cpus_batch_is_drained_for(stage):
    stage.touch(0, write=True, cpu=1)
    assert stage.folio(1).lru is Lru.BATCHED
    _, args = setup(stage, end=1)
    assert args.cpages == 1


def test_a_forked_page_is_unmapped_in_both_address_spaces(stage):
    stage.touch(0, write=True)
    stage.run(syscalls.fork, stage.kernel, A, B)
    _, args = setup(stage, end=1)
    assert args.src == [migrate_pfn(1) | MIGRATE_PFN_MIGRATE]
    assert {stage.pte(0, mm).kind for mm in (A, B)} == {PteKind.MIGRATION}
    assert stage.folio(1).mapcount == 0


def test_the_walk_is_bracketed_and_names_the_owner(stage):
    setup(stage)
    assert stage.said(InvalidateBegan) == [InvalidateBegan(0, 0, 2, NotifyReason.MIGRATE, "dev0")]
    assert stage.said(InvalidateEnded) == [InvalidateEnded(0, 0, 2)]


def test_translations_are_flushed_before_the_page_table_lock_is_dropped(stage):
    stage.touch(0, write=True)
    since = len(stage.trace)
    setup(stage)
    after = stage.trace[since:]
    dropped = next(i for i, event in enumerate(after) if isinstance(event, LockDropped) and event.lock == "ptl:0")
    assert TlbFlushed(0, 0, 2) in after[:dropped]
    assert TlbFlushed(0, 0, 2) not in after[dropped:]


def test_the_range_in_the_answer_is_the_one_walked(stage):
    _, args = setup(stage, start=1)
    assert (args.start, args.end, args.npages) == (1, 2, 1)
    assert stage.said(SetupReturned)[-1] == SetupReturned(0, 0, 1, 2, 1, 1, (MIGRATE_PFN_MIGRATE,))


@pytest.mark.parametrize("name", ["src", "dst"])
def test_an_array_that_is_too_short_stops_the_machine(stage, name):
    with pytest.raises(Stopped, match="1 migration entries is used for 2 pages"):
        setup(stage, **{name: [0]})


def test_old_contents_of_the_arrays_do_not_matter(stage):
    _, args = setup(stage, src=[migrate_pfn(77), 5], dst=[migrate_pfn(77), 5])
    assert (args.src, args.dst) == ([MIGRATE_PFN_MIGRATE] * 2, [0, 0])


def test_a_setup_that_takes_nothing_locks_nothing(stage):
    setup(stage, flags=Select.DEVICE_PRIVATE, vma=evolve(VMA, anon_vma=None))
    assert not stage.said(FolioLocked)
    assert not stage.said(FolioGot)


def test_the_other_address_space_is_not_touched(stage):
    stage.touch(0, write=True)
    before = [stage.pte(addr, Mm(1)) for addr in range(4)]
    setup(stage)
    assert [stage.pte(addr, Mm(1)) for addr in range(4)] == before
