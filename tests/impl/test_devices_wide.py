"""The reference driver: mixed ranges, and the migration that drains with a device page locked."""

from __future__ import annotations

from contextlib import closing

import pytest

from migrate_vma_impl.drivers.wide import Wide, make_wide
from migrate_vma_impl.generations import TRYLOCKED, WAITING
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.events import DrainBegan, PageCleared, PageCopied, SetupReturned
from migrate_vma_spec.vocabulary import PteKind
from tests.impl.stage import A, B, Stage


@pytest.fixture
def stage():
    stage = Stage(WAITING, Wide, pages=3)
    stage.run(stage.driver.open, A)
    return stage


def test_pages_of_both_kinds_and_holes_move_together(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.touch(1, write=True)
    before = len(stage.trace)
    assert stage.to_device(0, 3) == 3
    assert stage.said(PageCopied, before) == [PageCopied(100, 101), PageCopied(1, 102)]
    assert stage.said(PageCleared, before) == [PageCleared(103)]
    assert stage.folio(100).refcount == 0


def test_what_finds_no_device_page_stays_where_it_is(stage):
    for _ in range(4):
        stage.run(stage.driver.state.free.pop)
    stage.touch(0, write=True)
    assert stage.to_device() == 0
    assert stage.pte(0).pfn == 1


def test_a_fault_without_memory_fails(stage):
    stage.touch(0, write=True)
    stage.to_device()
    stage.answers["alloc_page in migrate_to_ram"] = [1]
    assert stage.touch(0, write=False) == -12
    assert stage.pte(0).kind is PteKind.DEVICE_PRIVATE
    assert stage.touch(0, write=False) == 0


def test_a_fault_whose_page_somebody_else_migrates_is_tried_again():
    stage = Stage(TRYLOCKED, Wide)
    stage.touch(0, write=True)
    stage.to_device()
    stage.answers["alloc_page in migrate_to_ram"] = [1]
    setups = len(stage.said(SetupReturned))
    stage.run(stage.kernel.folio_get, Folio(100))
    stage.run(stage.kernel.folio_get, Folio(100))
    faulter = stage.start("faulter", syscalls.touch, stage.kernel, A, 0, False)
    assert faulter.until(SetupReturned).cpages == 0
    stage.run(stage.kernel.folio_put, Folio(100))
    stage.run(stage.kernel.folio_put, Folio(100))
    assert faulter.finish() == -12
    assert len(stage.said(SetupReturned)) == setups + 2


def test_faulting_the_range_in_brings_its_own_pages_back(stage):
    stage.touch(0, write=True)
    stage.to_device(0, 2)
    assert stage.run(stage.driver.to_system, A, 0, 3) == 3
    assert [stage.pte(addr).kind for addr in range(3)] == [PteKind.PRESENT, PteKind.PRESENT, PteKind.ZERO]


def drain(generation, preemption) -> tuple[Run, int]:
    """A migrator on CPU 0 that waits for a drain with a device page locked, which the reader on CPU 1 needs.

    The system page comes first, so the drain finds the device page collected, but not unmapped yet in the child, which reads it.
    """
    kernel = Kernel(generation, Config(system_frames=3, addresses=2))
    driver = make_wide(kernel)
    kernel.attach(driver)

    async def prologue() -> None:
        await syscalls.mmap(kernel, A, 0, 2)
        await driver.open(A)
        await syscalls.touch(kernel, A, 1, True)
        await driver.to_device(A, 1, 2)
        await syscalls.fork(kernel, A, B)
        await syscalls.touch(kernel, A, 0, True)

    tasks = (
        *(Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True) for cpu in range(2)),
        Task("migrator", 0, driver.to_device, (A, 0, 2)),
        Task("reader", 1, driver.to_system, (B, 1, 2)),
    )
    run = Run(System(kernel.slots(), Task("init", 1, prologue), tasks, 2), preemption)
    names = [live.task.name for live in run.tasks]
    while run.can_run(names.index("migrator")):
        run.step(names.index("migrator"))
    return run, names.index("reader")


def recurs(run: Run, task: int) -> bool:
    """Whether the task, alone, comes to a state that it was in before; False when it has to wait first."""
    seen = set()
    while run.can_run(task):
        key = run.state_key()
        if key in seen:
            return True
        seen.add(key)
        run.step(task)
    return False


def runnable(run: Run) -> list[str]:
    return [run.tasks[number].task.name for number in run.runnable()]


@pytest.mark.parametrize("preemption", [Preemption.VOLUNTARY, Preemption.NONE])
def test_a_reader_that_spins_keeps_the_drain_from_its_cpu(preemption):
    run, reader = drain(TRYLOCKED, preemption)
    with closing(run):
        assert run.trace[-1].event == DrainBegan()
        assert recurs(run, reader)
        assert runnable(run) == ["reader"]


def test_with_full_preemption_the_worker_gets_in():
    run, reader = drain(TRYLOCKED, Preemption.FULL)
    with closing(run):
        assert recurs(run, reader)
        assert runnable(run) == ["kworker/1", "reader"]


@pytest.mark.parametrize("preemption", Preemption)
def test_a_reader_that_sleeps_lets_the_drain_go_on(preemption):
    run, reader = drain(WAITING, preemption)
    with closing(run):
        assert not recurs(run, reader)
        assert runnable(run) == ["kworker/1"]
        while not run.finished:
            run.step(run.runnable()[0])
        assert all(live.ended is None or live.ended.error is None for live in run.tasks)
