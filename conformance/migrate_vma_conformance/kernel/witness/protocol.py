"""The wire between host and guest: one line for each command, one line for each answer, in the same order.

A command is `NUMBER VERB ARGUMENT...`, its answer `NUMBER RESULT NAME=VALUE...`. A race is `NUMBER race VERB ARGUMENT... ; VERB
ARGUMENT...`, its answer `NUMBER RESULT ; RESULT NAME=VALUE... ; ...`.

Rules:
- Numbers count the commands of a connection from 0, so a lost, doubled or foreign line is noticed.
- Texts are quoted with %XX, so that no line holds a blank, a semicolon or a line break that is not of the protocol. Bytes are in
  hex.
- Host and guest must say the same `VERSION`. Whatever changes what a line means makes another.
- What cannot be read raises `MalformedLine`, which shows the line.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Any, cast, get_type_hints
from urllib.parse import quote, unquote_to_bytes

import attrs
from attrs import frozen

from migrate_vma_conformance.kernel import commands as language
from migrate_vma_conformance.kernel.commands import Command, Hello, Race

VERSION = 1
"""Of the protocol; guest/agent.h says the same."""

LONGEST_LINE = 1 << 24
"""Bytes; more than that is no line of ours."""

_PLAIN = "/.,:_-+=@()<>[]{}*!?$#&|'\"~^"
"""What a quoted text shows as it is, beside letters and digits."""
_EMPTY = "%"
"""How an empty text is written."""


class MalformedLine(ValueError):
    """A line that is none of the protocol; the message says why, and shows it."""

    def __init__(self, line: str, problem: str) -> None:
        super().__init__(line, problem)
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        shown = self.line if len(self.line) <= 200 else f"{self.line[:200]}..."
        return f"{self.problem}: {shown!r}"


class Fate(enum.Enum):
    """Whether a command was carried out. `DONE` says nothing of its success: that is the answer's result."""

    DONE = "done"
    HUNG = "hung"
    """Its process did not come back within the limit."""
    GONE = "gone"
    """Its process ended while it was at it: the kernel killed it."""
    REFUSED = "refused"
    """It makes no sense to the guest (no such process, not built); the text says why."""


@frozen
class Answer:
    """What came of a command. What it does not tell is None (or empty).

    Attributes:
        result: 0, a count, or a negated errno, as the system call gave it.
        fate: whether it was carried out.
        value: the byte that was loaded or stored.
        signal: that a load or store got, with its `code` (si_code).
        data: a byte for each page.
        cpages, faults: what the module counted: pages done, device faults.
        minor: minor faults of the thread while it was at it.
        took: microseconds.
        text: of a file or a program.
        parts: of a race, one for each command.
    """

    result: int = 0
    fate: Fate = Fate.DONE
    value: int | None = None
    signal: int | None = None
    code: int | None = None
    data: bytes | None = None
    cpages: int | None = None
    faults: int | None = None
    minor: int | None = None
    took: int | None = None
    text: str | None = None
    parts: tuple[Answer, ...] = ()


# ---- commands ----------------------------------------------------------------------------------------------------------


def _concrete(kind: type[Command]) -> Iterable[type[Command]]:
    for below in kind.__subclasses__():
        if "verb" in vars(below):
            yield below
        yield from _concrete(below)


COMMANDS: dict[str, type[Command]] = {kind.verb: kind for kind in _concrete(Command) if kind.__module__ == language.__name__}
"""Every kind of command by its verb."""
_TYPES: dict[str, list[Any]] = {
    verb: [get_type_hints(kind)[each.name] for each in attrs.fields(kind)] for verb, kind in COMMANDS.items()
}


def encode_command(number: int, command: Command) -> str:
    """The line, without its end."""
    return f"{number} {_phrase(command)}"


def _phrase(command: Command) -> str:
    if isinstance(command, Race):
        return " ".join([command.verb, " ; ".join(_phrase(each) for each in command.commands)])
    values = (getattr(command, each.name) for each in attrs.fields(type(command)))
    return " ".join([command.verb, *(word for value in values for word in _words(value))])


def _words(value: object) -> list[str]:
    if isinstance(value, tuple):
        return [word for part in cast("tuple[object, ...]", value) for word in _words(part)]
    if isinstance(value, enum.Enum):
        return [str(value.value)]
    return [_quoted(value) if isinstance(value, str) else str(value)]


def decode_command(line: str) -> tuple[int, Command]:
    """The number and the command of a line.

    Raises:
        MalformedLine: it is no command.
    """
    head, _, rest = line.partition(" ")
    number = _integer(line, head)
    verb, _, others = rest.partition(" ")
    if verb == Race.verb:
        return number, Race(tuple(_command(line, part.split(" ")) for part in others.split(" ; ")))
    return number, _command(line, rest.split(" "))


def _command(line: str, words: list[str]) -> Command:
    verb, arguments = words[0], words[1:]
    if verb not in COMMANDS or verb == Race.verb:
        raise MalformedLine(line, f"`{verb}` is no command")
    types = _TYPES[verb]
    single = types[:-1] if types[-1:] == [tuple[str, ...]] else types
    values = [_read(line, wanted, word) for wanted, word in zip(single, arguments, strict=False)]
    others = arguments[len(single) :]
    if len(values) != len(single) or (others and single == types):
        raise MalformedLine(line, f"`{verb}` takes {len(single)} arguments, here are {len(arguments)}")
    if single != types:
        values.append(tuple(_unquoted(line, word) for word in others))
    try:
        return COMMANDS[verb](*values)
    except ValueError as error:
        raise MalformedLine(line, str(error.args[0] if error.args else error)) from error


def _read(line: str, wanted: type, word: str) -> object:
    if wanted is int:
        return _integer(line, word)
    if wanted is str:
        return _unquoted(line, word)
    try:
        return wanted(word)
    except ValueError as error:
        raise MalformedLine(line, str(error)) from error


# ---- answers -----------------------------------------------------------------------------------------------------------

_BARE = {Fate.HUNG.value, Fate.GONE.value, Fate.REFUSED.value}
_NUMBERS = ("value", "signal", "code", "cpages", "faults", "minor", "took")


def encode_answer(number: int, answer: Answer) -> str:
    """The line, without its end."""
    return f"{number} " + " ; ".join(_told(each) for each in (answer, *answer.parts))


def _told(answer: Answer) -> str:
    words = [str(answer.result)]
    if answer.fate is not Fate.DONE:
        words.append(answer.fate.value)
    words += [f"{name}={getattr(answer, name)}" for name in _NUMBERS if getattr(answer, name) is not None]
    if answer.data is not None:
        words.append(f"data={answer.data.hex()}")
    if answer.text is not None:
        words.append(f"text={_quoted(answer.text)}")
    return " ".join(words)


def decode_answer(line: str) -> tuple[int, Answer]:
    """The number and the answer of a line.

    Raises:
        MalformedLine: it is no answer.
    """
    head, _, rest = line.partition(" ")
    number = _integer(line, head)
    first, *parts = [_answer(line, part.split(" ")) for part in rest.split(" ; ")]
    return number, attrs.evolve(first, parts=tuple(parts))


def _answer(line: str, words: list[str]) -> Answer:
    told: dict[str, Any] = {"result": _integer(line, words[0])}
    for word in words[1:]:
        name, sign, value = word.partition("=")
        known = "fate" if not sign and word in _BARE else name
        if known in told:
            raise MalformedLine(line, f"`{known}` is told twice")
        if known == "fate" and not sign:
            told["fate"] = Fate(word)
        elif sign and name in _NUMBERS:
            told[name] = _integer(line, value)
        elif sign and name == "data":
            told[name] = _bytes(line, value)
        elif sign and name == "text":
            told[name] = _unquoted(line, value)
        else:
            raise MalformedLine(line, f"`{word}` says nothing of an answer")
    return Answer(**told)


# ---- the handshake -----------------------------------------------------------------------------------------------------


@frozen
class Greeting:
    """Who answers: the release of its kernel, how many CPUs it has, and what else it says of itself."""

    release: str
    cpus: int
    facts: tuple[tuple[str, str], ...] = ()


class WrongVersion(ValueError):
    """The guest speaks another version of the protocol: it was built by another release of this project."""

    def __init__(self, theirs: int) -> None:
        super().__init__(theirs)
        self.theirs = theirs

    def __str__(self) -> str:
        return f"the guest speaks version {self.theirs} of the protocol, this release speaks {VERSION}: build the guest again"


def hello() -> Hello:
    """The first command of a connection."""
    return Hello(VERSION)


def greeting(answer: Answer) -> Greeting:
    """Reads the answer to `hello`: its result is the version, its text `name=value` lines.

    Raises:
        WrongVersion: the guest speaks another one.
        MalformedLine: it does not say what it must.
    """
    if answer.result != VERSION:
        raise WrongVersion(answer.result)
    text = answer.text or ""
    told = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "release" not in told or not told.get("cpus", "").isdigit():
        raise MalformedLine(text, "a greeting says `release` and `cpus`")
    others = tuple((name, value) for name, value in told.items() if name not in {"release", "cpus"})
    return Greeting(told["release"], int(told["cpus"]), others)


# ---- words -------------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return quote(text, safe=_PLAIN) or _EMPTY


def _unquoted(line: str, word: str) -> str:
    if word == _EMPTY:
        return ""
    if not word or re.search(r"%(?![0-9A-Fa-f]{2})", word):
        raise MalformedLine(line, f"`{word[:40]}` is no quoted text")
    return unquote_to_bytes(word).decode(errors="replace")


def _integer(line: str, word: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", word):
        raise MalformedLine(line, f"`{word[:40]}` is no number")
    return int(word)


def _bytes(line: str, word: str) -> bytes:
    try:
        return bytes.fromhex(word)
    except ValueError as error:
        raise MalformedLine(line, f"`{word[:40]}` is no text of bytes in hex") from error
