"""Sequences on large folios: each page of the core stands for 128 pages of a real kernel, so that a leaf of both is four of them.

Rules:
- What is asked of a page is asked of all of the pages that it stands for, so they stay alike. What is not alike after all is told
  as such, and is no answer of a core.
- A byte of a page is that of the first page that it stands for; a device that writes counts on in those behind it.
- A count of pages is of folios that went whole and of single pages: 2 + 3 * 128 are the core's 2 + 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from itertools import islice

from attrs import evolve, frozen

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Command
from migrate_vma_conformance.kernel.comparing.compare import Kernel
from migrate_vma_conformance.kernel.comparing.operations import Observation, Sequence

SCALE = 128


@frozen
class ScaledKernel:
    """A kernel that is asked sequences on large folios."""

    kernel: Kernel

    @property
    def name(self) -> str:
        return self.kernel.name

    def run_all(self, sequences: Several[Sequence]) -> Iterator[tuple[Observation, ...]]:
        real = [tuple(part for operation in sequence for part in enlarged(operation)) for sequence in sequences]
        for sequence, seen in zip(sequences, self.kernel.run_all(real), strict=True):
            yield tuple(_folded_all(sequence, seen))


def _folded_all(sequence: Sequence, seen: tuple[Observation, ...]) -> Iterable[Observation]:
    parts = iter(seen)
    for operation in sequence:
        yield folded(list(islice(parts, len(enlarged(operation)))))


def enlarged(operation: Command) -> tuple[Command, ...]:
    """What a real kernel is asked in its place."""
    match operation:
        case ops.Load(process, page):
            return tuple(ops.Load(process, page * SCALE + offset) for offset in range(SCALE))
        case ops.Store(process, page, value):
            return tuple(ops.Store(process, page * SCALE + offset, value) for offset in range(SCALE))
        case ops.Remap(process, first, count, to):
            return (ops.Remap(process, first * SCALE, count * SCALE, to * SCALE),)
        case ops.Map() | ops.Unmap() | ops.Protect() | ops.Advise() | ops.DeviceAccess():
            return (evolve(operation, first=operation.first * SCALE, count=operation.count * SCALE),)
        case _:
            return (operation,)


def folded(parts: list[Observation]) -> Observation:
    """What the core would have been observed as."""
    ended = next((each for each in parts if each.ended is not None), None)
    if ended is not None:
        return ended
    first = parts[0]
    if len(parts) > 1:
        values = bytes(each.value or 0 for each in parts)
        if any(evolve(each, value=first.value) != first for each in parts) or not _alike(values):
            return _mixed(parts)
        return first
    if first.data is None:
        return evolve(first, cpages=_count(first.cpages))
    groups = [first.data[start : start + SCALE] for start in range(0, len(first.data), SCALE)]
    if not all(map(_alike, groups)):
        return _mixed(parts)
    return evolve(first, cpages=_count(first.cpages), data=bytes(group[0] for group in groups))


def _count(cpages: int | None) -> int | None:
    return None if cpages is None else sum(divmod(cpages, SCALE))


def _alike(group: bytes) -> bool:
    """One byte for all, or one more for each."""
    return len(set(group)) == 1 or all(byte == (group[0] + offset) % 256 for offset, byte in enumerate(group))


def _mixed(parts: list[Observation]) -> Observation:
    told = "\n".join(dict.fromkeys(map(str, parts)))
    return Observation(ended="the pages that a page stands for are not alike", evidence=told)
