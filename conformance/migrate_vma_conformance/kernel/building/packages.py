"""The kernel's source, as Debian packages it: from the machine, if it is installed there, else from Debian's archive.

Rules:
- The archive is read through a configuration, lists and a cache of our own: the machine's stay as they are. Nothing is installed.
- apt checks what it fetches by the archive's keys; a machine's proxy settings apply.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from migrate_vma_conformance.kernel.building.failures import CommandFailed
from migrate_vma_conformance.kernel.building.manifest import sha256
from migrate_vma_conformance.kernel.building.running import Runner

INSTALLED = Path("/usr/src")
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PARTS = {True: "http://deb.debian.org/debian-security", False: "http://deb.debian.org/debian"}


class NoPackage(Exception):
    """The archive does not have the package, or cannot be reached. The message is a sentence without its end."""


@frozen
class SourceArchive:
    """The kernel's source as one file. `origin` says in words where it is from."""

    path: Path
    origin: str
    sha256: str


def installed_source(package: str, runner: Runner) -> SourceArchive | None:
    """The source that the package has installed on this machine, or that somebody has put there; None: there is none."""
    path = INSTALLED / f"{package}.tar.xz"
    if not path.is_file():
        return None
    try:
        words = ["dpkg-query", "--show", "--showformat=${Version}", package]
        version = runner.run(words, path.parent)[-1]
        return SourceArchive(path, f"{package} {version} (installed)", sha256(path))
    except (CommandFailed, IndexError):
        return SourceArchive(path, f"{path} (of no installed package)", sha256(path))


def fetched_source(package: str, suites: Sequence[str], runner: Runner, directory: Path) -> SourceArchive:
    """Fetch the newest version that these suites have, into the directory.

    Raises:
        NoPackage: none has it, or the archive cannot be reached.
        CommandFailed, DiskFull: what was fetched cannot be unpacked.
    """
    directory.mkdir(parents=True, exist_ok=True)
    configuration = _configured(directory, suites)
    try:
        runner.run(["apt-get", "-q", "update"], directory, APT_CONFIG=configuration)
    except CommandFailed as error:
        raise NoPackage(f"Debian's archive could not be read ({_complaint(error)})") from error
    try:
        runner.run(["apt-get", "-q", "download", package], directory, APT_CONFIG=configuration)
    except CommandFailed as error:
        where = f"{INSTALLED}/{package}.tar.xz"
        known = f"{package} could not be had from {', '.join(suites)} ({_complaint(error)})"
        raise NoPackage(f"{known}; a source that you put at {where} is taken instead") from error
    fetched = max(directory.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    runner.run(["dpkg-deb", "--extract", str(fetched), "unpacked"], directory)
    fetched.unlink()
    path = directory / "unpacked" / "usr" / "src" / f"{package}.tar.xz"
    return SourceArchive(path, f"{package} {_version(fetched.name)} (Debian's archive)", sha256(path))


def _version(name: str) -> str:
    """Of a package's file name: NAME_VERSION_all.deb, in which a colon is written as %3a."""
    return name.split("_")[1].replace("%3a", ":")


def _complaint(error: CommandFailed) -> str:
    """What apt says of an error, without its letters."""
    said = [line[2:].strip() for line in error.lines if re.match(r"[EW]:", line)]
    return (said or [f"apt-get ended with {error.status}"])[0].rstrip(".")


def _configured(directory: Path, suites: Sequence[str]) -> str:
    """Write the configuration; gives the file that APT_CONFIG names."""
    for name in ("lists/partial", "cache/archives/partial", "state"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()
    lines = [f"deb [signed-by={_KEYS}] {_PARTS[suite.endswith('-security')]} {suite} main\n" for suite in suites]
    (directory / "sources.list").write_text("".join(lines))
    settings = {
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": directory / "state",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
        "Acquire::Retries": "2",
        "Acquire::Languages": "none",
        "APT::Update::Error-Mode": "any",
        **({"APT::Sandbox::User": "root"} if os.getuid() == 0 else {}),
    }
    path = directory / "apt.conf"
    path.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    return str(path)
