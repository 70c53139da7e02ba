"""The generations of the device-private fault path: frozen records of parts, each evolved from the one before it.

Rules:
- A generation differs from its neighbour in the protocol of the fault path alone. Fixes of the same years to other steps are in
  all of them (`steps.py`), and come back as known bugs.
- No other module knows a generation's name, and none asks which one it runs: it asks for a part.
- Large device-private folios are a capability that the records from `trylocked` on can carry besides (`with_compound`): a second
  size of everything, and no other protocol.
- Kernel versions are aliases for a user's convenience.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import evolve, frozen

from migrate_vma_impl import fault_page
from migrate_vma_impl.mm import migrate_device_huge
from migrate_vma_impl.mm.migrate_device_huge import CollectHugePmd, CollectLargeFolio
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, MigrateVma
from migrate_vma_impl.steps import SOUND, Steps
from migrate_vma_spec.vocabulary import Capability

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


@frozen
class Generation:
    """One protocol of the fault path.

    `aliases` are the kernel series that follow it, each as first released (the stable ones took the next one's fix later), unless
    `patch_levels` names the release that was read.

    `fault_page_references` are the references that the fault handler holds on the fault page while the driver migrates it, which
    the exact count of migrate_vma_pages adds; `fault_page_locked` says that the page lock is the fault handler's, so the library
    neither takes nor drops it.

    The parts with `pmd` in their name are those of a fault on a whole large folio, mapped by one leaf of the middle level.
    `collect_huge_pmd` is what the walk of migrate_vma_setup does with such a leaf, `collect_large_folio` with a large folio that
    it meets page by page. `compound_aliases` are those of the aliases whose kernels have large device-private folios.
    """

    canonical_constant: ClassVar[bool] = True

    name: str
    aliases: tuple[str, ...]
    sentence: str
    capabilities: frozenset[Capability]
    claim_fault_page: Callable[[Kernel, FaultContext, Folio], Coroutine[Any, Any, bool]]
    lose_page_lock: Callable[[Kernel, FaultContext, Folio], Coroutine[Any, Any, None]]
    release_fault_page: Callable[[Kernel, Folio], Coroutine[Any, Any, None]]
    check_fault_page: Callable[[Kernel, MigrateVma], Coroutine[Any, Any, int]]
    fault_page_references: int
    fault_page_locked: bool
    refill_fault_entry: Callable[[Kernel, MigrateVma, FaultContext], Coroutine[Any, Any, None]]
    claim_fault_pmd: Callable[[Kernel, FaultContext, Folio], Coroutine[Any, Any, bool]] = fault_page.claim_pmd_lock_and_reference
    lose_page_lock_pmd: Callable[[Kernel, FaultContext, Folio], Coroutine[Any, Any, None]] = fault_page.lose_pmd_by_retry
    collect_huge_pmd: CollectHugePmd = migrate_device_huge.split_huge_pmd_first
    collect_large_folio: CollectLargeFolio = migrate_device_huge.leave_large_folio
    patch_levels: tuple[str, ...] = ()
    compound_aliases: tuple[str, ...] = ()
    steps: Steps = SOUND

    def with_steps(self, **changes: Any) -> Generation:
        """This generation with some of its steps replaced, as a known bug does."""
        return evolve(self, steps=evolve(self.steps, **changes))


UNREFERENCED = Generation(
    name="unreferenced",
    aliases=("v5.18", "v5.19", "v6.0"),
    sentence="The driver is called with the page of an entry that was read without lock or reference.",
    capabilities=frozenset(),
    claim_fault_page=fault_page.claim_nothing,
    lose_page_lock=fault_page.lose_never,
    release_fault_page=fault_page.release_nothing,
    check_fault_page=fault_page.accept_any_fault_page,
    fault_page_references=0,
    fault_page_locked=False,
    refill_fault_entry=fault_page.refill_nothing,
)

REFERENCED = evolve(
    UNREFERENCED,
    name="referenced",
    aliases=tuple(f"v6.{minor}" for minor in range(1, 15)),
    patch_levels=("v6.1.192", "v6.12.107"),
    sentence="Every faulter holds a reference while its driver tries to migrate the page.",
    capabilities=frozenset({Capability.FAULT_PAGE}),
    claim_fault_page=fault_page.claim_reference,
    release_fault_page=fault_page.release_reference,
    check_fault_page=fault_page.demand_device_private,
    fault_page_references=1,
)

TRYLOCKED = evolve(
    REFERENCED,
    name="trylocked",
    aliases=tuple(f"v6.{minor}" for minor in range(15, 20)),
    patch_levels=(),
    compound_aliases=("v6.19",),
    sentence="Only who gets the page lock takes a reference and calls the driver; the others fault again at once.",
    capabilities=frozenset({Capability.FAULT_PAGE, Capability.FAULT_LOCK}),
    claim_fault_page=fault_page.claim_lock_and_reference,
    lose_page_lock=fault_page.lose_by_retry,
    release_fault_page=fault_page.release_lock_and_reference,
    check_fault_page=fault_page.demand_locked_device_private,
    fault_page_locked=True,
)

WAITING = evolve(
    TRYLOCKED,
    name="waiting",
    aliases=("v7.0", "v7.1", "v7.2", "v7.3"),
    patch_levels=("v7.2.13", "v7.3.4"),
    compound_aliases=("v7.0", "v7.1", "v7.2", "v7.3", "v7.2.13", "v7.3.4"),
    sentence="As trylocked, but who does not get the page lock sleeps until it is dropped.",
    lose_page_lock=fault_page.lose_by_waiting,
)

# Two points of the mail are left as it leaves them: a driver that returns early leaves the migration entry behind, and nobody
# restores it where setup refuses or the driver fails. Whoever waits on that entry then sleeps for ever.
ENTRY_FIRST = evolve(
    WAITING,
    name="entry-first",
    aliases=(),
    patch_levels=(),
    compound_aliases=(),
    sentence="The fault path itself installs the migration entry; the driver adds the page to src, and finalize lets go of it.",
    capabilities=frozenset({Capability.REFILL}),
    claim_fault_page=fault_page.claim_by_migration_entry,
    claim_fault_pmd=fault_page.claim_pmd_by_migration_entry,
    release_fault_page=fault_page.release_nothing,
    check_fault_page=fault_page.accept_any_fault_page,
    fault_page_references=0,
    fault_page_locked=False,
    refill_fault_entry=fault_page.refill_entry,
)

GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {each.name: each for each in (UNREFERENCED, REFERENCED, TRYLOCKED, WAITING, ENTRY_FIRST)}
)


def with_compound(generation: Generation) -> Generation:
    """This generation with device-private folios of more than a page, as kernels have them since v6.19.

    Raises:
        ValueError: its fault path holds no page lock, without which no large folio can be split under it.
    """
    if not generation.capabilities & {Capability.FAULT_LOCK, Capability.REFILL}:
        raise ValueError(f"{generation.name} cannot have large device-private folios: its fault path takes no page lock")
    return evolve(
        generation,
        name=f"{generation.name}+compound",
        aliases=generation.compound_aliases,
        capabilities=generation.capabilities | {Capability.COMPOUND},
        collect_huge_pmd=migrate_device_huge.migrate_vma_collect_huge_pmd,
        collect_large_folio=migrate_device_huge.split_large_folio,
    )


COMPOUND_GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {each.name: each for each in map(with_compound, (TRYLOCKED, WAITING, ENTRY_FIRST))}
)
"""The records that can carry large device-private folios, with them. Without a middle level they do what the others do."""


def find_generation(name: str, pmd_order: int = 0) -> Generation:
    """The generation of this name, or of this kernel version, for a system with leaves of 1 << `pmd_order` pages.

    The name of a generation is that generation; `trylocked+compound` and so on are those with large device-private folios. A
    version is the kernel as it is: since v6.19 it has such folios where the system has a middle level at all.

    Raises:
        ValueError: no generation is called so; the message lists all names and aliases.
    """
    if name in COMPOUND_GENERATIONS:
        return COMPOUND_GENERATIONS[name]
    for generation in GENERATIONS.values():
        if name in generation.compound_aliases and pmd_order:
            return COMPOUND_GENERATIONS[f"{generation.name}+compound"]
        if name in (generation.name, *generation.aliases, *generation.patch_levels):
            return generation
    known = "; ".join(f"{each.name} ({', '.join(each.aliases) or 'no kernel'})" for each in GENERATIONS.values())
    raise ValueError(f"no generation is called {name!r}. There are: {known}")
