"""Schedules in action: follow one, turn a path into one, make one smaller, and check a lasso by its definition.

All of it runs on live coroutines (`Run`), so what was found in the state graph is confirmed by an execution that shares neither
the memoised automata nor the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from attrs import evolve, frozen

from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.machine.local_state import NotMergeable
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Answer, Schedule, Switch
from migrate_vma_impl.machine.system import Preemption, System

STEP_LIMIT = 20_000
"""A run without an end of its own stops here; a lasso is far shorter."""


class Follower:
    """Picks the next task and answer as a schedule says. A pick is None when nothing can run, or the schedule's steps are
    done.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._switches: dict[tuple[int, int], list[int]] = {}
        for switch in schedule.switches:
            self._switches.setdefault((switch.task, switch.step), []).append(switch.to)
        self._answers = {(answer.task, answer.what, answer.nth): answer.answer for answer in schedule.answers}
        self._left = STEP_LIMIT if schedule.steps is None else schedule.steps
        self._current = 0

    def pick(self, run: Run) -> tuple[int, int] | None:
        if self._left <= 0:
            return None
        task = self._task(run)
        if task is None:
            return None
        self._left -= 1
        self._current = task
        return task, self._answer(run, task)

    def advance(self, run: Run) -> list[tuple[int, int]]:
        """Make the next step, and with it those behind it that no switch, question or limit concerns: what was picked for each.

        None where nothing can run, or the schedule's steps are done. It comes to the same as a `pick` and a `step` for each.
        """
        pick = self.pick(run)
        if pick is None:
            return []
        task, answer = pick
        if run.question(task) is not None:
            run.step(task, answer)
            return [pick]
        more = run.proceed(task, 1 + self._room(run.tasks[task].count)) - 1
        self._skip(more)
        return [(task, 0)] * (1 + more)

    def _room(self, count: int) -> int:
        """How many more steps the task picked last may make unasked; it has made `count` before the one it was picked for."""
        places = [step for (task, step), waiting in self._switches.items() if task == self._current and step > count and waiting]
        return min([self._left, *(step - count - 1 for step in places)])

    def _skip(self, steps: int) -> None:
        """So many steps were made without being picked."""
        self._left -= steps

    def _task(self, run: Run) -> int | None:
        waiting = self._switches.get((self._current, run.tasks[self._current].count), [])
        while waiting:
            to = waiting.pop(0)
            if 0 < to < len(run.tasks) and run.can_run(to):
                return to
        return default_task(run, self._current)

    def _answer(self, run: Run, task: int) -> int:
        question = run.question(task)
        if question is None:
            return 0
        what, nth, answers = question
        return self._answers.get((task, what, nth), 0) % answers


def default_task(run: Run, current: int) -> int | None:
    """The task that runs when no switch says otherwise: the current one, or the next in order that can."""
    if current and run.can_run(current):
        return current
    count = len(run.tasks)
    order = ((current + step) % count for step in range(1, count))
    return next((task for task in order if task and run.can_run(task)), None)


def schedule_of(system: System, preemption: Preemption, path: Iterable[tuple[int, int]], cycle: int | None = None) -> Schedule:
    """The schedule whose run makes exactly these (task, answer) steps."""
    run = Run(system, preemption)
    switches: list[Switch] = []
    answers: list[Answer] = []
    current = 0
    steps = 0
    for task, answer in path:
        if default_task(run, current) != task:
            switches.append(Switch(current, run.tasks[current].count, task))
        question = run.question(task)
        if question is not None and answer:
            answers.append(Answer(task, question[0], question[1], answer))
        run.step(task, answer)
        current = task
        steps += 1
    run.close()
    return Schedule(tuple(switches), tuple(answers), steps, cycle)


def shrink(schedule: Schedule, fails: Callable[[Schedule], Schedule | None]) -> Schedule:
    """Remove answers and switches, the last first, until none can go. `fails` gives the schedule (cut to length) if it still
    fails.
    """
    again = True
    while again:
        again = False
        for without in (_without_answer, _without_switch):
            place = len(schedule.answers) + len(schedule.switches)
            while place > 0:
                place -= 1
                smaller = without(schedule, place)
                kept = None if smaller is None else fails(smaller)
                if kept is not None:
                    schedule, again = kept, True
    return schedule


def _without_answer(schedule: Schedule, place: int) -> Schedule | None:
    if place >= len(schedule.answers):
        return None
    return evolve(schedule, answers=_without(schedule.answers, place), steps=None)


def _without_switch(schedule: Schedule, place: int) -> Schedule | None:
    if place >= len(schedule.switches):
        return None
    return evolve(schedule, switches=_without(schedule.switches, place), steps=None)


def _without(items: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    return items[:number] + items[number + 1 :]


@frozen
class CycleCheck:
    """What a replayed lasso is: whether its state recurs and whether its cycle is fair, or what is wrong with it."""

    recurs: bool
    fair: bool
    trouble: str = ""


def check_cycle(
    system: System, preemption: Preemption, schedule: Schedule, fairness: Fairness, *, defaults: bool = True
) -> CycleCheck:
    """Replay a lasso and judge its cycle by the definition of a fair cycle (liveness.py)."""
    run = Run(system, preemption)
    follower = Follower(schedule)
    before: Hashable = None
    enabled: list[set[int]] = []
    stepped: set[int] = set()
    asked: set[tuple[int, str]] = set()
    answered: set[tuple[int, str]] = set()
    count = 0
    try:
        while True:
            inside = schedule.cycle is not None and count >= schedule.cycle
            if count == schedule.cycle:
                before = run.state_key()
            able = set(run.runnable()) if inside else set[int]()
            pick = follower.pick(run)
            if pick is None:
                break
            task, answer = pick
            if inside:
                enabled.append(able)
                stepped.add(task)
                question = run.question(task)
                if question is not None:
                    asked.add((task, question[0]))
                    if answer == 0:
                        answered.add((task, question[0]))
            run.step(task, answer)
            count += 1
        recurs = before is not None and bool(enabled) and before == run.state_key()
    except NotMergeable as reason:
        return CycleCheck(False, False, str(reason))
    finally:
        run.close()
    return CycleCheck(recurs, _is_fair(run, enabled, stepped, fairness) and (not defaults or asked == answered))


def _is_fair(run: Run, enabled: list[set[int]], stepped: set[int], fairness: Fairness) -> bool:
    quantify = any if fairness is Fairness.STRONG else all
    cpu_of = [live.task.cpu for live in run.tasks]
    for task in range(1, len(run.tasks)):
        if task not in stepped and quantify(task in able for able in enabled):
            return False
    cpus = {cpu_of[task] for task in stepped}
    return not any(
        quantify(any(cpu_of[task] == cpu for task in able) for able in enabled) for cpu in set(cpu_of[1:]) if cpu not in cpus
    )
