"""Third-party drivers that do what they should not: a clear reason or a violation, never a hang, a crash, or a wrong `holds`."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from attrs import evolve
from click.testing import CliRunner

from migrate_vma_conformance import kit, pool, probe
from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.cli import cli
from migrate_vma_conformance.errors import SubjectError, UsageError
from migrate_vma_conformance.options import CheckOptions
from migrate_vma_conformance.report.pretty import render_report
from migrate_vma_conformance.tokens import Token, encode
from migrate_vma_conformance.verdict import Verdict, exit_code
from migrate_vma_impl.machine.schedule import Schedule
from migrate_vma_impl.machine.system import Preemption
from tests.conformance.subjects import drivers, endless, factories
from tests.processes import environment

SUBJECTS = (drivers, endless, factories)
OPTIONS = CheckOptions((Preemption.FULL,), jobs=1, scenarios=("fault-short",), seconds=20)


def path_of(name):
    """As a user names it: the module, which only the child process is to run, and the factory in it."""
    (module,) = [module for module in SUBJECTS if hasattr(module, name)]
    return f"{module.__name__}:{name}"


def check(name, scenario="fault-short", **changes):
    return kit.check(path_of(name), ["waiting"], evolve(OPTIONS, scenarios=(scenario,), **changes))


def verdicts(report, wanted):
    return {verdict.clause: verdict for verdict in report.verdicts if verdict.verdict is wanted}


def reasons(report):
    return {verdict.reason for verdict in verdicts(report, Verdict.INCONCLUSIVE).values()}


def shown(report):
    return " ".join("\n".join(render_report(report, clauses_by_id())).split())


def told(report, words):
    """What a report comes to, and where it has these words: of all reasons, and in print."""
    judged = {verdict.verdict for verdict in report.verdicts} - {Verdict.NOT_APPLICABLE}
    page = shown(report)
    return exit_code(report), judged, [words in reason for reason in reasons(report)], words in page, "Traceback" in page


UNKNOWN = (3, {Verdict.INCONCLUSIVE}, [True], True, False)
"""Nothing is said to hold, for one reason, which is the one that was looked for, and is printed in words."""


@pytest.fixture
def impatient(monkeypatch):
    """Half a second for a step, and a second for an import: seen from outside as soon as from the inside."""
    monkeypatch.setattr(pool, "STEP_SECONDS", 0.5)
    monkeypatch.setattr(probe, "IMPORT_SECONDS", 2.0)


# ---- what the child process reports of the model ---------------------------------------------------------------------

REASONS = {
    "takes_no_argument": "its factory raised TypeError: takes_no_argument() takes 0 positional arguments but 1 was given",
    "returns_nothing": "its factory returned None; expected an instance of migrate_vma_impl.driver.Driver",
    "returns_a_class": "its factory returned <class 'migrate_vma_impl.drivers.wide.Wide'>; expected an instance of",
    "returns_the_unprintable": "its factory raised RuntimeError: not even that",
    "raises": "its factory raised OSError: no such device (factories.py:",
    "is_async": "write `def`, not `async def`, for the factory itself",
    "named_by_a_number": "its factory returned a driver that is called 7; expected a word",
    "is_abstract": "Can't instantiate abstract class Unfinished",
    "plain_function": "expected `async def migrate_to_ram`",
    "raises_in_fault": "ValueError: the copy engine is on fire",
    "raises_in_to_device": "the scenario could not be set up: the prologue ended with KeyError: 'no such range'",
    "raises_in_free": "ZeroDivisionError: division by zero",
    "raises_in_invalidate": "RuntimeError: lost the mirror",
    "exits": "it ended the program (SystemExit: enough)",
    "dies": "the child process ended without a result (exit code 7)",
    "is_killed": "the child process was killed by SIGKILL (out of memory?)",
    "hoards": "MemoryError",
    "raises_the_unsayable": "Unsayable: (it cannot say what)",
    "raises_at_length": f"ValueError: {'no ' * 100}...",
    "is_cancelled": "it raised CancelledError",
    "recurses": "RecursionError: maximum recursion depth exceeded",
    "catches_everything": "CatchesEverything.migrate_to_ram (",
    "notes_for_ever": "the task loops without any visible step",
    "yields_for_ever_in_to_device": "the prologue did not end within 20,000 steps",
    "never_awaits": "mine.to_device(0, 0, 1) did not bring page 0 to the device: its entry is present",
    "offers_nothing": "the driver offers no to_device",
    "forgets_await_in_free": "coroutine 'FreeList.push' was never awaited: an `await` is missing at drivers.py:",
    "forgets_await_in_fault": "coroutine 'ForgetsAwaitInFault.look_at' was never awaited: an `await` is missing at drivers.py:",
    "returns_none": "migrate_to_ram returned None; expected one of VmFault.NONE, ",
    "returns_word": "migrate_to_ram returned 'done'; expected one of VmFault.NONE, ",
    "returns_17": "migrate_to_ram returned 17; expected one of VmFault.NONE, ",
    "returns_errno": "migrate_to_ram returned -16; expected one of VmFault.NONE, ",
    "returns_true": "migrate_to_ram returned True; expected one of VmFault.NONE, ",
    "returns_no_count": "to_device returned None; expected a count of pages, 0, or a negated errno",
    "yields_no_trap": "yielded None: only the traps of migrate_vma_impl.machine.traps may suspend a task",
    "touches_nothing": "task t1 touched Folio(pfn=999), which is no slot of this system",
    "keeps_state_on_self": "write: await self.state.faults.set(...)",
    "keeps_a_list": "declare it in the class, state = shared(seen=Cell(...))",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REASONS)
def test_a_driver_that_breaks_the_rules_is_unknown_with_the_reason(name):
    assert told(check(name), REASONS[name]) == UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize("name", ["takes_turns", "throws_dice", "shares_a_global"])
def test_a_driver_that_does_not_repeat_itself_is_told_so(name):
    assert told(check(name, "fault2"), "does not repeat itself") == UNKNOWN


@pytest.mark.slow
def test_what_a_task_left_locked_when_it_raised_is_no_livelock():
    assert told(check("raises_while_others_spin", "fault2"), "ValueError: left it locked") == UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sound", "keeps_a_coroutine", "returns_zero", "holds_a_file", "always_the_same", "prints"])
def test_a_driver_that_only_looks_odd_is_judged_like_any_other(name):
    report = check(name)
    assert exit_code(report) == 0
    assert "C36" in verdicts(report, Verdict.HOLDS)


# ---- what does not end -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("loops_in_factory", "loops_in_factory (endless.py:"),
        ("spins_in_fault", "SpinsInFault.migrate_to_ram (endless.py:"),
        ("spins_in_to_device", "SpinsInToDevice.to_device (endless.py:"),
        ("spins_and_swallows", "SpinsAndSwallows.migrate_to_ram (endless.py:"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_loop_that_awaits_nothing_is_ended_and_named(name, where):
    begin = time.monotonic()
    report = check(name)
    assert time.monotonic() - begin < 10
    (reason,) = reasons(report)
    assert told(report, "one step did not end within 0.5 s: ") == UNKNOWN
    assert where in reason


@pytest.mark.slow
def test_a_loop_that_awaits_and_comes_back_is_a_livelock():
    report = check("yields_for_ever")
    assert exit_code(report) == 1
    assert "t1" in verdicts(report, Verdict.VIOLATED)["C84"].counterexample.sentence


@pytest.mark.slow
def test_a_loop_that_never_comes_back_to_a_state_is_cut_and_its_progress_unknown():
    report = check("counts_for_ever", seconds=6)
    assert exit_code(report) == 3
    assert {"C84", "C79"} & set(verdicts(report, Verdict.INCONCLUSIVE))
    assert verdicts(report, Verdict.HOLDS) == {}


@pytest.mark.slow
def test_the_time_limit_ends_what_nothing_else_ends():
    """Every step is short, and the prologue has very many."""
    assert told(check("counts_for_ever_in_to_device", seconds=0.8), "the time limit of 0.8 s was reached") == UNKNOWN


@pytest.mark.slow
def test_a_thread_that_never_ends_does_not_keep_the_check():
    begin = time.monotonic()
    assert exit_code(check("leaves_a_thread")) == 0
    assert time.monotonic() - begin < 15


# ---- what it breaks --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_driver_that_returns_at_once_from_a_fault_is_a_livelock():
    broken = verdicts(check("faults_at_once"), Verdict.VIOLATED)
    assert "C84" in broken


@pytest.mark.slow
def test_a_driver_that_forgets_finalize_breaks_its_clause():
    report = check("forgets_finalize")
    assert exit_code(report) == 1
    assert "C07" in verdicts(report, Verdict.VIOLATED)
    assert verdicts(report, Verdict.HOLDS) == {}


@pytest.mark.slow
def test_its_counterexample_replays_by_the_path_of_the_factory():
    token = verdicts(check("forgets_finalize"), Verdict.VIOLATED)["C07"].counterexample.token
    replayed = kit.replay(token)
    assert (replayed.subject, replayed.verdict.verdict) == (path_of("forgets_finalize"), Verdict.VIOLATED)


# ---- replaying what cannot be run ------------------------------------------------------------------------------------


def token(name, **changes):
    return encode(evolve(Token(path_of(name), "waiting", "fault-short", "full", "C84", Schedule()), **changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "its factory raised OSError"),
        ("dies", "the child process ended without a result"),
        ("exits", "it ended the program"),
        ("raises_in_to_device", "no such range"),
        ("yields_no_trap", "yielded None"),
        ("spins_in_fault", "SpinsInFault.migrate_to_ram"),
        ("offers_nothing", "offers no to_device"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_replay_of_a_driver_that_cannot_be_run_says_why(name, words):
    with pytest.raises(SubjectError, match=words):
        kit.replay(token(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raises_in_fault", "forgets_await_in_free", "returns_none"])
def test_a_replay_in_which_a_task_goes_wrong_gives_no_verdict(name):
    replayed = kit.replay(token(name))
    assert replayed.verdict.verdict is Verdict.INCONCLUSIVE
    assert replayed.steps


@pytest.mark.parametrize("name", ["tests.conformance.subjects.drivers:nosuch", "no_such_module:make", "not a path"])
def test_a_token_of_a_driver_that_is_not_here_is_refused(name):
    with pytest.raises(UsageError):
        kit.replay(encode(Token(name, "waiting", "fault-short", "full", "C84", Schedule())))


# ---- modules ---------------------------------------------------------------------------------------------------------

MODULES = {
    "loops": "while True:\n    pass\n",
    "loops_in_c": "sum(iter(int, 1))\n",
    "raises": "raise RuntimeError('not\\ntoday')\n",
    "exits": "import sys\nsys.exit('bye')\n",
    "dies": "import os\nos._exit(3)\n",
    "broken": "def make(:\n",
    "needs": "import a_module_that_nobody_has\n",
    "interrupts": "raise KeyboardInterrupt\n",
    "strange": "def __getattr__(name):\n    raise RuntimeError('no attributes today')\n",
    "chatty": "print('hello', flush=True)\nfrom migrate_vma_impl.drivers.wide import make_wide as make\n",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A directory of a third party's modules, which is the current one."""
    for name, source in MODULES.items():
        (tmp_path / f"third_{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("third_loops:make", "importing it did not end within 2 s"),
        ("third_loops_in_c:make", "importing it did not end within 2 s"),
        ("third_raises:make", "importing third_raises failed: RuntimeError: not today"),
        ("third_exits:make", "importing third_exits failed: SystemExit: bye"),
        ("third_dies:make", "importing it failed: the child process ended without a result (exit code 3)"),
        ("third_broken:make", "importing third_broken failed: SyntaxError"),
        ("third_needs:make", "No module named 'a_module_that_nobody_has'"),
        ("third_interrupts:make", "importing it failed: the child process failed with KeyboardInterrupt"),
        ("third_strange:make", "third_strange has no make"),
        ("third_chatty:nosuch", "third_chatty has no nosuch. Expected: one of: make"),
        ("third_nosuch:make", "No module named 'third_nosuch'"),
        ("third_chatty", "is no path of a factory"),
        ("third_chatty:", "is no path of a factory"),
        (":make", "is no path of a factory"),
        ("third chatty:make", "is no path of a factory"),
        ("../third_chatty:make", "is no path of a factory"),
        ("", "is no path of a factory"),
    ],
)
@pytest.mark.usefixtures("modules", "impatient")
def test_a_driver_that_cannot_be_loaded_is_one_paragraph_and_exit_code_2(path, words):
    result = CliRunner().invoke(cli, ["check", path, "--profile", "quick"])
    assert (result.exit_code, result.stdout) == (2, "")
    said = " ".join(result.stderr.split())
    assert words in said
    assert said.startswith("migrate-vma: DRIVER `")
    assert "Traceback" not in said


@pytest.mark.usefixtures("modules")
def test_the_parent_never_imports_a_third_party_module():
    check_it = evolve(OPTIONS, scenarios=("refused",))
    kit.check("third_chatty:make", ["waiting"], check_it)
    assert "third_chatty" not in sys.modules


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests.conformance.subjects.records:NUMBER", "it names int 3"),
        ("tests.conformance.subjects.records:nosuch", "has no nosuch"),
        ("nosuch", "is no path of a factory or record"),
    ],
)
def test_a_patch_that_is_no_record_is_one_paragraph_and_exit_code_2(path, words):
    result = CliRunner().invoke(cli, ["check", "--patch", path, "--profile", "quick"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in " ".join(result.stderr.split())


# ---- the command itself ----------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from migrate_vma_conformance.cli import main; main()"]
ENVIRONMENT = environment()


@pytest.mark.slow
def test_what_a_driver_prints_does_not_get_into_the_json():
    command = [*COMMAND, "check", path_of("prints"), "--scenario", "fault-short", "--format", "json"]
    result = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert json.loads(result.stdout)["exit"] == result.returncode == 0
    assert "a fault!" in result.stderr
    assert "and past Python's buffer" in result.stderr


@pytest.mark.slow
def test_a_driver_that_will_not_end_leaves_no_traceback_behind():
    command = [*COMMAND, "check", path_of("catches_everything"), "--scenario", "fault-short", "--format", "json"]
    result = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (3, "")


@pytest.mark.slow
def test_a_program_without_a_guard_that_checks_a_driver_is_not_run_again(tmp_path):
    path = path_of("sound")
    program = tmp_path / "program.py"
    program.write_text(
        "print('begins')\n"
        "from migrate_vma_conformance.kit import check_driver\n"
        f"report = check_driver('{path}', scenarios=['refused'])\n"
        "print(len(report.verdicts) > 0)\n"
    )
    result = subprocess.run([sys.executable, str(program)], env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("begins\nTrue\n", "")
