"""Known differences: facts about versions of the kernel that the core, or the model, does not share, each with its source.

Rules:
- A record is narrow: it names its guests, and its predicate recognises one answer to one kind of operation. What it does not
  recognise is a difference.
- A sequence is compared up to its first difference. What a known one is followed by is not judged.
- docs/kernel-differences.md says the same, record by record; a test holds it to this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Advice, Command, Kind, Module
from migrate_vma_conformance.kernel.comparing.operations import Observation, Sequence
from migrate_vma_spec.vocabulary import Errno


@frozen
class Case:
    """A difference as a record sees it: the operation, those before it, and the answers."""

    guest: str
    module: Module
    sequence: Sequence
    place: int
    kernel: Observation | None
    core: Observation

    @property
    def operation(self) -> Command:
        return self.sequence[self.place]

    @property
    def before(self) -> Sequence:
        return self.sequence[: self.place]


@frozen
class Known:
    """One recorded difference.

    Attributes:
        id: a short name, never used again.
        versions: the guests that it is seen on, by the beginning of their names.
        what: what differs, in one sentence.
        source: where the kernel's source shows it: version, file, function.
        recognises: whether a difference is this one.
    """

    id: str
    versions: tuple[str, ...]
    what: str
    source: str
    recognises: Callable[[Case], bool]

    def is_of(self, case: Case) -> bool:
        return case.guest.startswith(self.versions) and self.recognises(case)


def _reads_through_device_page(case: Case) -> bool:
    ended = [seen.ended for seen in (case.kernel, case.core) if seen is not None]
    through = isinstance(case.operation, ops.DeviceRead | ops.DeviceWrite)
    return case.module is Module.STOCK and through and all(words is not None for words in ended)


def _fork_copies_nothing(case: Case) -> bool:
    """After a fork: pages that only were read are not mapped in the child, or the device of the parent still has them."""
    if case.kernel is None or not any(isinstance(each, ops.Fork) for each in case.before):
        return False
    kernel, core = case.kernel, case.core
    if isinstance(case.operation, ops.Snapshot):
        pairs = zip(kernel.data or b"", core.data or b"", strict=False)
        return all(pair in _NOT_MAPPED for pair in pairs if pair[0] != pair[1])
    spared = kernel.faults is not None and core.faults is not None and kernel.faults < core.faults
    return isinstance(case.operation, ops.DeviceRead | ops.DeviceWrite) and spared and kernel.data == core.data


_NOT_MAPPED = ((0x00, 0x11), (0x00, 0x01))
"""Nothing, in the place of the zero page or a file's own page."""

def _told_of_others_pages(case: Case) -> bool:
    """After a fork, and exclusive access of one process: a device of another one has lost what it had of the same pages."""
    process = getattr(case.operation, "process", None)
    others = any(isinstance(each, ops.Exclusive) and each.process != process for each in case.before)
    if case.kernel is None or not others or not any(isinstance(each, ops.Fork) for each in case.before):
        return False
    kernel, core = case.kernel, case.core
    if isinstance(case.operation, ops.ToDevice):
        return kernel.result == -Errno.ENOENT and core.result == 0
    more = kernel.faults is not None and core.faults is not None and kernel.faults > core.faults
    return isinstance(case.operation, ops.DeviceRead | ops.DeviceWrite) and more and kernel.data == core.data


def _split_maps_zeros(case: Case) -> bool:
    """A snapshot where large folios may be says ZERO of some pages that have a page of their own in the core."""
    asked = {getattr(each, name, None) for each in case.before for name in ("kind", "advice")}
    huge = not asked.isdisjoint({Kind.HUGE, Advice.HUGEPAGE})
    if case.kernel is None or not huge or not isinstance(case.operation, ops.Snapshot):
        return False
    pairs = set(zip(case.kernel.data or b"", case.core.data or b"", strict=False))
    return {pair for pair in pairs if pair[0] != pair[1]} <= {(0x11, 0x01), (0x11, 0x02)}


KNOWN: tuple[Known, ...] = (
    Known(
        id="device-page-mirrored",
        versions=("6.1", "7.3"),
        what=(
            "The stock module oopses where its device reads or writes a page of its own memory that it has found by a device "
            "fault, and not by its own migration."
        ),
        source=(
            "6.1.192 and 7.3.4, lib/test_hmm.c, dmirror_do_fault: the mirror gets the device-private struct page itself, and "
            "dmirror_do_read and dmirror_do_write reach through it; dmirror_migrate_finalize_and_map stores the page behind it"
        ),
        recognises=_reads_through_device_page,
    ),
    Known(
        id="fork-copies-no-pages-that-were-only-read",
        versions=("6.1", "7.3"),
        what=(
            "Fork copies nothing of a private mapping to which nobody has written, and tells no device of it. In the core every "
            "private mapping is copied, for each has its anon_vma from the start."
        ),
        source=(
            "6.1.192 and 7.3.4, mm/memory.c, vma_needs_copy: without an anon_vma, which the first write to a mapping prepares, "
            "there is nothing that faults would not fill again"
        ),
        recognises=_fork_copies_nothing,
    ),
    Known(
        id="exclusive-access-is-told-to-other-processes",
        versions=("6.1",),
        what=(
            "In 6.1 exclusive access to a page can take the entries of the same address from the devices of other processes of "
            "the same family, though these do not map the page. In the core only the processes that map it are told."
        ),
        source=(
            "6.1.192, mm/rmap.c, page_make_device_exclusive_one: the notifier is called for every VMA that the reverse map "
            "gives, before it is looked whether the VMA maps the page; which VMAs come before the one that does, is the "
            "order of their tree"
        ),
        recognises=_told_of_others_pages,
    ),
    Known(
        id="split-maps-zeros-to-the-zero-page",
        versions=("7.3",),
        what=(
            "Where 7.3 splits a large folio of the system, pages that hold zeros alone are freed, and the zero page is mapped in "
            "their place. In the core no step depends on what a page holds."
        ),
        source=(
            "7.3.4, mm/huge_memory.c, __folio_split: TTU_USE_SHARED_ZEROPAGE for anonymous memory that is no device's; "
            "mm/migrate.c, try_to_map_unused_to_zeropage"
        ),
        recognises=_split_maps_zeros,
    ),
)


def recognised(case: Case, known: Iterable[Known] = KNOWN) -> Known | None:
    """The record that this difference is."""
    return next((each for each in known if each.is_of(case)), None)
