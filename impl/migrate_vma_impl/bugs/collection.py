"""The whole collection, and the known bugs that are not in it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from migrate_vma_impl.bugs import (
    alternative,
    drivers,
    drivers_calls,
    drivers_fault,
    drivers_life,
    fault,
    large,
    migration,
    moving,
    setup,
    walkers,
)
from migrate_vma_impl.bugs.bug import Bug, NotShown

BUGS: tuple[Bug, ...] = tuple(
    sorted(
        (
            *fault.BUGS,
            *setup.BUGS,
            *migration.BUGS,
            *moving.BUGS,
            *large.BUGS,
            *walkers.BUGS,
            *drivers.BUGS,
            *drivers_calls.BUGS,
            *drivers_fault.BUGS,
            *drivers_life.BUGS,
            *alternative.BUGS,
        ),
        key=lambda bug: (not bug.commit, bug.id),
    )
)
"""The historical ones first, by number; then those that were made up for a clause."""

NOT_SHOWN: tuple[NotShown, ...] = (
    NotShown(
        "B04", "pte_unmap forgotten where the entry has changed", "kmap of page tables in high memory is not modelled", ("C37",)
    ),
    NotShown(
        "B09",
        "lru_add_drain_all with folio locks held",
        "no kernel has mended it: C87 fires on every generation as it is",
        ("C87",),
    ),
    NotShown(
        "B19", "the extra reference of zone-device pages", "no fault: what is left of it is check_page's slack (C48)", ("C48",)
    ),
    NotShown("B30", "references after a split that failed", "no fault: the splitting consumes the reference", ("C44",)),
    NotShown(
        "B32",
        "the cache of one page is flushed for the leaf of the huge zero page",
        "what is flushed is never written, so no cache has anything else of it: no clause asks for the flush",
        ("C60",),
    ),
    NotShown(
        "B35",
        "a device-private leaf is taken for a present one by madvise and mempolicy",
        "no clause binds these walkers; the entry of a leaf says its kind here, and nobody can read it as another",
    ),
    NotShown("B36", "a warning of pagemap about device-private leaves", "a warning alone, of a walker that no clause binds"),
    NotShown(
        "B38",
        "a page is looked up from an entry that names none",
        "an entry that names no page has no frame number here, so nothing can be decoded from it",
        ("C14",),
    ),
    NotShown("B40", "two devices pull one range", "waits for the xe driver", ("C86",)),
    NotShown("B43", "the buffer object freed before its migrator unlocks it", "waits for the xe driver", ("C89",)),
    NotShown("B44", "dst cleared before the unmap loop reads it", "DMA mappings of the driver are not modelled", ("C45",)),
    NotShown("B45", "put before the last use in an allocation fallback", "waits for the xe driver", ("C45",)),
    NotShown("B46", "device memory used again while an old copy runs", "asynchronous copies wait for the xe driver", ("C71",)),
    NotShown("B47", "bookkeeping of drm_gpusvm", "waits for the xe driver", ("C44",)),
    NotShown("B50", "errors of the test driver's allocations", "kmalloc of a driver's arrays is not modelled", ("C07", "C44")),
    NotShown("B51", "pmd_hugepage_update on a device-private PMD", "a warning of one architecture's page table", ("C55",)),
    NotShown("B54", "MIGRATE_PFN_LOCKED removed", "no fault, and older than every generation here", ("C19",)),
)

NOT_ALONE: Mapping[str, str] = MappingProxyType(
    {
        "C34": "That a task sleeps on a page lock with the page-table lock held is known when the wait ends: to queue under "
        "that lock is right for a migration entry, where it is let go before the task sleeps. In the smallest races the wait "
        "never ends, and the deadlock (C82) is all that shows. In the others C34 says which step was wrong.",
    }
)
"""Why no bug of the collection breaks these clauses alone, or before any other."""


def find_bug(name: str) -> Bug:
    """The bug of this id.

    Raises:
        ValueError: there is none; the message lists them, or says why this one cannot be shown.
    """
    for bug in BUGS:
        if bug.id == name:
            return bug
    for row in NOT_SHOWN:
        if row.id == name:
            raise ValueError(f"{name} ({row.title}) cannot be shown: {row.reason}")
    raise ValueError(f"there is no bug {name!r}. There are: {', '.join(bug.id for bug in BUGS)}")


def __getattr__(name: str) -> Bug:
    """So that `migrate_vma_impl.bugs.collection:B07.record` is a path: a counterexample names its core by it."""
    try:
        return find_bug(name)
    except ValueError as error:
        raise AttributeError(str(error)) from None
