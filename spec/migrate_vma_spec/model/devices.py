"""Operations of devices: what a driver's own calls may answer.

A driver answers 0, or a count: of the pages that it moved, of those that are now where it was to bring them, or of those that
it read back through its own page table, as the kernel's test driver does. So a page that could not be moved, because it is
pinned, is counted by a driver that maps it where it is. An error must have a reason: some page is not there, an access is not
allowed, memory ran short, or another task ran; which error it is, is the driver's own affair.
"""

from __future__ import annotations

from migrate_vma_spec.model.outcome import Outcome, outcome
from migrate_vma_spec.model.state import About, Scope, Seen, access
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import Errno, Pte, PteKind, VmFlags

DEVICE_ACCESSES = {"device_read": False, "device_write": True}
DEVICE_RANGES = frozenset({"to_device", "to_system"})
EVICTIONS = frozenset({"evict", "release"})
SNAPSHOT, EXCLUSIVE, CHECK = "snapshot", "exclusive", "check_exclusive"


def is_known(verb: str) -> bool:
    return verb in DEVICE_ACCESSES or verb in DEVICE_RANGES or verb in EVICTIONS or verb in (SNAPSHOT, EXCLUSIVE, CHECK)


def device_and_verb(name: str) -> tuple[str | None, str]:
    """`gpu.to_device` is the device gpu's to_device; `read` is nobody's."""
    device, dot, verb = name.rpartition(".")
    return (device if dot else None), verb


def about(verb: str, arguments: tuple[int, ...]) -> About | None:
    if verb in DEVICE_ACCESSES and len(arguments) == 2:
        mm, addr = arguments
        return mm, addr, addr + 1, access(DEVICE_ACCESSES[verb])
    if len(arguments) != 3:
        return None
    mm, start, end = arguments
    if verb in DEVICE_ACCESSES:
        return mm, start, end, access(DEVICE_ACCESSES[verb])
    if verb in DEVICE_RANGES:
        return mm, start, end, VmFlags.READ
    if verb == EXCLUSIVE:
        return mm, start, end, VmFlags.WRITE
    return (mm, start, end, VmFlags.NONE) if verb == SNAPSHOT else None


def frames(world: World, device: str | None, verb: str, arguments: tuple[int, ...]) -> tuple[int | None, ...]:
    """The frames of the pages that a device's operation is about: of a range, or all of the device that hold somebody's page."""
    if device is not None and verb in EVICTIONS:
        return tuple(sorted(pfn for pfn, frame in world.frames.items() if frame.owner == device and world.folio(pfn).mapcount))
    if device is not None and verb in DEVICE_RANGES and len(arguments) == 3:
        mm, start, end = arguments
        return tuple(world.pte(mm, addr).pfn for addr in range(start, end))
    return ()


def is_on(world: World, device: str | None, pte: Pte) -> bool:
    """The page is in the device's own memory, private to it or coherent."""
    return (
        pte.pfn is not None
        and pte.kind in (PteKind.DEVICE_PRIVATE, PteKind.PRESENT)
        and device is not None
        and world.frame(pte.pfn).owner == device
    )


def _is_done(world: World, device: str | None, mm: int, addr: int, verb: str) -> bool:
    """The page is where to_device or to_system is to bring it."""
    return is_on(world, device, world.pte(mm, addr)) == (verb == "to_device")


# ---- results ---------------------------------------------------------------------------------------------------------


def results(world: World, scope: Scope, seen: Seen, result: int) -> set[int] | None:
    device, verb = device_and_verb(scope.name)
    if verb in DEVICE_ACCESSES:
        excused = not scope.quiet or bool(seen & (Seen.DENIED | Seen.FAILED)) or bool(scope.fault) or _is_barred(world, scope)
        if len(scope.arguments) == 3:  # of several pages: it is of all of them, or an error
            found = {scope.arguments[2] - scope.arguments[1]} if not scope.quiet or Seen.DENIED not in seen else set[int]()
        else:
            found = {0} if Seen.ACCESSED in seen else set[int]()
    elif verb == CHECK and len(scope.arguments) == 2:
        return _check_results(world, scope, device)
    elif verb in EVICTIONS:
        left = frames(world, device, verb, scope.arguments)
        found = {0, len(set(scope.before) - set(left))} if scope.quiet else set(range(len(world.frames) + 1))
        excused = not scope.quiet or bool(left)
    elif len(scope.arguments) == 3 and (verb in DEVICE_RANGES or verb in (SNAPSHOT, EXCLUSIVE)):
        pages = scope.arguments[2] - scope.arguments[1]
        found = _counts(world, scope) if scope.quiet else set(range(pages + 1))
        refused = Seen.DENIED in seen and verb != SNAPSHOT  # who only looks is refused nothing
        excused = not scope.quiet or refused or bool(scope.fault) or not _is_as_asked(world, scope, seen)
    else:
        return None
    # Which error a driver gives is its own affair.
    return found | {result} if excused and result < 0 else found


def _check_results(world: World, scope: Scope, device: str | None) -> set[int]:
    """EPERM while the device has exclusive access to the page: the entry says so, and its own page table."""
    mm, addr = scope.arguments
    if not scope.quiet:
        return {0, -Errno.EPERM}
    has = world.pte(mm, addr).kind is PteKind.EXCLUSIVE and (device or "", mm, addr) in world.mirrors
    return {-Errno.EPERM} if has else {0}


def _is_barred(world: World, scope: Scope) -> bool:
    """A page of it is in the device's own memory and its entry forbids writing: hmm_range_fault reports it so, and does not
    fault. Or its memory is broken.
    """
    mm, addr, end = (*scope.arguments, scope.arguments[1] + 1)[:3]
    device = device_and_verb(scope.name)[0]
    ptes = [world.pte(mm, each) for each in range(addr, end)]
    return any(pte.kind is PteKind.HWPOISON or (is_on(world, device, pte) and not pte.write) for pte in ptes)


def _is_as_asked(world: World, scope: Scope, seen: Seen) -> bool:
    """Each page is as the operation is to leave it, and the device's page table, if that is where, has it."""
    device, verb = device_and_verb(scope.name)
    mm, start, end = scope.arguments
    if verb == SNAPSHOT:
        return True
    if verb == EXCLUSIVE:
        wanted = all(world.pte(mm, addr).kind is PteKind.EXCLUSIVE for addr in range(start, end))
        return wanted and not seen & Seen.FAILED and not scope.fault
    is_there = all(_is_done(world, device, mm, addr, verb) for addr in range(start, end))
    return is_there and (verb != "to_device" or _mirrored(world, device, mm, start, end) == end - start)


def _mirrored(world: World, device: str | None, mm: int, start: int, end: int) -> int:
    """So many pages of the range has the device in its page table."""
    return sum((device or "", mm, addr) in world.mirrors for addr in range(start, end))


def _counts(world: World, scope: Scope) -> set[int]:
    """What a device's operation on a range may count: the pages that it moved, that are there, that it maps; or nothing."""
    device, verb = device_and_verb(scope.name)
    mm, start, end = scope.arguments
    if verb in (SNAPSHOT, EXCLUSIVE):
        return {0, end - start}
    there = [_is_done(world, device, mm, addr, verb) for addr in range(start, end)]
    now = frames(world, device, verb, scope.arguments)
    moved = sum(done and pfn != was for done, pfn, was in zip(there, now, scope.before, strict=True))
    found = {0, moved, sum(there)}
    return found | {_mirrored(world, device, mm, start, end)} if verb == "to_device" else found


def made_exclusive(world: World, scope: Scope, what: str) -> list[Outcome]:
    """make_device_exclusive has taken every page from the CPUs."""
    if len(scope.arguments) != 3:
        return []
    mm, start, end = scope.arguments
    kinds = [world.pte(mm, addr).kind for addr in range(start, end)]
    return [outcome(f"{what} left to the CPUs", sum(kind is not PteKind.EXCLUSIVE for kind in kinds), {0})]
