"""`migrate-vma kernel compare`, on guests that are cores."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.comparing import guests as compare_guests
from migrate_vma_conformance.kernel.comparing.guests import Asked
from migrate_vma_conformance.kernel.comparing.strategies import Shape
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.witness import Ended
from migrate_vma_conformance.verdict import EXIT_FINE, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_USAGE, EXIT_VIOLATED
from tests.kernel.other_kernels import CoreWitness

FEW = ["--sequences", "4", "--operations", "9", "--seed", "3"]


class Impatient(CoreWitness):
    """Somebody presses Ctrl-C during the second round trip after the settings."""

    def ask(self, commands):
        if sum(map(bool, self.batches)):
            raise KeyboardInterrupt
        return super().ask(commands)


@pytest.fixture
def booted(monkeypatch):
    """Every guest is built, and is a core; what is made of `kinds` comes in the place of the first ones."""
    made, kinds = [], []

    def witness_of(guest, module):
        made.append(kinds.pop(0)(guest.name, module) if kinds else CoreWitness(guest.name, module))
        return made[-1]

    monkeypatch.setattr(compare_guests, "witness_of", witness_of)
    monkeypatch.setattr(
        "migrate_vma_conformance.cli_compare.find_guest", lambda name, _cache: SimpleNamespace(name=name, release=f"{name}.9")
    )
    return SimpleNamespace(made=made, kinds=kinds)


def compare(*arguments):
    return CliRunner().invoke(cli, ["kernel", "compare", *arguments])


def test_guests_that_agree(booted):
    result = compare(*FEW)
    assert result.exit_code == EXIT_FINE
    assert "guest 6.1: Linux 6.1.9, module mended, seed 3" in result.stdout
    assert result.stdout.count("4 agree, 0 differ") == 2
    assert result.stderr == ""


def test_a_difference_is_told_as_a_script_with_the_answers_and_the_console(booted):
    booted.kinds.append(lambda name, module: CoreWitness(name, module, dies_of=1))
    result = compare("7.3", *FEW)
    assert result.exit_code == EXIT_VIOLATED
    assert "DIFFERS" in result.stdout
    assert "    store 0 0 1\n      kernel: ended: oops: died\n      core:   signal 11\n" in result.stdout
    assert "[ 1.0] BUG: so it ended" in result.stdout


def test_the_same_as_json(booted):
    booted.kinds.append(lambda name, module: CoreWitness(name, module, dies_of=1))
    result = compare("7.3", *FEW, "--format", "json")
    document = json.loads(result.stdout)
    (guest,) = document["guests"]
    assert document["exit"] == result.exit_code == EXIT_VIOLATED
    assert guest["differences"][0]["script"][-1] == "store 0 0 1"
    assert guest["differences"][0]["kernel"] == "ended: oops: died"
    assert (guest["guest"], guest["sequences"], guest["lost"], guest["interrupted"]) == ("7.3", 4, None, False)


@pytest.mark.slow
def test_the_defect_of_the_stock_module_is_found_and_named(booted):
    result = compare("6.1", "--sequences", "20", "--seed", "1", "--module", "stock")
    assert result.exit_code == EXIT_FINE
    assert "known device-page-mirrored" in result.stdout
    assert "reaches through a page that has no memory behind it" in result.stdout


def test_a_guest_that_is_lost_is_inconclusive_and_the_next_one_is_asked(booted):
    booted.kinds.append(lambda name, module: CoreWitness(name, module, fails=Ended(Reason.SILENT, "nobody answers", "")))
    result = compare("6.1", "7.3", *FEW)
    assert result.exit_code == EXIT_INCONCLUSIVE
    assert "lost: guest 6.1" in result.stdout
    assert "4 agree, 0 differ" in result.stdout


def test_what_was_found_before_an_interrupt_is_kept():
    witness = Impatient("7.3")
    guest = SimpleNamespace(name="7.3", release="7.3.9")
    asked = Asked(60, Shape(operations=6), seed=1)
    (outcome,) = compare_guests.compare_guests([guest], asked, lambda _: None, lambda _guest, _module: witness)
    assert outcome.interrupted
    assert outcome.tally.sequences == 50
    assert compare_guests.exit_code([outcome]) == EXIT_INTERRUPTED


# ---- scripts -------------------------------------------------------------------------------------------------------------


def test_a_script_is_run_and_every_answer_shown(booted, tmp_path):
    script = tmp_path / "script"
    script.write_text("open 0 0\nmap 0 0 2 write private\nstore 0 1 7\nread 0 0 0 2\n")
    result = compare("7.3", "--script", str(script))
    assert result.exit_code == EXIT_FINE
    assert "  read 0 0 0 2             0, cpages 2, faults 1, data 0007\n  kernel, core and model agree\n" in result.stdout


def test_a_script_that_differs(booted, tmp_path):
    booted.kinds.append(lambda name, module: CoreWitness(name, module, dies_of=7))
    script = tmp_path / "script"
    script.write_text("map 0 0 2 write private\nstore 0 1 7\nload 0 1\n")
    result = compare("7.3", "--script", str(script), "--format", "json")
    assert result.exit_code == EXIT_VIOLATED
    (guest,) = json.loads(result.stdout)["guests"]
    assert [each["kernel"] for each in guest["operations"]] == ["0", "ended: oops: died", "ended: not reached"]
    assert guest["difference"]["why"] == "the kernel answered ended: oops: died, the core 0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("open 0\n", "line 1"),
        ("map 0 0 1 write private\nadvise 0 0 1 collapse\n", "the simulated core has no"),
        (None, "cannot be read"),
    ],
)
def test_a_script_that_cannot_be_run_is_a_mistake_of_the_caller(booted, tmp_path, text, words):
    script = tmp_path / "script"
    if text is not None:
        script.write_text(text)
    result = compare("7.3", "--script", str(script))
    assert result.exit_code == EXIT_USAGE
    assert words in " ".join(result.stderr.split())


# ---- guests --------------------------------------------------------------------------------------------------------------


def test_a_guest_that_is_not_built_is_told_with_the_command_that_builds_it(tmp_path):
    result = compare("7.3", "--cache", str(tmp_path))
    assert result.exit_code == EXIT_INCONCLUSIVE
    assert "`migrate-vma kernel build 7.3` builds it" in " ".join(result.stderr.split())


def test_a_guest_that_nobody_knows(tmp_path):
    result = compare("5.4", "--cache", str(tmp_path))
    assert result.exit_code == EXIT_USAGE
    assert "`5.4`" in result.stderr


def test_stock_and_mended_are_the_modules(booted):
    compare("6.1", *FEW, "--module", "stock")
    assert booted.made[0].module is Module.STOCK
