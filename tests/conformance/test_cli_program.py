"""The command line as a program of its own: pipes, imports, and an interrupt from the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import environment

_MAIN = [sys.executable, "-c", "from migrate_vma_conformance.cli import main; main()"]


@pytest.mark.slow
def test_a_reader_who_closes_the_pipe_is_no_error():
    with subprocess.Popen(
        [*_MAIN, "clauses"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(COLUMNS="200"), text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.close()
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, "")


@pytest.mark.slow
def test_help_and_listings_do_not_import_hypothesis():
    code = "import sys; from migrate_vma_conformance.cli import cli; cli(['generations'], standalone_mode=False)"
    checked = f"{code}; assert 'hypothesis' not in sys.modules"
    assert (
        subprocess.run(
            [sys.executable, "-c", checked], env=environment(COLUMNS="200"), check=False, capture_output=True
        ).returncode
        == 0
    )


def _children(process):
    """The ids of its child processes, as the kernel lists them."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells by /proc when the check is under way")
def test_ctrl_c_in_a_real_check_leaves_a_report_and_no_traceback():
    """As a terminal does it: the whole process group gets the signal."""
    command = [*_MAIN, "check", "--generation", "all", "--profile", "deep"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(COLUMNS="200"), text=True, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 60
        while not _children(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(child.pid, signal.SIGINT)
        shown, said = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "migrate-vma: interrupted" in said
    assert "Traceback" not in shown + said
    assert "unknown" in shown
