"""The generations of the device-private fault path: frozen records of parts, each evolved from the one before it.

Rules:
- A generation differs from its neighbour in the protocol of the fault path alone. Fixes of the same years to other steps are in
  all of them (`steps.py`), and come back as known bugs.
- No other module knows a generation's name, and none asks which one it runs: it asks for a part.
- Kernel versions are aliases for a user's convenience.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import evolve, frozen

from migrate_vma_impl import fault_page
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
    patch_levels: tuple[str, ...] = ()
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
    sentence="The fault path itself installs the migration entry; the driver adds the page to src, and finalize lets go of it.",
    capabilities=frozenset({Capability.REFILL}),
    claim_fault_page=fault_page.claim_by_migration_entry,
    release_fault_page=fault_page.release_nothing,
    check_fault_page=fault_page.accept_any_fault_page,
    fault_page_references=0,
    fault_page_locked=False,
    refill_fault_entry=fault_page.refill_entry,
)

GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {each.name: each for each in (UNREFERENCED, REFERENCED, TRYLOCKED, WAITING, ENTRY_FIRST)}
)


def find_generation(name: str) -> Generation:
    """The generation of this name, or of this kernel version.

    Raises:
        ValueError: no generation is called so; the message lists all names and aliases.
    """
    for generation in GENERATIONS.values():
        if name in (generation.name, *generation.aliases, *generation.patch_levels):
            return generation
    known = "; ".join(f"{each.name} ({', '.join(each.aliases) or 'no kernel'})" for each in GENERATIONS.values())
    raise ValueError(f"no generation is called {name!r}. There are: {known}")
