"""Lines of tracers: what is read of them, in the shape that each tool gives them."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.traces.lines import Header, Line, Lost, Other, Reader, Record, Unreadable
from migrate_vma_conformance.kernel.traces.probes import DRIVERS, Point
from tests.kernel.projection import Shape, line


def read(text, callback=None):
    return Reader(callback).read(Line(1, text))


@pytest.mark.parametrize("shape", Shape)
def test_a_line_says_when_who_where_and_what(shape):
    record = read(line("setup", 2_500_536, pid=33, cpu=1, shape=shape, st=0x7000, en=0x8000, fp=0xFFFFEA0000000040))
    assert (record.time, record.cpu, record.pid, record.task) == (2_500_536_000, 1, 33, "task-33")
    assert (record.point, record.names) == (Point.SETUP, ("setup",))
    assert record.numbers == {"start": 0x7000, "end": 0x8000, "fault_page": 0xFFFFEA0000000040}


@pytest.mark.parametrize("comm", ["a-b", "kworker/0:1-events", "two words", "<...>", "[odd]"])
def test_a_task_may_be_called_anything(comm):
    assert read(line("dsp", 1, pid=7, comm=comm)).task == f"{comm}-7"


def test_the_column_of_the_process_is_no_part_of_the_task():
    record = read("   init-33      (     33) [000] .....     2.503993: dsp: (do_swap_page+0x0/0x4a0) vmf=0x1")
    assert (record.task, record.pid, record.cpu) == ("init-33", 33, 0)


@pytest.mark.parametrize("told", ["-22", "4294967274", "0xffffffea", "0xffffffffffffffea"])
def test_a_result_is_signed_however_it_is_printed(told):
    text = f"init-1 [000] ..... 1.000000: setup_ret: (a+0x1/0x2 <- migrate_vma_setup) ret={told}"
    assert read(text).number("result") == -22


def test_arrays_are_read_whole_or_by_their_first_entry():
    many = read(line("pages", 1, src=(0x4B, 0x8B), dst=(0xC9, 0)))
    first = read("init-1 [000] ..... 1.000000: pages: (migrate_vma_pages+0x0/0x20) src0=0x4b dst0=0xc9")
    assert many.arrays == {"src": (0x4B, 0x8B), "dst": (0xC9, 0)}
    assert first.arrays == {"src": (0x4B,), "dst": (0xC9,)}


def test_what_a_probe_could_not_read_is_not_shown():
    text = "init-1 [000] ..... 1.000000: setup: (migrate_vma_setup+0x0/0x1f0) st=0x1000 pgfl=(fault) src=(fault)"
    record = read(text)
    assert (record.numbers, record.arrays) == ({"start": 0x1000}, {})


def test_a_probe_is_known_by_its_function_whatever_it_is_called():
    text = "init-1 [000] ..... 1.0: {}: ({}) x=1"
    assert read(text.format("p_migrate_vma_setup_0", "migrate_vma_setup+0x4/0x2b0")).point is Point.SETUP
    assert read(text.format("mine", "do_swap_page+0x33/0x4a0 <- svm_migrate_to_ram")).point is Point.CALLBACK_RETURN
    assert read(text.format("mine", "[unknown/kretprobe'd] <- migrate_vma_setup")).point is Point.SETUP_RETURN


def test_a_probe_inside_a_function_is_none_of_its_entry():
    assert isinstance(read("init-1 [000] ..... 1.0: setup: (migrate_vma_setup+0x40/0x2b0) x=1"), Other)


def test_the_name_of_an_event_does_not_make_a_call_of_another_function():
    assert isinstance(read("init-1 [000] ..... 1.0: setup: (usb_setup+0x0/0x2b0) x=1"), Other)


def test_a_callers_own_driver_is_known_by_the_symbol_that_is_given():
    text = "init-1 [000] ..... 1.0: mine: (my_migrate_to_ram+0x4/0x2b0 [mine]) x=1"
    assert isinstance(read(text), Other)
    assert read(text, "my_migrate_to_ram").point is Point.CALLBACK


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=lambda driver: driver.name)
def test_the_functions_of_known_drivers_are_known(driver):
    text = "init-1 [000] ..... 1.0: x: ({}+0x0/0x10) pg=0x1"
    points = [read(text.format(name)).point for name in (*driver.callbacks, *driver.frees)]
    assert points == [Point.CALLBACK] * len(driver.callbacks) + [Point.FREE] * len(driver.frees)


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        ("CPU:1 [LOST 123 EVENTS]", 1),
        ("CPU:0 [LOST EVENTS]", 0),
        ("CPU:7 [204600 EVENTS DROPPED]", 7),
        ("CPU:7 [EVENTS DROPPED]", 7),
        ("Lost 42 events", None),
    ],
)
def test_tracers_say_that_events_were_lost(text, cpu):
    assert read(text) == Lost(cpu, text)


@pytest.mark.parametrize("text", ["# tracer: nop", "#", "version = 6", "cpus=8", "CPU 2 is empty", "Attaching 9 probes..."])
def test_headers_are_headers(text):
    assert isinstance(read(text), Header)


def test_a_header_of_ours_tells_of_the_machine():
    told = read("# migrate-vma kernel=6.1.192 page_size=4096 probes=setup,pages")
    assert told.facts == {"kernel": "6.1.192", "page_size": "4096", "probes": "setup,pages"}


@pytest.mark.parametrize(("written", "overwritten"), [(140, ""), (5140, "5,000 of 5,140 events")])
def test_a_header_tells_whether_the_buffer_was_large_enough(written, overwritten):
    told = read(f"# entries-in-buffer/entries-written: 140/{written}   #P:2")
    assert told.facts == {"overwritten": overwritten}


@pytest.mark.parametrize("text", ["", "hello", "init 33 [000] 2.5: probe:setup: (ffffffff81)", "x" * 5000, "a-1 [0] 1.0 setup"])
def test_other_lines_are_unreadable(text):
    assert isinstance(read(text), Unreadable)


def test_events_of_others_are_told_from_unreadable_lines():
    switch = "init-1 [001] d..2. 2.500536: sched_switch: prev_comm=init prev_pid=1 ==> next_comm=x next_pid=2"
    assert read(switch) == Other(2_500_536_000, 1)


def test_two_probes_at_one_place_are_one_record():
    first, second = (
        read(line(name, 5, pid=3, **fields)) for name, fields in (("pages", {"cp": 1}), ("pages", {"np": 2, "src": (1,)}))
    )
    first.unite(second)
    assert isinstance(first, Record)
    assert (first.numbers, first.arrays) == ({"cpages": 1, "npages": 2}, {"src": (1,)})
