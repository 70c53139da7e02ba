"""Reach: what an access may find, and what is reachable when nothing runs.

An access must reach a place that holds the page's contents. So a lost store, a stale load, an uncleared page and a store that a
COW partner sees are all found at the first access that shows them, or when nothing runs any more and an entry, a device mapping
or a TLB leads elsewhere, or permits what it must not.
"""

from __future__ import annotations

from migrate_vma_spec.model.contents import page_of
from migrate_vma_spec.model.outcome import Outcome, outcome, place_words
from migrate_vma_spec.model.state import NO_FRAMES, Key, ModelState, Page, Place, Store, access, is_granted
from migrate_vma_spec.objects import PAGE_KINDS, World
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFlags

REMAPPERS = frozenset(
    {"mmap", "mmap_file", "mmap_shared", "mmap_device", "mmap_hugetlb", "munmap", "mprotect", "mremap", "exit", "execve"}
)
"""The operations that change VMAs. While one runs, an access falls before or after it."""

NOWHERE = frozenset({PteKind.NONE, PteKind.MARKER})


# ---- an access -------------------------------------------------------------------------------------------------------


def _remapping(state: ModelState, mm: int) -> bool:
    return any(scope.name in REMAPPERS and scope.arguments[:1] == (mm,) for scope in state.operations())


def found_in(state: ModelState, page: Page) -> set[Place | None]:
    """Where a reader may find the page; None is the zero page."""
    found: set[Place | None] = set(state.copies(page))
    if page in state.lazy:
        found |= state.zeroed
    if page not in state.pages or page in state.lazy:
        found.add(None)
    return found


def allowed_access(
    state: ModelState, world: World, who: str, key: Key, pfn: int | None, write: bool, *, tlb: bool
) -> tuple[Outcome, ...]:
    """An access must be one that the VMA allows, and find the page's contents: a store changes a part of them and keeps the rest.

    `tlb`: it goes through a CPU's TLB, which a discard in flight has yet to flush.
    """
    mm, addr = key
    kind = "store" if write else "load"
    what = f"{kind} of {who} at mm {mm} addr {addr}"
    if mm not in state.followed:
        return ()
    if not is_granted(world, (mm, addr, addr + 1, access(write))):
        return () if _remapping(state, mm) else (outcome(f"{what} reached", pfn, (), place_words),)
    page = page_of(state, world, key)
    if page is None or (pfn is not None and not state.is_told(world, pfn)):
        return ()
    found = found_in(state, page)
    if tlb:
        found |= state.overtaken.get(key, NO_FRAMES)
    if write:
        found.discard(None)
    return (outcome(f"{what} found what is in", pfn, found, place_words),)


# ---- what is reachable when nothing runs -----------------------------------------------------------------------------


def allowed_at_rest(state: ModelState, world: World) -> tuple[Outcome, ...]:
    """With nothing open, every entry, device mapping and TLB leads to the contents of its page, and written pages have one."""
    found: list[Outcome] = []
    for key in sorted(_entries(state, world)):
        found += _entry_at_rest(state, world, key)
    for device, mm, addr in sorted(world.mirrors):
        mirror = world.mirrors[device, mm, addr]
        found += _reached(state, world, f"device {device} maps mm {mm} addr {addr} to", (mm, addr), mirror.pfn)
    for key, cpus in world.tlbs.items():
        for cpu in sorted(cpus):
            who = f"CPU {cpu}'s TLB maps mm {key[0]} addr {key[1]}"
            found += _reached(state, world, f"{who} to", key, cpus[cpu].pfn)
            found += _permitted(state, world, who, key, cpus[cpu])
    return (*found, *_files_at_rest(state))


def _entries(state: ModelState, world: World) -> set[Key]:
    """The addresses that an entry or a leaf maps, and those whose contents must be somewhere."""
    found = {*world.ptes, *(page for page in state.pages if not isinstance(page, Store))}
    for (mm, base), leaf in world.extras.pmds.items():
        if leaf.kind is not PteKind.TABLE:
            found.update((mm, addr) for addr in range(base, base + world.extras.leaf_pages))
    return found


def _entry_at_rest(state: ModelState, world: World, key: Key) -> list[Outcome]:
    mm, addr = key
    page = page_of(state, world, key) if mm in state.followed else None
    pte = world.pte(mm, addr)
    if page is None or pte.kind is PteKind.HWPOISON or (isinstance(page, Store) and pte.kind in NOWHERE):
        return []
    if pte.kind is PteKind.MIGRATION:
        what = f"with nothing running, mm {mm} addr {addr} is"
        return [outcome(what, pte.kind, (PteKind.NONE, PteKind.PRESENT, PteKind.DEVICE_PRIVATE), lambda kind: str(kind.value))]
    place = _place(world, pte)
    if isinstance(place, int) and not state.is_told(world, place):
        return []
    what = f"with nothing running, mm {mm} addr {addr} leads to"
    return [outcome(what, place, found_in(state, page), place_words), *_write_at_rest(world, key, page, pte)]


def _place(world: World, pte: Pte) -> Place | None:
    """Where an entry leads: to a frame, to a swap slot and first to its frame in the swap cache, or, None, to zeros."""
    if pte.kind is not PteKind.SWAP or pte.swap is None:
        return pte.pfn
    return next((pfn for pfn, slot in world.extras.swapped.items() if slot == pte.swap), Store(None, pte.swap))


def _write_at_rest(world: World, key: Key, page: Page, pte: Pte) -> list[Outcome]:
    """Who may write: only what the VMA lets write, nothing that a userfaultfd guards, no private page that others map too."""
    if not pte.write or pte.kind not in (PteKind.PRESENT, PteKind.DEVICE_PRIVATE) or pte.pfn is None:
        return []
    what = f"with nothing running, mm {key[0]} addr {key[1]} may be written"
    vma = world.vma(*key)
    found: list[Outcome] = []
    if vma is not None and not vma.flags & VmFlags.WRITE:
        found.append(outcome(f"{what}, though the VMA's flags are", int(vma.flags), ()))
    if pte.uffd_wp and (vma is None or vma.flags & VmFlags.UFFD_WP):
        found.append(outcome(f"{what}, and is write-protected:", True, {False}))
    others = world.entries(pte.pfn, PAGE_KINDS) if len(world.named.get(pte.pfn, ())) > 1 or world.extras.leaves else [key]
    if not isinstance(page, Store) and len(others) > 1:
        found.append(outcome(f"{what}, and its frame is mapped by", len(others), {1}))
    return found


def _reached(state: ModelState, world: World, what: str, key: Key, pfn: int | None) -> list[Outcome]:
    page = page_of(state, world, key) if key[0] in state.followed else None
    if page is None or (pfn is not None and not state.is_told(world, pfn)):
        return []
    return [outcome(f"with nothing running, {what}", pfn, found_in(state, page), place_words)]


def _permitted(state: ModelState, world: World, who: str, key: Key, cached: Pte) -> list[Outcome]:
    """A TLB permits no store that the entry forbids."""
    pte = world.pte(*key)
    if not cached.write or pte.write or key[0] not in state.followed or page_of(state, world, key) is None:
        return []
    return [outcome(f"with nothing running, {who} for writing, and the entry allows that:", False, {True})]


def _files_at_rest(state: ModelState) -> list[Outcome]:
    """What was written to a file is somewhere."""
    files = [page for page in state.pages if isinstance(page, Store)]
    return [
        outcome(f"with nothing running, the contents of {page} are", "lost" if not state.pages[page] else "kept", {"kept"})
        for page in sorted(files, key=str)
    ]
