"""A counterexample as one printable word: everything that a replay needs, versioned and checked.

`mv1.BODY.SUM`: BODY is base64url of deflated JSON, SUM its CRC-32 in hex. Reading a token runs nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Any

from attrs import frozen

from migrate_vma_impl.machine.schedule import Answer, Schedule, Switch

VERSION = 1
_PREFIX = "mv"
_LIMIT = 1_000_000


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
    packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 9)
    text = base64.urlsafe_b64encode(packed).decode().rstrip("=")
    return f"{_PREFIX}{VERSION}.{text}.{zlib.crc32(text.encode()):08x}"


def decode(text: str) -> Token:
    """Raises TokenError for a token that is malformed, cut short, or of another version."""
    parts = text.strip().split(".")
    if not parts[0].startswith(_PREFIX) or not parts[0][len(_PREFIX) :].isdigit():
        raise TokenError(f"{_short(text)} is no token: a token begins with {_PREFIX}{VERSION}.")
    if parts[0] != f"{_PREFIX}{VERSION}":
        raise TokenError(f"the token is of version {parts[0][len(_PREFIX) :]}; this release reads version {VERSION}")
    if len(parts) != 3 or f"{zlib.crc32(parts[1].encode()):08x}" != parts[2]:
        raise TokenError(f"the token {_short(text)} is cut short or was changed: its check sum does not fit")
    try:
        packed = base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True)
        body = json.loads(zlib.decompressobj().decompress(packed, _LIMIT))
        return _token(body)
    except (binascii.Error, zlib.error, ValueError, TypeError, KeyError, IndexError) as error:
        raise TokenError(f"the token {_short(text)} does not hold a schedule: {error}") from error


def _token(body: list[Any]) -> Token:
    words, (steps, cycle, flat, asked) = body[:7], body[7:]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("its names are not words")
    numbers = [*flat, *([steps] if steps is not None else []), *([cycle] if cycle is not None else [])]
    if len(flat) % 3 or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("its switches are not triples of whole numbers")
    switches = tuple(Switch(*flat[place : place + 3]) for place in range(0, len(flat), 3))
    answers = tuple(Answer(int(task), str(what), int(nth), int(answer)) for task, what, nth, answer in asked)
    driver, generation, scenario, preemption, clause, fairness, patch = words
    schedule = Schedule(switches, answers, steps, cycle)
    return Token(driver, generation, scenario, preemption, clause, schedule, fairness, patch)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
