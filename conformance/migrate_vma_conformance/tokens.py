"""A counterexample as one printable word: everything that a replay needs, versioned and checked.

`mv1.BODY.SUM`: BODY is base64url of deflated JSON (with a dictionary), SUM its CRC-32 in hex. Reading a token runs nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import cast

from attrs import frozen

from migrate_vma_impl.machine.schedule import Answer, Schedule, Switch

VERSION = 1
_PREFIX = "mv"
_LARGEST = 1_000_000
"""Bytes of a body; one of a hundred switches has some five hundred."""
_MOST_STEPS = 100_000
"""A schedule that is longer than any search goes could make a replay run for hours."""

_COMMON = (
    b'alloc_page in migrate_to_systema page for a fork"none","weak""voluntary"unbindrefusedround-tripdrainmigrate-watched'
    b"migrate-holesmigrate-pinmigrate-devicemigrate-evictmigrate-discardmigrate-storefault-refusedfault-borrowfault-device"
    b'fault-munmapfault-discardfault-forkfault-evictfault-shortfault3fault2-forked["wide+adapted","entry-first","unreferenced",'
    b'["test_hmm+adapted","referenced","trylocked","waiting","fault2","full","C84","strong","",40,20,[1,10,2,2,10,1],[]]'
)
"""What bodies are full of, which deflate refers to. It is part of the format: another text makes another version."""

ABSENT = "<"
"""What the `patch` of a token begins with whose generation or core exists only in the program that made it."""


class TokenError(ValueError):
    """A token that cannot be read; the message says why, in a sentence."""


@frozen
class Token:
    """The subject (driver, generation, `patch` if a user's record), the scenario, how it was run, and the schedule."""

    driver: str
    generation: str
    scenario: str
    preemption: str
    clause: str
    schedule: Schedule
    fairness: str = "strong"
    patch: str = ""


def encode(token: Token) -> str:
    schedule = token.schedule
    body = [
        token.driver,
        token.generation,
        token.scenario,
        token.preemption,
        token.clause,
        token.fairness,
        token.patch,
        schedule.steps,
        schedule.cycle,
        [number for switch in schedule.switches for number in (switch.task, switch.step, switch.to)],
        [[answer.task, answer.what, answer.nth, answer.answer] for answer in schedule.answers],
    ]
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS, zdict=_COMMON)
    packed = deflate.compress(json.dumps(body, separators=(",", ":")).encode()) + deflate.flush()
    text = base64.urlsafe_b64encode(packed).decode().rstrip("=")
    return f"{_PREFIX}{VERSION}.{text}.{_sum(text)}"


def decode(text: str) -> Token:
    """The token that a word stands for.

    Raises:
        TokenError: it is malformed, cut short, changed, of another version, or larger than any token of ours.
    """
    parts = text.strip().split(".")
    version = parts[0][len(_PREFIX) :]
    if not parts[0].startswith(_PREFIX) or not (version.isascii() and version.isdigit()):
        raise TokenError(f"{_short(text)} is no token: a token begins with {_PREFIX}{VERSION}.")
    if version != str(VERSION):
        raise TokenError(f"the token is of version {version[:20]}; this release reads version {VERSION}")
    if len(parts) != 3 or not parts[1].isascii() or _sum(parts[1]) != parts[2]:
        raise TokenError(f"the token {_short(text)} is cut short or was changed: its check sum does not fit")
    try:
        return _token(json.loads(_unpacked(parts[1])))
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise TokenError(f"the token {_short(text)} does not hold a schedule: {error}") from error


def _sum(text: str) -> str:
    return f"{zlib.crc32(text.encode('ascii')):08x}"


def _unpacked(text: str) -> bytes:
    packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS, zdict=_COMMON)
    body = inflate.decompress(packed, _LARGEST)
    if inflate.unconsumed_tail or not inflate.eof or inflate.unused_data:
        raise ValueError(f"it is not one deflated text of at most {_LARGEST:,} bytes")
    return body


# ---- the body: nothing is taken for granted --------------------------------------------------------------------------


def _token(body: object) -> Token:
    items = _list(body, "its body")
    if len(items) != 11:
        raise ValueError(f"its body has {len(items)} parts; expected 11")
    driver, generation, scenario, preemption, clause, fairness, patch = (_word(item) for item in items[:7])
    steps, cycle = (None if item is None else _number(item, _MOST_STEPS) for item in items[7:9])
    flat = [_number(item, _MOST_STEPS) for item in _list(items[9], "its switches")]
    if len(flat) % 3:
        raise ValueError("its switches are not triples of whole numbers")
    switches = tuple(Switch(*flat[place : place + 3]) for place in range(0, len(flat), 3))
    answers = tuple(_answer(item) for item in _list(items[10], "its answers"))
    if cycle is not None and (steps is None or cycle >= steps):
        raise ValueError("its cycle begins behind its end")
    schedule = Schedule(switches, answers, steps, cycle)
    return Token(driver, generation, scenario, preemption, clause, schedule, fairness, patch)


def _answer(item: object) -> Answer:
    parts = _list(item, "an answer")
    if len(parts) != 4:
        raise ValueError(f"an answer has {len(parts)} parts; expected 4")
    task, nth, answer = (_number(parts[place], _MOST_STEPS) for place in (0, 2, 3))
    return Answer(task, _word(parts[1]), nth, answer)


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")  # noqa: TRY004  (of what was read, not of an argument)
    return cast("list[object]", value)


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("its names are not words")  # noqa: TRY004
    return value


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"its numbers are not whole, from 0 to {most:,}")
    return value


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")
