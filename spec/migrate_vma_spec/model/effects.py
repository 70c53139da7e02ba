"""Effects: what must be so after a system call that succeeded with nothing else running."""

from __future__ import annotations

from collections.abc import Callable

from migrate_vma_spec.model import devices
from migrate_vma_spec.model.contents import DISCARD, MOVE
from migrate_vma_spec.model.outcome import Outcome, outcome
from migrate_vma_spec.model.results import WATCHES
from migrate_vma_spec.model.state import Scope
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import PteKind, VmFlags

PERMISSIONS = VmFlags.READ | VmFlags.WRITE


def effects(world: World, scope: Scope, what: str, result: int) -> list[Outcome]:
    """What must be so after a call that succeeded with nothing else running."""
    effect = EFFECTS.get(devices.device_and_verb(scope.name)[1])
    if result < 0 or not scope.quiet or effect is None or len(scope.arguments) < 2:
        return []
    return effect(world, scope, what)


def _discarded(_world: World, scope: Scope, what: str) -> list[Outcome]:
    return [outcome(f"{what} left the contents of pages", tuple(sorted(scope.left)), {()})] if scope.left else []


def _unmapped(world: World, scope: Scope, what: str) -> list[Outcome]:
    mm, start, end = scope.arguments[:3]
    left = sum(world.vma(mm, addr) is not None for addr in range(start, end))
    return [outcome(f"{what} left mapped", left, {0})]


def _mapped(world: World, scope: Scope, what: str) -> list[Outcome]:
    if len(scope.arguments) < 4:
        return []
    mm, start, end, flags = scope.arguments[:4]
    return [_with_flags(world, mm, start, end, flags, VmFlags(flags) | PERMISSIONS, f"{what} mapped with these flags")]


def _protected(world: World, scope: Scope, what: str) -> list[Outcome]:
    if len(scope.arguments) < 4:
        return []
    mm, start, end, flags = scope.arguments[:4]
    return [_with_flags(world, mm, start, end, flags & PERMISSIONS, PERMISSIONS, f"{what} gave these permissions to")]


def _advised(world: World, scope: Scope, what: str) -> list[Outcome]:
    """MADV_HUGEPAGE, or, with a 0 as last argument, MADV_NOHUGEPAGE."""
    mm, start, end, enable = (*scope.arguments, 1)[:4]
    flag = VmFlags.HUGEPAGE if enable else VmFlags.NOHUGEPAGE
    return [_with_flags(world, mm, start, end, int(flag), VmFlags.HUGEPAGE | VmFlags.NOHUGEPAGE, f"{what} marked pages:")]


def _mapped_file(world: World, scope: Scope, what: str) -> list[Outcome]:
    """Each page of the file is where it was to be."""
    if len(scope.arguments) < 5:
        return []
    mm, start, end, file, index = scope.arguments[:5]
    vmas = [(addr, vma) for addr in range(start, end) if (vma := world.vma(mm, addr)) is not None]
    right = sum((vma.file, vma.index + addr - vma.start) == (file, index + addr - start) for addr, vma in vmas)
    return [outcome(f"{what} mapped pages of the file:", right, {end - start})]


def _with_flags(world: World, mm: int, start: int, end: int, flags: int, mask: VmFlags, what: str) -> Outcome:
    vmas = [world.vma(mm, addr) for addr in range(start, end)]
    return outcome(what, sum(vma is not None and int(vma.flags & mask) == flags for vma in vmas), {end - start})


def _moved(world: World, scope: Scope, what: str) -> list[Outcome]:
    if len(scope.arguments) < 4:
        return []
    mm, start, end, to = scope.arguments[:4]
    left = sum(world.vma(mm, addr) is not None for addr in range(start, end))
    there = sum(world.vma(mm, addr) is not None for addr in range(to, to + end - start))
    return [outcome(f"{what} left mapped", left, {0}), outcome(f"{what} mapped", there, {end - start})]


def _write_protected(world: World, scope: Scope, what: str) -> list[Outcome]:
    """Every page that is there has the bit, or has it no more."""
    if len(scope.arguments) < 4:
        return []
    mm, start, end, protect = scope.arguments[:4]
    ptes = [world.pte(mm, addr) for addr in range(start, end)]
    wrong = sum(pte.uffd_wp != bool(protect) for pte in ptes if pte.kind not in (PteKind.NONE, PteKind.ZERO, PteKind.MARKER))
    return [outcome(f"{what} left otherwise", wrong, {0})]


def _watched(world: World, scope: Scope, what: str) -> list[Outcome]:
    mm, start, end, mode = (*scope.arguments, 0)[:4]
    vmas = [vma for addr in range(start, end) if (vma := world.vma(mm, addr)) is not None]
    return [outcome(f"{what} watches pages:", sum(int(vma.flags & WATCHES) == mode for vma in vmas), {len(vmas)})]


EFFECTS: dict[str, Callable[[World, Scope, str], list[Outcome]]] = {
    DISCARD: _discarded,
    "munmap": _unmapped,
    "mmap": _mapped,
    "mmap_shared": _mapped,
    "mmap_file": _mapped_file,
    "mprotect": _protected,
    MOVE: _moved,
    "madvise_hugepage": _advised,
    "uffd_register": _watched,
    "uffd_unregister": _watched,
    "uffd_writeprotect": _write_protected,
    "exclusive": devices.made_exclusive,
}
