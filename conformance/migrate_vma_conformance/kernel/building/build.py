"""Builds guests: each stage complete or absent, the products in place with one rename, and nothing large left behind.

Rules:
- What is built and fits is left alone. What was interrupted goes on with its first stage that is not complete.
- If only the agent has changed, only the initrd is made again.
- A failure removes the scratch files and keeps the log; an interruption keeps both.
- One build at a time works in a cache.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import fcntl
import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel.building import packages, recipe, stages, tools
from migrate_vma_conformance.kernel.building.failures import BuildFailed, CacheBusy, CommandFailed, DiskFull, is_full
from migrate_vma_conformance.kernel.building.manifest import Manifest, Unreadable, products_of, write_manifest
from migrate_vma_conformance.kernel.building.progress import Told, silent
from migrate_vma_conformance.kernel.building.running import Runner
from migrate_vma_conformance.kernel.guests import INITRD, LOCK, SCRATCH, Guest, GuestKind, NotBuilt, current_inputs, find_guest

ROOM = 4_000_000_000
"""Bytes that must be free before a guest is built: the source has 1.6 GB unpacked, the largest build tree 1.1 GB."""


class Done(enum.Enum):
    """What a build had to do."""

    NOTHING = "nothing to do"
    INITRD = "initrd made again"
    GUEST = "built"


@frozen
class Outcome:
    """A guest after its build."""

    guest: Guest
    done: Done
    seconds: float


@frozen
class Builder:
    """Builds in a cache. `lock` is held by it, and by every program that it runs."""

    cache: Path
    lock: int
    jobs: int = 1
    again: bool = False
    tell: Told = silent

    def build(self, kind: GuestKind) -> Outcome:
        """Build a guest, as far as that is needed.

        Raises:
            BuildFailed: it could not be built.
        """
        began = time.monotonic()
        try:
            done = self._done(kind)
        except (OSError, DiskFull, CommandFailed, packages.NoPackage, stages.NotConfigured, recipe.NotEdited) as error:
            shutil.rmtree(self._work(kind), ignore_errors=True)
            raise self._told(kind, error) from error
        return Outcome(find_guest(kind.name, self.cache), done, time.monotonic() - began)

    def _done(self, kind: GuestKind) -> Done:
        guest = None if self.again else _usable(kind, self.cache)
        if guest is None:
            self._build_all(kind)
            return Done.GUEST
        if guest.stale or not _whole(guest, INITRD):
            self._build_initrd(guest)
            return Done.INITRD
        return Done.NOTHING

    def _build_all(self, kind: GuestKind) -> None:
        work = self._work(kind)
        inputs = current_inputs(kind)
        marks = _Marks(work, json.dumps({"kernel": recipe.kernel_inputs(kind.package, kind.fragments)}, sort_keys=True))
        if self.again or not marks.begun():
            self._begin(kind, marks)
        marks.forget(list(stages.STAGES)[-1])
        for name, stage in stages.STAGES.items():
            if name in marks.took():
                continue
            site = self._site(kind, name)
            site.tell("", 0)
            began = _clocks()
            stage(site)
            marks.set(name, [round(after - before, 1) for before, after in zip(began, _clocks(), strict=True)])
        site = self._site(kind, "initrd")
        archive = stages.archive_of(site)
        write_manifest(
            site.out,
            Manifest(
                name=kind.name,
                generation=kind.generation,
                release=stages.release_of(site),
                source=archive.origin,
                source_sha256=archive.sha256,
                inputs=inputs,
                tools={tool: tools.version(tool) for tool in ("gcc", "ld", "make")},
                seconds={name: clock for name, (clock, _) in marks.took().items()},
                built=_now(),
                products=products_of(site.out, stages.PRODUCTS),
                processor_seconds={name: processors for name, (_, processors) in marks.took().items()},
            ),
        )
        _put(site.out, self.cache / kind.name, work / "before")
        shutil.rmtree(work)

    def _build_initrd(self, guest: Guest) -> None:
        work = self._work(guest.kind)
        (work / "agent-only").mkdir(parents=True, exist_ok=True)
        began = _clocks()
        inputs = current_inputs(guest.kind)
        partial = guest.directory / f"{INITRD}.partial"
        partial.write_bytes(stages.make_initrd(guest.directory, work / "agent-only", self._runner(guest.kind)))
        partial.replace(guest.initrd)
        clock, processors = (round(after - before, 1) for before, after in zip(began, _clocks(), strict=True))
        changed = evolve(
            guest.manifest,
            inputs=inputs,
            seconds={**guest.manifest.seconds, "initrd": clock},
            processor_seconds={**guest.manifest.processor_seconds, "initrd": processors},
            built=_now(),
            products={**guest.manifest.products, **products_of(guest.directory, [INITRD])},
        )
        write_manifest(guest.directory, changed)
        shutil.rmtree(work)

    def _begin(self, kind: GuestKind, marks: _Marks) -> None:
        """Look whether all is there that a build needs, and make a place for it."""
        lacking = tools.missing_to_compile()
        if lacking:
            raise BuildFailed(f"guest {kind.name}", tools.in_words(lacking))
        source = packages.INSTALLED / f"{kind.package}.tar.xz"
        fetching = tools.missing(tools.FETCHING)
        if fetching and not source.is_file():
            known = f"the kernel's source is fetched with Debian's {', '.join(fetching)}, not found here"
            raise BuildFailed(f"guest {kind.name}", f"{known}; a source that you put at {source} is taken instead")
        shutil.rmtree(self._work(kind), ignore_errors=True)
        free = shutil.disk_usage(self.cache).free
        if free < ROOM:
            known = f"{_gigabytes(ROOM)} must be free in {self.cache} to build it, and {_gigabytes(free)} are"
            raise BuildFailed(f"guest {kind.name}", known)
        marks.begin()
        self._log(kind).write_text(f"guest {kind.name}, {_now()}\n")

    def _told(self, kind: GuestKind, error: Exception) -> BuildFailed:
        """The error as a paragraph."""
        subject, log = f"guest {kind.name}", self._log(kind)
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and is_full(error)):
            free = _gigabytes(shutil.disk_usage(self.cache).free)
            known = f"the disk is full: {free} are free in {self.cache} now that the build's files are removed"
            return BuildFailed(subject, f"{known}, and {_gigabytes(ROOM)} are needed", log)
        if isinstance(error, CommandFailed):
            known = f"`{error.words[0]}` ended with {error.status}; its last lines follow, all of them are in {log}"
            return BuildFailed(subject, known, log, error.lines[-12:])
        return BuildFailed(subject, str(error), log)

    def _site(self, kind: GuestKind, stage: str) -> stages.Site:
        return stages.Site(kind, self._work(kind), self._runner(kind), self.jobs, stages.teller(kind, stage, self.tell))

    def _work(self, kind: GuestKind) -> Path:
        return self.cache / SCRATCH / kind.name

    def _log(self, kind: GuestKind) -> Path:
        return self.cache / f"{kind.name}.log"

    def _runner(self, kind: GuestKind) -> Runner:
        return Runner(self._log(kind), self._work(kind), self.lock)


@frozen
class _Marks:
    """Which stages are complete, and how long each took. Scratch files that were made for another key are not gone on with."""

    work: Path
    key: str

    def begun(self) -> bool:
        return self._read().get("key") == self.key

    def begin(self) -> None:
        self.work.mkdir(parents=True)
        self._write({})

    def took(self) -> dict[str, list[float]]:
        """Of each complete stage the seconds by the clock, and of all processors together."""
        return dict(self._read()["took"])

    def set(self, stage: str, took: list[float]) -> None:
        self._write({**self.took(), stage: took})

    def forget(self, stage: str) -> None:
        self._write({name: took for name, took in self.took().items() if name != stage})

    def _read(self) -> dict[str, Any]:
        try:
            read: dict[str, Any] = json.loads((self.work / "stages.json").read_text())
        except (OSError, ValueError):
            return {}
        return read

    def _write(self, took: dict[str, list[float]]) -> None:
        partial = self.work / "stages.partial"
        partial.write_text(json.dumps({"key": self.key, "took": took}))
        partial.replace(self.work / "stages.json")


@contextlib.contextmanager
def builder(cache: Path, jobs: int = 1, *, again: bool = False, tell: Told = silent) -> Generator[Builder]:
    """A builder that has the cache for itself. A termination is an interruption while it has.

    Raises:
        UsageError: the cache is no directory that can be written to.
        CacheBusy: another build has it.
    """
    machine = tools.wrong_machine()
    if machine is not None:
        raise BuildFailed("the guests", f"they are built by the machine's own compiler and are of x86-64; this is {machine}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / LOCK).open("a+")
    except OSError as error:
        problem = f"it cannot be made or written to ({error.strerror})"
        raise UsageError(str(cache), "cache", problem, "a directory for some gigabytes") from error
    with file:
        _take(file.fileno(), cache)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        with _terminations_interrupt():
            yield Builder(cache, file.fileno(), jobs, again, tell)


def _take(lock: int, cache: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        process = (cache / LOCK).read_text().strip() or "unknown"
        raise CacheBusy(str(cache), f"another build works there (process {process}, or what it left running)") from error


@contextlib.contextmanager
def _terminations_interrupt() -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _usable(kind: GuestKind, cache: Path) -> Guest | None:
    """The guest, if all of it is as it should be but, perhaps, its initrd."""
    try:
        guest = find_guest(kind.name, cache)
    except NotBuilt:
        return None
    of_kernel = recipe.kernel_inputs(kind.package, kind.fragments)
    fits = all(guest.manifest.inputs.get(name) == value for name, value in of_kernel.items())
    others = [name for name in guest.manifest.products if name != INITRD]
    return guest if fits and _whole(guest, *others) else None


def _whole(guest: Guest, *names: str) -> bool:
    chosen = {name: guest.manifest.products[name] for name in names}
    try:
        evolve(guest.manifest, products=chosen).check_hashes(guest.directory)
    except Unreadable:
        return False
    return True


def _put(new: Path, place: Path, aside: Path) -> None:
    """Put a directory in the place of an earlier one."""
    if place.exists():
        place.rename(aside)
    new.rename(place)


def _clocks() -> tuple[float, float]:
    """The time, and what the programs that have ended have taken of all processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), used.ru_utime + used.ru_stime


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")

