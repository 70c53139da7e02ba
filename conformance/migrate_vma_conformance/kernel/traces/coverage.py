"""Which clauses a trace of probes can be judged by, and why not by the others.

Rules:
- The predicates are the contract's own. Here stands only what each of them must be shown to be right: a predicate that would take
  what no probe shows for absent (a lock that nobody was seen to take) is not asked.
- A clause that is not named here is not judged: whoever adds one says first what it needs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from attrs import frozen

from migrate_vma_conformance.kernel.traces.shown import Fact
from migrate_vma_spec.registry import Clause
from migrate_vma_spec.vocabulary import Capability

_CALL = {Fact.SETUP, Fact.RESULT}


@frozen
class Need:
    """What must be shown for a clause to be judged; `part` says what of it stays open all the same.

    `unless`: with these capabilities it speaks of something that no probe shows.
    """

    facts: frozenset[Fact]
    part: str = ""
    unless: frozenset[Capability] = frozenset()


def _need(*facts: Fact, part: str = "", unless: Iterable[Capability] = ()) -> Need:
    return Need(frozenset(facts), part, frozenset(unless))


JUDGED: Mapping[str, Need] = MappingProxyType({
    "C03": _need(*_CALL, Fact.COUNTS),
    "C06": _need(*_CALL, part="what it keeps after an error is not shown"),
    "C07": _need(*_CALL, Fact.PAGES, Fact.FINALIZE),
    "C08": _need(*_CALL, Fact.PAGES, Fact.FINALIZE, Fact.DST_AT_FINALIZE),
    "C10": _need(*_CALL, Fact.COUNTS, Fact.SRC_AFTER_SETUP),
    "C11": _need(*_CALL, Fact.COUNTS),
    "C12": _need(*_CALL, Fact.SRC_AFTER_SETUP, Fact.SRC_AT_PAGES, unless={Capability.REFILL}),
    "C13": _need(*_CALL, Fact.DST_AT_PAGES, Fact.DST_AT_FINALIZE),
    "C21": _need(*_CALL, Fact.SRC_AFTER_SETUP, part="how pages that were not taken are restored is not shown"),
    "C24": _need(*_CALL, Fact.SRC_AFTER_SETUP, part="how large a folio is, is not shown"),
    "C26": _need(*_CALL, Fact.SRC_AT_PAGES, Fact.DST_AT_PAGES, part="how large a folio is, is not shown"),
    "C29": _need(*_CALL, Fact.FAULT_PAGE, Fact.CALLBACK, Fact.CALLBACK_RETURN),
    "C30": _need(*_CALL, Fact.FAULT_PAGE_LOCK, part="of its lock alone: what kind of memory it is, is not shown"),
    "C33": _need(*_CALL, Fact.CALLBACK, Fact.CALLBACK_RETURN, Fact.DST_AT_PAGES, Fact.STRUCT_PAGES),
    "C43": _need(Fact.FREE, part="of pages that are freed alone"),
    "C48": _need(*_CALL, Fact.SRC_AT_PAGES, Fact.SRC_AFTER_PAGES, Fact.SRC_AT_FINALIZE),
    "C50": _need(Fact.CALLBACK, Fact.CALLBACK_RETURN, Fact.FREE),
})  # fmt: skip
"""The clauses that probes at the calls, the callback and the free callback can decide."""

ACROSS_CPUS = frozenset({"C50"})
"""Clauses that compare what two CPUs did: their lines must have been put in order by the tracer itself."""


class Reason(enum.Enum):
    """Why probes at the calls cannot decide a clause."""

    LOCKS = "which locks a thread holds (mmap_lock, the page-table lock, page locks, a driver's own) is not shown"
    REFERENCES = "who takes and drops references to a page, and how often it is mapped, is not shown"
    TABLES = "what page tables and TLBs hold is not shown"
    MEMORY = "the VMAs of an address space, and what kind of memory a page is, are not shown"
    CONTENTS = "what pages contain, and when they are copied, cleared, charged or put on a list, is not shown"
    DEVICE = "what the driver does outside of these calls (its page tables, notifiers, own data, device_range) is not shown"
    PROGRESS = "progress is judged on the cycles of a whole state graph, and a trace has an end; its storms are told in numbers"
    REFERENCE = "the reference model follows every step, and a trace shows a few"
    RARE = "it compares arrays as large as the call with what the library was given, and they are shown as far as the call goes"


_CHAPTERS = {
    "calling": Reason.LOCKS,
    "collecting": Reason.MEMORY,
    "entries": Reason.REFERENCES,
    "large": Reason.TABLES,
    "locks": Reason.LOCKS,
    "references": Reason.REFERENCES,
    "counting": Reason.REFERENCES,
    "lifetimes": Reason.DEVICE,
    "page_tables": Reason.TABLES,
    "bits": Reason.TABLES,
    "contents": Reason.CONTENTS,
    "walkers": Reason.TABLES,
    "notifiers": Reason.DEVICE,
    "alternative": Reason.LOCKS,
}

_OTHERWISE = {
    "C02": Reason.MEMORY,
    "C04": Reason.RARE,
    "C05": Reason.RARE,
    "C09": Reason.REFERENCES,
    "C15": Reason.DEVICE,
    "C16": Reason.TABLES,
    "C17": Reason.CONTENTS,
    "C22": Reason.TABLES,
    "C23": Reason.DEVICE,
    "C49": Reason.DEVICE,
    "C53": Reason.CONTENTS,
    "C54": Reason.REFERENCES,
    "C80": Reason.LOCKS,
    "C81": Reason.TABLES,
    "C83": Reason.REFERENCES,
    "C87": Reason.LOCKS,
    "C92": Reason.DEVICE,
}


def reason(clause: Clause) -> Reason:
    """Why a clause that is not in `JUDGED` is not judged."""
    if clause.progress is not None:
        return Reason.PROGRESS
    return _OTHERWISE.get(clause.id) or _CHAPTERS.get(clause.chapter.rpartition(".")[2], Reason.REFERENCE)


def lacking(clause: Clause, facts: frozenset[Fact], capabilities: frozenset[Capability]) -> str:
    """Why a trace that shows these facts cannot be judged by a clause; empty if it can."""
    need = JUDGED.get(clause.id)
    if need is None:
        return reason(clause).value
    if need.unless & capabilities:
        return Reason.DEVICE.value
    missing = [fact.value for fact in Fact if fact in need.facts - facts]
    return f"no line shows {'; nor '.join(missing)}" if missing else ""
