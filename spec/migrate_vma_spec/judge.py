"""Judge: the clauses of the contract, run over one trace as it comes.

Mutable, unlike everything else here: it holds the folded world and the monitors' memories. Once a clause has fired it is silent
for the rest of the trace, because what follows a broken rule often breaks it again; and after an Oops nothing more is judged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import migrate_vma_spec.clauses  # noqa: F401  (fills the registry)
from migrate_vma_spec.events import Event, Oops, Step
from migrate_vma_spec.objects import World
from migrate_vma_spec.registry import KEPT, REGISTRY, Clause, Judgement
from migrate_vma_spec.vocabulary import Capability
from migrate_vma_spec.world import fold

Finding = tuple[str, str]
"""A clause's id, and the sentence that says what broke it."""


class Judge:
    """Feed it the steps of a trace in order, then ask for the `end`.

    Args:
        capabilities: what the subject offers; clauses that require another are left out.
        clauses: the clauses to judge by; all of the registry where none are given.
    """

    def __init__(self, capabilities: Iterable[Capability] = (), clauses: Iterable[Clause] | None = None) -> None:
        self.world = World(capabilities=frozenset(capabilities))
        chosen = REGISTRY.values() if clauses is None else clauses
        self._live = {clause.id: clause for clause in chosen if clause.applies(self.world.capabilities)}
        self._memories: dict[str, Hashable] = {clause.id: clause.start for clause in self._live.values() if clause.monitor}
        self._index: dict[type[Event], tuple[Clause, ...]] = {}
        for clause in self._live.values():
            for kind in clause.on:
                self._index[kind] = (*self._index.get(kind, ()), clause)
        self._over = False
        self.reached: set[str] = set()
        """The ids of the clauses that were seen to apply and hold, or were broken."""

    def feed(self, step: Step) -> list[Finding]:
        """Judge one step, and say which clauses it broke."""
        if self._over:
            return []
        before = self.world
        after = self.world = fold(before, step)
        self._over = isinstance(step.event, Oops)
        findings: list[Finding] = []
        for clause in self._index.get(type(step.event), ()):
            judgement = clause.step(before, step, after) if clause.step is not None else self._monitored(clause, before, step)
            if judgement is not None:
                findings += self._heard(clause, judgement)
        return findings

    def feed_all(self, steps: Sequence[Step]) -> list[Finding]:
        """Judge a whole trace, without its end."""
        return [finding for step in steps for finding in self.feed(step)]

    def end(self) -> list[Finding]:
        """Judge the end of the execution: no task takes a step any more. Nothing to say after an Oops."""
        findings: list[Finding] = []
        for clause in () if self._over else tuple(self._live.values()):
            judgement = clause.end(self.world) if clause.end is not None else None
            if judgement is not None:
                findings += self._heard(clause, judgement)
        return findings

    def _monitored(self, clause: Clause, before: World, step: Step) -> Judgement:
        if clause.monitor is None:
            return None
        self._memories[clause.id], judgement = clause.monitor(self._memories[clause.id], before, step)
        return judgement

    def _heard(self, clause: Clause, judgement: Judgement) -> list[Finding]:
        self.reached.add(clause.id)
        if judgement is KEPT:
            return []
        del self._live[clause.id]
        for kind in clause.on:
            self._index[kind] = tuple(other for other in self._index[kind] if other is not clause)
        return [(clause.id, str(judgement))]
