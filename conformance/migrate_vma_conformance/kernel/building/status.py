"""What there is of the kernel witness on this machine, and what is missing: as records, as JSON, in words."""

from __future__ import annotations

import enum
import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from migrate_vma_conformance.errors import listed
from migrate_vma_conformance.kernel.building import tools
from migrate_vma_conformance.kernel.building.manifest import MANIFEST
from migrate_vma_conformance.kernel.guests import (
    DEFAULT,
    KINDS,
    LOCK,
    SCRATCH,
    Guest,
    GuestKind,
    NotBuilt,
    current_inputs,
    find_guest,
)
from migrate_vma_conformance.report.layout import labelled, paragraph


class State(enum.Enum):
    """A guest, as somebody finds it who wants to run it."""

    READY = "ready"
    STALE = "stale"
    """It runs, but is made of an older agent or configuration."""
    DAMAGED = "damaged"
    BEGUN = "half built"
    ABSENT = "not built"


@frozen
class GuestStatus:
    """A kind of guest, and what there is of it. `told` says the rest in words; `key` changes with all that is ours in it."""

    kind: GuestKind
    state: State
    told: str
    key: str
    guest: Guest | None = None


@frozen
class Status:
    """All that a build and a run of guests need. What is missing is named with its package."""

    cache: Path
    guests: tuple[GuestStatus, ...]
    missing_to_build: Mapping[str, str]
    missing_to_run: Mapping[str, str]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Why the kernel tests cannot be run as they should be; empty if they can."""
        unready = (each for each in self.guests if each.kind.name in DEFAULT and each.state is not State.READY)
        guests = (f"guest {each.kind.name} is {each.state.value}" for each in unready)
        return (*guests, *([tools.in_words(self.missing_to_run)] if self.missing_to_run else []))


def look(cache: Path) -> Status:
    """See what there is."""
    guests = tuple(_guest(kind, cache) for kind in KINDS.values())
    return Status(cache, guests, tools.missing_to_compile(), tools.missing(tools.RUNNING))


def _guest(kind: GuestKind, cache: Path) -> GuestStatus:
    key = hashlib.sha256(json.dumps(current_inputs(kind), sort_keys=True).encode()).hexdigest()[:16]
    try:
        guest = find_guest(kind.name, cache)
    except NotBuilt as problem:
        if (cache / kind.name / MANIFEST).exists():
            return GuestStatus(kind, State.DAMAGED, problem.problem, key)
        if (cache / SCRATCH / kind.name).exists():
            waiting = f"`migrate-vma kernel build {kind.name}` goes on with it"
            return GuestStatus(kind, State.BEGUN, "a build works in this cache now" if _is_busy(cache) else waiting, key)
        return GuestStatus(kind, State.ABSENT, "", key)
    told = f"Linux {guest.release}, {guest.generation}, of {guest.manifest.source}, built {guest.manifest.built}"
    if guest.stale:
        return GuestStatus(kind, State.STALE, f"{told}; changed since: {', '.join(guest.stale)}", key, guest)
    return GuestStatus(kind, State.READY, told, key, guest)


def _is_busy(cache: Path) -> bool:
    """Has a build the cache for itself?"""
    try:
        with (cache / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def document(status: Status) -> dict[str, Any]:
    """As JSON values."""
    return {
        "cache": str(status.cache),
        "lacking": list(status.lacking),
        "guests": {each.kind.name: _document(each) for each in status.guests},
        "missing": {"to_build": dict(status.missing_to_build), "to_run": dict(status.missing_to_run)},
    }


def _document(status: GuestStatus) -> dict[str, Any]:
    guest = status.guest
    return {
        "state": status.state.value,
        "key": status.key,
        "told": status.told,
        "generation": status.kind.generation,
        "release": None if guest is None else guest.release,
        "directory": None if guest is None else str(guest.directory),
        "built": None if guest is None else guest.manifest.built,
        "stale": [] if guest is None else list(guest.stale),
    }


def lines(status: Status) -> Sequence[str]:
    """In words."""
    found = [f"Guests in {status.cache}:"]
    for each in status.guests:
        found += labelled(each.kind.name, f"{each.state.value}{': ' if each.told else ''}{each.told}")
    found.append("")
    found += _tools("To build a guest", status.missing_to_build)
    found += _tools("To run one", status.missing_to_run)
    if not status.lacking:
        return [*found, "The kernel tests can be run."]
    said = f"The kernel tests cannot be run: {'; '.join(status.lacking)}."
    return found + paragraph(f"{said} `migrate-vma kernel build` makes what is not ready of {listed(DEFAULT)}.")


def _tools(purpose: str, lacking: Mapping[str, str]) -> list[str]:
    return paragraph(f"{purpose}: {tools.in_words(lacking)}." if lacking else f"{purpose}: all there.")
