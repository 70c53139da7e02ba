"""Outcomes: one judged quantity of a step, what the trace shows of it, and the set of what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from attrs import field, frozen

from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    VmFault,
)

_FLAGS = (
    (MIGRATE_PFN_VALID, "VALID"),
    (MIGRATE_PFN_MIGRATE, "MIGRATE"),
    (MIGRATE_PFN_WRITE, "WRITE"),
    (MIGRATE_PFN_COMPOUND, "COMPOUND"),
)


def entry_words(entry: int) -> str:
    """An entry of src as a reader wants it: `pfn 3|VALID|MIGRATE`, or 0."""
    words = [name for flag, name in _FLAGS if entry & flag]
    if entry >> MIGRATE_PFN_SHIFT:
        words.insert(0, f"pfn {entry >> MIGRATE_PFN_SHIFT}")
    return "|".join(words) or "0"


def fault_words(result: VmFault) -> str:
    return result.name or "0" if result else "0"


def place_words(place: object) -> str:
    """A frame by its number, nothing for the zero page; a page of a file or a swap slot says itself what it is."""
    if place is None:
        return "the zero page"
    return f"frame {place}" if isinstance(place, int) else str(place)


@frozen
class Outcome:
    """`what` is the subject of the sentence that a refusal prints, up to the value: `setup of [0, 3) returned cpages`."""

    what: str
    value: Any
    allowed: frozenset[Any]
    words: Callable[[Any], str] = field(default=str, eq=False)

    @property
    def refusal(self) -> str | None:
        """The sentence that says what happened and what was allowed, where that was something else."""
        if self.value in self.allowed:
            return None
        choices = " or ".join(sorted(map(self.words, self.allowed))) or "nothing"
        return f"{self.what} {self.words(self.value)}; allowed: {choices}"


def outcome(what: str, value: Hashable, allowed: Iterable[Any], words: Callable[[Any], str] = str) -> Outcome:
    return Outcome(what, value, frozenset(allowed), words)
