"""The second look of a fault, under the page-table lock: mm/memory.c:pte_offset_map_lock with pte_same (vmf_pte_changed)."""

from __future__ import annotations

from migrate_vma_impl.machine.locks import spin_lock, spin_unlock
from migrate_vma_impl.mm.mm_types import FaultContext
from migrate_vma_impl.mm.pgtable import ptep_get


async def lock_if_same(vmf: FaultContext) -> bool:
    """Take the page-table lock and see whether the entry is still the one of the fault; False without the lock."""
    await spin_lock(vmf.vma.mm.ptl)
    if await ptep_get(vmf.vma.mm, vmf.address) == vmf.orig_pte:
        return True
    await spin_unlock(vmf.vma.mm.ptl)
    return False
