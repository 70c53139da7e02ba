"""What setup collects

Which pages and holes setup takes, how it counts them, and what a driver may put in their place.
"""

from __future__ import annotations

from typing import cast

from migrate_vma_spec import events as ev
from migrate_vma_spec.clauses.common import (
    NOTHING_KINDS,
    TABLE_EVENTS,
    Changed,
    at,
    call_before,
    changes_of,
    in_all,
    is_hole,
    is_mapping,
    is_migrating,
    is_zone_device,
    page_pairs,
    pfn_of,
    pfns_of,
    show,
)
from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.objects import Call, Phase, VmaRange, World, ptl
from migrate_vma_spec.registry import KEPT, Judgement, Level, Party, monitor, step_clause
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    Memory,
    PteKind,
    Select,
)


@step_clause(
    "C10",
    name="cpages counts migrating entries",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_device_unmap (7.3.4); restored by 44af0b45d58d",
    symptom="the driver takes a partial migration for a complete one, or the reverse",
    on=(ev.SetupReturned,),
)
def cpages_counts(before: World, step: ev.Step, after: World) -> Judgement:
    """The count cpages MUST be the number of src entries with MIGRATE after unmap, holes and zero pages included."""
    event = cast("ev.SetupReturned", step.event)
    if event.result != 0 or event.src is None:
        return None
    count = sum(map(is_migrating, event.src))
    return KEPT if event.cpages == count else f"cpages is {event.cpages}, and {count} entries have MIGRATE"


@step_clause(
    "C11",
    name="npages counts the walk",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect (6.1.192, 7.3.4)",
    symptom="entries at the end of the range are never looked at",
    on=(ev.SetupReturned,),
)
def npages_counts(before: World, step: ev.Step, after: World) -> Judgement:
    """The count npages MUST be the number of entries that the walk filled: (end - start) / PAGE_SIZE."""
    event = cast("ev.SetupReturned", step.event)
    call = call_before(before, step, event.call)
    if event.result != 0 or call is None:
        return None
    pages = call.end - call.start
    return KEPT if event.npages == pages else f"npages is {event.npages} for [{call.start}, {call.end}), {pages} pages"


def _not_selected(world: World, call: Call, pfn: int) -> str | None:
    """Why this call may not take the page, as far as is known."""
    frame = world.frame(pfn)
    if frame.memory is None:
        return None
    flag = {
        Memory.SYSTEM: Select.SYSTEM,
        Memory.DEVICE_PRIVATE: Select.DEVICE_PRIVATE,
        Memory.DEVICE_COHERENT: Select.DEVICE_COHERENT,
    }[frame.memory]
    if not call.select & flag:
        return f"pfn {pfn} is {frame.memory.value} memory, and the call selects {call.select!r}"
    if frame.owner is not None and frame.owner != call.owner:
        return f"pfn {pfn} is owned by {frame.owner}, and the call's pgmap_owner is {call.owner}"
    return None


@step_clause(
    "C14",
    name="only pages that were selected",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_pmd (6.1.192, 7.3.4); 5143192cd410",
    symptom="another driver's pages migrate, and the wrong driver's callback runs",
    on=(*TABLE_EVENTS, ev.SetupReturned),
)
def only_selected_pages(before: World, step: ev.Step, after: World) -> Judgement:
    """Setup MUST take only system pages if SELECT_SYSTEM is given, device pages of pgmap_owner if their flag is given, and
    nothing that another owns.
    """
    event = step.event
    if isinstance(event, TABLE_EVENTS):
        taking = before.task(step.task).in_phase(Phase.COLLECTING)
        return None if taking is None else in_all(_taken(before, taking, change) for change in changes_of(event))
    event = cast("ev.SetupReturned", event)
    call = call_before(before, step, event.call)
    if call is None or event.result != 0:
        return None
    for pfn in pfns_of(event.src):
        reason = _not_selected(before, call, pfn)
        if reason:
            return f"setup returned a page that it must not take: {reason}"
    return KEPT if pfns_of(event.src) else None


def _taken(world: World, call: Call, event: Changed) -> Judgement:
    if not call.vma or call.mm != event.mm or not call.start <= event.addr < call.end:
        return None
    # A leaf that becomes a page table maps what it mapped.
    if not is_mapping(event.old) or event.old.pfn is None or is_mapping(event.new) or event.new.kind is PteKind.TABLE:
        return None
    if isinstance(event, ev.PteChanged) and len(world.folio_pages(event.old.pfn)) > 1:
        return None  # unmapped to be split, and put back: none of the page tables' pages is taken before that
    reason = _not_selected(world, call, event.old.pfn)
    return f"setup took the page of {at(event)}: {reason}" if reason else None


@step_clause(
    "C15",
    name="owner set",
    party=Party.DRIVER,
    level=Level.SHOULD,
    source="include/linux/migrate.h: struct migrate_vma comment on pgmap_owner (6.1.192, 7.3.4)",
    symptom="the driver's own invalidations are not filtered: deadlock, or invalidations to no purpose",
    on=(ev.SetupCalled,),
)
def owner_is_set(before: World, step: ev.Step, after: World) -> Judgement:
    """A driver SHOULD always set pgmap_owner when it uses MMU notifiers."""
    event = cast("ev.SetupCalled", step.event)
    if not any(mm == event.mm for _, mm in before.subscribed):
        return None
    return KEPT if event.owner is not None else f"setup without pgmap_owner on mm {event.mm}, which has a device's notifier"


Seen = FrozenMap[tuple[str, int], PteKind]
NOTHING_SEEN: Seen = FrozenMap()


def _forget_walk(seen: Seen, task: str) -> Seen:
    return seen.drop_all(key for key in seen if key[0] == task)


@monitor(
    "C16",
    name="holes",
    party=Party.CORE,
    source="mm/migrate_device.c:migrate_vma_collect_hole, migrate_vma_collect_pmd (6.1.192, 7.3.4)",
    symptom="memory that was never touched stays on the CPU, or a file's hole is filled with anonymous memory",
    on=(ev.SetupCalled, ev.PteRead, ev.PmdRead, ev.SetupReturned),
    start=NOTHING_SEEN,
)
def holes_are_collected(memory: Seen, world: World, step: ev.Step) -> tuple[Seen, Judgement]:
    """For an address with nothing mapped the entry MUST be MIGRATE without VALID in an anonymous VMA, and 0 elsewhere; for
    the zero page MIGRATE without VALID with SELECT_SYSTEM only.
    """
    event = step.event
    if isinstance(event, ev.SetupCalled):
        return _forget_walk(memory, step.task), None
    if isinstance(event, ev.PteRead):
        # The walk reads each entry once under the page-table lock; later reads by this task are of the reverse maps.
        call = world.task(step.task).in_phase(Phase.COLLECTING)
        key = (step.task, event.addr)
        if call is None or call.mm != event.mm or not call.start <= event.addr < call.end or key in memory:
            return memory, None
        return (memory.set(key, event.pte.kind), None) if world.task(step.task).holds(ptl(event.mm)) else (memory, None)
    if isinstance(event, ev.PmdRead):
        return _see_leaf(memory, world, step.task, event), None
    event = cast("ev.SetupReturned", event)
    call = call_before(world, step, event.call)
    judgement = None
    if call is not None and event.result == 0 and event.src is not None:
        judgement = _judge_holes(memory, world, step.task, call, event.src)
    return _forget_walk(memory, step.task), judgement


def _see_leaf(seen: Seen, world: World, name: str, event: ev.PmdRead) -> Seen:
    """An entry of the middle level that is empty is a hole of all its pages, looked at without a lock; the huge zero page is
    looked at under it.
    """
    task = world.task(name)
    call, kind = task.in_phase(Phase.COLLECTING), event.pmd.kind
    if call is None or call.mm != event.mm or kind not in NOTHING_KINDS:
        return seen
    if kind is PteKind.ZERO and not task.holds(ptl(event.mm)):
        return seen
    for addr in range(max(call.start, event.addr), min(call.end, event.addr + event.pages)):
        if (name, addr) not in seen:
            seen = seen.set((name, addr), kind)
    return seen


def _judge_holes(seen: Seen, world: World, task: str, call: Call, src: tuple[int, ...]) -> Judgement:
    judgement: Judgement = None
    for index, entry, _ in page_pairs(world, src, None):
        addr = call.start + index
        kind, vma = seen.get((task, addr)), world.vma(call.mm, addr)
        if vma is None or kind not in (None, PteKind.NONE, PteKind.ZERO):
            continue
        if kind is None:
            if is_hole(entry) and not vma.anonymous:
                return f"src[{index}] is {show(entry)} in a VMA that is not anonymous"
            continue
        wanted = MIGRATE_PFN_MIGRATE if _may_fill(vma, call, kind) else 0
        # That an entry may stand for several pages, C24 says.
        if entry & ~MIGRATE_PFN_COMPOUND != wanted:
            return f"addr {addr} was {kind.value}, so src[{index}] must be {show(wanted)}, and it is {show(entry)}"
        judgement = KEPT
    return judgement


def _may_fill(vma: VmaRange, call: Call, kind: PteKind) -> bool:
    return vma.anonymous if kind is PteKind.NONE else bool(call.select & Select.SYSTEM)


Pages = frozenset[int]


@monitor(
    "C17",
    name="hole content",
    party=Party.DRIVER,
    source="Documentation/mm/hmm.rst (6.1.192, 7.3.4)",
    symptom="stale device memory becomes readable",
    on=(
        ev.PageCleared,
        ev.PageCopied,
        ev.FolioAllocated,
        ev.FolioFreed,
        ev.RmapAdded,
        ev.PagesCalled,
        ev.FinalizeCalled,
        ev.FinalizeReturned,
    ),
    start=frozenset[int](),
)
def holes_get_zeroes(memory: Pages, world: World, step: ev.Step) -> tuple[Pages, Judgement]:
    """For a hole or a zero page the driver MUST give a zeroed destination or none: system memory zeroed before pages(), which
    maps it for the CPUs, device memory before finalize().
    """
    event = step.event
    if isinstance(event, ev.PageCleared):
        return memory | {event.pfn}, None
    if isinstance(event, ev.PageCopied):
        return (memory | {event.dst} if event.src in memory else memory - {event.dst}), None
    if isinstance(event, ev.FolioAllocated | ev.FolioFreed):
        return memory - set(range(event.pfn, event.pfn + (1 << event.order))), None
    if isinstance(event, ev.RmapAdded):
        # A page that pages() put into a hole is judged in finalize; any other mapped page has no hole to fill.
        kept = world.task(step.task).in_phase(Phase.MOVING)
        return memory if kept else memory - set(range(event.pfn, event.pfn + event.pages)), None
    if isinstance(event, ev.FinalizeReturned):
        call = call_before(world, step, event.call)
        given = {pfn_of(dst) for _, dst, _ in page_pairs(world, call.dst if call else None, None)}
        return memory - {pfn for pfn in given if pfn is not None}, None
    event = cast("ev.PagesCalled | ev.FinalizeCalled", event)
    return memory, _judge_zeroes(memory, world, event)


def _judge_zeroes(zeroed: Pages, world: World, event: ev.PagesCalled | ev.FinalizeCalled) -> Judgement:
    judgement: Judgement = None
    for index, entry, dst in page_pairs(world, event.src, event.dst):
        pfn = pfn_of(dst)
        due = pfn is not None and (isinstance(event, ev.FinalizeCalled) or world.frame(pfn).memory is Memory.SYSTEM)
        if pfn is None or not due or not is_hole(entry):
            continue
        if pfn not in zeroed:
            return f"dst[{index}] of a hole is pfn {pfn}, which was not zeroed"
        judgement = KEPT
    return judgement


@step_clause(
    "C18",
    name="anonymous memory only",
    party=Party.CORE,
    source="mm/migrate_device.c:__migrate_device_pages, migrate_vma_insert_page (6.1.192, 7.3.4)",
    symptom="a file mapping shows a page that is not the file's",
    on=(ev.PteChanged, ev.PmdChanged, ev.FolioMoved),
)
def holes_of_anonymous_memory(before: World, step: ev.Step, after: World) -> Judgement:
    """Only anonymous folios MUST go to device memory, the written pages of a private file mapping among them: pages() MUST NOT
    move a folio of the page cache there, and MUST NOT fill a hole in a VMA that is not anonymous.
    """
    if isinstance(step.event, ev.FolioMoved):
        return _file_moved(before, step.event)
    event = cast("Changed", step.event)
    if event.old.kind not in NOTHING_KINDS or not is_mapping(event.new):
        return None
    vma = before.vma(event.mm, event.addr)
    if vma is None or before.task(step.task).in_phase(Phase.MOVING) is None:
        return None
    return KEPT if vma.anonymous else f"pages put pfn {event.new.pfn} at {at(event)}, a file's hole"


def _file_moved(world: World, event: ev.FolioMoved) -> Judgement:
    cached = world.extras.cached.get(event.pfn)
    if cached is None or not is_zone_device(world.frame(event.dst).memory):
        return None
    return f"pfn {event.pfn}, page {cached[1]} of file {cached[0]}, was moved to device memory" if event.moved else KEPT
