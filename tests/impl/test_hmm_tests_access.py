"""hmm-tests.c of the kernel: the device reads and writes memory where the CPU has it."""

from __future__ import annotations

from migrate_vma_impl.mm import syscalls
from migrate_vma_spec.vocabulary import Errno, VmFlags
from tests.impl.hmm_stage import ROUNDS, UNDER_THE_OTHER, ZERO, A, Command, HmmStage, case, write_in_the_child

READ_ONLY, NO_ACCESS, READ_WRITE = VmFlags.READ, VmFlags.NONE, VmFlags.READ | VmFlags.WRITE


@case("anon_read")
def test_anon_read(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.at(2, 2).store()
    buffer.mprotect(READ_ONLY)
    assert buffer.at(1).load() == [ZERO]
    assert buffer.cmd(Command.READ) == 0
    assert (buffer.cpages, buffer.faults) == (4, 1)
    assert buffer.mirror == [ZERO, ZERO, *stored]


@case("anon_read_prot")
def test_anon_read_prot(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    buffer.mprotect(NO_ACCESS)
    assert buffer.cmd(Command.READ) == -Errno.EFAULT
    assert buffer.mirror == []
    buffer.mprotect(READ_ONLY)
    assert buffer.load() == stored


@case("anon_write")
def test_anon_write(hmm: HmmStage):
    buffer = hmm.mmap()
    assert buffer.cmd(Command.WRITE) == 0
    assert (buffer.cpages, buffer.faults) == (4, 1)
    assert buffer.load() == buffer.mirror != [ZERO] * 4


@case("anon_write_prot")
def test_anon_write_prot(hmm: HmmStage):
    buffer = hmm.mmap(prot=READ_ONLY)
    first = buffer.at(0)
    assert first.cmd(Command.READ) == 0
    assert (first.cpages, first.faults) == (1, 1)
    assert buffer.cmd(Command.WRITE) == -Errno.EPERM
    assert buffer.load() == [ZERO] * 4
    buffer.mprotect(READ_WRITE)
    assert buffer.cmd(Command.WRITE) == 0
    assert (buffer.cpages, buffer.faults) == (4, 1)
    assert buffer.load() == buffer.mirror


@case("anon_write_child")
def test_anon_write_child(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    before, child, after = write_in_the_child(buffer)
    assert (before, child.cpages, child.faults, after) == (stored, 4, 1, child.mirror)
    assert buffer.load() == stored


@case("anon_write_child", shared_by_fork=True, note=UNDER_THE_OTHER)
def test_anon_write_child_of_migrated(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert buffer.cpages == 4
    before, child, after = write_in_the_child(buffer)
    assert (before, child.cpages, child.faults, after) == (stored, 4, 1, child.mirror)
    assert buffer.load() == stored


@case("anon_read_multiple")
def test_anon_read_multiple(hmm: HmmStage):
    for _ in range(ROUNDS):
        buffer = hmm.mmap()
        stored = buffer.store()
        assert buffer.cmd(Command.READ) == 0
        assert (buffer.cpages, buffer.faults) == (4, 1)
        assert buffer.mirror == stored
        buffer.munmap()


@case("userfaultfd_read", note="a page of the process is what the handler copies, in place of 0xAB")
def test_userfaultfd_read(hmm: HmmStage):
    buffer = hmm.mmap()
    (filling,) = hmm.mmap(1, at=4).store()
    assert hmm.call(syscalls.uffd_register, A, 0, 4) == 0
    before = len(hmm.contents.accesses)
    reader = hmm.start("device", hmm.driver.ioctl, Command.READ_UNLOCKED, A, buffer.ptr, buffer.npages, cpu=1)
    while not reader.ended:
        if not reader.step():
            assert hmm.call(syscalls.uffd_serve, A, 4) == 0
    assert (reader.result.ret, reader.result.cpages) == (0, 4)
    assert hmm.contents.accesses[before:] == [filling] * 4
