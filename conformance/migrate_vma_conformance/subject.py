"""From what a caller names to what can be run: drivers by name or path, generations by name, version or a record of the caller's.

Loading runs the caller's module, which can do anything: `probe.py` has a child process do it first. Every value that cannot be
used becomes an error that says what was expected.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from attrs import frozen

from migrate_vma_conformance.errors import SubjectError, UsageError, listed
from migrate_vma_impl import generations
from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.automaton import told
from migrate_vma_impl.machine.containers import brief

MakeDriver = Callable[[Kernel], Driver]


def path_of(make: object) -> str:
    """A factory as `module:name`, which finds it again if it stands in a module by that name."""
    kind = type(make)
    name = getattr(make, "__qualname__", f"<{kind.__qualname__}>")
    return f"{getattr(make, '__module__', kind.__module__)}:{name}"


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
    make = load(name, source, FACTORY)
    if not callable(make):
        raise UsageError(name, source, f"it names {brief(make)}, which cannot be called", "a factory, factory(kernel) -> Driver")
    adapted = getattr(make, "adapted", None)
    return DriverSubject(name, cast("MakeDriver", make), cast("MakeDriver", adapted) if callable(adapted) else None)


def make_checked(subject: str, make: MakeDriver) -> MakeDriver:
    """The factory, held to returning a driver."""
    return functools.partial(made, subject, make)


def made(subject: str, make: MakeDriver, kernel: Kernel) -> Driver:
    """What the factory returns, if it is a driver of this kernel.

    Raises:
        SubjectError: it is none, or one that cannot be run. What the factory raises passes through.
    """
    driver: Any = make(kernel)
    trouble = _trouble(driver, kernel)
    if trouble:
        raise SubjectError(subject, f"its factory returned {trouble}")
    return driver  # type: ignore[no-any-return]


_CALLED = ("migrate_to_ram", "folio_free", "invalidate", "open", *(load.value for load in Load))


def _trouble(driver: Any, kernel: Kernel) -> str:
    """What is wrong with what a factory returned; empty if nothing is."""
    if inspect.iscoroutine(driver):
        driver.close()
        return "a coroutine: write `def`, not `async def`, for the factory itself"
    if not isinstance(driver, Driver):
        return f"{brief(driver)}; expected an instance of migrate_vma_impl.driver.Driver"
    if getattr(driver, "kernel", None) is not kernel:
        return "a driver of another kernel; expected a new one at each call, made with the kernel that the factory is given"
    if type(driver.name) is not str:
        return f"a driver that is called {brief(driver.name)}; expected a word"
    for name in _CALLED:
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(type(driver), name))):
            return f"a driver whose {name} is no coroutine function; expected `async def {name}`"
    return ""


KNOWN_GENERATIONS = {
    record.name: record
    for record in (*generations.GENERATIONS.values(), *generations.COMPOUND_GENERATIONS.values(), *AS_SHIPPED.values())
}
"""Every record that a token can name: the generations, those with large device folios, and kernels as shipped."""


def find_generation(name: str, source: str = "--generation") -> Generation:
    """A generation by name or by a kernel version that it stands for.

    Raises:
        UsageError: no such generation; the message lists names and versions.
    """
    if name in KNOWN_GENERATIONS:
        return KNOWN_GENERATIONS[name]
    try:
        return generations.find_generation(name)
    except ValueError as error:
        known = str(error).partition("There are: ")[2]
        raise UsageError(name, source, "there is no such generation", f"all, or one of: {known}") from None


def as_shipped(version: str) -> Generation:
    """The kernel of this version as it is, with what it has wrong.

    Raises:
        UsageError: what this version has wrong is not known here.
    """
    found = AS_SHIPPED.get(version)
    if found is None:
        raise UsageError(
            version, "--as-shipped", "nobody has read what this kernel has wrong", f"one of: {listed(AS_SHIPPED)}"
        )
    return found


def load_patch(path: str, source: str = "--patch") -> Generation:
    """A generation record of the caller's own, `module:RECORD`.

    Raises:
        UsageError: it cannot be imported or is no Generation.
    """
    record = load(path, source, RECORD)
    if not isinstance(record, Generation):
        raise UsageError(path, source, f"it names {type(record).__name__} {brief(record)}", "an attrs.evolve of a Generation")
    return record


FACTORY = f"a built-in driver ({listed(sorted(DRIVERS))}) or package.module:factory, importable from here"
RECORD = "module:RECORD, a migrate_vma_impl.generations.Generation"
"""What a path is expected to be."""


def split(path: str, source: str, expected: str) -> tuple[str, str]:
    """The module and the name in it of `package.module:name`.

    Raises:
        UsageError: it is no such path.
    """
    module, colon, name = path.partition(":")
    if colon and all(word.isidentifier() for word in (*module.split("."), *name.split("."))):
        return module, name
    raise UsageError(path, source, "it names nothing that is built in, and is no path of a factory or record", expected)


def load(path: str, source: str, expected: str) -> Any:
    """What `package.module:name` names.

    Raises:
        UsageError: its module cannot be imported, or has no such name.
    """
    module, name = split(path, source, expected)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(path, source, f"importing {module} failed: {told(error)}", expected) from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except Exception as error:
            raise UsageError(path, source, f"{module} has no {part}", f"one of: {listed(_public(found, part))}") from error
    return found


def _public(found: object, wanted: str) -> list[str]:
    """The names most like the one that was wanted, or the first ones."""
    held = getattr(found, "__dict__", {})
    names = sorted(name for name, value in held.items() if callable(value) and not name.startswith("_"))
    return difflib.get_close_matches(wanted, names, n=6) or names[:12]
