"""What the caller's own code is, asked of a child process: this one never imports it, so nothing in it can hang or end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attrs import frozen

from migrate_vma_conformance.errors import KitError, UsageError
from migrate_vma_conformance.pool import Lost, run_one
from migrate_vma_conformance.subject import FACTORY, RECORD, find_driver, load_patch, split
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_spec.vocabulary import Capability

IMPORT_SECONDS = 30.0
"""What importing the caller's module may take, wall clock."""


@frozen
class KnownDriver:
    """A driver by name. `adapted`: there is a variant of it that calls refill_fault_entry."""

    name: str
    adapted: bool = False


@frozen
class KnownRecord:
    """A generation record of the caller's own, by its path."""

    path: str
    name: str
    capabilities: frozenset[Capability]


@frozen
class _Question:
    path: str
    source: str


def know_driver(name: str, source: str = "DRIVER", seconds: float | None = None) -> KnownDriver:
    """A built-in driver, or one that a child process could import.

    Raises:
        UsageError: there is none of this name, or its module cannot be imported.
    """
    if name in DRIVERS:
        return KnownDriver(name, f"{name}_adapted" in DRIVERS)
    split(name, source, FACTORY)
    return _asked(_look_at_driver, _Question(name, source), FACTORY, seconds)


def know_record(path: str, source: str = "--patch", seconds: float | None = None) -> KnownRecord:
    """A generation record that a child process could import.

    Raises:
        UsageError: it could not, or what it found is no record.
    """
    split(path, source, RECORD)
    return _asked(_look_at_record, _Question(path, source), RECORD, seconds)


K = TypeVar("K")


def _asked(look: Callable[[_Question], K | KitError], question: _Question, expected: str, seconds: float | None) -> K:
    limit = min(IMPORT_SECONDS, seconds or IMPORT_SECONDS)
    answer = run_one(look, question, seconds=limit)
    if isinstance(answer, KitError):
        raise answer
    if isinstance(answer, Lost):
        how = f"did not end within {limit:g} s" if answer.out_of_time else f"failed: {answer.reason}"
        raise UsageError(question.path, question.source, f"importing it {how}", expected)
    return answer


# ---- in the child ----------------------------------------------------------------------------------------------------


def _look_at_driver(question: _Question) -> KnownDriver | KitError:
    try:
        subject = find_driver(question.path, question.source)
    except KitError as error:
        return error
    return KnownDriver(subject.name, subject.adapted is not None)


def _look_at_record(question: _Question) -> KnownRecord | KitError:
    try:
        record = load_patch(question.path, question.source)
    except KitError as error:
        return error
    return KnownRecord(question.path, record.name, record.capabilities)
