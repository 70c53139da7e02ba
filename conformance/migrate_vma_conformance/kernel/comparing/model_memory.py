"""The reference model alone, driven by what user space does: an abstract trace of VMAs, stores and discards, without any kernel.

Rules:
- The trace has no migration, no lock and no reference in it. Every store is to a frame that nobody else has, so a frame is one
  state of one page's contents; the model says in which frames a page's contents may be found, `bytes_in` what is in them.
- A question is put to the model as the step that would be its answer (`allowed`).
"""

from __future__ import annotations

import itertools

from migrate_vma_conformance.kernel.comparing.expectation import Bytes
from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Event, Step
from migrate_vma_spec.model import START, Outcome, allowed, next_state
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import PTE_NONE, Memory, Pte, PteKind, VmFlags
from migrate_vma_spec.world import fold

ZERO: Bytes = frozenset({0})


class ModelMemory:
    """The model's state and its world, and the bytes of its places."""

    def __init__(self) -> None:
        self.state = START
        self.world = World()
        self._bytes: dict[object, Bytes] = {}
        self._fresh = itertools.count(1)

    # ---- the trace ---------------------------------------------------------------------------------------------------

    def say(self, *events: Event) -> None:
        for event in events:
            step = Step("user", 0, event)
            self.state, self.world = next_state(self.state, self.world, step), fold(self.world, step)

    def allowed(self, event: Event) -> tuple[Outcome, ...]:
        """What the model says of this step, if it were the next one."""
        return allowed(self.state, self.world, Step("user", 0, event))

    def results(self, name: str) -> frozenset[int]:
        """What the operation that has begun may answer."""
        found = self.allowed(ev.OperationEnded(name, 0))
        return next((frozenset(each.allowed) for each in found if each.what.endswith("ended with")), frozenset({0}))

    def operation(self, name: str, arguments: tuple[int, ...], *events: Event) -> frozenset[int]:
        """Do an operation of user space by its effects; what it may answer."""
        self.say(ev.OperationBegan(name, arguments), *events)
        results = self.results(name)
        self.say(ev.OperationEnded(name, 0))
        return results

    # ---- contents ----------------------------------------------------------------------------------------------------

    def bytes_in(self, mm: int, addr: int) -> Bytes | None:
        """What may be found in the page; None where it may not be read."""
        found = self.allowed(ev.CpuAccessed(mm, addr, None, False))
        places = frozenset[object]().union(*(each.allowed for each in found))
        return frozenset[int]().union(*(self._bytes.get(place, ZERO) for place in places)) if places else None

    def may_write(self, mm: int, addr: int) -> bool:
        vma = self.world.vma(mm, addr)
        return vma is not None and bool(vma.flags & VmFlags.WRITE)

    def store(self, mm: int, addr: int, values: Bytes) -> None:
        """The page holds one of these from now on, in a frame of its own."""
        pfn = next(self._fresh)
        self._bytes[pfn] = values
        new = Pte(PteKind.PRESENT, pfn, write=True)
        self.say(
            ev.FrameAdded(pfn, Memory.SYSTEM),
            ev.PteChanged(mm, addr, self.world.pte(mm, addr), new),
            ev.CpuAccessed(mm, addr, pfn, True),
        )

    def cleared(self, mm: int, start: int, end: int) -> tuple[Event, ...]:
        """The entries of [start, end) are cleared."""
        return tuple(ev.PteChanged(mm, addr, self.world.pte(mm, addr), PTE_NONE) for addr in range(start, end))

    def inherited(self, mm: int, child: int) -> tuple[Event, ...]:
        """The entries that fork copies."""
        entries = [(addr, pte) for (owner, addr), pte in self.world.ptes.items() if owner == mm]
        return tuple(ev.PteChanged(child, addr, PTE_NONE, pte) for addr, pte in sorted(entries, key=lambda entry: entry[0]))

    # ---- VMAs --------------------------------------------------------------------------------------------------------

    def pieces(self, mm: int, start: int, end: int) -> list[tuple[int, int, VmFlags]]:
        """The parts of VMAs in [start, end), with their flags."""
        vmas = [vma for vma in self.world.mms.get(mm, ()) if vma.start < end and start < vma.end]
        return [(max(vma.start, start), min(vma.end, end), vma.flags) for vma in vmas]

    def unbroken(self, mm: int, start: int, end: int) -> list[tuple[int, int, VmFlags]]:
        """The same, up to the first gap."""
        found: list[tuple[int, int, VmFlags]] = []
        for first, last, flags in self.pieces(mm, start, end):
            if first != (found[-1][1] if found else start):
                break
            found.append((first, last, flags))
        return found
