"""The parts of the builder: programs that it runs, the archive that it writes, what it says of the machine."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from migrate_vma_conformance.kernel.building import initrd, running, status, tools
from migrate_vma_conformance.kernel.building.build import builder
from migrate_vma_conformance.kernel.building.failures import CommandFailed, DiskFull
from migrate_vma_conformance.kernel.building.progress import Step, compiled, told_on_terminal
from migrate_vma_conformance.kernel.building.running import Runner


@pytest.fixture
def runner(tmp_path):
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    yield Runner(tmp_path / "log", tmp_path, lock)
    os.close(lock)


def test_a_program_runs_without_a_shell_and_gives_its_last_lines(runner, tmp_path):
    assert runner.run(["echo", "$HOME;", "two  words"], tmp_path) == ["$HOME; two  words"]
    assert (tmp_path / "log").read_text() == "+ echo $HOME; two  words\n$HOME; two  words\n"


def test_a_program_sees_no_settings_for_other_builds(runner, tmp_path, monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("KCONFIG_CONFIG", "elsewhere")
    seen = {line.partition("=")[0] for line in runner.run(["env"], tmp_path, KBUILD_VERBOSE="0")}
    assert seen & {"MAKEFLAGS", "KCONFIG_CONFIG"} == set()
    assert seen >= {"PATH", "LC_ALL", "TMPDIR", "KBUILD_VERBOSE"}


def test_a_program_that_fails_is_told_with_its_status_and_lines(runner, tmp_path):
    with pytest.raises(CommandFailed) as failure:
        runner.run(["sh", "-c", "echo said; echo complained >&2; exit 7"], tmp_path)
    assert (failure.value.status, failure.value.lines) == (7, ("said", "complained"))


def test_a_program_that_is_not_there_fails_like_any_other(runner, tmp_path):
    with pytest.raises(CommandFailed) as failure:
        runner.run(["no-such-program"], tmp_path)
    assert failure.value.lines == ("no-such-program: No such file or directory",)


def test_a_program_that_only_speaks_of_a_full_disk_is_fine(runner, tmp_path):
    words = ["sh", "-c", "echo No space left on device"]
    assert runner.run(words, tmp_path) == ["No space left on device"]
    with pytest.raises(DiskFull):
        runner.run([*words[:2], f"{words[2]}; exit 1"], tmp_path)


def test_lines_that_are_no_text_are_kept(runner, tmp_path):
    assert runner.run(["printf", r"a\377b\nc"], tmp_path) == ["a\ufffdb", "c"]


def test_an_interrupted_program_ends_with_all_that_it_started(runner, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/child; echo up; wait"], tmp_path, stop)
    assert not _runs(int((tmp_path / "child").read_text()))


@pytest.mark.slow
def test_a_program_that_does_not_heed_its_end_is_ended_all_the_same(runner, tmp_path, monkeypatch):
    def stop(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_GRACE", 0.5)
    with pytest.raises(KeyboardInterrupt):
        runner.run(["sh", "-c", "trap '' TERM; echo $$ > child; echo up; while :; do sleep 0.1; done"], tmp_path, stop)
    assert not _runs(int((tmp_path / "child").read_text()))


def _runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# ---- the initrd --------------------------------------------------------------------------------------------------------


def read_archive(data):
    """The entries of an archive: name to mode, contents and device."""
    stream = io.BytesIO(gzip.decompress(data))
    found = {}
    while True:
        header = stream.read(110)
        assert header[:6] == b"070701"
        fields = [int(header[at : at + 8], 16) for at in range(6, 110, 8)]
        name = stream.read(fields[11])[:-1].decode()
        stream.seek(-stream.tell() % 4, os.SEEK_CUR)
        contents = stream.read(fields[6])
        stream.seek(-stream.tell() % 4, os.SEEK_CUR)
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], contents, (fields[9], fields[10]))


def test_an_archive_has_its_entries_as_they_were_given():
    data = initrd.archive([initrd.directory("dev"), initrd.device("dev/console", 5, 1), initrd.program("init", b"12345")])
    assert read_archive(data) == {
        "dev": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "dev/console": (stat.S_IFCHR | 0o600, b"", (5, 1)),
        "init": (stat.S_IFREG | 0o755, b"12345", (0, 0)),
    }


def test_an_archive_of_the_same_entries_is_the_same_at_any_time(monkeypatch):
    entries = [initrd.directory("lib"), initrd.program("lib/a", b"x" * 1000)]
    first = initrd.archive(entries)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert initrd.archive(entries) == first


def test_a_built_initrd_has_agent_modules_and_hmm_tests(box):
    found = read_archive(box.build().guest.initrd.read_bytes())
    assert set(found) >= {"init", "lib/test_hmm.ko", "lib/test_hmm-mended.ko", "bin/hmm-tests", "dev/console", "proc", "sys"}
    assert b"zone_device_data" in found["lib/test_hmm-mended.ko"][1]


# ---- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "file"),
    [("  CC      mm/memory.o\n", "mm/memory.o"), ("  CC [M]  lib/a.o\n", "lib/a.o"), ("make[1]: Nothing\n", None), ("\n", None)],
)
def test_progress_knows_what_is_compiled(line, file):
    assert compiled(line) == file


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_stands_on_a_terminal_and_nowhere_else(monkeypatch):
    step = Step("6.1", "kernel", 2, 6, 17, "mm/memory.o")
    for stream, seen in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with told_on_terminal() as tell:
            tell(step)
        assert ("guest 6.1: kernel" in stream.getvalue()) is seen
        assert ("17 files, mm/memory.o" in stream.getvalue()) is seen


def test_status_says_what_is_there_and_what_is_missing(box, monkeypatch):
    before = status.lines(status.look(box.cache))
    assert "  6.1         not built" in before
    box.build()
    monkeypatch.setattr(tools, "RUNNING", {"no-such-qemu": "qemu-system-x86"})
    seen = status.look(box.cache)
    said = " ".join(" ".join(status.lines(seen)).split())
    assert "6.1 ready: Linux 6.1.0-fake, referenced, of linux-source-6.1 6.1.0-1 (installed), built 20" in said
    assert "To run one: no-such-qemu not found; `apt-get install qemu-system-x86` installs what is missing." in said
    assert "The kernel tests cannot be run: guest 7.3 is not built; no-such-qemu not found;" in said


def test_status_says_what_has_changed_since_a_guest_was_built(box, monkeypatch):
    box.build()
    monkeypatch.setattr("migrate_vma_conformance.kernel.guests.initrd_inputs", lambda: {"agent.c": "another"})
    guest = status.look(box.cache).guests[0]
    assert guest.state is status.State.STALE
    assert "changed since: agent.c" in guest.told


def test_status_finds_a_damaged_and_a_half_built_guest(box):
    box.build().guest.kernel.unlink()
    (box.cache / "build" / "7.3").mkdir(parents=True)
    states = {each.kind.name: each.state for each in status.look(box.cache).guests}
    assert (states["6.1"], states["7.3"]) == (status.State.DAMAGED, status.State.BEGUN)


def test_status_tells_a_build_at_work_from_one_that_was_left(box):
    (box.cache / "build" / "6.1").mkdir(parents=True)
    with builder(box.cache):
        at_work = status.look(box.cache).guests[0]
    left = status.look(box.cache).guests[0]
    assert (at_work.state, at_work.told) == (status.State.BEGUN, "a build works in this cache now")
    assert (left.state, left.told) == (status.State.BEGUN, "`migrate-vma kernel build 6.1` goes on with it")


def test_status_for_programs_has_a_key_that_follows_the_sources(box, monkeypatch):
    before = status.document(status.look(box.cache))["guests"]["6.1"]
    assert (before["state"], before["release"], before["stale"]) == ("not built", None, [])
    monkeypatch.setattr("migrate_vma_conformance.kernel.guests.initrd_inputs", lambda: {"agent.c": "another"})
    assert status.document(status.look(box.cache))["guests"]["6.1"]["key"] != before["key"]
