"""The life of one kernel under a judge: a program of moments, each an operation or a race, until a clause is broken.

Rules:
- A program is data, and living it again gives the same, step by step.
- Each clause has an exception class of its own: whoever looks for a smaller program cannot slip from one clause to another.
- What follows a broken clause is not judged, unless the subject is allowed to break it.
- A whole life that broke no clause is judged a second time, by the axioms: they must find nothing either (`distrust.py`).
- A life ends early, and proves nothing, where memory ran out or a burst was cut: that is nobody's fault.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.distrust import check_unbroken
from migrate_vma_conformance.explore.replay import Follower
from migrate_vma_conformance.explore.sampling import End
from migrate_vma_conformance.report.columns import Execution, render
from migrate_vma_conformance.report.layout import paragraph
from migrate_vma_conformance.subject import MakeDriver
from migrate_vma_conformance.workbench import Burst, Drawn, Workbench, schedule_to
from migrate_vma_conformance.workload import MOST_PINS, Act, Operation
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import Oops
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import Clause, Progress

CONFIG = Config(cpus=2, system_frames=24, addresses=2, mms=2)
"""Room for every page to be in a batch of the LRU twice over, so that memory hardly ever runs out unasked."""

NO_DRAWN = Drawn()
"""Each task runs to its end, in order, and every data choice has its default."""


@frozen
class Moment:
    """Operations that are begun at once, and the schedule under which they run."""

    operations: tuple[Operation, ...]
    drawn: Drawn = NO_DRAWN

    def __str__(self) -> str:
        words = [" beside ".join(map(str, self.operations))]
        words += [f"switch {numbers}" for numbers in self.drawn.switches]
        words += [f"refusal {numbers}" for numbers in self.drawn.refusals]
        return "; ".join(words)


Program = tuple[Moment, ...]

NUMBERS = ("cpu", "mm", "addr", "more")
"""What an operation is told in numbers."""

PLAIN = (Act.READ, Act.WRITE)


@frozen
class Living:
    """What lives: a driver on a generation, and the clauses that it is known to break, with what then follows.

    `found` are clauses of which a break is known, and oopses, by their words: they end the life without a word, and what would
    have followed is not judged.
    """

    make: MakeDriver
    generation: Generation
    config: Config = CONFIG
    preemption: Preemption = Preemption.FULL
    allow: frozenset[str] = frozenset()
    found: set[str] = field(factory=set[str], hash=False)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class Trouble(Exception):
    """A life came to a bad end. `program` is what was lived, to the last moment."""

    def __init__(self, sentence: str, program: Program) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.program = program

    def __str__(self) -> str:
        return "\n".join([*paragraph(self.sentence, hang="  "), *self.told])

    @property
    def told(self) -> list[str]:
        """The program in lines."""
        lines = ["The workload, from boot:"]
        for number, moment in enumerate(self.program, 1):
            lines += paragraph(f"{number}. {moment}", indent="  ", hang="     ")
        return lines


class Broken(Trouble):
    """A clause is broken. Raised as the subclass of its clause, see `broken_class`."""

    clause: ClassVar[Clause]

    def __init__(self, sentence: str, program: Program, preemption: Preemption, burst: Burst | None, steps: int) -> None:
        super().__init__(sentence, program)
        self._preemption = preemption
        self._burst = burst
        self._steps = steps

    @functools.cached_property
    def text(self) -> str:
        """What broke the clause, what the clause says, the workload, and its last burst in columns with its schedule."""
        said = paragraph(f"{self.clause.id} {self.clause.name}: {self.sentence}", hang="  ")
        said += paragraph(f"The clause: {self.clause.sentence}", hang="  ")
        last = ["Broken when nothing ran any more."] if self._burst is None else self._columns(self._burst)
        return "\n".join([*said, *self.told, *last])

    def __str__(self) -> str:
        return self.text

    def _columns(self, burst: Burst) -> list[str]:
        schedule = schedule_to(burst, self._preemption, self._steps)
        run = Run(burst.system, self._preemption, stacks=True)
        follower = Follower(schedule)
        while (pick := follower.pick(run)) is not None:
            run.step(*pick)
        run.close()
        tasks = ", ".join(f"{number} {live.task.name}" for number, live in enumerate(run.tasks) if number)
        said = paragraph(f"Its last moment, of tasks {tasks}: {schedule}", hang="  ")
        return [*said, *render(Execution(tuple(run.trace), tuple(run.stacks or ())))]


class Stopped(Trouble):
    """The simulated kernel oopsed, and no clause says why."""


class Raised(Trouble):
    """A task's own code raised: a fault of the driver's model, or of the simulated kernel."""


@functools.cache
def broken_class(clause: str) -> type[Broken]:
    """The exception of a clause, `Broken_C31` for C31: one class for each id, made once."""
    return type(f"Broken_{clause}", (Broken,), {"clause": judged_clauses()[clause], "__module__": __name__})


def _speaks_of(known: str, clause: str, sentence: str) -> bool:
    """`known` is a clause, or as `C49: which is free` a clause and words of what is said of it."""
    name, _, words = known.partition(": ")
    return name == clause and words in sentence


def _deadlock_clause() -> str:
    return next(clause.id for clause in judged_clauses().values() if clause.progress is Progress.DEADLOCK)


# ---- living ----------------------------------------------------------------------------------------------------------


class Life:
    """One kernel from its boot on. Its methods raise Trouble."""

    def __init__(self, living: Living) -> None:
        self._living = living
        self._bench = Workbench(living.make, living.generation, living.config, living.preemption)
        self._judge = Judge(living.generation.capabilities, judged_clauses().values())
        self._over = False
        self._blamed = False
        self._program: list[Moment] = []
        self._trace = list(self._bench.steps)
        for step in self._bench.steps:
            self._blame(self._judge.feed(step), None, 0)

    def perform(self, moment: Moment) -> None:
        """Run the operations of a moment at once, and judge what they did. Does nothing once the life is over."""
        actors = () if self._over else self._bench.plan(moment.operations)
        if not actors:
            return
        self._program.append(moment)
        burst = self._bench.burst(actors, moment.drawn)
        self._trace.extend(burst.steps)
        for number, step in enumerate(burst.steps, 1):
            self._blame(self._judge.feed(step), burst, number)
        if burst.end is not End.FINISHED:
            self._give_up(burst)

    def end(self) -> None:
        """Drop the pins that are left, for only then must references balance, and judge the end.

        Raises:
            Distrust: no clause is broken, and an axiom is.
        """
        for _ in range(MOST_PINS):
            self.perform(Moment((Operation(Act.UNPIN),)))
        if not self._over:
            self._blame(self._judge.end(), None, 0)
        if not self._over and not self._blamed:
            check_unbroken(self._trace)
        self._over = True

    def _blame(self, findings: Sequence[tuple[str, str]], burst: Burst | None, steps: int) -> None:
        living = self._living
        for clause, sentence in findings:
            if self._over:
                return
            self._blamed = True
            self._over = not any(_speaks_of(each, clause, sentence) for each in living.allow)
            if self._over and clause not in living.found:
                raise broken_class(clause)(sentence, tuple(self._program), living.preemption, burst, steps)

    def _give_up(self, burst: Burst) -> None:
        """A burst that did not finish ends the life; badly, unless that follows from what is allowed, or from a limit."""
        if burst.end is End.STUCK and not self._bench.exhausted:
            self._blame([(_deadlock_clause(), f"{', '.join(burst.waiting)} sleep for ever")], burst, len(burst.steps))
        if burst.end is End.RAISED and not self._over:
            raise Raised("; ".join(burst.errors), tuple(self._program))
        if burst.end is End.STOPPED and not self._blamed:
            event = burst.steps[-1].event
            oops = event.what if isinstance(event, Oops) else str(event)
            if oops not in self._living.found:
                raise Stopped(f"oops: {oops}", tuple(self._program))
        self._over = True


def live(living: Living, program: Sequence[Moment]) -> Trouble | None:
    """The trouble that a whole life comes to, if any.

    Raises:
        ModelError: the model broke the rules of the machine.
    """
    try:
        life = Life(living)
        for moment in program:
            life.perform(moment)
        life.end()
    except Trouble as trouble:
        return trouble
    return None


# ---- a smaller program -----------------------------------------------------------------------------------------------


def smallest(living: Living, trouble: Trouble) -> Trouble:
    """The same trouble from the smallest program found: nothing of it can be left out, and no number of it be 0 instead."""
    again = live(living, trouble.program)
    if again is None or type(again) is not type(trouble):
        return trouble
    search = _Search(living, again)
    while search.improves():
        pass
    return search.best


@define(eq=False)
class _Search:
    """For smaller programs that come to the same trouble; a success is built upon at once."""

    living: Living
    best: Trouble

    def improves(self) -> bool:
        """Try every change once, large cuts first; whether any was a success."""
        before = self.best
        size = len(self.best.program) // 2
        while size:
            for start in range(len(self.best.program) - size, -1, -size):
                self._try(start, start + size, ())
            size //= 2
        for place in range(len(self.best.program) - 1, -1, -1):
            for change in (_apart, _without_part, _with_zero, _as_access, _counted_once):
                self._change(place, change)
        for name in NUMBERS:
            self._try(0, len(self.best.program), tuple(_zeroed(moment, name) for moment in self.best.program))
        return self.best is not before

    def _change(self, place: int, change: Callable[[Moment], Iterator[Program]]) -> None:
        number = 0
        while place < len(self.best.program):
            others = list(change(self.best.program[place]))
            if number >= len(others):
                return
            if not self._try(place, place + 1, others[number]):
                number += 1

    def _try(self, start: int, end: int, instead: Program) -> bool:
        program = self.best.program
        smaller = (*program[:start], *instead, *program[end:])
        found = None if smaller == program else live(self.living, smaller)
        if found is None or type(found) is not type(self.best):
            return False
        self.best = found
        return True


def _apart(moment: Moment) -> Iterator[Program]:
    """A race's operations one after the other."""
    if len(moment.operations) > 1:
        yield tuple(Moment((operation,)) for operation in moment.operations)


def _without_part(moment: Moment) -> Iterator[Program]:
    operations, drawn = moment.operations, moment.drawn
    for number in range(len(operations) if len(operations) > 1 else 0):
        yield (evolve(moment, operations=_without(operations, number)),)
    for number in range(len(drawn.switches)):
        yield (evolve(moment, drawn=evolve(drawn, switches=_without(drawn.switches, number))),)
    for number in range(len(drawn.refusals)):
        yield (evolve(moment, drawn=evolve(drawn, refusals=_without(drawn.refusals, number))),)


def _with_zero(moment: Moment) -> Iterator[Program]:
    for name in NUMBERS:
        if any(getattr(operation, name) for operation in moment.operations):
            yield (_zeroed(moment, name),)


def _as_access(moment: Moment) -> Iterator[Program]:
    """An operation as a plain load or store, where that will do."""
    for place, operation in enumerate(moment.operations):
        for act in () if operation.act in PLAIN else PLAIN:
            plain = evolve(operation, act=act)
            yield (evolve(moment, operations=(*moment.operations[:place], plain, *moment.operations[place + 1 :])),)


def _counted_once(moment: Moment) -> Iterator[Program]:
    """Switches in the numbers of the tasks that are there."""
    tasks = len(moment.operations)
    switches = tuple((who % tasks, step, hop % max(tasks - 1, 1)) for who, step, hop in moment.drawn.switches)
    if switches != moment.drawn.switches:
        yield (evolve(moment, drawn=evolve(moment.drawn, switches=switches)),)


def _zeroed(moment: Moment, name: str) -> Moment:
    zero: dict[str, Any] = {name: 0}
    return evolve(moment, operations=tuple(evolve(operation, **zero) for operation in moment.operations))


def _without(items: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    return items[:number] + items[number + 1 :]
