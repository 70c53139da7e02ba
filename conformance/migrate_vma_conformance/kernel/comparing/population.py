"""Who lives and what is mapped, while a sequence is made: so much of it as the next operation needs to be worth doing.

It follows what was asked, not what was answered: where a call fails half way, it may think otherwise than the kernel. That costs
an operation its worth, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from attrs import field, frozen, mutable

from migrate_vma_conformance.kernel.commands import Protection

PROCESS = 0
"""The process that there is at first. It has both devices open."""


@frozen
class Piece:
    """What a page is part of: a VMA has one number, or several; no number is of two VMAs."""

    number: int
    protection: Protection


@mutable
class Population:
    """Processes, the devices that they have open, and their mappings, page by page."""

    pages: int
    processes: int
    large: bool = False
    alive: list[int] = field(factory=lambda: [PROCESS])
    opened: set[tuple[int, int]] = field(factory=lambda: {(PROCESS, 0), (PROCESS, 1)})
    shared: int = 0
    _stored: int = 0
    _mapped: dict[int, dict[int, Piece]] = field(factory=lambda: {PROCESS: {}})
    _numbers: Iterator[int] = field(factory=itertools.count)

    def value(self) -> int:
        """The next byte to store: never 0, and none twice as far as bytes go."""
        self._stored = self._stored % 255 + 1
        return self._stored

    # ---- processes ---------------------------------------------------------------------------------------------------

    def free(self) -> int | None:
        """A number for one more process."""
        return next((number for number in range(self.processes) if number not in self.alive), None)

    def forked(self, process: int, child: int) -> None:
        self.alive.append(child)
        self._mapped[child] = dict(self._mapped[process])

    def ended(self, process: int) -> None:
        self.alive.remove(process)
        self.opened = {pair for pair in self.opened if pair[0] != process}
        del self._mapped[process]

    # ---- mappings ----------------------------------------------------------------------------------------------------

    def mapped(self, process: int, pages: Iterable[int], protection: Protection) -> None:
        """The pages are a VMA of their own now."""
        piece = Piece(next(self._numbers), protection)
        self._mapped[process].update(dict.fromkeys(pages, piece))

    def protected(self, process: int, pages: Iterable[int], protection: Protection) -> None:
        """What of each VMA is among these pages is a VMA of its own now."""
        mine = self._mapped[process]
        there = [page for page in pages if page in mine]
        numbers = {number: next(self._numbers) for number in sorted({mine[page].number for page in there})}
        mine.update({page: Piece(numbers[mine[page].number], protection) for page in there})

    def unmapped(self, process: int, pages: Iterable[int]) -> None:
        for page in pages:
            self._mapped[process].pop(page, None)

    def moved(self, process: int, first: int, count: int, to: int) -> None:
        """Part of one VMA is one of its own elsewhere."""
        protection = self._mapped[process][first].protection
        self.unmapped(process, range(first, first + count))
        self.mapped(process, range(to, to + count), protection)

    def is_one_vma(self, process: int, pages: Iterable[int]) -> bool:
        pieces = {self._mapped[process].get(page) for page in pages}
        return len(pieces) == 1 and None not in pieces

    def allowed(self, process: int, first: int, count: int, *, write: bool) -> tuple[int, int] | None:
        """A range like this one in which every page may be read, or written: from the first such page on, round and round."""
        fine = {Protection.WRITE} if write else {Protection.WRITE, Protection.READ}
        pages = [page for page, piece in sorted(self._mapped[process].items()) if piece.protection in fine]
        if not pages:
            return None
        start = pages[first % len(pages)]
        run = next(length for length in itertools.count(1) if start + length not in pages)
        return start, min(count, run)
