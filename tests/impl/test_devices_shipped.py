"""The kernel's test driver as two versions of the kernel have it (drivers/test_hmm_shipped.py)."""

from __future__ import annotations

import pytest

from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.drivers.test_hmm_ioctl import Command
from migrate_vma_impl.drivers.test_hmm_shipped import MENDED, STOCK
from migrate_vma_impl.generations import REFERENCED
from migrate_vma_impl.machine.containers import DriverSlot
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_spec.vocabulary import Errno, PteKind
from tests.impl.stage import READ_ONLY, A, Stage, Stopped

BOTH = pytest.mark.parametrize("version", ["v6.1", "v7.3"])
EXCLUSIVE = PteKind.EXCLUSIVE


def by_ranges(**config):
    """A process that has the device of 6.1 open, with three pages mapped and written."""
    stage = Stage(REFERENCED, MENDED["v6.1"], pages=3, **{"system_frames": 10, "addresses": 4, **config})
    stage.run(stage.driver.open, A)
    for addr in range(3):
        stage.touch(addr, write=True)
    return stage


def of(version, drivers):
    """A process that has the device open, on that kernel, with memory that no leaf maps whole."""
    stage = Stage(AS_SHIPPED[version], drivers[version], pages=3, system_frames=20, addresses=4, pmd_order=3)
    stage.run(stage.driver.open, A)
    return stage


def mirrored(stage):
    return {entry.addr: entry for entry in stage.slots[DriverSlot("dev0", "mirror")]}


def ioctl(stage, command, start, pages):
    return stage.run(stage.driver.ioctl, command, A, start, pages)


def test_a_window_of_pages_is_taken_at_once():
    stage = by_ranges()
    assert ioctl(stage, Command.EXCLUSIVE, 0, 3).ret == 0
    assert [stage.pte(addr).kind for addr in range(3)] == [EXCLUSIVE] * 3
    assert [entry.atomic for entry in mirrored(stage).values()] == [True] * 3


def test_what_could_be_had_before_a_page_that_could_not_is_exclusive_and_not_mirrored():
    stage = by_ranges()
    stage.run(syscalls.mprotect, stage.kernel, A, 2, 3, READ_ONLY)
    assert ioctl(stage, Command.EXCLUSIVE, 0, 3).ret == -Errno.EBUSY
    assert [stage.pte(addr).kind for addr in range(3)] == [EXCLUSIVE, EXCLUSIVE, PteKind.PRESENT]
    assert mirrored(stage) == {}


def test_a_page_of_a_file_is_busy_and_the_others_are_mirrored():
    stage = by_ranges(files=1, file_pages=1)
    stage.run(syscalls_files.mmap_shared, stage.kernel, A, 1, 2)
    assert ioctl(stage, Command.EXCLUSIVE, 0, 2).ret == -Errno.EBUSY
    assert [entry.atomic for entry in mirrored(stage).values()] == [True]


@pytest.mark.parametrize(("version", "writable"), [("v6.1", True), ("v7.3", False)])
def test_what_fills_a_hole_may_be_written_at_once_in_6_1_alone(version, writable):
    stage = of(version, MENDED)
    ioctl(stage, Command.MIGRATE_TO_DEV, 0, 2)
    assert [entry.write for entry in mirrored(stage).values()] == [writable] * 2


@BOTH
def test_an_invalidation_takes_one_entry_more(version):
    stage = of(version, MENDED)
    ioctl(stage, Command.MIGRATE_TO_DEV, 0, 3)
    stage.run(syscalls.madvise_dontneed, stage.kernel, A, 0, 1)
    assert list(mirrored(stage)) == [2]


@BOTH
def test_the_shipped_module_ends_the_kernel_where_it_reads_a_page_of_its_own_that_a_device_fault_found(version):
    stage = of(version, STOCK)
    stage.touch(0, write=True)
    ioctl(stage, Command.MIGRATE_TO_DEV, 1, 1)
    with pytest.raises(Stopped, match="no memory behind it"):
        ioctl(stage, Command.READ, 0, 2)


@BOTH
def test_the_mended_module_reads_it(version):
    stage = of(version, MENDED)
    stage.touch(0, write=True)
    ioctl(stage, Command.MIGRATE_TO_DEV, 1, 1)
    assert ioctl(stage, Command.READ, 0, 2).cpages == 2
