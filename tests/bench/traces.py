"""How fast a trace is judged, and in what memory: `python -m tests.bench.traces [EVENTS]`.

The trace is made as it is read: the recorded race of four threads on a real kernel, over and over, each time with other threads.
It is read as a file is, merged, mapped and judged; what a disk adds is not timed. Memory is the largest resident set that the
process had, as it began and at its end.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from migrate_vma_conformance.kernel.traces.judging import recordings
from migrate_vma_conformance.kernel.traces.lines import Line
from migrate_vma_conformance.subject import find_generation

RECORDED = Path(__file__).parents[1] / "kernel" / "data" / "race-two-kernels.trace"
GENERATIONS = ("referenced", "trylocked")
EVENTS = 1_000_000
_PARTS = re.compile(r"( *init-)(\d+)( +\[\d+\] \S+ +)(\d+)\.(\d{6})(: .*)")


def synthetic(events: int) -> Iterator[Line]:
    """So many lines, or a few more, to the end of a race."""
    first = RECORDED.read_text().split("\n\n")[0].splitlines()
    race = [found.groups() for line in first if (found := _PARTS.match(line))]
    number = 0
    for turn in range(events):
        for head, pid, middle, seconds, micros, tail in race:
            number += 1
            when = int(seconds) * 1_000_000 + int(micros) + turn * 20_000
            thread = int(pid) if int(pid) < 10 else 1000 + (int(pid) + 4 * turn) % 1_000_000
            yield Line(number, f"{head}{thread}{middle}{when // 1_000_000}.{when % 1_000_000:06}{tail}")
        if number >= events:
            return


def main() -> None:
    """Print seconds, events a second, and memory, for each generation."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    events = int(words[0]) if words else EVENTS
    figures: dict[str, dict[str, float]] = {}
    for name in GENERATIONS:
        before = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.monotonic()
        (found,) = recordings(synthetic(events), "synthetic", [find_generation(name)])
        seconds = time.monotonic() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
        figures[name] = {
            "events": found.events,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
            "events_a_second": round(found.events / seconds),
            "memory_before_mb": round(before.ru_maxrss / 1024),
            "memory_after_mb": round(after.ru_maxrss / 1024),
        }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
