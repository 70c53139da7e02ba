"""Memory control groups as far as migration meets them: a folio is charged, or it is not (mm/memcontrol.c).

A folio is charged when it is allocated for a fault, a copy, a cache or a hole. Uncharging is part of the step that puts the last
reference (`swap.folio_put`); moving a charge is part of folio_migrate_flags. A folio that is swapped out gives up its charge when
it is freed, and the one that is read in is charged anew: that the swap slot remembers its group shows in no folio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm.mm_types import Folio, FolioState
from migrate_vma_spec.events import MemcgCharged, Oops
from migrate_vma_spec.records import evolve

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def _charge(f: FolioState) -> Outcome:
    if f.charged:
        return (f,), None, Oops("a folio is charged twice", f.pfn)
    return (evolve(f, charged=True),), None, MemcgCharged(f.pfn)


async def mem_cgroup_charge(kernel: Kernel, folio: Folio) -> None:
    """mem_cgroup_charge, with room in the group: it does not fail."""
    await traps.step(_charge, folio)
