"""A schedule as data: where it departs from running each task to its end, and which data choices are not the default.

Rules:
- The default: a task keeps running until it waits or ends; then the next task in order that can run has its turn.
- A switch is (task, n, to): before the n-th step of `task`, and whether it could go on or not, `to` runs instead, if it can.
  Switches of one place are used up in their order. An answer is (task, what, n, answer): the n-th time that the task asks `what`.
- So removing one switch or answer moves no other, and every list of integers is a legal schedule.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Switch:
    """Before step `step` of task number `task` (0: before the first), task number `to` runs."""

    task: int
    step: int
    to: int


@frozen
class Answer:
    """The `nth` (from 0) question `what` of task number `task` is answered `answer`."""

    task: int
    what: str
    nth: int
    answer: int


@frozen
class Schedule:
    """Task numbers count the tasks of the scenario from 1, daemons after the prologue first (as `Space.tasks` has them).

    `steps` bounds the run (None: to its end). `cycle` is the number of the step at which a lasso's cycle begins: the run's last
    state is the state before that step.
    """

    switches: tuple[Switch, ...] = ()
    answers: tuple[Answer, ...] = ()
    steps: int | None = None
    cycle: int | None = None
