"""What the document says of clauses beyond their sentences: since when, why two stand beside each other, what a chapter is for.

Data alone. Who judges reads none of it.
"""

from __future__ import annotations

ALWAYS = "the library as such (v4.14)"
FROM_ZERO = "counts of device pages that begin at 0 (v5.18)"
FAULT_PAGE = "the fault page that its handler references (v6.1)"
FAULT_LOCK = "the fault page that its handler locks (v6.15)"
OWNERS = "the owners of pages, and selecting by them (v5.8)"
LARGE = "large device-private folios (v6.19)"
PROPOSED = "the proposal to hand the fault page over, never merged"

SINCE: dict[str, str] = {
    **dict.fromkeys(["C09", "C19", "C48"], FROM_ZERO),
    **dict.fromkeys(["C29", "C41", "C46", "C50"], FAULT_PAGE),
    **dict.fromkeys(["C31", "C33", "C36"], FAULT_LOCK),
    **dict.fromkeys(["C14", "C15", "C76", "C77"], OWNERS),
    **dict.fromkeys(["C24", "C25", "C26", "C27", "C32", "C52", "C53"], LARGE),
    **dict.fromkeys(["C92", "C93", "C94"], PROPOSED),
    "C23": "eviction by frame numbers (v6.1)",
    "C30": f"{FAULT_PAGE}; that it must be locked: {FAULT_LOCK}",
    "C40": "faults under the lock of one VMA (v6.5)",
    "C42": "device pages that hold a reference to their pgmap (v6.1)",
    "C43": f"{FROM_ZERO}; taken out by zone_device_page_init alone: v6.1",
    "C54": "drm_pagemap's retired pages (v7.2); the core has no name for them",
    "C59": "the library as such; kept since v6.1",
    "C60": "the library as such; kept since v6.1",
    "C61": "the library as such; kept since v6.1",
    "C62": "the end of the accident that made every writable device entry dirty (v7.2)",
    "C63": "the library as such; kept since v7.2",
    "C64": "the library as such; kept, bit by bit, from v5.8 to v6.0",
    "C65": "the library as such; kept since v6.2",
    "C66": "pages that say whether they are exclusive to one process (v5.19)",
    "C73": "the library as such; kept since v6.14",
    "C75": "destinations for pages of the swap cache (v6.5)",
    "C80": "the library as such; kept since v6.1",
    "C82": "waiters without a reference (v5.17); of locked device pages: v7.0, and stable kernels from v6.15",
    "C83": "waiters without a reference (v5.17)",
    "C84": "the page lock in do_swap_page (v6.15)",
    "C85": "losers that wait (v7.0, and stable kernels from v6.15); for a leaf of the middle level no kernel yet",
    "C86": "no mechanism: an open question to drivers",
    "C87": "no mechanism: open in v7.3",
    "C88": "eviction by frame numbers (v6.1)",
    "C90": "owners in hmm_range_fault; kept since v6.0",
    "C91": "device-exclusive entries",
}
"""The mechanism with which a clause came to mean something; ALWAYS where it is not here."""

BESIDE: dict[frozenset[str], str] = {
    frozenset({"C07", "C44"}): (
        "C07 blames the driver that left out a call; C44 finds the lock and the reference that stay, whoever kept them, "
        "and also where all calls were made."
    ),
    frozenset({"C17", "C71"}): (
        "C17 speaks when the driver hands over a page that was not cleared; C71 when somebody reads what was in it, "
        "which may be never, and of every other content as well."
    ),
    frozenset({"C19", "C58"}): (
        "C19 looks at what setup returns, migration entries or none; C58 at the time for which an entry stands, whoever "
        "holds the page."
    ),
    frozenset({"C21", "C58"}): (
        "C21 is about the page that setup gives up, entry or none; C58 about any entry, at any time."
    ),
    frozenset({"C27", "C54"}): (
        "A source that is named twice by a split migrates twice: C27 says where that came from."
    ),
    frozenset({"C31", "C44"}): (
        "C31 forbids the library an unlock that would balance, had it been the library's to make."
    ),
    frozenset({"C36", "C44"}): (
        "C36 is about the order of two steps that are both due; C44 only counts them."
    ),
    frozenset({"C41", "C50"}): (
        "C41 demands a reference; C50 that the page lives. A page that another still references lives by luck where C41 "
        "is broken, and a reference that somebody puts twice breaks C50 alone."
    ),
    frozenset({"C46", "C47"}): (
        "C47 is the check after unmap, which may be lax by one; C46 is the exact one, at the moment of the move. A "
        "reference that is taken between the two is C46's alone."
    ),
    frozenset({"C44", "C82"}): (
        "C44 finds the lock that is kept when the operation ends; C82 those who sleep for it, also where the operation "
        "never ends."
    ),
    frozenset({"C37", "C82"}): (
        "The same of the page-table lock: C37 names the path that kept it, C82 whoever waits."
    ),
    frozenset({"C55", "C57"}): (
        "C55 is about what takes the place of an entry, C57 about entries whose place nothing takes."
    ),
    frozenset({"C57", "C58"}): (
        "C57 is finalize's duty, and is judged when finalize returns; C58 holds at every step, and also where finalize "
        "is never called."
    ),
    frozenset({"C61", "C62"}): (
        "The same loss of data by the core, which drops a bit of an entry, and by a driver, whose device sets no bit."
    ),
    frozenset({"C65", "C67"}): (
        "Both end in a page that two processes may write. C65 is the migration's part in that, C67 fork's."
    ),
    frozenset({"C71", "C77"}): (
        "C77 forbids the copy of a page that a device can still write; C71 finds the store that was lost, if there was "
        "one."
    ),
    frozenset({"C79", "C84"}): (
        "C79 is one CPU's fault that gets nowhere alone, C84 that of several which undo each other's work."
    ),
    frozenset({"C84", "C85"}): (
        "In C84 everybody runs and nobody gets on; in C85 one runs, and keeps from running who would let it."
    ),
    frozenset({"C85", "C87"}): (
        "Two sides of one starvation, either of which is enough to end it: the loser that spins, and the holder that "
        "needs the loser's CPU."
    ),
    frozenset({"C92", "C94"}): (
        "C92 is about the entry that the driver writes, C94 about the page of one that it does not."
    ),
}
"""Clauses that one fault often breaks together, and what each of them says that the other does not."""

BACKGROUND: dict[str, str] = {
    "calling": """\
A driver moves pages in three calls. `migrate_vma_setup` walks a range, takes the pages that it finds out of the page tables
and puts migration entries there; the driver allocates destinations and copies; `migrate_vma_pages` moves what the kernel
keeps of a page, and `migrate_vma_finalize` maps the destinations, or what could not move. Between the calls the arrays `src`
and `dst` are all that the library and the driver know of each other, and mmap_lock is what keeps the range from changing
under them.""",
    "collecting": """\
The walk decides page by page: by where the page is (system memory, or the device that owns it), by what the caller selected,
and by what an empty entry means in this mapping. Nobody looks at the page tables again to find out what was meant, so the
counts and entries that setup returns must be exactly what the walk found.""",
    "entries": """\
An entry of `src` is a frame number and flags. For the driver it is a promise: this page is locked, referenced and mapped
nowhere, so its content stands still and can be copied. For the library it is a debt: what the entry names must be restored or
replaced.""",
    "locks": """\
The page lock of a source is what a migration entry means to everybody else: who meets one waits for that lock. It is taken in
the middle of a page-table walk, where nothing may sleep, so it is only ever tried there; and since v6.15 the fault handler
holds it before the driver is called, so that of several CPUs that fault one page exactly one migrates it.""",
    "references": """\
A device page has no other owner than its references: when the last one is put, the driver's callback takes it back, and its
pgmap may go. Each mapping has one, the library has one for each entry of `src`, the fault handler has one for vmf->page while
the driver works on it.""",
    "counting": """\
A page can be moved only if nobody else uses it, and the kernel knows that from the count alone: it must be what mappings,
caches and the migration itself account for. Setup looks once, and may be lax; pages() decides. A driver that believes the
first look maps pages that finalize gives back.""",
    "large": """\
Since v6.19 a device-private folio can be as large as a leaf of the middle level maps. One entry then stands for all its
pages, and each party may be unable to handle it whole: the range may be too short, the driver may have no destination as
large, another process may have unmapped a part. So it is split, at three different places, and each split must leave every
part with its lock, its reference and its data in order.""",
    "lifetimes": """\
Three things outlive the call that made them: a page whose content has left it and which still has a reference, a page that a
device has borrowed for atomic access, and the driver's own objects behind its pages. What may still be done with them is the
subject here.""",
    "page_tables": """\
While a page moves, every process that maps it must see the old page, or wait, or see the new one. The reverse map finds all
those mappings; the migration entries that take their places carry what is needed to put them back.""",
    "bits": """\
An entry is more than an address: it may be writable, young, dirty, soft-dirty, guarded by a userfaultfd, and its page may
belong to one process alone. A migration entry and a device-private entry have room for some of that. What has no room must
have been saved in the folio before.""",
    "walkers": """\
Fork, munmap, madvise and userfaultfd walk the same page tables meanwhile, and a hole that setup found may be filled when
pages() comes to it. They do not wait for a migration; it must cope with what they did.""",
    "contents": """\
What a program sees of all this is the memory. A load must find the last store, whichever copy of the page it was made to, and
nothing that a frame held for somebody else.""",
    "notifiers": """\
A device that maps a process's memory hears of changes from MMU notifiers, before they are made; it may ignore those of its
own migrations, and then has that work itself. And a fault must lead somewhere: to the page, to an error, or to a wait that
ends. Who is not let on in a state graph can be told from who merely waits.""",
    "alternative": """\
In September 2024 it was proposed that do_swap_page install the migration entry itself and hand the page over, which does away
with `fault_page` and its special cases. No kernel does so. The clauses here are what such a kernel and its drivers would owe
each other; whether it would be enough is discussed in docs/findings.""",
}
"""What a chapter's mechanism is for, by the name of its module."""


def since(clause: str) -> str:
    """The mechanism with which a clause came to mean something, and the kernel that brought it."""
    return SINCE.get(clause, ALWAYS)


def neighbours(clause: str) -> tuple[tuple[str, str], ...]:
    """(another clause that one fault often breaks with this one, why both stand)."""
    return tuple((other, why) for pair, why in BESIDE.items() if clause in pair for other in sorted(pair - {clause}))
