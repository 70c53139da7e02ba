"""The operation language and its lines: what is written is read again, and nothing else is read."""

from __future__ import annotations

import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate_vma_conformance.kernel import commands as language
from migrate_vma_conformance.kernel.building.recipe import SOURCES
from migrate_vma_conformance.kernel.commands import Advice, Execute, Kind, Load, Map, Protection, Race, Snapshot, Store, WriteFile
from migrate_vma_conformance.kernel.witness import protocol
from migrate_vma_conformance.kernel.witness.protocol import (
    COMMANDS,
    Answer,
    Fate,
    MalformedLine,
    WrongVersion,
    decode_answer,
    decode_command,
    encode_answer,
    encode_command,
    greeting,
)

SMALL = st.integers(0, 1)
"""A number that every field of a command may be."""
VALUES = {
    int: SMALL,
    str: st.text(),
    tuple[str, ...]: st.lists(st.text(), min_size=1).map(tuple),
    **{kind: st.sampled_from(kind) for kind in (Protection, Kind, Advice, language.Module)},
}


def _single(kind):
    positive = {"seconds", "milliseconds"}
    values = [
        st.integers(1, 9) if each.name in positive else VALUES[wanted]
        for each, wanted in zip(attrs.fields(kind), protocol._TYPES[kind.verb], strict=True)
    ]
    return st.builds(kind, *values)


SINGLE = st.one_of([_single(kind) for verb, kind in COMMANDS.items() if verb != Race.verb])
ANY = SINGLE | st.lists(SINGLE, min_size=1).map(lambda commands: Race(tuple(commands)))

PART = st.builds(
    Answer,
    result=st.integers(-200, 70000),
    fate=st.sampled_from(Fate),
    value=st.none() | st.integers(0, 255),
    minor=st.none() | SMALL,
    data=st.none() | st.binary(),
    text=st.none() | st.text(),
)


@given(st.integers(0, 10**9), ANY)
def test_a_command_that_is_written_is_read_again(number, command):
    assert decode_command(encode_command(number, command)) == (number, command)


@given(ANY)
def test_a_command_is_one_line_of_plain_characters(command):
    assert re.fullmatch(r"[!-~]+( [!-~]+)*", encode_command(7, command))


@given(st.integers(0, 10**9), PART, st.lists(PART))
def test_an_answer_that_is_written_is_read_again(number, answer, parts):
    whole = attrs.evolve(answer, parts=tuple(parts))
    assert decode_answer(encode_answer(number, whole)) == (number, whole)


@given(st.text())
def test_any_text_is_read_or_said_to_be_malformed(text):
    read = []
    for decode in (decode_command, decode_answer):
        try:
            read.append(decode(text))
        except MalformedLine as error:
            read.append(str(error))
    assert len(read) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "`` is no number"),
        ("load 0 1", "`load` is no number"),
        ("3 lead 0 1", "`lead` is no command"),
        ("3 load 0", "`load` takes 2 arguments, here are 1"),
        ("3 load 0 1 2", "`load` takes 2 arguments, here are 3"),
        ("3 load 0 16384", "'page' must be < 16384: 16384"),
        ("3 load zero 1", "`zero` is no number"),
        ("3 map 0 0 1 execute private", "'execute' is not a valid Protection"),
        ("3 read-file /a%2", "`/a%2` is no quoted text"),
        ("3 race load 0 1 ; race load 0 1", "`race` is no command"),
    ],
)
def test_a_line_that_is_no_command_is_told_why(line, problem):
    with pytest.raises(MalformedLine) as raised:
        decode_command(line)
    assert str(raised.value) == f"{problem}: {line!r}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3", "`` is no number"),
        ("3 ok", "`ok` is no number"),
        ("3 0 values=1", "`values=1` says nothing of an answer"),
        ("3 0 value=1 value=2", "`value` is told twice"),
        ("3 0 data=abc", "`abc` is no text of bytes in hex"),
        ("3 0 lost", "`lost` says nothing of an answer"),
        ("3 0 value=1 ;", "`;` says nothing of an answer"),
    ],
)
def test_a_line_that_is_no_answer_is_told_why(line, problem):
    with pytest.raises(MalformedLine) as raised:
        decode_answer(line)
    assert str(raised.value) == f"{problem}: {line!r}"


def test_the_lines_are_what_the_documents_show():
    lines = [
        encode_command(4, Map(0, 16, 8, Protection.READ, Kind.SHARED)),
        encode_command(5, Race((Load(0, 1), Store(1, 1, 9)))),
        encode_command(6, WriteFile("/sys/kernel/tracing/kprobe_events", "p:mv/free dmirror_devmem_free\n")),
        encode_command(7, Execute(60, ("/bin/hmm-tests", "-t", "a b"))),
        encode_answer(8, Answer(data=b"\x20\x02", cpages=2, faults=0)),
    ]
    assert lines == [
        "4 map 0 16 8 read shared",
        "5 race load 0 1 ; store 1 1 9",
        "6 write-file /sys/kernel/tracing/kprobe_events p:mv/free%20dmirror_devmem_free%0A",
        "7 execute 60 /bin/hmm-tests -t a%20b",
        "8 0 cpages=2 faults=0 data=2002",
    ]


@pytest.mark.parametrize(("kind", "numbers"), [(Load, (16, 0)), (Load, (0, -1)), (Store, (0, 0, 256)), (Snapshot, (0, 2, 0, 1))])
def test_a_command_that_no_guest_could_read_is_not_made(kind, numbers):
    with pytest.raises(ValueError, match="must be"):
        kind(*numbers)


def test_a_guest_of_another_version_is_refused():
    with pytest.raises(WrongVersion, match="speaks version 2 of the protocol, this release speaks 1: build the guest again"):
        greeting(Answer(2, text="release=7.3.4\ncpus=2\n"))


def test_a_greeting_says_who_answers():
    told = greeting(Answer(protocol.VERSION, text="release=7.3.4\ncpus=2\nswap=/dev/ram0\n"))
    assert (told.release, told.cpus, told.facts) == ("7.3.4", 2, (("swap", "/dev/ram0"),))


def test_a_greeting_that_does_not_say_it_is_malformed():
    with pytest.raises(MalformedLine, match="a greeting says `release` and `cpus`"):
        greeting(Answer(protocol.VERSION, text="release=7.3.4\n"))


# ---- the agent says the same -------------------------------------------------------------------------------------------


def _constants(header):
    found = re.findall(r"#define (\w+)\s+\(?(\d+)(?:UL << (\d+)\))?", header)
    return {name: int(number) << int(shift or 0) for name, number, shift in found}


def test_the_agent_has_the_same_numbers():
    says = _constants((SOURCES / "agent.h").read_text())
    ours = {
        "VERSION": protocol.VERSION,
        "ARENA_PAGES": language.ARENA_PAGES,
        "PROCESSES": language.PROCESSES,
        "DEVICES": language.DEVICES,
        "MOST_PAGES": language.MOST_PAGES,
    }
    assert {name: says[name] for name in ours} == ours


def test_the_agent_has_the_same_commands():
    sources = "".join(path.read_text() for path in sorted(SOURCES.glob("*.c")))
    known = set(re.findall(r'^\t\{ "([a-z-]+)", (?:"[a-z]+", )?\w+ \},$', sources, re.MULTILINE))
    assert known | {Race.verb} == set(COMMANDS)


@pytest.mark.parametrize(("table", "kind"), [("protections", Protection), ("kinds", Kind), ("advices", Advice)])
def test_the_agent_has_the_same_words(table, kind):
    found = re.search(rf"char \*const {table}\[\] = \{{(.*?)NULL \}};", (SOURCES / "wire.c").read_text(), re.DOTALL)
    assert re.findall(r'"([a-z-]+)"', found[1] if found else "") == [each.value for each in kind]
