"""One execution of a system, step by step, on live coroutines: what sampling, replay and property-based testing use.

The semantics is that of `space.py` and shares its rules (`scheduling.py`); a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Coroutine, Hashable
from typing import Any

from attrs import define, field

from migrate_vma_impl.machine.automaton import NOTE_LIMIT, SPINS, Ended, abandon, depth_change, drive
from migrate_vma_impl.machine.local_state import Canon, local_state_key
from migrate_vma_impl.machine.scheduling import Operation, resolve, yields_cpu
from migrate_vma_impl.machine.space import PROLOGUE_LIMIT, PrologueError
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.machine.traps import Kind, Outcome, Trap
from migrate_vma_spec.events import Chose, Event, Oops, Step


@define(eq=False)
class _Live:
    """A task of the run: its coroutine, what it asks for, and how far it has come. `outcome` is what its trap came to when the
    slots were as of version `judged`.
    """

    task: Task
    coroutine: Coroutine[Any, Any, None]
    operation: Operation | None = None
    ended: Ended | None = None
    depth: int = 0
    count: int = 0
    judged: int = -1
    outcome: Outcome = None
    started: bool = False
    asked: dict[str, int] = field(factory=dict[str, int])

    @property
    def trap(self) -> Trap | None:
        return None if self.operation is None else self.operation.trap


class Run:
    """A system under way. Tasks are numbered as in `Space.tasks`: the prologue is 0 and has run when the object exists.

    `offsets` is the length of the trace before each step after that; `stacks` are the functions that each line was said in.
    """

    def __init__(self, system: System, preemption: Preemption, *, stacks: bool = False) -> None:
        self.preemption = preemption
        self.fallible = system.fallible
        self.trace: list[Step] = []
        self.offsets: list[int] = []
        self.stacks: list[tuple[str, ...]] | None = [] if stacks else None
        self.stopped = False
        self._values = list(system.slots.values())
        self._version = 0
        self._index = {key: number for number, key in enumerate(system.slots)}
        daemons = [task for task in system.tasks if task.daemon]
        order = [system.prologue, *daemons, *(task for task in system.tasks if not task.daemon)]
        self.tasks = [_Live(task, task.function(*task.values)) for task in order]
        self._unfinished = sum(not task.daemon for task in order)
        self._current: dict[int, int] = {}
        self._run_prologue()
        self.prologue_length = len(self.trace)
        self.offsets.clear()
        self._current.clear()
        for live in self.tasks:
            live.count = 0

    def value(self, key: Hashable) -> Any:
        return self._values[self._index[key]]

    def values(self) -> dict[Hashable, Any]:
        """What every slot holds: another system can begin with it."""
        return dict(zip(self._index, self._values, strict=True))

    @property
    def finished(self) -> bool:
        return not self._unfinished

    # ---- what can run ------------------------------------------------------------------------------------------------

    def _outcome(self, live: _Live, operation: Operation) -> Outcome:
        """What the task's trap comes to now; worked out once, for who asks whether it can run mostly lets it."""
        if live.judged != self._version:
            values = self._values
            live.outcome = operation.outcome([values[slot] for slot in operation.slots])
            live.judged = self._version
        return live.outcome

    def _completes(self, live: _Live) -> bool:
        operation = live.operation
        if operation is None:
            return live.ended is None
        return operation.trap.kind is Kind.CHOICE or self._outcome(live, operation) is not None

    def can_complete(self, number: int) -> bool:
        """Whether the task does not have to wait, be its CPU its own or another's."""
        return not self.stopped and self._completes(self.tasks[number])

    def can_run(self, number: int) -> bool:
        """Whether the task can make its next step now."""
        live = self.tasks[number]
        if self.stopped or not self._completes(live):
            return False
        current = self._current.get(live.task.cpu, number)
        if current == number:
            return True
        other = self.tasks[current]
        if other.ended is not None or other.trap is None:
            return True
        return yields_cpu(other.trap, other.depth, not self._completes(other), self.preemption)

    def runnable(self) -> list[int]:
        return [number for number in range(1, len(self.tasks)) if self.can_run(number)]

    # ---- stepping ----------------------------------------------------------------------------------------------------

    def question(self, number: int) -> tuple[str, int, int] | None:
        """The data choice that the task asks next: (what, how often it asked before, how many answers), or None."""
        live = self.tasks[number]
        if live.operation is None or live.operation.trap.kind is not Kind.CHOICE:
            return None
        what = live.operation.args[0]
        return what, live.asked.get(what, 0), live.operation.trap.answers if self.fallible else 1

    def step(self, number: int, answer: int = 0) -> list[Step]:
        """Make the next step of a task that can run; `answer` is for data choices."""
        live = self.tasks[number]
        length = len(self.trace)
        self._current[live.task.cpu] = number
        self._make(live, answer)
        return self.trace[length:]

    def proceed(self, number: int, most: int) -> int:
        """Make up to `most` steps of a task, for as long as it can run and is asked nothing. How many it made.

        Nobody else runs in between, so it comes to the same as a `step` for each, at less cost.
        """
        if not self.can_run(number):
            return 0
        live, made = self.tasks[number], 0
        self._current[live.task.cpu] = number
        while made < most and not self.stopped:
            operation = live.operation
            if operation is None:
                if live.ended is not None:
                    break
            elif operation.trap.kind is Kind.CHOICE or self._outcome(live, operation) is None:
                break
            self._make(live, 0)
            made += 1
        return made

    def _make(self, live: _Live, answer: int) -> None:
        """One step: what the task's trap does, what the task then says, and how far it comes."""
        operation, reply = live.operation, None
        live.count += 1
        self.offsets.append(len(self.trace))
        if operation is not None:
            reply, event = self._ask(live, operation, answer) if operation.trap.kind is Kind.CHOICE else self._do(live, operation)
            if self.stacks is not None:
                self.stacks.append(self._stack(live))
            self.trace.append(Step(live.task.name, live.task.cpu, event))
            if isinstance(event, Oops):
                self.stopped = True
                return
        self._advance(live, reply)

    def _ask(self, live: _Live, operation: Operation, answer: int) -> tuple[Any, Event]:
        what = operation.args[0]
        live.asked[what] = live.asked.get(what, 0) + 1
        return answer, Chose(what, answer)

    def _do(self, live: _Live, operation: Operation) -> tuple[Any, Event]:
        outcome = self._outcome(live, operation)
        assert outcome is not None, f"{live.task.name} cannot run"  # noqa: S101  (for the type checker)
        after, reply, event = outcome
        values = self._values
        for slot, value in zip(operation.slots, after):  # noqa: B905  (Operation.outcome has counted them)
            values[slot] = value
        self._version += 1
        if operation.trap.kind in SPINS:
            live.depth += depth_change(operation.trap, reply)
        return reply, event

    def _advance(self, live: _Live, reply: Any) -> None:
        """Give the task its answer and take its notes, up to its next trap or its end."""
        task, coroutine = live.task, live.coroutine
        live.started = True
        live.judged = -1
        asked = drive(coroutine, reply)
        notes = 0
        while isinstance(asked, Trap):
            if asked.kind is not Kind.NOTE:
                live.operation = resolve(asked, task, self._index)
                return
            self.trace.append(Step(task.name, task.cpu, asked.args[0]))
            if self.stacks is not None:
                self.stacks.append(self._stack(live))
            notes += 1
            asked = drive(coroutine, None) if notes <= NOTE_LIMIT else Ended("the task loops without any visible step")
        live.ended, live.operation = asked, None
        self._unfinished -= not task.daemon

    def _stack(self, live: _Live) -> tuple[str, ...]:
        """The kernel functions that the task is in, outermost first."""
        names: list[str] = []
        inner: Any = live.coroutine
        while hasattr(inner, "cr_code"):
            names.append(inner.cr_code.co_name)
            inner = inner.cr_await
        if hasattr(inner, "gi_code"):
            names.append(inner.gi_code.co_name)
        return tuple(names)

    def state_key(self) -> Hashable:
        """The whole state by value: equal keys, equal futures. Slow; for recurrence checks of a lasso.

        Raises:
            NotMergeable: a task holds something without a canonical form.
        """
        tasks = tuple(
            ("ended", live.ended)
            if live.ended is not None
            else ("new",)
            if live.operation is None
            else (live.depth, local_state_key(live.coroutine, live.operation.trap))
            for live in self.tasks
        )
        shared = {cpu: task for cpu, task in self._current.items() if self._shares(cpu)}
        return Canon().value(tuple(self._values)), tasks, tuple(sorted(shared.items()))

    def _shares(self, cpu: int) -> bool:
        return sum(live.task.cpu == cpu for live in self.tasks[1:]) > 1

    def close(self) -> None:
        """Abandon what has not ended."""
        for live in self.tasks:
            if live.ended is None:
                abandon(live.coroutine) if live.started else live.coroutine.close()

    # ---- the prologue ------------------------------------------------------------------------------------------------

    def _run_prologue(self) -> None:
        daemons = [number for number, live in enumerate(self.tasks) if live.task.daemon]
        for _ in range(PROLOGUE_LIMIT):
            able = next((number for number in (0, *daemons) if self._completes(self.tasks[number])), None)
            if able is None or self.stopped:
                break
            self.step(able)
        ended = self.tasks[0].ended
        if ended is None or ended.error is not None:
            raise PrologueError(self._prologue_trouble(ended))

    def _prologue_trouble(self, ended: Ended | None) -> str:
        if ended is not None:
            return f"the prologue ended with {ended.error}"
        if self.stopped:
            return f"the prologue stopped the kernel: {self.trace[-1].event}"
        if self._completes(self.tasks[0]):
            return f"the prologue did not end within {PROLOGUE_LIMIT:,} steps"
        trap = self.tasks[0].trap
        return f"the prologue waits for ever at {trap.effect.__qualname__ if trap else 'its start'}"
