"""Races of two operations, all with one preemption: one runs so many steps, then the other to its end or until it must wait.

Where both wait, the CPUs' workers run. The contract judges each trace, and the ledger of references is looked at in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from migrate_vma_impl.mm.mm_types import FreePages, LruBatch, PageCache, PteSlot, SwapSlot
from migrate_vma_impl.workqueue import process_one_work
from migrate_vma_spec.events import Step
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.registry import REGISTRY, Party
from migrate_vma_spec.vocabulary import PteKind
from tests.impl.stage import Player, Stage

BATCH_STEPS = frozenset({"flush_before_pageout", "flush_before_free", "flush_batched"})
"""The steps that only reclaim with put-off flushes takes."""
SWAP_STEPS = frozenset(
    {"free_swap", "mapping_by_now", "may_leave_cache", "flush_unmapped", "swapped_out_entry", "swapped_in_entry"}
)
"""The steps that only a kernel with swap takes."""
PATIENCE = 300


class JudgedStage(Stage):
    """A stage whose trace the contract judges as it comes, but for what binds drivers alone; `broken` is what it found."""

    def __init__(self, *args: Any, **config: Any) -> None:
        self.judge: Judge | None = None
        self.broken: list[tuple[str, str]] = []
        super().__init__(*args, **config)

    def say(self, player: Player, event: Any) -> None:
        if self.judge is None:
            clauses = (each for each in REGISTRY.values() if each.party is not Party.DRIVER)
            self.judge = Judge(self.kernel.generation.capabilities, clauses)
        self.broken += self.judge.feed(Step(player.name, player.cpu, event))
        super().say(player, event)


@frozen
class Actor:
    """An operation of a race, pinned to a CPU: `work(stage)` answers a function and its values."""

    work: Callable[[Stage], tuple[Any, ...]]
    cpu: int


def races(make: Callable[[], JudgedStage], first: Actor, second: Actor) -> Iterator[JudgedStage]:
    """The stage after each race, with everything drained."""
    after, done = 0, False
    while not done:
        stage = make()
        done = not _race(stage, first, second, after)
        settle(stage)
        yield stage
        after += 1


def _race(stage: JudgedStage, first: Actor, second: Actor, after: int) -> bool:
    """False where the first one ended before it was preempted."""
    one, two = (stage.start(name, *actor.work(stage), cpu=actor.cpu) for name, actor in (("one", first), ("two", second)))
    steps = 0
    while steps < after and not one.ended and one.step():
        steps += 1
    preempted = not one.ended
    players = (two, one)
    while not all(player.ended for player in players):
        ran = [_run(player) for player in players]
        if not any(ran):
            _work(stage)
    return preempted


def _run(player: Player) -> bool:
    """To its end, or until it must wait, or has had so many steps that it may be retrying until the other one goes on."""
    steps = 0
    while steps < PATIENCE and not player.ended and player.step():
        steps += 1
    return steps > 0


def _work(stage: Stage) -> None:
    workers = [
        stage.start(f"kworker{cpu}", process_one_work, stage.kernel, cpu, cpu=cpu) for cpu in range(stage.kernel.config.cpus)
    ]
    ran = [_run(worker) for worker in workers]
    for worker in workers:
        worker.coroutine.close()
    assert any(ran), "both wait for ever"


def settle(stage: Stage) -> None:
    for cpu in range(stage.kernel.config.cpus):
        stage.run(stage.kernel.lru_add_drain, cpu=cpu)


# ---- the ledger ------------------------------------------------------------------------------------------------------


def ledger(stage: Stage) -> list[str]:
    """What does not add up: mappings, references, charges, locks, the page cache, the swap table. Pins are not looked for."""
    ptes = [value for key, value in stage.slots.items() if isinstance(key, PteSlot)]
    maps = Counter(pte.pfn for pte in ptes if pte.kind in (PteKind.PRESENT, PteKind.DEVICE_PRIVATE))
    swapped = Counter(pte.swap for pte in ptes if pte.kind is PteKind.SWAP)
    free = stage.slots[FreePages()]
    wrong = [f"{pte} is left" for pte in ptes if pte.kind is PteKind.MIGRATION]
    for pfn in stage.kernel.system_pfns:
        wrong += _page(stage, pfn, maps[pfn], free=pfn in free)
    for number in range(stage.kernel.config.swap_slots):
        entry = stage.slots[SwapSlot(number)]
        if entry.count != swapped[number] or (entry.folio is not None and stage.folio(entry.folio).swap != number):
            wrong.append(f"swap slot {number} is {entry}, and {swapped[number]} entries hold it")
    return wrong


def _page(stage: Stage, pfn: int, maps: int, *, free: bool) -> list[str]:
    f = stage.folio(pfn)
    batches = sum(pfn in value for key, value in stage.slots.items() if isinstance(key, LruBatch))
    cached = sum(pfn in value for key, value in stage.slots.items() if isinstance(key, PageCache) and value is not None)
    in_swap_cache = f.swap is not None
    right = (
        f.mapcount == maps,
        f.refcount == maps + batches + cached + in_swap_cache,
        f.charged == (not free),
        free == (not f.refcount),
        not f.locked,
        (f.file is not None) == bool(cached),
        f.swap is None or stage.slots[SwapSlot(f.swap)].folio == pfn,
    )
    return [] if all(right) else [f"page {pfn}: {f}, mapped {maps} times, in {cached} page caches, checks {right}"]
