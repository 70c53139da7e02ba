"""Operations and faults: which results a workload, a fault and a driver's callback may have.

An access succeeds where the VMA allows it, and is refused where it does not; in a race with a change of VMAs, either. Memory
that runs short, and nothing else, gives OOM; a driver's SIGBUS is passed on, and nobody else makes one. An operation of a device
answers 0, or a count of the pages that it moved or that are where it was to bring them; an error only where some are not there.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.contents import DISCARD
from migrate_vma_spec.model.outcome import Outcome, fault_words, frame_words, outcome
from migrate_vma_spec.model.state import About, ModelState, Scope, Seen, What, access, permission
from migrate_vma_spec.objects import Fault, Stage, World, mmap_lock
from migrate_vma_spec.vocabulary import Errno, Pte, PteKind, VmFault, VmFlags

SIGBUS, SIGSEGV = 7, 11
KILLED = {VmFault.SIGSEGV: -SIGSEGV, VmFault.SIGBUS: -SIGBUS, VmFault.OOM: -Errno.ENOMEM}
ACCESSES = {"read": False, "write": True, "pin": True}
DEVICE_ACCESSES = {"device_read": False, "device_write": True}
DEVICE_RANGES = frozenset({"to_device", "to_system"})
EVICTIONS = frozenset({"evict", "release"})


# ---- what an operation wants -------------------------------------------------------------------------------------------------


def device_and_verb(name: str) -> tuple[str | None, str]:
    """`gpu.to_device` is the device gpu's to_device; `read` is nobody's."""
    device, dot, verb = name.rpartition(".")
    return (device if dot else None), verb


def about(name: str, arguments: tuple[int, ...]) -> About | None:
    device, verb = device_and_verb(name)
    if name == DISCARD and len(arguments) == 3:
        mm, start, end = arguments
        return mm, start, end, VmFlags.NONE
    accesses = ACCESSES if device is None else DEVICE_ACCESSES
    if verb in accesses and len(arguments) == 2:
        mm, addr = arguments
        return mm, addr, addr + 1, access(accesses[verb])
    if device is not None and verb in DEVICE_RANGES and len(arguments) == 3:
        mm, start, end = arguments
        return mm, start, end, VmFlags.READ
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
    if verb == "speculative_reference":
        return {-Errno.EAGAIN} if Seen.LOST in seen else {0}
    if verb == "unpin":
        return {0}
    if verb == DISCARD and scope.about is not None:
        return ({0} if Seen.GRANTED in seen else set[int]()) | ({-int(Errno.ENOMEM)} if Seen.DENIED in seen else set[int]())
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
        excused = not scope.quiet or bool(seen & (Seen.DENIED | Seen.FAILED)) or bool(scope.fault) or _is_read_only(world, scope)
        results = {0} if Seen.ACCESSED in seen else set[int]()
    elif verb in DEVICE_RANGES and len(scope.arguments) == 3:
        pages = scope.arguments[2] - scope.arguments[1]
        results = _counts(world, scope) if scope.quiet else set(range(pages + 1))
        excused = not scope.quiet or Seen.DENIED in seen or not _is_mirrored(world, scope)
    elif verb in EVICTIONS:
        left = _frames(world, device, verb, scope.arguments)
        results = {0, len(set(scope.before) - set(left))} if scope.quiet else set(range(len(world.frames) + 1))
        excused = not scope.quiet or bool(left)
    else:
        return None
    # Which error a driver gives is its own affair.
    return results | {result} if excused and result < 0 else results


def _is_read_only(world: World, scope: Scope) -> bool:
    """The page is in the device's own memory and its entry forbids writing: hmm_range_fault reports it so, and does not fault."""
    mm, addr = scope.arguments[:2]
    pte = world.pte(mm, addr)
    return _is_on(world, device_and_verb(scope.name)[0], pte) and not pte.write


def _is_mirrored(world: World, scope: Scope) -> bool:
    """Each page is where the operation is to bring it, and the device's page table, if that is where, has it."""
    device, verb = device_and_verb(scope.name)
    mm, start, end = scope.arguments
    is_there = all(_is_done(world, device, mm, addr, verb) for addr in range(start, end))
    return is_there and (verb != "to_device" or all((device, mm, addr) in world.mirrors for addr in range(start, end)))


def _counts(world: World, scope: Scope) -> set[int]:
    """What a device's operation on a range may count: the pages that it moved, or those that are there now; or nothing."""
    device, verb = device_and_verb(scope.name)
    mm, start, end = scope.arguments
    there = [_is_done(world, device, mm, addr, verb) for addr in range(start, end)]
    now = _frames(world, device, verb, scope.arguments)
    moved = sum(done and pfn != was for done, pfn, was in zip(there, now, scope.before, strict=True))
    return {0, moved, sum(there)}


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
    what = f"migrate_to_ram for mm {event.mm} addr {event.addr}"
    result = event.result & ~VmFault.NOPAGE  # NOPAGE says only that the handler was given no page
    results = {result} - {VmFault.NONE, VmFault.RETRY}  # a driver may give an error, and which one is its own affair
    if not scope.quiet or scope.seen & (Seen.FAILED | Seen.LOST):
        results |= {VmFault.NONE, VmFault.RETRY}
    elif not _is_left(world, event, fault):
        results.add(VmFault.NONE)
    else:
        what += ", with the page still there,"
    found = [outcome(f"{what} returned", result, results, fault_words)]
    pte = world.pte(event.mm, event.addr)
    if scope.quiet and pte.kind is PteKind.MIGRATION:
        found.append(outcome(f"{what} left a migration entry of", pte.pfn, (), frame_words))
    return tuple(found)


def _is_left(world: World, event: ev.CallbackReturned, fault: Fault) -> bool:
    """The entry still leads to the page, though nobody else holds on to it."""
    pte, frame = world.pte(event.mm, event.addr), world.frame(event.pfn)
    if pte.pfn != event.pfn or pte.kind is PteKind.MIGRATION:
        return False
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
    """The page that a range fault finds with nothing else running. The device's own pages are reported as they are."""
    pte = world.pte(mm, addr)
    if _is_on(world, device, pte) or (pte.kind is PteKind.PRESENT and pte.write >= write):
        return {pte.pfn}
    return {None} if pte.kind is PteKind.ZERO and not write else set()


def is_its_access(scope: Scope, device: str | None, mm: int, addr: int, write: bool) -> bool:
    """This is the access that the operation is about."""
    return scope.about == (mm, addr, addr + 1, access(write)) and device_and_verb(scope.name)[0] == device
