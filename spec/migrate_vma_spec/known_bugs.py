"""The bugs that kernels and drivers had, each with the clauses that it broke: for the document, and for whoever asks a clause.

A row is a fact of the past. Which of them can be put back, and how, is the business of those who have a kernel to put them into.
A row names the clauses that the fault itself breaks, not those that break as a consequence.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class KnownBug:
    """One bug. `commit` mended it, or is what the mails call the change."""

    id: str
    commit: str
    year: int
    title: str
    clauses: tuple[str, ...]


KNOWN_BUGS: tuple[KnownBug, ...] = (
    KnownBug("B01", "16ce101db85d", 2022, "the driver is called for a page that nothing holds (CVE-2022-3523)", ("C41", "C50")),
    KnownBug("B02", "nouveau: Fix migrate_to_ram() for faulting page", 2022, "nouveau passes no fault_page", ("C29",)),
    KnownBug("B03", "4a955bed882e", 2022, "the result of migrate_to_ram is dropped", ("C80",)),
    KnownBug("B04", "mm/memory: fix failure to unmap pte on highmem", 2023, "a loser forgets pte_unmap", ("C37",)),
    KnownBug("B05", "1afaeb8293c9", 2025, "every CPU that faults holds a reference while it tries", ("C84",)),
    KnownBug("B06", "ffa65753c431", 2021, "those that wait for a migration hold a reference", ("C83",)),
    KnownBug("B07", "v1 and v2 of 1afaeb8293c9", 2024, "the page is put before it is unlocked", ("C36",)),
    KnownBug("B08", "a69d1ab971a6", 2026, "the loser of the page lock spins, and its CPU's worker starves", ("C85",)),
    KnownBug("B09", "open in 7.3.4", 2026, "lru_add_drain_all runs with folios locked", ("C87",)),
    KnownBug("B11", "ef233450898f", 2022, "free device pages keep a reference", ("C43",)),
    KnownBug("B13", "60bae7370896", 2022, "the TLB is flushed after the page-table lock was dropped", ("C59",)),
    KnownBug("B14", "a3589e1d5fe3", 2022, "the cache is not flushed before an entry is cleared", ("C60",)),
    KnownBug("B15", "41cddf83d8b0", 2025, "a folio that is about to be freed goes on the LRU (CVE-2025-21861)", ("C73",)),
    KnownBug(
        "B17",
        "mm/rmap.c: avoid double faults migrating device private pages",
        2021,
        "the slow path forgets that the mapping was writable",
        ("C22", "C64"),
    ),
    KnownBug("B20", "835745a377a4", 2024, "nouveau publishes a page that was not copied (CVE-2024-50096)", ("C71",)),
    KnownBug("B21", "b3fefbb30a16", 2025, "nouveau keeps lock and reference of a device-exclusive page", ("C91",)),
    KnownBug("B23", "8a295dbbaf72", 2022, "another device's page is an error, and not faulted in", ("C90",)),
    KnownBug(
        "B24", "mm/migrate_device: Try to handle swapcache pages", 2023, "a page in the swap cache never migrates", ("C75",)
    ),
    KnownBug("B25", "mm/migrate_device: fix double unlock", 2026, "the page-table lock is dropped twice", ("C37",)),
    KnownBug("B26", "63451de16e0a", 2026, "an insert of a large folio that gives up keeps the page-table lock", ("C37",)),
    KnownBug("B27", "2c6f81d58741", 2026, "an insert of a large folio that gives up keeps its page table", ("C44",)),
    KnownBug("B28", "mails of 2025 and 2026", 2026, "a device-private entry is asked for its dirty bit", ("C63",)),
    KnownBug(
        "B31",
        "mm/migrate_device: pin large folios before splitting",
        2026,
        "a large folio is referenced after the page-table lock was dropped",
        ("C19", "C41", "C44", "C59"),
    ),
    KnownBug("B32", "flush_cache_range in v7.3", 2026, "one page's cache is flushed where a whole leaf is cleared", ("C60",)),
    KnownBug(
        "B37",
        "drm/nouveau/dmem: fix callocated underflow on large folio split",
        2026,
        "nouveau is not told of a split, and frees more than it gave",
        ("C52",),
    ),
    KnownBug("B38", "69da78e5180b", 2026, "a page is looked up from an entry that names none", ("C14",)),
    KnownBug("B40", "0620837490e0", 2025, "two devices pull one range from each other for ever", ("C86",)),
    KnownBug("B42", "a29e067bd389", 2021, "amdkfd puts the last user of an address space in a notifier", ("C89",)),
    KnownBug("B43", "1d8c0557927e", 2025, "xe's buffer object is freed before its migrator unlocks it", ("C89",)),
    KnownBug("B44", "drm/pagemap: dma-unmap pages before handling migration errors", 2026, "dst is cleared too early", ("C45",)),
    KnownBug("B45", "drm/pagemap: Fix folio allocation fallback", 2026, "a destination is used after its last put", ("C45",)),
    KnownBug("B46", "754c23238438", 2025, "device memory is used again while an old copy still runs", ("C71",)),
    KnownBug("B47", "drm/gpusvm: several fixes", 2026, "drm_gpusvm leaks references and unlocks twice", ("C44",)),
    KnownBug("B50", "lib/test_hmm.c: error paths", 2026, "finalize is left out where an allocation failed", ("C07", "C44")),
    KnownBug("B51", "powerpc: pmd_hugepage_update", 2026, "a device-private leaf is zapped as a present one", ("C55",)),
    KnownBug("B52", "5143192cd410", 2020, "setup takes the pages of any device", ("C14",)),
    KnownBug("B53", "3d321bf82c4b, ad7df764b7e1, ebdf8321eeeb", 2020, "soft-dirty and uffd-wp are lost or swapped", ("C64",)),
    KnownBug("B55", "mail of February 2021, rejected", 2021, "the check for references always succeeds", ("C46", "C47")),
    KnownBug("faults_under_its_lock", "a6283010e290", 2021, "a driver faults with the lock of its callback held", ("C38",)),
)


def bugs_of(clause: str) -> tuple[KnownBug, ...]:
    """Those that broke this clause, the oldest first."""
    return tuple(sorted((bug for bug in KNOWN_BUGS if clause in bug.clauses), key=lambda bug: (bug.year, bug.id)))
