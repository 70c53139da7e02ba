"""Progress, decided on the cycles of a state graph.

A cycle is fair if (F1) every CPU with a runnable task steps in it; (F2) every task that is runnable in some state of it steps
in it (strong fairness), or in every state of it (weak); (F3) every data choice asked in it is answered with its default at
least once; (F4) no operation begins in it. What a fair cycle means:

- starvation: some task of a CPU could make its step, and the CPU never comes to a point where it would be let in;
- livelock: otherwise; operations are open throughout and none completes;
- endless retry: the cycle is fair but for F3: memory stays short for ever, and the operation neither fails nor gives way.

Every state of a fair cycle was expanded, so a cycle found in a graph that was cut short is a real one; that there is none is
known only of a complete graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from attrs import frozen

from migrate_vma_conformance.explore.graph import Graph, components
from migrate_vma_conformance.options import Fairness
from migrate_vma_impl.machine.space import Transition
from migrate_vma_spec.events import Step
from migrate_vma_spec.registry import Progress


@frozen(eq=False)
class Lasso:
    """A fair cycle and the way to it. `states[i]` is the state before `cycle[i]`."""

    kind: Progress
    fairness: Fairness
    stem: tuple[Transition, ...]
    cycle: tuple[Transition, ...]
    states: tuple[int, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The trace of the cycle."""
        return tuple(step for move in self.cycle for step in move.steps)


def lassos(graph: Graph, fairness: Fairness) -> list[Lasso]:
    """A witness for each set of states that a fair cycle can run through, those nearest to the first state first."""
    found: list[Lasso] = []
    whole = Region(graph)
    for part in fair_components(whole, fairness):
        kind = Progress.STARVATION if starved_tasks(whole, part) else Progress.LIVELOCK
        if _is_open(graph, part):
            found.append(witness(whole, part, fairness, kind))
    for choice in sorted({move.choice for out in graph.out for move, _ in out or () if move.choice is not None and move.answer}):
        short = Region(graph, choice)
        parts = (part for part in fair_components(short, fairness) if short.asks(part) and _is_open(graph, part))
        found.extend(witness(short, part, fairness, Progress.ENDLESS_RETRY) for part in parts)
    return found


@frozen(eq=False)
class Region:
    """The graph, or the graph in which the data choice `refused` is never answered with its default (and F3 is not asked of
    it).
    """

    graph: Graph
    refused: str | None = None

    def inner(self, part: frozenset[int], state: int) -> list[tuple[Transition, int]]:
        """The steps that stay in `part`, begin no operation (F4), and do not answer what is refused."""
        return [
            (move, target)
            for move, target in self.graph.out[state] or ()
            if target in part
            and not move.begins
            and not (move.choice is not None and move.choice == self.refused and not move.answer)
        ]

    def following(self, part: frozenset[int]) -> Callable[[int], Iterable[int]]:
        """The states that come after one, inside `part`."""
        return lambda state: [target for _, target in self.inner(part, state)]

    def asks(self, part: frozenset[int]) -> bool:
        """Whether the refused choice is asked on some cycle of `part`."""
        return any(move.choice == self.refused for state in part for move, _ in self.inner(part, state))


def _is_open(graph: Graph, part: frozenset[int]) -> bool:
    """Some task that is no daemon has an operation under way."""
    state = graph.states[min(part)]
    space = graph.space
    return any(not task.daemon and space.node(state, number).ended is None for number, task in enumerate(space.tasks) if number)


def fair_components(region: Region, fairness: Fairness) -> list[frozenset[int]]:
    """Maximal strongly connected sets of states that a fair cycle can run through.

    Strong fairness and F3 are pairs (states that ask, steps that serve): a set that asks without serving is searched again
    without the states that ask (Emerson and Lei's refinement of Streett conditions).
    """
    work = [part for part in region.graph.parts() if _has_cycle(region.graph, part)]
    found: list[frozenset[int]] = []
    while work:
        inside = work.pop()
        for part in components(inside, region.following(inside)):
            drop = _unserved(region, part, fairness)
            if drop is None:
                continue
            if not drop:
                found.append(part)
            elif part - drop:
                work.append(part - drop)
    return sorted(found, key=min)


def _has_cycle(graph: Graph, part: frozenset[int]) -> bool:
    return len(part) > 1 or any(target in part for state in part for _, target in graph.out[state] or ())


def _unserved(region: Region, part: frozenset[int], fairness: Fairness) -> frozenset[int] | None:
    """The states that no fair cycle in `part` can pass; None when `part` has no cycle, or none that is fair."""
    graph, space = region.graph, region.graph.space
    inner = [move for state in part for move, _ in region.inner(part, state)]
    if not inner:
        return None
    taken = {move.task for move in inner}
    cpus = {space.tasks[task].cpu for task in taken}
    drop: set[int] = set()
    for served, asks in (
        *((task in taken, _asks_task(task)) for task in range(1, len(space.tasks))),
        *((cpu in cpus, _asks_cpu(graph, cpu)) for cpu in range(space.system.cpus)),
    ):
        if served:
            continue
        asking = {state for state in part if asks(graph.out[state] or [])}
        if fairness is Fairness.STRONG:
            drop |= asking
        elif len(asking) == len(part):
            return None
    return frozenset(drop | _asked_in_vain(region, part, inner))


def _asked_in_vain(region: Region, part: frozenset[int], inner: list[Transition]) -> set[int]:
    """F3: the states that ask for data whose default answer leads out of `part`."""
    answered = {(move.task, move.choice) for move in inner if move.choice is not None and move.answer == 0}
    return {
        state
        for state in part
        for move, _ in region.graph.out[state] or ()
        if move.choice is not None and move.choice != region.refused and (move.task, move.choice) not in answered
    }


Asks = Callable[[list[tuple[Transition, int]]], bool]


def _asks_task(task: int) -> Asks:
    return lambda out: any(move.task == task for move, _ in out)


def _asks_cpu(graph: Graph, cpu: int) -> Asks:
    tasks = graph.space.tasks
    return lambda out: any(tasks[move.task].cpu == cpu for move, _ in out)


def starved_tasks(region: Region, part: frozenset[int]) -> list[int]:
    """Tasks whose trap could complete somewhere in `part`, but whose CPU never lets them in while another task uses it."""
    graph, space = region.graph, region.graph.space
    stepping = {move.task for state in part for move, _ in region.inner(part, state)}
    busy = {space.tasks[task].cpu for task in stepping}
    return [
        task
        for task in range(1, len(space.tasks))
        if task not in stepping
        and space.tasks[task].cpu in busy
        and any(space.moves(graph.states[state], task) for state in part)
    ]


def witness(region: Region, part: frozenset[int], fairness: Fairness, kind: Progress) -> Lasso:
    """A fair cycle through `part`, short but not promised to be the shortest, from its state nearest to the first one."""
    start = min(part)
    homewards: list[Want] = [At(frozenset({start}))]
    wanted: list[Want] = _obligations(region, part, fairness)
    state = start
    moves: list[Transition] = []
    states: list[int] = []
    while wanted or not moves or state != start:
        for before, move, after in _walk(region, part, state, wanted or homewards):
            moves.append(move)
            states.append(before)
            wanted = [want for want in wanted if not want.met(move, after)]
            state = after
    return Lasso(kind, fairness, tuple(region.graph.path(start)), tuple(moves), tuple(states))


@frozen
class At:
    """A cycle must pass one of these states."""

    states: frozenset[int]

    def met(self, _move: Transition, after: int) -> bool:
        return after in self.states


@frozen
class Takes:
    """A cycle must take a step of this task; with `choice`, one that answers it, by the default or (`refused`) not."""

    task: int | None
    choice: str | None = None
    refused: bool = False

    def met(self, move: Transition, _after: int) -> bool:
        if self.task is not None and move.task != self.task:
            return False
        return self.choice is None or (move.choice == self.choice and bool(move.answer) is self.refused)


Want = At | Takes


def _obligations(region: Region, part: frozenset[int], fairness: Fairness) -> list[Want]:
    """What a cycle must pass to be fair: a step of each task that can step, a state where the others cannot, default answers."""
    graph = region.graph
    moves = [move for state in part for move, _ in region.inner(part, state)]
    taken = {move.task for move in moves}
    wanted: list[Want] = [Takes(task) for task in sorted(taken)]
    if fairness is Fairness.WEAK:
        idle = [task for task in range(1, len(graph.space.tasks)) if task not in taken]
        wanted.extend(At(frozenset(state for state in part if not _asks_task(task)(graph.out[state] or []))) for task in idle)
    asked = {(move.task, move.choice) for move in moves if move.choice is not None and move.answer == 0}
    wanted.extend(Takes(task, choice) for task, choice in sorted(asked))
    if region.refused is not None:
        wanted.append(Takes(None, region.refused, refused=True))
    return wanted


def _walk(region: Region, part: frozenset[int], start: int, wanted: list[Want]) -> list[tuple[int, Transition, int]]:
    """A shortest walk of at least one step in `part` from `start` whose last step meets something that is wanted."""
    came: dict[int, tuple[int, Transition]] = {}
    work = deque([start])
    while work:
        state = work.popleft()
        for move, target in region.inner(part, state):
            if any(want.met(move, target) for want in wanted):
                steps = [(state, move, target)]
                while state != start:
                    before, arrived = came[state]
                    steps.append((before, arrived, state))
                    state = before
                return steps[::-1]
            if target not in came and target != start:
                came[target] = (state, move)
                work.append(target)
    raise AssertionError("a strongly connected set has a way from each state to each other")


def is_fair_cycle(graph: Graph, lasso: Lasso) -> bool:
    """The definition, word for word, on one cycle: what a found witness is checked by."""
    space = graph.space
    stepping = {move.task for move in lasso.cycle}
    for runnable, steps in (
        *((_asks_task(task), task in stepping) for task in range(1, len(space.tasks))),
        *((_asks_cpu(graph, cpu), any(space.tasks[t].cpu == cpu for t in stepping)) for cpu in range(space.system.cpus)),
    ):
        able = [runnable(graph.out[state] or []) for state in lasso.states]
        if not steps and (any(able) if lasso.fairness is Fairness.STRONG else all(able)):
            return False
    asked = {(move.task, move.choice) for move in lasso.cycle if move.choice is not None}
    answered = {(move.task, move.choice) for move in lasso.cycle if move.choice is not None and move.answer == 0}
    if lasso.kind is not Progress.ENDLESS_RETRY and asked != answered:
        return False
    return not any(move.begins for move in lasso.cycle)
