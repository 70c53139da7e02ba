"""What is open in each thread of a trace: callbacks and migrations, one inside another.

Rules:
- Only a bounded number of threads is remembered; the one that was seen longest ago is forgotten, and judged no further.
- What is forgotten is unknown, never ended: a thread whose beginning the trace does not show has no past that breaks a clause.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

from migrate_vma_conformance.kernel.traces.lines import Line, Record

THREADS = 1024
"""Threads that are remembered at once."""
DEPTH = 8
"""Calls and callbacks inside one another in one thread; a deeper nest is none that a kernel makes."""
LINES = 8


@define(eq=False)
class Opened:
    """A callback or a migration that a thread is in. `cut`: the trace does not show enough of it, and nothing of it is judged."""

    lines: list[Line]
    cut: bool

    def add(self, line: Line) -> None:
        if len(self.lines) < LINES and self.lines[-1] is not line:
            self.lines.append(line)


@define(eq=False)
class Callback(Opened):
    """A migrate_to_ram. `migrated` is None where the trace does not tell whether its migrations moved anything."""

    page: int | None
    pfn: int | None = None
    mm: int = 0
    address: int = 0
    time: int = 0
    refs: int = 0
    setups: int = 0
    empty: int = 0
    migrated: bool | None = False


@define(eq=False)
class Migration(Opened):
    """A call of migrate_vma_setup and what follows it. Addresses are page numbers.

    `returned` is the return of setup, if that succeeded; `told`: the clauses know of it. `held` is cpages, where that is known.
    """

    number: int
    args: int | None
    start: int
    end: int
    fault_page: int | None
    returned: Record | None = None
    told: bool = False
    held: int | None = None
    paged: bool = False
    pages_told: bool = False
    finalizing: bool = False


@define(eq=False)
class Track:
    """One thread. `known`: the trace has shown it in no callback and no migration, or all that it is in since.

    `unsure`: it may be in something that the trace does not show, until a callback returns that was not seen to begin.
    """

    task: str
    known: bool = False
    unsure: bool = False
    open: list[Opened] = field(factory=list[Opened])
    last: Record | None = None

    @property
    def callback(self) -> Callback | None:
        """The innermost callback."""
        for each in reversed(self.open):
            if isinstance(each, Callback):
                return each
        return None

    @property
    def migration(self) -> Migration | None:
        """The migration that the thread is in, if it is in no callback inside of it."""
        top = self.open[-1] if self.open else None
        return top if isinstance(top, Migration) else None

    @property
    def migrations(self) -> int:
        return sum(isinstance(each, Migration) for each in self.open)

    def lines(self) -> list[Line]:
        """What was seen of all that the thread is in."""
        found: list[Line] = []
        for opened in self.open:
            found += [line for line in opened.lines if line not in found]
        return found


@define
class Tracks:
    """The threads, by their ids."""

    limit: int = THREADS
    _threads: OrderedDict[int, Track] = field(factory=OrderedDict[int, Track])

    def __len__(self) -> int:
        return len(self._threads)

    def find(self, pid: int) -> Track | None:
        return self._threads.get(pid)

    def track(self, record: Record) -> tuple[Track, Track | None]:
        """The record's thread, and the one that had to be forgotten for it."""
        found = self._threads.get(record.pid)
        if found is None:
            found = self._threads[record.pid] = Track(record.task)
        else:
            self._threads.move_to_end(record.pid)
        forgotten = self._threads.popitem(last=False)[1] if len(self._threads) > self.limit else None
        return found, forgotten

    def clear(self) -> None:
        self._threads.clear()
