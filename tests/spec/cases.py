"""What a case of a clause is: a trace that it keeps, and traces that break it."""

from __future__ import annotations

from attrs import field, frozen

from migrate_vma_spec.events import Step
from migrate_vma_spec.vocabulary import Capability
from tests.spec.parts import TRYLOCKED


@frozen
class Wrong:
    """A trace that breaks a clause, and the other clauses that it cannot but break with it."""

    trace: list[Step]
    also: frozenset[str] = frozenset()
    capabilities: frozenset[Capability] | None = None


@frozen
class Case:
    """`kept` reaches the clause and breaks nothing; `elsewhere` breaks nothing and does not reach it."""

    clause: str
    kept: list[Step]
    broken: dict[str, Wrong]
    capabilities: frozenset[Capability] = TRYLOCKED
    elsewhere: list[Step] = field(factory=list)


def wrong(trace, *also, capabilities=None):
    return Wrong(trace, frozenset(also), capabilities)


def case(clause, kept, capabilities=TRYLOCKED, elsewhere=(), **broken):
    """One case. The name of each broken trace says what is wrong with it."""
    wrongs = {name: one if isinstance(one, Wrong) else Wrong(one) for name, one in broken.items()}
    return Case(clause, kept, wrongs, capabilities, [*elsewhere])
