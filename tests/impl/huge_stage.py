"""A stage with large folios of four pages: frames 4 to 11 make two of them, and 1 to 3 are single pages."""

from __future__ import annotations

from typing import Any

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.mm import huge_memory, syscalls
from migrate_vma_impl.mm.folio import page_folio
from migrate_vma_impl.mm.mm_types import Folio, FolioState, Mm, PageTables, PmdSlot
from migrate_vma_spec.vocabulary import Pte, VmFlags
from tests.impl.stage import A, Stage

RW = VmFlags.READ | VmFlags.WRITE
HUGE = RW | VmFlags.HUGEPAGE
NR = 4


class HugeStage(Stage):
    """Address space A has [0, 8) mapped, with madvise(MADV_HUGEPAGE)."""

    def __init__(self, generation: Any = WAITING, *, flags: VmFlags = HUGE, system_frames: int = 11, **config: Any) -> None:
        super().__init__(generation, pages=0, system_frames=system_frames, addresses=8, pmd_order=2, **config)
        self.run(syscalls.mmap, self.kernel, A, 0, 8, flags)

    def pmd(self, addr: int, mm: Mm = A) -> Pte:
        return self.slots[PmdSlot(mm.number, addr)]

    def tables(self, mm: Mm = A) -> int:
        return self.slots[PageTables(mm.number)]

    def fork(self, child: Mm) -> int:
        return self.run(syscalls.fork, self.kernel, A, child)

    def counts(self, pfn: int) -> tuple[int, int]:
        folio: FolioState = self.folio(pfn)
        return folio.refcount, folio.mapcount

    def exclusive(self, pfn: int) -> list[bool]:
        return [self.folio(pfn + i).exclusive for i in range(NR)]


async def split(kernel: Kernel, page: Folio) -> bool:
    """What a caller of split_huge_page does: reference, lock, split, and let go of what it still holds."""
    folio = await page_folio(kernel, page)
    await kernel.folio_get(folio)
    await kernel.folio_lock(folio)
    done = await huge_memory.split_huge_page(kernel, page)
    held = page if done else folio
    await kernel.folio_unlock(held)
    await kernel.folio_put(held)
    return done
