"""The column view: what it shows, what it leaves out, and that it never grows wider than the page."""

from __future__ import annotations

import inspect
import typing

import pytest
from attrs import fields

from migrate_vma_conformance.report.callers import function_of
from migrate_vma_conformance.report.columns import Execution, render
from migrate_vma_conformance.report.words import describe, entries, fault, pte
from migrate_vma_spec import events
from migrate_vma_spec.events import Chose, Event, LockDropped, LockMissed, LockTaken, Oops, Step
from migrate_vma_spec.vocabulary import (
    PTE_NONE,
    LockMode,
    Memory,
    NotifyReason,
    Point,
    Pte,
    PteKind,
    Select,
    VmFault,
    VmFlags,
    migrate_pfn,
)
from tests.conformance.reports import trace


def shown(*given, **about):
    """The text of a trace of one CPU that runs the events in `f`."""
    steps = tuple(Step("cpu0", 0, event) for event in given)
    return "\n".join(render(Execution(steps, (("f",),) * len(steps)), **about))


@pytest.mark.parametrize("cpus", range(1, 9))
def test_a_line_is_never_wider_than_80_columns(cpus):
    steps, stacks = trace(cpus)
    lines = render(Execution(steps, stacks, 1, 3), show_all=True)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("cpus", [2, 3, 4])
def test_each_cpu_has_a_column(cpus):
    steps, stacks = trace(cpus)
    lines = render(Execution(steps, stacks, 1))
    places = {line.index("get 8") for line in lines if "get 8" in line}
    assert len(places) == cpus
    assert [f"CPU {cpu}: cpu{cpu}" in lines[0] for cpu in range(cpus)] == [True] * cpus


def test_more_cpus_than_columns_are_named_in_one_column():
    steps, stacks = trace(6)
    lines = render(Execution(steps, stacks, 1))
    assert sum("[CPU 5 cpu5]" in line for line in lines) == 1


def test_the_function_is_named_where_it_changes_and_helpers_are_not():
    steps, stacks = trace(1)
    text = "\n".join(render(Execution(steps, stacks, 1)))
    assert text.count("do_swap_page") == 1
    assert "folio_get" not in text


def test_the_innermost_function_that_says_something_is_named():
    assert function_of(("handle_mm_fault", "do_swap_page", "folio_get", "step")) == "do_swap_page"
    assert function_of(("_act", "discard", "madvise_dontneed", "_operation", "step")) == "madvise_dontneed"
    assert function_of(("_act", "act", "touch", "_operation", "step")) == "", "what only a scenario has, the kernel has not"
    assert function_of(("do_swap_page", "do_device_private_page", "claim_reference", "folio_get", "step")) == "do_swap_page"
    assert function_of(("step",)) == ""
    assert function_of(()) == ""


def test_what_builds_the_first_state_is_left_out_unless_all_is_asked_for():
    steps, stacks = trace()
    assert "frame 8" not in "\n".join(render(Execution(steps, stacks, 1)))
    assert "frame 8" in "\n".join(render(Execution(steps, stacks, 1), show_all=True))


def test_locks_that_nobody_had_to_wait_for_are_left_out():
    free = LockTaken("ptl:0", LockMode.SPIN), LockDropped("ptl:0", LockMode.SPIN), Chose("end", 1)
    assert "ptl:0" not in shown(*free)
    assert "lock ptl:0" in shown(*free, show_all=True)


def test_a_lock_that_was_missed_or_is_held_at_the_end_is_shown():
    taken = LockTaken("busy:0", LockMode.SLEEP)
    assert "lock busy:0" in shown(taken, Chose("end", 1))
    assert "lock busy:0" in shown(taken, LockMissed("busy:0", LockMode.SLEEP), LockDropped("busy:0", LockMode.SLEEP))


def test_the_last_step_is_always_shown():
    assert "pte mm0:0 is none" in shown(Chose("memory", 1), events.PteRead(0, 0, PTE_NONE))


def test_default_answers_are_left_out_and_others_are_not():
    text = shown(Chose("memory", 0), Chose("swap", 2), Oops("gone", 3))
    assert "memory" not in text
    assert "swap: answer 2" in text


def test_a_cycle_is_framed_by_where_it_begins_and_where_it_goes_back_to():
    steps, stacks = trace()
    lines = render(Execution(steps, stacks, 1, 4), ever="fair even so")
    begin = next(at for at, line in enumerate(lines) if "for ever, from here" in line)
    assert lines[begin].startswith(".-> ")
    assert all(line.startswith("|") for line in lines[begin + 1 : -1])
    first = next(line for line in lines[begin + 1 :] if line[1:4].strip())
    assert lines[-1].startswith(f"'-> back to step {first[1:4].strip()}: fair even so ---")


def test_a_function_with_one_step_stands_before_it_and_one_with_several_above_them():
    got = events.FolioGot(8, 2)
    steps = [Step("cpu0", 0, event) for event in (got, got, got, Oops("gone", 8))]
    lines = [line.strip() for line in render(Execution(steps, (("f",), ("f",), ("g",), ("h",))))]
    assert lines[2:5] == ["f()", "1    get 8, refs 2", "2    get 8, refs 2"]
    assert lines[5:] == ["3    g: get 8, refs 2", "4    h: OOPS: gone, page 8"]


def test_the_first_step_of_a_cycle_names_its_function_again():
    got = events.FolioGot(8, 2)
    steps = [Step("cpu0", 0, event) for event in (got, events.FolioPut(8, 1), got, events.FolioPut(8, 2))]
    lines = render(Execution(steps, (("f",),) * 4, 0, 2))
    begin = lines.index(next(line for line in lines if line.startswith(".-> ")))
    assert lines[begin + 1] == "|     f()"


def test_numbers_of_steps_are_those_of_the_whole_trace():
    steps, stacks = trace(1)
    lines = render(Execution(steps, stacks, 1))
    assert [line.split()[0] for line in lines if line[:4].strip().isdigit()] == ["2", "5", "7", "8", "9"]


def test_a_trace_without_stacks_is_shown_without_functions():
    steps, _ = trace()
    assert "()" not in "\n".join(render(Execution(steps, (), 1)))


# ---- words -----------------------------------------------------------------------------------------------------------

_VALUES: dict[object, object] = {
    int: 7, str: "ptl:0", bool: True, float: 1.0, Pte: Pte(PteKind.MIGRATION, 8, write=True), LockMode: LockMode.SPIN,
    Memory: Memory.SYSTEM, NotifyReason: NotifyReason.CLEAR, Point: Point.USER, Select: Select.SYSTEM, VmFault: VmFault.SIGBUS,
    VmFlags: VmFlags.READ,
}  # fmt: skip


def _value(hint: object) -> object:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return (_value(arguments[0]),)
    return _value(next(each for each in arguments if each is not type(None))) if arguments else _VALUES[hint]


def _every_event() -> list[Event]:
    kinds = [kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, Event) and kind is not Event]
    hints = [(kind, typing.get_type_hints(kind)) for kind in kinds]
    return [kind(**{field.name: _value(hint[field.name]) for field in fields(kind)}) for kind, hint in hints]


@pytest.mark.parametrize("event", _every_event(), ids=lambda event: type(event).__name__)
def test_every_kind_of_event_has_words(event):
    words = describe(event)
    assert words
    assert type(event).__name__ not in words, "an event of ours is described, not dumped"


def test_an_event_that_is_not_known_here_is_shown_by_its_name_and_fields():
    class Sneezed(Event):
        pass

    assert describe(Sneezed()) == "Sneezed"


def test_entries_of_page_tables_and_of_arrays_in_short():
    assert pte(Pte(PteKind.DEVICE_PRIVATE, 8, write=True)) == "device 8 w"
    assert pte(Pte(PteKind.PRESENT, 4, young=True, dirty=True)) == "page 4 yd"
    assert entries((migrate_pfn(8) | 2 | 8, 2, 0)) == "[8mw -m -]"
    assert entries(None) == "NULL"


def test_fault_results_are_written_as_the_kernel_writes_them():
    assert fault(VmFault.NONE) == "0"
    assert fault(VmFault.SIGBUS) == "VM_FAULT_SIGBUS"
    assert fault(VmFault.OOM | VmFault.RETRY) == "VM_FAULT_OOM|VM_FAULT_RETRY"
