"""docs/hmm-tests.md: which cases of the kernel's hmm-tests are played here, made from the tests' own markers.

python -m tests.impl.parity          writes it
python -m tests.impl.parity --check  says whether it is current
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from migrate_vma_conformance.kernel.hmm_tests import Run
from migrate_vma_impl.generations import COMPOUND_GENERATIONS, GENERATIONS
from tests.impl.hmm_stage import CASES, Case, Variant
from tests.kernel import answers

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "hmm-tests.md"

KERNEL = (
    "open_close",
    "anon_read",
    "anon_read_prot",
    "anon_write",
    "anon_write_prot",
    "anon_write_child",
    "anon_write_child_shared",
    "anon_write_huge",
    "anon_write_hugetlbfs",
    "file_read",
    "file_write",
    "migrate",
    "migrate_file_private",
    "migrate_fault",
    "migrate_release",
    "migrate_shared",
    "migrate_mixed",
    "migrate_multiple",
    "anon_read_multiple",
    "anon_teardown",
    "mixedmap",
    "snapshot",
    "compound",
    "double_map",
    "exclusive",
    "exclusive_mprotect",
    "exclusive_cow",
    "hmm_gup_test",
    "hmm_cow_in_device",
    "migrate_anon_huge_empty",
    "migrate_anon_huge_zero",
    "migrate_anon_huge_free",
    "migrate_anon_huge_fault",
    "migrate_partial_unmap_fault",
    "migrate_remap_fault",
    "migrate_anon_huge_err",
    "migrate_anon_huge_zero_err",
    "benchmark_thp_migration",
    "userfaultfd_read",
)
"""Every TEST_F of tools/testing/selftests/mm/hmm-tests.c (7.3.4), in the order of that file."""

NOT_PLAYED = {
    "benchmark_thp_migration": "it measures time, of which there is none here; what it does is in the cases before it",
}

COLUMNS = ("#", "case", "devices", "private", "coherent", "private, large folios", "coherent, large folios")

HEAD = """# The kernel's hmm-tests, played on the model of its test driver

`tools/testing/selftests/mm/hmm-tests.c` of Linux 7.3.4 and `lib/test_hmm.c`, which it drives: each case under the kernel's own
name, on the simulated kernel. What is held is what the selftest holds (errnos, cpages, device faults, a snapshot's bytes, data),
and besides that every trace keeps the contract and that nothing is left in use at the end. A buffer has a few pages here where it
has 1,024 there, a large folio 4 pages for 512, and a loop of ten rounds three. A token stands for what is in a page.

Written by `python -m tests.impl.parity` from the tests' own markers; do not edit.

"""


def load() -> None:
    """Import every module that plays cases, which fills CASES."""
    for path in sorted(Path(__file__).parent.glob("test_hmm_tests_*.py")):
        importlib.import_module(f"tests.impl.{path.stem}")


def _mark(cases: list[Case], variant: Variant, large: bool) -> str:
    played = [case for case in cases if case.large is large]
    names = {subject.generation.name for case in played for subject in case.subjects if subject.variant is variant}
    if not names:
        return ""
    every = [*GENERATIONS, *(COMPOUND_GENERATIONS if large else ())]
    return "all" if names == set(every) else ", ".join(name for name in every if name in names)


def _row(number: int, name: str, runs: list[Run]) -> str:
    cases = CASES.get(name, [])
    cells = [_mark(cases, variant, large) for large in (False, True) for variant in Variant]
    notes = "; ".join(dict.fromkeys(case.note for case in cases if case.note)) or NOT_PLAYED.get(name, "")
    devices = str(max((case.devices for case in cases), default=0) or "")
    answered = [answers.cell(run, name) for run in runs]
    return _cells(str(number), name, devices, *cells, *answered, notes)


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def document() -> str:
    """The whole file."""
    load()
    runs = answers.recorded()
    rows = "".join(_row(number, name, runs) for number, name in enumerate(KERNEL, start=1))
    played = sum(name in CASES for name in KERNEL)
    left = "".join(f"- `{name}`: {NOT_PLAYED[name]}.\n" for name in KERNEL if name not in CASES)
    return (
        HEAD
        + f"{played} of {len(KERNEL)} cases are played. The columns name the generations in which a case is played, all of\n"
        + f"{', '.join(GENERATIONS)} or some, for each kind of device memory;\n"
        + "then the same in a kernel with large folios, where there are besides\n"
        + f"{', '.join(COMPOUND_GENERATIONS)}, which migrate such a folio whole.\n\n"
        + "The last columns are what real kernels answered to the selftest itself, built of their own source (docs/kernel.md):\n"
        + "nothing, where a kernel does not have the case.\n\n"
        + _cells(*COLUMNS, *map(answers.heading, runs), "")
        + _cells(*["---"] * (len(COLUMNS) + len(runs) + 1))
        + rows
        + f"\nNot played:\n\n{left}"
        + f"\nThe real kernels, in all:\n\n{answers.remarks(runs)}"
    )


def main() -> int:
    """Write the document, or check it."""
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(document())
        return 0
    current = DOCUMENT.exists() and DOCUMENT.read_text() == document()
    if not current:
        sys.stderr.write(f"{DOCUMENT.relative_to(ROOT)} is stale: run python -m tests.impl.parity\n")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
