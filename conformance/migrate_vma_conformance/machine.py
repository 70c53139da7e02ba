"""The contract as a Hypothesis state machine: rules make the workload, one kernel lives through it, one judge watches.

Rules:
- This is the only module of the package that imports Hypothesis.
- A race is one rule, which draws the operations and their whole schedule before anything runs. So every list of numbers is a legal
  schedule, dropping a number moves no other, and the smallest is: each operation to its end, one after the other.
- Each clause has an exception class of its own, so that shrinking does not slip from one clause to another, and several broken
  clauses give one example each.
- One class per subject: Hypothesis keeps its examples under the class's name.
- Nothing here depends on what ran before an example: no precondition, no shared state.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import hypothesis
from attrs import frozen
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from migrate_vma_conformance.errors import SubjectError
from migrate_vma_conformance.explore.replay import Follower
from migrate_vma_conformance.explore.sampling import End
from migrate_vma_conformance.report.columns import Execution, render
from migrate_vma_conformance.report.layout import paragraph
from migrate_vma_conformance.subject import MakeDriver, find_generation, make_checked
from migrate_vma_conformance.workbench import Burst, Drawn, Workbench, schedule_to
from migrate_vma_conformance.workload import MOST_PINS, Act, Operation
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.run import Run
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import Oops
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.model import REFERENCE
from migrate_vma_spec.registry import REGISTRY, Clause, Progress

CONFIG = Config(cpus=2, system_frames=24, addresses=2, mms=2)
"""Room for every page to be in a batch of the LRU twice over, so that memory hardly ever runs out unasked."""
MOST_SWITCHES = 4
LATEST_SWITCH = 99
"""The longest operations have about so many steps; a switch after a task's end does nothing."""


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class Broken(Exception):
    """A clause is broken. Raised as the subclass of its clause, see `broken_class`."""

    def __init__(self, sentence: str, burst: Burst | None, preemption: Preemption, steps: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self._burst = burst
        self._preemption = preemption
        self._steps = steps

    clause: ClassVar[Clause]

    @functools.cached_property
    def text(self) -> str:
        """What broke the clause, what the clause says, and the last burst of operations in columns with its schedule."""
        said = paragraph(f"{self.clause.id} {self.clause.name}: {self.sentence}", hang="  ")
        said += paragraph(f"The clause: {self.clause.sentence}", hang="  ")
        if self._burst is None:
            return "\n".join([*said, "Broken when nothing ran any more."])
        schedule = schedule_to(self._burst, self._preemption, self._steps)
        run = Run(self._burst.system, self._preemption, stacks=True)
        follower = Follower(schedule)
        while (pick := follower.pick(run)) is not None:
            run.step(*pick)
        run.close()
        tasks = ", ".join(f"{number} {live.task.name}" for number, live in enumerate(run.tasks) if number)
        said += paragraph(f"The last burst, of tasks {tasks}: {schedule}", hang="  ")
        return "\n".join([*said, *render(Execution(tuple(run.trace), tuple(run.stacks or ())))])

    def __str__(self) -> str:
        return self.text


class Stopped(Exception):
    """The simulated kernel oopsed, and no clause says why."""


class Raised(Exception):
    """A task's own code raised: a fault of the driver's model, or of the simulated kernel."""


@functools.cache
def broken_class(clause: str) -> type[Broken]:
    """The exception of a clause, `Broken_C31` for C31: one class for each id, made once."""
    known = {**REGISTRY, REFERENCE.id: REFERENCE}
    return type(f"Broken_{clause}", (Broken,), {"clause": known[clause], "__module__": __name__})


def _deadlock_clause() -> str:
    return next(clause.id for clause in REGISTRY.values() if clause.progress is Progress.DEADLOCK)


# ---- the machine -----------------------------------------------------------------------------------------------------


@frozen
class Subject:
    """What a machine runs, and the clauses that it is known to break."""

    make: MakeDriver
    generation: Generation
    config: Config
    preemption: Preemption
    allow: frozenset[str]


class ContractMachine(RuleBasedStateMachine):
    """A kernel under way, and its judge. `make_machine` makes the subclass of a subject, with its rules."""

    subject: ClassVar[Subject]

    def __init__(self) -> None:
        super().__init__()
        subject = self.subject
        self._bench = Workbench(subject.make, subject.generation, subject.config, subject.preemption)
        self._judge = Judge(subject.generation.capabilities, (*REGISTRY.values(), REFERENCE))
        self._over = False
        self._blamed = False
        for step in self._bench.steps:
            self._blame(self._judge.feed(step), None, 0)

    def perform(self, operations: Sequence[Operation], drawn: Drawn) -> None:
        """Run operations at once, and judge what they did."""
        actors = () if self._over else self._bench.plan(operations)
        if not actors:
            return
        burst = self._bench.burst(actors, drawn)
        for number, step in enumerate(burst.steps, 1):
            self._blame(self._judge.feed(step), burst, number)
        if burst.end is not End.FINISHED:
            self._over = True
            self._end(burst)

    def _blame(self, findings: Sequence[tuple[str, str]], burst: Burst | None, steps: int) -> None:
        for clause, sentence in findings:
            self._blamed = True
            if clause not in self.subject.allow:
                self._over = True
                raise broken_class(clause)(sentence, burst, self.subject.preemption, steps)

    def _end(self, burst: Burst) -> None:
        """A burst that did not finish ends the example; it is a failure unless it follows from what is allowed, or from a limit."""
        if burst.end is End.RAISED:
            raise Raised("; ".join(burst.errors))
        if burst.end is End.STOPPED and not self._blamed:
            oops = burst.steps[-1].event
            raise Stopped(oops.what if isinstance(oops, Oops) else repr(oops))
        if burst.end is End.STUCK and not self._bench.exhausted:
            self._blame([(_deadlock_clause(), f"{', '.join(burst.waiting)} sleep for ever")], burst, len(burst.steps))

    def teardown(self) -> None:
        """Drop the pins that are left, for only then is the end one at which references must balance, and judge it."""
        for _ in range(MOST_PINS):
            self.perform([Operation(Act.UNPIN)], Drawn())
        if not self._over:
            self._over = True
            self._blame(self._judge.end(), None, 0)


def make_machine(
    make_driver: MakeDriver,
    generation: Generation,
    *,
    config: Config = CONFIG,
    preemption: Preemption = Preemption.FULL,
    allow: frozenset[str] = frozenset(),
    title: str | None = None,
) -> type[ContractMachine]:
    """A state machine class for one subject.

    Args:
        make_driver: `factory(kernel) -> Driver`.
        generation: the fault path that it runs on.
        config: the size of the kernel.
        preemption: where tasks lose their CPU.
        allow: clauses that the subject is known to break: what is found of them is not reported.
        title: names the subject in the class's name, under which Hypothesis keeps its examples; by itself the factory's name.

    Raises:
        SubjectError: the factory fails, or returns no driver.
    """
    name = title or getattr(make_driver, "__name__", type(make_driver).__name__)
    subject = Subject(make_checked(name, make_driver), generation, config, preemption, allow)
    words = re.sub(r"\W+", "_", f"{name}_on_{generation.name}_{preemption.value}")
    acts = _acts(subject, name)
    rules = {title: _alone(title, group, config) for title, group in _grouped(acts).items()}
    body: dict[str, Any] = {**rules, "race": _race(acts, config), "subject": subject, "__module__": __name__}
    return type(f"Contract_{words}", (ContractMachine,), body)


def _acts(subject: Subject, name: str) -> list[Act]:
    """What can be asked of the driver under test. Simple ones first, for Hypothesis shrinks towards the first."""
    try:
        driver = Workbench(subject.make, subject.generation, subject.config, subject.preemption).driver
    except SubjectError:
        raise
    except Exception as error:
        raise SubjectError(name, f"its factory raised {type(error).__name__}: {error}") from error
    return [act for act in Act if act.needs is None or act.needs in driver.loads]


GROUPS: Mapping[str, tuple[Act, ...]] = {
    "touch": (Act.READ, Act.WRITE),
    "migrate": (Act.TO_DEVICE, Act.TO_SYSTEM, Act.EVICT),
    "access": (Act.DEVICE_READ, Act.DEVICE_WRITE),
    "map": (Act.DISCARD, Act.MUNMAP, Act.MMAP, Act.MMAP_READ_ONLY),
    "process": (Act.FORK, Act.EXIT, Act.OPEN),
    "hold": (Act.BORROW, Act.PIN, Act.UNPIN),
}
"""The rules for what is done alone. Few of them: Hypothesis leaves out some rules in each example, and must not leave out much."""


def _grouped(acts: Sequence[Act]) -> dict[str, tuple[Act, ...]]:
    groups = {title: tuple(act for act in group if act in acts) for title, group in GROUPS.items()}
    return {title: group for title, group in groups.items() if group}


def _operation(acts: Sequence[Act], config: Config) -> st.SearchStrategy[Operation]:
    """Every operation of these acts; numbers that do not matter to an act stay 0."""
    cpu = st.integers(0, config.cpus - 1)
    mm = st.integers(0, config.mms - 1)
    addr = st.integers(0, config.addresses - 1)

    def of(act: Act) -> st.SearchStrategy[Operation]:
        if act is Act.EVICT:
            return st.builds(Operation, st.just(act), cpu)
        return st.builds(Operation, st.just(act), cpu, mm, addr, addr if act.ranges else st.just(0))

    return st.sampled_from(acts).flatmap(of)


def _alone(title: str, acts: Sequence[Act], config: Config) -> Callable[..., None]:
    """The rule of one operation with nothing else running. `short`: its first data choice does not get the default."""

    def perform(self: ContractMachine, operation: Operation, short: bool) -> None:
        self.perform([operation], Drawn(refusals=((0, 0),) if short else ()))

    perform.__name__ = perform.__qualname__ = title
    return rule(operation=_operation(acts, config), short=st.booleans())(perform)


def _race(acts: Sequence[Act], config: Config) -> Callable[..., None]:
    """The rule of two or three operations at once, under a schedule."""
    operation = _operation(acts, config)
    who = st.integers(0, 2 + config.cpus)
    switch = st.tuples(who, st.integers(0, LATEST_SWITCH), who)
    refusal = st.tuples(st.integers(0, 2), st.integers(0, 3))

    def race(
        self: ContractMachine,
        operations: list[Operation],
        switches: list[tuple[int, int, int]],
        refusals: list[tuple[int, int]],
    ) -> None:
        self.perform(operations, Drawn(tuple(switches), tuple(refusals)))

    return rule(
        operations=st.lists(operation, min_size=2, max_size=3),
        switches=st.lists(switch, max_size=MOST_SWITCHES),
        refusals=st.lists(refusal, max_size=2),
    )(race)


# ---- running it ------------------------------------------------------------------------------------------------------

UNFIT_HEALTH_CHECKS = (
    HealthCheck.too_slow,  # an operation of the simulated kernel takes milliseconds, and an example has many
    HealthCheck.data_too_large,  # many operations are many draws: that is the purpose
)

PHASES = tuple(phase for phase in Phase if phase is not Phase.explain)
"""Without `explain`, which traces every line of the simulated kernel."""


def run_state_machine(
    make_driver: MakeDriver,
    generation: Generation | str,
    *,
    examples: int = 50,
    steps: int = 20,
    seed: int | None = None,
    preemption: Preemption = Preemption.FULL,
    allow: frozenset[str] = frozenset(),
) -> None:
    """Draw workloads and schedules for a driver, and judge what comes of them.

    Args:
        make_driver: `factory(kernel) -> Driver`.
        generation: a record, a name, or a kernel version.
        examples: how many workloads.
        steps: how many operations and races a workload has at most.
        seed: the same seed gives the same examples; None: new ones each time, and those that failed before first.
        preemption: where tasks lose their CPU.
        allow: clauses that the driver is known to break.

    Raises:
        Broken: a clause is broken: the subclass of that clause, with a smallest example; several come as an ExceptionGroup.
        Stopped: the simulated kernel oopsed without any clause broken.
        Raised: the driver's code raised.
        SubjectError: the factory fails, or returns no driver.
    """
    record = find_generation(generation) if isinstance(generation, str) else generation
    machine = make_machine(make_driver, record, preemption=preemption, allow=allow)
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=UNFIT_HEALTH_CHECKS,
    )
    run_state_machine_as_test(machine if seed is None else hypothesis.seed(seed)(machine), settings=how)
