"""What an axiom is, and what is said where one is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from migrate_vma_spec.axioms.history import History

Broken = tuple[str, tuple[int, ...]]
"""What breaks an axiom, in words, and the steps that do it together, in the order of the trace."""


@frozen
class Axiom:
    """One relation that a whole trace must keep.

    Attributes:
        id: `A-...`, for people and for tests.
        sentence: What must hold.
        judge: Gives what of a trace does not hold, from its relations alone.
        clauses: The clauses that say the same of single steps: where the axiom is broken, one of them is. Those without any are
            about the trace itself, which would contradict itself.
        covers: Those of them of which the axiom says all: where one is broken, so is the axiom.
        ended: It is about the end of an execution, in which no task takes a step any more.
    """

    id: str
    sentence: str
    judge: Callable[[History], Iterator[Broken]]
    clauses: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    ended: bool = False


@frozen
class Violation:
    """An axiom is broken. `steps` are places in the trace."""

    axiom: str
    sentence: str
    steps: tuple[int, ...]
