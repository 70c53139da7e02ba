"""A machine as a process: what it is started with, how it fails to start, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.witness import qemu
from migrate_vma_conformance.kernel.witness.console import Reason, reports
from migrate_vma_conformance.kernel.witness.qemu import Accelerator, Machine, NotBooted, Transport
from tests.kernel.fake_guest import OOPS
from tests.kernel.fakes import way

MACHINE = Machine(Path("/cache/kernel"), Path("/cache/initrd"))


def _values(words, option):
    return [after for word, after in itertools.pairwise(words) if word == option]


@pytest.fixture
def own_temporary_directory(tmp_path, monkeypatch):
    """Short, for the name of a socket is."""
    with tempfile.TemporaryDirectory(prefix="mv") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


def _gone(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def test_a_machine_has_its_kernel_its_lines_and_nothing_else():
    words = MACHINE(Path("/run/wire"), Path("/run/console"))
    assert _values(words, "-kernel") + _values(words, "-initrd") == ["/cache/kernel", "/cache/initrd"]
    assert _values(words, "-serial") == ["file:/run/console"]
    assert _values(words, "-device") == ["virtio-serial-pci", "virtserialport,chardev=wire,name=migrate-vma"]
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    assert _values(words, "-nic") == ["none"]


def test_an_emulated_machine_has_a_thread_for_each_cpu():
    words = MACHINE(Path("w"), Path("c"))
    assert (_values(words, "-accel"), _values(words, "-smp")) == (["tcg,thread=multi"], ["2"])


def test_a_panic_ends_the_machine_and_so_does_a_warning():
    (line,) = _values(MACHINE(Path("w"), Path("c")), "-append")
    assert {"panic=-1", "oops=panic", "panic_on_warn=1", "agent.module=mended"} <= set(line.split())
    assert "-no-reboot" in MACHINE(Path("w"), Path("c"))


def test_the_stock_module_and_parameters_can_be_asked_for():
    machine = Machine(Path("k"), Path("i"), module=Module.STOCK, parameters=("slub_debug=FZ",))
    (line,) = _values(machine(Path("w"), Path("c")), "-append")
    assert line.endswith("agent.module=stock slub_debug=FZ")


def test_the_second_serial_line_takes_the_place_of_the_port():
    words = Machine(Path("k"), Path("i"), transport=Transport.SERIAL)(Path("w"), Path("c"))
    assert (_values(words, "-serial"), _values(words, "-device")) == (["file:c", "chardev:wire"], [])


def test_without_qemu_the_reason_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert qemu.qemu_missing() == "qemu-system-x86_64 is not installed (Debian: qemu-system-x86)"


def test_emulation_is_tried_last(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert qemu.accelerators() == (Accelerator.KVM, Accelerator.TCG)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert qemu.accelerators() == (Accelerator.TCG,)


def test_a_program_that_is_not_there_is_told(own_temporary_directory):
    with pytest.raises(NotBooted, match=r"guest: /no/such/qemu cannot be started: .*No such file"):
        qemu.start("guest", lambda wire, console: ["/no/such/qemu"], 5)
    assert list(own_temporary_directory.iterdir()) == []


def test_a_machine_that_ends_at_once_is_told_with_its_complaint(own_temporary_directory):
    with pytest.raises(NotBooted) as raised:
        qemu.start("guest", way("absent").command, 20)
    assert f"guest: {sys.executable} ended with status 1" in str(raised.value)
    assert "the fake machine does not want to" in str(raised.value)
    assert list(own_temporary_directory.iterdir()) == []


def test_a_machine_that_does_not_connect_is_ended(own_temporary_directory):
    started = []

    def sleeps(wire, console):
        started.append(wire)
        return ["/bin/sleep", "600"]

    begun = time.monotonic()
    with pytest.raises(NotBooted, match=r"did not connect in 0\.3 s"):
        qemu.start("guest", sleeps, 0.3)
    assert time.monotonic() - begun < 10
    assert len(started) == 1
    assert list(own_temporary_directory.iterdir()) == []


def test_a_closed_machine_leaves_neither_process_nor_file(own_temporary_directory):
    process = qemu.start("guest", way().command, 20)
    assert len(list(own_temporary_directory.iterdir())) == 1
    process.close()
    process.close()
    assert (_gone(process.child.pid), list(own_temporary_directory.iterdir())) == (True, [])


def test_words_of_a_command_go_to_no_shell(own_temporary_directory):
    with pytest.raises(NotBooted):
        qemu.start("guest", lambda wire, console: ["/bin/echo", f"; touch {own_temporary_directory}/made"], 5)
    assert not (own_temporary_directory / "made").exists()


# ---- consoles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("BUG: unable to handle page fault for address: ff1100fcffffe000", Reason.OOPS),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000008", Reason.OOPS),
        ("Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", Reason.OOPS),
        ("general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", Reason.OOPS),
        ("kernel BUG at mm/migrate_device.c:120!", Reason.BUG),
        ("BUG: Bad page state in process init  pfn:0fce0", Reason.BUG),
        ("BUG: KASAN: use-after-free in dmirror_do_read+0x9c/0x1a0", Reason.KASAN),
        ("WARNING: CPU: 1 PID: 36 at mm/memory.c:4012 do_swap_page+0x1/0x2", Reason.WARNING),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", Reason.STALL),
        ("INFO: task init:36 blocked for more than 20 seconds.", Reason.STALL),
        ("Kernel panic - not syncing: sysrq triggered crash", Reason.PANIC),
    ],
)
@pytest.mark.parametrize("stamp", ["", "[    1.602941] ", "[  101.602941][   T36] "])
def test_a_report_is_known_by_its_first_line(line, reason, stamp):
    (report,) = reports(f"[    0.1] Linux version 6.1\n{stamp}{line}\n[    1.7] Call Trace:\n")
    assert (report.reason, report.headline) == (reason, line)
    assert report.text.endswith("Call Trace:")


def test_the_first_report_comes_first():
    assert [report.reason for report in reports(OOPS)] == [Reason.OOPS, Reason.PANIC]


def test_a_quiet_console_has_no_report():
    assert reports("[    1.6] test_hmm: loading out-of-tree module taints kernel.\n[ 1.7] HMM: BUG-free\n") == ()
