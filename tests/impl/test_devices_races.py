"""The drivers on every interleaving of two tasks: the kernel never stops, nobody is left waiting, and nothing leaks."""

from __future__ import annotations

import pytest

from migrate_vma_impl.drivers.test_hmm import AdaptedDmirror, Dmirror
from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.generations import ENTRY_FIRST, REFERENCED, TRYLOCKED, UNREFERENCED, WAITING
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.system import System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Pgmap
from migrate_vma_impl.workqueue import kworker
from tests.impl.searching import Ends, ends_of
from tests.impl.stage import A

TASKS = {
    "store": lambda kernel, driver: (syscalls.touch, (kernel, A, 0, True)),
    "load": lambda kernel, driver: (syscalls.touch, (kernel, A, 0, False)),
    "discard": lambda kernel, driver: (syscalls.madvise_dontneed, (kernel, A, 0, 1)),
    "exit": lambda kernel, driver: (syscalls.exit, (kernel, A)),
    "to_device": lambda kernel, driver: (driver.to_device, (A, 0, 1)),
    "to_system": lambda kernel, driver: (driver.to_system, (A, 0, 1)),
    "evict": lambda kernel, driver: (driver.evict, ()),
    "release": lambda kernel, driver: (driver.release, ()),
    "device_write": lambda kernel, driver: (driver.device_write, (A, 0)),
}


def system(generation, driver_class, names) -> tuple[System, Kernel]:
    """One page, on the device; a task for each name, each on a CPU of its own with that CPU's worker."""
    kernel = Kernel(generation, Config(cpus=len(names), system_frames=2, addresses=1, mms=1))
    driver = driver_class(kernel, "dev0")
    kernel.attach(driver)

    async def prologue() -> None:
        await syscalls.mmap(kernel, A, 0, 1)
        await driver.open(A)
        await syscalls.touch(kernel, A, 0, True)
        await driver.to_device(A, 0, 1)

    workers = [Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True) for cpu in range(len(names))]
    tasks = [Task(f"{name}{cpu}", cpu, *TASKS[name](kernel, driver)) for cpu, name in enumerate(names)]
    return System(kernel.slots(), Task("init", 0, prologue), (*workers, *tasks), len(names)), kernel


def search(generation, driver_class, *names) -> Ends:
    return ends_of(system(generation, driver_class, names)[0])


PAIRS = [
    ("store", "evict"),
    ("store", "release"),
    ("store", "to_system"),
    ("store", "device_write"),
    ("evict", "device_write"),
    ("to_device", "to_system"),
    ("discard", "evict"),
    ("exit", "evict"),
    ("exit", "device_write"),
]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_test_hmm_on_every_interleaving(names):
    assert search(WAITING, Dmirror, *names).unsound == []


@pytest.mark.slow
@pytest.mark.parametrize("names", [*PAIRS, ("store", "load")], ids="-".join)
@pytest.mark.parametrize("generation", [REFERENCED, TRYLOCKED], ids=lambda each: each.name)
def test_test_hmm_in_the_generations_before(generation, names):
    assert search(generation, Dmirror, *names).unsound == []


def test_the_adapted_driver_where_the_fault_installs_the_entry():
    assert search(ENTRY_FIRST, AdaptedDmirror, "store", "load").unsound == []


@pytest.mark.slow
@pytest.mark.parametrize("names", [("store", "to_device"), ("store", "to_system"), ("to_device", "to_system")], ids="-".join)
def test_wide_on_every_interleaving(names):
    assert search(TRYLOCKED, Wide, *names).unsound == []


@pytest.mark.slow
@pytest.mark.parametrize("names", [("store", "evict"), ("store", "release")], ids="-".join)
def test_every_end_balances_the_pgmap(names):
    ends = search(WAITING, Dmirror, *names)
    for final in ends.finals:
        in_use = sum(final[folio].refcount > 0 for folio in final if folio in _device_folios())
        assert final[Pgmap("dev0")].refs == in_use == 0


def _device_folios():
    return system(WAITING, Dmirror, ("store",))[1].device_folios("dev0")


def test_without_a_reference_the_driver_looks_at_a_page_that_is_gone():
    """The bug that 16ce101db85d mended."""
    ends = search(UNREFERENCED, Dmirror, "store", "load")
    assert ends.oopses == {"zone_device_data of a free page is read"}
