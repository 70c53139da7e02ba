"""The stage of the kernel's hmm-tests: it notices what it is there to notice."""

from __future__ import annotations

import pytest

from migrate_vma_impl.drivers.test_hmm import Dmirror
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_spec.events import CpuAccessed, FrameAdded, PageCleared, PageCopied, PageFilled, PageWritten
from tests.impl.hmm_stage import ZERO, A, B, Command, Contents, HmmStage, Subject


@pytest.fixture
def hmm():
    return HmmStage(Subject(WAITING))


def test_contents_go_where_copies_carry_them():
    contents = Contents()
    for event in (FrameAdded(1, None), FrameAdded(2, None), CpuAccessed(0, 0, 1, write=True), PageCopied(1, 2)):
        contents.see(event)
    assert contents.frames == {1: 1, 2: 1}
    contents.see(PageCleared(1))
    assert contents.frames == {1: ZERO, 2: 1}


def test_what_was_written_out_is_read_in_again():
    contents = Contents()
    for event in (FrameAdded(1, None), CpuAccessed(0, 0, 1, write=True), PageWritten(1, None, 3), FrameAdded(2, None)):
        contents.see(event)
    contents.see(PageFilled(2, None, 3))
    assert contents.frames[2] == 1


def test_memory_that_nobody_filled_is_like_nothing_else():
    contents = Contents()
    for event in (FrameAdded(1, None), FrameAdded(2, None), PageFilled(2, 0, 0)):
        contents.see(event)
    assert len({ZERO, *contents.frames.values()}) == 3


def test_a_copy_that_is_left_out_shows_in_the_data_and_breaks_the_contract(hmm, monkeypatch):
    async def clear(driver, src, dst, mm):
        """Every destination is cleared."""
        await copy(driver, [entry & 0b111111 & ~1 for entry in src], dst, mm)

    copy = Dmirror._device_alloc_and_copy
    monkeypatch.setattr(Dmirror, "_device_alloc_and_copy", clear)
    buffer = hmm.mmap(2)
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert buffer.mirror == [ZERO, ZERO] != stored
    assert "C71" in hmm.broken


def test_a_page_that_stays_in_use_shows_at_the_end(hmm):
    hmm.mmap(1).store()
    assert hmm.call(syscalls.pin, A, 0) is not None
    with pytest.raises(AssertionError):
        hmm.close()


def test_a_run_without_fault_breaks_nothing(hmm):
    buffer = hmm.mmap(2)
    buffer.store()
    hmm.fork()
    buffer.of(B).load()
    hmm.close()
    assert hmm.broken == {}


def test_an_ioctl_that_fails_leaves_the_answer_alone(hmm):
    buffer = hmm.mmap(1)
    buffer.store()
    assert buffer.cmd(Command.READ) == 0
    before = (buffer.cpages, buffer.faults, list(buffer.mirror))
    buffer.mprotect(syscalls.READ_WRITE & 0)
    assert buffer.cmd(Command.READ) < 0
    assert (buffer.cpages, buffer.faults, buffer.mirror) == before
