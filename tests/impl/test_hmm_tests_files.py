"""hmm-tests.c of the kernel: files and shared memory, which the device reaches and to which nothing of it migrates."""

from __future__ import annotations

from migrate_vma_impl.mm import syscalls_files
from migrate_vma_spec.vocabulary import Errno, VmFlags
from tests.impl.hmm_stage import A, Buffer, Command, HmmStage, case, write_in_the_child

READ_ONLY, READ_WRITE = VmFlags.READ, VmFlags.READ | VmFlags.WRITE


def mmap_file(hmm: HmmStage, prot: VmFlags = READ_WRITE, *, shared: bool) -> Buffer:
    """All four pages of the file."""
    assert hmm.call(syscalls_files.mmap_file, A, 0, 4, 0, 0, prot, shared) == 0
    return Buffer(hmm, 0, 4)


def mmap_shared(hmm: HmmStage) -> Buffer:
    """MAP_SHARED | MAP_ANONYMOUS."""
    assert hmm.call(syscalls_files.mmap_shared, A, 0, 4) == 0
    return Buffer(hmm, 0, 4)


def written(hmm: HmmStage) -> list[int]:
    """A file that was written, and is on its medium alone."""
    buffer = mmap_file(hmm, shared=True)
    stored = buffer.store()
    buffer.munmap()
    hmm.forget_files()
    return stored


@case("file_read", files=1)
def test_file_read(hmm: HmmStage):
    stored = written(hmm)
    buffer = mmap_file(hmm, READ_ONLY, shared=True)
    assert buffer.cmd(Command.READ) == 0
    assert (buffer.cpages, buffer.faults, buffer.mirror) == (4, 1, stored)


@case("file_write", files=1)
def test_file_write(hmm: HmmStage):
    buffer = mmap_file(hmm, shared=True)
    assert buffer.cmd(Command.WRITE) == 0
    assert (buffer.cpages, buffer.faults) == (4, 1)
    assert buffer.load() == buffer.mirror
    buffer.munmap()
    hmm.forget_files()
    assert [hmm.contents.stored[0, index] for index in range(4)] == buffer.mirror


@case("migrate_file_private", files=1)
def test_migrate_file_private(hmm: HmmStage):
    on_file = written(hmm)
    buffer = mmap_file(hmm, shared=False)
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert (buffer.cpages, buffer.mirror) == (4, stored)
    assert [hmm.contents.stored[0, index] for index in range(4)] == on_file


@case("migrate_shared", files=1)
def test_migrate_shared(hmm: HmmStage):
    buffer = mmap_shared(hmm)
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == -Errno.ENOENT
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == -Errno.ENOENT
    assert buffer.load() == stored


@case("anon_write_child_shared", files=1)
def test_anon_write_child_shared(hmm: HmmStage):
    buffer = mmap_shared(hmm)
    stored = buffer.store()
    before, child, after = write_in_the_child(buffer)
    assert (before, child.cpages, child.faults, after) == (stored, 4, 1, child.mirror)
    assert buffer.load() == child.mirror
