"""One recording of a trace, judged as it is read.

Rules:
- Every generation asked for judges the same events by the clauses that the recording can decide.
- Where events are missing, all that was open is forgotten; what was found since the CPU that lost them last spoke is withdrawn,
  and may be found again.
- Nothing grows with the length of the recording: notes are counted, threads and pages are remembered up to a limit.
"""

from __future__ import annotations

from attrs import define, field, frozen

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.kernel.traces.coverage import ACROSS_CPUS, lacking
from migrate_vma_conformance.kernel.traces.lines import OURS, Line, Lost, Other, Record
from migrate_vma_conformance.kernel.traces.mapping import Forget, Mapper
from migrate_vma_conformance.kernel.traces.reading import Window
from migrate_vma_conformance.kernel.traces.shown import Fact, Shown, look_at
from migrate_vma_conformance.kernel.traces.storms import Storms
from migrate_vma_impl.generations import Generation
from migrate_vma_spec.events import Step
from migrate_vma_spec.extras import EMPTY
from migrate_vma_spec.folding import put_task
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.objects import IDLE
from migrate_vma_spec.records import evolve
from migrate_vma_spec.registry import Clause


@frozen
class Broken:
    """A clause that the recording breaks: how, at which line, and the lines of what its thread was in."""

    clause: str
    sentence: str
    time: int
    line: Line
    lines: tuple[Line, ...]


@define(eq=False)
class Jury:
    """The clauses of one generation, over one recording."""

    generation: Generation
    clauses: tuple[Clause, ...]
    broken: dict[str, Broken] = field(factory=dict[str, Broken])
    reached: set[str] = field(factory=set[str])
    judge: Judge = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.judge = self._fresh()

    def _fresh(self) -> Judge:
        left = [clause for clause in self.clauses if clause.id not in self.broken]
        return Judge(self.generation.capabilities, left)

    def forget_task(self, task: str) -> None:
        self.judge.world = put_task(self.judge.world, task, IDLE)

    def forget_looks(self) -> None:
        """A page was looked at by a line that is over."""
        world = self.judge.world
        if world.frames:
            self.judge.world = evolve(world, frames=EMPTY)

    def forget(self, since: int) -> None:
        """Events are missing: nothing is known, and what was found after this time is withdrawn."""
        self.reached |= self.judge.reached
        self.broken = {clause: broken for clause, broken in self.broken.items() if broken.time <= since}
        self.judge = self._fresh()

    def over(self) -> None:
        self.reached |= self.judge.reached


_BARE = (OURS, "# tracer:", "#  ", "# entries", "version =", "cpus=", "CPU ")
"""How lines of a header begin that say nothing to a reader."""


@define
class Notes:
    """What is to be said of the reading itself: how often, and of the first time where."""

    counts: dict[str, int] = field(factory=dict[str, int])
    first: dict[str, str] = field(factory=dict[str, str])

    def add(self, what: str, where: str, count: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + count
        self.first.setdefault(what, where)

    def sentences(self) -> list[str]:
        return [f"{what}: {count:,} ({self.first[what]})" for what, count in self.counts.items()]


@define(eq=False)
class Recording:
    """What stands between two headers of a file. `title` is its header's first line; `told` what the header says."""

    number: int
    path: str
    generations: tuple[Generation, ...] = ()
    title: str = ""
    told: dict[str, str] = field(factory=dict[str, str])
    first: int = 0
    last: int = 0
    events: int = 0
    others: int = 0
    notes: Notes = field(factory=Notes)
    unordered: str = ""
    shown: Shown | None = None
    juries: tuple[Jury, ...] = ()
    storms: Storms = field(factory=Storms)
    mapper: Mapper | None = None
    window: Window = field(factory=Window)
    _spoke: dict[int, int] = field(factory=dict[int, int])

    @property
    def begun(self) -> bool:
        return bool(self.events or self.others)

    def stands(self, clause: str) -> bool:
        """Whether what was found of this clause can be relied on."""
        return not self.unordered and not (clause in ACROSS_CPUS and self.window.moved)

    def header(self, line: Line, facts: dict[str, str]) -> None:
        self.told |= facts
        self.first = self.first or line.number
        if not self.title and not line.text.startswith(_BARE):
            self.title = line.text.lstrip("# ").strip()

    def take(self, record: Record) -> None:
        """One more event, as it stands in the file."""
        self._saw(record.line.number)
        self.events += 1
        if self.unordered:
            return
        window, spoke = self.window, self._spoke
        if window.is_late(record):
            self.unordered = f"line {record.line.number} is older than lines that stand {window.size:,} events before it"
            return
        if record.time > spoke.get(record.cpu, -1):
            spoke[record.cpu] = record.time
        window.add(record)
        if window.full:
            self._release()

    def other(self, line: Line, other: Other) -> None:
        """An event that tells nothing."""
        self._saw(line.number)
        self.others += 1
        self._spoke[other.cpu] = max(other.time, self._spoke.get(other.cpu, 0))

    def lost(self, line: Line, lost: Lost) -> None:
        """The tracer lost events before this line."""
        self._saw(line.number)
        since = -1 if lost.cpu is None else self._spoke.get(lost.cpu, -1)
        self.notes.add("places where the tracer lost events, after which nothing is assumed", f"line {line.number}: {lost.text}")
        self._gap(since)

    def unreadable(self, line: Line) -> None:
        self._saw(line.number)
        what = "lines that are of no tracer known here, after which nothing is assumed"
        self.notes.add(what, f"line {line.number}: {line.text[:60]}")
        self._gap(max(self._spoke.values(), default=-1))

    def damaged(self, sentence: str) -> None:
        self.notes.add("damage", sentence)

    def end(self) -> None:
        """No line follows."""
        self._release(all_of_them=True)
        for jury in self.juries:
            jury.over()
        if self.window.moved:
            what = "lines that stood later than their time, and were put in its order"
            self.notes.add(what, "by their timestamps", self.window.moved)
        if overwritten := self.told.get("overwritten"):
            self.notes.add("a buffer that was too small", f"{overwritten} were overwritten before the first line")

    def _saw(self, number: int) -> None:
        self.first = self.first or number
        self.last = number

    def _gap(self, since: int) -> None:
        self._release(all_of_them=True)
        if self.mapper is not None:
            self.mapper.forget()
        for jury in self.juries:
            jury.forget(since)

    # ---- in the order of time ------------------------------------------------------------------------------------------

    def _release(self, *, all_of_them: bool = False) -> None:
        if len(self.window):
            mapper = self.mapper or self._begin()
            for record in self.window.ready(all_of_them=all_of_them):
                self._judge(mapper, record)

    def _begin(self) -> Mapper:
        self.shown = look_at(self.window.held, self.told)
        self.juries = tuple(Jury(each, self._clauses(each, self.shown.facts)) for each in self.generations)
        self.mapper = Mapper(self.shown, self.storms)
        return self.mapper

    def _clauses(self, generation: Generation, facts: frozenset[Fact]) -> tuple[Clause, ...]:
        """What this recording can be judged by. Where buffers were overwritten they begin at different times, so what two CPUs
        did cannot be compared.
        """
        capabilities = generation.capabilities
        apply = (each for each in judged_clauses().values() if each.applies(capabilities))
        shown = (each for each in apply if not lacking(each, facts, capabilities))
        return tuple(each for each in shown if not (self.told.get("overwritten") and each.id in ACROSS_CPUS))

    def _judge(self, mapper: Mapper, record: Record) -> None:
        for task, action in mapper.take(record):
            if isinstance(action, Forget):
                for jury in self.juries:
                    jury.forget_task(task)
                continue
            step = Step(task, record.cpu, action)
            for jury in self.juries:
                for clause, sentence in jury.judge.feed(step):
                    lines = tuple(mapper.lines(record.pid))
                    jury.broken[clause] = Broken(clause, sentence, record.time, record.line, lines or (record.line,))
        for jury in self.juries:
            jury.forget_looks()
