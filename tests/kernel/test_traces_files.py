"""Files that are damaged, foreign, out of order or large: a clear result, and never a wrong one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.kernel.traces.judging import judge_file, recordings
from migrate_vma_conformance.kernel.traces.lines import Line
from migrate_vma_conformance.kernel.traces.reading import WINDOW
from migrate_vma_conformance.kernel.traces.report import part_notes
from migrate_vma_conformance.kernel.traces.storms import PAGES
from migrate_vma_conformance.kernel.traces.tracks import THREADS
from migrate_vma_conformance.subject import KNOWN_GENERATIONS
from migrate_vma_conformance.verdict import Verdict
from tests.kernel.simulated import HEADER, judged_from, recorded
from tests.kernel.test_traces_judging import DEVICE, Thread

WAITING = KNOWN_GENERATIONS["waiting"]
OURS = Path(__file__).with_name("data") / "race-6.1.trace"


def check(*arguments, given=None):
    return CliRunner().invoke(cli, ["trace", "check", *map(str, arguments)], input=given)


def said(result):
    return " ".join((result.stderr + result.stdout).split())


# ---- foreign files -----------------------------------------------------------------------------------------------------

FOREIGN = {
    "a PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "it is a PDF"),
    "a binary trace.dat": (b"\x17\x08\x44tracing6\x00\x00", "`trace-cmd report FILE` prints it as text"),
    "perf.data": (b"PERFILE2h\x00\x00", "it is a binary perf.data"),
    "a program": (b"\x7fELF\x02\x01\x01", "it is a program"),
    "binary data": (b"\x01\x02\x00\x03" * 50, "line 1 holds binary data"),
    "an empty file": (b"", "it is empty"),
    "only comments": (b"# tracer: nop\n#\n", "no line of it is an event of a tracer that is known here"),
    "prose": (b"Dear all,\nplease find attached\n", "no line of it is an event of a tracer that is known here"),
    "strace": (b'openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY) = 3\n', "no line of it is an event"),
    "function_graph": (b" 0)   1.203 us    |  do_swap_page();\n", "no line of it is an event"),
    "another trace": (b"  init-1 [001] d..2. 2.5: sched_switch: prev_comm=a next_comm=b\n", "none of its 1 events is of a probe"),
    "compressed prose": (gzip.compress(b"Dear all,\n"), "no line of it is an event"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_told_in_a_paragraph(kind, tmp_path):
    content, words = FOREIGN[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    result = check(path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in said(result)
    assert str(path)[:40] in said(result).replace("- ", "")


@pytest.mark.parametrize("path", ["/nowhere/trace", "/"])
def test_a_file_that_cannot_be_read_is_told(path):
    result = check(path)
    assert result.exit_code == 2
    assert "it cannot be read" in said(result)


def test_a_large_foreign_file_is_not_read_to_its_end():
    lines = (Line(number, "nothing of ours") for number in range(1, 10**9))
    assert [found.events for found in recordings(lines, "large")] == [0]


# ---- damaged files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 30, 200])
def test_a_line_that_is_cut_off_is_left_out(missing, tmp_path):
    path = tmp_path / "cut"
    path.write_bytes(OURS.read_bytes()[:-missing])
    result = check(path)
    assert result.exit_code == 0
    assert "the file ends in the middle of line" in said(result)


def test_a_compressed_trace_is_unpacked_and_may_be_cut_off(tmp_path):
    packed = gzip.compress(OURS.read_bytes())
    whole, cut = tmp_path / "whole.gz", tmp_path / "cut.gz"
    whole.write_bytes(packed)
    cut.write_bytes(packed[: len(packed) * 3 // 4])
    assert judge_file(str(whole)).parts[0].events == judge_file(str(OURS)).parts[0].events
    result = check(cut)
    assert result.exit_code == 0
    assert "the compressed file ends in the middle" in said(result)


def test_standard_input_is_read():
    result = check("-", given=OURS.read_bytes())
    assert result.exit_code == 0
    assert "5 entries into migrate_to_ram, 3 migrations" in said(result)


def test_a_line_in_the_middle_that_is_unreadable_is_told_and_nothing_is_assumed_after_it():
    one = Thread()
    lines = [*one.whole_fault(), one.fault(), one.setup(), one.setup_ret(), "task-33 [0#@!", one.fault_ret(), *one.whole_fault()]
    found = recorded(lines, WAITING)
    assert found.juries[0].broken == {}
    assert "task-33 [0#@!" in found.notes.sentences()[0]


def test_binary_data_after_the_beginning_ends_the_reading(tmp_path):
    path = tmp_path / "half"
    path.write_bytes(OURS.read_bytes() + b"\x00\x00\n" + b"garbage\n")
    result = check(path)
    assert result.exit_code == 0
    assert "holds binary data; it and what follows are left out" in said(result)


LINES = OURS.read_text().splitlines()


@st.composite
def spoilt(draw):
    """A line of a trace with something else in the middle of it."""
    text = draw(st.sampled_from(LINES))
    first = draw(st.integers(0, len(text)))
    last = draw(st.integers(first, len(text)))
    between = draw(st.one_of(st.text(max_size=5), st.integers().map(str), st.integers().map(hex)))
    return text[:first] + between + text[last:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(LINES), spoilt(), st.text(max_size=20)), max_size=30))
def test_no_line_makes_the_reader_stumble(lines):
    numbered = [Line(at, text) for at, text in enumerate(lines, 1)]
    notes = [note for recording in recordings(numbered, "any", [WAITING]) for note in part_notes(recording)]
    assert all(isinstance(note, str) for note in notes)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_no_file_makes_the_reader_stumble(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "trace"
    path.write_bytes(content)
    assert check(path).exit_code in {0, 2, 3}


# ---- lost events -------------------------------------------------------------------------------------------------------


def test_what_was_found_since_a_cpu_last_spoke_is_withdrawn_when_it_lost_events():
    """A thread that finalized on the CPU that lost the event was not to blame for the next setup."""
    first = Thread(33, 0)
    elsewhere = Thread(40, 1, first.clock)
    lines = [*elsewhere.whole_fault(), first.setup(fp=None), first.setup_ret(fp=None), first.setup(fp=None)]
    again = [elsewhere.fault(), elsewhere.fault_ret()]
    assert judged_from([*lines, *again], WAITING) == {"C07"}
    assert judged_from([*lines, "CPU:1 [LOST 2 EVENTS]", *again], WAITING) == set()
    assert judged_from([*lines, *again, "CPU:1 [LOST 2 EVENTS]"], WAITING) == {"C07"}
    assert judged_from([*lines, "Lost 2 events", *again], WAITING) == set()


def test_what_was_withdrawn_may_be_found_again():
    one = Thread()
    broken = [one.setup(fp=None), one.setup_ret(fp=None), one.setup(fp=None)]
    again = [one.setup(fp=None), one.setup_ret(fp=None), *one.migration(fp=None)]
    assert judged_from([*one.whole_fault(), *broken, "CPU:0 [LOST 1 EVENTS]", *again], WAITING) == {"C07"}


def test_an_overwritten_buffer_is_told_and_cpus_are_not_compared():
    one = Thread()
    head = "# entries-in-buffer/entries-written: 100/900   #P:2"
    found = recorded([head, *one.whole_fault()], WAITING)
    assert "C50" not in {clause.id for clause in found.juries[0].clauses}
    assert any("800 of 900 events were overwritten" in sentence for sentence in found.notes.sentences())


# ---- order -------------------------------------------------------------------------------------------------------------


def test_buffers_of_several_cpus_are_merged_by_time():
    first = Thread(33, 0)
    other = Thread(33, 1, first.clock)
    apart = [first.fault(), other.setup(), first.setup_ret(), other.pages(), first.fin(), other.fault_ret(), first.free()]
    by_cpu = sorted(apart, key=lambda text: "[001]" in text)
    found = recorded(by_cpu, WAITING)
    assert (found.juries[0].broken, found.storms.migrations) == ({}, 1)
    assert any("were put in its order: 3" in sentence for sentence in found.notes.sentences())


def test_what_is_found_across_cpus_is_no_verdict_where_lines_had_to_be_put_in_order(tmp_path):
    first = Thread(33, 0)
    other = Thread(34, 1, first.clock)
    lines = [*first.whole_fault(), first.fault(), other.free(), first.setup(), first.setup_ret(), first.pages(), first.fin()]
    path = tmp_path / "trace"
    path.write_text("\n".join([HEADER, *sorted(lines, key=lambda text: "[001]" in text), ""]))
    verdicts = {each.clause: each for each in judge_file(str(path), [WAITING]).report.verdicts}
    assert verdicts["C50"].verdict is Verdict.INCONCLUSIVE
    assert "not exact enough" in verdicts["C50"].reason
    result = check(path, "--generation", "waiting", "--format", "json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["trace"]["parts"][0]["violations"] == []


def test_a_file_that_no_window_puts_in_order_is_inconclusive(tmp_path):
    one = Thread()
    lines = [text for _ in range(WINDOW // 3) for text in one.whole_fault()]
    path = tmp_path / "trace"
    path.write_text("\n".join([HEADER, *lines, lines[0], *lines[:7], ""]))
    result = check(path)
    assert result.exit_code == 3
    assert "is older than lines that stand" in said(result)
    assert "VIOLATED" not in result.output


# ---- large files -------------------------------------------------------------------------------------------------------


def long_trace(threads):
    """Faults of so many threads, one after the other; each on a page of its own, and each leaves a migration open."""
    clock = [1_000_000]
    for number in range(threads):
        one, pfn = Thread(1000 + number, number % 4, clock), DEVICE + number
        yield from (one.fault(pfn), one.setup(fp=pfn), one.setup_ret(fp=pfn, cpages=0, src=(0,)), one.fault_ret())
        yield from (one.setup(fp=None), one.setup_ret(fp=None))


@pytest.mark.slow
def test_what_is_remembered_does_not_grow_with_the_trace():
    threads = 2 * PAGES
    lines = (Line(number, text) for number, text in enumerate([HEADER, *long_trace(threads)], 1))
    (found,) = recordings(lines, "long", [WAITING])
    (jury,) = found.juries
    world = jury.judge.world
    assert found.events == 6 * threads
    assert jury.broken == {}
    assert (len(found.mapper.tracks), len(found.storms), len(found.window)) == (THREADS, PAGES, 0)
    assert len(world.tasks) <= THREADS
    assert len(world.frames) == 0
