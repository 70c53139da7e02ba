"""The programs that a build needs, and the package of Debian that has each."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping

COMPILING: Mapping[str, str] = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "tar": "tar",
    "xz": "xz-utils",
}
FETCHING: Mapping[str, str] = {"apt-get": "apt", "dpkg-deb": "dpkg"}
"""What fetches a source that is not there yet."""
RUNNING: Mapping[str, str] = {"qemu-system-x86_64": "qemu-system-x86"}
"""What runs a guest. None of it is needed to build one."""

_HEADERS = {"gelf.h": "libelf-dev"}
_ARCHIVES = {"libc.a": "libc6-dev"}


def missing(tools: Mapping[str, str]) -> dict[str, str]:
    """Those of the programs that are not installed, each with its package."""
    return {tool: package for tool, package in tools.items() if shutil.which(tool) is None}


def missing_to_compile() -> dict[str, str]:
    """What a build lacks: programs, and, where there is a compiler to ask, headers and libraries."""
    lacking = missing(COMPILING)
    if "gcc" in lacking:
        return lacking
    lacking |= {name: package for name, package in _HEADERS.items() if not _compiles(f"#include <{name}>\n")}
    return lacking | {name: package for name, package in _ARCHIVES.items() if _asked("gcc", f"-print-file-name={name}") == name}


def wrong_machine() -> str | None:
    """The guests are built by the machine's own compiler: what it is, if not x86-64."""
    return None if platform.machine() == "x86_64" else platform.machine()


def version(tool: str) -> str:
    """The first line that a program says of its version."""
    return _asked(tool, "--version").partition("\n")[0]


def in_words(lacking: Mapping[str, str]) -> str:
    """What is missing, and the command that installs it."""
    packages = " ".join(sorted(set(lacking.values())))
    return f"{', '.join(lacking)} not found; `apt-get install {packages}` installs what is missing"


def _asked(*words: str) -> str:
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout.strip()  # noqa: S603


def _compiles(text: str) -> bool:
    words = ["gcc", "-fsyntax-only", "-x", "c", "-"]
    return subprocess.run(words, input=text, check=False, capture_output=True, text=True).returncode == 0  # noqa: S603
