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
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from migrate_vma_impl.machine.local_state import Canon, NotMergeable, local_state_key
from migrate_vma_impl.machine.system import Task
from migrate_vma_impl.machine.traps import Abandoned, Kind, Trap
from migrate_vma_spec.events import Event

_MACHINE = str(Path(__file__).parent)

NOTE_LIMIT = 10_000
"""More notes in a row than this, and the task is looping without touching anything."""


CURE = (
    "what a model keeps belongs into its `state`, not into globals; it asks no clock, draws no random numbers, and does not go "
    "by the order of a set"
)
"""For whoever wrote a model that does not repeat itself."""


ABANDON_LIMIT = 100
"""How often a task may go on, in `finally` blocks inside one another, when it is to end."""


class ModelError(Exception):
    """A driver or kernel model that breaks the rules of the machine; the message says which rule, where."""


@frozen
class Ended:
    """How a task ended: `error` is None, or the exception that its own code raised."""

    error: str | None = None


@define(eq=False)
class Node:
    """A local state. `trap` is what the task asks for next, or None once it has `ended`. `depth` counts the spinlocks it
    holds. It was first reached from `parent` by `answers`: one to the parent's trap, and a None for each note on the way.
    """

    number: int
    trap: Trap | None
    ended: Ended | None
    depth: int
    parent: Node | None
    answers: tuple[Any, ...]
    edges: dict[Hashable, Edge] = field(factory=dict[Hashable, "Edge"])
    live: Coroutine[Any, Any, None] | None = None

    @property
    def history(self) -> list[Any]:
        """Every answer on the way from the start to here."""
        links: list[tuple[Any, ...]] = []
        node: Node | None = self
        while node is not None:
            links.append(node.answers)
            node = node.parent
        return [answer for answers in reversed(links) for answer in answers]


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
        return Ended(f"{told(error)}{_place(error)}")
    if not isinstance(trap, Trap):
        where = _innermost(coroutine)
        abandon(coroutine)
        raise ModelError(f"{where} yielded {trap!r:.60}: only the traps of migrate_vma_impl.machine.traps may suspend a task")
    return trap


def told(error: BaseException, limit: int = 300) -> str:
    """An exception of code that is not ours, as a message shows it: whatever its own message is, or does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  (its __str__ is not ours either)
        text = "(it cannot say what)"
    return f"{type(error).__name__}{': ' if text else ''}{text if len(text) <= limit else f'{text[:limit]}...'}"


def _innermost(coroutine: Any) -> str:
    """The function in which a coroutine is suspended, as far as that can be seen, but for those of the machine."""
    where = coroutine
    while hasattr(coroutine.cr_await, "cr_code"):
        coroutine = coroutine.cr_await
        if not coroutine.cr_code.co_filename.startswith(_MACHINE):
            where = coroutine
    return f"{where.cr_code.co_qualname} ({where.cr_code.co_filename}:{where.cr_frame.f_lineno})"


def _alike(one: Trap | None, other: Trap | None) -> bool:
    """Whether two traps ask for the same; what has no canonical form is taken for the same."""
    try:
        return Canon().value(one) == Canon().value(other)
    except NotMergeable:
        return True


def _asked(trap: Trap | None) -> str:
    """A trap in a message: its effect, the slots that it touches, its arguments."""
    return "nothing" if trap is None else f"{trap.effect.__qualname__}{(*trap.keys, *trap.args)}"


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
    for _ in range(ABANDON_LIMIT):
        try:
            coroutine.throw(Abandoned())
        except BaseException:  # noqa: BLE001  (whatever it is, it is how the task ends)
            return
    raise ModelError(f"{_innermost(coroutine)} catches every exception and goes on: it must let `traps.Abandoned` pass")


class Automaton:
    """The automaton of one task. `start` is a pseudo-state before its first instruction; its one edge is the answer None."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.nodes: list[Node] = []
        self.not_mergeable: set[str] = set()
        self._ids: dict[Hashable, Node] = {}
        self.start = self._add(None, Ended(), 0, None, (), None)
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
        notes: list[Event] = []
        trap = drive(coroutine, answer)
        while isinstance(trap, Trap) and trap.kind is Kind.NOTE:
            notes.append(trap.args[0])
            if len(notes) > NOTE_LIMIT:
                abandon(coroutine)
                trap, notes = Ended("the task loops without any visible step"), notes[:10]
                break
            trap = drive(coroutine, None)
        answers = (answer, *(None for _ in notes))
        if isinstance(trap, Ended):
            return Edge(tuple(notes), self._end(trap, depth, node, answers))
        return Edge(tuple(notes), self._node(coroutine, trap, depth, node, answers))

    def _rerun(self, node: Node) -> Coroutine[Any, Any, None]:
        coroutine = self.task.function(*self.task.values)
        trap: Trap | None = None
        for answer in node.history:
            again = drive(coroutine, answer)
            if isinstance(again, Ended):
                raise ModelError(f"task {self.task.name} does not repeat itself: it ended on a replay of its own answers; {CURE}")
            trap = again
        if not _alike(trap, node.trap):
            abandon(coroutine)
            both = f"{_asked(node.trap)} once and for {_asked(trap)} another time"
            raise ModelError(f"task {self.task.name} does not repeat itself: after the same answers it asked for {both}; {CURE}")
        return coroutine

    def _end(self, ended: Ended, depth: int, parent: Node, answers: tuple[Any, ...]) -> Node:
        key = ("ended", ended)
        return self._ids.get(key) or self._keep(key, self._add(None, ended, depth, parent, answers, None))

    def _node(
        self, coroutine: Coroutine[Any, Any, None], trap: Trap, depth: int, parent: Node, answers: tuple[Any, ...]
    ) -> Node:
        try:
            key: Hashable = (depth, local_state_key(coroutine, trap))
        except NotMergeable as reason:
            # Its history alone tells it apart: where it came from, and by which answers.
            self.not_mergeable.add(str(reason))
            key = ("history", parent.number, Canon().value(answers))
        found = self._ids.get(key)
        if found is None:
            return self._keep(key, self._add(trap, None, depth, parent, answers, coroutine))
        abandon(coroutine)
        return found

    def _keep(self, key: Hashable, node: Node) -> Node:
        self._ids[key] = node
        return node

    def _add(
        self,
        trap: Trap | None,
        ended: Ended | None,
        depth: int,
        parent: Node | None,
        answers: tuple[Any, ...],
        live: Coroutine[Any, Any, None] | None,
    ) -> Node:
        node = Node(len(self.nodes), trap, ended, depth, parent, answers, live=live)
        self.nodes.append(node)
        return node


SPINS = (Kind.SPIN_LOCK, Kind.SPIN_UNLOCK)
"""The traps that change how many spinlocks a task holds."""


def depth_change(trap: Trap | None, answer: Any) -> int:
    if trap is None or trap.kind not in SPINS:
        return 0
    if trap.kind is Kind.SPIN_UNLOCK:
        return -1
    return 1 if answer else 0
