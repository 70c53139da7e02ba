"""One line of a trace: what it says, if it is of a known probe, and what else it can be.

Three tools write the same line: `TASK-PID [CPU] FLAGS SECONDS: EVENT: (FUNCTION) NAME=VALUE...`. tracefs (`trace`, `trace_pipe`)
names the function, `trace-cmd report` its address, and our bpftrace script prints what tracefs would.

Sources: kernel/trace/trace.c, trace_probe.c (6.1.192, 7.3.4); trace-cmd's tracecmd/trace-read.c.
"""

from __future__ import annotations

import re

from attrs import define, field, frozen

from migrate_vma_conformance.kernel.traces.probes import BY_NAME, ENTRY_BYTES, FIELDS, Point, points_of

LONGEST = 4096
"""Characters; a longer line is none of ours."""


@frozen
class Line:
    """A line of the file and its number, counted from 1."""

    number: int
    text: str


@define(eq=False)
class Record:
    """A probe was passed: when (nanoseconds), by which thread, where, and what it saw.

    `names` are the events whose lines it is made of: two probes at one place each see something. `told` is what the lines say of
    it, which is read when it is asked for.
    """

    line: Line
    time: int
    cpu: int
    pid: int
    task: str
    point: Point
    names: tuple[str, ...]
    told: str
    _fields: Fields | None = field(default=None, init=False)

    @property
    def numbers(self) -> dict[str, int]:
        return self._read().numbers

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        return self._read().arrays

    def number(self, name: str) -> int | None:
        return self._read().numbers.get(name)

    def pointer(self, name: str) -> int | None:
        """A pointer that is known and not NULL."""
        return self._read().numbers.get(name) or None

    def unite(self, other: Record) -> None:
        """Another probe at the same place saw this of the same visit."""
        self.names += other.names
        self.told = f"{other.told} {self.told}"
        self._fields = None

    def _read(self) -> Fields:
        if self._fields is None:
            self._fields = _fields(self.told)
        return self._fields


@define(eq=False)
class Fields:
    """The values in a line, by our names for them."""

    numbers: dict[str, int]
    arrays: dict[str, tuple[int, ...]]


@frozen
class Other:
    """An event of another probe: it tells nothing, but that its CPU's buffer was whole up to here."""

    time: int
    cpu: int


@frozen
class Lost:
    """The tracer says that events are missing, of this CPU; None: it does not say of which."""

    cpu: int | None
    text: str


@frozen
class Header:
    """A line before the events of a recording. `facts` are what it tells: of the kernel, of the page size, of the buffers."""

    facts: dict[str, str] = field(factory=dict[str, str])


@frozen
class Unreadable:
    """A line that no tracer that is known here writes."""


_ARRAYS = frozenset({"src", "dst"})
_NAMES = dict(FIELDS)  # looked at for each value of each line
Read = Record | Other | Lost | Header | Unreadable

_LINE = re.compile(
    r"\s*(?P<task>\S.{0,40}?-(?P<pid>\d+))\s+(?:\(\s*[\d-]+\)\s+)?\[(?P<cpu>\d+)\]\s+(?:[^\s\[\]]{1,10}\s+)?"
    r"(?P<seconds>\d+)\.(?P<fraction>\d{1,9}):\s+(?P<event>[\w.:-]+):\s*"
    r"(?:\((?P<returns>.*? <- )?(?P<symbol>[\w.$]+)(?:\+0x(?P<offset>[0-9a-f]+)[^)]*)?\)\s*(?P<fields>.*))?"
)
_SCALE = [10 ** (9 - digits) for digits in range(10)]
_LOST = (
    re.compile(r"CPU:(?P<cpu>\d+) \[(?:LOST )?(?:\d+ )?EVENTS(?: DROPPED)?\]"),
    re.compile(r"(?:WARNING: )?[Ll]ost (?P<count>\d+) events.*"),
)
_HEADERS = re.compile(r"#.*|version = \d+|cpus=\d+|CPU \d+ is empty|Attach(?:ing|ed) .*prob.*|trace-cmd report.*")
_BUFFERS = re.compile(r"#\s*entries-in-buffer/entries-written:\s*(\d+)/(\d+)")
OURS = "# migrate-vma"
"""How a line begins in which a recording of ours says `name=value`: its kernel, page_size and probes."""


@define
class Reader:
    """Reads lines. `callback` is the caller's own driver's migrate_to_ram, where it is not known by name."""

    callback: str | None = None
    _points: dict[str, tuple[Point | None, Point | None]] = field(init=False)
    _known: dict[tuple[str, str, bool, int], Point | None] = field(
        factory=dict[tuple[str, str, bool, int], Point | None], init=False
    )

    def __attrs_post_init__(self) -> None:
        self._points = points_of((self.callback,) if self.callback else ())

    def read(self, line: Line) -> Read:
        text = line.text
        found = _LINE.match(text) if len(text) <= LONGEST else None
        if found is None:
            return _aside(text)
        task, pid, cpu, seconds, fraction, event, returns, symbol, offset, told = found.groups()
        time = int(seconds) * 1_000_000_000 + int(fraction) * _SCALE[len(fraction)]
        point = None if symbol is None else self._point(event, symbol, returns is not None, int(offset or "0", 16))
        if point is None:
            return Other(time, int(cpu))
        return Record(line, time, int(cpu), int(pid), task, point, (event,), told)

    def _point(self, event: str, symbol: str, returns: bool, offset: int) -> Point | None:
        if len(self._known) > LONGEST:
            self._known.clear()
        key = event, symbol, returns, offset
        if key not in self._known:
            self._known[key] = self._find(event.rpartition(":")[2], symbol, returns, offset)
        return self._known[key]

    def _find(self, event: str, symbol: str, returns: bool, offset: int) -> Point | None:
        if symbol in self._points:
            at_entry, at_return = self._points[symbol]
            return at_return if returns else at_entry if offset <= ENTRY_BYTES else None
        if offset > ENTRY_BYTES and not returns:
            return None
        named = BY_NAME.get(event)
        # A function that is named and is not the kernel's own can only be a driver's.
        free_to_be = re.fullmatch(r"[0-9a-f]{8,16}", symbol) is not None or named in _DRIVERS_OWN
        return named if free_to_be else None


_DRIVERS_OWN = {Point.CALLBACK, Point.CALLBACK_RETURN, Point.FREE}


def _aside(text: str) -> Read:
    """What a line is that is no event."""
    for form in _LOST:
        if found := form.fullmatch(text.strip()):
            cpu = found.groupdict().get("cpu")
            return Lost(None if cpu is None else int(cpu), text.strip())
    if _HEADERS.fullmatch(text.strip()):
        return Header(_facts(text))
    return Unreadable()


def _facts(text: str) -> dict[str, str]:
    if found := _BUFFERS.match(text):
        return {"overwritten": "" if found[1] == found[2] else f"{int(found[2]) - int(found[1]):,} of {int(found[2]):,} events"}
    if not text.startswith(OURS):
        return {}
    return dict(word.split("=", 1) for word in text.removeprefix(OURS).split() if "=" in word)


def _fields(text: str) -> Fields:
    """The values of `name=value`. Of one name twice the last counts; of an array the longest."""
    numbers: dict[str, int] = {}
    arrays: dict[str, tuple[int, ...]] = {}
    known = _NAMES.get
    for word in text.split():
        alias, _, value = word.partition("=")
        name = known(alias)
        if name is None:
            continue
        try:
            if name in _ARRAYS:
                array = tuple([int(part, 0) for part in value.strip("{}").split(",")])
                arrays[name] = max(array, arrays.get(name, ()), key=len)
            else:
                numbers[name] = int(value, 0)
        except ValueError:
            continue  # `(fault)`: what the probe wanted to read was not there
    if "result" in numbers:
        numbers["result"] = _signed(numbers["result"])
    return Fields(numbers, arrays)


def _signed(value: int) -> int:
    """An int as the kernel returns it, whether it was printed as one or as an unsigned number of 32 or 64 bits."""
    for bits in (32, 64):
        if 1 << bits - 1 <= value < 1 << bits:
            return value - (1 << bits)
    return value
