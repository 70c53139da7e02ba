"""What migrate_vma_setup, device_range and device_pfns may collect: the value of each src entry.

A page-table entry has one value in src, if its page can be taken. A large folio stands for all its pages where the caller
asked for that (SELECT_COMPOUND) and the range has the whole of it: one entry with COMPOUND, and zeros behind it. Otherwise it
is split first, which asks for more than a migration does: nobody but the mappings, the caches and the call itself may hold a
reference.
"""

from __future__ import annotations

from attrs import evolve, frozen

from migrate_vma_spec import events as ev
from migrate_vma_spec.model.state import Attempt, Entries, ModelState
from migrate_vma_spec.objects import Call, VmaRange, World
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_WRITE,
    PTE_NONE,
    VM_SPECIAL,
    Capability,
    Lru,
    Memory,
    Pte,
    PteKind,
    Select,
    VmFlags,
    migrate_pfn,
    migrate_pfn_to_pfn,
)

NO_VMA_OF_SETUP = VM_SPECIAL | VmFlags.HUGETLB | VmFlags.DAX
LEGACY_SLACK = 1
"""One unexpected reference to a zone-device page passes the check of setup: the extra count of the days before v5.18."""

LEFT = frozenset({0})
WHOLE_HOLE = MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND


@frozen
class Wish:
    """What a setup asks for."""

    mm: int
    start: int
    end: int
    select: Select
    owner: str | None
    fault_page: int | None

    def compound(self, world: World) -> bool:
        return Capability.COMPOUND in world.capabilities and bool(self.select & Select.COMPOUND)

    def is_fault_page(self, world: World, pfn: int) -> bool:
        """The folio whose reference, and whose lock, the fault handler holds."""
        return (
            self.fault_page is not None
            and Capability.FAULT_PAGE in world.capabilities
            and world.head(pfn) == world.head(self.fault_page)
        )


def wish_of(event: ev.SetupCalled | Call) -> Wish:
    return Wish(event.mm or 0, event.start, event.end, event.select, event.owner, event.fault_page)


def setup_is_valid(world: World, event: ev.SetupCalled) -> bool:
    """The checks of migrate_vma_setup; each of them gives the same error."""
    vma = world.vma(event.mm, event.start)
    if vma is None or vma.flags & NO_VMA_OF_SETUP or event.end <= event.start or event.end > vma.end:
        return False
    if event.nsrc is None or event.ndst is None:
        return False
    if event.fault_page is None or Capability.FAULT_PAGE not in world.capabilities:
        return True
    page = world.folio(event.fault_page)
    return page.memory is Memory.DEVICE_PRIVATE and not (Capability.FAULT_LOCK in world.capabilities and page.locked is False)


# ---- one entry -------------------------------------------------------------------------------------------------------


def collected(world: World, wish: Wish, vma: VmaRange | None, pte: Pte) -> int:
    """The src entry that this page-table entry gives, if its page can be taken."""
    if pte.kind is PteKind.NONE:
        return MIGRATE_PFN_MIGRATE if vma is not None and vma.anonymous else 0
    if pte.kind is PteKind.ZERO:
        return MIGRATE_PFN_MIGRATE if wish.select & Select.SYSTEM else 0
    if pte.pfn is None or not _is_selected(world, wish, pte):
        return 0
    return migrate_pfn(pte.pfn) | MIGRATE_PFN_MIGRATE | (MIGRATE_PFN_WRITE if pte.write else 0)


def _is_selected(world: World, wish: Wish, pte: Pte) -> bool:
    """Pages that a CPU maps, and the device's own in its private memory; no other entry that names no mapped page."""
    frame = world.frame(pte.pfn) if pte.pfn is not None else None
    if frame is None or pte.kind not in (PteKind.PRESENT, PteKind.DEVICE_PRIVATE):
        return False
    if pte.kind is PteKind.DEVICE_PRIVATE or frame.memory is Memory.DEVICE_PRIVATE:
        return bool(wish.select & Select.DEVICE_PRIVATE) and frame.owner == wish.owner
    if frame.memory is Memory.DEVICE_COHERENT:
        return bool(wish.select & Select.DEVICE_COHERENT) and frame.owner == wish.owner
    return bool(wish.select & Select.SYSTEM)


# ---- whether a page can be taken -------------------------------------------------------------------------------------


def is_stuck(world: World, pfn: int, *, fault_page: bool) -> bool | None:
    """Whether a call with nothing else running cannot take this page's folio as it is. None: the trace does not tell."""
    folio = world.folio(pfn)
    if folio.locked and not (fault_page and Capability.FAULT_LOCK in world.capabilities):
        return True
    if folio.refcount is None or folio.mapcount is None or folio.locked is None or folio.memory is None or folio.lru is None:
        return None
    if folio.refcount == 0:
        return True
    is_system = folio.memory is Memory.SYSTEM
    if is_system and folio.lru in (Lru.OFF, Lru.ISOLATED):
        return True
    known = folio.mapcount + fault_page + (folio.lru is Lru.BATCHED) + world.cache_refs(pfn)
    unexpected = folio.refcount - known
    if 0 < unexpected <= LEGACY_SLACK and folio.memory is Memory.DEVICE_COHERENT:
        return None  # a reference is tolerated, a pin keeps the page: the trace tells them apart when setup meets it
    return unexpected > (0 if is_system else LEGACY_SLACK)


def is_unsplittable(world: World, pfn: int, *, fault_page: bool) -> bool | None:
    """Whether a large folio cannot be split, or cannot be taken: a reference of whatever kind forbids it."""
    folio = world.folio(pfn)
    stuck = is_stuck(world, pfn, fault_page=fault_page)
    if stuck or folio.refcount is None or folio.mapcount is None:
        return stuck
    if fault_page or Capability.COMPOUND not in world.capabilities:
        return None  # generations differ
    return folio.refcount > folio.mapcount + world.cache_refs(pfn)


def taken(entry: int, stuck: bool | None) -> frozenset[int]:
    return frozenset({entry, 0} if stuck is None else {0} if stuck else {entry})


# ---- setup, alone ----------------------------------------------------------------------------------------------------


def setup_attempt(state: ModelState, world: World, event: ev.SetupCalled) -> Attempt:
    if event.mm is None or event.mm not in state.followed:
        return Attempt(valid=event.mm is not None)
    if not setup_is_valid(world, event):
        return Attempt(event.mm, event.start, valid=False)
    choices = collected_alone(world, wish_of(event))
    return Attempt(event.mm, event.start, len(choices), choices)


def collected_alone(world: World, wish: Wish) -> Entries:
    """What setup leaves in src with nothing else running."""
    choices: list[frozenset[int]] = []
    addr = wish.start
    while addr < wish.end:
        after = _block_end(world, addr, wish.end)
        vma = world.vma(wish.mm, addr)
        found = _whole(world, wish, vma, addr, after) or _one_by_one(world, wish, vma, addr, after)
        choices += found
        addr = after
    return tuple(choices)


def _block_end(world: World, addr: int, end: int) -> int:
    """The end of what one entry of the middle level covers."""
    pages = world.extras.leaf_pages
    return end if not pages else min(end, addr - addr % pages + pages)


def _whole(world: World, wish: Wish, vma: VmaRange | None, addr: int, after: int) -> list[frozenset[int]] | None:
    """The entries of a leaf, or of a whole hole, that is taken as one. None where it is not."""
    entry, stuck = _whole_entry(world, wish, vma, addr, after)
    if not entry:
        return None
    none = [LEFT] * (after - addr - 1)
    if not world.extras.leaf_pages:  # no trace has told yet how large a leaf is
        return [frozenset({MIGRATE_PFN_MIGRATE, WHOLE_HOLE}), *(frozenset({MIGRATE_PFN_MIGRATE, WHOLE_HOLE, 0}) for _ in none)]
    return [taken(entry, stuck), *none]


def _whole_entry(world: World, wish: Wish, vma: VmaRange | None, addr: int, after: int) -> tuple[int, bool | None]:
    if not wish.compound(world):
        return 0, None
    pages = world.extras.leaf_pages
    if pages and after - addr != pages:
        return 0, None
    leaf = world.leaf(wish.mm, addr)
    if leaf is None:
        empty = not any((wish.mm, each) in world.ptes for each in range(addr, after))
        return (WHOLE_HOLE if empty and vma is not None and vma.anonymous else 0), False
    pmd = leaf[1]
    if pmd.kind is PteKind.ZERO:
        return (WHOLE_HOLE if wish.select & Select.SYSTEM else 0), False
    entry = collected(world, wish, vma, pmd) if pmd.kind is not PteKind.TABLE else 0
    pfn = migrate_pfn_to_pfn(entry)
    if pfn is None:
        return 0, None
    return entry | MIGRATE_PFN_COMPOUND, is_stuck(world, pfn, fault_page=wish.is_fault_page(world, pfn))


def given_back(pte: Pte) -> Pte:
    """A page that a device has for itself is the CPUs' again when its folio has been split, but for writing."""
    return evolve(pte, kind=PteKind.PRESENT, write=False) if pte.kind is PteKind.EXCLUSIVE else pte


def _one_by_one(world: World, wish: Wish, vma: VmaRange | None, addr: int, after: int) -> list[frozenset[int]]:
    """The entries of single pages. A large folio that cannot be split ends the walk of its block."""
    choices: list[frozenset[int]] = []
    ended: bool | None = False
    split: set[int] = set()
    for each in range(addr, after):
        pte = world.pte(wish.mm, each)
        entry = collected(world, wish, vma, given_back(pte) if pte.pfn is not None and world.head(pte.pfn) in split else pte)
        pfn = migrate_pfn_to_pfn(entry)
        stuck: bool | None = False
        if pfn is not None and len(world.folio_pages(pfn)) > 1:
            split.add(world.head(pfn))
            stuck = is_unsplittable(world, pfn, fault_page=wish.is_fault_page(world, pfn))
            ended = ended if stuck is False or ended else stuck
        elif pfn is not None:
            stuck = is_stuck(world, pfn, fault_page=wish.is_fault_page(world, pfn))
        choices.append(taken(entry, stuck if ended is False or stuck else ended))
    return choices


# ---- setup, in a race ------------------------------------------------------------------------------------------------


def found(world: World, wish: Wish, addr: int) -> frozenset[int]:
    """What the entry allows as it is under the page-table lock: taken as one, or by itself.

    What a split asks for is not all to be seen: in a race a large folio that must be split may be left.
    """
    vma = world.vma(wish.mm, addr)
    pte = world.pte(wish.mm, addr)
    if pte.kind is PteKind.EXCLUSIVE and pte.pfn is not None and len(world.folio_pages(pte.pfn)) > 1:
        return frozenset({0, collected(world, wish, vma, given_back(pte))})
    entry = collected(world, wish, vma, pte)
    pages = world.extras.leaf_pages
    pfn = migrate_pfn_to_pfn(entry)
    large = pfn is not None and len(world.folio_pages(pfn)) > 1
    if not large and not wish.compound(world):
        return frozenset({entry})
    choices = {entry, 0} if large else {entry}
    base = addr - addr % pages if pages else addr
    if wish.compound(world) and base >= wish.start and base + pages <= wish.end and (large or pfn is None):
        whole, _ = _whole_entry(world, wish, vma, base, base + pages if pages else addr + 1)
        if whole:
            choices |= {whole} if addr == base else {0}
    return frozenset(choices)


def hole(world: World, wish: Wish, addr: int, block: range) -> frozenset[int]:
    """What an address gives over which nothing hangs in the middle level."""
    vma = world.vma(wish.mm, addr)
    entry = collected(world, wish, vma, PTE_NONE)
    if not entry or not wish.compound(world) or block.start < wish.start or wish.end < block.stop:
        return frozenset({entry})
    return frozenset({WHOLE_HOLE if addr == block.start else 0})


# ---- device_range ----------------------------------------------------------------------------------------------------


def range_attempt(world: World, event: ev.RangeCalled) -> Attempt:
    """What device_range takes with nothing else running. The tails of a large folio have zeros."""
    choices: list[frozenset[int]] = []
    seen: set[int] = set()
    for index, pfn in enumerate(event.pfns):
        choices.append(_of_range(world, event.pfns, index, seen))
        seen.update(world.folio_pages(pfn))
    large = frozenset(pfn for pfn in event.pfns if len(world.folio_pages(pfn)) > 1)
    return Attempt(count=len(choices), alone=tuple(choices), large=large)


def _of_range(world: World, pfns: tuple[int, ...], index: int, seen: set[int]) -> frozenset[int]:
    pfn = pfns[index]
    nr = len(world.folio_pages(pfn))
    if nr == 1:
        return taken(migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE, pfn in seen or is_stuck(world, pfn, fault_page=False))
    if pfn in seen or world.head(pfn) != pfn:
        return LEFT
    entry = migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND
    stuck = True if nr > len(pfns) - index else is_stuck(world, pfn, fault_page=False)
    # A folio whose lock was missed is marked all the same: no page, and COMPOUND.
    return taken(entry, stuck) | (frozenset({MIGRATE_PFN_COMPOUND}) if stuck is not False else LEFT - LEFT)
