"""Operations and faults: which results a workload, a fault and a driver's callback may have.

An access succeeds where the VMA allows it, and is refused where it does not; in a race with a change of VMAs, either. Memory that
runs short, and nothing else, gives OOM; a driver's SIGBUS is passed on, and nobody else makes one. An operation of a device answers 0, or
a count of the pages that it moved or that are where it was to bring them; it answers an error only where some are not there.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.contents import DISCARD
from migrate_vma_spec.model.outcome import Outcome, fault_words, frame_words, outcome
from migrate_vma_spec.model.state import ModelState, Scope, Seen, What, permission
from migrate_vma_spec.objects import Fault, Stage, World, mmap_lock
from migrate_vma_spec.vocabulary import Errno, Pte, PteKind, VmFault, VmFlags

SIGBUS, SIGSEGV = 7, 11
KILLED = {VmFault.SIGSEGV: -SIGSEGV, VmFault.SIGBUS: -SIGBUS, VmFault.OOM: -Errno.ENOMEM}
ACCESSES = {"read": False, "write": True, "pin": True}
DEVICE_ACCESSES = {"device_read": False, "device_write": True}
DEVICE_RANGES = frozenset({"to_device", "to_system"})
EVICTIONS = frozenset({"evict", "release"})
RETRIES = frozenset({VmFault.NONE, VmFault.NOPAGE, VmFault.RETRY})
"""The results of a callback that say: look again."""


# ---- what an operation wants -------------------------------------------------------------------------------------------------


def device_and_verb(name: str) -> tuple[str | None, str]:
    """`gpu.to_device` is the device gpu's to_device; `read` is nobody's."""
    device, dot, verb = name.rpartition(".")
    return (device if dot else None), verb


def about(name: str, arguments: tuple[int, ...]) -> tuple[int, int, int, bool] | None:
    device, verb = device_and_verb(name)
    accesses = ACCESSES if device is None else DEVICE_ACCESSES
    if verb in accesses and len(arguments) == 2:
        mm, addr = arguments
        return mm, addr, addr + 1, accesses[verb]
    if device is not None and verb in DEVICE_RANGES and len(arguments) == 3:
        return (*arguments, False)
    return None


def operation_scope(state: ModelState, world: World, event: ev.OperationBegan) -> Scope:
    left: frozenset[int] = frozenset()
    if event.name == DISCARD and len(event.arguments) == 3:
        mm, start, end = event.arguments
        left = frozenset(addr for owner, addr in state.pages if owner == mm and start <= addr < end)
    return Scope(
        What.OPERATION,
        name=event.name,
        arguments=event.arguments,
        about=about(event.name, event.arguments),
        before=_frames(world, *device_and_verb(event.name), event.arguments),
        left=left,
    )


def _frames(world: World, device: str | None, verb: str, arguments: tuple[int, ...]) -> tuple[int | None, ...]:
    """The frames of the pages that a device's operation is about: of a range, or all of the device that hold somebody's page."""
    if verb in EVICTIONS:
        return tuple(sorted(pfn for pfn, frame in world.frames.items() if frame.owner == device and frame.mapcount))
    if verb in DEVICE_RANGES and len(arguments) == 3:
        mm, start, end = arguments
        return tuple(world.pte(mm, addr).pfn for addr in range(start, end))
    return ()


def _is_done(world: World, device: str | None, mm: int, addr: int, verb: str) -> bool:
    """The page is where to_device or to_system is to bring it."""
    return _is_on(world, device, world.pte(mm, addr)) == (verb == "to_device")


def _is_on(world: World, device: str | None, pte: Pte) -> bool:
    return pte.kind is PteKind.DEVICE_PRIVATE and pte.pfn is not None and world.frame(pte.pfn).owner == device


# ---- the result of an operation ----------------------------------------------------------------------------------------------


def allowed_operation(state: ModelState, world: World, step: Step, event: ev.OperationEnded) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or scope.name != event.name:
        return ()
    results = _results(state, world, scope, event.result)
    if results is None:
        return ()
    what = f"{event.name}{_words(scope.arguments)}"
    found = [outcome(f"{what} ended with", event.result, results)]
    return (*found, *_effects(world, scope, what, event.result))


def _words(arguments: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, arguments))})" if arguments else ""


def _results(state: ModelState, world: World, scope: Scope, result: int) -> set[int] | None:
    seen = scope.seen | permission(world, scope)
    device, verb = device_and_verb(scope.name)
    if scope.about is not None and scope.about[0] not in state.followed:
        return None
    if device is not None:
        return _device_results(world, scope, seen, result)
    if verb in ("read", "write") and scope.about is not None:
        return _access_results(scope, seen)
    if verb == "pin":
        return _pin_results(scope, seen)
    if verb in ("mmap", "munmap", "fork", "exit"):
        return {0, -Errno.ENOMEM} if Seen.FAILED in seen else {0}
    if verb in (DISCARD, "unpin", "speculative_reference"):
        return {0}
    return None


def _access_results(scope: Scope, seen: Seen) -> set[int]:
    if scope.fault:
        return {KILLED[kind] for kind in KILLED if kind & scope.fault}
    if Seen.ACCESSED in seen:
        return {0}
    return {-SIGSEGV} if Seen.DENIED in seen else set()


def _pin_results(scope: Scope, seen: Seen) -> set[int]:
    results = {0} if Seen.GRANTED in seen and not scope.fault else set[int]()
    if Seen.DENIED in seen or scope.fault & (VmFault.SIGBUS | VmFault.SIGSEGV):
        results.add(-Errno.EFAULT)
    if Seen.FAILED in seen or scope.fault & VmFault.OOM:
        results.add(-Errno.ENOMEM)
    return results


def _device_results(world: World, scope: Scope, seen: Seen, result: int) -> set[int] | None:
    device, verb = device_and_verb(scope.name)
    if verb in DEVICE_ACCESSES:
        excused = not scope.quiet or bool(seen & (Seen.DENIED | Seen.FAILED)) or bool(scope.fault)
        results = {0} if Seen.ACCESSED in seen else set[int]()
    elif verb in DEVICE_RANGES and len(scope.arguments) == 3:
        pages = scope.arguments[2] - scope.arguments[1]
        there = [_is_done(world, device, scope.arguments[0], scope.arguments[1] + index, verb) for index in range(pages)]
        now = _frames(world, device, verb, scope.arguments)
        moved = sum(done and pfn != was for done, pfn, was in zip(there, now, scope.before, strict=True))
        excused = not scope.quiet or not all(there) or Seen.DENIED in seen
        results = {0, moved, sum(there)} if scope.quiet else set(range(pages + 1))
    elif verb in EVICTIONS:
        left = _frames(world, device, verb, scope.arguments)
        excused = not scope.quiet or bool(left)
        results = {0, len(set(scope.before) - set(left))} if scope.quiet else set(range(len(world.frames) + 1))
    else:
        return None
    # Which error a driver gives is its own affair.
    return results | {result} if excused and result < 0 else results


def _effects(world: World, scope: Scope, what: str, result: int) -> list[Outcome]:
    """What must be so after a call that succeeded with nothing else running."""
    if result or not scope.quiet:
        return []
    if scope.name == DISCARD and scope.left:
        return [outcome(f"{what} left the contents of pages", tuple(sorted(scope.left)), {()})]
    if scope.name not in ("mmap", "munmap") or len(scope.arguments) < 3:
        return []
    mm, start, end = scope.arguments[:3]
    found = [_flags(world, mm, addr) for addr in range(start, end)]
    wanted = [int(scope.arguments[3])] if scope.name == "mmap" and len(scope.arguments) == 4 else None
    if scope.name == "munmap":
        return [outcome(f"{what} left mapped", sum(flags is not None for flags in found), {0})]
    if wanted is None:
        return []
    return [outcome(f"{what} mapped with these flags", sum(flags == wanted[0] for flags in found), {end - start})]


def _flags(world: World, mm: int, addr: int) -> VmFlags | None:
    vma = world.vma(mm, addr)
    return None if vma is None else vma.flags


# ---- faults ------------------------------------------------------------------------------------------------------------------


def allowed_fault(state: ModelState, world: World, step: Step, event: ev.FaultEnded) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.FAULT)
    fault = world.task(step.task).fault
    if scope is None or fault is None or event.mm not in state.followed:
        return ()
    what = f"fault of mm {event.mm} addr {event.addr}"
    results = _fault_results(world, step, scope, fault)
    found = [outcome(f"{what} ended with", event.result, results, fault_words)]
    if scope.quiet and fault.stage is Stage.HANDLING and event.result == VmFault.NONE:
        found.append(_mapped(world, what, fault))
    return tuple(found)


def _fault_results(world: World, step: Step, scope: Scope, fault: Fault) -> set[VmFault]:
    if fault.stage is Stage.RETURNED and fault.result is not None:
        return {fault.result}
    seen = scope.seen | permission(world, scope)
    if Seen.FAILED in seen:
        return {VmFault.OOM}
    results = {VmFault.SIGSEGV} if Seen.DENIED in seen else set[VmFault]()
    if Seen.GRANTED in seen:
        results.add(VmFault.NONE)
    if not world.task(step.task).holds(mmap_lock(fault.mm)):
        results.add(VmFault.RETRY)
    return results


def _mapped(world: World, what: str, fault: Fault) -> Outcome:
    """A fault that only one task could disturb has made the access possible."""
    kind = world.pte(fault.mm, fault.addr).kind
    write = world.pte(fault.mm, fault.addr).write
    kinds = {PteKind.PRESENT} if fault.write else {PteKind.PRESENT, PteKind.ZERO}
    shown = (kind, write) if fault.write else (kind, False)
    return outcome(
        f"{what} left an entry that is",
        shown,
        {(kind, fault.write) for kind in kinds},
        lambda pair: f"{pair[0].value}{' and writable' if pair[1] else ''}",
    )


def allowed_callback(state: ModelState, world: World, step: Step, event: ev.CallbackReturned) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.CALLBACK)
    fault = world.task(step.task).fault
    if scope is None or fault is None or event.mm not in state.followed:
        return ()
    excuse = Seen.FAILED | Seen.REFUSED | Seen.LOST
    errors = {event.result} if scope.seen & excuse else set[VmFault]()
    results = errors | (set(RETRIES) if not scope.quiet or not _is_left(world, event, fault) or errors else set[VmFault]())
    what = f"migrate_to_ram for mm {event.mm} addr {event.addr}"
    if scope.quiet and not errors and _is_left(world, event, fault):
        what += ", with the page still there,"
    return (outcome(f"{what} returned", event.result, results, fault_words),)


def _is_left(world: World, event: ev.CallbackReturned, fault: Fault) -> bool:
    """The entry still leads to the page, though nobody holds on to it."""
    if world.pte(event.mm, event.addr).pfn != event.pfn:
        return False
    frame = world.frame(event.pfn)
    if world.pte(event.mm, event.addr).kind is PteKind.MIGRATION:
        return True
    return frame.refcount is not None and frame.mapcount is not None and frame.refcount <= frame.mapcount + fault.refs


# ---- hmm_range_fault ---------------------------------------------------------------------------------------------------------


def allowed_range_fault(state: ModelState, world: World, step: Step, event: ev.RangeFaultEnded) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.RANGE_FAULT)
    running = world.task(step.task).range_fault
    if scope is None or running is None or running.mm not in state.followed:
        return ()
    seen = scope.seen | permission(world, scope)
    results = {0} if Seen.GRANTED in seen and not scope.fault else set[int]()
    if Seen.STALE in seen:
        results.add(-Errno.EBUSY)
    if Seen.DENIED in seen or scope.fault & (VmFault.SIGBUS | VmFault.SIGSEGV):
        results |= {-Errno.EFAULT, -Errno.EPERM}
    if scope.fault & VmFault.OOM:
        results |= {-Errno.ENOMEM, -Errno.EFAULT}
    what = f"hmm_range_fault of [{running.start}, {running.end})"
    found = [outcome(f"{what} returned", event.result, results)]
    if event.result == 0 and scope.quiet:
        for addr, pfn in zip(range(running.start, running.end), event.pfns, strict=False):
            reported = _reported(world, running.device, running.mm, addr, running.write)
            found.append(outcome(f"{what} reported addr {addr} as", pfn, reported, frame_words))
    return tuple(found)


def _reported(world: World, device: str, mm: int, addr: int, write: bool) -> set[int | None]:
    """The page that a range fault finds with nothing else running: one that the device may use as it asked."""
    pte = world.pte(mm, addr)
    if write and not pte.write:
        return set()
    if pte.kind is PteKind.PRESENT or _is_on(world, device, pte):
        return {pte.pfn}
    return {None} if pte.kind is PteKind.ZERO else set()


def is_its_access(scope: Scope, device: str | None, mm: int, addr: int, write: bool) -> bool:
    """This is the access that the operation is about."""
    return scope.about == (mm, addr, addr + 1, write) and device_and_verb(scope.name)[0] == device
