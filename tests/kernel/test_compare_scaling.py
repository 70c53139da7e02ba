"""Sequences on large folios: what a kernel is asked in the place of a page, and what its answers come to."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Kind, Module, Protection
from migrate_vma_conformance.kernel.comparing.compare import Tally, run
from migrate_vma_conformance.kernel.comparing.core_subject import LARGE, core_of
from migrate_vma_conformance.kernel.comparing.guests import comparison_of
from migrate_vma_conformance.kernel.comparing.operations import Observation, of_device, read_script
from migrate_vma_conformance.kernel.comparing.scaling import SCALE, ScaledKernel, enlarged, folded
from migrate_vma_conformance.kernel.comparing.shrinking import draw
from migrate_vma_conformance.kernel.comparing.strategies import Shape

LEAF = "open 0 0\nopen 0 1\nmap 0 0 8 write huge\nstore 0 0 5\n"
BOTH = pytest.mark.parametrize("guest", ["6.1", "7.3"])


def core(script, guest="7.3"):
    sequence = read_script(LEAF + script)
    return [str(seen) for seen in core_of(guest, Module.MENDED, config=LARGE).run(sequence)][4:]


def test_ranges_are_enlarged():
    assert enlarged(ops.ToDevice(0, 1, 4, 2)) == (ops.ToDevice(0, 1, 512, 256),)
    assert enlarged(ops.Map(0, 4, 4, Protection.READ, Kind.HUGE)) == (ops.Map(0, 512, 512, Protection.READ, Kind.HUGE),)
    assert enlarged(ops.Remap(0, 4, 4, 8)) == (ops.Remap(0, 512, 512, 1024),)
    assert enlarged(ops.Fork(0, 1)) == (ops.Fork(0, 1),)


def test_an_access_is_to_every_page_that_a_page_stands_for():
    stores = enlarged(ops.Store(0, 1, 7))
    assert (stores[0], stores[-1], len(stores)) == (ops.Store(0, 128, 7), ops.Store(0, 255, 7), SCALE)


@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        ([Observation(0, value=7)] * SCALE, Observation(0, value=7)),
        ([Observation(0, value=(250 + i) % 256) for i in range(SCALE)], Observation(0, value=250)),
        ([Observation(signal=11)] * SCALE, Observation(signal=11)),
        ([of_device(0, 2 * SCALE, 1, b"\x05" * SCALE + b"\x00" * SCALE)], of_device(0, 2, 1, b"\x05\x00")),
        ([of_device(0, 2 + 3 * SCALE, 0)], of_device(0, 5, 0)),
        ([of_device(-14)], Observation(-14)),
    ],
)
def test_answers_are_folded(parts, seen):
    assert folded(parts) == seen


@pytest.mark.parametrize(
    "parts",
    [
        [Observation(0, value=7)] * (SCALE - 1) + [Observation(0, value=9)],
        [Observation(0, value=7)] * (SCALE - 1) + [Observation(signal=11)],
        [of_device(0, SCALE, 0, b"\x05" * (SCALE - 1) + b"\x02")],
    ],
)
def test_pages_that_are_not_alike_are_no_answer(parts):
    assert folded(parts).ended == "the pages that a page stands for are not alike"


def test_an_end_in_the_middle_is_the_end():
    assert folded([Observation(0), Observation(ended="oops"), Observation(ended="not reached")]).ended == "oops"


class Enlarged:
    """Answers as a kernel would whose pages are all alike."""

    name = "7.3"

    def run_all(self, sequences):
        for sequence in sequences:
            yield tuple(
                of_device(0, each.count, 0, b"\x05" * each.count) if isinstance(each, ops.DeviceRead) else Observation(0)
                for each in sequence
            )


def test_a_scaled_kernel_answers_operation_by_operation():
    sequence = read_script(LEAF + "read 0 0 0 4")
    (seen,) = ScaledKernel(Enlarged()).run_all([sequence])
    assert seen == (*[Observation(0)] * 4, of_device(0, 4, 0, b"\x05" * 4))


# ---- the core on large folios --------------------------------------------------------------------------------------------


def test_a_large_folio_migrates_whole_and_comes_back_whole_in_7_3():
    assert core("snapshot 0 0 0 4\nto-device 0 0 0 4\nsnapshot 0 0 0 4\nload 0 1\nsnapshot 0 0 0 4")[::2] == [
        "0, cpages 4, faults 0, data 06060606",
        "0, cpages 4, faults 0, data 26262626",
        "0, cpages 4, faults 0, data 06060606",
    ]


def test_a_large_folio_is_split_on_its_way_in_6_1():
    assert core("to-device 0 0 0 4\nsnapshot 0 0 0 4\nload 0 1\nsnapshot 0 0 0 4", "6.1")[1::2] == [
        "0, cpages 4, faults 0, data 22222222",
        "0, cpages 4, faults 0, data 22022222",
    ]


@BOTH
def test_a_snapshot_does_not_know_the_huge_zero_page(guest):
    assert core("map 0 0 4 write huge\nread 0 0 0 1\nsnapshot 0 0 0 4", guest)[-1] == "0, cpages 4, faults 0, data 05050505"


@BOTH
def test_advice_that_a_mapping_has_already_splits_nothing(guest):
    assert core("advise 0 0 1 hugepage\nsnapshot 0 0 0 4", guest)[-1] == "0, cpages 4, faults 0, data 06060606"
    assert core("advise 0 0 1 nohugepage\nsnapshot 0 0 0 4", guest)[-1] == "0, cpages 4, faults 0, data 02020202"


def test_exclusive_access_to_a_large_folio_is_busy_in_6_1():
    assert core("exclusive 0 0 0 2", "6.1") == ["-16"]
    assert core("exclusive 0 0 0 2") == ["0, cpages 2, faults 0, data 0500"]


@pytest.mark.slow
@BOTH
def test_the_model_allows_what_the_core_answers_on_large_folios(guest):
    compared = comparison_of(guest, Enlarged(), Module.MENDED, large=True)
    tally = Tally(guest)
    alone = type(compared)(guest, compared.core)
    run(alone, draw(Shape(operations=15, large=True), 40, 1), tally, lambda _: None)
    assert [difference.why for difference in tally.found] == []
