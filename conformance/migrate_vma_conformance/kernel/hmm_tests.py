"""The kernel's own selftest of test_hmm, run on a guest as upstream wrote it, and its result read (KTAP).

Rules:
- A test that the guest does not survive is a result: what ended it stands in `ended`, and nothing is known of the tests.
- What a failed test printed is kept, and nothing else of the output.
- Reports of the kernel that ended nothing are told, too: the guest goes on after a warning here, as a machine in use does.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, frozen

from migrate_vma_conformance.kernel.commands import Execute, Module, ReadFile, WriteFile
from migrate_vma_conformance.kernel.guests import Guest
from migrate_vma_conformance.kernel.witness.console import reports
from migrate_vma_conformance.kernel.witness.protocol import Answer, Fate
from migrate_vma_conformance.kernel.witness.witness import PATIENCE, Result, Witness, ways
from migrate_vma_conformance.report.layout import labelled, paragraph

PROGRAM = "/bin/hmm-tests"
SECONDS = 1200
"""For all of them together; each has a limit of its own. Emulated, they take some minutes."""
_PARAMETERS = ("panic_on_warn=0", "hugepages=16")
"""As upstream runs them: the kernel goes on after a warning, and there are huge pages for hugetlb memory."""
_COHERENT = ("memmap=512M$0x60000000", "agent.parameters=spm_addr_dev0=0x60000000,spm_addr_dev1=0x70000000")
"""Sets memory aside, of which the module makes two coherent devices. Upstream leaves that to whoever runs them."""
_MEMORY = 2048
_MEMORY_ASIDE = 512
"""Megabytes. The benchmark among the tests is killed for want of memory where there is less."""
_LARGE_FOLIOS = "/sys/kernel/mm/transparent_hugepage/enabled"

_RESULT = re.compile(r"(?P<bad>not )?ok \d+ (?:- )?(?:(?P<name>[\w.-]+)\s*)?(?:# *SKIP\b\s*(?P<why>.*))?")
_BEGUN = re.compile(r"# +RUN +(?P<name>[\w.-]+) \.\.\.")
_PLAN = re.compile(r"1\.\.(\d+)")
_SKIP = re.compile(r"# +SKIP +(?P<why>.*)")
_SAID = re.compile(r"# +(?!RUN |OK |FAIL )(?P<said>\S.*)")


class Fared(enum.Enum):
    """How a test went."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@frozen
class CaseResult:
    """One test, under the name that upstream gives it: fixture, variant, case. `told` is what it printed if it did not pass."""

    name: str
    fared: Fared
    told: str = ""


@frozen
class Run:
    """What one guest answered. `planned` is how many tests there are; `ended` is empty if the guest outlived them."""

    guest: str
    release: str
    source: str
    module: str
    large_folios: str
    coherent: bool
    date: str
    seconds: float
    planned: int
    tests: tuple[CaseResult, ...]
    reported: tuple[str, ...] = ()
    ended: str = ""

    def those(self, fared: Fared) -> list[CaseResult]:
        return [test for test in self.tests if test.fared is fared]

    @property
    def complete(self) -> bool:
        """Did every test say how it went?"""
        return not self.ended and len(self.tests) == self.planned > 0


class LargeFolios(enum.Enum):
    """What memory gets large folios: all that is large enough, or what a test asks it for."""

    ALWAYS = "always"
    MADVISE = "madvise"


def run(guest: Guest, module: Module, large_folios: LargeFolios, *, coherent: bool = False) -> Run:
    """Run them all on a fresh guest. Those of coherent memory are skipped there without `coherent`.

    Raises:
        NotBooted: the guest does not come up.
    """
    memory, parameters = (_MEMORY + _MEMORY_ASIDE, _PARAMETERS + _COHERENT) if coherent else (_MEMORY, _PARAMETERS)
    found = ways(guest, module, memory, parameters=parameters)
    commands = [WriteFile(_LARGE_FOLIOS, large_folios.value), Execute(SECONDS, (PROGRAM,)), ReadFile("/dev/kmsg")]
    with Witness(guest.name, found, patience=SECONDS + PATIENCE) as witness:
        began = time.monotonic()
        _, answered, log = witness.ask(commands)
        seconds = time.monotonic() - began
    output = _text(answered)
    planned = _PLAN.search(output)
    return Run(
        guest=guest.name,
        release=guest.release,
        source=guest.manifest.source,
        module=module.value,
        large_folios=large_folios.value,
        coherent=coherent,
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        seconds=round(seconds, 1),
        planned=int(planned[1]) if planned else 0,
        tests=tuple(results_of(output.splitlines())),
        reported=tuple(report.headline for report in reports(_messages(_text(log)))),
        ended=_ended(answered),
    )


def _text(result: Result) -> str:
    return (result.text or "") if isinstance(result, Answer) else ""


def _messages(log: str) -> str:
    """What the kernel's log says, without the fields before each line."""
    return "\n".join(line.partition(";")[2] for line in log.splitlines() if not line.startswith(" "))


def _ended(result: Result) -> str:
    if not isinstance(result, Answer):
        return result.said
    return f"not all were done after {SECONDS} s" if result.fate is Fate.HUNG else ""


def results_of(lines: Iterable[str]) -> Iterable[CaseResult]:
    """The results that an output of hmm-tests tells, in its order."""
    name, said, skipped = "", list[str](), None
    for line in lines:
        if begun := _BEGUN.match(line):
            name, said, skipped = begun["name"], [], None
        elif skip := _SKIP.match(line):
            skipped = skip["why"]
        elif result := _RESULT.match(line):
            yield _judged(result, name, said, skipped)
        elif spoken := _SAID.match(line):
            said.append(spoken["said"])


def _judged(result: re.Match[str], begun: str, said: Sequence[str], skipped: str | None) -> CaseResult:
    """A test that is skipped in its set-up is `ok` for some versions of the harness, which says so only before."""
    name, why = result["name"] or begun, result["why"] or skipped
    if why is not None:
        return CaseResult(name, Fared.SKIPPED, why)
    return CaseResult(name, Fared.FAILED, "; ".join(said)) if result["bad"] else CaseResult(name, Fared.PASSED)


def document(found: Run) -> dict[str, Any]:
    """As JSON values; `read_run` reads them."""
    return asdict(found, value_serializer=lambda _, __, value: value.value if isinstance(value, enum.Enum) else value)


def read_run(told: dict[str, Any]) -> Run:
    """A run as `document` wrote it."""
    tests = tuple(CaseResult(test["name"], Fared(test["fared"]), test["told"]) for test in told["tests"])
    rest: dict[str, Any] = {**told, "tests": tests, "reported": tuple(told["reported"])}
    return Run(**rest)


def lines(found: Run) -> list[str]:
    """In words."""
    counts = ", ".join(f"{len(found.those(fared))} {fared.value}" for fared in Fared)
    where = f"Linux {found.release}, {found.module} test_hmm, large folios {found.large_folios}"
    said = paragraph(f"hmm-tests on guest {found.guest} ({where}): of {found.planned} tests {counts}, in {found.seconds} s.")
    for test in found.those(Fared.FAILED):
        said += paragraph(f"  failed {test.name}{': ' if test.told else ''}{test.told}", hang="    ")
    for why, count in Counter(test.told for test in found.those(Fared.SKIPPED)).items():
        said += paragraph(f"  skipped {count}: {why}", hang="    ")
    for headline in found.reported:
        said += labelled("console", headline)
    if found.ended:
        said += paragraph(f"The guest ended, and with it what it had told: {found.ended}.")
    return said
