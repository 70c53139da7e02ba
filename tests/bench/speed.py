"""How many operations a second the simulated kernel does: `python -m tests.bench.speed [--json]`.

One task on one CPU, nothing else runs, no clause judges: what is timed is kernel, driver and machine. Two ways: *live*, on
coroutines, as a replay or a drawn run goes; *at table speed*, in a state space, as exhaustive search goes, which evaluates a step
once and looks it up from then on (the first time is timed with the rest).

Then the kit (`kit.py`): drawn workloads, searches, judging. Each figure is of processor time, not of the clock on the wall, and
the best of several rounds; the garbage collector rests meanwhile, as it does in the children of a check. A machine that does
other work shows smaller figures all the same, so ratios within one run say more than numbers of two.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from attrs import frozen

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import make_test_hmm
from migrate_vma_impl.generations import find_generation
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.events import OperationEnded
from tests.bench.kit import speeds

ROUNDS = 5
STRETCH = 10_000
"""Steps in a row; no task is kept from running here, so it changes nothing but how often the loop goes round."""
MM = Mm(0)
PAGES = 1

Body = Callable[[Kernel, Driver, int], Coroutine[Any, Any, None]]


@frozen
class Measure:
    """`count` pieces of work by `body`, after a set-up that is not timed. Each is `operations` of a trace's operations."""

    name: str
    body: Body
    count: int
    operations: int = 1


@frozen
class Figure:
    """Pieces of work a second."""

    name: str
    live: float
    table: float


async def _touches(kernel: Kernel, driver: Driver, count: int) -> None:
    """Stores to a page that is mapped, with its translation in the TLB."""
    for _ in range(count):
        await syscalls.touch(kernel, MM, 0, write=True)


async def _faults(kernel: Kernel, driver: Driver, count: int) -> None:
    """A page is thrown away and faulted in again: MADV_DONTNEED, then a store."""
    for _ in range(count):
        await syscalls.madvise_dontneed(kernel, MM, 0, PAGES)
        await syscalls.touch(kernel, MM, 0, write=True)


async def _round_trips(kernel: Kernel, driver: Driver, count: int) -> None:
    """Two migrations each: to the device by its driver, and back by the CPU's fault."""
    for _ in range(count // 2):
        await driver.to_device(MM, 0, PAGES)
        await syscalls.touch(kernel, MM, 0, write=False)


async def _commanded(kernel: Kernel, driver: Driver, count: int) -> None:
    """Two migrations each: to the device and back, both by the driver."""
    for _ in range(count // 2):
        await driver.to_device(MM, 0, PAGES)
        await driver.to_system(MM, 0, PAGES)


async def _forks(kernel: Kernel, driver: Driver, count: int) -> None:
    """fork and exit of the child, one page mapped."""
    for _ in range(count):
        await syscalls.fork(kernel, MM, Mm(1))
        await syscalls.exit(kernel, Mm(1))


MEASURES = (
    Measure("touches of a mapped page", _touches, 20_000),
    Measure("one-page migrations, back by the driver", _commanded, 2_000),
    Measure("one-page migrations, back by a CPU's fault", _round_trips, 2_000),
    Measure("page faults after MADV_DONTNEED", _faults, 2_000, operations=2),
    Measure("forks with the child's exit", _forks, 1_000, operations=2),
)


async def _boot(kernel: Kernel, driver: Driver) -> None:
    await kernel.boot()
    await syscalls.mmap(kernel, MM, 0, PAGES)
    await driver.open(MM)
    await syscalls.touch(kernel, MM, 0, write=True)


async def _for_ever(kernel: Kernel, driver: Driver, body: Body) -> None:
    """The work again and again, without a count of it: so the task comes back to the state in which it began."""
    while True:
        await body(kernel, driver, 2)


def _system(measure: Measure, *, endless: bool = False) -> System:
    config = Config(cpus=1, system_frames=4, addresses=PAGES, mms=2)
    kernel = Kernel(find_generation("waiting"), config)
    driver = make_test_hmm(kernel)
    kernel.attach(driver)
    boot = Task("init", 0, _boot, (kernel, driver))
    worker = Task("kworker/0", 0, kworker, (kernel, 0), daemon=True)
    if endless:
        body = Task("bench", 0, _for_ever, (kernel, driver, measure.body))
    else:
        body = Task("bench", 0, measure.body, (kernel, driver, measure.count))
    return System(kernel.slots(), boot, (worker, body), 1)


WORKER, BODY = 1, 2


def live_seconds(measure: Measure) -> float:
    """One round on coroutines, from the first step after boot to the end of the task."""
    run = Run(_system(measure), Preemption.FULL)
    begin = time.process_time()
    while not run.finished:
        if not (run.proceed(BODY, STRETCH) or run.proceed(WORKER, STRETCH)):
            run.step(BODY)  # a data choice, which gets its default
    taken = time.process_time() - begin
    ended = run.tasks[BODY].ended
    if ended is None or ended.error is not None:
        raise RuntimeError(f"{measure.name}: the task ended with {ended}")
    return taken


def table_seconds(measure: Measure) -> float:
    """One round in a new state space."""
    space = Space(_system(measure, endless=True), Preemption.FULL)
    state = space.first
    left = measure.count * measure.operations
    begin = time.process_time()
    while left > 0:
        move = (space.moves(state, BODY) or space.moves(state, WORKER))[0]
        state = space.apply(state, move)
        left -= sum(isinstance(step.event, OperationEnded) for step in move.steps)
    return time.process_time() - begin


def figures() -> list[Figure]:
    gc.collect()
    gc.disable()
    found: list[Figure] = []
    for measure in MEASURES:
        live, table = (measure.count / min(way(measure) for _ in range(ROUNDS)) for way in (live_seconds, table_seconds))
        found.append(Figure(measure.name, live, table))
    return found


def main(arguments: list[str]) -> int:
    found, kit_speeds = figures(), speeds()
    if "--json" in arguments:
        rows = [{"name": each.name, "live": round(each.live), "table": round(each.table)} for each in found]
        more = [{"name": each.name, "unit": each.unit, "number": round(each.number)} for each in kit_speeds]
        lines = [json.dumps([*rows, *more])]
    else:
        lines = [f"{'live':>10} {'table':>10}  a second of processor time, on Python {platform.python_version()}"]
        lines += [f"{each.live:>10,.0f} {each.table:>10,.0f}  {each.name}" for each in found]
        lines += [f"{each.number:>10,.0f} {each.unit}: {each.name}" for each in kit_speeds]
    sys.stdout.write("\n".join((*lines, "")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
