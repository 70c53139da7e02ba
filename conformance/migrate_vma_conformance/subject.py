"""From what a caller names to what can be run: drivers by name or path, generations by name, version or a record of the caller's.

Loading runs the caller's module, and nothing else here runs code; every value that cannot be used becomes a UsageError that says
what was expected.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from migrate_vma_conformance.errors import SubjectError, UsageError, listed
from migrate_vma_impl import generations
from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Kernel

MakeDriver = Callable[[Kernel], Driver]


@frozen
class DriverSubject:
    """A driver under test. `adapted` is the factory of its variant that calls refill_fault_entry, where there is one."""

    name: str
    make: MakeDriver
    adapted: MakeDriver | None = None


def find_driver(name: str, source: str = "DRIVER") -> DriverSubject:
    """A built-in driver, or `package.module:factory`.

    Raises:
        UsageError: no such driver, or its module fails to import.
    """
    if name in DRIVERS:
        return DriverSubject(name, DRIVERS[name], DRIVERS.get(f"{name}_adapted"))
    expected = f"a built-in driver ({listed(sorted(DRIVERS))}) or package.module:factory, importable from here"
    make = _load(name, source, expected)
    if not callable(make):
        raise UsageError(name, source, f"it names {make!r}, which cannot be called", "a factory, factory(kernel) -> Driver")
    adapted = getattr(make, "adapted", None)
    return DriverSubject(name, make, adapted if callable(adapted) else None)


def make_checked(subject: str, make: MakeDriver) -> MakeDriver:
    """The factory, held to returning a driver."""

    def checked(kernel: Kernel) -> Driver:
        driver = make(kernel)
        if not isinstance(driver, Driver):
            raise SubjectError(subject, f"its factory returned {driver!r}; expected an instance of migrate_vma_impl.driver.Driver")
        return driver

    return checked


def find_generation(name: str, source: str = "--generation") -> Generation:
    """A generation by name or by a kernel version that it stands for.

    Raises:
        UsageError: no such generation; the message lists names and versions.
    """
    try:
        return generations.find_generation(name)
    except ValueError as error:
        known = str(error).partition("There are: ")[2]
        raise UsageError(name, source, "there is no such generation", f"all, or one of: {known}") from None


def load_patch(path: str, source: str = "--patch") -> Generation:
    """A generation record of the caller's own, `module:RECORD`.

    Raises:
        UsageError: it cannot be imported or is no Generation.
    """
    record = _load(path, source, "module:RECORD, a migrate_vma_impl.generations.Generation")
    if not isinstance(record, Generation):
        raise UsageError(path, source, f"it names {type(record).__name__} {record!r:.60}", "an attrs.evolve of a Generation")
    return record


def _load(path: str, source: str, expected: str) -> Any:
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(path, source, "it names nothing that is built in, and is no path of a factory", expected)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(path, source, f"importing {module_name} failed: {type(error).__name__}: {error}", expected) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(path, source, f"{module_name} has no {part}", f"one of: {listed(_public(vars(found)))}")
        found = getattr(found, part)
    return found


def _public(names: Mapping[str, Any]) -> list[str]:
    return sorted(name for name, value in names.items() if callable(value) and not name.startswith("_"))[:12]
