"""Real kernels beside the simulated core and the reference model."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.comparing.guests import Asked, compare_guests, play
from migrate_vma_conformance.kernel.comparing.operations import read_script
from migrate_vma_conformance.kernel.comparing.report import lines
from migrate_vma_conformance.kernel.comparing.strategies import Shape

MIXED = "open 0 0\nmap 0 0 2 write private\nstore 0 0 5\nto-device 0 0 1 1\nread 0 0 0 2"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_sequences_agree_but_for_what_is_known(guest):
    asked = Asked(sequences=200)
    (outcome,) = compare_guests([guest], asked, lambda _: None)
    assert outcome.lost is None
    assert outcome.tally.sequences == 200
    assert outcome.differences == [], "\n".join(lines([outcome], asked))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sequences_on_large_folios_agree_but_for_what_is_known(guest):
    asked = Asked(sequences=40, shape=Shape(operations=15, large=True))
    (outcome,) = compare_guests([guest], asked, lambda _: None)
    assert outcome.lost is None
    assert outcome.differences == [], "\n".join(lines([outcome], asked))


@pytest.mark.slow
def test_the_stock_module_oopses_where_the_core_with_that_module_does(guest):
    played = play(guest, read_script(MIXED), Module.STOCK)
    assert played.kernel[-1].ended is not None
    assert played.kernel[-1].ended.startswith("oops")
    assert "dmirror_do_read" in played.kernel[-1].evidence
    assert played.core[-1].ended is not None
    assert played.difference is not None
    assert played.difference.known is not None
    assert played.difference.known.id == "device-page-mirrored"


@pytest.mark.slow
def test_the_mended_module_reads_what_is_there(guest):
    played = play(guest, read_script(MIXED), Module.MENDED)
    assert played.kernel[-1].data == b"\x05\x00"
    assert played.difference is None
