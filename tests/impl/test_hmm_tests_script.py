"""A script of operations on the driver's ioctls, and what real kernels (6.1.192 and 7.3.4) answered to each of its lines.

    st page byte                             a store by the CPU; `!` where it is killed
    ld page byte                             a load, and what it must find
    mp prot                                  mprotect of all: r, rw or n
    io device command page pages ...         an ioctl: its errno, cpages, device faults, and a snapshot or data if there are any

The script of the real kernels went on behind RELEASE, where the module takes a new chunk of memory for its device; here the
device is gone then.
"""

from __future__ import annotations

import pytest

from migrate_vma_impl.generations import GENERATIONS
from migrate_vma_spec.vocabulary import VmFlags
from tests.impl.hmm_stage import ZERO, A, Buffer, Command, HmmStage, Subject

SCRIPT = """
st 0 10
st 1 11
st 2 12
st 3 13
io 0 SNAP 0 8 0 8 0 0202020200000000
io 0 TODEV 0 4 0 4 0 10111213
io 0 SNAP 0 8 0 8 0 2222222200000000
io 1 SNAP 0 8 0 8 0 0000000000000000
io 0 READ 0 4 0 4 0 10111213
io 0 WRITE 0 2 0 2 0 a0a1
io 0 SNAP 0 8 0 8 0 2222222200000000
ld 0 a0
io 0 SNAP 0 8 0 8 0 0222222200000000
io 0 READ 0 4 0 4 1 a0a11213
st 0 77
io 0 READ 0 1 0 1 0 77
io 0 TOSYS 0 4 0 3 0
io 0 SNAP 0 8 0 8 0 0202020200000000
ld 0 77
io 0 READ 0 4 0 4 1 77a11213
io 0 TODEV 0 8 0 8 0 77a1121300000000
io 0 SNAP 0 8 0 8 0 2222222222222222
io 1 READ 0 2 0 2 1 77a1
io 0 SNAP 0 8 0 8 0 0202222222222222
io 1 SNAP 0 8 0 8 0 0202000000000000
io 1 TODEV 0 8 -2
io 1 SNAP 0 8 0 8 0 2222000000000000
io 0 SNAP 0 8 0 8 0 0000222222222222
io 0 TODEV 0 8 -2
io 0 TOSYS 0 8 0 6 0
io 0 EXCL 0 4 0 4 0
io 0 SNAP 0 8 0 8 0 0000000002020202
io 0 CHKEXCL 0 4 -1
ld 0 77
io 0 CHKEXCL 0 1 0 0 0
st 0 55
io 0 READ 0 4 0 4 1 55a11213
io 0 CHKEXCL 0 4 0 0 0
mp r
io 0 WRITE 0 1 -1
io 0 READ 0 1 0 1 1 55
io 0 TODEV 0 8 0 8 0 55a1121300000000
io 0 SNAP 0 8 0 8 0 2121212121212121
st 0 !
mp n
io 0 READ 0 1 -14
io 0 TODEV 0 8 -22
ld 0 !
mp rw
ld 0 55
io 0 SNAP 0 8 0 8 0 0121212121212121
io 0 TODEV 0 8 -2
io 0 RELEASE 0 8 0
io 0 SNAP 0 8 0 8 0 0101010101010101
ld 0 55
un
io 0 SNAP 0 8 0 8 0 ffffffffffffffff
io 0 READ 0 1 -14
io 0 TODEV 0 1 -22
io 0 READ 0 0 -22
"""

COMMANDS = {
    "SNAP": Command.SNAPSHOT,
    "TODEV": Command.MIGRATE_TO_DEV,
    "TOSYS": Command.MIGRATE_TO_SYS,
    "READ": Command.READ,
    "WRITE": Command.WRITE,
    "EXCL": Command.EXCLUSIVE,
    "CHKEXCL": Command.CHECK_EXCLUSIVE,
    "RELEASE": Command.RELEASE,
}
PROTECTIONS = {"r": VmFlags.READ, "rw": VmFlags.READ | VmFlags.WRITE, "n": VmFlags.NONE}


class Reader:
    """Plays the lines of a script, with the bytes of the real run for the tokens of this one."""

    def __init__(self, hmm: HmmStage) -> None:
        self.hmm, self.buffer = hmm, hmm.mmap(8)
        self.tokens = {0: ZERO}

    def play(self, line: str) -> None:
        verb, *words = line.split()
        getattr(self, verb)(*words)

    def st(self, page: str, byte: str) -> None:
        if byte == "!":
            assert self.hmm.touch(int(page), write=True) == -11
        else:
            self.tokens[int(byte, 16)] = self.hmm.access(A, int(page), write=True)

    def ld(self, page: str, byte: str) -> None:
        if byte == "!":
            assert self.hmm.touch(int(page), write=False) == -11
        else:
            assert self.hmm.access(A, int(page), write=False) == self.tokens[int(byte, 16)]

    def mp(self, prot: str) -> None:
        self.buffer.mprotect(PROTECTIONS[prot])

    def un(self) -> None:
        self.buffer.munmap()

    def io(self, device: str, word: str, page: str, pages: str, ret: str, *answer: str) -> None:
        command, buffer = COMMANDS[word], Buffer(self.hmm, int(page), int(pages))
        assert buffer.cmd(command, device=int(device)) == int(ret)
        if not answer:
            return
        cpages, faults, *data = answer
        assert (buffer.cpages, buffer.faults) == (int(cpages), int(faults))
        for shown in data:
            self.compare(command, buffer, bytes.fromhex(shown))

    def compare(self, command: Command, buffer: Buffer, shown: bytes) -> None:
        if command is Command.WRITE:
            self.tokens.update(zip(shown, buffer.mirror, strict=True))
        wanted = list(shown) if command is Command.SNAPSHOT else [self.tokens[byte] for byte in shown]
        assert [int(value) for value in buffer.mirror] == wanted


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=lambda each: each.name)
def test_the_ioctls_answer_as_real_kernels_do(generation):
    hmm = HmmStage(Subject(generation), devices=2, frames=8)
    reader = Reader(hmm)
    for line in SCRIPT.strip().splitlines():
        reader.play(line)
    hmm.close()
    # A device keeps its mirror of system pages while it takes them (C77): the module's known fault.
    assert set(hmm.broken) - hmm.subject.unreferenced == {"C77"}
