"""What a row of the bug collection is."""

from __future__ import annotations

from attrs import field, frozen

from migrate_vma_impl.generations import Generation


@frozen
class Bug:
    """One fault of a core or a driver: a step that is replaced, and the clause that must catch it.

    Attributes:
        id: An identifier: `B13` for a bug that the kernel or a driver of it had, words for one that we made up for a clause.
        clauses: Those that catch it; any of them may be the first to fire, and others may fire besides.
        record: The generation with the fault in it.
        driver: The driver that plays, built in or as `package.module:factory`; the fault may be in it instead.
        adapted: It is a fault of the driver's variant that refills, and compared with that.
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


@frozen
class NotShown:
    """A known bug that no run of this simulated kernel can show, and why."""

    id: str
    title: str
    reason: str
    clauses: tuple[str, ...] = ()
    commit: str = ""
    year: int | None = field(default=None)
