"""The terminal: colour and progress there, and neither in a pipe."""

from __future__ import annotations

import io
import re
import sys

import pytest

from migrate_vma_conformance.options import Advance, silent
from migrate_vma_conformance.terminal import complain, progress_bar, show

LINES = ["C41  VIOLATED  holds weak", "BUG: migrate_vma: C41", ":bug: [bold]not markup[/bold]", "x" * 200]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)


def without_colour(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.usefixtures("colours")
def test_a_terminal_gets_colour_around_the_same_text(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    show(LINES)
    assert "\x1b[1;31mVIOLATED\x1b[0m" in stream.getvalue()
    assert without_colour(stream.getvalue()).splitlines() == LINES


@pytest.mark.usefixtures("colours")
def test_the_commands_and_the_frame_of_a_cycle_stand_out(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    show(["also on waiting: migrate-vma replay mv1.x.0", ".-> for ever", "|102  fault", "'-> back", "a | b"])
    shown = stream.getvalue().splitlines()
    assert shown[0].startswith("also on waiting: \x1b[1mmigrate-vma replay ")
    assert [line.startswith("\x1b[36m") for line in shown] == [False, True, True, True, False]


def test_a_pipe_gets_the_text_alone(capsys):
    show(LINES)
    assert capsys.readouterr().out.splitlines() == LINES


@pytest.mark.usefixtures("colours")
def test_a_terminal_sees_progress_on_standard_error_and_it_is_gone_at_the_end(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar() as progress:
        progress(Advance("waiting", "fault-2", 3, 7))
    assert "waiting: fault-2" in stream.getvalue()
    assert "3/7" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_a_pipe_sees_no_progress(capsys):
    with progress_bar() as progress:
        progress(Advance("waiting", "fault-2", 3, 7))
    assert progress is silent
    assert capsys.readouterr().err == ""


def test_a_complaint_is_a_paragraph_on_standard_error(capsys):
    complain("one\ntwo " + "word " * 40)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("migrate-vma: one two word")
    assert max(map(len, said.err.splitlines())) <= 80
