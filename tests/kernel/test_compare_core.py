"""The simulated core as a subject, held to what real kernels answered, and to what the module's source says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from migrate_vma_conformance.kernel.commands import Module, Reset
from migrate_vma_conformance.kernel.comparing.compare import differing
from migrate_vma_conformance.kernel.comparing.core_subject import Unsupported, core_of
from migrate_vma_conformance.kernel.comparing.guest_subject import observation
from migrate_vma_conformance.kernel.comparing.model_subject import ModelSubject
from migrate_vma_conformance.kernel.comparing.operations import read_script
from migrate_vma_conformance.kernel.witness.protocol import decode_answer, decode_command

DATA = Path(__file__).with_name("data")
BOTH = pytest.mark.parametrize("guest", ["6.1", "7.3"])


def recorded(guest):
    """Sequences that this kernel was asked (with the module mended), and what it answered; those of large folios left out."""
    lines = [line for line in (DATA / f"operations-{guest}.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split(" => ") for line in lines]
    asked = [decode_command(f"0 {words}")[1] for words, _ in pairs]
    told = [decode_answer(f"0 {words}")[1] for _, words in pairs]
    begins = [number for number, command in enumerate(asked) if isinstance(command, Reset)] + [len(asked)]
    rounds = [(tuple(asked[i + 1 : j]), told[i + 1 : j]) for i, j in itertools.pairwise(begins)]
    return [(sequence, answers) for sequence, answers in rounds if "huge" not in str(sequence).lower()]


def run(script, guest="7.3", module=Module.MENDED):
    """The answers to the lines of a script."""
    sequence = read_script("open 0 0\nopen 0 1\nmap 0 0 8 write private\n" + script)
    return [str(seen) for seen in core_of(guest, module).run(sequence)][3:]


@BOTH
def test_the_core_answers_as_the_kernel_did(guest):
    rounds = recorded(guest)
    assert rounds
    for sequence, answers in rounds:
        seen = core_of(guest, Module.MENDED).run(sequence)
        wanted = [observation(operation, answer) for operation, answer in zip(sequence, answers, strict=True)]
        told = [(w, g) for w, g in zip(wanted, seen, strict=True) if differing(w, g) and w.data is not None]
        assert told == []


@BOTH
def test_the_model_allows_what_the_kernel_answered(guest):
    for sequence, answers in recorded(guest):
        seen = [observation(operation, answer) for operation, answer in zip(sequence, answers, strict=True)]
        allowed = ModelSubject().follow(sequence, seen)
        refused = [each.refusal(one) for each, one in zip(allowed, seen, strict=True)]
        assert refused == [None] * len(sequence)


# ---- what comparisons found ----------------------------------------------------------------------------------------------


def test_a_fault_on_a_file_brings_its_own_page_table():
    assert run("map 0 0 8 write file\nload 0 1\nstore 0 2 7\nload 0 2")[1:] == ["0, value 0x00", "0", "0, value 0x07"]


@BOTH
def test_a_file_is_one_whoever_maps_it(guest):
    first = "map 0 0 4 write shared\nmap 0 4 4 write file\nstore 0 4 9\nfork 0 1\n"
    script = first + "unmap 0 0 8\nmap 1 0 8 read file\nload 1 4\nload 1 0"
    assert run(script, guest)[-2:] == ["0, value 0x09", "0, value 0x00"]


def test_a_hole_may_be_written_by_the_device_of_6_1_at_once():
    script = "to-device 0 0 0 2\nwrite 0 0 0 2 7"
    assert run(script, "6.1")[-1] == "0, cpages 2, faults 0"
    assert run(script, "7.3")[-1] == "0, cpages 2, faults 1"


def test_the_device_of_6_1_says_busy_for_whatever_it_cannot_have_alone():
    script = "protect 0 4 4 read\nexclusive 0 0 2 4\nmap 0 0 2 write shared\nexclusive 0 0 0 2"
    assert run(script, "6.1")[1::2] == ["-16", "-16"]
    assert run(script, "7.3")[1::2] == ["-14", "-95"]


@BOTH
def test_pages_that_were_had_alone_can_be_read_and_checked(guest):
    script = "store 0 0 5\nexclusive 0 0 0 2\ncheck-exclusive 0 0 0 2\nload 0 0\ncheck-exclusive 0 0 0 1"
    assert run(script, guest)[1:] == [
        "0, cpages 2, faults 0, data 0500",
        "-1",
        "0, value 0x05",
        "0, cpages 0, faults 0",
    ]


@BOTH
def test_an_invalidation_costs_the_device_the_entry_behind_it_as_well(guest):
    script = "store 0 0 1\nstore 0 1 2\nread 0 0 0 2\nadvise 0 0 1 dontneed\nread 0 0 1 1"
    assert run(script, guest)[-1] == "0, cpages 1, faults 1, data 02"


@BOTH
def test_who_ends_has_the_devices_evicted(guest):
    script = "to-device 0 0 0 2\nfork 0 1\nopen 1 0\nexit 1\nsnapshot 0 0 0 2"
    assert run(script, guest)[-1] == "0, cpages 2, faults 0, data 0101"


@BOTH
def test_a_device_goes_on_after_its_release(guest):
    script = "store 0 0 3\nto-device 0 0 0 2\nrelease 0 0 0 1\nsnapshot 0 0 0 2\nto-device 0 0 0 2\nsnapshot 0 0 0 2"
    assert run(script, guest)[2:] == [
        "0, cpages 0, faults 0",
        "0, cpages 2, faults 0, data 0202",
        "0, cpages 2, faults 0, data 0300",
        "0, cpages 2, faults 0, data 2222",
    ]


# ---- the module's defect -------------------------------------------------------------------------------------------------

MIXED = "store 0 0 5\nto-device 0 0 1 1\nread 0 0 0 2"


@BOTH
def test_the_stock_module_oopses_where_its_device_reads_its_own_page_beside_one_of_the_system(guest):
    assert run(MIXED, guest, Module.STOCK)[-1] == "ended: oops: dev0 reaches through a page that has no memory behind it"


@BOTH
def test_the_mended_module_reads_what_is_there(guest):
    assert run(MIXED, guest)[-1] == "0, cpages 2, faults 1, data 0500"


@BOTH
@pytest.mark.parametrize("last", ["read 0 0 1 1", "write 0 0 1 1 9"])
def test_the_stock_module_oopses_where_a_device_fault_finds_its_own_page(guest, last):
    erased = f"store 0 1 1\nto-device 0 0 1 1\nadvise 0 0 1 dontneed\n{last}"
    assert run(erased, guest, Module.STOCK)[-1].startswith("ended: oops: dev0 reaches")


def test_what_the_core_does_not_have_is_said():
    with pytest.raises(Unsupported, match="collapse"):
        core_of("7.3", Module.MENDED).run(read_script("advise 0 0 1 collapse"))
