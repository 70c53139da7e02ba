"""Each mutant against the tests that come to the function that it changes: a pytest plugin with a run loop of its own.

Rules:
- The tests are run once without a mutant, and have to pass; coverage says which lines of the clauses each of them comes to.
- A mutant runs in a forked child, which changes the function and runs the tests that come to the changed lines, those of its
  clauses first, until one fails. The tests were imported before, so a child begins at once.
- A child that takes longer than ten times what its tests took before, or dies, has noticed the mutant as well as one that fails.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import coverage
import pytest
from _pytest.runner import runtestprotocol
from attrs import define, field, frozen

from tests.mutation.mutants import MODULES, Mutant, short

PATIENCE = 10
LEAST_SECONDS = 5
MEMORY = 4 << 30
"""What a child may have, in bytes: a mutant that does not end may eat memory as well."""

FILES = {short(module): str(module.__file__) for module in MODULES}


class End(Enum):
    KILLED = "killed"
    TIME = "killed by the time limit"
    SURVIVED = "survived"


@frozen
class Trial:
    mutant: Mutant
    end: End


@define
class Coverage:
    """Which tests come to which line, by module, and how long each takes."""

    tests: dict[str, dict[int, list[int]]] = field(factory=dict)
    seconds: list[float] = field(factory=list)

    def of(self, mutant: Mutant) -> set[int]:
        lines = self.tests[mutant.function.partition(".")[0]]
        return {test for line in mutant.lines for test in lines.get(line, ())}


class Trials:
    """The plugin. `trials` is filled by the run; `broken` says why there was none."""

    def __init__(self, mutants: Sequence[Mutant], jobs: int, tell: Callable[[Trial], None]) -> None:
        self.mutants, self.jobs, self.tell = mutants, jobs, tell
        self.trials: list[Trial] = []
        self.broken: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        covered = self._watched(session.items)
        if not self.broken:
            order = {mutant.key: place for place, mutant in enumerate(self.mutants)}
            self.trials = sorted(self._all(session.items, covered), key=lambda trial: order[trial.mutant.key])
        return True

    def _watched(self, items: list[pytest.Item]) -> Coverage:
        """Every test, run once as it is."""
        covered = Coverage()
        tracer = coverage.Coverage(data_file=None, config_file=False, include=list(FILES.values()))
        tracer.start()
        for number, item in enumerate(items):
            tracer.switch_context(str(number))
            begin = time.monotonic()
            if _fails(item):
                self.broken.append(item.nodeid)
            covered.seconds.append(time.monotonic() - begin)
        tracer.stop()
        for module, file in FILES.items():
            lines = tracer.get_data().contexts_by_lineno(file)
            covered.tests[module] = {line: [int(test) for test in tests if test] for line, tests in lines.items()}
        return covered

    def _all(self, items: list[pytest.Item], covered: Coverage) -> Iterator[Trial]:
        """Some children at a time, each as soon as it has ended."""
        todo, running = list(reversed(self.mutants)), dict[int, Mutant]()
        while todo or running:
            while todo and len(running) < self.jobs:
                mutant = todo.pop()
                running[_forked(mutant, items, covered)] = mutant
            pid, status = os.wait()
            trial = Trial(running.pop(pid), _end(status))
            self.tell(trial)
            yield trial


def _fails(item: pytest.Item) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def _forked(mutant: Mutant, items: list[pytest.Item], covered: Coverage) -> int:
    """The id of a child that tries this mutant."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    chosen = _chosen(mutant, items, covered)
    seconds = LEAST_SECONDS + PATIENCE * sum(covered.seconds[number] for number in chosen)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        mutant.make()
        os._exit(int(any(_fails(items[number]) for number in chosen)))
    except BaseException:  # noqa: BLE001  (nothing of a child may come back into the loop of its parent)
        os._exit(1)


def _chosen(mutant: Mutant, items: list[pytest.Item], covered: Coverage) -> list[int]:
    """The tests that come to the change: first those that are named after its clauses, then the others, the quickest first."""

    def rank(number: int) -> tuple[bool, float]:
        named = set(re.findall(r"\bC\d+\b", items[number].name)) & set(mutant.clauses)
        return not named, covered.seconds[number]

    return sorted(covered.of(mutant), key=rank)


def _end(status: int) -> End:
    if os.WIFSIGNALED(status):
        return End.TIME
    return End.KILLED if os.WEXITSTATUS(status) else End.SURVIVED
