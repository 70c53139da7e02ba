"""What a row of the bug collection is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.generations import ENTRY_FIRST, WAITING, Generation

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


@frozen
class Bug:
    """One fault of a core or a driver: a step that is replaced, and the clause that must catch it.

    Attributes:
        id: An identifier: `B13` for a bug that the kernel or a driver of it had, words for one that we made up for a clause.
        clauses: Those that catch it; any of them may be the first to fire, and others may fire besides.
        record: The generation with the fault in it.
        driver: The driver that plays, built in or as `package.module:factory`; the fault may be in it instead.
        adapted: It is a fault of the driver's variant that refills, and compared with that.
        base: The built-in driver that a driver of the bug's own is a variant of.
        commit: The upstream commit that mended it, or what the mails call it; `year` and `kernels` say when, and who had it.
    """

    id: str
    title: str
    sentence: str
    clauses: tuple[str, ...]
    record: Generation
    driver: str = "test_hmm"
    commit: str = ""
    year: int | None = None
    kernels: str = ""
    adapted: bool = False
    base: str = "test_hmm"

    @property
    def beside(self) -> str:
        """The built-in driver that it is compared with: the one that plays, where that is built in."""
        return self.base if ":" in self.driver else self.driver


@frozen
class NotShown:
    """A known bug that no run of this simulated kernel can show, and why."""

    id: str
    title: str
    reason: str
    clauses: tuple[str, ...] = ()
    commit: str = ""
    year: int | None = field(default=None)


def driver_bug(
    id_: str,
    title: str,
    sentence: str,
    clauses: tuple[str, ...],
    factory: Callable[[Kernel], Driver],
    record: Generation = WAITING,
    **known: str,
) -> Bug:
    """A fault of the driver that `factory` makes; `known` is the commit, year and kernels of one that a driver had,
    and `base` the built-in driver that it is a variant of, if that is another than test_hmm.
    """
    year = known.get("year")
    return Bug(
        id_,
        title,
        sentence,
        clauses,
        record,
        f"{factory.__module__}:{factory.__name__}",
        known.get("commit", ""),
        int(year) if year else None,
        known.get("kernels", ""),
        adapted=record is ENTRY_FIRST,
        base=known.get("base", "test_hmm"),
    )
