"""Faults, a driver's migrate_to_ram, and hmm_range_fault: which results they may have, and what they leave.

A fault that the VMA allows makes the access possible. Memory that runs short gives OOM, poisoned memory HWPOISON, a driver's
error is passed on; a userfaultfd's monitor is told of what is missing or guarded, and the fault comes again.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model.devices import SNAPSHOT, device_and_verb, is_on
from migrate_vma_spec.model.outcome import Outcome, fault_words, outcome, place_words
from migrate_vma_spec.model.state import ModelState, Scope, Seen, What, access, is_granted, permission
from migrate_vma_spec.objects import Fault, RangeFault, Stage, World, mmap_lock
from migrate_vma_spec.vocabulary import Errno, PteKind, VmFault, VmFlags

_INDIRECT = frozenset({PteKind.SWAP, PteKind.EXCLUSIVE, PteKind.HWPOISON})
_REMARKS = VmFault.MAJOR | VmFault.NOPAGE
"""The page was waited for; the handler was given none, for another fault has mapped it by now. Both faults succeeded."""
_GUARDABLE = frozenset({PteKind.PRESENT, PteKind.ZERO})


# ---- what a fault meets ----------------------------------------------------------------------------------------------


def fault_scope(world: World, event: ev.FaultBegan) -> Scope:
    pte = world.pte(event.mm, event.addr)
    vma = world.vma(event.mm, event.addr)
    flags = VmFlags.NONE if vma is None else vma.flags
    seen = Seen.INDIRECT if pte.kind in _INDIRECT else Seen.NOTHING
    missing = bool(flags & VmFlags.UFFD_MISSING) and pte.kind in (PteKind.NONE, PteKind.MARKER)
    if missing or (pte.uffd_wp and event.write and pte.kind in _GUARDABLE and bool(flags & VmFlags.UFFD_WP)):
        seen |= Seen.WATCHED
    return Scope(What.FAULT, seen, about=(event.mm, event.addr, event.addr + 1, access(event.write)))


# ---- faults ----------------------------------------------------------------------------------------------------------


def allowed_fault(state: ModelState, world: World, step: Step, event: ev.FaultEnded) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.FAULT)
    fault = world.task(step.task).fault
    if scope is None or fault is None or event.mm not in state.followed:
        return ()
    what = f"fault of mm {event.mm} addr {event.addr}"
    result = event.result & ~(VmFault.MAJOR if fault.stage is Stage.RETURNED else _REMARKS)
    operation = state.scope(step.task, What.OPERATION)
    by_cpu = operation is None or operation.name in ("read", "write")
    results = _fault_results(world, step, scope, fault, by_cpu=by_cpu)
    found = [outcome(f"{what} ended with", result, results, fault_words)]
    if scope.quiet and fault.stage is Stage.HANDLING and result == VmFault.NONE:
        found.append(_mapped(world, what, fault, scope))
    return tuple(found)


def _fault_results(world: World, step: Step, scope: Scope, fault: Fault, *, by_cpu: bool) -> set[VmFault]:
    if fault.stage is Stage.RETURNED and fault.result is not None:
        return {fault.result & ~VmFault.MAJOR}
    seen = scope.seen | permission(world, scope)
    results = {VmFault.SIGSEGV} if Seen.DENIED in seen else set[VmFault]()
    if Seen.RAISED in seen:
        results |= {VmFault.RETRY, VmFault.SIGBUS}
    elif not by_cpu and (Seen.WATCHED in seen if scope.quiet else _is_watched(world, fault)):
        results.add(VmFault.SIGBUS)  # who cannot come again is not made to wait
    if not Seen.RAISED & seen and Seen.GRANTED in seen and not (Seen.WATCHED in seen and scope.quiet):
        results |= _served(world, scope, fault, seen)
    if not world.task(step.task).holds(mmap_lock(fault.mm)):
        results.add(VmFault.RETRY)
    if Seen.FAILED not in seen:
        return results
    return {VmFault.OOM} | (results if world.extras.leaf_pages or fault.vma_lock else set())  # or it does with less


def _is_watched(world: World, fault: Fault) -> bool:
    vma = world.vma(fault.mm, fault.addr)
    return vma is not None and bool(vma.flags & (VmFlags.UFFD_MISSING | VmFlags.UFFD_WP))


def _served(world: World, scope: Scope, fault: Fault, seen: Seen) -> set[VmFault]:
    """What a fault gives that the VMA allows."""
    if Seen.INDIRECT in seen and world.pte(fault.mm, fault.addr).kind is PteKind.HWPOISON:
        return {VmFault.HWPOISON} | (set[VmFault]() if scope.quiet else {VmFault.NONE})
    vma = world.vma(fault.mm, fault.addr)
    beyond = vma is not None and vma.file is not None and world.pte(fault.mm, fault.addr).kind is PteKind.NONE
    return {VmFault.NONE, VmFault.SIGBUS} if beyond else {VmFault.NONE}  # a file may end before its mapping does


def _mapped(world: World, what: str, fault: Fault, scope: Scope) -> Outcome:
    """A fault that only one task could disturb has made the access possible; one on swap, or on a page that a device has for
    itself, has brought the page, and may come again for the permission; so has one behind a marker that guards.
    """
    pte = world.pte(fault.mm, fault.addr)
    kinds = {PteKind.PRESENT} if fault.write else {PteKind.PRESENT, PteKind.ZERO}
    guarded = pte.uffd_wp and _is_watched(world, fault)
    strict = fault.write and Seen.INDIRECT not in scope.seen and not guarded
    shown = (pte.kind, pte.write) if strict else (pte.kind, False)
    return outcome(
        f"{what} left an entry that is",
        shown,
        {(kind, strict) for kind in kinds},
        lambda pair: f"{pair[0].value}{' and writable' if pair[1] else ''}",
    )


# ---- the driver's callback -------------------------------------------------------------------------------------------


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
        found.append(outcome(f"{what} left a migration entry of", pte.pfn, (), place_words))
    return tuple(found)


def _is_left(world: World, event: ev.CallbackReturned, fault: Fault) -> bool:
    """The entry still leads to the page, though nobody else holds on to its folio."""
    pte, folio = world.pte(event.mm, event.addr), world.folio(event.pfn)
    if pte.pfn is None or world.head(pte.pfn) != world.head(event.pfn) or pte.kind is PteKind.MIGRATION:
        return False
    return folio.refcount is not None and folio.mapcount is not None and folio.refcount <= folio.mapcount + fault.refs


# ---- hmm_range_fault -------------------------------------------------------------------------------------------------


def allowed_range_fault(state: ModelState, world: World, step: Step, event: ev.RangeFaultEnded) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.RANGE_FAULT)
    running = world.task(step.task).range_fault
    if scope is None or running is None or running.mm not in state.followed:
        return ()
    operation = state.scope(step.task, What.OPERATION)
    looks = operation is not None and device_and_verb(operation.name)[1] == SNAPSHOT
    what = f"hmm_range_fault of [{running.start}, {running.end})"
    found = [outcome(f"{what} returned", event.result, _range_results(world, scope, running, looks=looks))]
    if event.result == 0 and scope.quiet:
        for addr, pfn in zip(range(running.start, running.end), event.pfns, strict=False):
            found.append(
                outcome(f"{what} reported addr {addr} as", pfn, _reported(world, running, addr, looks=looks), place_words)
            )
    return tuple(found)


def _range_results(world: World, scope: Scope, running: RangeFault, *, looks: bool) -> set[int]:
    """A snapshot asks for no fault, so nothing is refused to it. The device's own pages are reported without a question."""
    seen = scope.seen | permission(world, scope)
    results = {0} if looks or (Seen.GRANTED in seen and not scope.fault) else set[int]()
    if Seen.STALE in seen:
        results.add(-Errno.EBUSY)
    if looks:
        return results
    if any(world.pte(running.mm, addr).kind is PteKind.HWPOISON for addr in range(running.start, running.end)):
        results = (results if not scope.quiet else results - {0}) | {-Errno.EFAULT}
    if Seen.DENIED in seen or scope.fault & (VmFault.SIGBUS | VmFault.SIGSEGV | VmFault.HWPOISON):
        results |= {-Errno.EFAULT, -Errno.EPERM}
    if Seen.DENIED in seen and not scope.fault and (not scope.quiet or _asks_for_nothing(world, running)):
        results.add(0)
    if scope.fault & VmFault.OOM:
        results |= {-Errno.ENOMEM, -Errno.EFAULT}
    return results


def _asks_for_nothing(world: World, running: RangeFault) -> bool:
    """Where the VMA forbids writing, only pages of the device itself are asked for, which are reported as they are."""
    mm = running.mm
    return is_granted(world, (mm, running.start, running.end, VmFlags.READ)) and all(
        _is_its_own(world, running, addr) or is_granted(world, (mm, addr, addr + 1, access(running.write)))
        for addr in range(running.start, running.end)
    )


def _is_its_own(world: World, running: RangeFault, addr: int) -> bool:
    pte = world.pte(running.mm, addr)
    return pte.kind is PteKind.DEVICE_PRIVATE and is_on(world, running.device, pte)


def _reported(world: World, running: RangeFault, addr: int, *, looks: bool) -> set[int | None]:
    """The page that a range fault finds with nothing else running. The device's own pages are reported as they are."""
    pte = world.pte(running.mm, addr)
    if _is_its_own(world, running, addr) or (pte.kind is PteKind.PRESENT and (looks or pte.write >= running.write)):
        vma = world.vma(running.mm, addr)
        readable = vma is not None and vma.flags & VmFlags.READ
        return {pte.pfn} if readable or not looks else {None}
    return {None} if looks or (pte.kind is PteKind.ZERO and not running.write) else set()
