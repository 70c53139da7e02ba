"""A process that speaks the protocol as a guest does, and misbehaves where it is told to: `fake_guest.py WIRE CONSOLE [MOOD]`.

What it is told with: `ReadFile` of one of the paths below. A mood is how it behaves before its greeting.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from migrate_vma_conformance.kernel.commands import Command, Hello, Load, Race, ReadFile, Reset, Store
from migrate_vma_conformance.kernel.witness.protocol import VERSION, Answer, Fate, decode_command, encode_answer

OOPS = """[    1.602941] BUG: unable to handle page fault for address: ff1100fcffffe000
[    1.604015] CPU: 0 PID: 36 Comm: init Not tainted 6.1.192 #1
[    1.604308] RIP: 0010:dmirror_do_read+0x8d/0x100 [test_hmm]
[    1.606259] Kernel panic - not syncing: Fatal exception
"""

WAITING_FOR_EVER = 3600.0


class Guest:
    def __init__(self, wire: socket.socket, console: Path, mood: str) -> None:
        self.wire = wire
        self.console = console
        self.mood = mood
        self.bytes: dict[int, int] = {}

    def serve(self) -> None:
        for line in self.wire.makefile("r"):
            number, command = decode_command(line.rstrip("\n"))
            if self.mood == "deaf" and number == 0:
                continue
            if self.mood == "noisy" and number == 0:
                self.send("0 hello 1\nlo 1\n0 0 what")
            if isinstance(command, ReadFile):
                self.misbehave(command.path, number)
            else:
                self.send(encode_answer(number, self.answer(command)))

    def answer(self, command: Command) -> Answer:
        match command:
            case Hello():
                return Answer(VERSION + (self.mood == "other-version"), text="release=6.0-fake\ncpus=2\nswap=none\n")
            case Reset():
                self.bytes.clear()
                return Answer()
            case Load(_, page):
                return Answer(value=self.bytes.get(page, 0), minor=0)
            case Store(_, page, value):
                self.bytes[page] = value
                return Answer(value=value, minor=1)
            case Race(commands):
                return Answer(parts=tuple(self.answer(each) for each in commands))
            case _:
                return Answer(fate=Fate.REFUSED, text="a fake guest has no memory")

    def misbehave(self, path: str, number: int) -> None:
        match path:
            case "die":
                os._exit(0)
            case "oops":
                self.console.write_text(OOPS)
                os._exit(0)
            case "hang":
                time.sleep(WAITING_FOR_EVER)
            case "garble":
                self.send("\x00\xff what is this")
            case "skip":
                self.send(encode_answer(number + 1, Answer()))
            case "flood":
                while True:
                    self.wire.sendall(b"x" * 65536)
            case "large":
                self.send(encode_answer(number, Answer(text="y" * 300_000)))
            case _:
                self.send(encode_answer(number, Answer(-2, text="")))

    def send(self, line: str) -> None:
        self.wire.sendall(f"{line}\n".encode("latin-1"))


def main(wire: str, console: str, mood: str = "") -> None:
    if mood == "absent":
        sys.exit("the fake machine does not want to")
    Path(console).write_text("[    0.000000] a fake kernel\n")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(wire)
        if mood == "mute":
            time.sleep(WAITING_FOR_EVER)
        Guest(connection, Path(console), mood).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
