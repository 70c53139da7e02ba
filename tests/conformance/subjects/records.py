"""Generation records of a third party, for `--patch` and as arguments."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm.folio import folio_unlock

MINE = evolve(WAITING, name="mine", aliases=())


async def unlock_even_the_fault_page(kernel, folio, fault_page):
    await folio_unlock(folio)


BROKEN = evolve(WAITING.with_steps(unlock_migrated=unlock_even_the_fault_page), name="broken", aliases=())
SAME_NAME = WAITING.with_steps(unlock_migrated=unlock_even_the_fault_page)
UNSENDABLE = evolve(WAITING, name="unsendable", claim_fault_page=lambda kernel, vmf, folio: None)
NUMBER = 3
