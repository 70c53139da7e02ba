"""The contract as a Hypothesis state machine: rules make the workload, one kernel lives through it, one judge watches.

Rules:
- This is the only module of the package that imports Hypothesis.
- A race is one rule, which draws the operations and their whole schedule before anything runs. So every list of numbers is a
  legal schedule, dropping one moves no other, and the smallest is: each operation to its end, one after the other.
- There are few rules: Hypothesis leaves some of them out of each example, and must not leave out much.
- One class per subject: Hypothesis keeps its examples under the class's name.
- Nothing here depends on what ran before an example: no precondition, no shared state.
- `run_state_machine` makes examples smaller by itself (`life.smallest`). Hypothesis's own shrinking of state machines tries a
  thousand programs where that tries fifty, and ends with larger ones (tried).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import hypothesis
from attrs import frozen
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test  # pyright: ignore[reportUnknownVariableType]

from migrate_vma_conformance.errors import SubjectError
from migrate_vma_conformance.life import CONFIG, Broken, Life, Living, Moment, Trouble, smallest
from migrate_vma_conformance.subject import MakeDriver, find_driver, find_generation, make_checked
from migrate_vma_conformance.workbench import Drawn, Workbench
from migrate_vma_conformance.workload import Act, Operation
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.registry import Level

MOST_SWITCHES = 4
LATEST_SWITCH = 63
"""Few operations have more steps; a switch after a task's end does nothing."""

GROUPS = {
    "touch": (Act.READ, Act.WRITE),
    "migrate": (Act.TO_DEVICE, Act.TO_SYSTEM, Act.EVICT),
    "access": (Act.DEVICE_READ, Act.DEVICE_WRITE),
    "change": (Act.DISCARD, Act.MUNMAP, Act.MMAP, Act.MMAP_READ_ONLY),
    "protect": (Act.PROTECT_READ, Act.PROTECT_NONE, Act.PROTECT_WRITE, Act.MOVE),
    "advise": (Act.FREE, Act.COLD, Act.CLEAR_REFS, Act.HUGE, Act.NO_HUGE),
    "process": (Act.FORK, Act.EXIT, Act.OPEN, Act.EXEC),
    "hold": (Act.BORROW, Act.PIN, Act.UNPIN, Act.GUP, Act.GUP_FAST, Act.PIN_LONGTERM),
    "mirror": (Act.SNAPSHOT, Act.EXCLUSIVE, Act.CHECK_EXCLUSIVE),
    "watch": (Act.UFFD_MISSING, Act.UFFD_GUARD, Act.UFFD_END),
    "reclaim": (Act.PAGEOUT, Act.WRITE_BACK, Act.DROP_PAGE, Act.PUNCH_HOLE),
    "file": (Act.MMAP_FILE, Act.MMAP_FILE_SHARED, Act.MMAP_SHARED),
}
"""The rules of what is done alone, and which acts each of them draws from."""

RACERS = frozenset(Act) - {
    *(Act.OPEN, Act.EXIT, Act.UNPIN, Act.MMAP_READ_ONLY, Act.DEVICE_READ, Act.EXEC, Act.HUGE, Act.NO_HUGE, Act.PUNCH_HOLE),
    *(Act.CHECK_EXCLUSIVE, Act.UFFD_MISSING, Act.UFFD_GUARD, Act.UFFD_END, Act.MMAP_FILE, Act.MMAP_FILE_SHARED, Act.MMAP_SHARED),
}
"""What is worth a place in a race: the rest meets nobody, or no other than these do."""


class ContractMachine(RuleBasedStateMachine):
    """A kernel under way, and its judge. `make_machine` makes the subclass of a subject, with its rules."""

    living: ClassVar[Living]

    def __init__(self) -> None:
        super().__init__()
        self._life = Life(self.living)

    def perform(self, operations: Sequence[Operation], drawn: Drawn) -> None:
        self._life.perform(Moment(tuple(operations), drawn))

    def teardown(self) -> None:
        self._life.end()


def make_machine(
    make_driver: MakeDriver,
    generation: Generation,
    *,
    config: Config = CONFIG,
    preemption: Preemption = Preemption.FULL,
    allow: frozenset[str] = frozenset(),
    ends: frozenset[str] = frozenset(),
    title: str | None = None,
) -> type[ContractMachine]:
    """A state machine class for one subject. Its `TestCase` is for unittest and pytest.

    Args:
        make_driver: `factory(kernel) -> Driver`.
        generation: the fault path that it runs on.
        config: the size of the kernel.
        preemption: where tasks lose their CPU.
        allow: clauses that the subject is known to break, what is found of them is not reported; `C49: which is free` is what of
            C49 has these words in it.
        ends: the same, and oopses, by their words, where what follows them is not to be judged.
        title: names the subject in the class's name, under which Hypothesis keeps its examples; by itself the factory's name.

    Raises:
        SubjectError: the factory fails, or returns no driver.
    """
    name = title or str(getattr(make_driver, "__name__", type(make_driver).__name__))
    living = Living(make_checked(name, make_driver), generation, config, preemption, allow, set(ends))
    words = re.sub(r"\W+", "_", f"{name}_on_{generation.name}_{preemption.value}")
    acts = _acts(living, name)
    groups = {group: [act for act in members if act in acts] for group, members in GROUPS.items()}
    rules = {group: _alone(group, _operation(members, config)) for group, members in groups.items() if members}
    racers = [act for act in acts if act in RACERS]
    races = {"race": _race("race", (), racers, config)}
    if Act.TO_DEVICE in acts:
        races["race_on_the_device"] = _race("race_on_the_device", (Act.TO_DEVICE,), racers, config)
    body: dict[str, Any] = {**rules, **races, "living": living, "__module__": __name__}
    return type(f"Contract_{words}", (ContractMachine,), body)


def _acts(living: Living, name: str) -> list[Act]:
    """What can be asked of the driver under test. Simple acts first, for Hypothesis shrinks towards the first."""
    try:
        driver = Workbench(living.make, living.generation, living.config, living.preemption).driver
    except SubjectError:
        raise
    except Exception as error:
        raise SubjectError(name, f"its factory raised {type(error).__name__}: {error}") from error
    return [act for act in Act if act.is_offered(driver, living.config)]


def _numbers(*sizes: int) -> st.SearchStrategy[tuple[int, ...]]:
    """A number below each of these, all in one draw: Hypothesis takes as long for one as the kernel for ten steps."""

    def apart(number: int) -> tuple[int, ...]:
        found: list[int] = []
        for size in reversed(sizes):
            number, digit = divmod(number, size)
            found.append(digit)
        return tuple(reversed(found))

    return st.integers(0, math.prod(sizes) - 1).map(apart)


def _operation(acts: Sequence[Act], config: Config) -> st.SearchStrategy[Operation]:
    """Every operation of these acts. A number that does not matter to its act is drawn all the same, and shrinks to 0."""
    drawn = _numbers(len(acts), config.cpus, config.mms, config.addresses, config.addresses)
    return drawn.map(lambda numbers: Operation(acts[numbers[0]], *numbers[1:]))


def _alone(title: str, operations: st.SearchStrategy[Operation]) -> Callable[..., None]:
    """The rule of one operation with nothing else running. `short`: its first data choice does not get the default."""

    def alone(self: ContractMachine, operation: Operation, short: bool) -> None:
        self.perform([operation], Drawn(refusals=((0, 0),) if short else ()))

    alone.__name__ = alone.__qualname__ = title
    return rule(operation=operations, short=st.booleans())(alone)


def _race(title: str, before: Sequence[Act], acts: Sequence[Act], config: Config) -> Callable[..., None]:
    """The rule of two or three operations at once, under a schedule: on one page, for others do not meet, each on the next CPU.

    `before` is done to the page alone, so that more races find it in a state in which much can happen.
    """
    operation = _numbers(len(acts), config.mms)
    pages = _numbers(config.addresses, config.addresses)
    switch = _numbers(3, LATEST_SWITCH + 1, 2)
    refusal = _numbers(3, 4)

    def race(
        self: ContractMachine,
        operations: list[tuple[int, int]],
        pages: tuple[int, int],
        switches: list[tuple[int, int, int]],
        refusals: list[tuple[int, int]],
    ) -> None:
        for act in before:
            self.perform([Operation(act, 0, 0, *pages)], Drawn())
        begun = [Operation(acts[act], cpu, mm, *pages) for cpu, (act, mm) in enumerate(operations)]
        self.perform(begun, Drawn(tuple(switches), tuple(refusals)))

    race.__name__ = race.__qualname__ = title
    return rule(
        operations=st.lists(operation, min_size=2, max_size=3),
        pages=pages,
        switches=st.lists(switch, max_size=MOST_SWITCHES),
        refusals=st.lists(refusal, max_size=2),
    )(race)


# ---- running it ------------------------------------------------------------------------------------------------------

UNFIT_HEALTH_CHECKS = (
    HealthCheck.too_slow,  # an operation of the simulated kernel takes milliseconds, and an example has many
    HealthCheck.data_too_large,  # many operations are many draws: that is the purpose
)


def run_state_machine(
    make_driver: MakeDriver,
    generation: Generation | str,
    *,
    config: Config = CONFIG,
    examples: int = 100,
    steps: int = 20,
    seed: int | None = None,
    preemption: Preemption = Preemption.FULL,
    allow: frozenset[str] = frozenset(),
    ends: frozenset[str] = frozenset(),
    findings: int = 3,
) -> None:
    """Draw workloads and schedules for a driver, and judge what comes of them.

    Args:
        make_driver: `factory(kernel) -> Driver`.
        generation: a record, a name, or a kernel version.
        config: the size of the kernel.
        examples: how many workloads.
        steps: how many operations and races a workload has at most.
        seed: the same seed gives the same examples; None: new ones each time, and those that failed before first.
        preemption: where tasks lose their CPU.
        allow: clauses that the driver is known to break, as in `make_machine`.
        ends: the same, and oopses, by their words, where what follows them is not to be judged.
        findings: how many clauses to find broken, at most.

    Raises:
        Broken: a clause is broken: the subclass of that clause, with the smallest workload found; several come as an
            ExceptionGroup, each broken in an execution that broke none of the others before.
        Stopped: the simulated kernel oopsed without any clause broken.
        Raised: the driver's code raised.
        SubjectError: the factory fails, or returns no driver.
    """
    record = find_generation(generation) if isinstance(generation, str) else generation
    machine = make_machine(make_driver, record, config=config, preemption=preemption, allow=allow, ends=ends)
    found = _find(machine, _settings(examples, steps, seed), seed, findings)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ExceptionGroup(f"{len(found)} clauses are broken", found)


def _find(machine: type[ContractMachine], how: settings, seed: int | None, most: int) -> list[Trouble]:
    """One trouble for each clause, in the order in which they are met; none after one that is no clause's."""
    found: list[Trouble] = []
    while len(found) < most:
        trouble = _first(machine, how, seed)
        if trouble is None:
            break
        found.append(smallest(machine.living, trouble))
        if not isinstance(trouble, Broken):
            break
        machine.living.found.add(trouble.clause.id)
    return found


def _settings(examples: int, steps: int, seed: int | None) -> settings:
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        suppress_health_check=UNFIT_HEALTH_CHECKS,
    )
    # What failed before would come first, and a seed would not give the same in every place.
    return how if seed is None else settings(how, database=None)


def _first(machine: type[ContractMachine], how: settings, seed: int | None) -> Trouble | None:
    try:
        run_state_machine_as_test(machine if seed is None else hypothesis.seed(seed)(machine), settings=how)
    except Trouble as trouble:
        return trouble
    return None


@frozen
class Examination:
    """What `examine` is asked, in words and numbers that can be sent to another process. `adapted` is as in `unit.Unit`."""

    driver: str
    generation: str
    examples: int
    steps: int = 20
    seed: int = 0
    allow: frozenset[str] = frozenset()
    adapted: bool = False
    config: Config = CONFIG
    ends: frozenset[str] = frozenset()


@frozen
class Told:
    """A trouble as text. `binding`: it is more than a broken SHOULD. `what` is the same for troubles of one kind."""

    text: str
    binding: bool
    what: str = ""


def examine(asked: Examination) -> tuple[Told, ...]:
    """As `run_state_machine`, for a driver by name.

    Raises:
        UsageError: no such driver or generation.
        SubjectError: the driver's factory fails, or returns no driver; or there is no adapted variant.
    """
    driver = find_driver(asked.driver)
    make = driver.adapted if asked.adapted else driver.make
    if make is None:
        raise SubjectError(asked.driver, "it has no variant that calls refill_fault_entry")
    machine = make_machine(
        make, find_generation(asked.generation), config=asked.config, allow=asked.allow, ends=asked.ends, title=asked.driver
    )
    found = _find(machine, _settings(asked.examples, asked.steps, asked.seed), asked.seed, 3)
    return tuple(Told(str(trouble), _binds(trouble), _kind(trouble)) for trouble in found)


def _kind(trouble: Trouble) -> str:
    return trouble.clause.id if isinstance(trouble, Broken) else trouble.sentence


def _binds(trouble: Trouble) -> bool:
    return not isinstance(trouble, Broken) or trouble.clause.level is Level.MUST
