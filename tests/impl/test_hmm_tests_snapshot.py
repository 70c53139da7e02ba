"""hmm-tests.c of the kernel: what the device sees of the page tables, exclusive access, and copy on write."""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import REFERENCED, WAITING
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.gup_grab import Foll
from migrate_vma_impl.mm.syscalls_pin import gup_test, mmap_device
from migrate_vma_spec.vocabulary import Errno, VmFlags
from tests.impl.hmm_stage import UNDER_THE_OTHER, ZERO, A, B, Buffer, Command, HmmStage, Prot, Variant, case

READ_ONLY, NO_ACCESS, READ_WRITE = VmFlags.READ, VmFlags.NONE, VmFlags.READ | VmFlags.WRITE


def patchwork(hmm: HmmStage, npages: int) -> Buffer:
    """Page 0 may not be touched, 1 is not mapped, 2 is the zero page, 3 was written and is read-only, the rest is writable."""
    buffer = hmm.mmap(npages, NO_ACCESS)
    buffer.at(1).munmap()
    buffer.at(2).mprotect(READ_ONLY)
    assert buffer.at(2).load() == [ZERO]
    buffer.at(3).mprotect(READ_WRITE)
    buffer.at(3).store()
    buffer.at(3).mprotect(READ_ONLY)
    buffer.at(4, npages - 4).mprotect(READ_WRITE)
    return buffer


@case("migrate_mixed", devices=2)
def test_migrate_mixed(hmm: HmmStage):
    forbidden = hmm.mmap(6, NO_ACCESS)
    assert forbidden.cmd(Command.MIGRATE_TO_DEV, device=1) == -Errno.EINVAL
    forbidden.at(1).munmap()
    assert forbidden.at(0, 3).cmd(Command.MIGRATE_TO_DEV, device=1) == -Errno.EINVAL
    buffer = patchwork(hmm, 6)
    written = buffer.at(4, 2).store()
    mixed = buffer.at(2, 4)
    assert mixed.cmd(Command.MIGRATE_TO_DEV, device=1) == 0
    assert (mixed.cpages, mixed.mirror[0], mixed.mirror[2:]) == (4, ZERO, written)
    assert buffer.at(5).cmd(Command.MIGRATE_TO_DEV, device=0) == -Errno.ENOENT


@case("snapshot", devices=2)
def test_snapshot(hmm: HmmStage):
    buffer = patchwork(hmm, 7)
    buffer.at(4).store()
    for page, device in ((5, 0), (6, 1)):
        there = buffer.at(page)
        assert there.cmd(Command.MIGRATE_TO_DEV, device=device) == 0
        assert there.cpages == 1
    assert buffer.cmd(Command.SNAPSHOT) == 0
    assert buffer.cpages == 7
    assert buffer.mirror[:5] == [Prot.ERROR, Prot.ERROR, Prot.ZERO | Prot.READ, Prot.READ, Prot.WRITE]
    if hmm.subject.variant is Variant.PRIVATE:
        assert buffer.mirror[5:] == [Prot.DEV_PRIVATE_LOCAL | Prot.WRITE, Prot.NONE]
    else:
        assert buffer.mirror[5:] == [Prot.DEV_COHERENT_LOCAL | Prot.WRITE, Prot.DEV_COHERENT_REMOTE | Prot.WRITE]


@case(
    "double_map",
    devices=2,
    known=frozenset({"C77"}),
    note="the migrating device keeps its entries meanwhile (C77)",
)
def test_double_map(hmm: HmmStage):
    buffer = hmm.mmap(6)
    stored = buffer.store()
    buffer.mprotect(READ_ONLY)
    for device in (0, 1):
        assert buffer.cmd(Command.READ, device=device) == 0
        assert (buffer.cpages, buffer.faults, buffer.mirror) == (6, 1, stored)
    assert buffer.cmd(Command.MIGRATE_TO_DEV, device=1) == 0
    assert buffer.cpages == 6
    assert buffer.cmd(Command.READ, device=0) == 0
    assert (buffer.cpages, buffer.faults, buffer.mirror) == (6, 1, stored)


@case("mixedmap")
def test_mixedmap(hmm: HmmStage):
    assert hmm.call(mmap_device, A, 0, 1) == 0
    buffer = Buffer(hmm, 0, 1)
    assert buffer.cmd(Command.SNAPSHOT) == 0
    assert (buffer.cpages, buffer.mirror) == (1, [Prot.READ])


# ---- exclusive access ------------------------------------------------------------------------------------------------


def made_exclusive(hmm: HmmStage) -> tuple[Buffer, list[int]]:
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.EXCLUSIVE) == 0
    assert (buffer.cpages, buffer.mirror) == (4, stored)
    return buffer, stored


def increment(buffer: Buffer) -> tuple[list[int], bool]:
    """ptr[i]++: what it found, and whether something new is found there afterwards."""
    found = buffer.load()
    return found, buffer.store() == buffer.load() != found


@case("exclusive")
def test_exclusive(hmm: HmmStage):
    buffer, stored = made_exclusive(hmm)
    assert buffer.cmd(Command.CHECK_EXCLUSIVE) == -Errno.EPERM
    assert increment(buffer) == (stored, True)
    assert buffer.cmd(Command.CHECK_EXCLUSIVE) == 0


@case("exclusive_mprotect")
def test_exclusive_mprotect(hmm: HmmStage):
    buffer, _ = made_exclusive(hmm)
    buffer.mprotect(READ_ONLY)
    assert buffer.cmd(Command.WRITE) == -Errno.EPERM


@case("exclusive_cow")
def test_exclusive_cow(hmm: HmmStage):
    buffer, stored = made_exclusive(hmm)
    hmm.fork()
    assert increment(buffer.of(B)) == (stored, True)
    assert increment(buffer) == (stored, True)


@case("hmm_cow_in_device", shared_by_fork=True, note=UNDER_THE_OTHER)
def test_hmm_cow_in_device(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert (buffer.cpages, buffer.mirror) == (4, stored)
    hmm.fork()
    changed = buffer.store()
    assert buffer.of(B).load() == stored
    hmm.exit(B)
    assert buffer.cmd(Command.SNAPSHOT) == 0
    assert (buffer.cpages, buffer.mirror) == (4, [Prot.WRITE] * 4)
    assert buffer.load() == changed


@case("hmm_gup_test", gup_fast=True)
def test_hmm_gup_test(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert (buffer.cpages, buffer.mirror) == (4, stored)
    assert hmm.call(gup_test, A, 0, 1, Foll.WRITE) == 1
    assert hmm.run(lambda: gup_test(hmm.kernel, A, 1, 2, Foll.WRITE, fast=True)) == 1
    assert hmm.run(lambda: gup_test(hmm.kernel, A, 2, 3, Foll.WRITE | Foll.PIN | Foll.LONGTERM, fast=True)) == 1
    assert hmm.call(gup_test, A, 3, 4, Foll.WRITE | Foll.PIN | Foll.LONGTERM) == 1
    assert buffer.cmd(Command.SNAPSHOT) == 0
    short = Prot.WRITE | (Prot.DEV_COHERENT_LOCAL if hmm.subject.variant is Variant.COHERENT else Prot.NONE)
    assert (buffer.cpages, buffer.mirror) == (4, [short, short, Prot.WRITE, Prot.WRITE])
    assert buffer.load() == stored


# ---- while it goes away ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@case("anon_teardown", generations=(REFERENCED, WAITING), note="the unmapping begins before each step of the device in turn")
def test_anon_teardown(hmm: HmmStage):
    seen = set()
    for steps in range(200):
        seen.add(torn_down(hmm, steps))
        if None in seen:
            break
    assert seen == {0, -Errno.EFAULT, None}


def torn_down(hmm: HmmStage, steps: int) -> int | None:
    """The device reads two pages, and the second is unmapped after so many of its steps. None when it needs fewer."""
    buffer = hmm.mmap(2)
    stored = buffer.store()
    before = len(hmm.contents.accesses)
    reader = hmm.start("device", hmm.driver.ioctl, Command.READ, A, 0, 2)
    for _ in range(steps):
        if reader.ended or not reader.step():
            break
    ended = reader.ended
    thread = hmm.start("thread", syscalls.munmap, hmm.kernel, A, 1, 2, cpu=1)
    while not (reader.ended and thread.ended):
        moved = not thread.ended and thread.step()
        assert moved or (not reader.ended and reader.step()), "both wait"
    reply = reader.result
    if not reply.ret:
        assert (reply.cpages, reply.faults) == (2, 1)
        assert hmm.contents.accesses[before:] == stored
    hmm.call(syscalls.munmap, A, 0, 1)
    return None if ended else reply.ret
