"""Kernel, core and model side by side: where they differ, how small a difference is made, and which are known."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.comparing.compare import Comparison, Tally, differing, first_difference, run
from migrate_vma_conformance.kernel.comparing.core_subject import core_of
from migrate_vma_conformance.kernel.comparing.known import Case, Known, recognised
from migrate_vma_conformance.kernel.comparing.operations import Observation, of_device, read_script, words_of
from migrate_vma_conformance.kernel.comparing.shrinking import draw, is_playable, smallest
from migrate_vma_conformance.kernel.comparing.strategies import Shape
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.model import REFERENCE
from tests.kernel.other_kernels import OtherKernel, answered

SMALL = Shape(operations=12)


def comparison(kernel=None, guest="7.3", module=Module.MENDED):
    return Comparison(guest, core_of(guest, module), kernel, module)


def tallied(compared, examples, seed, shape=SMALL):
    tally = Tally(compared.guest)
    run(compared, draw(shape, examples, seed), tally, lambda _: None)
    return tally


# ---- one operation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        (Observation(0), Observation(0), ()),
        (Observation(0), Observation(-14), ("result",)),
        (of_device(0, 2, 1, b"\x00"), of_device(0, 2, 0, b"\x01"), ("faults", "data")),
        (Observation(signal=11), Observation(0, value=1), ("result", "signal", "value")),
        (Observation(ended="oops: this"), Observation(ended="oops: that"), ()),
        (Observation(ended="oops: this"), Observation(0), ("end",)),
        (Observation(0, evidence="this"), Observation(0), ()),
    ],
)
def test_what_differs_is_told_by_name(one, other, names):
    assert differing(one, other) == names


SCRIPT = read_script("open 0 0\nmap 0 0 2 write private\nstore 0 0 7\nread 0 0 0 2\nload 0 0")


def test_the_first_operation_that_differs_is_the_difference():
    core = answered("7.3", Module.MENDED, SCRIPT)
    kernel = (*core[:3], of_device(0, 2, 1, b"\x07\x01"), Observation(0, value=9))
    found = first_difference("7.3", Module.MENDED, SCRIPT, kernel, core)
    assert found.operation == SCRIPT[3]
    assert found.kind == "7.3: read: kernel and core by data"
    assert found.sequence == SCRIPT[:4]
    assert found.known is None


def test_what_kernel_and_core_agree_on_the_model_may_refuse():
    core = answered("7.3", Module.MENDED, SCRIPT)
    wrong = (*core[:4], Observation(0, value=9))
    found = first_difference("7.3", Module.MENDED, SCRIPT, wrong, wrong)
    assert found.kind == "7.3: load: kernel and core and model"
    assert "0x09" in found.why
    assert first_difference("7.3", Module.MENDED, SCRIPT, None, wrong).kind == "7.3: load: core and model"


def test_right_answers_have_no_difference():
    core = answered("7.3", Module.MENDED, SCRIPT)
    assert first_difference("7.3", Module.MENDED, SCRIPT, core, core) is None


# ---- many ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("guest", ["6.1", "7.3"])
def test_the_core_answers_nothing_that_the_model_does_not_allow(guest):
    tally = tallied(comparison(guest=guest), 150, seed=1, shape=Shape())
    assert tally.operations > 2000
    assert [(difference.why, list(map(words_of, difference.sequence))) for difference in tally.found] == []


@pytest.mark.slow
@pytest.mark.parametrize("guest", ["6.1", "7.3"])
def test_the_reference_model_keeps_every_step_of_the_core(guest):
    broken = []

    def watch():
        judge = Judge(core.generation.capabilities, [REFERENCE])
        return lambda step: broken.extend(judge.feed(step))

    core = core_of(guest, Module.MENDED, watch)
    for sequence in draw(SMALL, 25, seed=2):
        core.run(sequence)
    assert broken == []


def test_the_same_seed_draws_the_same_sequences():
    assert draw(SMALL, 20, 5) == draw(SMALL, 20, 5)
    assert draw(SMALL, 20, 5) != draw(SMALL, 20, 6)


def test_sequences_use_every_operation():
    drawn = {type(operation) for sequence in draw(Shape(), 150, 3) for operation in sequence}
    every = set(ops.Command.__subclasses__()) | set(ops.DeviceAccess.__subclasses__())
    guests_own = {ops.Hello, ops.Reset, ops.Limit, ops.UseModule, ops.ReadFile, ops.WriteFile, ops.AppendFile, ops.Execute}
    assert every - drawn - guests_own == {ops.DeviceAccess, ops.Close, ops.Flags, ops.Pin, ops.Unpin, ops.Race}


@pytest.mark.slow
def test_an_answer_of_its_own_is_found_and_shrunk_to_that_operation():
    kernel = OtherKernel(ops.CheckExclusive, Observation(-22))
    compared = comparison(kernel)
    tally = tallied(compared, 30, seed=4)
    (shortest,) = tally.kinds().values()
    best = smallest(compared, shortest, tally.results, SMALL, 30, 4)
    assert best.kind == "7.3: check-exclusive: kernel and core by result, cpages, faults"
    assert [operation.verb for operation in best.sequence] == ["open", "check-exclusive"]
    assert best.operation.count == 1


def test_what_was_run_in_a_batch_is_not_run_again_to_shrink():
    kernel = OtherKernel(ops.Open, Observation(-2))
    compared = comparison(kernel)
    tally = tallied(compared, 10, seed=4)
    (shortest,) = tally.kinds().values()
    smallest(compared, shortest, tally.results, SMALL, 10, 4)
    assert len(tally.found) == 10
    assert kernel.asked < 40


@pytest.mark.parametrize(
    ("script", "playable"),
    [("fork 0 1\nload 1 0", True), ("load 1 0", False), ("fork 0 1\nfork 0 1", False), ("fork 0 1\nexit 1\nload 1 0", False)],
)
def test_only_processes_that_are_there_do_anything(script, playable):
    assert is_playable(read_script(script)) is playable


def test_a_comparison_that_is_interrupted_keeps_what_it_found():
    tally = Tally("7.3")

    def told(so_far):
        if so_far.sequences == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(comparison(OtherKernel(ops.Open, Observation(-2))), draw(SMALL, 10, 4), tally, told)
    assert len(tally.found) == 3


# ---- known ---------------------------------------------------------------------------------------------------------------

RECORD = Known("a-store", ("6.1",), "what", "where", lambda case: isinstance(case.operation, ops.Store))


def case(guest):
    return Case(guest, Module.MENDED, SCRIPT, 2, Observation(0), Observation(-1))


def test_a_record_is_of_its_versions_alone():
    assert recognised(case("6.1-debug"), [RECORD]) is RECORD
    assert recognised(case("7.3"), [RECORD]) is None


@pytest.mark.parametrize("guest", ["6.1", "7.3"])
def test_the_defect_of_the_stock_module_is_found_as_a_known_difference(guest):
    script = read_script("open 0 0\nmap 0 0 2 write private\nstore 0 0 5\nto-device 0 0 1 1\nread 0 0 0 2\nload 0 0")
    core = answered(guest, Module.STOCK, script)
    kernel = (*core[:4], Observation(ended="oops: BUG: unable to handle page fault"), core[5])
    found = first_difference(guest, Module.STOCK, script, kernel, core)
    assert found.known is not None
    assert found.known.id == "device-page-mirrored"
    assert found.who == "kernel and core and model"


FORKED = read_script(
    "open 0 0\nmap 0 0 2 write private\nload 0 0\nread 0 0 0 1\nfork 0 1\nread 0 0 0 1\nopen 1 0\nsnapshot 1 0 0 2"
)


@pytest.mark.parametrize(
    ("place", "kernel", "known"),
    [
        (5, of_device(0, 1, 0, b"\x00"), "fork-copies-no-pages-that-were-only-read"),
        (5, of_device(0, 1, 0, b"\x01"), None),
        (5, of_device(0, 1, 2, b"\x00"), None),
        (7, of_device(0, 2, 0, b"\x00\x00"), "fork-copies-no-pages-that-were-only-read"),
        (7, of_device(0, 2, 0, b"\x02\x00"), None),
        (3, of_device(0, 1, 0, b"\x00"), None),
    ],
)
def test_a_fork_that_copies_nothing_is_known_by_what_it_spares(place, kernel, known):
    core = answered("7.3", Module.MENDED, FORKED)
    found = first_difference("7.3", Module.MENDED, FORKED, (*core[:place], kernel, *core[place + 1 :]), core)
    assert (found.known.id if found.known else None) == known


TOLD = read_script(
    "open 0 0\nmap 0 0 2 write private\nfork 0 1\nopen 1 0\nstore 1 0 1\nstore 1 1 2\nto-device 1 0 0 2\nexclusive 0 0 0 1\n"
    "to-device 1 0 0 2\nread 1 0 0 2\nread 0 0 0 1"
)


@pytest.mark.parametrize(
    ("guest", "place", "kernel", "known"),
    [
        ("6.1", 8, Observation(-2), "exclusive-access-is-told-to-other-processes"),
        ("7.3", 8, Observation(-2), None),
        ("6.1", 6, Observation(-2), None),
        ("6.1", 8, Observation(-14), None),
        ("6.1", 9, of_device(0, 2, 1, b"\x01\x02"), "exclusive-access-is-told-to-other-processes"),
        ("6.1", 9, of_device(0, 2, 1, b"\x02\x00"), None),
        ("6.1", 10, of_device(0, 1, 1, b"\x00"), None),
    ],
)
def test_an_exclusive_access_that_another_process_is_told_of_is_known_by_what_it_costs(guest, place, kernel, known):
    core = answered(guest, Module.MENDED, TOLD)
    found = first_difference(guest, Module.MENDED, TOLD, (*core[:place], kernel, *core[place + 1 :]), core)
    assert (found.known.id if found.known else None) == known


SPLIT = read_script("open 0 0\nmap 0 0 4 write huge\nstore 0 1 3\nsnapshot 0 0 0 4\nload 0 0")


@pytest.mark.parametrize(
    ("data", "known"),
    [(b"\x11\x02\x11\x02", "split-maps-zeros-to-the-zero-page"), (b"\x01\x02\x11\x02", None), (b"\x11\x02\x00\x02", None)],
)
def test_zeros_that_a_split_maps_to_the_zero_page_are_known(data, known):
    core = list(answered("7.3", Module.MENDED, SPLIT))
    core[3] = of_device(0, 4, 0, b"\x02" * 4)
    kernel = (*core[:3], of_device(0, 4, 0, data), core[4])
    found = first_difference("7.3", Module.MENDED, SPLIT, kernel, tuple(core))
    assert (found.known.id if found.known else None) == known


def test_an_oops_of_the_kernel_alone_is_not_known():
    script = read_script("open 0 0\nmap 0 0 2 write private\nread 0 0 0 2")
    core = answered("6.1", Module.MENDED, script)
    found = first_difference("6.1", Module.STOCK, script, (*core[:2], Observation(ended="oops: BUG")), core)
    assert found.known is None
    assert found.kind == "6.1: read: kernel and core by end"
