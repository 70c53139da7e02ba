"""What a check is asked to do, and what it tells while it does it."""

from __future__ import annotations

import enum
from collections.abc import Callable

from attrs import frozen

from migrate_vma_impl.machine.system import Preemption


class Fairness(enum.Enum):
    """What a progress verdict assumes of the scheduler (definitions: docs/design.md, progress).

    Under WEAK, what can run all the time runs; under STRONG, also what can run again and again. So a clause that holds under
    WEAK holds under STRONG, and says more.
    """

    WEAK = "weak"
    STRONG = "strong"


class Profile(enum.Enum):
    """How much work a check may do: for an edit-run loop, for a table, or over night."""

    QUICK = "quick"
    DEFAULT = "default"
    DEEP = "deep"


@frozen
class CheckOptions:
    """How to check.

    `patch` names a generation record of the caller's own, `module:RECORD`, checked beside the others. `scenarios` are those to
    run, whatever the profile says; None: those of the profile. `seconds` is what one scenario may take at most, wall clock, with
    the explanation of what it found; None: what the profile allows.
    """

    preemption: tuple[Preemption, ...] = (Preemption.FULL, Preemption.VOLUNTARY)
    fairness: Fairness = Fairness.STRONG
    profile: Profile = Profile.DEFAULT
    seed: int = 0
    jobs: int = 1
    patch: str | None = None
    scenarios: tuple[str, ...] | None = None
    seconds: float | None = None


@frozen
class Advance:
    """How far a check has come: `done` of `total` scenarios over all generations, and where it is now."""

    generation: str
    scenario: str
    done: int
    total: int


Progress = Callable[[Advance], None]


def silent(_: Advance) -> None:
    """Progress that nobody watches."""
