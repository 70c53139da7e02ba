"""Tokens: what is written is read back, and everything else is refused in words, whatever was done to it."""

from __future__ import annotations

import base64
import json
import time
import zlib

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_vma_conformance import kit
from migrate_vma_conformance.errors import SubjectError, UsageError
from migrate_vma_conformance.tokens import Token, TokenError, decode, encode
from migrate_vma_conformance.verdict import Replay
from migrate_vma_impl.machine.schedule import Answer, Schedule, Switch

NUMBERS = st.integers(0, 100_000)
WORDS = st.text(max_size=20)


def schedules(numbers=NUMBERS, words=WORDS):
    parts = st.tuples(
        st.lists(st.builds(Switch, numbers, numbers, numbers), max_size=8).map(tuple),
        st.lists(st.builds(Answer, numbers, words, numbers, numbers), max_size=4).map(tuple),
        st.one_of(st.none(), st.integers(1, 2_000)),
        st.booleans(),
    )
    return parts.map(lambda p: Schedule(p[0], p[1], p[2], p[2] // 2 if p[2] is not None and p[3] else None))


TOKENS = st.builds(Token, WORDS, WORDS, WORDS, WORDS, WORDS, schedules(), WORDS, WORDS)

SOME = Token(
    "test_hmm",
    "unreferenced",
    "fault2",
    "full",
    "C41",
    Schedule((Switch(0, 0, 2), Switch(2, 9, 1)), (Answer(1, "alloc_page", 0, 1),), 40, 12),
)
WORD = encode(SOME)
BODY = [
    *("test_hmm", "unreferenced", "fault2", "full", "C41", "strong", "", 40, 12),
    [0, 0, 2, 2, 9, 1],
    [[1, "alloc_page", 0, 1]],
]
"""What WORD holds, as it is written in JSON."""


def deflated(raw, level=6):
    """As a token's body is, but for the dictionary, which a reader does not need."""
    return zlib.compress(raw, level, wbits=-zlib.MAX_WBITS)


def sealed(raw):
    """Any bytes as a token whose version and check sum are right."""
    text = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return f"mv1.{text}.{zlib.crc32(text.encode()):08x}"


def packed(body):
    return sealed(deflated(json.dumps(body).encode()))


def read(text):
    """The token, or None where it is refused: nothing else may come out."""
    try:
        return decode(text)
    except TokenError:
        return None


def illegal(token):
    """What a replay could not follow of what was read, if anything was: names are words, and numbers whole."""
    if token is None:
        return []
    names = (token.driver, token.generation, token.scenario, token.clause, token.patch)
    numbers = [number for each in token.schedule.switches for number in (each.task, each.step, each.to)]
    numbers += [number for each in token.schedule.answers for number in (each.task, each.nth, each.answer)]
    numbers += [] if token.schedule.steps is None else [token.schedule.steps]
    return [
        *(name for name in names if not isinstance(name, str)),
        *(number for number in numbers if type(number) is not int or number < 0),
        *([] if encode(decode(encode(token))) == encode(token) else [token]),
    ]


# ---- round trip ------------------------------------------------------------------------------------------------------


def test_a_body_is_json_that_anybody_can_write():
    assert read(packed(BODY)) == SOME


@pytest.mark.slow
@given(TOKENS)
def test_what_is_written_is_read_back(token):
    assert decode(encode(token)) == token


@pytest.mark.slow
@given(TOKENS)
def test_a_token_is_one_printable_word(token):
    word = encode(token)
    assert word.isascii()
    assert word.isprintable()
    assert len(word.split()) == 1


def test_a_token_may_stand_between_spaces():
    assert decode(f"  {WORD}\n") == SOME


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(len(WORD)))
def test_a_token_that_is_cut_short_is_refused(length):
    with pytest.raises(TokenError):
        decode(WORD[:length])


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
def test_a_changed_token_is_refused_or_the_same(data):
    """One character replaced, removed or put in: the check sum tells all of them."""
    place = data.draw(st.integers(0, len(WORD) - 1))
    new = data.draw(st.one_of(st.just(""), st.characters(), st.characters().map(lambda c: c + WORD[place])))
    changed = WORD[:place] + new + WORD[place + 1 :]
    assert read(changed) in {None, SOME}


@pytest.mark.slow
@given(st.integers(0, 7), st.data())
@settings(max_examples=150)
def test_a_flipped_bit_under_a_right_check_sum_is_refused_or_a_legal_schedule(bit, data):
    raw = bytearray(base64.urlsafe_b64decode(WORD.split(".")[1] + "=="))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << bit
    assert illegal(read(sealed(bytes(raw)))) == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.integers(0, len(BODY) - 1), JSON)
@settings(max_examples=150)
def test_any_other_part_under_a_right_check_sum_is_refused_or_a_legal_schedule(place, value):
    assert illegal(read(packed([*BODY[:place], value, *BODY[place + 1 :]]))) == []


@pytest.mark.slow
@given(st.one_of(JSON, st.just(BODY[:-1]), st.just([*BODY, 0])))
def test_any_other_body_is_refused(body):
    with pytest.raises(TokenError, match="does not hold a schedule"):
        decode(packed(body))


@pytest.mark.slow
@given(st.text())
def test_any_other_text_is_refused(text):
    with pytest.raises(TokenError):
        decode(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a token begins with mv1."),
        ("nonsense", "a token begins with mv1."),
        ("mv", "a token begins with mv1."),
        ("mv1", "is cut short or was changed"),
        ("mv1.", "is cut short or was changed"),
        (WORD + ".x", "is cut short or was changed"),
        (WORD.replace("mv1", "mv2"), "is of version 2; this release reads version 1"),
        (WORD.replace("mv1", "mv01"), "is of version 01; this release reads version 1"),
        (WORD.replace("mv1", "mv²"), "a token begins with mv1."),
        (f"mv{'9' * 10_000}.x", "is of version 99999999999999999999;"),
        ("mv1.\ud800.00000000", "is cut short or was changed"),
        (sealed(b""), "does not hold a schedule"),
        (sealed(b"plain"), "does not hold a schedule"),
        (sealed(deflated(b"\xff\xfe")), "does not hold a schedule"),
        (sealed(deflated(json.dumps(BODY).encode())[:-6]), "it is not one deflated text"),
        (sealed(deflated(json.dumps(BODY).encode()) + b"more"), "it is not one deflated text"),
        (sealed(deflated(b"[" * 200_000)), "does not hold a schedule"),
        (packed([*BODY[:7], 10**9, *BODY[8:]]), "from 0 to 100,000"),
        (packed([*BODY[:7], 12, 12, *BODY[9:]]), "its cycle begins behind its end"),
        (packed([*BODY[:7], None, 12, *BODY[9:]]), "its cycle begins behind its end"),
        (packed([*BODY[:9], [1, 2], BODY[10]]), "not triples"),
        (packed([*BODY[:9], [1, 2, True], BODY[10]]), "not whole"),
        (packed([*BODY[:10], [["1", "alloc_page", 0, 1]]]), "not whole"),
        (packed([*BODY[:10], [[1, 2, 0, 1]]]), "not words"),
    ],
)
def test_the_reason_is_said(text, words):
    with pytest.raises(TokenError) as refused:
        decode(text)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.slow
def test_a_body_that_swells_is_refused_before_it_does():
    bomb = sealed(deflated(b" " * 50_000_000 + json.dumps(BODY).encode(), 9))
    begin = time.monotonic()
    with pytest.raises(TokenError, match="at most 1,000,000 bytes"):
        decode(bomb)
    assert time.monotonic() - begin < 1


# ---- what a token names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scenario": "nosuch"}, "no such scenario. Expected: one of: drain, "),
        ({"clause": "C999"}, "no such clause"),
        ({"preemption": "sometimes"}, "no such preemption model. Expected: one of: full, none, voluntary"),
        ({"fairness": "unfair"}, "no such fairness"),
        ({"generation": "nosuch"}, "there is no such generation"),
        ({"driver": "nosuch"}, "it names nothing that is built in"),
        ({"driver": "no_such_module:make"}, "No module named"),
        ({"patch": "nosuch"}, "is no path"),
        ({"patch": "no_such_module:RECORD"}, "No module named"),
        ({"patch": "<mine>"}, "that only the program which made it has"),
    ],
)
def test_a_name_that_is_not_here_is_refused(change, words):
    with pytest.raises(UsageError) as refused:
        kit.replay(encode(evolve(SOME, **change)))
    assert words in str(refused.value)


def test_a_driver_without_a_variant_is_no_subject_of_a_token_that_asks_for_one():
    with pytest.raises(SubjectError, match="it has no variant"):
        kit.replay(encode(evolve(SOME, driver="wide+adapted", generation="entry-first")))


SMALL = st.integers(0, 30)


@pytest.mark.slow
@given(schedules(SMALL, st.sampled_from(["alloc_page in migrate_to_ram", "nothing"])), st.booleans())
@settings(max_examples=25)
def test_any_schedule_can_be_replayed(schedule, short):
    token = evolve(SOME, schedule=schedule, scenario="fault-short" if short else "fault2")
    replayed = kit.replay(encode(token))
    assert isinstance(replayed, Replay)
    assert schedule.steps is None or len(replayed.steps) >= replayed.first_step


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_holds_a_token_is_as_good_as_the_token(tmp_path):
    path = tmp_path / "token.txt"
    path.write_text(f"\n{WORD}\n")
    assert kit.replay(str(path)) == kit.replay(WORD)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no token"),
        (b"nothing here", "no token"),
        (b"\xff\xfe\x00", "is no text"),
        (WORD[:-3].encode(), "is cut short or was changed"),
        (f"{WORD} {encode(evolve(SOME, clause='C50'))}".encode(), "2 tokens"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path, content, words):
    path = tmp_path / "token.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        kit.replay(str(path))


@pytest.mark.parametrize("name", ["", "nosuch.txt"])
def test_a_directory_or_a_file_that_is_not_there_is_no_token(tmp_path, name):
    with pytest.raises(UsageError, match="is no token"):
        kit.replay(str(tmp_path / name))
