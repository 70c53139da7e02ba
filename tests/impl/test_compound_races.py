"""Large folios of two pages on every interleaving of two tasks: the kernel never stops, nobody is left waiting, nothing leaks."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from attrs import evolve

from migrate_vma_impl import fault_page
from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.generations import ENTRY_FIRST, TRYLOCKED, WAITING, Generation, with_compound
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.system import System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.huge_memory import split_huge_pmd
from migrate_vma_impl.mm.mm_types import Folio, Pgmap, Vma
from migrate_vma_impl.workqueue import kworker
from tests.impl.compound_stage import HUGE
from tests.impl.searching import Ends, ends_of
from tests.impl.stage import A, B

COMPOUND = with_compound(WAITING)


class Evicting(Wide):
    """The wide driver with room for one large folio, which it can be told to empty."""

    frames: ClassVar[int] = 2

    async def evict(self) -> int:
        src, dst = [0, 0], [0, 0]
        await self.kernel.migrate_device_range(src, 100, 2)
        await self._fill_from_system(src, dst)
        await self.kernel.migrate_device_pages(src, dst, 2)
        moved = self._pages_of(src)
        await self.kernel.migrate_device_finalize(src, dst, 2)
        return moved


TASKS: dict[str, Any] = {
    "load": lambda kernel, driver: (syscalls.touch, (kernel, A, 0, False)),
    "store": lambda kernel, driver: (syscalls.touch, (kernel, A, 1, True)),
    "child": lambda kernel, driver: (syscalls.touch, (kernel, B, 1, False)),
    "discard": lambda kernel, driver: (syscalls.madvise_dontneed, (kernel, A, 0, 1)),
    "discard all": lambda kernel, driver: (syscalls.madvise_dontneed, (kernel, A, 0, 2)),
    "unmap": lambda kernel, driver: (syscalls.munmap, (kernel, A, 1, 2)),
    "exit": lambda kernel, driver: (syscalls.exit, (kernel, A)),
    "fork": lambda kernel, driver: (syscalls.fork, (kernel, A, B)),
    "to_device": lambda kernel, driver: (driver.to_device, (A, 0, 2)),
    "half": lambda kernel, driver: (driver.to_device, (A, 1, 2)),
    "evict": lambda kernel, driver: (driver.evict, ()),
}


def system(generation: Generation, names: tuple[str, ...], where: str) -> System:
    """Two pages in one folio: on the "device", there "by pages", or "forked"; in "system" memory, or "nowhere"."""
    cpus = len(names)
    kernel = Kernel(generation, Config(cpus=cpus, system_frames=7, addresses=2, mms=2, pmd_order=1))
    driver = Evicting(kernel, "dev0")
    kernel.attach(driver)

    async def prologue() -> None:
        await syscalls.mmap(kernel, A, 0, 2, HUGE)
        await driver.open(A)
        if where != "nowhere":
            await syscalls.touch(kernel, A, 0, True)
        if where in {"device", "forked", "by pages"}:
            await driver.to_device(A, 0, 2)
        if where == "forked":
            await syscalls.fork(kernel, A, B)
        if where == "by pages":
            await split_huge_pmd(kernel, Vma(A, 0, 2, HUGE, 0), 0)

    workers = [Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True) for cpu in range(cpus)]
    tasks = [Task(f"{name}{cpu}", cpu, *TASKS[name](kernel, driver)) for cpu, name in enumerate(names)]
    return System(kernel.slots(), Task("init", 0, prologue), (*workers, *tasks), cpus)


def leak(made: System, values: dict[Any, Any]) -> str:
    """What a final state holds that it should not."""
    frames = [value for key, value in values.items() if isinstance(key, Folio)]
    held = [f.pfn for f in frames if f.locked or f.queue]
    if held:
        return f"locked: {held}"
    batches = sum(len(value) for key, value in values.items() if type(key).__name__ == "LruBatch")
    extra = sum(f.refcount - f.mapcount for f in frames) - batches
    used = sum(1 << f.order for f in frames if f.is_zone_device and f.refcount)
    refs = values[Pgmap("dev0")].refs
    return f"references: {extra}, device pages: {used} of {refs}" if extra or used != refs else ""


def search(generation: Generation, where: str, *names: str) -> tuple[Ends, set[str]]:
    """Every state, and the leaks of those that are final."""
    made = system(generation, names, where)
    ends = ends_of(made)
    return ends, {leak(made, final) for final in ends.finals} - {""}


RACES = [
    ("device", "load", "discard"),
    ("device", "load", "unmap"),
    ("device", "load", "evict"),
    ("device", "store", "fork"),
    ("system", "to_device", "discard"),
    ("system", "to_device", "to_device"),
    ("system", "half", "store"),
    ("nowhere", "to_device", "store"),
    ("forked", "load", "child"),
    ("forked", "load", "exit"),
    ("by pages", "load", "discard"),
    ("by pages", "to_device", "discard"),
    ("by pages", "to_device", "discard all"),
]


@pytest.mark.slow
@pytest.mark.parametrize("race", RACES, ids="-".join)
@pytest.mark.parametrize("generation", [COMPOUND, with_compound(ENTRY_FIRST)], ids=lambda each: each.name)
def test_every_interleaving_ends_with_nothing_held(generation, race):
    ends, leaks = search(generation, *race)
    assert (ends.unsound, leaks) == ([], set())
    assert ends.states > 50


@pytest.mark.slow
@pytest.mark.parametrize("generation", [with_compound(TRYLOCKED), COMPOUND], ids=lambda each: each.name)
def test_two_faults_on_one_large_folio_end_with_nothing_held(generation):
    ends, leaks = search(generation, "device", "load", "store")
    assert (ends.unsound, leaks) == ([], set())


@pytest.mark.slow
def test_a_loser_that_sleeps_at_the_middle_level_is_always_woken():
    generation = evolve(COMPOUND, lose_page_lock_pmd=fault_page.lose_by_waiting)
    ends, leaks = search(generation, "device", "load", "store")
    assert (ends.unsound, leaks) == ([], set())


def test_in_v7_2_a_folio_that_is_discarded_before_its_split_is_referenced_when_it_is_free():
    ends, _ = search(AS_SHIPPED["v7.2"], "by pages", "to_device", "discard all")
    assert ends.oopses == {"folio_get of a free folio"}
