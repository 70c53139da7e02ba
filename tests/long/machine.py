"""The state machine over every generation and world, for as long as one likes: `python -m tests.long.machine --examples 10000`.

`tox -e machine` is the same. It is `migrate-vma fuzz` for the kernel's test driver with what is known of it, of the generations,
and of large folios (docs/findings/README.md): anything else that it tells is new. Exits with 0 if nothing is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from migrate_vma_conformance.fuzz import Known, Shard, fuzz, shards
from migrate_vma_conformance.report import fuzz_report
from migrate_vma_conformance.terminal import counting_bar

OF_THE_TEST_DRIVER = frozenset({"C62", "C71", "C77", "C79", "C87", "C88", "C49: which is free", "REF: device test_hmm"})
"""What the kernel's test driver breaks, by the words that are said of it: whatever else is said is not known."""

OF_LARGE_FOLIOS = frozenset({"C49", "C62", "C71", "C77", "C79", "C87", "C88"})
"""The same, of drivers whose folios may be large, and in whose races several pages meet."""

END_OF_LARGE_FOLIOS = frozenset(
    {
        "C08",
        "dmirror_device_evict_chunk locks a folio that it did not get",
        "dmirror_migrate_alloc_and_copy writes to a page that it did not get",
    }
)
"""What the test driver, or the kernel itself, comes to with large folios: nothing holds after it."""

OF_A_GENERATION = {"unreferenced": frozenset({"C41", "C50", "C54"})}
"""Where the fault takes no reference, a page is also taken for eviction between its last unlock and its last put (C54)."""

PLACES = (
    ("unreferenced", "swap"),
    ("unreferenced", "huge"),
    ("referenced", "swap"),
    ("referenced", "huge"),
    ("trylocked", "small"),
    ("trylocked", "swap"),
    ("trylocked", "huge"),
    ("trylocked+compound", "huge"),
    ("waiting", "small"),
    ("waiting", "swap"),
    ("waiting", "huge"),
    ("waiting+compound", "huge"),
    ("entry-first", "alone"),
)
"""The generations, and the worlds in which each is run. Where pages are mapped more than once, entry-first is known to fail."""


def known(generation: str, world: str) -> Known:
    own = OF_A_GENERATION.get(generation, frozenset[str]())
    if world == "huge":
        return Known(OF_LARGE_FOLIOS | own, END_OF_LARGE_FOLIOS)
    return Known(OF_THE_TEST_DRIVER | own)


def all_shards(examples: int, shard: int, seed: int, places: Sequence[tuple[str, str]] = PLACES) -> list[Shard]:
    """One shard of each place, then the next one of each: a run that is cut short has seen all of them."""
    found = [
        unit
        for name, world in places
        for unit in shards("test_hmm", name, world, examples=examples, shard=shard, seed=seed, known=known(name, world))
    ]
    return sorted(found, key=lambda unit: unit.asked.seed)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long.machine", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000, help="in each generation and world")
    parser.add_argument("--shard", type=int, default=500, help="examples of one process")
    parser.add_argument("--seed", type=int, default=0, help="of the first shard of each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--place", action="append", metavar="GENERATION:WORLD", help="only this one; can be given again")
    given = parser.parse_args(arguments)
    wanted = [tuple(place.split(":")) for place in given.place or ()]
    places = [(generation, world) for generation, world in wanted] or PLACES
    with counting_bar() as watch:
        found = fuzz("test_hmm", all_shards(given.examples, given.shard, given.seed, places), jobs=given.jobs, watch=watch)
    sys.stdout.write("\n".join((*fuzz_report.lines(found), "")))
    return 1 if found.findings or found.lost or found.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
