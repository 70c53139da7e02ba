"""Sequences as Hypothesis draws them.

Rules:
- Every list of numbers is a sequence: processes and devices count round those that there are, and what nobody can do is not done.
  So each part of one can be left out, and the smallest is the first: few operations, on page 0 of process 0.
- Most accesses are to pages that are mapped for them: one of `WILD` goes where it is drawn to go.
- Memory is moved (mremap) from within one VMA alone: versions of the kernel do different things with several, and with gaps.
- Process 0 has both devices open, all of the arena mapped, and has written to page 0 before the first operation that is drawn.
- This module imports Hypothesis; import it late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Advice, Command, Kind, Protection
from migrate_vma_conformance.kernel.comparing.operations import Sequence
from migrate_vma_conformance.kernel.comparing.population import PROCESS, Population

MOST_SHARED = 3
"""Mappings of shared memory in one sequence."""
PARTS = 3
"""Lists that a sequence is drawn as, one behind the other."""
WILD = 8
MOST = 8
"""Pages of one access: so many times 128 fit into one answer of a guest."""
FEW = 4
"""Pages that a change of mappings takes, at most: much more would leave little to migrate."""

_ADVICE = (Advice.DONTNEED, Advice.FREE, Advice.COLD)
_LARGE_ADVICE = (Advice.DONTNEED, Advice.FREE, Advice.HUGEPAGE, Advice.NOHUGEPAGE)
_LARGE_KINDS = (Kind.HUGE, Kind.HUGE, Kind.PRIVATE)
_KINDS = (Kind.PRIVATE, Kind.SHARED, Kind.FILE, Kind.FILE_PRIVATE, Kind.PRIVATE)
_MAPPED = (Protection.WRITE, Protection.WRITE, Protection.READ)
_PROTECTED = (Protection.READ, Protection.WRITE, Protection.WRITE, Protection.NONE)


@frozen
class Shape:
    """What sequences are like: operations, the pages of the arena, processes."""

    operations: int = 30
    pages: int = 12
    processes: int = 3
    large: bool = False
    """On large folios, of which one is four pages (see `scaling.py`)."""


@frozen
class Drawn:
    """An operation in numbers, of which each verb takes what it needs."""

    verb: str
    process: int = 0
    device: int = 0
    first: int = 0
    count: int = 1
    choice: int = 0
    wild: int = 0


_Maker = Callable[[Population, Drawn, int], "Command | None"]
"""Makes a command of what was drawn, for the process of this number."""


# ---- ranges --------------------------------------------------------------------------------------------------------------


def _anywhere(who: Population, drawn: Drawn, most: int) -> tuple[int, int]:
    first = drawn.first % who.pages
    return first, 1 + (drawn.count - 1) % min(most, who.pages - first)


def _accessed(who: Population, drawn: Drawn, process: int, *, write: bool) -> tuple[int, int]:
    """Where an access goes: mostly to where it may."""
    first, count = _anywhere(who, drawn, MOST)
    tame = None if drawn.wild == WILD - 1 else who.allowed(process, drawn.first, min(drawn.count, MOST), write=write)
    return tame or (first, count)


# ---- what each verb makes ------------------------------------------------------------------------------------------------


def _on_device(kind: type[ops.DeviceAccess], *, write: bool = False) -> _Maker:
    def make(who: Population, drawn: Drawn, process: int) -> Command | None:
        device = drawn.device % ops.DEVICES
        if (process, device) not in who.opened:
            who.opened.add((process, device))
            return ops.Open(process, device)
        first, count = _accessed(who, drawn, process, write=write)
        if write and who.large and kind is ops.DeviceWrite:
            count = 1  # so that the bytes of a page are those of the pages that it stands for
        more: tuple[Any, ...] = (who.value(),) if kind is ops.DeviceWrite else ()
        return kind(process, device, first, count, *more)

    return make


def _store(who: Population, drawn: Drawn, process: int) -> Command:
    first, _ = _accessed(who, drawn, process, write=True)
    return ops.Store(process, first, who.value())


def _load(who: Population, drawn: Drawn, process: int) -> Command:
    first, _ = _accessed(who, drawn, process, write=False)
    return ops.Load(process, first)


def _map(who: Population, drawn: Drawn, process: int) -> Command:
    first, count = _anywhere(who, drawn, FEW)
    kinds = _LARGE_KINDS if who.large else _KINDS
    kind, protection = kinds[drawn.choice % len(kinds)], _MAPPED[drawn.choice // len(kinds) % len(_MAPPED)]
    if kind is Kind.SHARED:
        who.shared += 1
        kind = kind if who.shared <= MOST_SHARED else Kind.PRIVATE
    who.mapped(process, range(first, first + count), protection)
    return ops.Map(process, first, count, protection, kind)


def _protect(who: Population, drawn: Drawn, process: int) -> Command:
    first, count = _anywhere(who, drawn, FEW)
    protection = _PROTECTED[drawn.choice % len(_PROTECTED)]
    who.protected(process, range(first, first + count), protection)
    return ops.Protect(process, first, count, protection)


def _advise(who: Population, drawn: Drawn, process: int) -> Command:
    advice = _LARGE_ADVICE if who.large else _ADVICE
    return ops.Advise(process, *_anywhere(who, drawn, FEW), advice[drawn.choice % len(advice)])


def _unmap(who: Population, drawn: Drawn, process: int) -> Command:
    first, count = _anywhere(who, drawn, FEW)
    who.unmapped(process, range(first, first + count))
    return ops.Unmap(process, first, count)


def _remap(who: Population, drawn: Drawn, process: int) -> Command | None:
    """To a place that the range does not overlap, if the arena has one."""
    first, count = _anywhere(who, drawn, who.pages)
    places = [to for to in range(who.pages - count + 1) if to + count <= first or first + count <= to]
    if not places or not who.is_one_vma(process, range(first, first + count)):
        return None
    to = places[drawn.choice % len(places)]
    who.moved(process, first, count, to)
    return ops.Remap(process, first, count, to)


def _fork(who: Population, _drawn: Drawn, process: int) -> Command | None:
    child = who.free()
    if child is None:
        return None
    who.forked(process, child)
    return ops.Fork(process, child)


def _exit(who: Population, _drawn: Drawn, process: int) -> Command | None:
    """The last process stays."""
    if len(who.alive) == 1:
        return None
    who.ended(process)
    return ops.Exit(process)


_MAKERS: dict[str, _Maker] = {
    "load": _load,
    "store": _store,
    "to-device": _on_device(ops.ToDevice),
    "read": _on_device(ops.DeviceRead),
    "write": _on_device(ops.DeviceWrite, write=True),
    "snapshot": _on_device(ops.Snapshot),
    "to-system": _on_device(ops.ToSystem),
    "fork": _fork,
    "exclusive": _on_device(ops.Exclusive, write=True),
    "protect": _protect,
    "map": _map,
    "advise": _advise,
    "unmap": _unmap,
    "check-exclusive": _on_device(ops.CheckExclusive),
    "exit": _exit,
    "remap": _remap,
    "release": _on_device(ops.Release),
}
_NOT_LARGE = ("exclusive", "check-exclusive")
"""6.1 makes the first page of a large folio exclusive and no other, which is less than a page stands for."""
_OFTEN = ("store", "load", "to-device", "to-device", "read", "write", "snapshot", "to-system", "fork", "exclusive")
"""These come more often than the others."""


# ---- sequences -----------------------------------------------------------------------------------------------------------


def complete(drawn: list[Drawn], shape: Shape) -> Sequence:
    """The sequence that was drawn."""
    return tuple(_made(drawn, shape))


def _made(drawn: list[Drawn], shape: Shape) -> Iterator[Command]:
    who = Population(shape.pages, shape.processes, shape.large)
    yield ops.Open(PROCESS, 0)
    yield ops.Open(PROCESS, 1)
    yield ops.Map(PROCESS, 0, shape.pages, kind=Kind.HUGE if shape.large else Kind.PRIVATE)
    yield ops.Store(PROCESS, 0, who.value())
    who.mapped(PROCESS, range(shape.pages), Protection.WRITE)
    for each in drawn:
        made = _MAKERS[each.verb](who, each, who.alive[each.process % len(who.alive)])
        if made is not None:
            yield made


def sequences(shape: Shape) -> st.SearchStrategy[Sequence]:
    """Every sequence of this shape."""
    one = st.builds(
        Drawn,
        verb=st.sampled_from([verb for verb in (*_OFTEN, *_MAKERS) if not shape.large or verb not in _NOT_LARGE]),
        process=st.integers(0, shape.processes - 1),
        device=st.integers(0, ops.DEVICES - 1),
        first=st.integers(0, shape.pages - 1),
        count=st.integers(1, shape.pages),
        choice=st.integers(0, 14),
        wild=st.integers(0, WILD - 1),
    )
    # One list would mostly be a short one, and one with a least size could not be made shorter than that.
    parts = st.tuples(*[st.lists(one, max_size=shape.operations // PARTS)] * PARTS)
    return parts.map(lambda drawn: complete([each for part in drawn for each in part], shape))
