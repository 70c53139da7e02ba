"""mm->write_protect_seq: fork's word to get_user_pages_fast that it takes write permissions away (include/linux/mm_types.h).

fork gives up a page's exclusivity before it takes the write permission from the entry, so a pin that comes in between must not
count. The sequence count is a writer's flag here, and one name for each reader, which the writer removes: so nothing grows. There
is no slot for it, and no step, where Config.gup_fast is not set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.handles import Handle
from migrate_vma_impl.machine.traps import ME, Key, Outcome
from migrate_vma_impl.mm.mm_types import Mm
from migrate_vma_spec.events import WriteProtectSeqChanged, WriteProtectSeqRead

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel



@frozen(eq=False)
class WriteProtectSeq(Handle):
    """mm_struct.write_protect_seq, and the key of its slot (SeqState)."""

    mm: int


@frozen
class SeqState:
    """`readers` are the tasks that have read it and met no writer since."""

    writing: bool = False
    readers: tuple[str, ...] = ()


def slots(mms: int) -> dict[Key, Any]:
    """The slots of this file with their first values."""
    return {WriteProtectSeq(mm): SeqState() for mm in range(mms)}


def _write(seq: SeqState, mm: int, writing: bool) -> Outcome:
    return (SeqState(writing),), None, WriteProtectSeqChanged(mm, writing)


async def write_protect_seq_begin(kernel: Kernel, mm: Mm) -> None:
    """raw_write_seqcount_begin, by fork, under mmap_lock for writing."""
    if kernel.config.gup_fast:
        await traps.step(_write, WriteProtectSeq(mm.number), args=(mm.number, True))


async def write_protect_seq_end(kernel: Kernel, mm: Mm) -> None:
    if kernel.config.gup_fast:
        await traps.step(_write, WriteProtectSeq(mm.number), args=(mm.number, False))


def _try_begin(seq: SeqState, mm: int, task: str) -> Outcome:
    if seq.writing:
        return (seq,), False, WriteProtectSeqRead(mm, stale=True)
    readers = tuple(sorted({*seq.readers, task}))
    return (SeqState(seq.writing, readers),), True, WriteProtectSeqRead(mm, stale=False)


def _retry(seq: SeqState, mm: int, task: str) -> Outcome:
    stale = task not in seq.readers
    left = tuple(reader for reader in seq.readers if reader != task)
    return (SeqState(seq.writing, left),), stale, WriteProtectSeqRead(mm, stale)


async def write_protect_seq_try_begin(mm: Mm) -> bool:
    """raw_seqcount_try_begin: False while a fork is at it."""
    return bool(await traps.step(_try_begin, WriteProtectSeq(mm.number), args=(mm.number, ME)))


async def write_protect_seq_retry(mm: Mm) -> bool:
    """read_seqcount_retry: whether a fork was at it since try_begin."""
    return bool(await traps.step(_retry, WriteProtectSeq(mm.number), args=(mm.number, ME)))
