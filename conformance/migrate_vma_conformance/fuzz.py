"""Long runs of the state machine: drawn workloads by the ten thousand, in shards that several processes share.

Rules:
- A shard is a driver, a generation, a world and a seed, and comes to the same wherever it runs and whatever runs beside it.
- Its process has limits as every child of the pool has: a model that hangs ends its shard, not the run.
- What is found more than once, by shards of one generation and world, is told once, with the first shard that found it.
- That nothing is found is no evidence that nothing is there.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from attrs import evolve, field, frozen

from migrate_vma_conformance.errors import SubjectError, UsageError, listed
from migrate_vma_conformance.life import CONFIG
from migrate_vma_conformance.machine import Examination, Told, examine
from migrate_vma_conformance.pool import Lost, run_all
from migrate_vma_conformance.subject import find_driver, find_generation
from migrate_vma_impl.kernel import Config
from migrate_vma_spec.vocabulary import Capability

_SWAP = Config(system_frames=6, mms=3, swap_slots=2, files=2, file_pages=2, tlb_batch=True)

WORLDS: Mapping[str, Config] = {
    "roomy": CONFIG,
    "small": Config(system_frames=5),
    "swap": _SWAP,
    "alone": evolve(_SWAP, mms=1),
    "huge": Config(system_frames=20, mms=3, addresses=8, pmd_order=2),
}
"""The systems that a driver can live in: with room for all, short of memory, with swap and files, the same for one process whose
pages are mapped once, with large folios.
"""

SHARD = 500
"""Examples of one shard, unless asked for otherwise: a minute or less."""

START_SECONDS, EXAMPLE_SECONDS = 120.0, 2.0
"""What a shard may take, wall clock: so long, and so long for each example. One takes some thirty milliseconds, but what is found
is made smaller by living it a hundred times, and the machine may be busy.
"""


@frozen
class Known:
    """What a driver, a generation or a world is known to break: `allow` and `ends` are as in `machine.make_machine`."""

    allow: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()


KNOWN_NOTHING = Known()


@frozen
class Shard:
    """One examination, and the world by its name."""

    world: str
    asked: Examination

    @property
    def command(self) -> str:
        """What runs it again."""
        asked = self.asked
        words = ["migrate-vma", "fuzz", asked.driver, "--generation", asked.generation, "--world", self.world]
        words += ["--examples", str(asked.examples), "--shard", str(asked.examples), "--seed", str(asked.seed)]
        words += ["--steps", str(asked.steps)]
        for option, given in (("--allow", asked.allow), ("--ends", asked.ends)):
            words += [word for each in sorted(given) for word in (option, each)]
        return shlex.join(words)


@frozen
class Result:
    """What came of a shard: what it found, or why it has no result."""

    shard: Shard
    found: tuple[Told, ...] = ()
    lost: str | None = None


@frozen
class Finding:
    """A trouble, the first shard that came to it, and how many did."""

    told: Told
    shard: Shard
    shards: int


@frozen
class Row:
    """One generation in one world: how many examples ran to their end, and what they came to."""

    generation: str
    world: str
    shards: int
    examples: int
    findings: tuple[Finding, ...] = ()
    lost: tuple[str, ...] = ()


@frozen
class Fuzzing:
    """What a run came to. `asked` counts the shards that were to run; interrupted, fewer did."""

    driver: str
    asked: int
    rows: tuple[Row, ...] = field(factory=tuple)
    interrupted: bool = False

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for row in self.rows for finding in row.findings)

    @property
    def lost(self) -> tuple[str, ...]:
        return tuple(reason for row in self.rows for reason in row.lost)


def shards(
    driver: str,
    generation: str,
    world: str,
    *,
    examples: int,
    shard: int = SHARD,
    steps: int = 20,
    seed: int = 0,
    known: Known = KNOWN_NOTHING,
) -> list[Shard]:
    """The shards of so many examples: the first has `seed`, each other one the next number.

    Raises:
        UsageError: no such driver, generation or world.
        SubjectError: the generation wants a variant of the driver which it does not have.
    """
    if world not in WORLDS:
        raise UsageError(world, "--world", "no such world", f"one of {listed(WORLDS)}")
    config, subject = WORLDS[world], find_driver(driver)
    record = find_generation(generation)
    adapted = Capability.REFILL in record.capabilities
    if adapted and subject.adapted is None:
        raise SubjectError(driver, f"it has no variant that calls refill_fault_entry, which {generation} asks for")
    count = math.ceil(examples / shard)
    sizes = [min(shard, examples - number * shard) for number in range(count)]
    asked = Examination(driver, record.name, 0, steps, seed, known.allow, adapted, config, known.ends)
    return [Shard(world, evolve(asked, examples=size, seed=seed + number)) for number, size in enumerate(sizes)]


def results(units: Sequence[Shard], jobs: int) -> Iterator[Result]:
    """Run them in `jobs` processes, and give each result as it comes."""
    longest = max((unit.asked.examples for unit in units), default=0)
    for place, result in run_all(_run, units, jobs=jobs, seconds=START_SECONDS + EXAMPLE_SECONDS * longest):
        if isinstance(result, Lost):
            yield Result(units[place], lost=result.reason)
        else:
            yield Result(units[place], found=result)


def _run(shard: Shard) -> tuple[Told, ...]:
    return examine(shard.asked)


Watch = Callable[[str, int, int], None]
"""Told, after each shard, what ended, how many did, and of how many."""


def fuzz(driver: str, units: Sequence[Shard], *, jobs: int, watch: Watch) -> Fuzzing:
    """Run the shards, and sum up what they came to. Ctrl-C ends the run, and keeps what was found."""
    done: list[Result] = []
    interrupted = False
    coming = results(units, jobs)
    try:
        for result in coming:
            done.append(result)
            watch(f"{result.shard.asked.generation}: {result.shard.world}", len(done), len(units))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        coming.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return Fuzzing(driver, len(units), rows(done, units), interrupted)


def rows(done: Collection[Result], units: Iterable[Shard] = ()) -> tuple[Row, ...]:
    """A row for each generation and world, in the order of the shards that were asked for."""
    places = dict.fromkeys(map(_place, (*units, *(result.shard for result in done))))
    return tuple(_row(*place, [each for each in done if _place(each.shard) == place]) for place in places)


def _place(shard: Shard) -> tuple[str, str]:
    return shard.asked.generation, shard.world


def _row(generation: str, world: str, done: list[Result]) -> Row:
    first: dict[str, Finding] = {}
    for result in sorted(done, key=lambda each: each.shard.asked.seed):
        for told in result.found:
            seen = first.get(told.what)
            first[told.what] = Finding(told, result.shard, 1) if seen is None else evolve(seen, shards=seen.shards + 1)
    whole = [result for result in done if result.lost is None]
    lost = tuple(f"{result.shard.command}: {result.lost}" for result in done if result.lost is not None)
    return Row(generation, world, len(done), sum(result.shard.asked.examples for result in whole), tuple(first.values()), lost)
