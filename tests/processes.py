"""Programs that tests run as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def environment(**more):
    """Our own import path for a child process, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def python(*words, **more):
    """What a program prints that has to succeed: its code, and its arguments."""
    command = [sys.executable, "-c", *map(str, words)]
    where = {"cwd": more.pop("cwd", None), "env": environment(**more)}
    return subprocess.run(command, **where, check=True, capture_output=True, text=True).stdout


def printed_under_any_order_of_hashes(code, **more):
    """What a program prints, run with two orders of hashes: one text where they do not matter."""
    return {python(code, PYTHONHASHSEED=seed, **more) for seed in ("1", "77")}
