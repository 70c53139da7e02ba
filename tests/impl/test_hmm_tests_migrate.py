"""hmm-tests.c of the kernel: migration of single pages between system and device memory."""

from __future__ import annotations

from tests.impl.hmm_stage import ROUNDS, A, Command, HmmStage, Variant, case


@case("open_close")
def test_open_close(hmm: HmmStage):
    assert hmm.slots[A].subscriptions == ("dev0",)


@case("migrate")
def test_migrate(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert buffer.cpages == buffer.npages
    assert buffer.mirror == stored


@case("migrate_fault")
def test_migrate_fault(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert (buffer.cpages, buffer.mirror) == (buffer.npages, stored)
    assert buffer.at(0, 2).load() == stored[:2]
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert (buffer.cpages, buffer.mirror) == (buffer.npages, stored)


@case("migrate_release")
def test_migrate_release(hmm: HmmStage):
    buffer = hmm.mmap()
    stored = buffer.store()
    assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
    assert (buffer.cpages, buffer.mirror) == (buffer.npages, stored)
    assert buffer.cmd(Command.RELEASE) == 0
    assert buffer.load() == stored


@case("migrate_multiple")
def test_migrate_multiple(hmm: HmmStage):
    for _ in range(ROUNDS):
        buffer = hmm.mmap()
        stored = buffer.store()
        assert buffer.cmd(Command.MIGRATE_TO_DEV) == 0
        assert (buffer.cpages, buffer.mirror) == (buffer.npages, stored)
        if hmm.subject.variant is Variant.COHERENT:
            assert buffer.cmd(Command.MIGRATE_TO_SYS) == 0
            assert buffer.cpages == buffer.npages
        assert buffer.load() == stored
        buffer.munmap()
