"""The driver of large device-private folios on every interleaving of two tasks, with a folio of two pages on the device."""

from __future__ import annotations

import pytest

from migrate_vma_impl.drivers.test_hmm import make_test_hmm
from migrate_vma_impl.generations import COMPOUND_GENERATIONS
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.containers import DriverSlot
from migrate_vma_impl.machine.system import System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Pgmap
from migrate_vma_impl.workqueue import kworker
from tests.impl.searching import Ends, ends_of
from tests.impl.stage import A
from tests.impl.test_devices_races import TASKS

EVICTED_WITHOUT_MEMORY = "dmirror_device_evict_chunk locks a folio that it did not get"
WIDE = {"to_system": lambda kernel, driver: (driver.to_system, (A, 0, 2))}


def search(generation: str, *names: str) -> Ends:
    kernel = Kernel(COMPOUND_GENERATIONS[generation], Config(cpus=2, system_frames=4, addresses=2, mms=1, pmd_order=1))
    driver = make_test_hmm(kernel, "dev0")
    driver.frames = 4
    kernel.attach(driver)

    async def prologue() -> None:
        await syscalls.mmap(kernel, A, 0, 2)
        await syscalls.madvise_hugepage(kernel, A, 0, 2)
        await driver.open(A)
        await syscalls.touch(kernel, A, 0, True)
        await driver.to_device(A, 0, 2)

    workers = [Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True) for cpu in range(2)]
    tasks = [Task(f"{name}{cpu}", cpu, *{**TASKS, **WIDE}[name](kernel, driver)) for cpu, name in enumerate(names)]
    return ends_of(System(kernel.slots(), Task("init", 0, prologue), (*workers, *tasks), 2))


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["trylocked+compound", "waiting+compound"])
@pytest.mark.parametrize(
    ("names", "oopses"),
    [
        (("store", "evict"), {EVICTED_WITHOUT_MEMORY}),
        (("store", "to_system"), set()),
        (("store", "device_write"), set()),
        (("discard", "evict"), set()),
        (("discard", "store"), set()),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else "",
)
def test_the_count_of_its_pages_is_right_at_every_end(generation, names, oopses):
    ends = search(generation, *names)
    assert (ends.oopses, ends.stuck) == (oopses, 0)
    assert {final[DriverSlot("dev0", "in_use")] - final[Pgmap("dev0")].refs for final in ends.finals} == {0}
