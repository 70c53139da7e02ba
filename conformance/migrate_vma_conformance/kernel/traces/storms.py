"""How often a driver's migrate_to_ram is entered for each page that it brings back: C84 in numbers.

No single trace shows that a livelock has no end, so the clause is not judged on one. What a trace does show is the storm that
such a protocol makes: N threads fault on one page, and keep each other from migrating it.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

from migrate_vma_conformance.kernel.traces.lines import Record
from migrate_vma_conformance.kernel.traces.tracks import Callback
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_VALID

PAGES = 1024
"""Pages that are remembered at once between two migrations of them."""
THREADS = 64


@define
class Episode:
    """The entries for one page, up to the one that migrates it."""

    page: int
    first: int
    began: int
    entries: int = 0
    fruitless: int = 0
    refs: int = 0
    last: int = 0
    nanoseconds: int = 0
    threads: set[int] = field(factory=set[int])

    def add(self, callback: Callback, record: Record) -> None:
        self.entries += 1
        self.fruitless += callback.migrated is False
        self.first, self.began = min(self.first, callback.lines[0].number), min(self.began, callback.time)
        self.refs = max(self.refs, callback.refs)
        self.last = record.line.number
        self.nanoseconds = max(self.nanoseconds, record.time - self.began)
        if len(self.threads) < THREADS:
            self.threads.add(record.pid)


@define
class Storms:
    """Counts. `unknown` are entries of which the trace does not tell whether they migrated anything.

    `worst` is the page that was entered for most often before it migrated.
    """

    limit: int = PAGES
    entries: int = 0
    migrations: int = 0
    fruitless: int = 0
    unknown: int = 0
    setups: int = 0
    empty: int = 0
    faults: int = 0
    worst: Episode | None = None
    _episodes: OrderedDict[int, Episode] = field(factory=OrderedDict[int, Episode])

    def __len__(self) -> int:
        return len(self._episodes)

    def faulted(self) -> None:
        """do_swap_page was entered."""
        self.faults += 1

    def saw(self, callback: Callback, record: Record) -> None:
        """A line of the callback that may show its page."""
        callback.page = callback.page or record.pointer("fault_page")
        callback.refs = max(callback.refs, record.number("refs") or 0)

    def finalized(self, callback: Callback | None, record: Record) -> None:
        """A migration in a callback is about to end: whether it moved anything."""
        if callback is None or callback.migrated:
            return
        src, dst = record.arrays.get("src"), record.arrays.get("dst")
        if record.number("cpages") == 0:
            return
        if src is None or dst is None:
            callback.migrated = None
            return
        given = zip(src, dst, strict=False)
        moved = any(entry & MIGRATE_PFN_MIGRATE and to & MIGRATE_PFN_VALID for entry, to in given)
        whole = len(src) >= (record.number("npages") or 0)
        callback.migrated = True if moved else False if whole else None

    def ended(self, callback: Callback, record: Record) -> None:
        """The callback returned."""
        self.entries += 1
        self.setups += callback.setups
        self.empty += callback.empty
        self.migrations += callback.migrated is True
        self.fruitless += callback.migrated is False
        self.unknown += callback.migrated is None
        if callback.page is not None:
            self._count(callback.page, callback, record)

    def _count(self, page: int, callback: Callback, record: Record) -> None:
        episode = self._episodes.get(page)
        if episode is None:
            episode = self._episodes[page] = Episode(page, callback.lines[0].number, callback.time)
            if len(self._episodes) > self.limit:
                self._episodes.popitem(last=False)
        episode.add(callback, record)
        if self.worst is None or episode.entries >= self.worst.entries:
            self.worst = episode
        if callback.migrated is not False:
            self._episodes.pop(page, None)

    def forget(self) -> None:
        """Events are missing: which entries belong together is unknown."""
        self._episodes.clear()
