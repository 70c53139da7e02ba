"""The kit's functions as a program calls them: with a path, a factory, a core, a record, a trace, a token."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from migrate_vma_conformance import kit
from migrate_vma_conformance.errors import Interrupted, UsageError
from migrate_vma_conformance.options import CheckOptions
from migrate_vma_conformance.report.schema import check_document
from migrate_vma_conformance.tokens import Token, encode
from migrate_vma_conformance.verdict import Verdict, exit_code
from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_impl.mm import migrate_device
from migrate_vma_impl.mm.folio import folio_unlock
from migrate_vma_spec.events import FinalizeCalled, FolioGot, FolioUnlocked
from migrate_vma_spec.schema import TraceError, read_trace, write_trace
from tests.conformance.make_golden import GOLDEN
from tests.conformance.subjects import drivers, records
from tests.processes import environment

QUICK = {"scenarios": ["fault-short"], "preemption": Preemption.FULL}


def violated(report):
    return {verdict.clause: verdict.counterexample for verdict in report.verdicts if verdict.verdict is Verdict.VIOLATED}


def token(name):
    return (GOLDEN / f"{name}.token").read_text().strip()


# ---- check_driver ----------------------------------------------------------------------------------------------------


class Factory:
    """A factory that is a class of the caller's, with something to say to every driver."""

    def __init__(self, name):
        self.name = name

    def __call__(self, kernel):
        return Wide(kernel, self.name)


@pytest.mark.slow
def test_a_factory_of_this_process_is_checked_in_it():
    report = kit.check_driver(Factory("mine"), **QUICK)
    assert exit_code(report) == 0
    assert report.subject == "tests.conformance.test_kit:<Factory>"


def test_a_factory_that_ends_the_program_does_not_end_this_one():
    report = kit.check_driver(drivers.exits, **QUICK)
    assert exit_code(report) == 3
    assert any("SystemExit: enough" in verdict.reason for verdict in report.verdicts)


@pytest.mark.slow
def test_a_factory_that_has_a_name_in_a_module_gets_counterexamples_that_replay_by_it():
    report = kit.check_driver(drivers.forgets_finalize, **QUICK)
    assert report.subject == "tests.conformance.subjects.drivers:factory_of.<locals>.make"
    report = kit.check_driver(by_name, **QUICK)
    assert report.subject == "tests.conformance.test_kit:by_name"
    replayed = kit.replay(violated(report)["C07"].token)
    assert (replayed.subject, replayed.verdict.verdict) == (report.subject, Verdict.VIOLATED)


def by_name(kernel):
    return drivers.ForgetsFinalize(kernel, "mine")


@pytest.mark.slow
def test_a_factory_without_one_replays_where_it_is_given():
    example = violated(kit.check_driver(drivers.forgets_finalize, **QUICK))["C07"]
    with pytest.raises(UsageError, match="is no path of a factory"):
        kit.replay(example.token)
    replayed = kit.replay(example.token, make_driver=drivers.forgets_finalize)
    assert replayed.steps == example.steps


@pytest.mark.slow
@pytest.mark.parametrize("make", [drivers.with_variant, "tests.conformance.subjects.drivers:with_variant"])
def test_a_driver_with_a_variant_is_shown_twice_where_the_generation_hands_its_page_over(make):
    report = kit.check_driver(make, generation=["waiting", "entry-first"], **QUICK)
    assert [generation.name for generation in report.generations] == ["waiting", "entry-first", "entry-first+adapted"]
    assert report.generations[2].clauses["C92"].verdict is Verdict.HOLDS
    assert report.generations[1].clauses["C94"].verdict is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"generation": "v1.0"}, "there is no such generation"),
        ({"generation": ["waiting", "nosuch"]}, "there is no such generation"),
        ({"scenarios": ["fault2", "nosuch"]}, "--scenario `nosuch`: there is no such scenario. Expected: one of: fault2, "),
        ({"make_driver": "nosuch"}, "DRIVER `nosuch`"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(about, words):
    with pytest.raises(UsageError) as refused:
        kit.check_driver(**({"make_driver": drivers.sound} | about))
    assert words in str(refused.value)


@pytest.mark.parametrize("value", ["sometimes", "FULL", ""])
def test_an_unknown_preemption_model_is_a_value_error(value):
    with pytest.raises(ValueError, match="is not a valid Preemption"):
        kit.check_driver(drivers.sound, preemption=Preemption(value))


def test_the_scenarios_asked_for_are_those_that_run_whatever_the_profile_says():
    report = kit.check_driver("test_hmm", scenarios=["refused", "migrate-watched"])
    assert {each.name for verdict in report.verdicts for each in verdict.scenarios} == {"refused", "migrate-watched"}
    assert report.command.endswith("--scenario refused --scenario migrate-watched")


# ---- records of the caller's own -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_record_goes_to_the_child_processes():
    report = kit.check_driver("wide", generation=[records.MINE, records.BROKEN], **QUICK)
    assert [generation.name for generation in report.generations] == ["mine", "broken"]
    assert "C31" in violated(report)
    assert report.generations[0].clauses["C31"].verdict is Verdict.HOLDS


@pytest.mark.slow
def test_a_record_with_a_name_of_ours_is_not_taken_for_ours():
    report = kit.check_driver("wide", generation=records.SAME_NAME, **QUICK)
    assert [generation.name for generation in report.generations] == ["waiting*"]
    example = violated(report)["C31"]
    with pytest.raises(UsageError, match="that only the program which made it has"):
        kit.replay(example.token)
    assert kit.replay(example.token, generation=records.SAME_NAME).verdict.verdict is Verdict.VIOLATED


def test_a_record_that_cannot_be_sent_is_refused_in_words():
    with pytest.raises(UsageError, match="the record cannot be sent to a child process"):
        kit.check_driver("wide", generation=records.UNSENDABLE)


@pytest.mark.slow
def test_a_patch_is_judged_beside_the_others_and_its_counterexample_replays():
    options = CheckOptions((Preemption.FULL,), patch="tests.conformance.subjects.records:BROKEN", scenarios=("fault-short",))
    report = kit.check("wide", ["waiting"], options)
    assert [generation.name for generation in report.generations] == ["waiting", "broken"]
    example = violated(report)["C31"]
    assert kit.replay(example.token).steps == example.steps


# ---- check_core ------------------------------------------------------------------------------------------------------


class UnlocksTheFaultPage(Kernel):
    """Finalize unlocks what the fault handler locked."""

    async def migrate_vma_finalize(self, args):
        await migrate_device.migrate_vma_finalize(self, args)
        if args.fault_page is not None:
            await folio_unlock(args.fault_page)


class CannotBeMade(Kernel):
    def __attrs_post_init__(self):
        raise RuntimeError("no such machine")


@pytest.mark.slow
def test_a_core_that_breaks_one_function_breaks_its_clause():
    report = kit.check_core(UnlocksTheFaultPage, scenarios=["fault-short"])
    example = violated(report)["C31"]
    assert kit.replay(example.token, make_core=UnlocksTheFaultPage).verdict.verdict is Verdict.VIOLATED
    with pytest.raises(UsageError, match="that only the program which made it has"):
        kit.replay(example.token)


@pytest.mark.slow
def test_a_core_that_is_ours_does_not():
    assert "C31" not in violated(kit.check_core(Kernel, driver="wide", scenarios=["fault-short"]))


def test_a_core_that_cannot_be_made_is_not_blamed_on_the_driver():
    report = kit.check_core(CannotBeMade, scenarios=["fault-short"])
    assert exit_code(report) == 3
    assert any("it, or the core that it was given, raised RuntimeError" in verdict.reason for verdict in report.verdicts)


# ---- check_trace -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A sound run as a file: two faults of one page in the newest kernel's generation."""
    replayed = kit.replay(encode(Token("wide", "waiting", "fault2", "full", "C36", Schedule())))
    path = tmp_path_factory.mktemp("trace") / "sound.jsonl"
    write_trace(path, replayed.steps)
    return path


def check_trace(steps):
    return kit.check_trace(steps, capabilities=WAITING.capabilities)


def test_a_recorded_trace_that_keeps_the_contract_breaks_nothing(recorded):
    assert check_trace(read_trace(recorded)) == {}


@pytest.mark.parametrize(
    ("kind", "clause"),
    [(FolioGot, "C41"), (FolioUnlocked, "C44"), (FinalizeCalled, "C45")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_trace_from_which_a_step_is_missing_breaks_its_clause(recorded, kind, clause):
    """The first of its kind that a faulting CPU makes."""
    steps = list(read_trace(recorded))
    del steps[next(place for place, step in enumerate(steps) if step.task == "t1" and isinstance(step.event, kind))]
    assert clause in check_trace(steps)


def test_a_trace_of_a_broken_run_breaks_what_the_run_broke():
    broken = kit.check_trace(read_trace(GOLDEN / "unreferenced-C41.jsonl"), capabilities=frozenset())
    assert "C41" in broken


@pytest.mark.parametrize("line", ["{", "[]", '{"task": "t1", "cpu": 0, "event": "NoSuch"}'])
def test_a_file_that_is_no_trace_is_refused_in_words(recorded, tmp_path, line):
    path = tmp_path / "broken.jsonl"
    path.write_text(recorded.read_text() + line + "\n")
    with pytest.raises(TraceError):
        check_trace(read_trace(path))


# ---- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_stops_at_the_clause_that_it_is_asked_for():
    whole, cut = kit.replay(token("unreferenced-C41")), kit.replay(token("unreferenced-C41"), "C41")
    assert cut.steps == whole.steps[: len(cut.steps)]
    assert cut.verdict.verdict is whole.verdict.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("until", ["C84", "C01"])
def test_a_cycle_is_judged_whole_though_the_replay_is_to_stop_at_a_clause(until):
    whole, cut = kit.replay(token("referenced-C84")), kit.replay(token("referenced-C84"), until)
    assert cut.verdict.verdict is Verdict.VIOLATED
    assert (cut.verdict.counterexample.sentence, cut.cycle_start) == (whole.verdict.counterexample.sentence, whole.cycle_start)


def test_a_replay_until_an_unknown_clause_is_a_usage_error():
    with pytest.raises(UsageError, match="there is no such clause"):
        kit.replay(token("referenced-C84"), "C999")


def test_the_state_at_the_end_is_told_in_words_and_only_where_it_changed():
    lines = kit.replay(token("referenced-C84"), state=True).state
    told = dict(line.split(": ", 1) for line in lines)
    assert told["folio 100"].startswith("refcount ")
    assert told["pte mm0:0"].startswith("device 100")
    assert "memory" not in told["folio 100"]
    assert "folio 103" not in told
    assert all("(" not in name for name in told)


def test_without_being_asked_a_replay_tells_no_state():
    assert kit.replay(token("unreferenced-C41")).state == ()


# ---- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", [drivers.sound, "wide"], ids=["inside", "in children"])
def test_an_interrupt_carries_what_was_found_until_then(make):
    done = []

    def stop(advance):
        done.append(advance)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        kit.check_driver(make, preemption=Preemption.FULL, jobs=1, progress=stop, scenarios=["fault-short", "round-trip"])
    assert len(done) == 1
    names = {each.name: each.complete for verdict in stopped.value.report.verdicts for each in verdict.scenarios}
    assert names == {"fault-short": True, "round-trip": False}
    assert exit_code(stopped.value.report) == 3


INTERRUPTED = """
import os, signal
from migrate_vma_conformance import cli, kit

check = kit.check

def interrupted(subject, generations, options, progress):
    return check(subject, generations, options, lambda advance: os.killpg(0, signal.SIGINT))

kit.check = interrupted
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_a_report_of_what_was_found():
    """As a terminal sends it: to the whole group, the child processes and their server too."""
    command = [sys.executable, "-c", INTERRUPTED, "check", "--jobs", "2", "--format", "json", "--profile", "quick"]
    result = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, start_new_session=True)
    assert result.returncode == 130
    document = json.loads(result.stdout)
    check_document(document, "what was interrupted")
    (generation,) = document["generations"].values()
    complete = {each["complete"] for clause in generation["clauses"].values() for each in clause["evidence"]["scenarios"]}
    assert complete == {True, False}
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr
