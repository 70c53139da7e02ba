"""Faults of the proposal that the fault path installs the migration entry itself: who owns what was handed over, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl import fault_page
from migrate_vma_impl.bugs.bug import Bug, driver_bug
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import AdaptedDmirror
from migrate_vma_impl.generations import ENTRY_FIRST
from migrate_vma_impl.mm.mm_types import FaultContext, MigrateVma
from migrate_vma_spec.vocabulary import VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class NothingToDo(AdaptedDmirror):
    """Returns early where setup collected nothing, as drivers do: the fault entry is not in cpages yet."""

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        src, dst = [0], [0]
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, src, dst, self.owner, self.select_device)
        if await self.kernel.migrate_vma_setup(args) or not args.cpages:
            return VmFault.NONE
        return VmFault.SIGBUS


def nothing_to_do(kernel: Kernel) -> Driver:
    return NothingToDo(kernel, "test_hmm")


def refilling(kernel: Kernel) -> Driver:
    """The variant that refills, by a path of its own."""
    return AdaptedDmirror(kernel, "test_hmm")


BUGS = (
    Bug(
        "handed_over_and_released",
        "the fault handler lets go of what it handed over",
        "finalize unlocked and put the page already.",
        ("C93",),
        evolve(ENTRY_FIRST, release_fault_page=fault_page.release_lock_and_reference),
        f"{__name__}:refilling",
        adapted=True,
    ),
    driver_bug(
        "left_behind",
        "the driver returns early and leaves the entry",
        "Whoever waits on the migration entry sleeps for ever.",
        ("C94",),
        nothing_to_do,
        ENTRY_FIRST,
    ),
)
