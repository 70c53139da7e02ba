"""What can go wrong in the kit, each error named for who is at fault.

Rules:
- A violated clause is no error: it is a verdict.
- A message is one paragraph for the person who typed the value: the value, where it came from, what was expected.
- Errors cross process borders: they pickle by their arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

from migrate_vma_conformance.verdict import Report


class KitError(Exception):
    """Something other than a verdict. Raised as itself, it is a fault of the kit."""


class UsageError(KitError):
    """The caller gave a value that cannot be used (exit code 2)."""

    def __init__(self, value: str, source: str, problem: str, expected: str) -> None:
        super().__init__(value, source, problem, expected)
        self.value = value
        self.source = source
        self.problem = problem
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.source} {_quoted(self.value)}: {self.problem}. Expected: {self.expected}."


class SubjectError(KitError):
    """The driver or record under test broke the rules that make it testable (exit code 3)."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem)
        self.subject = subject
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}."


class Interrupted(KeyboardInterrupt):
    """The check was interrupted; `report` is what had been found until then."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report


def _quoted(value: str, limit: int = 60) -> str:
    """The value in quotes, with what a terminal should not see escaped, and cut where it is long."""
    shown = value if len(value) <= limit else f"{value[:limit]}..."
    return f"`{shown.encode('unicode_escape').decode('ascii')}`"


def listed(words: Iterable[str]) -> str:
    """The words as a sentence lists them; `none` where there are none."""
    return ", ".join(words) or "none"
