"""One simulated kernel that goes on: bursts of tasks run on it one after the other, each from what the last one left.

Rules:
- A burst is a system of its own: its slots begin with the values at the end of the burst before, its tasks are new, and nothing
  of it is left but values. So each CPU's worker must be idle at the end of a burst, which it is when nothing can run any more.
- A burst runs by a schedule that was drawn before it began, and can be run again alone.
- A schedule that lets one task spin for ever while others wait is none of a kernel: after a while the others have their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import evolve, frozen

from migrate_vma_conformance.explore.replay import Follower, schedule_of
from migrate_vma_conformance.explore.sampling import End, end_of, errors_of
from migrate_vma_conformance.subject import MakeDriver
from migrate_vma_conformance.workload import Operation, Plan, tasks
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Schedule, Switch
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import FreePages, Mm
from migrate_vma_impl.mm.mmap import VM_UFFD
from migrate_vma_impl.mm.userfaultfd_ioctl import userfaultfd_monitor
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.events import MmExited, Step

STEP_LIMIT = 5_000
"""A burst of three operations has a few hundred steps."""
PATIENCE = 300
"""So many steps in a row a task may make while others can run: more than any operation has that is not retrying."""

FIRST = Mm(0)


@frozen
class Drawn:
    """A schedule as it is drawn: of numbers, all legal. Tasks are counted from 0, round and round; workers run when others wait.

    A switch is (who, step, hop): before that step of its own the task gives way to the next one, or to the one `hop` tasks after
    that; at step 0 the burst begins with it. A refusal is (who, n): the n-th data choice of that task, whatever it asks, does not
    get its default.
    """

    switches: tuple[tuple[int, int, int], ...] = ()
    refusals: tuple[tuple[int, int], ...] = ()


@frozen(eq=False)
class Burst:
    """What a burst did. `offsets[i]` is the length of the trace before step i of the path; `waiting` are tasks left asleep."""

    system: System
    path: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]
    steps: tuple[Step, ...]
    end: End
    errors: tuple[str, ...]
    waiting: tuple[str, ...]


class Workbench:
    """A kernel with one device under test, booted, with all addresses of the first address space mapped and mirrored.

    `steps` is the trace of that.
    """

    def __init__(self, make_driver: MakeDriver, generation: Generation, config: Config, preemption: Preemption) -> None:
        self.preemption = preemption
        self.kernel = Kernel(generation, config)
        self.driver: Driver = make_driver(self.kernel)
        self.kernel.attach(self.driver)
        self._workers = tuple(Task(f"kworker/{cpu}", cpu, kworker, (self.kernel, cpu), daemon=True) for cpu in range(config.cpus))
        self._opened = {FIRST.number}
        boot = Task("init", 0, _boot, (self.kernel, self.driver))
        run = Run(System(self.kernel.slots(), boot, self._workers, config.cpus), preemption)
        self.steps: tuple[Step, ...] = tuple(run.trace)
        self._values = run.values()
        run.close()

    def plan(self, operations: Sequence[Operation]) -> tuple[Task, ...]:
        """The tasks that do these operations at once; those that nobody can do now are left out."""
        return tasks(Plan(self.kernel, self.driver, self._values, frozenset(self._opened)), operations)

    def burst(self, actors: Sequence[Task], drawn: Drawn) -> Burst:
        """Run tasks of `plan` together, to the end of all of them.

        Raises:
            ModelError: the model broke the rules of the machine.
        """
        first = Task("init", 0, _nothing)
        daemons = (*self._workers, *self._monitors())
        system = System(self._values, first, (*daemons, *actors), self.kernel.config.cpus, fallible=True)
        run = Run(system, self.preemption)
        place = len(daemons) + 1
        strategy = _Impatient(_schedule(drawn, place, len(actors)), _refusals(drawn, place, len(actors)))
        path: list[tuple[int, int]] = []
        try:
            while made := strategy.advance(run):
                path += made
            end = end_of(run)
            waiting = tuple(live.task.name for live in run.tasks[1:] if live.ended is None and not live.task.daemon)
            burst = Burst(system, tuple(path), tuple(run.offsets), tuple(run.trace), end, tuple(errors_of(run)), waiting)
        finally:
            run.close()
        self._values = run.values()
        self._note_openings(burst)
        return burst

    @property
    def exhausted(self) -> bool:
        """No system page is free."""
        return not self._values[FreePages()]

    def _note_openings(self, burst: Burst) -> None:
        opened = (task.values[1].number for task in burst.system.tasks if task.values[:1] == (self.driver.open,))
        self._opened.update(opened)
        self._opened.difference_update(step.event.mm for step in burst.steps if isinstance(step.event, MmExited))

    def _monitors(self) -> Iterator[Task]:
        """One for each address space in which a userfaultfd watches, to answer it."""
        for number in range(self.kernel.config.mms):
            if any(vma.flags & VM_UFFD for vma in self._values[Mm(number)].vmas):
                yield Task(f"monitor/{number}", 0, userfaultfd_monitor, (self.kernel, Mm(number), None), daemon=True)


def _schedule(drawn: Drawn, first: int, actors: int) -> Schedule:
    """`first` is the number of the first actor in the run."""

    def switch(who: int, step: int, hop: int) -> Switch:
        task = who % actors
        after = (task + 1 + hop % max(actors - 1, 1)) % actors
        return Switch(first + task, step, first + after) if step else Switch(0, 0, first + task)

    return Schedule(tuple(switch(*numbers) for numbers in drawn.switches))


def _refusals(drawn: Drawn, first: int, actors: int) -> Iterable[tuple[int, int]]:
    return ((first + who % actors, nth) for who, nth in drawn.refusals)


async def _boot(kernel: Kernel, driver: Driver) -> None:
    await kernel.boot()
    await driver.open(FIRST)
    await syscalls.mmap(kernel, FIRST, 0, kernel.config.addresses)
    if kernel.config.pmd_order:
        await syscalls.madvise_hugepage(kernel, FIRST, 0, kernel.config.addresses)


async def _nothing() -> None:
    """The prologue of a burst."""


class _Impatient(Follower):
    """Follows a schedule, refuses some data choices, and ends the turn of a task that has had PATIENCE steps in a row."""

    def __init__(self, schedule: Schedule, refusals: Iterable[tuple[int, int]]) -> None:
        super().__init__(evolve(schedule, steps=STEP_LIMIT))
        self._refusals = frozenset(refusals)
        self._row = 0

    def _task(self, run: Run) -> int | None:
        task = super()._task(run)
        self._row = self._row + 1 if task == self._current else 0
        if task is None or self._row < PATIENCE:
            return task
        self._row = 0
        return next((other for other in _after(task, len(run.tasks)) if run.can_run(other)), task)

    def _room(self, count: int) -> int:
        return min(super()._room(count), PATIENCE - 1 - self._row)

    def _skip(self, steps: int) -> None:
        super()._skip(steps)
        self._row += steps

    def _answer(self, run: Run, task: int) -> int:
        question = run.question(task)
        if question is None:
            return 0
        refused = (task, sum(run.tasks[task].asked.values())) in self._refusals
        return int(refused and question[2] > 1)


def _after(task: int, count: int) -> Iterable[int]:
    """The other tasks, beginning with the next one."""
    return (1 + (task - 1 + step) % (count - 1) for step in range(1, count - 1))


def schedule_to(burst: Burst, preemption: Preemption, steps: int) -> Schedule:
    """The burst up to so many steps of its trace, as a schedule that anybody can run."""
    length = sum(offset < steps for offset in burst.offsets)
    return schedule_of(burst.system, preemption, burst.path[:length])
