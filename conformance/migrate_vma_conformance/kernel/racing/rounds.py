"""One round of a race: what it asks of a guest, and what must hold of the answers in every interleaving.

A round is a fresh page with contents of its own, migrated to the device; then all at once; then what is there afterwards.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import ClassVar

from attrs import frozen

from migrate_vma_conformance.kernel.commands import (
    Advice,
    Advise,
    Command,
    Exit,
    Fork,
    Load,
    Map,
    Open,
    Race,
    Reset,
    Snapshot,
    Store,
    ToDevice,
    ToSystem,
    Unmap,
)
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate

_PARENT, _CHILD, _DEVICE, _PAGE = 0, 1, 0, 0
_SEGV = 11
_ON_DEVICE = 0x20
"""The bit of a snapshot's byte that says device memory (HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL)."""
_NOT_MAPPED = 0xFF
_NOTHING = -1000
"""Neither a value nor a signal."""

BEFORE = (Reset(), Open(_PARENT, _DEVICE))
"""What is asked once, before the first round."""


class Place(enum.Enum):
    """Where the page is after a race, and what a load then gives."""

    SYSTEM = "in system memory, with its contents"
    ANYWHERE = "anywhere, with its contents"
    GONE = "not mapped"
    EMPTY = "an empty page"


@frozen
class RaceKind:
    """What readers race against.

    Attributes:
        rival: what the one thread does that does not read; None: all read.
        place: where the page must be afterwards.
        scenario: of the kit, in which the explorer looks at the same race.
        others: what a racing load may come to, beside the contents: a value, or minus a signal.
        rival_results: what the rival may come to.
        device_pages: how many device pages a round may take.
    """

    name: str
    rival: Command | None
    place: Place
    scenario: str
    others: frozenset[int] = frozenset()
    rival_results: frozenset[int] = frozenset({0})
    device_pages: tuple[int, int] = (1, 1)
    afterwards: tuple[Command, ...] = ()


KINDS = {
    kind.name: kind
    for kind in (
        RaceKind("read", None, Place.SYSTEM, "fault2"),
        RaceKind("evict", ToSystem(_PARENT, _DEVICE, _PAGE, 1), Place.SYSTEM, "fault-evict"),
        RaceKind("unmap", Unmap(_PARENT, _PAGE, 1), Place.GONE, "fault-munmap", frozenset({-_SEGV})),
        RaceKind("discard", Advise(_PARENT, _PAGE, 1, Advice.DONTNEED), Place.EMPTY, "fault-discard", frozenset({0})),
        RaceKind("fork", Fork(_PARENT, _CHILD), Place.SYSTEM, "fault-fork", afterwards=(Load(_CHILD, _PAGE), Exit(_CHILD))),
        RaceKind(
            "to-device",
            ToDevice(_PARENT, _DEVICE, _PAGE, 1),
            Place.ANYWHERE,
            "migrate-store",
            rival_results=frozenset({0, -2}),
            device_pages=(1, 2),
        ),
    )
}
"""The races by name. Another migration to the device may take the page that a reader has just brought back, or find none (-2)."""


@frozen
class Round:
    """One round. `threads` counts the rival; `value` is the byte that the page holds."""

    RACE: ClassVar[int] = 4
    """Where in the commands the race itself stands."""

    kind: RaceKind
    threads: int
    value: int

    @property
    def commands(self) -> list[Command]:
        readers = self.threads - (self.kind.rival is not None)
        rival = () if self.kind.rival is None else (self.kind.rival,)
        return [
            *(Map(_PARENT, _PAGE, 1), Store(_PARENT, _PAGE, self.value), ToDevice(_PARENT, _DEVICE, _PAGE, 1)),
            Snapshot(_PARENT, _DEVICE, _PAGE, 1),
            Race((*(Load(_PARENT, _PAGE) for _ in range(readers)), *rival)),
            *(Snapshot(_PARENT, _DEVICE, _PAGE, 1), Load(_PARENT, _PAGE)),
            *self.kind.afterwards,
            Unmap(_PARENT, _PAGE, 1),
        ]

    def broken(self, answers: Sequence[Answer]) -> Iterable[str]:
        """What did not hold in it, in words that are the same for the same thing."""
        _, _, moved, before, race, after, last, *others = answers
        if moved.result or not _on_device(before):
            yield f"the page did not migrate to the device ({moved.result})"
        for answer in (race, *race.parts, *others):
            if answer.fate is not Fate.DONE:
                yield f"a thread is {answer.fate.value}"
        for answer in self.reads(race):
            if (got := _came_to(answer)) != self.value and got not in self.kind.others:
                yield f"a reader got {_shown(got, self.value)}"
        if self.kind.rival is not None and race.parts and race.parts[-1].result not in self.kind.rival_results:
            yield f"the {self.kind.name} came to {race.parts[-1].result}"
        yield from self._afterwards(after, last)
        if self.kind.afterwards and (got := _came_to(others[0])) != self.value:
            yield f"the child reads {_shown(got, self.value)}"

    def _afterwards(self, after: Answer, last: Answer) -> Iterable[str]:
        wanted = {Place.GONE: -_SEGV, Place.EMPTY: 0}.get(self.kind.place, self.value)
        if (got := _came_to(last)) != wanted:
            yield f"afterwards a load gives {_shown(got, self.value)}"
        if self.kind.place is not Place.ANYWHERE and _on_device(after):
            yield "afterwards the page is on the device still"

    def reads(self, race: Answer) -> Sequence[Answer]:
        """The answers of the threads that read."""
        return race.parts if self.kind.rival is None else race.parts[:-1]


def _on_device(snapshot: Answer) -> bool:
    return bool(snapshot.data and snapshot.data[0] != _NOT_MAPPED and snapshot.data[0] & _ON_DEVICE)


def _came_to(answer: Answer) -> int:
    return -answer.signal if answer.signal else _NOTHING if answer.value is None else answer.value


def _shown(got: int, wanted: int) -> str:
    if got == _NOTHING:
        return "nothing"
    return f"signal {-got}" if got < 0 else "its contents" if got == wanted else "another value"
