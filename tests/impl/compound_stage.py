"""A stage with large folios: leaves of four pages, and a device that can hold two of them."""

from __future__ import annotations

from typing import Any, ClassVar

from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.generations import WAITING, Generation, with_compound
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Mm, PageTables, Pgmap, PmdSlot
from migrate_vma_spec.vocabulary import Pte, VmFlags
from tests.impl.stage import A, Stage

NR = 4
HUGE = VmFlags.READ | VmFlags.WRITE | VmFlags.HUGEPAGE
COMPOUND = with_compound(WAITING)

COMPOUND_STEPS = frozenset(
    {
        "abort_huge_insert",
        "fault_folio_again",
        "flush_cache_huge",
        "no_destination",
        "part_entry",
        "pin_and_leave",
        "put_not_split",
        "refuse_large_destination",
        "split_large",
        "split_leaf",
        "split_migration_pmds",
        "split_unmapped",
        "tell_of_split",
    }
)
"""The fields of Steps that a system without large folios never comes to."""


class Wide8(Wide):
    """The wide driver with room for two large folios."""

    frames: ClassVar[int] = 8


class CompoundStage(Stage):
    """A large folio at [0, 4) of address space A, written, unless `written` says otherwise; [0, pages) is mapped."""

    def __init__(
        self,
        generation: Generation = COMPOUND,
        driver: Any = Wide8,
        *,
        pages: int = 2 * NR,
        written: bool = True,
        flags: VmFlags = HUGE,
        **config: int,
    ) -> None:
        sizes = {"pmd_order": 2, "addresses": 2 * NR, "system_frames": 20, **config}
        super().__init__(generation, driver, pages=0, **sizes)
        self.run(self.driver.open, A)
        self.run(syscalls.mmap, self.kernel, A, 0, pages, flags)
        if written:
            self.touch(0, write=True)

    def pmd(self, addr: int = 0, mm: Mm = A) -> Pte:
        return self.slots[PmdSlot(mm.number, addr)]

    def counts(self, pfn: int) -> tuple[int, int, bool]:
        """References, mappings, and whether it is locked."""
        f = self.folio(pfn)
        return f.refcount, f.mapcount, f.locked

    def device_pages(self) -> int:
        """How many device pages are in use, as their pgmap counts them."""
        return self.slots[Pgmap(self.driver.name)].refs

    def tables(self, mm: Mm = A) -> int:
        return self.slots[PageTables(mm.number)]

    def to_huge_device(self, start: int = 0, end: int = NR) -> int:
        return self.run(self.driver.to_device, A, start, end)

    def nothing_is_held(self) -> bool:
        """No frame is locked, and no free one has a mapping; what is mapped has the references of its mappings alone."""
        self.run(self.kernel.lru_add_drain)
        frames = [self.slots[key] for key in self.slots if type(key).__name__ == "Folio"]
        return not any(f.locked or f.queue or (f.head is None and f.refcount != f.mapcount) for f in frames)
