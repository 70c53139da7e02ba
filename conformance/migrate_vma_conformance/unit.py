"""One unit of work of a check: one driver, one generation, one scenario, one preemption model.

Runs in a child process and returns plain records. What the subject does wrong (it raises, it forgets an await, it does not repeat
itself, it does not end) is a `failure` of the unit, never a verdict: what it did not break is then not known to hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from attrs import evolve, field, frozen

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.errors import KitError, SubjectError
from migrate_vma_conformance.explore.counting import executions
from migrate_vma_conformance.explore.explain import (
    Recording,
    Subject,
    Unconfirmed,
    explain_break,
    explain_deadlock,
    explain_lasso,
    final_values,
    lasso_sentence,
    smallest_break,
)
from migrate_vma_conformance.explore.graph import FOUND, Graph, explore
from migrate_vma_conformance.explore.liveness import Lasso, lassos
from migrate_vma_conformance.explore.lockstep import FairCycle, explain_cycle, find_lasso
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.explore.repeat import check_repeats
from migrate_vma_conformance.explore.sampling import Samples, mixture, sample
from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.report.state import describe
from migrate_vma_conformance.scenarios import SCENARIOS, MakeCore, Scenario, build
from migrate_vma_conformance.subject import MakeDriver, find_driver, find_generation, load_patch, made, make_checked
from migrate_vma_conformance.tokens import ABSENT, Token, encode
from migrate_vma_conformance.verdict import Counterexample
from migrate_vma_conformance.watch import forgotten_awaits, raised_at
from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.automaton import ModelError, told
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_impl.machine.space import PrologueError, Space
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_impl.mm.mm_types import Folio, PmdSlot, PteSlot
from migrate_vma_spec.events import OperationBegan
from migrate_vma_spec.registry import Clause, Progress
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind

SAMPLES = 200
SAMPLE_SECONDS = 10.0
"""How many executions, for how long at most, are sampled of a scenario whose state graph was cut short."""


@frozen
class Unit:
    """What to search, and how far: `states` and `seconds` bound the search, not the report of what it found.

    Names are the way into another process: `make`, `make_core` and `record` are for units that stay in this one. `adapted` asks
    for the driver's variant that refills. `wanted` are clauses of which one is looked for: once it is broken, the search is over.
    """

    driver: str
    generation: str
    scenario: str
    preemption: Preemption
    fairness: Fairness = Fairness.STRONG
    adapted: bool = False
    patch: str = ""
    states: int | None = None
    seconds: float | None = None
    seed: int = 0
    make: MakeDriver | None = None
    make_core: MakeCore | None = None
    record: Generation | None = None
    wanted: frozenset[str] = frozenset()


@frozen
class Outcome:
    """What a unit found. `weakest` names, for each progress clause that was kept, the weakest fairness under which it was.

    `appeared` are the broken clauses, those that the shortest schedules break first; together those of schedules equally long.
    """

    unit: Unit
    states: int = 0
    executions: int = 0
    complete: bool = False
    cut: str = ""
    reached: frozenset[str] = frozenset()
    examples: tuple[Counterexample, ...] = ()
    weakest: dict[str, Fairness] = field(factory=dict[str, Fairness], hash=False)
    failure: str = ""
    skipped: str = ""
    seconds: float = 0.0
    appeared: tuple[frozenset[str], ...] = ()


def generation_of(unit: Unit) -> Generation:
    if unit.record is not None:
        return unit.record
    by_name = not unit.patch or unit.patch.startswith(ABSENT)
    return find_generation(unit.generation) if by_name else load_patch(unit.patch)


def factory_of(unit: Unit, scenario: Scenario) -> MakeDriver:
    """The driver that plays: the scenario's own, or the unit's."""
    if scenario.driver is not None:
        return make_checked(scenario.driver, find_driver(scenario.driver).make)
    if unit.make is not None:
        return make_checked(unit.driver, unit.make)
    subject = find_driver(unit.driver)
    if unit.adapted:
        if subject.adapted is None:
            raise SubjectError(unit.driver, "it has no variant that calls refill_fault_entry, as `adapted` of its factory")
        return make_checked(unit.driver, subject.adapted)
    return make_checked(unit.driver, subject.make)


def _offering(scenario: Scenario, make: MakeDriver) -> MakeDriver:
    """The factory, held to making a driver with the operations that the scenario asks for."""

    def checked(kernel: Kernel) -> Driver:
        driver = make(kernel)
        missing = scenario.loads - driver.loads
        if missing:
            raise Skipped(f"the driver offers no {', '.join(sorted(load.value for load in missing))}")
        return driver

    return checked


def subject_of(unit: Unit) -> Subject:
    """What the unit runs. Raises KitError for what the caller named wrongly, and for what its factories raise."""
    scenario = SCENARIOS[unit.scenario]
    generation = generation_of(unit)
    make = _offering(scenario, factory_of(unit, scenario))
    who = "its factory" if unit.make_core is None else "it, or the core that it was given,"
    try:
        system = build(scenario, generation, make, unit.make_core or Kernel)
    except (KitError, MemoryError, Skipped):
        raise
    except Exception as error:
        raise SubjectError(unit.driver, f"{who} raised {told(error)}{raised_at(error)}") from error
    known = judged_clauses().values()
    clauses = tuple(clause for clause in known if clause.applies(generation.capabilities) and scenario.concerns(clause.id))
    return Subject(system, unit.preemption, clauses, generation.capabilities)


class Skipped(Exception):
    """The driver does not offer what the scenario asks of it."""


def run(unit: Unit) -> Outcome:
    """Search, and explain what was found."""
    begin = time.monotonic()
    with forgotten_awaits(made) as forgotten:
        try:
            outcome = _search(unit, subject_of(unit), begin)
        except (KitError, ModelError) as trouble:
            outcome = Outcome(unit, failure=str(trouble))
        except PrologueError as trouble:
            outcome = Outcome(unit, failure=f"the scenario could not be set up: {trouble}")
        except SystemExit as end:
            outcome = Outcome(unit, failure=f"it ended the program (SystemExit: {end})")
        except Skipped as reason:
            outcome = Outcome(unit, skipped=str(reason))
        except Unconfirmed as trouble:
            outcome = Outcome(unit, failure=f"the model does not repeat itself, or the kit is at fault: {trouble}")
        except BaseException as error:
            if isinstance(error, (Exception, KeyboardInterrupt)):
                raise
            outcome = Outcome(unit, failure=f"it raised {told(error)}")
    return evolve(outcome, failure="; ".join(filter(None, (*forgotten, outcome.failure))), seconds=time.monotonic() - begin)


def _search(unit: Unit, subject: Subject, begin: float) -> Outcome:
    if SCENARIOS[unit.scenario].lockstep:
        found = find_lasso(subject, unit.fairness)
        if found is not None:
            return _found_in_lockstep(unit, subject, found)
    space = Space(subject.system, unit.preemption)
    product = Product(subject.clauses, subject.capabilities)
    deadline = None if unit.seconds is None else begin + unit.seconds
    graph = explore(space, product, max_states=unit.states, deadline=deadline, wanted=unit.wanted)
    over = graph.cut == FOUND
    raised = _raised(space)
    if not raised:
        check_repeats(graph, unit.seed)
    # A task that raised keeps what it holds, and others may wait for that for ever: no word on the protocol.
    progress, weakest = _progress(unit, subject, graph) if not raised and not over else ([], {})
    examples = [*_safety(unit, subject, graph), *progress]
    sampled = None if graph.complete or over else _sample(unit, subject)
    if sampled is not None:
        raised = raised or next(iter(sampled.errors), "")
        examples.extend(_from_samples(unit, subject, sampled, {example.clause for example in examples}))
    reached = product.reached | set(weakest) | {example.clause for example in examples}
    return Outcome(
        unit,
        states=len(graph.states),
        executions=executions(graph) if sampled is None else sampled.executions,
        complete=graph.complete,
        cut=graph.cut,
        reached=frozenset(reached if sampled is None else reached | sampled.reached),
        examples=tuple(examples),
        weakest=weakest if graph.complete else {},
        failure=raised or _not_set_up(space, SCENARIOS[unit.scenario].config.pmd_order),
        appeared=_in_order(subject, graph, examples),
    )


def _in_order(subject: Subject, graph: Graph, examples: Iterable[Counterexample]) -> tuple[frozenset[str], ...]:
    """The broken clauses by the length of the way to them; those of cycles and samples at the end, for these have none."""
    prologue = _in_prologue(subject, graph.space) if any(broken.move is None for broken in graph.breaks.values()) else {}
    lengths: dict[tuple[float, int], set[str]] = {}
    for example in examples:
        clause = example.clause
        way = len(graph.path(graph.breaks[clause].state)) if clause in graph.breaks else math.inf
        lengths.setdefault((-1, prologue[clause]) if clause in prologue else (way, 0), set()).add(clause)
    return tuple(frozenset(lengths[length]) for length in sorted(lengths))


def _in_prologue(subject: Subject, space: Space) -> dict[str, int]:
    """After how many events of the prologue each clause is broken that is broken there."""
    product = Product(subject.clauses, subject.capabilities)
    number = product.first
    when: dict[str, int] = {}
    for place, step in enumerate(space.steps):
        number, found = product.follow(number, (step,))
        for one in found:
            when.setdefault(one.clause, place)
    return when


def _raised(space: Space) -> str:
    """What some task raised somewhere in the space; empty if none did."""
    ends = (node.ended for automaton in space.automata for node in automaton.nodes)
    return next((ended.error for ended in ends if ended is not None and ended.error is not None), "")


def _not_set_up(space: Space, pmd_order: int) -> str:
    """What the prologue asked of the driver and did not get: a race for a page that is not on the device shows nothing."""
    for step in space.steps:
        if isinstance(step.event, OperationBegan) and step.event.name.endswith(f".{Load.TO_DEVICE.value}"):
            mm, start, end = step.event.arguments
            for addr in range(start, end):
                entry = _entry(space, mm, addr, pmd_order)
                if entry.pfn is None or not space.value(space.first, Folio(entry.pfn)).is_zone_device:
                    what = f"{step.event.name}({mm}, {start}, {end})"
                    return f"{what} did not bring page {addr} to the device: its entry is {entry.kind.value}"
    return ""


def _entry(space: Space, mm: int, addr: int, pmd_order: int) -> Pte:
    """The leaf of the middle level that maps the page, where there is one, or the page's own entry."""
    pmd = PTE_NONE if not pmd_order else space.value(space.first, PmdSlot(mm, addr & -(1 << pmd_order)))
    leaf = pmd.kind not in (PteKind.NONE, PteKind.TABLE)
    found: Pte = pmd if leaf else space.value(space.first, PteSlot(mm, addr))
    return found


def _found_in_lockstep(unit: Unit, subject: Subject, found: FairCycle) -> Outcome:
    """A fair cycle was found without the state graph, which is then not built."""
    broken = [
        clause
        for clause in subject.clauses
        if clause.progress is found.kind and (clause.cycle is None or clause.cycle(found.steps))
    ]
    schedule, recording = explain_cycle(subject, found)
    examples = tuple(_cycle_example(unit, clause, found.kind, found.fairness, schedule, recording) for clause in broken)
    reached = frozenset(clause.id for clause in broken)
    cut = "a fair cycle was found first"
    return Outcome(unit, executions=1, cut=cut, reached=reached, examples=examples, appeared=(reached,))


def _sample(unit: Unit, subject: Subject) -> Samples:
    """Of what is too large to exhaust, a sample besides."""
    seconds = SAMPLE_SECONDS if unit.seconds is None else min(SAMPLE_SECONDS, unit.seconds)
    return sample(subject, mixture(subject, unit.seed), executions=SAMPLES, deadline=time.monotonic() + seconds)


def _from_samples(unit: Unit, subject: Subject, sampled: Samples, known: set[str]) -> list[Counterexample]:
    examples: list[Counterexample] = []
    for clause, schedule in sampled.broken.items():
        if clause not in known:
            small, recording = smallest_break(subject, schedule, clause)
            examples.append(_example(unit, clause, recording.broken[clause], small, recording))
    return examples


# ---- counterexamples -------------------------------------------------------------------------------------------------


def _safety(unit: Unit, subject: Subject, graph: Graph) -> list[Counterexample]:
    examples: list[Counterexample] = []
    for clause, broken in sorted(graph.breaks.items()):
        path = graph.path(broken.state)
        if broken.move is not None:
            path.append(broken.move)
        schedule, recording = explain_break(subject, path, clause)
        examples.append(_example(unit, clause, recording.broken[clause], schedule, recording))
    return examples


def _progress(unit: Unit, subject: Subject, graph: Graph) -> tuple[list[Counterexample], dict[str, Fairness]]:
    """Counterexamples to progress clauses, and the weakest fairness under which each of the others holds in a complete graph."""
    scenario = SCENARIOS[unit.scenario]
    strong, weak = lassos(graph, Fairness.STRONG), lassos(graph, Fairness.WEAK)
    assumed = strong if unit.fairness is Fairness.STRONG else weak
    examples: list[Counterexample] = []
    weakest: dict[str, Fairness] = {}
    for clause in subject.clauses:
        if clause.progress is None:
            continue
        broken = next((lasso for lasso in assumed if breaks(lasso, clause)), None)
        if clause.progress is Progress.DEADLOCK and graph.deadlocks:
            examples.append(_deadlock(unit, subject, graph, clause))
        elif broken is not None:
            examples.append(_lasso(unit, subject, clause, broken))
        elif clause.id in scenario.progress:
            weakest[clause.id] = Fairness.STRONG if any(breaks(lasso, clause) for lasso in weak) else Fairness.WEAK
    return examples, weakest


def breaks(lasso: Lasso, clause: Clause) -> bool:
    """Whether the cycle is of the kind that the clause forbids."""
    return lasso.kind is clause.progress and (clause.cycle is None or clause.cycle(lasso.steps))


def _deadlock(unit: Unit, subject: Subject, graph: Graph, clause: Clause) -> Counterexample:
    schedule, recording = explain_deadlock(subject, graph.path(graph.deadlocks[0]))
    return _example(unit, clause.id, "; ".join(recording.stuck), schedule, recording)


def _lasso(unit: Unit, subject: Subject, clause: Clause, lasso: Lasso) -> Counterexample:
    schedule, recording = explain_lasso(subject, lasso)
    return _cycle_example(unit, clause, lasso.kind, lasso.fairness, schedule, recording)


def _cycle_example(
    unit: Unit, clause: Clause, kind: Progress, fairness: Fairness, schedule: Schedule, recording: Recording
) -> Counterexample:
    cycle = schedule.cycle or 0
    sentence = lasso_sentence(kind, fairness, recording, cycle)
    start = recording.offsets[cycle] if cycle < len(recording.offsets) else len(recording.steps)
    return evolve(_example(unit, clause.id, sentence, schedule, recording), cycle_start=start, fairness=fairness)


def _example(unit: Unit, clause: str, sentence: str, schedule: Schedule, recording: Recording) -> Counterexample:
    driver = f"{unit.driver}+adapted" if unit.adapted else unit.driver
    preemption, fairness = unit.preemption.value, unit.fairness.value
    token = Token(driver, unit.generation, unit.scenario, preemption, clause, schedule, fairness, unit.patch)
    return Counterexample(
        clause,
        encode(token),
        sentence,
        recording.steps,
        recording.stacks,
        None,
        None,
        unit.scenario,
        len(schedule.switches),
        recording.first_step,
        preemption=unit.preemption,
    )


def describe_state(subject: Subject, schedule: Schedule) -> tuple[str, ...]:
    """The slots at the end of a schedule that differ from their value at boot, a line each."""
    return describe(subject.system.slots, final_values(subject, schedule))
