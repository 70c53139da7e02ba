"""What a trace shows: from the probes that its first events are of, and from the fields that these have.

Rules:
- A fact is shown where a line of the first events has it. A probe that is neither met among them nor named in the header counts
  as not installed, so that a function which is not probed is never taken for one that was not called.
- Nothing is assumed of the machine: the size of a page and the place of the array of `struct page` are read off the events, or
  told by the recording, or unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from migrate_vma_conformance.kernel.traces.lines import Record
from migrate_vma_conformance.kernel.traces.probes import BY_NAME, Point
from migrate_vma_spec.vocabulary import migrate_pfn_to_pfn


class Fact(enum.Enum):
    """Something that probes can show; the value names it in a sentence."""

    SETUP = "the range at the entry of migrate_vma_setup"
    RESULT = "what migrate_vma_setup returned"
    COUNTS = "cpages and npages after setup"
    SRC_AFTER_SETUP = "src when migrate_vma_setup returned"
    PAGES = "the entry of migrate_vma_pages"
    SRC_AT_PAGES = "src at the entry of migrate_vma_pages"
    DST_AT_PAGES = "dst at the entry of migrate_vma_pages"
    SRC_AFTER_PAGES = "src when migrate_vma_pages returned"
    FINALIZE = "the entry of migrate_vma_finalize"
    SRC_AT_FINALIZE = "src at the entry of migrate_vma_finalize"
    DST_AT_FINALIZE = "dst at the entry of migrate_vma_finalize"
    FAULT_PAGE = "fault_page at the entry of migrate_vma_setup"
    FAULT_PAGE_LOCK = "the flags of the fault page"
    CALLBACK_ENTRY = "the entry of the driver's migrate_to_ram"
    CALLBACK = "the page, address, VMA and flags of the fault that migrate_to_ram is called for"
    CALLBACK_RETURN = "what migrate_to_ram returned"
    FREE = "the page that the driver's free callback gets, and its reference count"
    STRUCT_PAGES = "where the array of struct page lies"


STRUCT_PAGE = 64
"""Bytes of a struct page (x86-64)."""
_GIGABYTE = 1 << 30
_KERNEL = 1 << 63
PAGE_SIZES = (1 << 12, 1 << 14, 1 << 16)


@frozen
class Shown:
    """What is known of a recording when its first event is judged.

    `page_size` is the size of a page in bytes; `struct_pages` is where the array of struct page begins, None where that is not
    known.
    """

    facts: frozenset[Fact]
    page_size: int
    struct_pages: int | None

    def pfn(self, page: int) -> int:
        """The number of the page whose struct page is there; where that cannot be known, the address itself names it."""
        return page if self.struct_pages is None else (page - self.struct_pages) // STRUCT_PAGE


def look_at(records: Iterable[Record], told: Mapping[str, str]) -> Shown:
    """What the first events of a recording show.

    Args:
        records: these events.
        told: what the recording's header says of the machine.
    """
    first = list(records)
    base = _struct_pages(first)
    facts = {fact for record in first for fact in _facts(record)}
    installed = (BY_NAME.get(name) for name in told.get("probes", "").split(","))
    facts |= {_PROBED[point] for point in installed if point in _PROBED}
    if base is not None:
        facts.add(Fact.STRUCT_PAGES)
    return Shown(frozenset(facts), _page_size(first, told), base)


_ARRAYS = {
    Point.SETUP_RETURN: {"src": Fact.SRC_AFTER_SETUP},
    Point.PAGES: {"src": Fact.SRC_AT_PAGES, "dst": Fact.DST_AT_PAGES},
    Point.PAGES_RETURN: {"src": Fact.SRC_AFTER_PAGES},
    Point.FINALIZE: {"src": Fact.SRC_AT_FINALIZE, "dst": Fact.DST_AT_FINALIZE},
}
_ENTRIES = {Point.PAGES: Fact.PAGES, Point.FINALIZE: Fact.FINALIZE, Point.CALLBACK: Fact.CALLBACK_ENTRY}
_RESULTS = {Point.SETUP_RETURN: Fact.RESULT, Point.CALLBACK_RETURN: Fact.CALLBACK_RETURN}
_PROBED = {**_ENTRIES, **_RESULTS}
"""What is shown as soon as there is a probe."""


def _facts(record: Record) -> Iterator[Fact]:
    point, numbers = record.point, record.numbers
    if point in _ENTRIES:
        yield _ENTRIES[point]
    if point in _RESULTS and "result" in numbers:
        yield _RESULTS[point]
    if point is Point.SETUP and numbers.keys() >= {"start", "end", "flags"}:
        yield Fact.SETUP
        if "fault_page" in numbers:
            yield Fact.FAULT_PAGE
        if numbers.get("fault_page") and "page_flags" in numbers:
            yield Fact.FAULT_PAGE_LOCK
    if point in {Point.SETUP_RETURN, Point.PAGES} and numbers.keys() >= {"cpages", "npages"}:
        yield Fact.COUNTS
    if point is Point.CALLBACK and is_whole_callback(record):
        yield Fact.CALLBACK
    if point is Point.FREE and record.pointer("page") and "refs" in numbers:
        yield Fact.FREE
    for name, fact in _ARRAYS.get(point, {}).items():
        if name in record.arrays:
            yield fact


def is_whole_callback(record: Record) -> bool:
    """The entry of a migrate_to_ram of which the clauses can be told."""
    return bool(record.pointer("page") and mm_of(record)) and record.numbers.keys() >= {"address", "fault_flags"}


def mm_of(record: Record) -> int | None:
    """What stands for the address space: its own address, or that of the VMA, where the trace shows no more."""
    return record.pointer("mm") or record.pointer("vma")


def _struct_pages(records: list[Record]) -> int | None:
    """Of one page alone, the fault page and its entry in src name the same page: so where the first struct page is."""
    found = {base for record in records if (base := _base(record)) is not None}
    return found.pop() if len(found) == 1 else None


def _base(record: Record) -> int | None:
    page, src = record.pointer("fault_page"), record.arrays.get("src", ())
    pfn = migrate_pfn_to_pfn(src[0]) if src else None
    if record.point is not Point.PAGES or page is None or pfn is None or record.number("npages") != 1:
        return None
    base = page - pfn * STRUCT_PAGE
    return base if base >= _KERNEL and base % _GIGABYTE == 0 else None


def _page_size(records: list[Record], told: Mapping[str, str]) -> int:
    """Told, or the first that fits some call: npages pages from start to end."""
    if told.get("page_size", "") in [str(size) for size in PAGE_SIZES]:
        return int(told["page_size"])
    sizes: set[int] = set()
    for record in records:
        numbers = record.numbers
        if record.point is Point.PAGES and numbers.keys() >= {"start", "end", "npages"} and numbers["npages"]:
            sizes.add((numbers["end"] - numbers["start"]) // numbers["npages"])
    return next((size for size in PAGE_SIZES if size in sizes), PAGE_SIZES[0])
