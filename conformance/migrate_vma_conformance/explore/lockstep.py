"""Lockstep: round robin with a quantum for each task, to find the fair cycles of systems too large to exhaust.

Tasks that hinder each other for ever mostly do so at a regular beat. A deterministic scheduler has few beats to try, and has
found a cycle when the whole state comes back at the beginning of a round.

Rules:
- A cycle is reported only after a second run has shown that its state recurs and that it is fair (`check_cycle`).
- That no beat gives a cycle says nothing: only an exhausted state graph does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Iterator, Sequence

from attrs import frozen

from migrate_vma_conformance.explore.explain import Recording, Subject, record
from migrate_vma_conformance.explore.replay import Follower, check_cycle, schedule_of
from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.machine.local_state import NotMergeable
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_spec.events import OperationBegan, Step
from migrate_vma_spec.registry import Progress

STEP_LIMIT = 3_000
QUANTA = (12, 9, 6, 4, 3, 2, 1)
"""Long quanta first: they finish soon where they find nothing, and what they find has few switches."""
LONG_STARTS = (12, 24, 48)
"""For one task alone: it gets into the middle of its operation before the others begin."""
SHORT_STARTS = (0, 3, 6, 9)
"""For all tasks, in every combination: they get out of step."""


class Lockstep:
    """Task n runs up to `quanta[n - 1]` steps (again from the front where they are fewer), then the next task in order.

    Before the first round task n makes up to `head_starts[n - 1]` steps. Data choices have their default, or with `refuse` the
    first other answer. Stops when the state at the beginning of a round comes back: `cycle` is then the number of the step at
    which it was first seen.
    """

    def __init__(self, quanta: Sequence[int], head_starts: Sequence[int] = (), *, refuse: bool = False) -> None:
        self.cycle: int | None = None
        self._quanta = tuple(quanta)
        self._head_starts = tuple(head_starts)
        self._refuse = refuse
        self._seen: dict[Hashable, int] = {}
        self._steps = 0
        self._at_round: int = -1
        self._task = 0
        self._left = 0
        self._first = True

    def pick(self, run: Run) -> tuple[int, int] | None:
        """Raises NotMergeable: a task holds something without a canonical form, so no cycle can be recognised."""
        while not (self._left and run.can_run(self._task)):
            if self._task + 1 < len(run.tasks):
                self._task += 1
                self._left = self._share(self._task)
            elif not self._next_round(run):
                return None
        self._left -= 1
        self._steps += 1
        question = run.question(self._task)
        return self._task, int(self._refuse and question is not None and question[2] > 1)

    def _share(self, task: int) -> int:
        if self._first:
            return self._head_starts[task - 1] if task <= len(self._head_starts) else 0
        return self._quanta[(task - 1) % len(self._quanta)]

    def _next_round(self, run: Run) -> bool:
        """Whether there is one: the last moved something, and the state is new."""
        if self._steps == self._at_round:
            return False
        key = run.state_key()
        self.cycle = self._seen.setdefault(key, self._steps) if key in self._seen else None
        self._seen[key] = self._steps
        if self.cycle is not None:
            return False
        self._first, self._at_round, self._task, self._left = False, self._steps, 0, 0
        return True


@frozen(eq=False)
class FairCycle:
    """A schedule that ends in a fair cycle, and the trace of that cycle."""

    kind: Progress
    fairness: Fairness
    schedule: Schedule
    steps: tuple[Step, ...]


def find_lasso(
    subject: Subject, fairness: Fairness, *, refuse: bool = False, seconds: float = 5.0, steps: int = STEP_LIMIT
) -> FairCycle | None:
    """Try one beat after the other until one leads into a cycle that is fair.

    Args:
        subject: what is run.
        fairness: what the cycle must be, as liveness.py defines it.
        refuse: answer data choices with other than their default: what then cycles is an endless retry.
        seconds: when to give up.
        steps: when to give up one beat.
    """
    deadline = time.monotonic() + seconds
    for quanta, head_starts in _beats(subject):
        if time.monotonic() > deadline:
            return None
        try:
            schedule = _recurrence(subject, Lockstep(quanta, head_starts, refuse=refuse), steps)
        except NotMergeable:
            return None
        found = None if schedule is None else _judged(subject, schedule, fairness, refuse=refuse)
        if found is not None:
            return found
    return None


def _beats(subject: Subject) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every quantum without head starts, then with them."""
    daemons = sum(task.daemon for task in subject.system.tasks)
    actors = len(subject.system.tasks) - daemons
    none = (0,) * actors
    alone = ((*none[:task], start, *none[task + 1 :]) for start in LONG_STARTS for task in range(actors))
    # The first task has none here, for what counts is the difference.
    together = itertools.product((0,), *([SHORT_STARTS] * (actors - 1)))
    for head_starts in dict.fromkeys(itertools.chain((none,), alone, together)):
        for quantum in QUANTA:
            yield (quantum,), (0,) * daemons + head_starts


def _recurrence(subject: Subject, strategy: Lockstep, limit: int) -> Schedule | None:
    """The schedule of the run under `strategy`, if its state recurs."""
    run = Run(subject.system, subject.preemption)
    path: list[tuple[int, int]] = []
    try:
        while len(path) < limit and (pick := strategy.pick(run)) is not None:
            path.append(pick)
            run.step(*pick)
    finally:
        run.close()
    if strategy.cycle is None:
        return None
    return schedule_of(subject.system, subject.preemption, path, strategy.cycle)


def _judged(subject: Subject, schedule: Schedule, fairness: Fairness, *, refuse: bool) -> FairCycle | None:
    """What kind of fair cycle it is; None where it is none, for it is not fair or an operation begins in it (F4)."""
    check = check_cycle(subject.system, subject.preemption, schedule, fairness, defaults=not refuse)
    if not check.recurs or not check.fair:
        return None
    steps, starved, asked = _seen_in_cycle(subject, schedule)
    if any(isinstance(step.event, OperationBegan) for step in steps):
        return None
    if refuse and not asked:
        return None
    kind = Progress.ENDLESS_RETRY if refuse else Progress.STARVATION if starved else Progress.LIVELOCK
    return FairCycle(kind, fairness, schedule, steps)


def _seen_in_cycle(subject: Subject, schedule: Schedule) -> tuple[tuple[Step, ...], bool, bool]:
    """The trace of the cycle, whether it starves a task (liveness.py: starved_tasks), and whether a data choice was refused."""
    run = Run(subject.system, subject.preemption)
    follower = Follower(schedule)
    said: list[Step] = []
    stepping: set[int] = set()
    able: set[int] = set()
    refused = False
    count = 0
    while (pick := follower.pick(run)) is not None:
        inside = schedule.cycle is not None and count >= schedule.cycle
        if inside:
            able.update(task for task in range(1, len(run.tasks)) if run.can_complete(task))
            stepping.add(pick[0])
            refused |= pick[1] > 0
        steps = run.step(*pick)
        said.extend(steps if inside else ())
        count += 1
    run.close()
    busy = {run.tasks[task].task.cpu for task in stepping}
    return tuple(said), any(run.tasks[task].task.cpu in busy for task in able - stepping), refused


def explain_cycle(subject: Subject, found: FairCycle) -> tuple[Schedule, Recording]:
    """The recording of a found cycle with stacks, as `explain.explain_lasso` gives it."""
    return found.schedule, record(subject, found.schedule, stacks=True)
