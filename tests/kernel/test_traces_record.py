"""How traces are recorded: what the set-ups set up is what is read, and a guest of ours is recorded with it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.testing import CliRunner

from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.errors import SubjectError, UsageError
from migrate_vma_conformance.kernel.commands import Load, ReadFile
from migrate_vma_conformance.kernel.guests import KINDS, Guest
from migrate_vma_conformance.kernel.traces import on_guest
from migrate_vma_conformance.kernel.traces.judging import judge_file
from migrate_vma_conformance.kernel.traces.probes import BY_NAME, DRIVERS, FIELDS
from migrate_vma_conformance.kernel.traces.setups import Tool, header, probes, script, wanted
from migrate_vma_conformance.kernel.witness.console import Reason
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate
from migrate_vma_conformance.kernel.witness.witness import Ended
from migrate_vma_conformance.verdict import Verdict

OLD, NEW = (6, 1), (7, 3)


def run(*arguments):
    return CliRunner().invoke(cli, ["trace", "record", *map(str, arguments)])


def defined(line):
    """The event, the function and the fields of a line of kprobe_events."""
    kind, function, *fields = line.split()
    return kind.partition("/")[2], function, [field.partition("=")[0] for field in fields]


@pytest.mark.parametrize("release", [OLD, NEW])
def test_every_probe_is_read_by_its_name_and_every_field_but_one(release):
    lines = [defined(line) for line in probes(release, "my_migrate_to_ram", "my_folio_free")]
    assert {name for name, _, _ in lines} <= set(BY_NAME)
    assert {field for _, _, fields in lines for field in fields} - set(FIELDS) == {"vmf"}


def test_return_probes_show_arguments_where_the_kernel_can():
    shown = {release: {name: fields for name, _, fields in map(defined, probes(release, "a", None))} for release in (OLD, NEW)}
    assert shown[OLD]["setup_ret"] == ["ret"]
    assert {"ret", "args", "cp", "np", "src", "pgfl"} <= set(shown[NEW]["setup_ret"])
    assert ("pages_ret" in shown[OLD], "pages_ret" in shown[NEW]) == (False, True)


def test_a_definition_fits_what_tracefs_takes():
    """A name and a definition of an argument have limits (kernel/trace/trace_probe.h)."""
    words = [word for line in probes(NEW, "drm_pagemap_migrate_to_ram", "drm_pagemap_folio_free") for word in line.split()]
    assert max(map(len, words)) < 63


@pytest.mark.parametrize("driver", [*DRIVERS, "my_migrate_to_ram"])
@pytest.mark.parametrize("tool", [Tool.TRACEFS, Tool.TRACE_CMD])
def test_the_scripts_are_scripts(tool, driver, tmp_path):
    path = tmp_path / "record.sh"
    path.write_text("\n".join(script(tool, wanted(driver, "7.3"))) + "\n")
    assert subprocess.run([shutil.which("sh"), "-n", path], check=False).returncode == 0


def test_a_script_defines_each_probe_and_names_it_in_the_header():
    text = "\n".join(script(Tool.TRACEFS, wanted("nouveau", "6.1")))
    names = [defined(line)[0] for line in probes(OLD, "x", "y")]
    assert all(f"migrate_vma/{name} " in text for name in names)
    assert f"probes={','.join(names)}" in text
    assert "first nouveau_dmem_folio_free nouveau_dmem_page_free" in text


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=lambda driver: driver.name)
def test_the_bpftrace_script_prints_what_tracefs_would(driver):
    text = "\n".join(script(Tool.BPFTRACE, wanted(driver.name, "7.3")))
    assert all(f" {name}: (" in text for name in BY_NAME)
    assert text.count("{") == text.count("}")
    assert all(f"probe:{name}" in text for name in (driver.callbacks[0], driver.frees[0]))


@pytest.mark.parametrize(("driver", "release"), [("two words", "7.3"), ("x; rm", "7.3"), ("test_hmm", "new"), ("test_hmm", "")])
def test_what_means_nothing_is_refused(driver, release):
    with pytest.raises(UsageError):
        wanted(driver, release)


def test_the_command_prints_the_script():
    result = run("--with", "trace-cmd", "--driver", "amdgpu", "--release", "6.1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == script(Tool.TRACE_CMD, wanted("amdgpu", "6.1"))


@pytest.mark.parametrize("arguments", [["FILE"], ["--guest", "6.1"], ["--guest", "5.0", "FILE"], ["--release", "new"]])
def test_the_command_says_what_is_wrong(arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("migrate-vma: ")


def test_a_guest_that_is_not_built_is_told(tmp_path):
    result = run("--guest", "6.1", tmp_path / "trace", "--cache", tmp_path)
    assert result.exit_code == 3
    assert "`migrate-vma kernel build 6.1` builds it" in " ".join(result.stderr.split())


def test_the_header_tells_of_the_recording():
    lines = probes(OLD, "a", "b")
    assert header("6.1.192", "4096", lines).endswith("page_size=4096 probes=setup,setup_ret,pages,fin,dsp,fault,fault_ret,freepg")


# ---- on a guest --------------------------------------------------------------------------------------------------------


class Scripted:
    """Stands in for a witness: answers all commands alike, but for those of one kind."""

    def __init__(self, kind, result):
        self.kind, self.result = kind, result

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def ask(self, commands):
        return [self.result if isinstance(command, self.kind) else Answer(0) for command in commands]


@pytest.fixture
def made_up(monkeypatch):
    """A guest that is answered for."""

    def make(kind, result):
        monkeypatch.setattr(on_guest, "ways", lambda guest: [])
        monkeypatch.setattr(on_guest, "Witness", Scripted(kind, result))
        monkeypatch.setattr(Guest, "release", property(lambda _: "6.1.192"))
        return Guest(KINDS["6.1"], None, None, ())

    return make


def test_what_a_guest_recorded_is_written_behind_a_header(made_up, tmp_path):
    path = tmp_path / "trace"
    lines = on_guest.record_on(made_up(ReadFile, Answer(0, text="# tracer: nop\n")), path)
    assert lines == 2
    assert path.read_text().splitlines()[1:] == ["# tracer: nop"]
    assert path.read_text().startswith("# migrate-vma kernel=6.1.192 page_size=4096 probes=setup,")


def test_a_guest_that_ends_is_told_with_its_console(made_up, tmp_path):
    ended = Ended(Reason.OOPS, "it oopsed", "BUG: unable to handle page fault")
    with pytest.raises(SubjectError, match="it oopsed; its console ends with: BUG: unable"):
        on_guest.record_on(made_up(ReadFile, ended), tmp_path / "trace")


def test_a_command_that_fails_is_told(made_up, tmp_path):
    with pytest.raises(SubjectError, match="`read-file` gave -27"):
        on_guest.record_on(made_up(ReadFile, Answer(-27)), tmp_path / "trace")
    with pytest.raises(SubjectError, match="no such process"):
        on_guest.record_on(made_up(ReadFile, Answer(0, Fate.REFUSED, text="no such process")), tmp_path / "trace")


def test_a_file_that_cannot_be_written_is_told(made_up, tmp_path):
    with pytest.raises(UsageError, match="cannot be written"):
        on_guest.record_on(made_up(Load, Answer(0)), tmp_path / "nowhere" / "trace")


@pytest.mark.slow
def test_a_race_on_a_guest_is_recorded_and_breaks_nothing(guest, tmp_path):
    path = tmp_path / "trace"
    on_guest.record_on(guest, path)
    judged = judge_file(str(path))
    storms = judged.parts[0].storms
    assert [generation.name for generation in judged.report.generations] == [guest.generation]
    assert [verdict.clause for verdict in judged.report.verdicts if verdict.verdict is Verdict.VIOLATED] == []
    assert (storms.migrations, storms.entries - storms.fruitless) == (8, 8)
