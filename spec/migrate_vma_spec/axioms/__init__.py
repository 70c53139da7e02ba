"""The safety core of the contract a second time: axioms over whole traces.

Each clause judges the steps of a trace as they come, from the folded world. Here the same rules are relations of the whole trace:
sums, stretches of time that must not overlap or must lie within others, and for each read the write that it returns, found by
walking back. Nothing is shared with the clauses but the vocabulary and the events, so that a fault of one formulation is no
fault of the other: where they disagree, one of them is wrong (`migrate_vma_conformance.distrust`).

What is left out on purpose: progress, notifiers, the LRU, memory control groups, permissions and bits of entries, and the
contents of files. Only the clauses speak of those.
"""

from __future__ import annotations

from collections.abc import Sequence

from migrate_vma_spec.axioms import contents, locks, mappings, references
from migrate_vma_spec.axioms.axiom import Axiom, Violation
from migrate_vma_spec.axioms.history import history
from migrate_vma_spec.events import Step

__all__ = ["AXIOMS", "Axiom", "Violation", "judge_trace"]

AXIOMS: tuple[Axiom, ...] = (
    Axiom(
        "A-REF-SUM",
        "The count that an event carries is what its folio was allocated with, plus what was taken, less what was put.",
        references.sums,
    ),
    Axiom(
        "A-REF-HOLDERS",
        "While no page-table lock is held, a folio's count is at least the number of those that hold it: entries that map it, "
        "page cache, swap cache, batches of the LRU.",
        references.balance,
        ("C20", "C21", "C41", "C44", "C50", "C55", "C56", "C73", "C75"),
    ),
    Axiom(
        "A-REF-FREED",
        "A folio is allocated when it is free, freed once, with count 0, and after its count was 0 nobody takes a reference; a "
        "free folio is not referenced, locked, mapped or moved.",
        references.freed_once,
        ("C36", "C41", "C43", "C44", "C45", "C50", "C53", "C54", "C58", "C93"),
    ),
    Axiom(
        "A-REF-LEFT",
        "When every operation has ended and no task takes a step any more, a folio that is in use is held by something: an entry "
        "that names it, a cache, or a batch of the LRU.",
        references.nothing_left,
        ("C07", "C44", "C55"),
        ended=True,
    ),
    Axiom(
        "A-LOCK-ALONE",
        "The times for which tasks hold one lock do not overlap, unless all of them hold it for reading.",
        locks.apart,
    ),
    Axiom(
        "A-LOCK-TURNS",
        "A page-table lock or a page lock is let go once for each time that it was taken, by the task that took it.",
        locks.alternate,
        ("C28", "C31", "C36", "C37", "C44", "C45", "C58", "C91", "C93"),
    ),
    Axiom(
        "A-LOCK-KEPT",
        "A task that ends an operation holds no page-table lock and no page lock that it took in it.",
        locks.let_go,
        ("C07", "C37", "C44", "C91", "C94"),
    ),
    Axiom(
        "A-LOCK-SLEEP",
        "A task that holds a page-table lock waits for nothing: no page lock, no lock that sleeps, no wake-up.",
        locks.no_sleep,
        ("C34", "C37", "C51"),
    ),
    Axiom(
        "A-MAP-LOCKED",
        "The time for which an entry is a migration entry lies within times for which its page is locked and referenced.",
        mappings.behind_locked_pages,
        ("C44", "C58", "C75"),
        ("C58",),
    ),
    Axiom(
        "A-MAP-FOLLOWS",
        "What takes the place of a migration entry maps the page that it named, or, after that was moved, the page that it was "
        "moved to.",
        mappings.follows_the_page,
        ("C13", "C55", "C92"),
    ),
    Axiom(
        "A-MAP-MOVES",
        "At the time at which a page is moved, no entry of any address space maps it.",
        mappings.moved_when_unmapped,
        ("C56",),
        ("C56",),
    ),
    Axiom(
        "A-MAP-WRITER",
        "A page of anonymous memory that several entries map may be written through none of them.",
        mappings.one_writer,
        ("C22", "C55", "C56", "C65", "C66", "C67"),
    ),
    Axiom(
        "A-DATA-READ",
        "A load from private memory returns the last store to that virtual page, or zeroes where there was none; it returns "
        "nothing that its page frame held for another.",
        contents.reads,
        ("C17", "C71", "REF"),
    ),
)


def judge_trace(trace: Sequence[Step], *, ended: bool = False) -> tuple[Violation, ...]:
    """What breaks the axioms in a trace, by axiom and in the order of the trace.

    Args:
        trace: from the first step on, the building of the first state included.
        ended: no task takes a step any more, so that what is held now is held for ever.
    """
    relations = history(trace)
    return tuple(
        Violation(axiom.id, sentence, steps)
        for axiom in AXIOMS
        if ended or not axiom.ended
        for sentence, steps in axiom.judge(relations)
    )
