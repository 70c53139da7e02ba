"""The reachable states of a system with the contract beside it, breadth first: the ground on which verdicts stand.

Breadth first, so the first path to a broken clause is a shortest one. `complete` is True only if nothing was cut off.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Generator, Iterable, Iterator

from attrs import define, field, frozen

from migrate_vma_conformance.explore.product import Broken, Product
from migrate_vma_impl.machine.space import Space, State, Transition

Progress = Callable[[int, int], None]
"""Called now and then with (states expanded, states found)."""

_EVERY = 256

FOUND = "what was wanted was found"
"""Why a search was cut short that was not for the whole graph."""


@frozen(eq=False)
class Break:
    """A broken clause: at which state which transition broke it; `move` is None for what the end of an execution broke."""

    broken: Broken
    state: int
    move: Transition | None


@define(eq=False)
class Graph:
    """States by number; 0 is the first. `out[n]` is None for a state that was found but not expanded."""

    space: Space
    product: Product
    states: list[State] = field(factory=list[State])
    contracts: list[int] = field(factory=list[int])
    parents: list[int] = field(factory=list[int])
    arrived: list[Transition | None] = field(factory=list["Transition | None"])
    out: list[list[tuple[Transition, int]] | None] = field(factory=list["list[tuple[Transition, int]] | None"])
    breaks: dict[str, Break] = field(factory=dict[str, Break])
    errors: dict[str, int] = field(factory=dict[str, int])
    deadlocks: list[int] = field(factory=list[int])
    complete: bool = True
    cut: str = ""
    _parts: list[frozenset[int]] | None = None

    def parts(self) -> list[frozenset[int]]:
        """The strongly connected sets of states, each after those that can be reached from it. Worked out once."""
        if self._parts is None:
            following = [[target for _, target in out or ()] for out in self.out]
            self._parts = list(components(range(len(following)), following.__getitem__))
        return self._parts

    def path(self, state: int) -> list[Transition]:
        """The transitions from the first state to this one."""
        moves: list[Transition] = []
        while state:
            move = self.arrived[state]
            assert move is not None  # noqa: S101  (for the type checker)
            moves.append(move)
            state = self.parents[state]
        return moves[::-1]

    def add_break(self, one: Broken, state: int, move: Transition | None) -> None:
        """Keep the first break of each clause."""
        self.breaks.setdefault(one.clause, Break(one, state, move))


def components(nodes: Iterable[int], following: Callable[[int], Iterable[int]]) -> Iterator[frozenset[int]]:
    """Strongly connected components (Tarjan 1972, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in nodes:
        if root in order:
            continue
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(following(root)))]
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in order:
                    order[target] = low[target] = len(order)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(following(target))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], order[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    part: set[int] = set()
                    while node not in part:
                        top = stack.pop()
                        on_stack.discard(top)
                        part.add(top)
                    yield frozenset(part)


def explore(
    space: Space,
    product: Product,
    *,
    max_states: int | None = None,
    deadline: float | None = None,
    progress: Progress | None = None,
    wanted: frozenset[str] = frozenset(),
) -> Graph:
    """Expand everything, or as much as the limits allow (`deadline` in the seconds of time.monotonic).

    Once one of the clauses `wanted` is broken the rest is left out.
    """
    graph = Graph(space, product)
    contract, broken = product.follow(product.first, space.steps)
    for one in broken:
        graph.add_break(one, 0, None)
    numbers: dict[tuple[int, ...], int] = {}
    _add(graph, numbers, space.first, contract, 0, None)
    with _no_collection():
        _expand_all(graph, numbers, max_states, deadline, progress, wanted)
    graph.complete = not graph.cut
    return graph


@contextlib.contextmanager
def _no_collection() -> Generator[None]:
    """Millions of tuples and no garbage: the collector would walk them all again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _expand_all(
    graph: Graph,
    numbers: dict[tuple[int, ...], int],
    max_states: int | None,
    deadline: float | None,
    progress: Progress | None,
    wanted: frozenset[str],
) -> None:
    number = 0
    while number < len(graph.states):
        if number % _EVERY == 0:
            if progress is not None:
                progress(number, len(graph.states))
            if deadline is not None and time.monotonic() > deadline:
                graph.cut = "time limit"
                break
        if max_states is not None and number >= max_states:
            graph.cut = f"limit of {max_states} states"
            break
        if wanted and not wanted.isdisjoint(graph.breaks):
            graph.cut = FOUND
            break
        _expand(graph, numbers, number)
        number += 1


def _add(
    graph: Graph, numbers: dict[tuple[int, ...], int], state: State, contract: int, parent: int, move: Transition | None
) -> int:
    key = (*state, contract)
    number = numbers.get(key)
    if number is None:
        number = numbers[key] = len(graph.states)
        graph.states.append(state)
        graph.contracts.append(contract)
        graph.parents.append(parent)
        graph.arrived.append(move)
        graph.out.append(None)
    return number


def _expand(graph: Graph, numbers: dict[tuple[int, ...], int], number: int) -> None:
    state, contract = graph.states[number], graph.contracts[number]
    out: list[tuple[Transition, int]] = []
    for move, target in graph.space.successors(state):
        after, broken = graph.product.after(contract, move)
        for one in broken:
            graph.add_break(one, number, move)
        out.append((move, _add(graph, numbers, target, after, number, move)))
    graph.out[number] = out
    if not out:
        _end(graph, number, state)


def _end(graph: Graph, number: int, state: State) -> None:
    """An execution ends here: stopped, finished, stuck, or with a task that raised."""
    space = graph.space
    if space.stopped(state):
        return
    errors = [space.node(state, task).ended for task in range(1, len(space.tasks))]
    raised = next((ended.error for ended in errors if ended is not None and ended.error is not None), None)
    if raised is not None:
        graph.errors.setdefault(raised, number)
    else:
        if not space.finished(state):
            graph.deadlocks.append(number)
        for one in graph.product.at_end(graph.contracts[number]):
            graph.add_break(one, number, None)
