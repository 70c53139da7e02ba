"""The bugs that can be put back: ours, those of installed packages, and those of `--bugs module:BUGS`.

Rules:
- A package offers bugs by an entry point of the group `migrate_vma.bugs`, which names a sequence of them.
- Ids are told apart over all collections: a report names a bug by its id alone.
- Whatever cannot be used becomes an error that says what was expected, and where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import cast

from migrate_vma_conformance.catalogue import judged_clauses
from migrate_vma_conformance.errors import UsageError, listed
from migrate_vma_conformance.subject import find_generation, load
from migrate_vma_impl.bugs import collection
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.machine.containers import brief

GROUP = "migrate_vma.bugs"
"""The entry points of packages that have bugs of their own."""

EXPECTED = "module:BUGS, a sequence of migrate_vma_impl.bugs.bug.Bug"

NOT_SHOWN = collection.NOT_SHOWN


def chosen_bugs(path: str | None, only: Sequence[str]) -> list[Bug]:
    """The bugs of `package.module:BUGS`, or ours and those of installed packages, of which `only` names some.

    Raises:
        UsageError: no such collection or bug, or one that cannot be put back.
    """
    known = known_bugs() if path is None else third_party_bugs(path)
    names = {bug.id: bug for bug in known}
    for name in only:
        if name not in names:
            row = next((row for row in NOT_SHOWN if row.id == name), None)
            problem = "there is no such bug" if row is None else f"it cannot be shown: {row.reason}"
            raise UsageError(name, "--only", problem, f"one of: {listed(names)}")
    return [names[name] for name in dict.fromkeys(only)] if only else list(known)


def known_bugs() -> tuple[Bug, ...]:
    """Ours, and those of the packages that are installed.

    Raises:
        UsageError: a package's bugs cannot be used.
    """
    found = list(collection.BUGS)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        found += third_party_bugs(point.value, f"entry point {point.name} of {GROUP}")
    _check_ids(found, f"entry points of {GROUP}")
    return tuple(found)


def third_party_bugs(path: str, source: str = "--bugs") -> tuple[Bug, ...]:
    """The bugs of `package.module:BUGS`.

    Raises:
        UsageError: it cannot be imported, is no sequence of bugs, or has one that cannot be put back.
    """
    found = load(path, source, EXPECTED)
    several = list(cast("list[object]", found)) if type(found) in (list, tuple) else []
    bugs = [each for each in several if isinstance(each, Bug)]
    if not bugs or len(bugs) < len(several):
        raise UsageError(path, source, f"it names a {type(found).__name__}, not a sequence of bugs", EXPECTED)
    _check_ids(bugs, source)
    for bug in bugs:
        _check(bug, source)
    return tuple(bugs)


def _check_ids(bugs: Iterable[Bug], source: str) -> None:
    seen: set[str] = set()
    for bug in bugs:
        if bug.id in seen:
            raise UsageError(bug.id, source, "two bugs are called so", "an id for each")
        seen.add(bug.id)


def _check(bug: Bug, source: str) -> None:
    unknown = [clause for clause in bug.clauses if clause not in judged_clauses()]
    if unknown or not bug.clauses:
        problem = f"it is to be caught by {', '.join(map(brief, unknown)) or 'no clause'}"
        raise UsageError(bug.id, source, problem, "ids of clauses; `migrate-vma clauses` lists them")
    try:
        find_generation(bug.record.name)
    except UsageError as error:
        problem = f"its record is called {brief(bug.record.name)}, which is no generation that it could be compared with"
        raise UsageError(bug.id, source, problem, error.expected) from None
