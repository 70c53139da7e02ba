"""A conversation with a guest: commands go out ahead of their answers, answers come back in order.

Rules:
- So many bytes are on their way at most, so that neither side waits for the other to read first.
- Each answer must carry the number of the command that is next. What cannot be read, and what is not next, ends the conversation.
- Time is counted from one answer to the next: a long batch is no long silence.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence

from attrs import define, field

from migrate_vma_conformance.kernel.commands import Command, Execute
from migrate_vma_conformance.kernel.witness.protocol import (
    LONGEST_LINE,
    Answer,
    MalformedLine,
    decode_answer,
    encode_command,
    hello,
)

_AGAIN = 3.0
"""Seconds from one hello to the next."""
_AHEAD = 16_384
"""Bytes of commands whose answers have not come."""


class Ending(Exception):
    """The conversation is over. `__str__` says what was seen."""


class Closed(Ending):
    """The guest's end of the line is closed."""


class Silence(Ending):
    """No answer within the limit."""


class Garbled(Ending):
    """Something came that is no answer, or not the next one."""


@define
class Line:
    """One connection. `patience`: seconds from one answer to the next."""

    wire: socket.socket
    patience: float
    _number: int = field(default=0, init=False)
    _received: bytearray = field(factory=bytearray, init=False)

    def __attrs_post_init__(self) -> None:
        self.wire.setblocking(False)

    def greet(self, limit: float) -> Answer:
        """The answer to `hello`, which is said again and again: a serial line loses what comes before its other end is open.

        Raises:
            Ending: nobody answers within `limit` seconds.
        """
        end = time.monotonic() + limit
        while time.monotonic() < end:
            said = _Outgoing(iter([f"{encode_command(self._number, hello())}\n".encode()]))
            self._number += 1
            if (answer := self._heard(said, min(end, time.monotonic() + _AGAIN))) is not None:
                return answer
        raise Silence(f"no answer for {limit:g} s")

    def _heard(self, said: _Outgoing, end: float) -> Answer | None:
        """The answer to the last hello: those to earlier ones come before it, and so may noise."""
        with contextlib.suppress(Silence):
            while True:
                line = self._next(said, end, _AGAIN)
                with contextlib.suppress(MalformedLine):
                    number, answer = decode_answer(line)
                    if number == self._number - 1:
                        return answer
        return None

    def ask(self, commands: Sequence[Command]) -> Iterator[Answer]:
        """The answers, each as it comes.

        Raises:
            Ending: the conversation is over; the answers so far have been given.
        """
        first = self._number
        self._number += len(commands)
        outgoing = _Outgoing(f"{encode_command(number, command)}\n".encode() for number, command in enumerate(commands, first))
        for number, command in enumerate(commands, first):
            limit = self.patience + (command.seconds if isinstance(command, Execute) else 0)
            line = self._next(outgoing, time.monotonic() + limit, limit)
            yield _answer_to(number, line)
            outgoing.answered()

    def _next(self, outgoing: _Outgoing, end: float, limit: float) -> str:
        """The next line; sends meanwhile what may be sent."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.wire, selectors.EVENT_READ)
            searched = 0
            while (at := self._received.find(b"\n", searched)) < 0:
                if len(self._received) > LONGEST_LINE:
                    raise Garbled(f"a line of more than {LONGEST_LINE} bytes: {bytes(self._received[:80])!r}...")
                searched = len(self._received)
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if outgoing.may_send() else 0)
                selector.modify(self.wire, events)
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready:
                    raise Silence(f"no answer for {limit:g} s")
                self._exchange(ready[0][1], outgoing)
        line = self._received[:at].decode(errors="replace").rstrip("\r")
        del self._received[: at + 1]
        return line

    def _exchange(self, events: int, outgoing: _Outgoing) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                outgoing.send(self.wire)
            if events & selectors.EVENT_READ:
                came = self.wire.recv(1 << 18)
                if not came:
                    raise Closed("the line is closed")
                self._received += came
        except BlockingIOError:
            return
        except OSError as error:
            raise Closed(f"the line is closed ({error})") from error


@define
class _Outgoing:
    """Commands on their way: those to come, the rest of what is half sent, and the lengths of those that were not answered."""

    _coming: Iterator[bytes]
    _next: bytes = field(init=False)
    _part: bytes = field(default=b"", init=False)
    _lengths: deque[int] = field(factory=deque[int], init=False)
    _ahead: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._next = next(self._coming, b"")

    def may_send(self) -> bool:
        return bool(self._part) or self._may_go()

    def _may_go(self) -> bool:
        """A command longer than all that may be on its way goes alone."""
        return bool(self._next) and (not self._lengths or self._ahead + len(self._next) <= _AHEAD)

    def send(self, wire: socket.socket) -> None:
        batch = [self._part]
        while self._may_go():
            batch.append(self._next)
            self._lengths.append(len(self._next))
            self._ahead += len(self._next)
            self._next = next(self._coming, b"")
        self._part = b"".join(batch)
        self._part = self._part[wire.send(self._part) :]

    def answered(self) -> None:
        self._ahead -= self._lengths.popleft()


def _answer_to(number: int, line: str) -> Answer:
    try:
        came, answer = decode_answer(line)
    except MalformedLine as error:
        raise Garbled(str(error)) from error
    if came != number:
        raise Garbled(f"command {number} was next, the answer is to {came}: {line[:200]!r}")
    return answer
