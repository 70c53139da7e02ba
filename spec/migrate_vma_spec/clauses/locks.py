"""Locks

The page lock of sources, destinations and of the fault page; the page-table lock (PTL); and what a driver's own locks may
span. The *fault page* is vmf->page of a migrate_to_ram callback.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import call_before, pfn_of
from migrate_vma_spec.objects import Call, Phase, Stage, World, is_driver_lock, mmap_lock
from migrate_vma_spec.registry import KEPT, Judgement, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import Capability, Errno, Memory, NotifyReason


@step_clause(
    "C28",
    name="dst locked",
    party=Party.DRIVER,
    source="mm/migrate_device.c:migrate_vma_setup kernel-doc (6.1.192, 7.3.4); mm/memremap.c:zone_device_page_init",
    symptom="VM_BUG in the rmap walk; racing users see a page that is half initialised",
    on=(ev.PagesCalled,),
)
def destinations_are_locked(before: World, step: ev.Step, after: World) -> Judgement:
    """Every dst page MUST be locked by the driver before pages(); the library unlocks it in finalize()."""
    event = cast("ev.PagesCalled", step.event)
    judgement: Judgement = None
    for index, entry in enumerate(event.dst or ()):
        pfn = pfn_of(entry)
        if pfn is None or not before.folio(pfn).allocated:
            continue
        if before.folio(pfn).locked is False:
            return f"dst[{index}] is pfn {pfn}, which is not locked"
        judgement = KEPT
    return judgement


@step_clause(
    "C29",
    name="fault_page is vmf->page",
    party=Party.DRIVER,
    source="include/linux/migrate.h: struct migrate_vma comment on fault_page (6.1.192, 7.3.4)",
    symptom="the fault page never migrates, its count is off by one: endless faults",
    on=(ev.SetupCalled,),
    requires={Capability.FAULT_PAGE},
)
def fault_page_is_passed(before: World, step: ev.Step, after: World) -> Judgement:
    """In migrate_to_ram the driver MUST pass vmf->page as fault_page when it migrates the fault address; elsewhere fault_page
    MUST be NULL.
    """
    event = cast("ev.SetupCalled", step.event)
    if Capability.REFILL in before.capabilities:
        # The fault page is handed over behind a migration entry, and setup is not to take it.
        return None
    fault = before.task(step.task).callback
    if fault is None:
        return None if event.fault_page is None else f"fault_page is pfn {event.fault_page}, outside of a callback"
    if event.mm != fault.mm or not event.start <= fault.addr < event.end:
        return None
    return KEPT if event.fault_page == fault.page else f"fault_page is {event.fault_page}, and vmf->page is pfn {fault.page}"


def _refuse_fault_page(world: World, call: Call) -> str | None:
    """Why setup must refuse the fault page of this call."""
    if call.fault_page is None:
        return None
    frame = world.folio(call.fault_page)
    if frame.memory not in (None, Memory.DEVICE_PRIVATE):
        return f"fault_page pfn {call.fault_page} is {frame.memory.value} memory"
    # Unlocked both before and after: nobody else's lock can have stood in for the fault handler's.
    if Capability.FAULT_LOCK in world.capabilities and call.fault_page_was_locked is False and frame.locked is False:
        return f"fault_page pfn {call.fault_page} is not locked"
    return None


@step_clause(
    "C30",
    name="fault_page is private and locked",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_setup argument checks (6.1.192; the lock since 1afaeb8293c9)",
    symptom="the library works on a fault page that nobody protects",
    on=(ev.SetupReturned,),
    requires={Capability.FAULT_PAGE},
)
def bad_fault_page_is_refused(before: World, step: ev.Step, after: World) -> Judgement:
    """Setup MUST refuse with -EINVAL a fault_page that is not device-private, and one that is not locked where the fault handler
    locks it.
    """
    event = cast("ev.SetupReturned", step.event)
    call = call_before(before, step, event.call)
    reason = _refuse_fault_page(before, call) if call is not None else None
    if reason is None:
        return None
    return KEPT if event.result == -Errno.EINVAL else f"setup returned {event.result} although {reason}"


@step_clause(
    "C31",
    name="the fault folio's lock is the fault handler's",
    party=Party.CORE,
    source="mm/migrate_device.c (1afaeb8293c9, v6.15)",
    symptom="double unlock (VM_BUG), or a page that is unlocked while it migrates",
    on=(ev.FolioUnlocked, ev.FolioLockMissed, ev.CallbackReturned),
    requires={Capability.FAULT_LOCK},
)
def fault_folio_stays_locked(before: World, step: ev.Step, after: World) -> Judgement:
    """The library MUST treat the fault folio as locked in collect, and MUST NOT unlock it in restore or finalize; only the fault
    handler unlocks it, after the callback.
    """
    task, event = before.task(step.task), step.event
    fault = task.callback
    # Where the library split the folio, C32 says what becomes of the lock.
    if fault is None or fault.page is None or not fault.live or fault.split or Capability.REFILL in before.capabilities:
        return None
    head = before.head(fault.page)
    if isinstance(event, ev.CallbackReturned):
        return KEPT if head in task.pages else None
    if cast("ev.FolioUnlocked | ev.FolioLockMissed", event).pfn != head:
        return None
    if isinstance(event, ev.FolioUnlocked):
        return f"the fault page, pfn {fault.page}, was unlocked in the callback" if head in task.pages else None
    call = task.in_phase(Phase.COLLECTING)
    if call is None or call.fault_page is None or before.head(call.fault_page) != head:
        return None
    return f"setup tried to lock the fault page, pfn {fault.page}, which its caller has locked"


@step_clause(
    "C32",
    name="the lock goes with the fault page",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_split_folio (7.3.4)",
    symptom="the fault handler unlocks a page that is not locked, and leaves another locked for ever",
    on=(ev.SetupReturned,),
    requires={Capability.FAULT_LOCK, Capability.COMPOUND},
)
def lock_goes_with_the_fault_page(before: World, step: ev.Step, after: World) -> Judgement:
    """If setup splits the fault folio, it MUST hand the fault handler's lock and reference over to the folio that the fault page
    is in then.
    """
    task = before.task(step.task)
    fault = task.callback
    if fault is None or fault.page is None or not fault.split:
        return None
    head = before.head(fault.page)
    frame = before.frame(head)
    if frame.locked is False or frame.holder not in (None, step.task):
        return (
            f"the folio of the fault page, pfn {fault.page}, was split, and its new one, pfn {head}, is not locked for the fault"
        )
    if fault.refs < 1:
        return (
            f"the folio of the fault page, pfn {fault.page}, was split, and nothing holds a reference to pfn {head} for the fault"
        )
    return KEPT


@step_clause(
    "C33",
    name="the fault page is no destination",
    party=Party.DRIVER,
    source="mm/migrate_device.c:__migrate_device_finalize WARN_ON (7.3.4)",
    symptom="a warning, and a double unlock",
    on=(ev.PagesCalled, ev.FinalizeCalled),
)
def fault_page_is_no_destination(before: World, step: ev.Step, after: World) -> Judgement:
    """The fault page MUST NOT be a destination: no entry of dst names it."""
    event = cast("ev.PagesCalled | ev.FinalizeCalled", step.event)
    fault = before.task(step.task).callback
    if fault is None or not fault.live or event.dst is None:
        return None
    for index, entry in enumerate(event.dst):
        pfn = pfn_of(entry)
        if pfn is not None and fault.page is not None and before.head(pfn) == before.head(fault.page):
            return f"dst[{index}] is pfn {pfn}, the fault page"
    return KEPT


@step_clause(
    "C34",
    name="only trylock under the PTL",
    party=Party.CORE,
    source="mm/memory.c:do_swap_page; mm/migrate_device.c:migrate_vma_collect_pmd (6.1.192, 7.3.4)",
    symptom="sleeping in atomic context",
    on=(ev.FolioLocked, ev.FolioLockMissed, ev.WaitEnded),
)
def trylock_under_ptl(before: World, step: ev.Step, after: World) -> Judgement:
    """Under the PTL the page lock MUST only be tried, never waited for."""
    task, event = before.task(step.task), step.event
    if not task.spinlocks:
        return None
    held = ", ".join(task.spinlocks)
    if isinstance(event, ev.WaitEnded):
        return f"{step.task} slept on {event.on} with {held} held" if task.waiting is not None else None
    if isinstance(event, ev.FolioLocked) and event.blocking:
        return f"{step.task} waited for the lock of pfn {event.pfn} with {held} held"
    return KEPT


@step_clause(
    "C35",
    name="no waiting for a second folio lock",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd comment (6.1.192, 7.3.4)",
    symptom="two migrations wait for each other's folios (ABBA)",
    on=(ev.FolioLocked, ev.FolioLockMissed, ev.WaitBegan),
)
def no_waiting_with_folios_locked(before: World, step: ev.Step, after: World) -> Judgement:
    """A migration that holds folio locks MUST NOT wait for the lock of another folio: it gives that one up."""
    task = before.task(step.task)
    if task.active_call is None:
        return None
    pfn = cast("ev.FolioLocked | ev.FolioLockMissed | ev.WaitBegan", step.event).pfn
    others = sorted(task.pages - {pfn} if pfn is not None else ())
    if not others:
        return None
    if isinstance(step.event, ev.FolioLockMissed):
        return KEPT
    if isinstance(step.event, ev.FolioLocked) and not step.event.blocking:
        return None
    return f"{step.task} waited for the lock of pfn {pfn} with the locks of {others} held"


@step_clause(
    "C36",
    name="unlock before put",
    party=Party.FAULT,
    source="mm/memory.c:do_swap_page (1afaeb8293c9; review of its first version)",
    symptom="unlock of a page that was freed",
    on=(ev.FolioPut,),
    requires={Capability.FAULT_LOCK},
)
def unlock_before_put(before: World, step: ev.Step, after: World) -> Judgement:
    """The fault handler MUST unlock the fault page before it drops its reference."""
    event = cast("ev.FolioPut", step.event)
    task = before.task(step.task)
    fault = task.fault
    if fault is None or fault.page is None or fault.stage is not Stage.RETURNED or before.head(fault.page) != event.pfn:
        return None
    if event.pfn in task.pages:
        return f"the reference to the fault page, pfn {event.pfn}, was put while its lock was held; {event.refcount} are left"
    return KEPT


@step_clause(
    "C37",
    name="PTL released exactly once",
    party=Party.CORE,
    source="mm/memory.c:do_swap_page; mm/migrate_device.c:migrate_vma_insert_page (7.3.4); 63451de16e0a",
    symptom="deadlock, or unlock of a lock that is not held",
    on=(
        ev.LockDropped,
        ev.Oops,
        ev.SetupReturned,
        ev.PagesReturned,
        ev.FinalizeReturned,
        ev.CallbackEntered,
        ev.FaultEnded,
        ev.OperationEnded,
    ),
)
def ptl_released_once(before: World, step: ev.Step, after: World) -> Judgement:
    """The PTL MUST be released exactly once on every path, aborts included."""
    task, event = before.task(step.task), step.event
    if isinstance(event, ev.LockDropped):
        if not event.lock.startswith("ptl:"):
            return None
        return KEPT if task.holds(event.lock) else f"{step.task} released {event.lock}, which it does not hold"
    if isinstance(event, ev.Oops):
        return f"{step.task}: {event.what}" if "unlock of ptl:" in event.what else None
    for lock in task.spinlocks:
        if lock.startswith("ptl:"):
            return f"{step.task} still holds {lock} at {type(event).__name__}"
    return None


Locks = frozenset[str]


def _stuck_in_own_fault(world: World) -> Judgement:
    """At a dead end: a task that faults in hmm_range_fault, in the callback, with a driver lock from outside of it."""
    for name, task in sorted(world.tasks.items()):
        if task.range_fault is not None and task.callback is not None and task.driver_locks and task.waiting is None:
            return (
                f"{name} is stuck in migrate_to_ram, called from its own hmm_range_fault with {', '.join(task.driver_locks)} held"
            )
    return None


@monitor(
    "C38",
    name="driver locks and faults",
    party=Party.DRIVER,
    source="drivers/gpu/drm/amd/amdkfd (a6283010e290)",
    symptom="the driver deadlocks with itself",
    on=(ev.LockTaken, ev.RangeFaultBegan),
    start=(frozenset[str](), frozenset[str]()),
    end=_stuck_in_own_fault,
)
def callback_locks_are_not_held_over_faults(
    memory: tuple[Locks, Locks], world: World, step: ev.Step
) -> tuple[tuple[Locks, Locks], Judgement]:
    """A lock that migrate_to_ram takes MUST NOT be held by the driver across calls that can fault on its own device pages
    (hmm_range_fault).
    """
    in_callback, over_fault = memory
    task, event = world.task(step.task), step.event
    if isinstance(event, ev.RangeFaultBegan):
        over_fault |= frozenset(task.driver_locks)
        judgement: Judgement = KEPT if in_callback else None
    else:
        lock = cast("ev.LockTaken", event).lock
        if task.callback is None or not is_driver_lock(lock):
            return memory, None
        in_callback |= {lock}
        judgement = None
    both = sorted(in_callback & over_fault)
    if both:
        judgement = f"{', '.join(both)}: taken in migrate_to_ram, and held across hmm_range_fault"
    return (in_callback, over_fault), judgement


def _in_clear(world: World, name: str) -> bool:
    """True where the task is inside a notifier range of try_to_migrate, in setup."""
    if world.task(name).in_phase(Phase.COLLECTING) is None:
        return False
    ranges = (range_ for ranges in world.invalidations.values() for range_ in ranges)
    return any(range_.task == name and range_.reason is NotifyReason.CLEAR and range_.owner is None for range_ in ranges)


def _stuck_in_own_notifier(world: World) -> Judgement:
    for name, task in sorted(world.tasks.items()):
        if task.driver_locks and task.waiting is None and not task.spinlocks and _in_clear(world, name):
            return f"{name} is stuck in the notifier of its own try_to_migrate with {', '.join(task.driver_locks)} held"
    return None


@step_clause(
    "C39",
    name="driver locks and the driver's own notifier",
    party=Party.DRIVER,
    source="mm/rmap.c:try_to_migrate_one; UVM 595.45.04: ignore_hmm_invalidate",
    symptom="the driver deadlocks with itself",
    on=(ev.InvalidateEnded,),
    end=_stuck_in_own_notifier,
)
def own_notifier_needs_no_held_lock(before: World, step: ev.Step, after: World) -> Judgement:
    """A driver lock that is held across setup MUST NOT be needed by the driver's own notifier callback for try_to_migrate (CLEAR,
    without an owner).
    """
    task = before.task(step.task)
    return KEPT if task.driver_locks and _in_clear(before, step.task) else None


@step_clause(
    "C40",
    name="the callback runs under mmap_lock",
    party=Party.FAULT,
    source="mm/memory.c:do_swap_page (6.12.107, 7.3.4)",
    symptom="the driver calls migrate_vma_* on an address space that changes under it",
    on=(ev.CallbackEntered,),
)
def callback_under_mmap_lock(before: World, step: ev.Step, after: World) -> Judgement:
    """migrate_to_ram MUST be called with mmap_lock held, never with only a VMA's lock: such a fault is retried."""
    event, task = cast("ev.CallbackEntered", step.event), before.task(step.task)
    if task.fault is not None and task.fault.vma_lock:
        return f"migrate_to_ram for mm {event.mm} addr {event.addr} in a fault under the VMA's lock"
    if task.holds(mmap_lock(event.mm)):
        return KEPT
    return f"migrate_to_ram for mm {event.mm} addr {event.addr} without mmap_lock"
