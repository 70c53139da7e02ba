"""A build that does not come to its end: what it says, what it leaves, how the next one goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel.building import build, stages, tools
from migrate_vma_conformance.kernel.building.build import Done, builder
from migrate_vma_conformance.kernel.building.failures import BuildFailed, CacheBusy


def left(box):
    return sorted(path.name for path in box.cache.iterdir())


def interrupt(box, monkeypatch, name):
    """A build that is interrupted when this stage begins."""

    def stop(site):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "STAGES", {**stages.STAGES, name: stop})
        with pytest.raises(KeyboardInterrupt):
            box.build()
    return box.asked()


@pytest.mark.parametrize("name", list(stages.STAGES))
def test_an_interrupted_build_goes_on_with_the_stage_that_is_not_complete(box, monkeypatch, name):
    before = interrupt(box, monkeypatch, name)
    assert box.build().done is Done.GUEST
    after = box.asked()
    whole = [*before, *after]
    box.build(again=True)
    assert whole == box.asked()


@pytest.mark.parametrize("name", list(stages.STAGES))
def test_a_stage_that_was_cut_off_at_its_very_end_is_run_again(box, monkeypatch, name):
    def stop(site):
        stage(site)
        raise KeyboardInterrupt

    stage = stages.STAGES[name]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "STAGES", {**stages.STAGES, name: stop})
        with pytest.raises(KeyboardInterrupt):
            box.build()
    assert box.build().done is Done.GUEST


def test_what_was_begun_with_another_configuration_is_not_gone_on_with(box, monkeypatch):
    interrupt(box, monkeypatch, "hmm-tests")
    monkeypatch.setattr(build.recipe, "settings", lambda fragments: {"CONFIG_SMP": "y"})
    box.build()
    assert box.asked()[0] == "make allnoconfig"


def test_a_failed_program_is_told_with_its_last_lines(box):
    box.fails("bzImage", "mm/memory.c:1:2: error: what is this")
    with pytest.raises(BuildFailed, match=r"guest 6\.1: `make` ended with 2; its last lines follow") as failure:
        box.build()
    assert failure.value.tail == ("mm/memory.c:1:2: error: what is this",)
    assert failure.value.log.read_text().endswith("mm/memory.c:1:2: error: what is this\n")


def test_a_failure_leaves_the_log_alone(box):
    box.fails("bzImage", "error")
    with pytest.raises(BuildFailed):
        box.build()
    assert left(box) == ["6.1.log", "build", "lock"]
    assert list((box.cache / "build").iterdir()) == []


def test_a_failure_leaves_an_older_guest_as_it_is(box):
    kernel = box.build().guest.kernel.read_text()
    box.fails("headers", "error")
    with pytest.raises(BuildFailed):
        box.build(again=True)
    box.mends("headers")
    box.asked()
    assert (box.build().done, box.asked()) == (Done.NOTHING, [])
    assert kernel == "a kernel\n"


def test_an_agent_that_does_not_compile_leaves_the_older_initrd(box, monkeypatch):
    guest = box.build().guest
    before = guest.initrd.read_bytes()
    box.fails("gcc", "agent.c:3:1: error: expected declaration")
    monkeypatch.setattr(build.recipe, "initrd_inputs", lambda: {"agent.c": "another"})
    monkeypatch.setattr("migrate_vma_conformance.kernel.guests.initrd_inputs", lambda: {"agent.c": "another"})
    with pytest.raises(BuildFailed, match="`gcc` ended with 1"):
        box.build()
    assert guest.initrd.read_bytes() == before


@pytest.mark.parametrize("says", ["fatal error: error writing to x.s: No space left on device", "tar: Disk quota exceeded"])
def test_a_program_without_room_is_told_as_a_full_disk(box, says):
    box.fails("modules", says)
    with pytest.raises(BuildFailed, match=r"the disk is full: .* are free in .*cache now"):
        box.build()
    assert list((box.cache / "build").iterdir()) == []


def test_a_write_of_ours_without_room_is_told_as_a_full_disk(box, monkeypatch):
    def fill(site):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stages, "STAGES", {**stages.STAGES, "initrd": fill})
    with pytest.raises(BuildFailed, match="the disk is full"):
        box.build()


def test_too_little_room_is_told_before_anything_is_done(box, monkeypatch):
    monkeypatch.setattr(build, "ROOM", 10**18)
    with pytest.raises(BuildFailed, match=r"1000000000\.0 GB must be free in .* to build it, and .* are"):
        box.build()
    assert box.asked() == []


@pytest.mark.parametrize(("tool", "package"), [("flex", "flex"), ("ld", "binutils"), ("xz", "xz-utils")])
def test_a_missing_tool_is_named_with_its_package(box, tool, package):
    (box.place / tool).unlink()
    with pytest.raises(BuildFailed, match=rf"guest 6\.1: {tool} not found; `apt-get install {package}` installs"):
        box.build()


def test_apt_is_needed_only_where_the_source_is_not_there(box):
    (box.place / "apt-get").unlink()
    assert box.build().done is Done.GUEST
    shutil.rmtree(box.installed)
    with pytest.raises(BuildFailed, match=r"fetched with Debian's apt-get, not found here; a source that you put at /\S+ is"):
        box.build(again=True)


def test_a_package_that_nobody_has_is_told_with_what_apt_says(box):
    shutil.rmtree(box.installed)
    known = r"linux-source-6\.1 could not be had from bookworm-security, .* \(Unable to locate package .*a source that you put at"
    with pytest.raises(BuildFailed, match=known):
        box.build()


def test_an_archive_that_cannot_be_reached_is_told_so(box):
    shutil.rmtree(box.installed)
    (box.place / "unreachable").touch()
    with pytest.raises(BuildFailed, match=r"Debian's archive could not be read \(Failed to fetch .* Could not connect\)"):
        box.build()


def test_a_setting_that_the_kernel_does_not_heed_is_named(box, monkeypatch):
    monkeypatch.setattr(build.recipe, "unheeded", lambda wanted, has: ["CONFIG_DEVICE_PRIVATE=y"])
    with pytest.raises(BuildFailed, match=r"linux-source-6\.1 does not heed CONFIG_DEVICE_PRIVATE=y"):
        box.build()


def test_another_machine_than_x86_is_told(box, monkeypatch):
    monkeypatch.setattr(tools.platform, "machine", lambda: "aarch64")
    with pytest.raises(BuildFailed, match="this is aarch64"):
        box.build()


def test_a_cache_that_cannot_be_made_is_the_callers_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cache `.*`: it cannot be made or written to"), builder(tmp_path / "file" / "cache"):
        pass


def test_a_second_build_in_one_cache_is_told_of_the_first(box):
    with builder(box.cache), pytest.raises(CacheBusy, match=r"another build works there \(process \d+"), builder(box.cache):
        pass


BUILD = """
import sys
from pathlib import Path
from migrate_vma_conformance.kernel.building import build
from migrate_vma_conformance.kernel.building import packages
from migrate_vma_conformance.kernel.guests import KINDS
build.ROOM = 0
packages.INSTALLED = Path(sys.argv[2])
with build.builder(Path(sys.argv[1])) as builder:
    builder.build(KINDS["6.1"])
"""


def hanging_build(box):
    """A build of another process, waiting for a program that does not end."""
    (box.place / "hang-bzImage").touch()
    child = subprocess.Popen([sys.executable, "-c", BUILD, str(box.cache), str(box.installed)], stderr=subprocess.DEVNULL)
    until(lambda: "make bzImage" in box.asked())
    (box.place / "hang-bzImage").unlink()
    return child


def until(holds):
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.02)
    pytest.fail("it did not come to that in 20 s")


def free(box):
    with (box.cache / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_what_the_build_has_started(box, number):
    child = hanging_build(box)
    child.send_signal(number)
    child.wait(20)
    assert free(box)
    assert box.build().done is Done.GUEST
    assert box.asked()[0] == "make bzImage"


@pytest.mark.slow
def test_what_a_killed_build_left_running_keeps_the_cache(box):
    child = hanging_build(box)
    child.kill()
    child.wait(20)
    with pytest.raises(CacheBusy, match="or what it left running"):
        box.build()
    os.killpg(int((box.place / "hanging").read_text()), signal.SIGKILL)
    until(lambda: free(box))
    assert box.build().done is Done.GUEST
