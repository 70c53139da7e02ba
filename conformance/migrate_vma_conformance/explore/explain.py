"""From a place in a state graph to a counterexample: a schedule that was run again, made smaller, and recorded with its stacks.

Nothing is reported that a run on live coroutines did not confirm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import evolve, frozen

from migrate_vma_conformance.explore.liveness import Lasso
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.explore.replay import Follower, check_cycle, schedule_of, shrink
from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_impl.machine.space import Transition
from migrate_vma_impl.machine.system import Preemption, System
from migrate_vma_impl.machine.traps import Key
from migrate_vma_spec.events import OperationBegan, OperationEnded, Step
from migrate_vma_spec.registry import Clause, Progress
from migrate_vma_spec.vocabulary import Capability


class Unconfirmed(Exception):
    """A path of the state graph did not show on live coroutines what the graph shows: a fault of the kit or of the model."""


@frozen
class Subject:
    """What is run and what it is judged by: all that a replay needs besides the schedule."""

    system: System
    preemption: Preemption
    clauses: tuple[Clause, ...]
    capabilities: frozenset[Capability]


@frozen(eq=False)
class Recording:
    """One run: its trace with stacks, what it broke (clause -> sentence) and after how many scheduled steps each was broken."""

    steps: tuple[Step, ...]
    stacks: tuple[tuple[str, ...], ...]
    first_step: int
    offsets: tuple[int, ...]
    broken: dict[str, str]
    when: dict[str, int]
    stuck: tuple[str, ...]
    finished: bool
    stopped: bool
    errors: tuple[str, ...]


def record(subject: Subject, schedule: Schedule, *, until: str | None = None, stacks: bool = False) -> Recording:
    """Run a schedule and judge it step by step, to the clause `until`, the end of the schedule, or the end of the run."""
    run = Run(subject.system, subject.preemption, stacks=stacks)
    product = Product(subject.clauses, subject.capabilities)
    follower = Follower(schedule)
    broken: dict[str, str] = {}
    when: dict[str, int] = {}
    offsets: list[int] = []
    number, found = product.follow(product.first, tuple(run.trace))
    while True:
        for one in found:
            broken.setdefault(one.clause, one.sentence)
            when.setdefault(one.clause, len(offsets))
        pick = None if until in broken else follower.pick(run)
        if pick is None:
            break
        offsets.append(len(run.trace))
        number, found = product.follow(number, tuple(run.step(*pick)))
    if not run.stopped and not run.runnable():
        for one in product.at_end(number):
            broken.setdefault(one.clause, one.sentence)
            when.setdefault(one.clause, len(offsets))
    recording = Recording(
        tuple(run.trace),
        tuple(run.stacks or ()),
        run.prologue_length,
        tuple(offsets),
        broken,
        when,
        _stuck(run),
        run.finished,
        run.stopped,
        tuple(live.ended.error for live in run.tasks if live.ended is not None and live.ended.error is not None),
    )
    run.close()
    return recording


def _stuck(run: Run) -> tuple[str, ...]:
    """Who waits for what, when nothing can run any more."""
    if run.stopped or run.finished or run.runnable():
        return ()
    return tuple(
        f"{live.task.name} waits in {_place(run, number)} for {', '.join(map(_readable, live.operation.trap.keys))}"
        for number, live in enumerate(run.tasks)
        if number and not live.task.daemon and live.ended is None and live.operation is not None
    )


def _place(run: Run, number: int) -> str:
    """The innermost kernel functions that a task is in; a trap is no coroutine, and so none of them."""
    names: list[str] = []
    inner: Any = run.tasks[number].coroutine
    while inner is not None and hasattr(inner, "cr_code"):
        names.append(inner.cr_code.co_name)
        inner = inner.cr_await
    return " < ".join(list(reversed(names))[:2])


def _readable(key: object) -> str:
    name = getattr(key, "name", None)
    if isinstance(name, str):
        return name
    pfn = getattr(key, "pfn", None)
    return f"folio {pfn}" if pfn is not None else repr(key)


def moves_of(path: Iterable[Transition]) -> list[tuple[int, int]]:
    return [(move.task, move.answer) for move in path]


def explain_break(subject: Subject, path: list[Transition], clause: str) -> tuple[Schedule, Recording]:
    """As `smallest_break`, from a path of the state graph."""
    return smallest_break(subject, schedule_of(subject.system, subject.preemption, moves_of(path)), clause)


def explain_deadlock(subject: Subject, path: list[Transition]) -> tuple[Schedule, Recording]:
    """As `smallest_deadlock`, from a path of the state graph."""
    return smallest_deadlock(subject, schedule_of(subject.system, subject.preemption, moves_of(path)))


def smallest_break(subject: Subject, schedule: Schedule, clause: str) -> tuple[Schedule, Recording]:
    """The smallest schedule found that breaks a clause that this one breaks, and its recording with stacks.

    Raises:
        Unconfirmed: the schedule itself does not break the clause when it is run.
    """
    alone = evolve(subject, clauses=tuple(each for each in subject.clauses if each.id == clause))

    def fails(candidate: Schedule) -> Schedule | None:
        recording = record(alone, candidate, until=clause)
        return evolve(candidate, steps=recording.when[clause]) if clause in recording.broken else None

    return _confirmed(subject, schedule, fails, clause, until=clause)


def smallest_deadlock(subject: Subject, schedule: Schedule) -> tuple[Schedule, Recording]:
    """As `smallest_break`, for a schedule at whose end nothing can run."""
    unjudged = evolve(subject, clauses=())

    def fails(candidate: Schedule) -> Schedule | None:
        recording = record(unjudged, candidate)
        return evolve(candidate, steps=len(recording.offsets)) if recording.stuck else None

    return _confirmed(subject, schedule, fails, "a deadlock")


def _confirmed(
    subject: Subject, schedule: Schedule, fails: Callable[[Schedule], Schedule | None], what: str, until: str | None = None
) -> tuple[Schedule, Recording]:
    first = fails(schedule)
    if first is None:
        raise Unconfirmed(f"the search shows {what}, and the run of {schedule} does not")
    # A smaller schedule may go round for ever: what takes much longer than the first does not count as smaller.
    longest = 4 * (first.steps or 0) + 400
    small = shrink(first, lambda candidate: fails(evolve(candidate, steps=longest)))
    return small, record(subject, small, until=until, stacks=True)


def explain_lasso(subject: Subject, lasso: Lasso) -> tuple[Schedule, Recording]:
    """The schedule of a lasso, checked by the definition of a fair cycle on live coroutines.

    Raises:
        Unconfirmed: its state does not recur, or its cycle is not fair, when it is run.
    """
    path = [*lasso.stem, *lasso.cycle]
    schedule = schedule_of(subject.system, subject.preemption, moves_of(path), len(lasso.stem))
    defaults = lasso.kind is not Progress.ENDLESS_RETRY
    check = check_cycle(subject.system, subject.preemption, schedule, lasso.fairness, defaults=defaults)
    if not check.recurs or not check.fair:
        raise Unconfirmed(f"the state graph shows a fair cycle, and the run of {schedule} does not: {check}")
    return schedule, record(subject, schedule, stacks=True)


def lasso_sentence(kind: Progress, fairness: Fairness, recording: Recording, cycle: int) -> str:
    """What a cycle shows, in a sentence with its tasks and operations."""
    begin = recording.offsets[cycle] if cycle < len(recording.offsets) else len(recording.steps)
    turning = sorted({step.task for step in recording.steps[begin:]})
    open_operations = _open(recording.steps)
    waiting = sorted(set(open_operations) - set(turning))
    verb = {
        Progress.LIVELOCK: "repeat for ever and none completes",
        Progress.STARVATION: "repeat for ever without reaching a scheduling point",
        Progress.ENDLESS_RETRY: "repeat for ever while an allocation keeps failing, and report no error",
    }.get(kind, "repeat for ever")
    who = ", ".join(f"{task} ({open_operations.get(task, 'kernel work')})" for task in turning)
    rest = f"; meanwhile wait: {', '.join(f'{task} ({open_operations[task]})' for task in waiting)}" if waiting else ""
    return f"{len(recording.offsets) - cycle} steps of {who} {verb} (a fair cycle under {fairness.value} fairness){rest}"


def _open(steps: Iterable[Step]) -> dict[str, str]:
    """The operation that each task has under way at the end of a trace."""
    under_way: dict[str, list[str]] = {}
    for step in steps:
        if isinstance(step.event, OperationBegan):
            under_way.setdefault(step.task, []).append(step.event.name)
        elif isinstance(step.event, OperationEnded):
            under_way[step.task].pop()
    return {task: names[0] for task, names in under_way.items() if names}


def final_values(subject: Subject, schedule: Schedule) -> dict[Key, Any]:
    """Every slot's value at the end of a schedule."""
    run = Run(subject.system, subject.preemption)
    follower = Follower(schedule)
    while (pick := follower.pick(run)) is not None:
        run.step(*pick)
    run.close()
    return {key: run.value(key) for key in subject.system.slots}
