"""Files of traces: their lines, in constant memory, and their events in the order of time.

Rules:
- A file that is no text of a tracer is refused with what it is, where that can be told.
- The last line of a file that ends in the middle of it is left out: what it shows of its last value may be half of it.
- The buffers of several CPUs are merged by time, within a window. What is older than the window reaches cannot be merged: then
  the file is no trace in the order of time, and nothing is concluded from it.
"""

from __future__ import annotations

import bisect
import contextlib
import gzip
import io
import sys
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from attrs import define, field, frozen

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel.traces.lines import LONGEST, Line, Record

SOURCE = "argument FILE"
EXPECTED = "the text of tracefs's `trace` or `trace_pipe`, of `trace-cmd report`, or of the script that `trace record` prints"

_MAGIC = {
    b"%PDF": "it is a PDF",
    b"\x17\x08\x44tracing": "it is a binary trace.dat: `trace-cmd report FILE` prints it as text, and `-` reads that from a pipe",
    b"PERFILE2": "it is a binary perf.data",
    b"\x7fELF": "it is a program",
    b"PK\x03\x04": "it is a zip archive",
    b"BZh": "it is compressed with bzip2",
    b"\xfd7zXZ": "it is compressed with xz",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd",
}
_GZIP = b"\x1f\x8b"


@frozen
class Damage:
    """The file ends where it should not."""

    number: int
    sentence: str


def lines_of(name: str) -> Iterator[Line | Damage]:
    """The lines of a file, or of standard input for `-`; what gzip made is unpacked.

    Raises:
        UsageError: there is no such file, it is empty, or no text.
    """
    with _opened(name) as file:
        yield from _lines(file, name)


@contextlib.contextmanager
def _opened(name: str) -> Generator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        try:
            raw = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
            file = io.BufferedReader(cast("io.RawIOBase", raw), 1 << 16)
            stack.callback(file.detach)
            head = file.peek(512)[:512]
        except OSError as error:
            raise UsageError(name, SOURCE, f"it cannot be read ({error.strerror})", EXPECTED) from error
        for magic, sentence in _MAGIC.items():
            if head.startswith(magic):
                raise UsageError(name, SOURCE, sentence, EXPECTED)
        if not head:
            raise UsageError(name, SOURCE, "it is empty", EXPECTED)
        plain = cast("BinaryIO", file)
        yield cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=plain))) if head.startswith(_GZIP) else plain


def _lines(file: BinaryIO, name: str) -> Iterator[Line | Damage]:
    number = 0
    try:
        while part := file.readline(LONGEST * 4):
            number += 1
            if b"\0" in part:
                if number < 16:
                    raise UsageError(name, SOURCE, f"line {number} holds binary data", EXPECTED)
                yield Damage(number, f"line {number} holds binary data; it and what follows are left out")
                return
            if not part.endswith(b"\n") and len(part) < LONGEST * 4:
                yield Damage(number, f"the file ends in the middle of line {number}, which is left out")
                return
            yield Line(number, part.decode("utf-8", "replace").rstrip("\r\n"))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield Damage(number + 1, f"the compressed file ends in the middle, after line {number}")
    except OSError as error:
        yield Damage(number + 1, f"the file cannot be read after line {number} ({error.strerror})")


# ---- in the order of time ----------------------------------------------------------------------------------------------

WINDOW = 4096
"""Events, or up to twice as many, that are held back to be merged with later lines, and looked at before the first is judged."""


def is_twin(record: Record, other: Record) -> bool:
    """Whether two probes of different names sit where the thread is, and both have told of the one visit."""
    return record.point is other.point and not set(record.names) & set(other.names)


@define
class Window:
    """Holds events back and gives them in the order of time; of equal times, in that of the file. Twins are made one."""

    size: int = WINDOW
    moved: int = 0
    _held: deque[Record] = field(factory=deque[Record])
    _latest: dict[int, Record] = field(factory=dict[int, Record])
    _released: int = -1

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        return len(self._held) > 2 * self.size

    @property
    def held(self) -> Iterator[Record]:
        return iter(self._held)

    def is_late(self, record: Record) -> bool:
        """It is older than what was given out already."""
        return record.time < self._released

    def add(self, record: Record) -> None:
        last = self._latest.get(record.pid)
        if last is not None and last.time <= record.time and is_twin(last, record):
            last.unite(record)
            return
        if not self._held or self._held[-1].time <= record.time:
            self._held.append(record)
        else:
            self.moved += 1
            self._held.insert(bisect.bisect_right(self._held, record.time, key=_time), record)
        if last is None or last.time <= record.time:
            self._latest[record.pid] = record

    def ready(self, *, all_of_them: bool = False) -> Iterator[Record]:
        """What need not be held back any longer."""
        rest = 0 if all_of_them else self.size
        while len(self._held) > rest:
            record = self._held.popleft()
            if self._latest.get(record.pid) is record:
                del self._latest[record.pid]
            self._released = record.time
            yield record


def _time(record: Record) -> int:
    return record.time
