"""Sampling: executions drawn one at a time, for subjects whose state graph is too large, or whose tasks have no canonical form.

Rules:
- A strategy is asked for one step after the other and sees nothing but the run; a new one is made for each execution.
- What a strategy does follows from its seed: the same in every process, whatever the order of hashes.
- Of each broken clause the first execution is kept, as a schedule: `explain.smallest_break` confirms it and makes it smaller.
- That a sample broke nothing is never evidence that nothing can be broken.
"""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from attrs import define, field, frozen

from migrate_vma_conformance.explore.explain import Subject
from migrate_vma_conformance.explore.replay import Follower, schedule_of
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_spec.judge import Judge

STEP_LIMIT = 2_000
"""A drawn execution stops here: one that still runs is most likely retrying, and what it could break it has had time to."""


class Strategy(Protocol):
    """Decides one execution, step by step."""

    def pick(self, run: Run) -> tuple[int, int] | None:
        """The task that steps next and its answer to a data choice (else 0); None to stop, or when nothing can run."""
        ...


class RandomWalk:
    """The task that ran last, with probability `stay`, else any that can run.

    A walk that never stays is fair to every interleaving and so to none that matters: most races need one task to get far ahead.
    A data choice has another answer than its default with probability `surprise`.
    """

    def __init__(self, seed: int | str, *, stay: float = 0.9, surprise: float = 0.25) -> None:
        self._random = random.Random(f"walk {seed}")
        self._stay = stay
        self._surprise = surprise
        self._last = 0

    def pick(self, run: Run) -> tuple[int, int] | None:
        able = run.runnable()
        if not able:
            return None
        if self._last not in able or self._random.random() >= self._stay:
            self._last = self._random.choice(able)
        return self._last, drawn_answer(run, self._last, self._random, self._surprise)


class Pct:
    """Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi and Nagarakatte 2010).

    The task of the highest priority runs; at `depth` - 1 steps, drawn among the first `length`, the one that runs falls below all
    others. A bug that needs `depth` ordering constraints is found with probability 1 / (tasks * length ** (depth - 1)) or more.
    """

    def __init__(self, seed: int | str, tasks: int, depth: int, length: int, *, surprise: float = 0.25) -> None:
        self._random = random.Random(f"pct {seed}")
        self._surprise = surprise
        order = list(range(1, tasks + 1))
        self._random.shuffle(order)
        self._priorities = {task: depth + place for place, task in enumerate(order)}
        points = self._random.sample(range(max(length, depth)), depth - 1)
        self._falls = {step: depth - 1 - place for place, step in enumerate(sorted(points))}
        self._step = 0

    def pick(self, run: Run) -> tuple[int, int] | None:
        able = run.runnable()
        if not able:
            return None
        task = max(able, key=self._priorities.__getitem__)
        if self._step in self._falls:
            self._priorities[task] = self._falls[self._step]
            task = max(able, key=self._priorities.__getitem__)
        self._step += 1
        return task, drawn_answer(run, task, self._random, self._surprise)


def drawn_answer(run: Run, task: int, draw: random.Random, surprise: float) -> int:
    """An answer to the data choice that the task asks next, if any: mostly the default."""
    question = run.question(task)
    if question is None or question[2] == 1 or draw.random() >= surprise:
        return 0
    return draw.randrange(1, question[2])


def mixture(subject: Subject, seed: int) -> Iterator[Strategy]:
    """Endlessly: the default execution, then random walks and PCT of depths 2, 3 and 4 in turn."""
    tasks = len(subject.system.tasks)
    length = _default_length(subject)
    yield Follower(Schedule(steps=STEP_LIMIT))
    number = 0
    while True:
        yield RandomWalk(f"{seed} {number}")
        yield Pct(f"{seed} {number}", tasks, 2 + number % 3, length)
        number += 1


def _default_length(subject: Subject) -> int:
    run = Run(subject.system, subject.preemption)
    steps = len(_follow(run, Follower(Schedule(steps=STEP_LIMIT))))
    run.close()
    return steps


def _follow(run: Run, strategy: Strategy) -> list[tuple[int, int]]:
    path: list[tuple[int, int]] = []
    while len(path) < STEP_LIMIT and (pick := strategy.pick(run)) is not None:
        path.append(pick)
        run.step(*pick)
    return path


# ---- executions ------------------------------------------------------------------------------------------------------


class End(enum.Enum):
    """How an execution ended. CUT: by the limit on its steps, or by its strategy."""

    FINISHED = "finished"
    STUCK = "stuck"
    STOPPED = "stopped by an oops"
    RAISED = "a task raised"
    CUT = "cut"


@frozen(eq=False)
class Samples:
    """What the executions showed. `broken`, `errors` and `stuck` keep the first schedule of each clause, error, and deadlock."""

    executions: int
    ends: Mapping[End, int]
    reached: frozenset[str]
    broken: Mapping[str, Schedule]
    errors: Mapping[str, Schedule]
    stuck: Schedule | None


@define(eq=False)
class _Tally:
    """The samples while they are taken."""

    subject: Subject
    executions: int = 0
    ends: dict[End, int] = field(factory=lambda: dict.fromkeys(End, 0))
    reached: set[str] = field(factory=set[str])
    broken: dict[str, Schedule] = field(factory=dict[str, Schedule])
    errors: dict[str, Schedule] = field(factory=dict[str, Schedule])
    stuck: Schedule | None = None

    def schedule(self, path: list[tuple[int, int]]) -> Schedule:
        return schedule_of(self.subject.system, self.subject.preemption, path)


def sample(
    subject: Subject, strategies: Iterable[Strategy], *, executions: int, deadline: float | None = None, steps: int = STEP_LIMIT
) -> Samples:
    """Run one execution for each strategy and judge it.

    Args:
        subject: what is run and judged.
        strategies: one for each execution, as `mixture` makes them.
        executions: how many to run at most.
        deadline: in the seconds of time.monotonic; no execution begins after it.
        steps: the length at which an execution is cut.

    Raises:
        ModelError: the model broke the rules of the machine.
        PrologueError: the subject's prologue does not end.
    """
    tally = _Tally(subject)
    for strategy in strategies:
        if tally.executions >= executions or (deadline is not None and time.monotonic() > deadline):
            break
        _execute(tally, strategy, steps)
    return Samples(
        tally.executions, tally.ends, frozenset(tally.reached), dict(sorted(tally.broken.items())), tally.errors, tally.stuck
    )


def _execute(tally: _Tally, strategy: Strategy, steps: int) -> None:
    subject = tally.subject
    run = Run(subject.system, subject.preemption)
    judge = Judge(subject.capabilities, subject.clauses)
    path: list[tuple[int, int]] = []
    try:
        found = judge.feed_all(run.trace)
        while True:
            for clause, _ in found:
                if clause not in tally.broken:
                    tally.broken[clause] = tally.schedule(path)
            pick = strategy.pick(run) if len(path) < steps else None
            if pick is None:
                break
            path.append(pick)
            found = judge.feed_all(run.step(*pick))
        _end(tally, run, judge, path)
    finally:
        run.close()
    tally.executions += 1
    tally.reached |= judge.reached


def _end(tally: _Tally, run: Run, judge: Judge, path: list[tuple[int, int]]) -> None:
    end = end_of(run)
    tally.ends[end] += 1
    if end in (End.FINISHED, End.STUCK):
        for clause, _ in judge.end():
            if clause not in tally.broken:
                tally.broken[clause] = tally.schedule(path)
    if end is End.RAISED:
        for error in errors_of(run):
            if error not in tally.errors:
                tally.errors[error] = tally.schedule(path)
    elif end is End.STUCK and tally.stuck is None:
        tally.stuck = tally.schedule(path)


def errors_of(run: Run) -> list[str]:
    """What tasks of the run raised."""
    return [live.ended.error for live in run.tasks if live.ended is not None and live.ended.error is not None]


def end_of(run: Run) -> End:
    """How a run stands that makes no more steps."""
    if run.stopped:
        return End.STOPPED
    if errors_of(run):
        return End.RAISED
    if run.finished:
        return End.FINISHED
    return End.CUT if run.runnable() else End.STUCK
