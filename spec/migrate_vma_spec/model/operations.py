"""Operations: what a system call, an access or a device's work wants, what it may answer (`results.py`, `devices.py`), and what
must be so after it (`effects.py`). Every name that a workload may use is known.
"""

from __future__ import annotations

from migrate_vma_spec import events as ev
from migrate_vma_spec.events import Step
from migrate_vma_spec.model import devices
from migrate_vma_spec.model.contents import DISCARD, FREE, GONE, MOVE, USER_COPY
from migrate_vma_spec.model.effects import effects
from migrate_vma_spec.model.outcome import Outcome, outcome
from migrate_vma_spec.model.results import ACCESSES, RESULTS, TAKES, Case
from migrate_vma_spec.model.state import About, ModelState, Scope, Seen, Store, What, access, permission
from migrate_vma_spec.objects import World
from migrate_vma_spec.vocabulary import VmFlags

_ON_RANGES = frozenset({DISCARD, FREE, "madvise_cold", "madvise_pageout", "madvise_hugepage", "pageout", "mprotect", MOVE})
"""The operations that want VMAs all over [start, end)."""


_RANGES = _ON_RANGES | {"uffd_register", "uffd_unregister", "uffd_writeprotect"}
_FILLS = frozenset({USER_COPY, "uffd_zeropage"})
_PAGES = _FILLS | {"pagemap"}


def is_known(name: str) -> bool:
    """The model has results for an operation of this name. A workload must not have others: they would not be judged."""
    device, verb = devices.device_and_verb(name)
    return verb in RESULTS if device is None else devices.is_known(verb)


# ---- what an operation wants -----------------------------------------------------------------------------------------


def about(name: str, arguments: tuple[int, ...]) -> About | None:
    device, verb = devices.device_and_verb(name)
    if device is not None:
        return devices.about(verb, arguments)
    if name in _ON_RANGES and len(arguments) >= 3:
        mm, start, end = arguments[:3]
        return mm, start, end, VmFlags.NONE
    if verb in ACCESSES and len(arguments) >= 2:
        mm, addr = arguments[:2]
        return mm, addr, addr + 1, access(ACCESSES[verb])
    return None


def operation_scope(state: ModelState, world: World, event: ev.OperationBegan) -> Scope:
    name, arguments = event.name, event.arguments
    left: frozenset[int] = frozenset()
    seen = Seen.NOTHING
    if name == DISCARD and len(arguments) == 3:
        mm, start, end = arguments
        pages = (page for page in state.pages if not isinstance(page, Store))
        left = frozenset(addr for owner, addr in pages if owner == mm and start <= addr < end)
    if name in _FILLS and len(arguments) >= 2 and world.pte(*arguments[:2]).kind not in GONE:
        seen = Seen.INDIRECT
    before = devices.frames(world, *devices.device_and_verb(name), arguments)
    return Scope(What.OPERATION, seen, name, arguments, about(name, arguments), before=before, left=left)


def is_its_access(scope: Scope, device: str | None, mm: int, addr: int, write: bool) -> bool:
    """This is the access that the operation is about."""
    return scope.about == (mm, addr, addr + 1, access(write)) and devices.device_and_verb(scope.name)[0] == device


# ---- the result of an operation --------------------------------------------------------------------------------------


def allowed_operation(state: ModelState, world: World, step: Step, event: ev.OperationEnded) -> tuple[Outcome, ...]:
    scope = state.scope(step.task, What.OPERATION)
    if scope is None or scope.name != event.name:
        return ()
    results = _results(state, world, scope, event.result)
    if results is None:
        return ()
    what = f"{event.name}{_words(scope.arguments)}"
    found = [outcome(f"{what} ended with", event.result, results)]
    return (*found, *effects(world, scope, what, event.result))


def _words(arguments: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, arguments))})" if arguments else ""


def _results(state: ModelState, world: World, scope: Scope, result: int) -> set[int] | None:
    seen = scope.seen | permission(world, scope)
    device, verb = devices.device_and_verb(scope.name)
    if scope.about is not None and scope.about[0] not in state.followed:
        return None
    if device is not None:
        return devices.results(world, scope, seen, result)
    rule = RESULTS.get(verb)
    wants = 4 if verb in TAKES else 3 if verb in _RANGES else 2 if verb in ACCESSES or verb in _PAGES else 0
    if rule is None or len(scope.arguments) < wants or (verb in _ON_RANGES | ACCESSES.keys() and scope.about is None):
        return None
    return rule(Case(state, world, scope, seen, result))
