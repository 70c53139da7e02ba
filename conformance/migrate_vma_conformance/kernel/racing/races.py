"""Races on a real kernel: threads that read one device page while others read, evict, unmap, fork, discard or migrate it.

Rules:
- Only what must hold in every interleaving is judged: what a thread may read, where the page may be afterwards, that every device
  page which was taken is given back, that nobody is stuck. How often something happened is told, and judged by nobody here.
- A guest that ends is a result of the run: the counts of its probes are lost, why it ended is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from migrate_vma_conformance.errors import SubjectError
from migrate_vma_conformance.kernel.racing.rounds import BEFORE, RaceKind, Round
from migrate_vma_conformance.kernel.witness.probes import Count, Probes
from migrate_vma_conformance.kernel.witness.protocol import Answer
from migrate_vma_conformance.kernel.witness.witness import Ended, Result, Witness

ENTERED, FREED = "entered", "freed"
PROBES = Probes({ENTERED: "dmirror_devmem_fault", FREED: "dmirror_devmem_free"})
"""The driver's fault callback, and the free of a device page: the functions have the same names from 6.1 to 7.3."""

_BATCH = 25
"""Rounds in one question."""


@frozen
class Run:
    """What a number of rounds of one race came to.

    Attributes:
        threads: that race, the rival among them.
        rounds: that were completed.
        contended: rounds in which more than one reader faulted: a race took place.
        entries: into the driver's fault callback.
        frees: of device pages.
        missed: entries and frees that the probes missed.
        migrations: back to system memory, one for each round, where the race says how many; else None.
        reads: loads that raced; `minor` faults and microseconds (`longest`, `total`) are theirs.
        broken: what did not hold, with how often.
        ended: why the guest ended, if it did.
    """

    race: str
    threads: int
    rounds: int
    contended: int = 0
    entries: int = 0
    frees: int = 0
    missed: int = 0
    migrations: int | None = None
    reads: int = 0
    minor: int = 0
    longest: int = 0
    total: int = 0
    broken: tuple[str, ...] = ()
    ended: Ended | None = None

    @property
    def entries_per_migration(self) -> float | None:
        return self.entries / self.migrations if self.migrations else None

    @property
    def minor_per_read(self) -> float | None:
        return self.minor / self.reads if self.reads else None

    @property
    def holds(self) -> bool:
        """Every invariant held, and the guest outlived it."""
        return not self.broken and self.ended is None


@define
class _Tally:
    """Counts as the rounds come in."""

    kind: RaceKind
    threads: int
    rounds: int = 0
    contended: int = 0
    reads: list[Answer] = field(factory=list[Answer])
    broken: Counter[str] = field(factory=Counter[str])

    def add(self, rounds: Sequence[Round], results: Sequence[Result]) -> None:
        """Takes in the rounds of which every command was answered."""
        place = 0
        for each in rounds:
            size = len(each.commands)
            answers = [result for result in results[place : place + size] if isinstance(result, Answer)]
            place += size
            if len(answers) < size:
                return
            self.broken.update(set(each.broken(answers)))
            reads = each.reads(answers[Round.RACE])
            self.contended += sum(bool(read.minor) for read in reads) > 1
            self.reads += reads
            self.rounds += 1

    def run(self, counts: dict[str, Count], ended: Ended | None) -> Run:
        entered, freed = counts.get(ENTERED, Count(0, 0)), counts.get(FREED, Count(0, 0))
        took = [answer.took or 0 for answer in self.reads]
        missed = entered.missed + freed.missed
        if ended is None:
            self._check_counts(entered.hits, freed.hits, missed)
        return Run(
            race=self.kind.name,
            threads=self.threads,
            rounds=self.rounds,
            contended=self.contended,
            entries=entered.hits,
            frees=freed.hits,
            missed=missed,
            migrations=self.rounds if self.kind.rival is None else None,
            reads=len(self.reads),
            minor=sum(answer.minor or 0 for answer in self.reads),
            longest=max(took, default=0),
            total=sum(took),
            broken=tuple(f"{what} ({often} of {self.rounds} rounds)" for what, often in self.broken.most_common()),
            ended=ended,
        )

    def _check_counts(self, entries: int, frees: int, missed: int) -> None:
        """Of every round exactly: a page that comes back, or is unmapped, is freed once. A migration by a fault needs a fault."""
        least, most = (each * self.rounds for each in self.kind.device_pages)
        if not least <= frees + missed or frees > most:
            self.broken[f"{frees} device pages were freed, of {least} to {most}"] = self.rounds
        if self.kind.rival is None and entries + missed < self.rounds:
            self.broken[f"{entries} entries into the callback brought {self.rounds} pages back"] = self.rounds


def unwatched(done: int) -> None:
    """Nobody hears how many rounds are done."""


def run(witness: Witness, kind: RaceKind, threads: int, rounds: int, told: Callable[[int], None] = unwatched) -> Run:
    """Race so many rounds on a guest that is up. `told` hears how many are done.

    Raises:
        SubjectError: the guest cannot count, or has no device.
    """
    tally = _Tally(kind, threads)
    if (ended := _ended(_begin(witness))) is not None:
        return tally.run({}, ended)
    for first in range(0, rounds, _BATCH):
        batch = [Round(kind, threads, 1 + number % 255) for number in range(first, min(first + _BATCH, rounds))]
        results = witness.ask([command for each in batch for command in each.commands])
        tally.add(batch, results)
        if (ended := _ended(results)) is not None:
            return tally.run({}, ended)
        told(tally.rounds)
    profile, *_ = end = witness.ask([PROBES.read(), *PROBES.take_away()])
    counts = PROBES.counts(profile.text or "") if isinstance(profile, Answer) else {}
    return tally.run(counts, _ended(end))


def _begin(witness: Witness) -> list[Result]:
    results = witness.ask([*PROBES.take_away(), *BEFORE, *PROBES.set_up()])
    wanted = results[len(PROBES.take_away()) :]
    failed = [answer.result for answer in wanted if isinstance(answer, Answer) and answer.result]
    if failed:
        raise SubjectError(f"guest {witness.name}", f"it has no test_hmm, or no tracefs, to race with (errno {-failed[0]})")
    return wanted


def _ended(results: Sequence[Result]) -> Ended | None:
    return next((result for result in results if isinstance(result, Ended)), None)
