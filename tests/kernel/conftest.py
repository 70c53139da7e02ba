"""What the tests of the kernel witness share: a machine for the builder, and guests that are booted once.

A test that asks for `guest` or `witness` runs once for each of the two guests, and is skipped with the reason where QEMU or the
guest is missing, or the guest was built of other sources than these. With MIGRATE_VMA_KERNEL=required it fails with that reason.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from migrate_vma_conformance.kernel.building import build, packages
from migrate_vma_conformance.kernel.commands import Limit, Reset
from migrate_vma_conformance.kernel.guests import DEFAULT, NotBuilt, find_guest
from migrate_vma_conformance.kernel.witness.qemu import qemu_missing
from migrate_vma_conformance.kernel.witness.witness import Witness, ways
from tests.kernel.toolbox import make_toolbox


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A machine on which nothing is compiled, and an empty cache."""
    made = make_toolbox(tmp_path)
    monkeypatch.setenv("PATH", str(made.place))
    monkeypatch.setattr(packages, "INSTALLED", made.installed)
    monkeypatch.setattr(build, "ROOM", 0)
    return made


def _cannot(reason) -> NoReturn:
    if os.environ.get("MIGRATE_VMA_KERNEL") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", params=DEFAULT)
def guest(request):
    """A built guest, which can be run here."""
    if (missing := qemu_missing()) is not None:
        _cannot(missing)
    try:
        found = find_guest(request.param)
    except NotBuilt as problem:
        _cannot(str(problem))
    if found.stale:
        _cannot(f"guest {found.name} was built of others than these: {', '.join(found.stale)}")
    return found


@pytest.fixture(scope="session")
def booted(guest):
    with Witness(guest.name, ways(guest)) as up:
        yield up


@pytest.fixture
def witness(booted):
    """A guest that is up, with process 0 alone."""
    if booted.ended is not None:
        booted.restart()
    (reset, _) = booted.ask([Reset(), Limit(10_000)])
    if reset.result:
        booted.restart()
    return booted
