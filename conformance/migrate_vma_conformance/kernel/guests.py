"""The guests: which kernels can be built, and which of them are.

A guest is a directory of the cache with a manifest; `build.py` makes it, this module finds it. Nothing here builds or downloads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import frozen

from migrate_vma_conformance.errors import SubjectError, UsageError, listed
from migrate_vma_conformance.kernel.building.manifest import MANIFEST, Manifest, Unreadable, read_manifest
from migrate_vma_conformance.kernel.building.recipe import initrd_inputs, kernel_inputs

KERNEL = "kernel"
INITRD = "initrd"
LOCK = "lock"
"""The file of a cache that a build holds."""
SCRATCH = "build"
"""The directory of a cache in which guests are built."""
CACHE_VARIABLE = "MIGRATE_VMA_CACHE"


class NotBuilt(SubjectError):
    """A guest that is asked for is not there, or not whole (exit code 3)."""


@frozen
class GuestKind:
    """A guest that can be built.

    `generation` names the generation of the simulated fault path that this kernel has. `suites` are those of Debian in which the
    package of the source stands; the newest version of any of them is taken. `fragments` are files of the directory guest/; where
    two differ, the later one counts.
    """

    name: str
    package: str
    suites: tuple[str, ...]
    fragments: tuple[str, ...]
    generation: str


_BOOKWORM = ("bookworm-security", "bookworm-updates", "bookworm")
_BACKPORTS = ("trixie-backports",)


def _kinds() -> tuple[GuestKind, ...]:
    old, new = ("base.config", "6.1.config"), ("base.config", "7.3.config")
    debug = ("debug.config",)
    kasan = (*debug, "kasan.config")
    return (
        GuestKind("6.1", "linux-source-6.1", _BOOKWORM, old, "referenced"),
        GuestKind("7.3", "linux-source-7.3", _BACKPORTS, new, "waiting"),
        GuestKind("6.1-debug", "linux-source-6.1", _BOOKWORM, old + debug, "referenced"),
        GuestKind("7.3-debug", "linux-source-7.3", _BACKPORTS, new + debug, "waiting"),
        GuestKind("7.3-kasan", "linux-source-7.3", _BACKPORTS, new + kasan, "waiting"),
    )


KINDS: Mapping[str, GuestKind] = MappingProxyType({kind.name: kind for kind in _kinds()})
DEFAULT = ("6.1", "7.3")
"""What is built where nothing is named: a kernel before both fixes of the fault path, and one after them."""


@frozen
class Guest:
    """A guest that is built. `stale` says in words what has changed since: empty, if nothing has."""

    kind: GuestKind
    directory: Path
    manifest: Manifest
    stale: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def generation(self) -> str:
        return self.kind.generation

    @property
    def release(self) -> str:
        """What the kernel calls itself: `uname -r`."""
        return self.manifest.release

    @property
    def kernel(self) -> Path:
        return self.directory / KERNEL

    @property
    def initrd(self) -> Path:
        return self.directory / INITRD


def kind_named(name: str, source: str = "argument GUEST") -> GuestKind:
    """The kind of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in KINDS:
        raise UsageError(name, source, "there is no such guest", f"one of {listed(KINDS)}")
    return KINDS[name]


def cache_directory(given: Path | None = None) -> Path:
    """Where guests are kept: what is given, else what the environment says, else a directory of the user's."""
    if given is not None:
        return given.expanduser().absolute()
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).absolute() if named else Path.home() / ".cache" / "migrate-vma" / "kernel"


def find_guest(name: str, cache: Path | None = None) -> Guest:
    """The built guest of this name.

    Raises:
        UsageError: there is no such kind of guest.
        NotBuilt: it is not in the cache, or not whole.
    """
    kind = kind_named(name)
    directory = cache_directory(cache) / kind.name
    command = f"`migrate-vma kernel build {kind.name}` builds it"
    if not (directory / MANIFEST).exists():
        raise NotBuilt(f"guest {kind.name}", f"it is not built in {directory.parent}; {command}")
    try:
        manifest = read_manifest(directory)
        manifest.check_sizes(directory)
    except Unreadable as problem:
        raise NotBuilt(f"guest {kind.name}", f"it is damaged: {problem}; {command}") from problem
    return Guest(kind, directory, manifest, tuple(_stale(kind, manifest)))


def built_guests(cache: Path | None = None) -> tuple[Guest, ...]:
    """Every guest that is in the cache and whole."""
    return tuple(_found(cache_directory(cache)))


def _found(cache: Path) -> Iterable[Guest]:
    for name in KINDS:
        try:
            yield find_guest(name, cache)
        except NotBuilt:
            continue


def current_inputs(kind: GuestKind) -> dict[str, str]:
    """Hashes of all that is ours and that decides a guest of this kind, as it is now."""
    return {**kernel_inputs(kind.package, kind.fragments), **initrd_inputs()}


def _stale(kind: GuestKind, manifest: Manifest) -> Iterable[str]:
    now = current_inputs(kind)
    return (name for name in sorted(now.keys() | manifest.inputs.keys()) if now.get(name) != manifest.inputs.get(name))
