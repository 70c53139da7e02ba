"""The alternative: refill

With the capability `refill` the fault handler puts a migration entry in the place of the fault page's mapping, and hands the
page, with its lock and a reference, to the driver, which writes it into src after setup.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import call_before, entry_at, is_migrating, pfn_of, show, span, was_refilled
from migrate_vma_spec.objects import HELD_NOTHING, Call, Fault, Held, Phase, Stage, TaskState, World
from migrate_vma_spec.registry import KEPT, Judgement, Party, step_clause
from migrate_vma_spec.vocabulary import MIGRATE_PFN_WRITE, Capability

REFILL = Capability.REFILL


def _handed_over(task: TaskState) -> Fault | None:
    """The callback's fault, while the page that it handed over is still the driver's to refill."""
    fault = task.callback
    return fault if fault is not None and fault.live and fault.page in task.pages else None


@step_clause(
    "C92",
    name="refill",
    party=Party.DRIVER,
    source="the mail of 2024-09 that proposes it, and what follows from it",
    symptom="the entry stays for ever, or the wrong page migrates",
    on=(ev.EntryRefilled, ev.PagesCalled),
)
def refill(before: World, step: ev.Step, after: World) -> Judgement:
    """Between setup and pages() the driver MAY, and for a fault address in its range MUST, write src[index of the fault
    address] = pfn|VALID|MIGRATE(|WRITE) for the page that was handed over, exactly once. Without the capability `refill` it
    MUST NOT.
    """
    event, task = step.event, before.task(step.task)
    call = task.calls.get(cast("ev.EntryRefilled | ev.PagesCalled", event).call)
    if isinstance(event, ev.EntryRefilled):
        if REFILL not in before.capabilities:
            return f"src[{event.index}] was refilled with {show(event.entry)}, and the fault handler hands nothing over"
        return _bad_refill(before, task, call, event) or KEPT
    fault = _handed_over(task)
    if REFILL not in before.capabilities or fault is None or call is None or call.mm != fault.mm:
        return None
    if not call.start <= fault.addr < call.end or any(was_refilled(other, fault.page) for other in task.calls.values()):
        return None
    return f"pages() of [{call.start}, {call.end}) without a refill of addr {fault.addr}, pfn {fault.page}"


def _bad_refill(world: World, task: TaskState, call: Call | None, event: ev.EntryRefilled) -> str | None:
    what = f"src[{event.index}] was refilled with {show(event.entry)}"
    fault = _handed_over(task)
    if fault is None:
        return f"{what}, and no page is handed over"
    if call is None or call.phase is not Phase.COLLECTED:
        return f"{what}, and the call is {call.phase.value if call is not None else 'not in flight'}"
    if event.index in call.refilled:
        return f"{what}, for the second time"
    addr = call.start + event.index
    if call.mm != fault.mm or not addr <= fault.addr < addr + span(world, event.entry):
        return f"{what}, which is addr {addr}; the fault is at {fault.addr}"
    if pfn_of(event.entry) != fault.page or not is_migrating(event.entry):
        return f"{what}; pfn {fault.page}|VALID|MIGRATE is due"
    pte = world.pte(fault.mm, fault.addr)
    if event.entry & MIGRATE_PFN_WRITE and pte.pfn == fault.page and not pte.write:
        return f"{what}, and the migration entry is not writable"
    return None


@step_clause(
    "C93",
    name="ownership of a refilled page",
    party=Party.BOTH,
    source="mm/migrate_device.c:__migrate_device_finalize, with the proposal of 2024-09",
    symptom="double unlock, double put",
    on=(ev.FolioMoved, ev.FinalizeReturned, ev.FolioUnlocked, ev.FolioPut, ev.Oops),
    requires={REFILL},
)
def refilled_page_is_the_librarys(before: World, step: ev.Step, after: World) -> Judgement:
    """The library MUST accept a refilled entry as locked, referenced and unmapped, and MUST end that ownership in finalize();
    the fault handler MUST NOT unlock or put the page afterwards.
    """
    event, task = step.event, before.task(step.task)
    if isinstance(event, ev.FolioMoved):
        call = task.in_phase(Phase.MOVING)
        if call is None or event.moved or not was_refilled(call, event.pfn):
            return None
        refused = event.refcount == 1 and not before.frame(event.pfn).mapcount
        return f"pages() refused pfn {event.pfn}, which was refilled with the one reference that is due" if refused else None
    if isinstance(event, ev.FinalizeReturned):
        return _ended(before, step, event)
    return _after_finalize(task, cast("ev.FolioUnlocked | ev.FolioPut | ev.Oops", event))


def _ended(world: World, step: ev.Step, event: ev.FinalizeReturned) -> Judgement:
    call = call_before(world, step, event.call)
    judgement: Judgement = None
    for index in sorted(call.refilled) if call is not None else ():
        pfn = pfn_of(entry_at(call.src if call is not None else None, index))
        if call is None or pfn is None:
            continue
        held = call.ledger.get(pfn, HELD_NOTHING)
        if held != Held(-1, -1):
            return f"finalize gave back {-held.refs} references and {-held.locks} locks of pfn {pfn}, which was handed over"
        judgement = KEPT
    return judgement


def _after_finalize(task: TaskState, event: ev.FolioUnlocked | ev.FolioPut | ev.Oops) -> Judgement:
    fault = task.fault
    if fault is None or fault.stage is not Stage.RETURNED or fault.page is None or event.pfn != fault.page:
        return None
    if isinstance(event, ev.Oops):
        return f"the fault handler: {event.what}, pfn {event.pfn}"
    if isinstance(event, ev.FolioPut):
        return f"the fault handler put pfn {event.pfn} after finalize" if fault.refs < 1 else None
    return f"the fault handler unlocked pfn {event.pfn} after finalize" if fault.page not in task.pages else None


@step_clause(
    "C94",
    name="nothing handed over is left behind",
    party=Party.BOTH,
    source="reasoned from the proposal of 2024-09: its error paths",
    symptom="waiters sleep for ever",
    on=(ev.FaultEnded,),
    requires={REFILL},
)
def nothing_is_left_behind(before: World, step: ev.Step, after: World) -> Judgement:
    """On every way out of the fault (setup refused, cpages 0, driver error, VM_FAULT_RETRY) an entry that was handed over
    MUST have been restored or migrated, and its page unlocked and put, by the party that the generation names.
    """
    task = before.task(step.task)
    fault = task.fault
    if fault is None or fault.page is None:
        return None
    pte = before.pte(fault.mm, fault.addr)
    ours = before.frame(fault.page).holder in (None, step.task)
    left = [key for key in before.migration_entries(fault.page) if ours]
    if fault.page in task.pages or left:
        state = f"a {pte.kind.value} entry" if left else "its lock held"
        return f"the fault on mm {fault.mm} addr {fault.addr} ended and left pfn {fault.page} behind, with {state}"
    if fault.refs:
        return f"the fault on mm {fault.mm} addr {fault.addr} ended with {fault.refs} references to pfn {fault.page}"
    return KEPT if fault.stage is Stage.RETURNED else None
