"""A task as a finite automaton: (local state, answer) -> next trap, filled in lazily.

A task is a deterministic function of what its traps returned, so its coroutine is run once for each edge of the automaton, and
then never again: exploring interleavings becomes table look-ups. Notes are folded into the edge that leads to them.

Rules:
- Two histories share a node only if `local_state_key` says that they behave alike; a task without a key is never merged.
- Edges are keyed by the answer and its type.
- A coroutine that raises ends in a final node with its error; one that is not needed any more is abandoned without yielding.
"""

from __future__ import annotations

from collections.abc import Coroutine, Hashable
from typing import Any

from attrs import define, field, frozen

from migrate_vma_impl.machine.local_state import Canon, NotMergeable, local_state_key
from migrate_vma_impl.machine.system import Task
from migrate_vma_impl.machine.traps import Abandoned, Kind, Trap
from migrate_vma_spec.events import Event

NOTE_LIMIT = 10_000
"""More notes in a row than this, and the task is looping without touching anything."""


class ModelError(Exception):
    """A driver or kernel model that breaks the rules of the machine; the message says which rule, where."""


@frozen
class Ended:
    """How a task ended: `error` is None, or the exception that its own code raised."""

    error: str | None = None


@define(eq=False)
class Node:
    """A local state. `trap` is what the task asks for next, or None once it has `ended`. `depth` counts the spinlocks it
    holds.
    """

    number: int
    trap: Trap | None
    ended: Ended | None
    depth: int
    history: tuple[Any, ...]
    edges: dict[Hashable, Edge] = field(factory=dict)
    live: Coroutine[Any, Any, None] | None = None


@frozen(eq=False)
class Edge:
    """Where an answer leads, and the notes on the way."""

    notes: tuple[Event, ...]
    target: Node


def drive(coroutine: Coroutine[Any, Any, None], answer: Any) -> Trap | Ended:
    """Send one answer (None to start) and return the next trap, or how the task ended."""
    try:
        trap = coroutine.send(answer)
    except StopIteration:
        return Ended()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is how the task ends)
        return Ended(f"{type(error).__name__}: {error}{_place(error)}")
    if not isinstance(trap, Trap):
        abandon(coroutine)
        raise ModelError(f"a task yielded {trap!r}: only the traps of migrate_vma_impl.machine.traps may suspend")
    return trap


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def abandon(coroutine: Coroutine[Any, Any, None]) -> None:
    """End a suspended coroutine; whatever its `finally` blocks ask for is refused."""
    try:
        coroutine.throw(Abandoned())
    except (Abandoned, StopIteration):
        return
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return
    for _ in range(NOTE_LIMIT):
        try:
            coroutine.throw(Abandoned())
        except BaseException:  # noqa: BLE001  (whatever it is, it is how the task ends)
            return


class Automaton:
    """The automaton of one task. `start` is a pseudo-state before its first instruction; its one edge is the answer None."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.nodes: list[Node] = []
        self.not_mergeable: set[str] = set()
        self._ids: dict[Hashable, Node] = {}
        self.start = self._add(None, Ended(), 0, (), None)
        self.start.ended = None

    def next(self, node: Node, answer: Any) -> Edge:
        """The edge for `answer` at `node`, run now if it is new."""
        key = Canon().value(answer)
        edge = node.edges.get(key)
        if edge is None:
            edge = node.edges[key] = self._run(node, answer)
        return edge

    def _run(self, node: Node, answer: Any) -> Edge:
        coroutine, node.live = node.live, None
        if coroutine is None:
            coroutine = self._rerun(node)
        depth = node.depth + depth_change(node.trap, answer)
        history = (*node.history, answer)
        notes: list[Event] = []
        trap = drive(coroutine, answer)
        while isinstance(trap, Trap) and trap.kind is Kind.NOTE:
            notes.append(trap.args[0])
            if len(notes) > NOTE_LIMIT:
                abandon(coroutine)
                return Edge(tuple(notes[:10]), self._end(Ended("the task loops without any visible step"), depth, history))
            history = (*history, None)
            trap = drive(coroutine, None)
        if isinstance(trap, Ended):
            return Edge(tuple(notes), self._end(trap, depth, history))
        return Edge(tuple(notes), self._node(coroutine, trap, depth, history))

    def _rerun(self, node: Node) -> Coroutine[Any, Any, None]:
        coroutine = self.task.function(*self.task.values)
        for answer in node.history:
            if isinstance(drive(coroutine, answer), Ended):
                raise ModelError(f"task {self.task.name} does not repeat itself: it ended on a replay of its own answers")
        return coroutine

    def _end(self, ended: Ended, depth: int, history: tuple[Any, ...]) -> Node:
        return self._ids.get(("ended", ended)) or self._keep(("ended", ended), self._add(None, ended, depth, history, None))

    def _node(self, coroutine: Coroutine[Any, Any, None], trap: Trap, depth: int, history: tuple[Any, ...]) -> Node:
        try:
            key: Hashable = (depth, local_state_key(coroutine, trap))
        except NotMergeable as reason:
            self.not_mergeable.add(str(reason))
            key = ("history", Canon().value(history))
        found = self._ids.get(key)
        if found is None:
            return self._keep(key, self._add(trap, None, depth, history, coroutine))
        abandon(coroutine)
        return found

    def _keep(self, key: Hashable, node: Node) -> Node:
        self._ids[key] = node
        return node

    def _add(
        self, trap: Trap | None, ended: Ended | None, depth: int, history: tuple[Any, ...], live: Coroutine[Any, Any, None] | None
    ) -> Node:
        node = Node(len(self.nodes), trap, ended, depth, history, live=live)
        self.nodes.append(node)
        return node


def depth_change(trap: Trap | None, answer: Any) -> int:
    if trap is None or trap.kind not in (Kind.SPIN_LOCK, Kind.SPIN_UNLOCK):
        return 0
    if trap.kind is Kind.SPIN_UNLOCK:
        return -1
    return 1 if answer else 0
