"""What a world knows beyond order-0 anonymous memory: large folios, leaves of the middle level, page cache, swap, owed flushes.

All of it is one record, `World.extras`, which stays NO_EXTRAS where a trace shows none of it: a world of order-0 anonymous memory
pays one field for all. The rules of `objects.py` hold here as well; `leaf_pages` alone outlives what it was learnt from, because
it is a fact of the machine.
"""

from __future__ import annotations

from typing import Any

from migrate_vma_spec.frozen_map import FrozenMap
from migrate_vma_spec.records import evolve, frozen
from migrate_vma_spec.vocabulary import PTE_NONE, Pte, PteKind

EMPTY: FrozenMap[Any, Any] = FrozenMap()

Key = tuple[int, int]
"""(mm, addr)."""

TABLE = Pte(PteKind.TABLE)


@frozen(cache_hash=True)
class Extras:
    """`pmds` are the entries of the middle level that are not empty, by their first address; each maps `leaf_pages` pages, which
    is 0 while no trace has told. `leaves` lists, per head of a folio, the leaves that name it.

    `orders` has the large folios by their heads, `heads` the head of each tail page. `cached` says for which (file, index) the
    page cache holds a folio, `swapped` for which slot the swap cache does; `swaps` counts the entries that hold a slot. `owed`
    are the TLB flushes that a task has put off, as (mm, start, end), `spare` the page tables that it allocated and has not hung
    up, deposited or freed yet.
    """

    leaf_pages: int = 0
    pmds: FrozenMap[Key, Pte] = EMPTY
    leaves: FrozenMap[int, frozenset[Key]] = EMPTY
    orders: FrozenMap[int, int] = EMPTY
    heads: FrozenMap[int, int] = EMPTY
    cached: FrozenMap[int, Key] = EMPTY
    swapped: FrozenMap[int, int] = EMPTY
    swaps: FrozenMap[int, int] = EMPTY
    owed: FrozenMap[str, frozenset[tuple[int, int, int]]] = EMPTY
    spare: FrozenMap[str, int] = EMPTY


NO_EXTRAS = Extras()


def piece(leaf: Pte, offset: int) -> Pte:
    """What a leaf says of one of its pages, as an entry of the level below. A page table says nothing."""
    if leaf.kind is PteKind.TABLE:
        return PTE_NONE
    return leaf if leaf.pfn is None or not offset else evolve(leaf, pfn=leaf.pfn + offset)
