"""`migrate-vma kernel build` and `status` as somebody types them."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.kernel.building import stages, tools
from migrate_vma_conformance.kernel.building.build import builder


def typed(box, *words):
    return CliRunner().invoke(cli, ["kernel", *words, "--cache", str(box.cache)])


def plain(text):
    return " ".join(text.split())


def test_a_build_says_what_it_made_and_where(box):
    said = typed(box, "build", "6.1")
    assert (said.exit_code, said.stderr) == (0, "")
    assert re.fullmatch(r"guest 6\.1: built in [\d.]+ s, Linux 6\.1\.0-fake, \S+/cache/6\.1\n", said.stdout)
    again = typed(box, "build", "6.1")
    assert (again.exit_code, re.sub(r"[\d.]+ s", "0 s", again.stdout)) == (0, said_nothing(box))


def said_nothing(box):
    return f"guest 6.1: nothing to do in 0 s, Linux 6.1.0-fake, {box.cache}/6.1\n"


def test_a_failed_build_is_a_paragraph_and_the_last_lines(box):
    box.fails("bzImage", "mm/memory.c:1:2: error: what is this")
    said = typed(box, "build", "6.1")
    assert (said.exit_code, said.stdout) == (3, "")
    assert plain(said.stderr).startswith("migrate-vma: guest 6.1: `make` ended with 2; its last lines follow, all of them are in")
    assert said.stderr.endswith("\n    mm/memory.c:1:2: error: what is this\n")


def test_a_missing_tool_is_a_paragraph(box):
    (box.place / "bison").unlink()
    said = typed(box, "build", "6.1")
    known = "migrate-vma: guest 6.1: bison not found; `apt-get install bison` installs what is missing."
    assert (said.exit_code, plain(said.stderr)) == (3, known)


def test_a_guest_that_nobody_knows_is_a_mistake_of_usage(box):
    said = typed(box, "build", "6.1", "5.4")
    assert said.exit_code == 2
    assert "argument GUEST `5.4`: there is no such guest" in plain(said.stderr)
    assert box.asked() == []


def test_a_cache_that_is_a_file_is_a_mistake_of_usage(box):
    box.cache.touch()
    said = typed(box, "build", "6.1")
    assert (said.exit_code, "it cannot be made or written to" in plain(said.stderr)) == (2, True)


def test_an_interruption_says_that_the_same_command_goes_on(box, monkeypatch):
    def stop(site):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "STAGES", {**stages.STAGES, "hmm-tests": stop})
    said = typed(box, "build", "6.1")
    assert said.exit_code == 130
    assert plain(said.stderr) == "migrate-vma: interrupted; what is done is kept, and the same command goes on from there."


def test_a_cache_that_another_build_has_is_told(box):
    with builder(box.cache):
        said = typed(box, "build", "6.1")
    assert (said.exit_code, "another build works there" in plain(said.stderr)) == (3, True)


@pytest.mark.parametrize(("runs", "code"), [({}, 0), ({"no-such-qemu": "qemu-system-x86"}, 3)])
def test_status_exits_with_whether_the_kernel_tests_can_run(box, monkeypatch, runs, code):
    monkeypatch.setattr(tools, "RUNNING", runs)
    monkeypatch.setattr("migrate_vma_conformance.kernel.building.status.DEFAULT", ("6.1",))
    assert typed(box, "status").exit_code == 3
    typed(box, "build", "6.1")
    assert typed(box, "status").exit_code == code


def test_status_for_programs_is_json(box):
    typed(box, "build", "6.1")
    told = json.loads(typed(box, "status", "--format", "json").stdout)
    assert {name: guest["state"] for name, guest in told["guests"].items() if guest["state"] != "not built"} == {"6.1": "ready"}
    assert told["guests"]["6.1"]["directory"] == str(box.cache / "6.1")


def test_the_cache_is_what_the_environment_says(box, monkeypatch):
    monkeypatch.setenv("MIGRATE_VMA_CACHE", str(box.cache))
    assert CliRunner().invoke(cli, ["kernel", "build", "6.1"]).exit_code == 0
    assert (box.cache / "6.1" / "manifest.json").exists()


def test_hmm_tests_of_a_guest_that_is_not_built_say_how_to_build_it(box):
    said = typed(box, "hmm-tests", "7.3")
    assert (said.exit_code, "`migrate-vma kernel build 7.3` builds it" in plain(said.stderr)) == (3, True)
