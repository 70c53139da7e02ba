"""What real kernels answered to their own hmm-tests, as `migrate-vma kernel hmm-tests GUEST --format json` recorded it.

A file of data/ for each guest. It is recorded again by that command, never edited.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from migrate_vma_conformance.kernel.hmm_tests import CaseResult, Fared, Run, read_run

DATA = Path(__file__).parent / "data"


def recorded() -> list[Run]:
    """Every recorded run, the oldest kernel first."""
    return [read_run(json.loads(path.read_text())) for path in sorted(DATA.glob("hmm-tests-*.json"))]


def heading(run: Run) -> str:
    return f"Linux {run.release}"


def cell(run: Run, case: str) -> str:
    """How a case went: once, if it went alike for all device memory that there was; nothing, if the kernel does not have it."""
    by_memory = {_memory(test): test.fared for test in run.tests if _case(test) == case}
    played = {memory: fared.value for memory, fared in by_memory.items() if fared is not Fared.SKIPPED}
    if len(set(played.values())) > 1:
        return ", ".join(f"{memory}: {fared}" for memory, fared in played.items())
    only = "" if len(played) == len(by_memory) else f" ({', '.join(played)})"
    return f"{next(iter(played.values()))}{only}" if played else "skipped" * bool(by_memory)


def cases(run: Run) -> set[str]:
    return {_case(test) for test in run.tests}


def _case(test: CaseResult) -> str:
    return test.name.rpartition(".")[2]


def _memory(test: CaseResult) -> str:
    """Of hmm.hmm_device_private.anon_read: private."""
    return test.name.split(".")[-2].rpartition("_")[2]


def remarks(runs: Iterable[Run]) -> str:
    """Below the table: when each run was, what it says in all, what each failure said."""
    return "".join(_remark(run) for run in runs)


def _remark(run: Run) -> str:
    counts = ", ".join(f"{len(run.those(fared))} {fared.value}" for fared in Fared)
    head = f"- {heading(run)} (guest {run.guest}, {run.date}; {run.module} test_hmm, large folios {run.large_folios}): {counts}"
    ended = f", and then the guest ended: {run.ended}" if run.ended else ""
    failed = "".join(f"  - `{test.name}` failed: {test.told or 'it said nothing'}\n" for test in run.those(Fared.FAILED))
    reports = "".join(f"  - the kernel reported `{headline}`\n" for headline in run.reported)
    return f"{head}{ended}.\n{failed}{reports}"
